# SPDX-License-Identifier: BSD-3-Clause
"""Entries of Redis streams, one visit-detector each: which a node has, takes, keeps or leaves. Pure code.

Does not cover the commands (`ppdaemon.node.visits.redisclient`), nor what becomes of a visit-detector
(`ppdaemon.node.visits.core`).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from ppdaemon.errors import BadMessage
from ppdaemon.messages import SUBMIT_LIMIT, ReserveVisit, ResultEntry
from ppdaemon.timescales import TAI_MINUS_UTC_S
from ppdaemon.visit import NextVisit, read_next_visit

__all__ = (
    "DetectorKey",
    "Entry",
    "HeldEntries",
    "Pending",
    "Place",
    "ServerClock",
    "Settlement",
    "can_claim",
    "claim_idle_ms",
    "dead_consumers",
    "key_of",
    "permit_key",
    "read_entry",
    "refusal_reason",
    "reservations",
    "settle",
)

ORIGIN = "redis"
"""The sender in messages that are made from entries."""
LEFT_IDLE_MS = 30 * 86_400_000
"""Idle time of an entry that a node leaves to others."""


class Place(NamedTuple):
    """Where an entry is: its stream, and its id there, as ``1732764316951-0``."""

    stream: str
    id: str

    @property
    def written_ms(self) -> int:
        """When it was written, by the wall clock of the server, milliseconds since 1970."""
        return int(self.id.partition("-")[0])


class DetectorKey(NamedTuple):
    """A visit-detector, as permits name it."""

    instrument: str
    group: str
    detector: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry that could be read."""

    place: Place
    visit: NextVisit
    detector: int
    attempt: int
    """1; of an entry that was taken from another consumer, how often it has been delivered."""

    @property
    def key(self) -> DetectorKey:
        """Its visit-detector; a writer that repeats itself adds several entries of one."""
        return DetectorKey(self.visit.instrument, self.visit.group, self.detector)


@dataclass(frozen=True, slots=True)
class Pending:
    """An entry that was delivered and is not acknowledged."""

    place: Place
    consumer: str
    deliveries: int


@dataclass(frozen=True, slots=True)
class ServerClock:
    """The server's wall clock when this host's clocks had these values: ages are differences of its times, so
    that a wrong clock of this host does not make visits expire.
    """

    server_ms: float = 0.0
    mono: float = 0.0

    def now_ms(self, mono: float) -> float:
        """Return the server's time, milliseconds since 1970."""
        return self.server_ms + 1000 * (mono - self.mono)

    def now_tai(self, mono: float) -> float:
        """Return the server's time, TAI seconds since 1970."""
        return self.now_ms(mono) / 1000 + TAI_MINUS_UTC_S

    def age_s(self, place: Place, mono: float) -> float:
        """Return for how long an entry has been in its stream."""
        return max(0.0, (self.now_ms(mono) - place.written_ms) / 1000)


def key_of(entry: ResultEntry) -> DetectorKey:
    """Return the visit-detector of an outcome."""
    return DetectorKey(entry.instrument, entry.group, entry.detector)


def permit_key(key: DetectorKey, shadow_group: str = "") -> str:
    """Return the key of Redis whose value is the node that may write permanently; those of a group in shadow
    mode are its own, or the present visits could not be processed.
    """
    name = f"{key.instrument}:{key.group}:{key.detector}"
    return f"ppdaemon:shadow-permit:{shadow_group}:{name}" if shadow_group else f"ppdaemon:permit:{name}"


def read_entry(place: Place, fields: Mapping[bytes, bytes], attempt: int = 1) -> Entry:
    """Validate an entry as the observatory's fan-out writes it: a next_visit, each value a text.

    Raises `~ppdaemon.errors.BadMessage` if it is none; such an entry never becomes readable.
    """
    size = sum(map(len, (*fields, *fields.values())))
    if size > SUBMIT_LIMIT:
        raise BadMessage(f"{size} bytes are more than the {SUBMIT_LIMIT} accepted", "redis_size")
    try:
        texts = {name.decode(): value.decode() for name, value in fields.items()}
    except UnicodeDecodeError as error:
        raise BadMessage(f"no UTF-8: {error}", "redis_text") from None
    visit = read_next_visit(texts)
    if visit.detector is None:
        raise BadMessage("no detector", "redis_detector")
    return Entry(place, visit.model_copy(update={"detector": None}), visit.detector, attempt)


def refusal_reason(entry: Entry, age_s: float, now_tai: float, expiry_s: float) -> str:
    """Return why no node needs an entry, which has been in its stream for `age_s`; or a blank."""
    if not entry.visit.instrument:
        return "the visit takes no image"
    age_s = max(age_s, entry.visit.age_s(now_tai))
    return f"expired: announced {age_s:.0f} s ago" if age_s > expiry_s else ""


def reservations(
    entries: Iterable[Entry], ages_s: Mapping[Place, float], now_tai: float
) -> list[ReserveVisit]:
    """Return one message for all detectors of a visit that were read together."""
    found: dict[tuple[str, str, int, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        # Of the same group with another content, the journal has the first.
        content = entry.visit.model_dump_json()
        found[entry.visit.instrument, entry.visit.group, entry.attempt, content].append(entry)
    return [
        ReserveVisit(
            origin=ORIGIN,
            sent_tai=now_tai,
            sequence=0,
            visit=group[0].visit,
            detectors=tuple(dict.fromkeys(entry.detector for entry in group)),
            attempt=attempt,
            received_tai=now_tai - max(ages_s[entry.place] for entry in group),
        )
        for (_, _, attempt, _), group in found.items()
    ]


@dataclass(eq=False)
class HeldEntries:
    """The entries that a node has, by visit-detector."""

    _places: dict[DetectorKey, set[Place]] = field(default_factory=dict)
    _attempts: dict[DetectorKey, int] = field(default_factory=dict)
    """The latest of each."""
    _unanswered: dict[Place, tuple[float, int]] = field(default_factory=dict)
    """When a reservation was made, monotonic seconds, of which nothing is known since; and its attempt."""
    _left: set[Place] = field(default_factory=set)
    """Entries that are pending with this consumer and are for others."""
    _unknown: dict[str, set[Place]] = field(default_factory=dict)
    """By stream, as `sort` found them last."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def places(self) -> set[Place]:
        """All entries that the node works on."""
        return {place for places in self._places.values() for place in places}

    def take(self, entry: Entry, mono: float) -> None:
        """Add an entry, or add it again."""
        self._places.setdefault(entry.key, set()).add(entry.place)
        self._attempts[entry.key] = max(entry.attempt, self._attempts.get(entry.key, 0))
        self._unanswered[entry.place] = mono, entry.attempt
        self._left.discard(entry.place)

    def answered(self, key: DetectorKey) -> None:
        """Note that the node has decided about a visit-detector."""
        for place in self._places.get(key, ()):
            self._unanswered.pop(place, None)

    def unanswered(self, stream: str, before: float) -> dict[Place, int]:
        """Return entries about which the node should have decided, and their attempts: an error has cost the
        reservation, which nobody else repeats.
        """
        found = self._unanswered.items()
        return {
            place: attempt for place, (mono, attempt) in found if place.stream == stream and mono < before
        }

    def is_later(self, key: DetectorKey, attempt: int) -> bool:
        """Return whether the node has an entry for a later attempt."""
        return self._attempts.get(key, 0) > attempt

    def of(self, key: DetectorKey) -> tuple[Place, ...]:
        """Return the entries of a visit-detector."""
        return tuple(sorted(self._places.get(key, ())))

    def end(self, places: Collection[Place]) -> None:
        """Forget entries that are acknowledged, or another's."""
        for place in places:
            self._unanswered.pop(place, None)
        for key in [key for key, held in self._places.items() if not held.isdisjoint(places)]:
            self._places[key] -= set(places)
            if not self._places[key]:
                del self._places[key], self._attempts[key]

    def leave(self, places: Collection[Place]) -> None:
        """Note entries that are pending with this consumer, and that it does not work on."""
        self.end(places)
        self._left.update(places)

    def sort(self, stream: str, pending: Iterable[Pending]) -> tuple[list[Place], list[Place]]:
        """Return which of this consumer's pending entries of a stream are renewed, and which it does not
        know for the second time: their reply was lost, or another node has given them here. The first time
        their reply may be on its way.
        """
        mine = {each.place for each in pending}
        self._left = {place for place in self._left if place.stream != stream or place in mine}
        held = self.places & mine
        unknown = mine - held - self._left
        before, self._unknown[stream] = self._unknown.get(stream, set()), unknown
        return sorted(held), sorted(unknown & before)

    def clear(self) -> None:
        """Forget all: the pending entries are read again."""
        self._places.clear()
        self._attempts.clear()
        self._unanswered.clear()
        self._left.clear()


def claim_idle_ms(claim_after_s: float, waits_s: float) -> int:
    """Return for how long an entry must be idle to be taken from another consumer. A new connection waits for
    renewals, because all consumers look dead after a time without a server; not with what was left.
    """
    return LEFT_IDLE_MS // 2 if waits_s > 0 else round(1000 * claim_after_s)


def can_claim(entry: Entry, served: Mapping[str, Collection[int]], owner: str, node: str) -> bool:
    """Return whether a node takes an entry that another consumer has not renewed; `owner` has the permit, or
    is blank.
    """
    return owner in ("", node) and entry.detector in served.get(entry.visit.instrument, ())


@dataclass(frozen=True, slots=True)
class Settlement:
    """What becomes of entries whose visit-detectors this node has ended."""

    acknowledged: tuple[Place, ...]
    left: tuple[Place, ...]
    """Any node may take them."""
    given: Mapping[str, tuple[Place, ...]]
    """By node: it has the permit."""
    released: tuple[DetectorKey, ...]
    """Permits that are given up."""
    moved: tuple[DetectorKey, ...]
    """Outcomes that do not count, because another node has the permit."""


def settle(
    entries: Sequence[ResultEntry], owners: Mapping[DetectorKey, str], held: HeldEntries, node: str
) -> Settlement:
    """Decide what becomes of the entries of outcomes, and of what was returned; see `Settlement`.

    Of what was returned twice, or has a later attempt here, the entry and the permit are this one's.
    """
    acknowledged: list[Place] = []
    left: list[Place] = []
    given: dict[str, tuple[Place, ...]] = {}
    released, moved = [], []
    last = {key_of(entry): entry.attempt for entry in sorted(entries, key=attrgetter("attempt"))}
    for entry in entries:
        key = key_of(entry)
        asked = entry.asked or entry.attempt
        if entry.returned and (entry.attempt < last[key] or held.is_later(key, asked)):
            continue
        places, owner = held.of(key), owners[key]
        if owner not in ("", node):
            given[owner] = (*given.get(owner, ()), *places)
            if not entry.returned:
                moved.append(key)
        elif entry.returned:
            left += places
            released += [key] * (owner == node)
        else:
            acknowledged += places
    return Settlement(tuple(acknowledged), tuple(left), given, tuple(released), tuple(moved))


def dead_consumers(consumers: Iterable[Mapping[str, object]], node: str, dead_s: float) -> Iterator[str]:
    """Yield the consumers of a group that have done nothing for long, and have nothing pending."""
    for consumer in consumers:
        name, idle_ms = consumer["name"], consumer["idle"]
        assert isinstance(name, bytes)
        assert isinstance(idle_ms, int)
        if not consumer["pending"] and idle_ms > 1000 * dead_s and name.decode(errors="replace") != node:
            yield name.decode(errors="replace")
