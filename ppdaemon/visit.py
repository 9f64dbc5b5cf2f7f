# SPDX-License-Identifier: BSD-3-Clause
"""The announcement of a visit, as the script queue publishes it.

Messages have the field names of SAL ``ScriptQueue.logevent_nextVisit`` and
``logevent_nextVisitCanceled`` (ts_xml); attributes have readable names.
Newer interfaces only add fields: unknown fields are preserved and not used.
"""

import json
import math
import unicodedata
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any

import pydantic

from ppdaemon.angles import wrap_degrees
from ppdaemon.errors import BadMessage
from ppdaemon.timescales import TAI_MINUS_UTC_S
from ppdaemon.wire import explain

__all__ = (
    "CoordinateSystem",
    "NextVisit",
    "RotationSystem",
    "VisitCanceled",
    "parent_group",
    "read_next_visit",
)

MAX_NAME = 200
"""Characters of a name or a group, which become part of file names."""

NUMBER_FIELDS = (
    "salIndex",
    "scriptSalIndex",
    "startTime",
    "dome",
    "duration",
    "nimages",
    "totalCheckpoints",
    "detector",
    "private_sndStamp",
    "private_efdStamp",
)
"""SAL names of the numbers that a visit does not need."""
STAMPS = ("private_sndStamp", "private_efdStamp")
SMALLEST_STAMP = 1.0
"""Seconds since 1970: a smaller stamp is not set."""
UNSET_TEXTS = frozenset({"", "null", "none", "nan"})
"""Numbers without a value, from senders that can send strings only."""


class CoordinateSystem(IntEnum):
    """Coordinate system of `NextVisit.position`."""

    NONE = 1
    ICRS = 2
    OBSERVED = 3
    MOUNT = 4


class RotationSystem(IntEnum):
    """Reference of `NextVisit.camera_angle`."""

    NONE = 1
    SKY = 2
    HORIZON = 3
    MOUNT = 4


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def _plain(value: str) -> str:
    # `isprintable` is fast and true for nearly all names; names without control
    # characters may fail it too (other kinds of spaces).
    if not value.isprintable() and any(
        unicodedata.category(character).startswith("C") for character in value
    ):
        raise ValueError("control characters are not allowed")
    return value


def _numbers_from_text(value: Any) -> Any:
    """Convert ``"[10.5, -30.0]"``: some senders can send strings only."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("expected two numbers, or a string such as '[10.5, -30.0]'") from None
    return value


def _number(value: Any) -> float | None:
    """Return the number that a field has, also as text; `None` if it is no number."""
    if isinstance(value, bool | list | dict | None):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_unset(value: Any) -> bool:
    """Return whether a sender writes a number or a list so that has no value.

    Avro writes nulls and NaN; senders that can send strings only write them as text.
    """
    if isinstance(value, str) and value.strip().lower() in UNSET_TEXTS:
        return True
    number = _number(value)
    return value is None or (number is not None and not math.isfinite(number))


def _is_unset_position(value: Any) -> bool:
    if isinstance(value, str) and not _is_unset(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False  # refused with the name of the field
    if isinstance(value, list | tuple):
        return not value or any(map(_is_unset, value))
    return _is_unset(value)


def _is_below(limit: float, value: Any) -> bool:
    number = _number(value)
    return number is not None and number < limit


def _is_unknown(enum: type[IntEnum], value: Any) -> bool:
    """Return whether a value is an integer that an enumeration does not have, such as Avro's default 0."""
    number = _number(value)
    return number is not None and number.is_integer() and number not in frozenset(enum)


def _fields_without_meaning(fields: Mapping[str, Any]) -> tuple[set[str], tuple[str, ...]]:
    """Return the names of the fields to be dropped, and of those among them that had to have a value."""
    unset = {name for name in NUMBER_FIELDS if name in fields and _is_unset(fields[name])}
    unset |= {name for name in ("filters", "survey", "detector") if name in fields and fields[name] is None}
    unset |= {name for name in ("duration", "nimages") if _is_below(0.0, fields.get(name))}
    # 0 is Avro's default; earlier times than 1970 do not occur.
    stamps = {name for name in STAMPS if name in fields and _is_below(SMALLEST_STAMP, fields[name])}
    warned = {name for name in unset if name not in STAMPS}
    unset |= stamps
    for name, system, enum, is_unset in (
        ("position", "coordinateSystem", CoordinateSystem, _is_unset_position),
        ("cameraAngle", "rotationSystem", RotationSystem, _is_unset),
    ):
        if system in fields and (_is_unset(fields[system]) or _is_unknown(enum, fields[system])):
            unset.add(system)
            warned.add(system)
        if name in fields and is_unset(fields[name]):
            unset.add(name)
            # Without its value the system would refer to the default 0.0.
            if system in fields and system not in unset and _number(fields[system]) != enum["NONE"]:
                unset.add(system)
                warned.add(name)
    return unset, tuple(sorted(warned))


Number = Annotated[float, pydantic.BeforeValidator(_no_bool)]
Count = Annotated[int, pydantic.BeforeValidator(_no_bool)]
Name = Annotated[str, pydantic.Field(max_length=MAX_NAME), pydantic.AfterValidator(_plain)]
Group = Annotated[str, pydantic.Field(min_length=1, max_length=MAX_NAME), pydantic.AfterValidator(_plain)]


class _SalEvent(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="allow",
        allow_inf_nan=False,
        validate_by_name=False,
        validate_by_alias=True,
        coerce_numbers_to_str=True,
    )

    def to_sal(self) -> dict[str, Any]:
        """Return the event with its SAL field names.

        Returns
        -------
        fields : `dict` [`str`, `object`]
            JSON values of the fields that the event had, unknown ones included.
        """
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


class NextVisit(_SalEvent):
    """One announced visit: pointing, filter, number of exposures, purpose."""

    group: Group = pydantic.Field(alias="groupId")
    """Unique name of the visit; the Butler's ``group`` dimension."""
    instrument: Name
    """Short name, or blank if the script takes no image."""
    script_sal_index: Count = pydantic.Field(0, alias="scriptSalIndex")
    """The script's id, to which a cancellation refers."""
    sal_index: Count = pydantic.Field(0, alias="salIndex")
    """Script queue: 1 main telescope, 2 auxiliary, 3 and 999 simulators."""
    coordinate_system: CoordinateSystem = pydantic.Field(CoordinateSystem.NONE, alias="coordinateSystem")
    position: Annotated[tuple[Number, Number], pydantic.BeforeValidator(_numbers_from_text)] = (0.0, 0.0)
    """Degrees, in `coordinate_system`."""
    start_time_tai: Number = pydantic.Field(0.0, alias="startTime")
    """Expected start, TAI seconds since 1970."""
    rotation_system: RotationSystem = pydantic.Field(RotationSystem.NONE, alias="rotationSystem")
    camera_angle: Number = pydantic.Field(0.0, alias="cameraAngle")
    """Degrees; for ``SKY`` the position angle of focal-plane +Y, north through
    east."""
    filters: Name = ""
    """Acceptable physical filters, comma-separated; blank means any."""
    dome: Count = 3
    duration_s: Annotated[Number, pydantic.Field(ge=0)] = pydantic.Field(0.0, alias="duration")
    """The script's estimate of its duration in seconds (not the exposure time)."""
    nimages: Annotated[Count, pydantic.Field(ge=0)] = 0
    """Number of snaps; 0 means not known in advance."""
    survey: Name = ""
    """Purpose of the images, such as ``BLOCK-365``."""
    total_checkpoints: Count = pydantic.Field(0, alias="totalCheckpoints")
    detector: Annotated[Count, pydantic.Field(ge=0)] | None = pydantic.Field(None, exclude=True)
    """The only detector that the message concerns; `None` means all. It is not sent on,
    because other messages add detectors to the same visit."""
    sent_stamp_tai: Number | None = pydantic.Field(None, alias="private_sndStamp")
    """TAI seconds since 1970; `None` if it is not set."""
    efd_stamp_utc: Number | None = pydantic.Field(None, alias="private_efdStamp")
    """UTC seconds since 1970; `None` if it is not set."""
    without_meaning: tuple[str, ...] = pydantic.Field((), exclude=True)
    """SAL names of the fields that were sent without a meaning, such as a null angle; the
    visit has their defaults."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _drop_fields_without_meaning(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        unset, warned = _fields_without_meaning(fields)
        kept = {name: value for name, value in fields.items() if name not in unset}
        return kept | {"without_meaning": warned}

    @property
    def published_tai(self) -> float | None:
        """When it was published, TAI seconds since 1970; `None` if no stamp is set."""
        if self.sent_stamp_tai is None and self.efd_stamp_utc is not None:
            return self.efd_stamp_utc + TAI_MINUS_UTC_S
        return self.sent_stamp_tai

    @property
    def filter_names(self) -> tuple[str, ...]:
        """Acceptable physical filters; empty means any (`tuple` [`str`])."""
        return tuple(name.strip() for name in self.filters.split(",") if name.strip())

    @property
    def boresight(self) -> tuple[float, float] | None:
        """Right ascension in [0, 360) and declination, ICRS degrees; `None` if the
        position is in another system or its declination is not within [-90, 90].
        """
        if self.coordinate_system != CoordinateSystem.ICRS:
            return None
        ra, dec = self.position
        return (wrap_degrees(ra), dec) if -90.0 <= dec <= 90.0 else None

    @property
    def sky_angle(self) -> float | None:
        """Position angle of focal-plane +Y in [0, 360) degrees; `None` if the rotation
        is not relative to the sky.
        """
        return wrap_degrees(self.camera_angle) if self.rotation_system == RotationSystem.SKY else None

    def age_s(self, now_tai: float) -> float:
        """Return the seconds since publication.

        Parameters
        ----------
        now_tai : `float`
            TAI seconds since 1970.

        Returns
        -------
        age : `float`
            Negative if it was published in the future; 0 if the event has no
            publication time.
        """
        return 0.0 if self.published_tai is None else now_tai - self.published_tai


class VisitCanceled(_SalEvent):
    """The cancellation of an announced visit."""

    group: Group = pydantic.Field(alias="groupId")
    script_sal_index: Count = pydantic.Field(0, alias="scriptSalIndex")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _drop_unset_index(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and _is_unset(fields.get("scriptSalIndex")):
            return {name: value for name, value in fields.items() if name != "scriptSalIndex"}
        return fields


def read_next_visit(fields: Any) -> NextVisit:
    """Validate a next_visit.

    Parameters
    ----------
    fields : `dict`
        SAL field names and values; numbers may be strings.

    Returns
    -------
    visit : `NextVisit`
        The validated, immutable event.

    Raises
    ------
    ppdaemon.errors.BadMessage
        Raised if it is not a valid next_visit; the text has the field names.
    """
    try:
        return NextVisit.model_validate(fields)
    except pydantic.ValidationError as error:
        raise BadMessage(explain(error), "field") from None


def parent_group(group: str) -> str:
    """Return the group without the suffix ``#<n>`` of a supplementary group.

    Parameters
    ----------
    group : `str`
        A group from an announcement or a FITS header.

    Returns
    -------
    parent : `str`
        The announced group; `group` itself if it has no such suffix.
    """
    head, mark, tail = group.rpartition("#")
    return head if mark and head and tail.isdigit() else group
