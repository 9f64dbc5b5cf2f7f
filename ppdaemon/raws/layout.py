# SPDX-License-Identifier: BSD-3-Clause
"""Layouts: how paths below a raw root are written and read.

The layouts of the observatory's writers, and others from the configuration,
each with ``.fits`` or another ending of FITS files, and ``.json`` for sidecars.
Pure: reads names, never files.
"""

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote

import pydantic

from ppdaemon.camera import camera_names
from ppdaemon.errors import BadMessage, ConfigError
from ppdaemon.raws import path as rawnames
from ppdaemon.raws.detectornames import DetectorNames
from ppdaemon.raws.format import OBSID, PathFormat, Values, read_number
from ppdaemon.visit import parent_group
from ppdaemon.wire import Model

__all__ = (
    "PATHS",
    "CustomLayout",
    "Layout",
    "LayoutChoice",
    "LayoutName",
    "SearchFolder",
    "detector_keyword_of",
    "exposure_id",
    "make_layout",
)

SEQUENCE_LIMIT = 100_000
"""Exposure id = day * 100000 + sequence number."""
CONTROLLERS = "OCHPQS"
"""In the order of the years that they add to the day of an exposure id."""
CONTROLLER_DAYS = 1000_00_00
"""A thousand years for each place in `CONTROLLERS`."""
SEPARATE_COUNT_UNTIL = {"O": 0, "C": 20231004, "P": 20250417, "Q": 20250417, "S": 20250417}
"""Last day on which a controller counted exposures for itself; H always does.
As ``LsstBaseTranslator.compute_exposure_id`` of obs_lsst w.2026.20."""
MAX_NAME = 255
"""Bytes of a file name on Linux: an object with a longer name could not be copied."""
SUPPLEMENTS = 2
"""Groups ``<group>#1`` and so on whose folders are searched by name; the survey
finds further ones."""

DETECTOR_DIGITS = 3
"""Folders of detectors are searched as ``42`` and as ``042``; the largest cameras have three digits."""

_OBSID = re.compile(OBSID)
_STEADY = frozenset({"instrument", "day_obs", "detector", "raft", "slot"})


class CustomLayout(Model):
    """A layout that the configuration describes."""

    # Before `path`, whose validator needs it.
    detector_keyword: Annotated[str, pydantic.Field(pattern=r"^[A-Z0-9_-]{1,8}$")] | None = None
    """For files that hold all detectors of an exposure, one or more HDUs for each: the keyword of these
    HDUs that has the detector's number, such as ``CCDNUM``, or a text that ends in it. Then paths
    contain no detector. `None` for one file per detector."""
    path: Annotated[tuple[str, ...], pydantic.Field(min_length=1)]
    """One format of paths, or several, all with the same number of folders:
    see `~ppdaemon.raws.format.PathFormat`. The first that reads a path counts."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_pattern(cls, value: Any) -> Any:
        if isinstance(value, dict) and "pattern" in value:
            raise ValueError(
                "pattern is no longer supported: path alone reads and writes. Write in path {name} for each "
                "(?P<name>...) of the pattern and {label} for other text that varies, such as "
                '"{instrument}/{day_obs}/{exposure}_{detector:03d}"; for alternatives a list of paths'
            )
        return value

    @pydantic.field_validator("path", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @pydantic.field_validator("path")
    @classmethod
    def _are_formats(cls, value: tuple[str, ...], info: pydantic.ValidationInfo) -> tuple[str, ...]:
        all_detectors = info.data.get("detector_keyword") is not None
        depths = sorted(len(PathFormat(text, all_detectors=all_detectors).levels) - 1 for text in value)
        if depths[0] != depths[-1]:
            raise ValueError(
                f"{depths[0]} folders in one path, {depths[-1]} in another: all need the same number"
            )
        return value


type LayoutName = Literal["lsst", "imsim", "generic"]
type LayoutChoice = LayoutName | CustomLayout

PATHS: Mapping[str, str] = {
    "lsst": "{instrument}/{day_obs}/{obsid}/{obsid}_{raft}_{slot}",
    "imsim": "{instrument}/{day_obs}/{exposure}/{exposure}_{filter}_{detector}_{raft}_{slot}",
    "generic": "{instrument}/{detector}/{group}/{snap}/{exposure}/{filter}/{label}",
}


@dataclass(frozen=True, slots=True)
class SearchFolder:
    """A folder in which expected raws will be."""

    path: str
    """Relative to the root; empty for the root itself. It need not exist."""
    below: int
    """Levels of folders between it and the files; 0 if the files are in it."""


class Layout:
    """Reads and writes the paths of raws.

    Parameters
    ----------
    paths : `~collections.abc.Collection` [`str`]
        Formats, see `~ppdaemon.raws.format.PathFormat`. The first one that matches
        a path is used; the first of all writes paths.
    instruments : `~collections.abc.Collection` [`str`]
        Short names of the instruments that this node serves.
    detector_keyword : `str` or `None`, optional
        See `CustomLayout`.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised if this layout cannot identify an instrument's detectors.
    """

    def __init__(
        self, paths: Collection[str], instruments: Collection[str], detector_keyword: str | None = None
    ):
        self._all_detectors = detector_keyword is not None
        self._formats = tuple(PathFormat(path, all_detectors=self._all_detectors) for path in paths)
        self.levels = tuple(
            frozenset.intersection(*level)
            for level in zip(*(each.levels for each in self._formats), strict=True)
        )
        """Fields that all formats have in the name of each folder, from the root on,
        and last in the file name (`tuple` [`frozenset` [`str`]])."""
        self.fields = frozenset.intersection(*(each.fields for each in self._formats))
        """Fields that all paths contain (`frozenset` [`str`])."""
        self.depth = len(self.levels) - 1
        """Number of folders from the root to a file (`int`)."""
        self.steady_depth = min(_count(_STEADY, each.levels[:-1]) for each in self._formats)
        """Number of these that are not created for each exposure (`int`)."""
        in_folders = frozenset().union(*self.levels[:-1])
        self.one_exposure_per_folder = not in_folders.isdisjoint(("exposure", "obsid"))
        """Whether a folder with files has those of one exposure only (`bool`)."""
        self._names = {name: DetectorNames.of(name) for name in instruments}
        self._check()

    def parse(self, relative_path: str) -> rawnames.RawName | None:
        """Parse a path below a raw root.

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
            Raised if the path must never be opened; its kind is
            ``absolute``, ``escape``, ``control`` or ``size``.
        """
        *folders, file = rawnames.checked_parts(relative_path)
        if len(folders) != self.depth or len(file) > MAX_NAME:
            return None
        if file.endswith(rawnames.EXPECTED_SENSORS):
            kind, parts = rawnames.RawFileKind.EXPECTED, folders
        elif (ending := rawnames.read_ending(file)) is not None:
            kind, parts = ending[0], [*folders, ending[1]]
        else:
            return None
        for each in self._formats:
            values = each.read(parts)
            if values is None:
                continue
            if kind is rawnames.RawFileKind.EXPECTED and values.get("obsid") != file.removesuffix(
                rawnames.EXPECTED_SENSORS
            ):
                continue
            if (name := self._name(kind, values)) is not None:
                return name
        return None

    def path_of(self, name: rawnames.RawName) -> str:
        """Return the relative path of an image, with the ending ``.fits``.

        Raises `KeyError` if the name lacks a field of the path.
        """
        values = {field: value for field, value in asdict(name).items() if value is not None}
        if name.detector is not None:
            values |= self._detectors(name.instrument, name.detector, name.detector_name)[0]
        if name.group is not None:
            values |= _groups(name.group)[0]
        guider = "_guider" if name.kind is rawnames.RawFileKind.GUIDER else ""
        return f"{self._formats[0].write(values)}{guider}.fits"

    def folders(self, expected: rawnames.ExpectedRaws) -> tuple[SearchFolder, ...]:
        """Return the folders to search for expected raws.

        They are of the lowest level whose names are known before the exposure:
        the day for the lsst layout, detector and group for the generic one, and
        never below a ``{label}``. `admits` selects their subfolders; `parse` and
        `~ppdaemon.raws.path.ExpectedRaws.matches` select the files.
        """
        choices = [choice for choice in self._foreseen(expected) if choice]
        known = frozenset(
            field for choice in choices for field in choice[0] if all(field in values for values in choice)
        )
        found: dict[SearchFolder, None] = {}
        for each in self._formats:
            count = _count(known, each.levels[:-1])
            used = frozenset().union(*each.levels[:count])
            needed = [choice for choice in choices if used & choice[0].keys()]
            for values in _combined(needed):
                found[SearchFolder(each.write(values, count), self.depth - count)] = None
        return tuple(found)

    def admits(self, folder: str, expected: rawnames.ExpectedRaws) -> bool:
        """Return whether expected raws can be in or below a folder, relative to the root.

        `False` also for a name that no folder of this layout has.
        """
        try:
            parts = rawnames.checked_parts(folder)
            return len(parts) <= self.depth and any(
                values is not None and self._agrees(values, expected)
                for values in (each.read(parts) for each in self._formats)
            )
        except BadMessage:
            return False

    def detector_of(self, instrument: str, detector_name: str) -> int | None:
        """Return the number of a detector by its name, such as ``R22_S11``.

        `None` if there is no such detector, or no focal-plane table.
        """
        naming = self._names.get(instrument)
        return None if naming is None else naming.number_of(detector_name)

    # --- reading ---

    def _name(self, kind: rawnames.RawFileKind, values: Values) -> rawnames.RawName | None:
        instrument = self._instrument(values)
        time = _exposure_and_day(values)
        if instrument is None or time is None:
            return None
        detector = detector_name = None
        if kind is not rawnames.RawFileKind.EXPECTED and not self._all_detectors:
            detector, detector_name = self._detector(instrument, values), _detector_name(values)
            if detector is None:
                return None
        other: Values = {field: values.get(field) for field in ("obsid", "group", "snap", "filter", "label")}
        return rawnames.RawName(kind, instrument, *time, detector, detector_name=detector_name, **other)

    def _instrument(self, values: Values) -> str | None:
        instrument: str = values.get("instrument", next(iter(self._names), ""))
        return instrument if instrument in self._names else None

    def _detector(self, instrument: str, values: Values) -> int | None:
        """Return the number; `None` if there is none, or if it does not agree with the name."""
        number: int | None = values.get("detector")
        name = _detector_name(values)
        if name is None or self._names[instrument] is None:
            return number
        by_name = self.detector_of(instrument, name)
        # The number of the path is returned, which may have leading zeros.
        return by_name if number is None else number if number == by_name else None

    def _agrees(self, values: Values, expected: rawnames.ExpectedRaws) -> bool:
        obsid = _OBSID.fullmatch(values.get("obsid", ""))
        day = values.get("day_obs", obsid and int(obsid[2]))
        group = values.get("group")
        return (
            self._instrument(values) == expected.instrument
            and (day is None or not expected.days or day in expected.days)
            and (
                ("detector" not in values and _detector_name(values) is None)
                or self._detector(expected.instrument, values) in expected.detectors
            )
            and (group is None or expected.group is None or parent_group(group) == expected.group)
        )

    # --- writing ---

    def _foreseen(self, expected: rawnames.ExpectedRaws) -> Iterator[list[Values]]:
        """Yield for each field that is known before an exposure its possible values."""
        yield _instruments(expected.instrument)
        yield [{"day_obs": day} for day in sorted(expected.days)]
        yield [
            values
            for detector in sorted(expected.detectors)
            for values in self._detectors(expected.instrument, detector)
            for values in _spellings(values)
        ]
        if (group := expected.group) is not None:
            supplements = [f"{group}#{number}" for number in range(1, SUPPLEMENTS + 1)]
            yield [values for each in (group, *supplements) for values in _groups(each)]

    def _detectors(self, instrument: str, detector: int, name: str | None = None) -> list[Values]:
        """Return the possible values of a detector's fields."""
        naming = self._names.get(instrument)
        names = (name,) if name else naming.names_of(detector) if naming is not None else ()
        rafts_and_slots = [each.rpartition("_")[::2] for each in names]
        found: list[Values] = [{"detector": detector, "raft": r, "slot": s} for r, s in rafts_and_slots]
        return found or [{"detector": detector}]

    # --- the instruments ---

    def _check(self) -> None:
        if "instrument" not in self.fields and len(self._names) > 1:
            raise ConfigError(
                [f"the layout names no instrument, and the node serves {', '.join(sorted(self._names))}"]
            )
        for instrument, naming in self._names.items():
            if "detector" not in self.fields and not self._all_detectors and naming is None:
                raise ConfigError(
                    [
                        f"no focal-plane table for {instrument!r}, which the layout needs to find detectors "
                        f"by name; known are {', '.join(camera_names())}. A layout with detectors' numbers "
                        "needs none"
                    ]
                )


def detector_keyword_of(choice: LayoutChoice) -> str | None:
    """Return the keyword of a layout whose files hold all detectors, else `None`."""
    return None if isinstance(choice, str) else choice.detector_keyword


def make_layout(choice: LayoutChoice, instruments: Collection[str]) -> Layout:
    """Return the configured layout for the instruments that this node serves.

    Raises `~ppdaemon.errors.ConfigError` if the layout cannot identify an
    instrument's detectors.
    """
    paths = (PATHS[choice],) if isinstance(choice, str) else choice.path
    return Layout(paths, instruments, detector_keyword_of(choice))


def _count(fields: frozenset[str], levels: tuple[frozenset[str], ...]) -> int:
    """Return how many levels, from the root on, contain no other fields."""
    return sum(1 for _ in itertools.takewhile(fields.issuperset, levels))


def _exposure_and_day(values: Values) -> tuple[int, int] | None:
    day, exposure = values.get("day_obs"), values.get("exposure")
    obsid = _OBSID.fullmatch(values.get("obsid", ""))
    if obsid is not None:
        if not rawnames.is_day_folder(obsid[2]) or day not in (None, int(obsid[2])):
            return None
        day = int(obsid[2])
        if exposure is None:
            exposure = exposure_id(obsid[1], day, int(obsid[3]))
    if exposure is None:
        return None
    return exposure, _day_of(exposure) if day is None else day


def exposure_id(controller: str, day_obs: int, sequence: int) -> int:
    """Return the exposure id that the observatory's translators give.

    Parameters
    ----------
    controller : `str`
        Letter; one that they do not have adds nothing.
    day_obs : `int`
        Observing day as a number ``YYYYMMDD``.
    sequence : `int`
        Number of the exposure within the day, less than ``SEQUENCE_LIMIT``.

    Returns
    -------
    exposure : `int`
        Id as in the header and in the Butler's dimension.
    """
    separate = controller in CONTROLLERS and day_obs <= SEPARATE_COUNT_UNTIL.get(controller, day_obs)
    days = CONTROLLERS.index(controller) * CONTROLLER_DAYS if separate else 0
    return (day_obs + days) * SEQUENCE_LIMIT + sequence


def _day_of(exposure: int) -> int:
    """Return the observing day, without the years of a controller."""
    day = exposure // SEQUENCE_LIMIT
    places = day // CONTROLLER_DAYS - 2
    return day - places * CONTROLLER_DAYS if 0 < places < len(CONTROLLERS) else day


def _detector_name(values: Values) -> str | None:
    return f"{values['raft']}_{values['slot']}" if values.keys() >= {"raft", "slot"} else None


def _spellings(values: Values) -> list[Values]:
    """Return the values of a detector, without and with leading zeros of its number."""
    texts = dict.fromkeys(f"{values['detector']:0{digits}d}" for digits in range(1, DETECTOR_DIGITS + 1))
    return [values | {"detector": read_number(text)} for text in texts]


def _instruments(instrument: str) -> list[Values]:
    return [{"instrument": name} for name in rawnames.folder_names(instrument)]


def _groups(group: str) -> list[Values]:
    """Return the possible spellings of a group in a name."""
    spellings = dict.fromkeys((group, quote(group, safe="")))
    return [
        {"group": text}
        for text in spellings
        if "/" not in text and text not in (".", "..") and unquote(text) == group
    ]


def _combined(choices: Collection[list[Values]]) -> Iterator[Values]:
    for chosen in itertools.product(*choices):
        yield {field: value for values in chosen for field, value in values.items()}
