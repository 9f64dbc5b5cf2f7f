# SPDX-License-Identifier: BSD-3-Clause
"""How paths below a raw root are built, and read: the layouts.

Those that the observatory's writers use, and others from the configuration::

    lsst      <Inst>/<YYYYMMDD>/<obsid>/<obsid>_Rxx_Syy.fits
    imsim     <Inst>/<YYYYMMDD>/<expid>/<expid>_<filter>_<detector>_Rxx_Syy.fits
    generic   <Inst>/<detector>/<group>/<snap>/<expid>/<filter>/<name>.fits

each with ``.fits``, ``.fits.fz`` or ``.fits.gz``, and ``.json`` for sidecars.
Pure: looks at names only, never at files.
"""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

import pydantic

from ppdaemon.camera import camera_names
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.raws.detectornames import DetectorNames
from ppdaemon.raws.path import (
    EXPECTED_SENSORS,
    FITS_ENDINGS,
    Expected,
    Kind,
    RawName,
    checked_parts,
    folder_names,
    instrument_of_folder,
    is_day_folder,
    read_ending,
    refuse_control,
)
from ppdaemon.raws.pattern import PathFormat, PathPattern
from ppdaemon.visit import parent_group
from ppdaemon.wire import Model

__all__ = ("Layout", "LayoutChoice", "LayoutName", "PatternLayout", "SearchFolder", "make_layout")

type _Values = dict[str, str | int]

SEQUENCE_LIMIT = 100_000
"""Exposure id = day_obs * 100000 + sequence number."""
SUPPLEMENTS = 2
"""Groups ``<group>#1`` and so on whose folders are looked for by name; later
ones are found by the scan."""
ANY_DAY = 20251121
"""To try a format with."""

_OBSID = re.compile(r"[A-Z]{2}_[A-Z]_(?P<day>\d{8})_(?P<sequence>\d{6})", re.ASCII)
_DIGITS = re.compile(r"\d{1,18}", re.ASCII)
_RAFT_AND_SLOT = frozenset({"detector_name", "raft", "slot"})
_STEADY = frozenset({"instrument", "day_obs", "detector"}) | _RAFT_AND_SLOT

_DETECTOR_NAME = r"(?P<raft>R[0-9X]{2})_(?P<slot>S[0-9GW][0-9])"


class PatternLayout(Model):
    """A layout of one's own."""

    pattern: str
    """Reads paths: see `~ppdaemon.raws.pattern.PathPattern`."""
    path: str | None = None
    """Writes them: see `~ppdaemon.raws.pattern.PathFormat`. Without it folders
    of expected raws are looked for from the root on."""

    @pydantic.field_validator("pattern")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        PathPattern(value)
        return value

    @pydantic.field_validator("path")
    @classmethod
    def _is_format(cls, value: str | None, info: pydantic.ValidationInfo) -> str | None:
        pattern = info.data.get("pattern")
        if value is not None and pattern is not None:
            levels, needed = len(PathFormat(value).levels), len(PathPattern(pattern).levels)
            if levels != needed:
                raise ValueError(f"{levels - 1} folders deep, the pattern {needed - 1}")
        return value


type LayoutName = Literal["lsst", "imsim", "generic"]
type LayoutChoice = LayoutName | PatternLayout

_LAYOUTS: Mapping[str, PatternLayout] = {
    "lsst": PatternLayout(
        pattern=r"(?P<instrument>.+)/(?P<day_obs>\d{8})/(?P<obsid>[A-Z]{2}_[A-Z]_\d{8}_\d{6})"
        rf"/(?P<obsid>[A-Z]{{2}}_[A-Z]_\d{{8}}_\d{{6}})_{_DETECTOR_NAME}",
        path="{instrument}/{day_obs}/{obsid}/{obsid}_{detector_name}",
    ),
    "imsim": PatternLayout(
        pattern=r"(?P<instrument>.+)/(?P<day_obs>\d{8})/(?P<exposure>\d{1,18})"
        rf"/(?P<exposure>\d{{1,18}})_(?P<filter>.+)_(?P<detector>\d{{1,4}})_{_DETECTOR_NAME}",
        path="{instrument}/{day_obs}/{exposure}/{exposure}_{filter}_{detector}_{detector_name}",
    ),
    "generic": PatternLayout(
        pattern=r"(?P<instrument>.+)/(?P<detector>\d{1,18})/(?P<group>.+)/(?P<snap>\d{1,18})"
        r"/(?P<exposure>\d{1,18})/(?P<filter>.+)/(?P<label>.+)",
        path="{instrument}/{detector}/{group}/{snap}/{exposure}/{filter}/{label}",
    ),
}


@dataclass(frozen=True, slots=True)
class SearchFolder:
    """Where raws that are waited for will be."""

    path: str
    """Relative to the root; empty for the root itself. It need not exist."""
    below: int
    """Levels of folders between it and the files; 0 if they are in it."""


class Layout:
    """Reads and writes the paths of raws of some instruments.

    Parameters
    ----------
    spec : `PatternLayout`
        How paths are built.
    instruments : `~collections.abc.Mapping` [`str`, `~collections.abc.Collection`]
        Detectors that are served, by instrument.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised if an instrument's detectors cannot be told by this layout.
    """

    def __init__(self, spec: PatternLayout, instruments: Mapping[str, Collection[int]]):
        self._pattern = PathPattern(spec.pattern)
        self._format = PathFormat(spec.path) if spec.path is not None else None
        self._instruments = tuple(instruments)
        self.fields = self._pattern.fields
        """All that paths say (`frozenset` [`str`])."""
        self.levels = self._pattern.levels
        """Fields named by each folder from the root on, then those named by
        the file (`tuple` [`frozenset` [`str`]])."""
        self.depth = len(self.levels) - 1
        """How many folders lead from the root to a file (`int`)."""
        self.steady_depth = sum(1 for _ in itertools.takewhile(_STEADY.issuperset, self.levels[:-1]))
        """How many of these are not made anew for each exposure (`int`)."""
        self._names = {name: DetectorNames.of(name) for name in instruments}
        self._check(instruments)

    def parse(self, relative_path: str) -> RawName | None:
        """Read a path below a raw root.

        Parameters
        ----------
        relative_path : `str`
            Relative to the root, with ``/`` between folders.

        Returns
        -------
        name : `~ppdaemon.raws.path.RawName` or `None`
            `None` for any other file.

        Raises
        ------
        ppdaemon.errors.BadMessage
            Raised if the path is not one to be opened in any case; its kind is
            ``absolute``, ``escape``, ``control`` or ``size``.
        """
        *folders, file = checked_parts(relative_path)
        if len(folders) != self.depth or "" in folders or "." in folders:
            return None
        if file.endswith(EXPECTED_SENSORS):
            kind, values = Kind.EXPECTED, self._pattern.match(folders)
            if values is None or values.get("obsid") != file.removesuffix(EXPECTED_SENSORS):
                return None
        elif (ending := read_ending(file)) is not None:
            kind, values = ending[0], self._pattern.match([*folders, ending[1]])
        else:
            return None
        return self._name(kind, values) if values is not None else None

    def paths(self, name: RawName) -> tuple[str, ...]:
        """Return the paths that a file can have.

        Parameters
        ----------
        name : `~ppdaemon.raws.path.RawName`
            What `parse` returns of each of them.

        Returns
        -------
        paths : `tuple` [`str`]
            One for each alias of the instrument, spelling of the group, and
            ending; empty if the name does not say all that a path has, or if
            there is no format.
        """
        if self._format is None:
            return ()
        found: list[str] = []
        for values in self._spellings(name):
            try:
                if name.kind is Kind.EXPECTED:
                    folder = self._format.write(values, self.depth)
                    found.append(f"{folder}/{values['obsid']}{EXPECTED_SENSORS}")
                else:
                    found += [self._format.write(values) + ending for ending in _endings(name.kind)]
            except KeyError:
                continue
        return tuple(found)

    def folders(self, expected: Expected) -> tuple[SearchFolder, ...]:
        """Return where to look for raws that are waited for.

        As far down as names are known before the exposure is taken: for the
        lsst layout to its day, for the generic one to the detector's and
        group's folders.

        Parameters
        ----------
        expected : `~ppdaemon.raws.path.Expected`
            What is waited for.

        Returns
        -------
        folders : `tuple` [`SearchFolder`]
            They need not exist. What is in them is judged by `admits`, and
            files by `parse` and `~ppdaemon.raws.path.Expected.wants`.
        """
        if self._format is None:
            return (SearchFolder("", self.depth),)
        known = self._known(expected)
        count = sum(1 for _ in itertools.takewhile(known.issuperset, self._format.levels[:-1]))
        used = frozenset().union(*self._format.levels[:count])
        paths = {self._format.write(values, count): None for values in self._guesses(expected, used)}
        return tuple(SearchFolder(path, self.depth - count) for path in paths)

    def admits(self, folder: str, expected: Expected) -> bool:
        """Tell whether raws that are waited for can be in or below a folder.

        Parameters
        ----------
        folder : `str`
            Relative to the root.
        expected : `~ppdaemon.raws.path.Expected`
            What is waited for.

        Returns
        -------
        admitted : `bool`
            `False` also for what no folder of this layout is called.
        """
        try:
            parts = checked_parts(folder)
            values = None if "" in parts or "." in parts else self._pattern.match(parts)
            return len(parts) <= self.depth and values is not None and self._agrees(values, expected)
        except BadMessage:
            return False

    def detector_of(self, instrument: str, detector_name: str) -> int | None:
        """Return the number of a detector by its name.

        Parameters
        ----------
        instrument : `str`
            Short name.
        detector_name : `str`
            Such as ``R22_S11``.

        Returns
        -------
        detector : `int` or `None`
            `None` if there is none of this name, or no table of names.
        """
        naming = self._names.get(instrument)
        return None if naming is None else naming.number_of(detector_name)

    # --- from text to meaning ---

    def _name(self, kind: Kind, values: Mapping[str, str]) -> RawName | None:
        instrument = self._instrument(values)
        time = _exposure_and_day(values)
        detector_name = _detector_name(values)
        detector = self._detector(instrument, values.get("detector"), detector_name)
        whole = kind is Kind.EXPECTED
        if instrument is None or time is None or (detector is None and not whole):
            return None
        snap = values.get("snap")
        group = values.get("group")
        if group is not None:
            # Writers that cannot have ":" and "#" in names quote the group.
            group = unquote(group)
            refuse_control(group)
        if group == "" or (snap is not None and not _DIGITS.fullmatch(snap)):
            return None
        return RawName(
            kind,
            instrument,
            *time,
            None if whole else detector,
            obsid=values.get("obsid"),
            group=group,
            snap=None if snap is None else int(snap),
            detector_name=None if whole else detector_name,
            filter=values.get("filter"),
            label=values.get("label"),
        )

    def _instrument(self, values: Mapping[str, str]) -> str | None:
        if "instrument" in values:
            instrument = instrument_of_folder(values["instrument"])
            return instrument if instrument in self._names else None
        return self._instruments[0] if len(self._instruments) == 1 else None

    def _detector(self, instrument: str | None, number: str | None, name: str | None) -> int | None:
        """Return the number; `None` if there is none, or if it contradicts the name."""
        if instrument is None or (number is not None and not _DIGITS.fullmatch(number)):
            return None
        naming = self._names[instrument]
        by_name = naming.number_of(name) if name is not None and naming is not None else None
        if number is None:
            return by_name
        contradicts = name is not None and naming is not None and by_name != int(number)
        return None if contradicts else int(number)

    def _agrees(self, values: Mapping[str, str], expected: Expected) -> bool:
        obsid = _OBSID.fullmatch(values.get("obsid", ""))
        day = values.get("day_obs", obsid["day"] if obsid else None)
        if self._instrument(values) != expected.instrument:
            return False
        if day is not None and (not is_day_folder(day) or (expected.days and int(day) not in expected.days)):
            return False
        name = _detector_name(values)
        if "detector" in values or name is not None:
            detector = self._detector(expected.instrument, values.get("detector"), name)
            if detector not in expected.detectors:
                return False
        group = values.get("group")
        return group is None or expected.group is None or parent_group(unquote(group)) == expected.group

    # --- from meaning to text ---

    def _spellings(self, name: RawName) -> Iterator[_Values]:
        said: dict[str, str | int | None] = {
            "day_obs": name.day_obs,
            "obsid": name.obsid,
            "exposure": name.exposure,
            "detector": name.detector,
            "snap": name.snap,
            "filter": name.filter,
            "label": name.label,
        }
        values: _Values = {field: value for field, value in said.items() if value is not None}
        names = (
            (name.detector_name,) if name.detector_name else self._names_of(name.instrument, name.detector)
        )
        for instrument, group, detector_name in itertools.product(
            folder_names(name.instrument),
            [None] if name.group is None else _group_spellings(name.group),
            names or [None],
        ):
            yield values | _naming_values(detector_name) | {"instrument": instrument} | _group_value(group)

    def _known(self, expected: Expected) -> frozenset[str]:
        """Return the fields whose values are known before an exposure."""
        known = {"instrument", "detector"}
        if expected.days:
            known.add("day_obs")
        if expected.group is not None:
            known.add("group")
        if all(self._names_of(expected.instrument, detector) for detector in expected.detectors):
            known |= _RAFT_AND_SLOT
        return frozenset(known)

    def _guesses(self, expected: Expected, used: frozenset[str]) -> Iterator[_Values]:
        """Combine what some fields can be."""
        groups: list[str | None] = [None]
        if "group" in used and expected.group is not None:
            supplements = [f"{expected.group}#{number}" for number in range(1, SUPPLEMENTS + 1)]
            groups = [text for group in (expected.group, *supplements) for text in _group_spellings(group)]
        detectors: list[_Values] = [{}]
        if used & ({"detector"} | _RAFT_AND_SLOT):
            detectors = [
                _detector_value(detector) | _naming_values(name)
                for detector in sorted(expected.detectors)
                for name in self._names_of(expected.instrument, detector) or [None]
            ]
        days: list[_Values] = [{"day_obs": day} for day in sorted(expected.days)] or [{}]
        for instrument, day, detector, group in itertools.product(
            folder_names(expected.instrument), days, detectors, groups
        ):
            yield {"instrument": instrument} | day | detector | _group_value(group)

    def _names_of(self, instrument: str, detector: int | None) -> tuple[str, ...]:
        naming = self._names.get(instrument)
        return () if naming is None or detector is None else naming.names_of(detector)

    # --- the instruments ---

    def _check(self, instruments: Mapping[str, Collection[int]]) -> None:
        if "instrument" not in self.fields and len(instruments) > 1:
            raise ConfigError(
                [f"the layout names no instrument, and the node serves {', '.join(sorted(instruments))}"]
            )
        for instrument, detectors in instruments.items():
            if "detector" not in self.fields and self._names[instrument] is None:
                raise ConfigError(
                    [
                        f"no focal-plane table for {instrument!r}, which the layout needs to tell detectors "
                        f"by name; known are {', '.join(camera_names())}. A layout with detectors' numbers "
                        "needs none"
                    ]
                )
            self._check_format(
                Expected(instrument, frozenset(sorted(detectors)[:1]), None, frozenset({ANY_DAY}))
            )

    def _check_format(self, sample: Expected) -> None:
        """Make sure that the pattern reads what the format writes."""
        for folder in self.folders(sample):
            if folder.path and not self.admits(folder.path, sample):
                raise ConfigError(
                    [f"the layout's path leads to {folder.path!r}, which its pattern does not match"]
                )


def make_layout(choice: LayoutChoice, instruments: Mapping[str, Collection[int]]) -> Layout:
    """Make the layout that a configuration names.

    Parameters
    ----------
    choice : `str` or `PatternLayout`
        ``lsst``, ``imsim``, ``generic``, or a layout of one's own.
    instruments : `~collections.abc.Mapping` [`str`, `~collections.abc.Collection`]
        Detectors that are served, by instrument.

    Returns
    -------
    layout : `Layout`
        The layout.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised if an instrument's detectors cannot be told by this layout.
    """
    return Layout(_LAYOUTS[choice] if isinstance(choice, str) else choice, instruments)


def _exposure_and_day(values: Mapping[str, str]) -> tuple[int, int] | None:
    day = values.get("day_obs")
    if day is not None and not is_day_folder(day):
        return None
    obsid = _OBSID.fullmatch(values.get("obsid", ""))
    if obsid is not None:
        sequence = int(obsid["sequence"])
        if sequence >= SEQUENCE_LIMIT or not is_day_folder(obsid["day"]) or day not in (None, obsid["day"]):
            return None
        day = obsid["day"]
    if "exposure" in values:
        if not _DIGITS.fullmatch(values["exposure"]):
            return None
        exposure = int(values["exposure"])
        return exposure, int(day) if day is not None else exposure // SEQUENCE_LIMIT
    return (int(obsid["day"]) * SEQUENCE_LIMIT + sequence, int(obsid["day"])) if obsid is not None else None


def _detector_name(values: Mapping[str, str]) -> str | None:
    if "detector_name" in values:
        return values["detector_name"]
    return f"{values['raft']}_{values['slot']}" if values.keys() >= {"raft", "slot"} else None


def _naming_values(detector_name: str | None) -> _Values:
    if detector_name is None:
        return {}
    raft, _, slot = detector_name.rpartition("_")
    return {"detector_name": detector_name, "raft": raft, "slot": slot}


def _detector_value(detector: int) -> _Values:
    return {"detector": detector}


def _group_value(group: str | None) -> _Values:
    return {} if group is None else {"group": group}


def _group_spellings(group: str) -> list[str | None]:
    """Return how a group can be written as a folder's name."""
    spellings = dict.fromkeys((group, quote(group, safe="")))
    return [
        text for text in spellings if "/" not in text and text not in (".", "..") and unquote(text) == group
    ]


def _endings(kind: Kind) -> tuple[str, ...]:
    match kind:
        case Kind.IMAGE:
            return FITS_ENDINGS
        case Kind.GUIDER:
            return tuple(f"_guider{ending}" for ending in FITS_ENDINGS)
        case _:
            return ".json", "_guider.json"
