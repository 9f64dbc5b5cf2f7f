# SPDX-License-Identifier: BSD-3-Clause
"""Selection of pipelines for a visit-detector: the first rule that matches.

Covers conditions on fields of a next_visit, and on the position of a detector on
the sky. The syntax is that of Rubin Observatory's prompt processing service
(lsst-dm/prompt_processing), whose lists of rules can be copied.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.camera import Camera, Site, SkyPoint, load_camera
from ppdaemon.errors import ConfigError
from ppdaemon.messages import Pipelines
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.pointing import Pointing, announced, boresight, needs_astropy
from ppdaemon.skymaps import SkyMap
from ppdaemon.thishost import host_context
from ppdaemon.visit import CoordinateSystem, Name, NextVisit
from ppdaemon.wire import Model

__all__ = (
    "TargetPositions",
    "PipelineChoice",
    "Rule",
    "Selector",
    "image_type",
    "never_reached",
    "select",
)

type CoordType = Literal["detector", "boresight"]
type ImageType = Literal["sky", "calibration"]

BEYOND_POLE_DEG = 1000.0
DOME_CLOSED = 1
"""Value of `~ppdaemon.visit.NextVisit.dome`."""


def _pipeline_file(value: str, info: pydantic.ValidationInfo) -> str:
    host = host_context(info)
    if host is None:
        return value
    path = host.path(value)
    if not os.path.isfile(path.partition("#")[0]):
        raise ValueError(f"{path}: no such file")
    return path


def _sky_map(value: Any, info: pydantic.ValidationInfo) -> SkyMap:
    if isinstance(value, SkyMap):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError("expected the path of a FITS file")
    host = host_context(info)
    return SkyMap(value) if host is None else host.sky_map(value)


def _none_is_empty(value: Any) -> Any:
    """Convert an empty ``pipelines:`` or the text None to an empty list."""
    return () if value is None or value == "None" else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _one_is_a_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


type _Several[T] = Annotated[
    tuple[T, ...], pydantic.BeforeValidator(_one_is_a_list), pydantic.Field(min_length=1)
]
type _MapFile = Annotated[
    SkyMap,
    pydantic.BeforeValidator(_sky_map),
    pydantic.PlainSerializer(lambda sky_map: sky_map.path, return_type=str),
]


class RaRange(Model):
    """Right ascensions in degrees, both ends included; the range may pass 360.

    Whole turns do not count: -20 to 20 is 340 to 20, and 0 to 360 or 10 to 10 are all right
    ascensions, as in Rubin Observatory's service.
    """

    min: float
    """Begin of the range, degrees."""
    max: float
    """End of the range, degrees."""

    @property
    def surprising(self) -> bool:
        """Whether the range is probably not the intended one (`bool`): more than a turn, or a point."""
        return self.min == self.max or self.max - self.min > 360.0

    @property
    def described(self) -> str:
        """The range without whole turns, such as ``350 to 10`` (`str`)."""
        low, high = self.min % 360.0, self.max % 360.0
        return "all right ascensions" if low == high else f"{low:g} to {high:g}"

    def __contains__(self, ra_deg: float) -> bool:
        low, high, ra = self.min % 360.0, self.max % 360.0, ra_deg % 360.0
        return low <= ra <= high if low < high else ra >= low or ra <= high

    def __str__(self) -> str:
        return f"{self.min:g} to {self.max:g}"


def _declination(value: float) -> float:
    """Limit a bound, which may be infinite, to numbers that JSON has; beyond the poles all are alike."""
    if math.isnan(value):
        raise ValueError("not a number")
    return max(-BEYOND_POLE_DEG, min(BEYOND_POLE_DEG, value))


type _Declination = Annotated[float, pydantic.AllowInfNan(), pydantic.AfterValidator(_declination)]


class DecRange(Model):
    """Declinations in degrees, both ends included; the bounds may be beyond the poles."""

    min: _Declination
    """Lowest declination, degrees."""
    max: _Declination
    """Highest declination, degrees."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> "DecRange":
        if self.min >= self.max:
            raise ValueError("min is not less than max")
        return self

    def __contains__(self, dec_deg: float) -> bool:
        return self.min <= dec_deg <= self.max

    def __str__(self) -> str:
        return f"{self.min:g} to {self.max:g}"


def image_type(visit: NextVisit) -> ImageType:
    """Return the type of image that an announcement leads to.

    A next_visit has no image type. Its images are images of the sky if it has a
    position and the dome is not announced as closed; all others count as
    calibrations.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        Announcement, with coordinate system and state of the dome.

    Returns
    -------
    image_type : `str`
        ``sky`` or ``calibration``.
    """
    dark = visit.dome == DOME_CLOSED or visit.coordinate_system == CoordinateSystem.NONE
    return "calibration" if dark else "sky"


class TargetPositions:
    """The positions of a visit's detectors on the sky, computed when a rule needs them.

    Parameters
    ----------
    visit : `~ppdaemon.visit.NextVisit`
        Announcement with position and rotation of the camera.
    cameras : `~collections.abc.Callable`, optional
        Returns the focal-plane table of an instrument or raises
        `~ppdaemon.errors.ConfigError`.
    """

    def __init__(self, visit: NextVisit, cameras: Callable[[str], Camera] = load_camera):
        self.visit = visit
        self._cameras = cameras
        self._centers: dict[int, SkyPoint | None] = {}

    def at(self, coord_type: CoordType, detector: int) -> SkyPoint | None:
        """Return the position that the rules are compared with.

        Parameters
        ----------
        coord_type : `str`
            ``detector`` for the center of the detector, or ``boresight``.
        detector : `int`
            Detector id; not used for ``boresight``.

        Returns
        -------
        ra, dec : `float`
            ICRS, degrees; `None` if it is not known.
        """
        if coord_type == "boresight":
            return self._boresight
        if detector not in self._centers:
            self._centers[detector] = self._center(detector)
        return self._centers[detector]

    def _center(self, detector: int) -> SkyPoint | None:
        pointing, camera = self._pointing, self._camera
        if pointing is None or camera is None or detector not in camera.detectors:
            return None
        return camera.center(detector, pointing.ra_deg, pointing.dec_deg, pointing.sky_angle_deg)

    @functools.cached_property
    def _camera(self) -> Camera | None:
        try:
            return self._cameras(self.visit.instrument)
        except ConfigError:
            return None

    @property
    def _site(self) -> Site | None:
        return None if self._camera is None else self._camera.site

    @functools.cached_property
    def _boresight(self) -> SkyPoint | None:
        return boresight(self.visit, self._site)

    @functools.cached_property
    def _pointing(self) -> Pointing | None:
        return announced(self.visit, self._site)


class Rule(Model):
    """Conditions on a visit-detector, and the pipelines it gets.

    A condition that is missing or null is always true. Where a condition has
    several values, one of them must match.
    """

    model_config = pydantic.ConfigDict(
        arbitrary_types_allowed=True, serialize_by_alias=True, validate_by_alias=True
    )

    instrument: _Several[Name] | None = None
    """Short name of the instrument."""
    survey: _Several[Name] | None = None
    """The next_visit's survey."""
    filter: _Several[Name] | None = None
    """A physical filter of the visit; a visit with blank filters matches any."""
    nimages: _Several[Annotated[int, pydantic.Field(ge=0)]] | None = None
    """Number of snaps; 0 matches visits without a number known in advance."""
    image_type: _Several[ImageType] | None = pydantic.Field(None, alias="image-type")
    """``sky`` or ``calibration``, see the function `image_type`."""
    ra: RaRange | None = None
    """Right ascension, degrees."""
    dec: DecRange | None = None
    """Declination, degrees."""
    binary_map: _MapFile | None = pydantic.Field(None, alias="binary-map")
    """A HEALPix map of the sky that is 1 at the position."""
    coord_type: Annotated[CoordType, pydantic.BeforeValidator(_lower)] = pydantic.Field(
        "detector", alias="coord-type"
    )
    """The position that ``ra``, ``dec`` and ``binary-map`` are compared with: center of
    the detector, or boresight; in any case of letters."""
    pipelines: Annotated[
        tuple[Annotated[str, pydantic.Field(min_length=1), pydantic.AfterValidator(_pipeline_file)], ...],
        pydantic.BeforeValidator(_none_is_empty),
    ]
    """Pipeline files in order of preference; empty means ignore the visit."""

    @pydantic.field_validator("pipelines")
    @classmethod
    def _unique(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [pipeline_name(path) for path in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"{', '.join(twice)} is listed twice: file names without folder and suffix must differ"
            )
        return value

    @property
    def on_sky(self) -> bool:
        """Whether the rule has a condition on the position on the sky (`bool`)."""
        return (self.ra, self.dec, self.binary_map) != (None, None, None)

    def matches(self, aim: TargetPositions, detector: int) -> bool:
        """Return whether all conditions are true.

        Parameters
        ----------
        aim : `TargetPositions`
            Visit and positions of its detectors.
        detector : `int`
            Id of a detector in the visit's instrument.

        Returns
        -------
        matches : `bool`
            `True` for each visit if the rule has no conditions.
        """
        return next(self.unmet(aim, detector), None) is None

    def unmet(self, aim: TargetPositions, detector: int) -> Iterator[str]:
        """Return the conditions that are false.

        Parameters
        ----------
        aim : `TargetPositions`
            Visit and positions of its detectors.
        detector : `int`
            Id of a detector in the visit's instrument.

        Yields
        ------
        unmet : `str`
            Name of the condition and the value of the visit, such as
            ``survey: 'BLOCK-365'``.
        """
        visit = aim.visit
        if self.instrument is not None and visit.instrument not in self.instrument:
            yield f"instrument: {visit.instrument!r}"
        if self.survey is not None and visit.survey not in self.survey:
            yield f"survey: {visit.survey!r}"
        accepted = visit.filter_names
        if self.filter is not None and accepted and not set(accepted).intersection(self.filter):
            yield f"filter: {visit.filters!r}"
        if self.nimages is not None and visit.nimages not in self.nimages:
            yield f"nimages: {visit.nimages}"
        if self.image_type is not None and image_type(visit) not in self.image_type:
            yield f"image-type: {image_type(visit)!r}"
        if self.on_sky:
            yield from self._unmet_on_sky(aim.at(self.coord_type, detector))

    def _unmet_on_sky(self, point: SkyPoint | None) -> Iterator[str]:
        if point is None:
            yield f"coord-type: the {self.coord_type}'s position on the sky is not known"
            return
        if self.ra is not None and point[0] not in self.ra:
            yield f"ra: {point[0]:.4f} is not within {self.ra}"
        if self.dec is not None and point[1] not in self.dec:
            yield f"dec: {point[1]:.4f} is not within {self.dec}"
        if self.binary_map is not None and not self.binary_map.at(point):
            yield f"binary-map: not at ra {point[0]:.4f}, dec {point[1]:.4f}"

    def covers(self, other: "Rule") -> bool:
        """Return whether this rule matches all visits that another one matches.

        Ranges and maps are compared for equality only, so that `False` is not
        certain.
        """
        for name in ("instrument", "survey", "filter", "nimages", "image_type"):
            own, others = getattr(self, name), getattr(other, name)
            if own is not None and (others is None or not set(others) <= set(own)):
                return False
        if self.on_sky and self.coord_type != other.coord_type:
            return False
        position_conditions = ("ra", "dec", "binary_map")
        return all(getattr(self, name) in (None, getattr(other, name)) for name in position_conditions)


def never_reached(rules: Sequence[Rule]) -> list[tuple[int, int]]:
    """Return the rules that can never be used.

    Parameters
    ----------
    rules : `~collections.abc.Sequence` [`Rule`]
        In the order of the configuration.

    Returns
    -------
    pairs : `list` [`tuple` [`int`, `int`]]
        Index of such a rule, and index of the earlier rule that matches all its
        visits.
    """
    pairs = []
    for late, rule in enumerate(rules):
        early = next((k for k, earlier in enumerate(rules[:late]) if earlier.covers(rule)), None)
        if early is not None:
            pairs.append((late, early))
    return pairs


def select(rules: Sequence[Rule], aim: TargetPositions, detector: int) -> tuple[str, ...] | None:
    """Return the pipelines of the first rule that matches.

    Parameters
    ----------
    rules : `~collections.abc.Sequence` [`Rule`]
        In the order of the configuration.
    aim : `TargetPositions`
        Visit and positions of its detectors.
    detector : `int`
        Id of a detector in the visit's instrument.

    Returns
    -------
    pipelines : `tuple` [`str`] or `None`
        Files in order of preference; empty if the rule ignores the visit, `None`
        if no rule matches.
    """
    return next((rule.pipelines for rule in rules if rule.matches(aim, detector)), None)


@dataclass(frozen=True, slots=True)
class PipelineChoice:
    """The pipelines of a visit-detector."""

    pipelines: Pipelines
    reason: str = ""
    """Why there is no main pipeline; blank if there is one."""


@dataclass(eq=False)
class Selector:
    """Both lists of rules, applied to whole visits.

    Parameters
    ----------
    preprocessing, main : `~collections.abc.Sequence` [`Rule`]
        In the order of the configuration.
    cameras : `~collections.abc.Callable`, optional
        Returns the focal-plane table of an instrument or raises
        `~ppdaemon.errors.ConfigError`.
    """

    preprocessing: Sequence[Rule]
    main: Sequence[Rule]
    cameras: Callable[[str], Camera] = load_camera

    def __post_init__(self) -> None:
        self._on_sky = any(rule.on_sky for rule in (*self.preprocessing, *self.main))

    def takes_long(self, visit: NextVisit) -> bool:
        """Return whether `choose` should run in a thread, not in an event loop.

        Parameters
        ----------
        visit : `~ppdaemon.visit.NextVisit`
            Announcement; its coordinate system decides.

        Returns
        -------
        long : `bool`
            Whether a rule needs a position that astropy must convert, see
            `ppdaemon.pointing.needs_astropy`.
        """
        return self._on_sky and needs_astropy(visit)

    def choose(self, visit: NextVisit, detectors: Sequence[int]) -> dict[int, PipelineChoice]:
        """Select the pipelines of a visit's detectors.

        Parameters
        ----------
        visit : `~ppdaemon.visit.NextVisit`
            Announcement, with which the conditions are compared.
        detectors : `~collections.abc.Sequence` [`int`]
            Ids of detectors in the visit's instrument.

        Returns
        -------
        chosen : `dict` [`int`, `PipelineChoice`]
            The selected pipelines, by detector id.
        """
        aim = TargetPositions(visit, self.cameras)
        return {detector: self._choose(aim, detector) for detector in detectors}

    def _choose(self, aim: TargetPositions, detector: int) -> PipelineChoice:
        main = select(self.main, aim, detector)
        if main:
            before = select(self.preprocessing, aim, detector)
            return PipelineChoice(Pipelines(preprocessing=before or (), main=main))
        reason = "no rule matches" if main is None else "its rule ignores the visit"
        return PipelineChoice(Pipelines(), f"{reason} ({self._described(aim, detector)})")

    def _described(self, aim: TargetPositions, detector: int) -> str:
        visit = aim.visit
        point = aim.at("detector", detector) if self._on_sky else None
        if point is not None:
            where = f"ra {point[0]:.4f}, dec {point[1]:.4f}"
        elif visit.coordinate_system == CoordinateSystem.NONE:
            where = "no position"
        else:
            where = f"{visit.coordinate_system.name} position {visit.position[0]:g}, {visit.position[1]:g}"
        return f"survey {visit.survey!r}, filters {visit.filters!r}, {where}"
