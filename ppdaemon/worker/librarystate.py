# SPDX-License-Identifier: BSD-3-Clause
"""The state of libraries that a task may change, for those that are imported."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from threadpoolctl import ThreadpoolController

from ppdaemon.worker.statepart import Part

__all__ = ("LIBRARIES",)


def _butler_log() -> tuple[Part, ...]:
    context = sys.modules["lsst.daf.butler.logging"].ButlerMDC

    def restore(before: Mapping[str, str]) -> None:
        context.clear_mdc()
        for key, value in before.items():
            context.MDC(key, value)

    return (Part("context of log records", lambda: dict(_mdc()), restore),)


def _mdc() -> Mapping[str, str]:
    return getattr(logging.makeLogRecord({}), "MDC", {})


def _numpy() -> tuple[Part, ...]:
    numpy = sys.modules["numpy"]
    libraries = ThreadpoolController().lib_controllers

    def restore_threads(before: Sequence[int]) -> None:
        for library, number in zip(libraries, before, strict=True):
            library.set_num_threads(number)

    return (
        Part("numpy error state", numpy.geterr, lambda before: numpy.seterr(**before)),
        Part("numpy error call", numpy.geterrcall, numpy.seterrcall),
        Part("numpy buffer size", numpy.getbufsize, numpy.setbufsize),
        Part(
            "numpy print options",
            numpy.get_printoptions,
            lambda before: numpy.set_printoptions(**before),
        ),
        Part(
            "threads of BLAS and OpenMP",
            lambda: [library.get_num_threads() for library in libraries],
            restore_threads,
        ),
    )


def _pyarrow() -> tuple[Part, ...]:
    pyarrow = sys.modules["pyarrow"]
    return (Part("threads of pyarrow", pyarrow.cpu_count, pyarrow.set_cpu_count),)


def _pandas() -> tuple[Part, ...]:
    pandas = sys.modules["pandas"]

    def options() -> dict[str, Any]:
        return dict(_flattened(pandas.options.d))

    def restore(before: Mapping[str, Any]) -> None:
        with warnings.catch_warnings(action="ignore"):  # some options are deprecated
            for name, value in options().items():
                if name in before and value != before[name]:
                    pandas.set_option(name, before[name])

    return (Part("pandas options", options, restore),)


def _flattened(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _astropy_configuration() -> tuple[Part, ...]:
    # It has only what was set; a read of all attributes takes 0.3 ms.
    config = sys.modules["astropy.config"].get_config("astropy")

    def values() -> dict[tuple[str, str], Any]:
        return {
            (section, name): value
            for section, names in config.dict().items()
            if isinstance(names, dict)
            for name, value in names.items()
            if value != _default(section, name)  # a context that sets a value sets the previous one again
        }

    def restore(before: Mapping[tuple[str, str], Any]) -> None:
        for section in config.sections:
            config[section].clear()
        for (section, name), value in before.items():
            config[section][name] = value

    return (Part("astropy configuration", values, restore),)


def _default(section: str, name: str) -> Any:
    conf = type(getattr(sys.modules.get(f"astropy.{section}"), "conf", None))
    return getattr(getattr(conf, name, None), "defaultvalue", None)


def _astropy_states() -> tuple[Part, ...]:
    """Return the part of what `astropy.utils.state.ScienceState` has, such as the ephemeris."""
    base = sys.modules["astropy.utils.state"].ScienceState

    def restore(before: Mapping[Any, Any]) -> None:
        for state, value in before.items():
            state._value = value

    def values() -> dict[Any, Any]:
        return {state: getattr(state, "_value", None) for state in base.__subclasses__()}

    return (Part("astropy science states", values, restore),)


def _astropy_units() -> tuple[Part, ...]:
    registries = sys.modules["astropy.units.core"]._unit_registries

    def restore(before: list[Any]) -> None:
        registries[:] = before

    return (Part("astropy units", lambda: list(registries), restore),)


def _matplotlib() -> tuple[Part, ...]:
    parameters = sys.modules["matplotlib"].rcParams

    # Of the base class: the class's own functions choose a backend, as does the first figure.
    def values() -> dict[str, Any]:
        return {name: value for name, value in dict.items(parameters) if name != "backend"}

    return (Part("matplotlib parameters", values, lambda before: dict.update(parameters, before)),)


def _pyplot() -> tuple[Part, ...]:
    pyplot = sys.modules["matplotlib.pyplot"]

    def restore(before: list[int]) -> None:
        for number in set(pyplot.get_fignums()) - set(before):
            pyplot.close(number)

    return (Part("matplotlib figures", pyplot.get_fignums, restore),)


LIBRARIES: Mapping[str, Callable[[], tuple[Part, ...]]] = {
    "lsst.daf.butler.logging": _butler_log,
    "numpy": _numpy,
    "pyarrow": _pyarrow,
    "pandas": _pandas,
    "astropy.config": _astropy_configuration,
    "astropy.utils.state": _astropy_states,
    "astropy.units.core": _astropy_units,
    "matplotlib": _matplotlib,
    "matplotlib.pyplot": _pyplot,
}
"""By module: what is compared from its import on."""
