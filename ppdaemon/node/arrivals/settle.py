# SPDX-License-Identifier: BSD-3-Clause
"""From sightings to complete raws: each is taken once, when it is complete.

Looks are taken many at a time, because handing one to a thread and back costs
more than the look itself. What is not complete yet has a timer, and only the
first raw of an exposure that nothing is known of yet gets a task of its own.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.candidate import Candidate, Glance, glance_at
from ppdaemon.node.arrivals.exposures import Exposures
from ppdaemon.node.arrivals.files import ExposureFacts, are_regular, is_regular
from ppdaemon.node.arrivals.index import Recent
from ppdaemon.node.arrivals.lags import Lags
from ppdaemon.node.arrivals.patience import GiveUp, LookAgain, Take
from ppdaemon.node.arrivals.pool import RootPools
from ppdaemon.node.arrivals.tally import Tally
from ppdaemon.node.arrivals.tree import Place, Sighting
from ppdaemon.raws.path import RawName, sidecar_path
from ppdaemon.reports import RefusedRaw

__all__ = ("READERS", "Settler")

READERS = 4
"""Files of one root that are looked at at once."""
AT_ONCE = 50
"""Looks taken in one go: some 5 ms of a thread, and 2 ms of the loop."""
MOST_CANDIDATES = 40_000
"""Files looked at until they are complete, 0.7 kB each: ten exposures of 205
detectors are 2050."""
BUSY = 25_000
"""Looks that wait; above, surveys had better pause. A hundred exposures are
found at once, and the kernel's queue (16,384 events) has room beside them."""
FLOOD = 1000
"""Looks that wait; above, only one reader of a root goes on while raws are still
being sighted: threads share one interpreter, and to be found comes first."""
CALM_S = 0.05
"""Without a sighting for so long, the others go on too."""
MOST_DELIVERED = 200_000
MOST_REFUSED = 50
HANGING_PAUSE_S = 1.0
"""Until the next look at a file whose filesystem did not answer."""

type Key = tuple[str, int, int]
type _ExposureKey = tuple[str, int, str]
"""Instrument, exposure, raw root."""


@dataclass(frozen=True, slots=True)
class _Complete:
    """A complete raw of an exposure that nothing is known of yet."""

    candidate: Candidate
    taken: Take
    since_mono: float


@dataclass(frozen=True, slots=True)
class _Asked:
    """One raw of an exposure is asked for its visit, and others wait for that."""

    has_sidecar: bool
    followers: list[_Complete] = field(default_factory=list)


class Settler:
    """Waits for raws to be complete, and delivers each once.

    Parameters
    ----------
    roots : `~collections.abc.Iterable` [`str`]
        Paths of the raw roots.
    pools : `~ppdaemon.node.arrivals.pool.RootPools`
        Where files are looked at.
    exposures : `~ppdaemon.node.arrivals.exposures.Exposures`
        Knows the groups.
    clock : `~ppdaemon.clock.Clock`
        The time.
    tally : `~ppdaemon.node.arrivals.tally.Tally`
        Counts what goes wrong.
    remember_s : `float`
        For how long a scan may find a file again.
    deliver : `~collections.abc.Callable`
        Called with each raw in the event loop's thread.
    spawn : `~collections.abc.Callable`
        Runs a coroutine as a task.
    """

    def __init__(
        self,
        roots: Iterable[str],
        pools: RootPools,
        exposures: Exposures,
        clock: Clock,
        tally: Tally,
        remember_s: float,
        deliver: Callable[[Raw], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ):
        self._pools = pools
        self._exposures = exposures
        self._clock = clock
        self._tally = tally
        self._deliver = deliver
        self._spawn = spawn
        self.lags = Lags()
        """How soon each source tells of raws."""
        self.refused: deque[RefusedRaw] = deque(maxlen=MOST_REFUSED)
        """What was not delivered, the last at the end."""
        self._candidates: dict[Key, Candidate] = {}
        self._delivered: Recent[Key] = Recent(2.0 * remember_s, MOST_DELIVERED)
        self._queues = {root: _Queue() for root in roots}
        self._asked: dict[_ExposureKey, _Asked] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._started_unix = clock.tai() - TAI_MINUS_UTC_S
        self.overfull: Callable[[], None] = lambda: None
        """Called when a raw could not be taken."""
        self.same_clock: Callable[[str], bool] = lambda root: False
        """Tells whether time stamps below a root are by this host's clock."""

    def start(self) -> None:
        """Begin to look."""
        for root in self._queues:
            for number in range(READERS):
                self._spawn(self._take_looks(root, gives_way=number > 0))

    async def room(self) -> None:
        """Wait while more was sighted than can be looked at soon."""
        await self._room.wait()

    def delivered(self, name: RawName) -> bool:
        """Tell whether a raw was delivered lately."""
        return self._delivered.knows(_key(name), self._clock.mono())

    def take_up(self, sighting: Sighting) -> Candidate | None:
        """Wait for a raw to be complete, if nobody does; deliver it then.

        Parameters
        ----------
        sighting : `~ppdaemon.node.arrivals.tree.Sighting`
            Of an image.

        Returns
        -------
        candidate : `~ppdaemon.node.arrivals.candidate.Candidate` or `None`
            What is waited for; `None` if too much is already.
        """
        key, unix = _key(sighting.name), self._clock.tai() - TAI_MINUS_UTC_S
        candidate = self._candidates.get(key)
        if candidate is not None:
            if candidate.sighted_again(sighting, unix) and candidate.timer is not None:
                candidate.timer.cancel()
                self._look_at(candidate)
            return candidate
        if len(self._candidates) >= MOST_CANDIDATES:
            self._tally.complain("dropped", f"{len(self._candidates)} raws are incomplete, one more put off")
            self.overfull()
            return None
        self.lags.sighted(sighting.source)
        candidate = self._candidates[key] = Candidate(sighting, self._clock.mono(), unix)
        self._look_at(candidate)
        return candidate

    def expect_no_end(self, root: str) -> None:
        """Wait for no file to be closed: that may have been missed.

        Parameters
        ----------
        root : `str`
            The path of a raw root, of whose files this is said.
        """
        for candidate in self._candidates.values():
            if candidate.places[0].root == root:
                candidate.expect_no_end()

    def take_known(self, name: RawName, source: str, uri: str, facts: ExposureFacts) -> None:
        """Deliver a raw in an object store, which needs no look, unless it was.

        Parameters
        ----------
        name : `~ppdaemon.raws.path.RawName`
            What its key says.
        source : `str`
            Which source told of it.
        uri : `str`
            Where it is, escaped.
        facts : `~ppdaemon.node.arrivals.files.ExposureFacts`
            What its exposure's headers say.

        Raises
        ------
        ppdaemon.errors.BadMessage
            Raised if these are not acceptable.
        """
        if self.delivered(name):
            return
        raw = _raw(name, uri, facts, False, self._clock.tai())
        self._delivered.add(_key(name), self._clock.mono())
        self.lags.sighted(source)
        self._tally.count("delivered")
        self._deliver(raw)

    def refuse(self, path: str, kind: str, reason: str) -> None:
        """Count and list a raw that is not delivered.

        Parameters
        ----------
        path, kind, reason : `str`
            As in `~ppdaemon.reports.RefusedRaw`.
        """
        self._tally.complain(kind, reason)
        self.refused.append(RefusedRaw(path=path, kind=kind, reason=reason, seen_tai=self._clock.tai()))

    def _look_at(self, candidate: Candidate) -> None:
        """Have a look taken as soon as can be."""
        candidate.timer = None
        self._queues[candidate.places[0].root].add(candidate)
        if self._is_busy():
            self._room.clear()

    def _is_busy(self) -> bool:
        return sum(len(queue.waiting) for queue in self._queues.values()) > BUSY

    # --- looks ---

    async def _take_looks(self, root: str, *, gives_way: bool) -> None:
        queue, pool = self._queues[root], self._pools.of(root)
        while True:
            if gives_way and queue.is_flooded:
                await asyncio.sleep(CALM_S)
                continue
            batch = await queue.take()
            if not self._room.is_set() and not self._is_busy():
                self._room.set()
            looks = [candidate.next_look(same_clock=self.same_clock(root)) for candidate in batch]
            try:
                glances = await pool.run(glance_at, looks)
            except TimeoutError:
                for candidate in batch:
                    candidate.try_next_place()
                    self._put_off(candidate, HANGING_PAUSE_S)
                continue
            for candidate, glance in zip(batch, glances, strict=True):
                try:
                    self._judge(candidate, glance)
                except BadMessage as error:
                    self._refuse(candidate, error)

    def _judge(self, candidate: Candidate, glance: Glance | BadMessage) -> None:
        if isinstance(glance, BadMessage):
            raise glance
        match candidate.judge(glance, self._clock.mono()):
            case LookAgain(pause_s):
                self._put_off(candidate, 0.0 if candidate.news else pause_s)
            case GiveUp(kind, reason):
                self._give_up(candidate, kind, f"{candidate.places[0].path}: {reason}")
            case Take() as taken:
                facts = self._exposures.known(candidate.name)
                if facts is not None:
                    self._finish(candidate, taken, facts, glance.has_sidecar)
                else:
                    self._find_out(candidate, taken, glance.has_sidecar)

    def _put_off(self, candidate: Candidate, pause_s: float) -> None:
        candidate.timer = asyncio.get_running_loop().call_later(pause_s, self._look_at, candidate)

    # --- the end ---

    def _find_out(self, candidate: Candidate, taken: Take, has_sidecar: bool) -> None:
        """Have the visit of a complete raw found out, and the raw delivered.

        Raws that have no more to tell than one that is asked already wait for
        what it says.
        """
        key = candidate.name.instrument, candidate.name.exposure, taken.place.root
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(has_sidecar)
            self._spawn(self._resolve_first(candidate, taken, key))
        elif has_sidecar and not asked.has_sidecar:
            self._spawn(self._resolve(candidate, taken, self._clock.mono()))
        else:
            asked.followers.append(_Complete(candidate, taken, self._clock.mono()))

    async def _resolve_first(self, candidate: Candidate, taken: Take, key: _ExposureKey) -> None:
        try:
            await self._resolve(candidate, taken, self._clock.mono())
        finally:
            followers = self._asked.pop(key).followers
            for batch in itertools.batched(followers, AT_ONCE):
                self._spawn(self._follow(batch, taken.place.root))

    async def _follow(self, batch: Sequence[_Complete], root: str) -> None:
        """Deliver raws of an exposure after one of it was asked."""
        sidecars = [_sidecar(each.taken) for each in batch]
        found = await self._answered(self._pools.of(root).run, are_regular, sidecars)
        for each, has_sidecar in zip(batch, found, strict=True):
            facts = self._exposures.known(each.candidate.name)
            if facts is None:
                self._spawn(self._resolve(each.candidate, each.taken, each.since_mono))
            else:
                self._finish_or_refuse(each.candidate, each.taken, facts, has_sidecar)

    async def _resolve(self, candidate: Candidate, taken: Take, since_mono: float) -> None:
        """Ask all that can tell the visit of a raw, and deliver it."""
        facts = await self._answered(self._exposures.facts, candidate.name, taken.place, since_mono)
        has_sidecar = await self._answered(self._pools.run, is_regular, _sidecar(taken))
        if facts is not None:
            self._finish_or_refuse(candidate, taken, facts, has_sidecar)
            return
        reason = f"{taken.place.path}: no group in sidecar or header, not delivered"
        self._refuse(candidate, BadMessage(reason, "no_group"))

    async def _answered[T](self, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Ask again and again while the filesystem hangs."""
        while True:
            try:
                return await ask(*args)
            except TimeoutError:
                await asyncio.sleep(HANGING_PAUSE_S)

    def _finish_or_refuse(
        self, candidate: Candidate, taken: Take, facts: ExposureFacts, has_sidecar: bool
    ) -> None:
        try:
            self._finish(candidate, taken, facts, has_sidecar)
        except BadMessage as error:
            self._refuse(candidate, error)

    def _finish(self, candidate: Candidate, taken: Take, facts: ExposureFacts, has_sidecar: bool) -> None:
        raw = _raw(candidate.name, taken.place.path, facts, has_sidecar, self._clock.tai())
        self._delivered.add(_key(candidate.name), self._clock.mono())
        self._tally.count("delivered" if taken.whole else "delivered_broken")
        if candidate.changed_unix >= self._started_unix:
            self.lags.took(candidate.source, candidate.lag_s)
        self._forget(candidate)
        self._deliver(raw)

    def _refuse(self, candidate: Candidate, error: BadMessage) -> None:
        self._give_up(candidate, f"refused.{error.kind}", str(error))

    def _give_up(self, candidate: Candidate, kind: str, reason: str) -> None:
        if candidate.news:  # of what came while this one was looked at
            candidate.begin_again(self._clock.mono())
            self._look_at(candidate)
            return
        self.refuse(candidate.places[0].path, kind, reason)
        self._forget(candidate)

    def _forget(self, candidate: Candidate) -> None:
        del self._candidates[_key(candidate.name)]
        candidate.settle()

    def stop(self) -> None:
        """Forget what is not complete."""
        for candidate in self._candidates.values():
            if candidate.timer is not None:
                candidate.timer.cancel()
        for asked in self._asked.values():
            asked.followers.clear()


class _Queue:
    """Candidates that wait for a look, shared by some readers."""

    def __init__(self) -> None:
        self.waiting: deque[Candidate] = deque()
        self._filled = asyncio.Event()
        self._added_mono = 0.0

    def add(self, candidate: Candidate) -> None:
        self.waiting.append(candidate)
        self._added_mono = time.monotonic()
        self._filled.set()

    @property
    def is_flooded(self) -> bool:
        """Whether many wait and more are being added (`bool`)."""
        return len(self.waiting) > FLOOD and time.monotonic() - self._added_mono < CALM_S

    async def take(self) -> list[Candidate]:
        """Wait for some; leave the others their share."""
        while not self.waiting:
            self._filled.clear()
            await self._filled.wait()
        count = min(AT_ONCE, -(-len(self.waiting) // READERS))
        return [self.waiting.popleft() for _ in range(count)]


def _raw(name: RawName, path: str, facts: ExposureFacts, has_sidecar: bool, seen_tai: float) -> Raw:
    assert name.detector is not None
    try:
        return Raw(
            path=path,
            sidecar=sidecar_path(path) if has_sidecar else None,
            instrument=name.instrument,
            group=facts.group,
            detector=name.detector,
            exposure=name.exposure,
            snap=facts.snap,
            snaps=facts.snaps,
            seen_tai=seen_tai,
        )
    except pydantic.ValidationError as error:
        raise BadMessage(f"{path}: {error.errors()[0]['loc']} is not acceptable", "header") from None


def _sidecar(taken: Take) -> Place:
    return Place(taken.place.root, sidecar_path(taken.place.path))


def _key(name: RawName) -> Key:
    assert name.detector is not None
    return name.instrument, name.exposure, name.detector
