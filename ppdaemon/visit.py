# SPDX-License-Identifier: BSD-3-Clause
"""The announcement of a visit, as the script queue publishes it.

Messages have the field names of SAL ``ScriptQueue.logevent_nextVisit`` and
``logevent_nextVisitCanceled`` (ts_xml); attributes have readable names.
Newer interfaces only add fields: unknown fields are preserved and not used.
"""

import json
import math
import unicodedata
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

NEEDED = frozenset({"groupId", "instrument", "detector"})
"""SAL names of the fields without which it is unknown what is announced."""
STAMPS = frozenset({"private_sndStamp", "private_efdStamp"})
SMALLEST_STAMP = 1.0
"""Seconds since 1970: a smaller stamp is not set; 0 is Avro's default."""
UNSET_TEXTS = frozenset({"", "null", "none", "nan"})
"""Values that are not set, from senders that can send strings only."""


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


def _names_from_list(value: Any) -> Any:
    """Convert ``["r_57", "i_39"]``, also as text; ``None`` is not set, but ``none`` is a filter."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("expected names with commas, or a list of names") from None
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return ",".join(value)
    return None if value in ("None", "null") else value


def _from_name(enum: type[IntEnum]) -> pydantic.BeforeValidator:
    """Return what converts the name of a member, such as ``"ICRS"``."""
    members = enum.__members__
    return pydantic.BeforeValidator(
        lambda value: members.get(value.strip().upper(), value) if isinstance(value, str) else value
    )


def _is_unset(value: Any) -> bool:
    """Return whether a sender writes a number so that it has no value."""
    if isinstance(value, str):
        return value.strip().lower() in UNSET_TEXTS
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _none_if_unset(value: Any) -> Any:
    return None if _is_unset(value) else value


Number = Annotated[float, pydantic.BeforeValidator(_no_bool)]
Count = Annotated[int, pydantic.BeforeValidator(_no_bool), pydantic.Field(ge=-(2**63), lt=2**63)]
Stamp = Annotated[Number, pydantic.Field(ge=SMALLEST_STAMP)]
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
    coordinate_system: Annotated[CoordinateSystem, _from_name(CoordinateSystem)] = pydantic.Field(
        CoordinateSystem.NONE, alias="coordinateSystem"
    )
    position: Annotated[tuple[Number, Number], pydantic.BeforeValidator(_numbers_from_text)] = (0.0, 0.0)
    """Degrees, in `coordinate_system`."""
    start_time_tai: Number = pydantic.Field(0.0, alias="startTime")
    """Expected start, TAI seconds since 1970."""
    rotation_system: Annotated[RotationSystem, _from_name(RotationSystem)] = pydantic.Field(
        RotationSystem.NONE, alias="rotationSystem"
    )
    camera_angle: Number = pydantic.Field(0.0, alias="cameraAngle")
    """Degrees; for ``SKY`` the position angle of focal-plane +Y, north through
    east."""
    filters: Annotated[Name, pydantic.BeforeValidator(_names_from_list)] = ""
    """Acceptable physical filters, comma-separated; blank means any."""
    dome: Count = 3
    duration_s: Annotated[Number, pydantic.Field(ge=0)] = pydantic.Field(0.0, alias="duration")
    """The script's estimate of its duration in seconds (not the exposure time)."""
    nimages: Annotated[Count, pydantic.Field(ge=0)] = 0
    """Number of snaps; 0 means not known in advance."""
    survey: Name = ""
    """Purpose of the images, such as ``BLOCK-365``."""
    total_checkpoints: Count = pydantic.Field(0, alias="totalCheckpoints")
    detector: Annotated[
        Annotated[Count, pydantic.Field(ge=0)] | None, pydantic.BeforeValidator(_none_if_unset)
    ] = pydantic.Field(None, exclude=True)
    """The only detector that the message concerns; `None` means all. It is not sent on,
    because other messages add detectors to the same visit."""
    sent_stamp_tai: Stamp | None = pydantic.Field(None, alias="private_sndStamp")
    """TAI seconds since 1970; `None` if it is not set."""
    efd_stamp_utc: Stamp | None = pydantic.Field(None, alias="private_efdStamp")
    """UTC seconds since 1970; `None` if it is not set."""
    without_meaning: tuple[str, ...] = pydantic.Field((), exclude=True)
    """SAL names of the fields whose values were unset or invalid, such as a null angle; the
    visit has their defaults."""

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

    @pydantic.field_validator("script_sal_index", mode="wrap")
    @classmethod
    def _zero_if_invalid(cls, value: Any, validate: pydantic.ValidatorFunctionWrapHandler) -> int:
        # An index that is unset or invalid must not cost the cancellation.
        try:
            return int(validate(value))
        except pydantic.ValidationError:
            return 0


def read_next_visit(fields: Any) -> NextVisit:
    """Validate a next_visit.

    A value that is unset or invalid must not cost the visit: its field gets the default and
    is listed in `NextVisit.without_meaning`.

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
        Raised if it is not a next_visit, or if its group, instrument or detector is
        invalid; the text has the field names.
    """
    try:
        return NextVisit.model_validate(fields)
    except pydantic.ValidationError as error:
        invalid = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]}
        if not invalid or invalid & NEEDED:
            raise BadMessage(explain(error), "field") from None
    kept = {name: value for name, value in fields.items() if name not in invalid}
    visit = NextVisit.model_validate(kept)
    reported = invalid - STAMPS
    for name, field, system in (
        ("position", "coordinateSystem", visit.coordinate_system),
        ("cameraAngle", "rotationSystem", visit.rotation_system),
    ):
        if name in invalid and system.name == "NONE":
            reported.discard(name)
        elif name in invalid:  # the system would refer to the default 0.0
            kept.pop(field)
    visit = NextVisit.model_validate(kept)
    return visit.model_copy(update={"without_meaning": tuple(sorted(reported))})


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
