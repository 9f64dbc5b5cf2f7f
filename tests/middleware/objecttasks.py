# SPDX-License-Identifier: BSD-3-Clause
"""Tasks that keep, share and change what they read and put, as the Butler's files allow them to."""

import types
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from lsst.pipe.base import (
    AlgorithmError,
    AnnotatedPartialOutputsError,
    PipelineTask,
    PipelineTaskConfig,
    PipelineTaskConnections,
    Struct,
)
from lsst.pipe.base.connectionTypes import Input, Output
from toycam import EXPOSURE, Rig

_ROWS = 20_000
"""Arrays of that length are not copied if nothing else references them."""
_columns = partial(dict, doc="large arrays", storageClass="Columns", dimensions=EXPOSURE)
RAW = Input(name="raw", doc="raw", storageClass="StructuredDataDict", dimensions=EXPOSURE)
STARS = Input(**_columns(name="stars"))
TWIN = Input(**_columns(name="stars_twin"))
TWO_STARS = {"stars": Output(**_columns(name="stars")), "twin": Output(**_columns(name="stars_twin"))}


def new_stars(value: float) -> dict[str, Any]:
    """Return columns of a table."""
    return {"flux": np.full(_ROWS, value), "size": np.arange(float(_ROWS))}


def add(stars: dict[str, Any], name: str, value: float) -> None:
    """Change a column in place."""
    stars[name] += value


def task(
    name: str,
    connections: dict[str, Any],
    *bases: type,
    module: str = __name__,
    dimensions: tuple[str, ...] = EXPOSURE,
    fields: dict[str, Any] | None = None,
    **attributes: Any,
) -> type[PipelineTask]:
    """Make a task that can be imported by its name from a module."""

    def fill(content: dict[str, Any], namespace: dict[str, Any]) -> None:
        namespace.update(content, __module__=module)

    edges = types.new_class(
        f"{name}Connections",
        (PipelineTaskConnections,),
        {"dimensions": dimensions},
        partial(fill, connections),
    )
    config = types.new_class(
        f"{name}Config", (PipelineTaskConfig,), {"pipelineConnections": edges}, partial(fill, fields or {})
    )
    attributes |= {"ConfigClass": config, "_DefaultName": name}
    return types.new_class(f"{name}Task", (*bases, PipelineTask), {}, partial(fill, attributes))


# --- makers: they keep references to the objects that they have put ----------

STASH: list[Callable[[], Any]] = []
"""Functions that return arrays that tasks have put; never released by the process."""


def spoil_stash() -> None:
    """Change all arrays that were put and are still referenced."""
    for array_of in STASH:
        if (array := array_of()) is not None and array.flags.writeable:
            array += 1000.0


def _make(keep: Callable[[dict[str, Any]], Callable[[], Any]]) -> Callable[..., Struct]:
    def run(self: PipelineTask, raw: Any) -> Struct:
        spoil_stash()  # arrays that another quantum of this task has put
        stars = new_stars(float(raw["exposure"] % 10))
        STASH.append(keep(stars))
        return Struct(stars=stars, twin=stars)

    return run


def keep_all(stars: dict[str, Any]) -> Callable[[], Any]:
    return lambda: stars["flux"]


def keep_array(stars: dict[str, Any]) -> Callable[[], Any]:
    flux = stars["flux"]
    return lambda: flux


def keep_view(stars: dict[str, Any]) -> Callable[[], Any]:
    part = stars["flux"][10:]
    return lambda: part


def keep_buffer(stars: dict[str, Any]) -> Callable[[], Any]:
    buffer = memoryview(stars["flux"])
    return lambda: np.asarray(buffer)


def keep_weakly(stars: dict[str, Any]) -> Any:
    return weakref.ref(stars["flux"])


KEEPERS = {
    "All": keep_all,
    "Array": keep_array,
    "View": keep_view,
    "Buffer": keep_buffer,
    "Weak": keep_weakly,
}
for _name, _keep in KEEPERS.items():
    globals()[f"Keep{_name}Task"] = task(f"Keep{_name}", {"raw": RAW} | TWO_STARS, run=_make(_keep))


class _KeepInside:
    """Keeps its outputs in attributes, and overrides runQuantum."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802, N803
        self.stars = new_stars(float(butlerQC.get(inputRefs.raw)["exposure"] % 10))
        butlerQC.put(self.stars, outputRefs.stars)
        self.stars["flux"] += 7.0
        butlerQC.put(self.stars, outputRefs.twin)
        self.stars["flux"] += 7.0

    def getFullMetadata(self) -> Any:  # noqa: N802
        self.stars["flux"] += 7.0
        return super().getFullMetadata()  # type: ignore[misc]


ContinueTask = task("Continue", {"raw": RAW} | TWO_STARS, _KeepInside)


def _run_and_note(self: Any, raw: Any) -> Struct:
    self.stars = new_stars(float(raw["exposure"] % 10))
    return Struct(stars=self.stars, twin=self.stars)


def _change_at_the_end(self: Any) -> Any:
    self.stars["flux"] += 7.0
    return PipelineTask.getFullMetadata(self)


ContinueLateTask = task(
    "ContinueLate", {"raw": RAW} | TWO_STARS, run=_run_and_note, getFullMetadata=_change_at_the_end
)


def _bind(self: Any, **kwargs: Any) -> None:
    PipelineTask.__init__(self, **kwargs)
    self.runQuantum = partial(_KeepInside.runQuantum, self)


ContinueUnseenTask = task("ContinueUnseen", {"raw": RAW} | TWO_STARS, __init__=_bind)


# --- readers: they run after the makers, in the order of their labels ----------


def _sums(stars: dict[str, Any]) -> dict[str, float]:
    return {name: float(values.sum()) for name, values in stars.items()}


def _output(name: str) -> dict[str, Any]:
    return {"sums": Output(name=name, doc="sums", storageClass="StructuredDataDict", dimensions=EXPOSURE)}


def _spoil(self: Any, stars: Any) -> Struct:
    sums = _sums(stars)
    STASH.append(keep_all(stars))
    add(stars, "flux", -200.0)
    return Struct(sums=sums)


RSpoilTask = task("RSpoil", {"stars": STARS} | _output("sums_spoilt"), run=_spoil)


def _see_both(self: Any, stars: Any, again: Any, twin: Any) -> Struct:
    add(stars, "flux", 3.0)
    add(twin, "size", 3.0)
    return Struct(sums={"stars": _sums(stars), "again": _sums(again), "twin": _sums(twin)})


STwiceTask = task(
    "STwice",
    {"stars": STARS, "again": Input(**_columns(name="stars")), "twin": TWIN} | _output("sums_twice"),
    run=_see_both,
)


def _see_deferred(self: Any, stars: Any, direct: Any) -> Struct:
    add(direct, "flux", 3.0)
    first = stars.get()
    add(first, "flux", 5.0)
    STASH.append(keep_array(first))
    return Struct(sums={"direct": _sums(direct), "first": _sums(first), "second": _sums(stars.get())})


TDeferredTask = task(
    "TDeferred",
    {
        "direct": Input(**_columns(name="stars_twin")),
        "stars": Input(**_columns(name="stars_twin", deferLoad=True)),
    }
    | _output("sums_deferred"),
    run=_see_deferred,
)


class _Sharing:
    """Puts a part of what it has read, changes the whole, reads again, and puts that."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802, N803
        stars = butlerQC.get(inputRefs.twin)
        butlerQC.put({"flux": stars["flux"][:]}, outputRefs.part)
        add(stars, "flux", 11.0)
        again = butlerQC.get(inputRefs.twin)
        again["whole"] = stars["flux"]
        butlerQC.put(again, outputRefs.rest)
        add(stars, "flux", 13.0)


UShareTask = task(
    "UShare",
    {
        "twin": TWIN,
        "part": Output(**_columns(name="stars_part")),
        "rest": Output(**_columns(name="stars_rest")),
    },
    _Sharing,
)


class Faint(AlgorithmError):
    """No stars are bright enough."""

    @property
    def metadata(self) -> dict[str, float]:
        return {"limit": 20.0}


class _Partial:
    """Puts one of two outputs, changes it, and raises."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:  # noqa: N802, N803
        part = butlerQC.get(inputRefs.part)
        butlerQC.put(part, outputRefs.bright)
        add(part, "flux", 17.0)
        error = Faint("no faint stars")
        raise AnnotatedPartialOutputsError.annotate(error, self, log=self.log) from error  # type: ignore[attr-defined]


VPartialTask = task(
    "VPartial",
    {
        "part": Input(**_columns(name="stars_part")),
        "bright": Output(**_columns(name="stars_bright")),
        "faint": Output(**_columns(name="stars_faint")),
    },
    _Partial,
)


def _see_last(self: Any, bright: Any, part: Any, rest: Any) -> Struct:
    spoil_stash()
    return Struct(sums={"bright": _sums(bright), "part": _sums(part), "rest": _sums(rest)})


WLastTask = task(
    "WLast",
    {
        "bright": Input(**_columns(name="stars_bright")),
        "part": Input(**_columns(name="stars_part")),
        "rest": Input(**_columns(name="stars_rest")),
    }
    | _output("sums_last"),
    run=_see_last,
)

MAKERS = (*(f"Keep{name}Task" for name in KEEPERS), "ContinueTask", "ContinueLateTask", "ContinueUnseenTask")
READERS = ("RSpoilTask", "STwiceTask", "TDeferredTask", "UShareTask", "VPartialTask", "WLastTask")


def write_object_tasks(rig: Rig) -> None:
    """Add a pipeline for each maker, named after it, that all readers follow."""
    STASH.clear()  # of another engine
    for maker in MAKERS:
        tasks = {f"{each[0].lower()}{each[1:-4]}": each for each in (maker, *READERS)}
        rig.add_pipeline(maker[:-4], tasks, __name__)
