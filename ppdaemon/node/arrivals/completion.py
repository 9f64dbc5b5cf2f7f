# SPDX-License-Identifier: BSD-3-Clause
"""Checks pending raws until they are complete, and delivers each once.

`ppdaemon.node.arrivals.pending` decides in the event loop; threads read the files.
Files are checked in batches, because passing one to a thread and back costs more
than the check. An incomplete raw has a timer; only the first raw of an exposure
with unknown group gets a task.
"""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import pydantic

from ppdaemon import log
from ppdaemon.clock import TAI_MINUS_UTC_S, Clock
from ppdaemon.errors import BadMessage
from ppdaemon.messages import Raw
from ppdaemon.node.arrivals.counts import ErrorCounts, Latencies
from ppdaemon.node.arrivals.exposurefacts import ExposureFactsCache
from ppdaemon.node.arrivals.files import ExposureFacts, read_sidecars, read_states, sidecar_of
from ppdaemon.node.arrivals.index import Recent
from ppdaemon.node.arrivals.pending import Abandon, Deliver, FileId, FileState, PendingRaw, Recheck
from ppdaemon.node.arrivals.roots import RawPath, Sighting
from ppdaemon.node.arrivals.threads import FileThreads
from ppdaemon.raws.path import RawName, sidecar_path
from ppdaemon.reports import RefusedRaw

__all__ = ("READERS", "RawCompletion", "until_concluded")

READERS = 4
"""Threads, and tasks, that check the files of one root."""
AT_ONCE = 20
"""Files in one batch: some 3 ms of a thread, and 1 ms of the event loop. The first file of a batch waits for
the last one."""
MAX_PENDING = 40_000
"""Raws that are not complete, 0.7 kB each; ten exposures of 205 detectors are 2050."""
MAX_QUEUED = 25_000
"""Queued files above which surveys pause: enough for a hundred exposures found at
once and for the kernel's queue of 16,384 events."""
FLOOD_QUEUED = 1000
"""Queued files above which only one task of a root checks files while sightings continue: threads
share one interpreter, and finding files is more urgent."""
CALM_S = 0.05
"""Time without a sighting after which the other tasks continue."""
HELP_S = 0.03
"""Time for one batch after which the other tasks of a root check files, too: its filesystem is slow, or
there are many. While raws arrive one by one, each task would pass one file to its thread and back, which
costs as much as the check."""
MANY_QUEUED = 210
"""Queued files above which they check files at any time: more than one exposure has."""
MAX_DELIVERED = 200_000
"""Keys of delivered raws that are remembered: almost 1000 exposures of 205 detectors."""
MAX_REFUSED = 50
"""Refused raws that `ppctl` shows."""
HANGING_PAUSE_S = 1.0
"""Pause before a file is checked again whose filesystem did not respond."""

type _Key = tuple[str, int, int | None]
"""Instrument, exposure, detector; `None` for a file that holds all detectors."""
type _ExposureKey = tuple[str, int, str]
"""Instrument, exposure, raw root."""


@dataclass(eq=False)
class RawCompletion:
    """Checks raws until they are complete, and delivers each once.

    Files are read in the `threads` of their root. A survey may find a file again
    within `remember_s`. `on_overflow` is called when a raw is dropped; `same_clock`
    returns whether the time stamps below a root come from this host's clock. `served` are the
    detectors of this node by instrument: a file that holds all is delivered for each of them.
    """

    threads: Mapping[str, FileThreads]
    exposures: ExposureFactsCache
    clock: Clock
    counts: ErrorCounts
    remember_s: float
    deliver: Callable[[Raw], None]
    spawn: Callable[[Coroutine[Any, Any, None]], object]
    on_overflow: Callable[[], None]
    same_clock: Callable[[str], bool]
    served: Mapping[str, Collection[int]]

    def __post_init__(self) -> None:
        self.latencies = Latencies()
        """Latency of each source."""
        self.refused: deque[RefusedRaw] = deque(maxlen=MAX_REFUSED)
        """Raws that were not delivered, the most recent at the end."""
        self.refused_by_kind: Counter[str] = Counter()
        self._pending: dict[_Key, PendingRaw] = {}
        self._timers: dict[_Key, asyncio.TimerHandle] = {}
        self._delivered: Recent[_Key] = Recent(2.0 * self.remember_s, MAX_DELIVERED)
        # A raw is known by its file: one that was replaced, or compressed to another file, is delivered.
        self._delivered_files: Recent[tuple[_Key, FileId]] = Recent(2.0 * self.remember_s, MAX_DELIVERED)
        self._queues = {root: _Queue() for root in self.threads}
        self._ungrouped: dict[_ExposureKey, deque[PendingRaw]] = {}
        """Complete raws of exposures with unknown group; the first is being read."""
        self._room = asyncio.Event()
        self._room.set()
        self._started_unix = self._unix()

    def start(self) -> None:
        """Start checking files."""
        for root in self._queues:
            for number in range(READERS):
                self.spawn(self._check_forever(root, helps=number > 0))

    def stop(self) -> None:
        """Cancel the checks that are due later."""
        for timer in self._timers.values():
            timer.cancel()

    async def room(self) -> None:
        """Wait while too many files are queued."""
        await self._room.wait()

    @property
    def checking(self) -> bool:
        """Whether files are being checked, or are to be checked now."""
        return any(queue.waiting or queue.under_way for queue in self._queues.values())

    def delivered(self, name: RawName) -> bool:
        """Return whether a raw was delivered recently."""
        return self._delivered.contains(_key(name), self.clock.mono())

    def take(self, sighting: Sighting, *, again: bool = False) -> PendingRaw | None:
        """Add a sighting of an image, to be delivered when it is complete; return its pending raw,
        `None` if there are too many. A file that was delivered is delivered only `again`.
        """
        key = _key(sighting.name)
        pending = self._pending.get(key)
        if pending is not None:
            pending.redeliver = pending.redeliver or again
            if pending.add_sighting(sighting, self._unix()):
                self._timers.pop(key).cancel()
                self._recheck(pending)
            return pending
        if len(self._pending) >= MAX_PENDING:
            self.counts.warn(
                "dropped", f"{len(self._pending)} raws are incomplete; one more is left to the next survey"
            )
            self.on_overflow()
            return None
        pending = self._pending[key] = PendingRaw.of(sighting, self.clock.mono(), self._unix())
        pending.known, pending.redeliver = self.delivered(sighting.name), again
        if not pending.known:
            self.latencies.sighted(sighting.source)
        self._queue(pending)
        return pending

    def expect_no_close(self, root: str) -> None:
        """Stop waiting for close events below a root, because events may have been lost."""
        for pending in self._pending.values():
            if pending.files[0].root == root:
                pending.expect_no_close()

    def take_stored(
        self,
        name: RawName,
        source: str,
        uri: str,
        facts: ExposureFacts,
        version: str = "",
        *,
        replaced: bool = False,
    ) -> None:
        """Deliver a raw in an object store, which needs no check, unless it was delivered before and not
        replaced since; raises BadMessage if header values are not valid.
        """
        if self.delivered(name) and not replaced:
            return
        raws = self._raws(name, uri, facts, version or None)
        self._delivered.add(_key(name), self.clock.mono())
        self.latencies.sighted(source)
        self.counts.count("delivered")
        for raw in raws:
            self.deliver(raw)

    def refuse(self, path: str, kind: str, reason: str) -> None:
        """Count, log and list a raw that is not delivered."""
        self.counts.warn(kind, reason)
        self.refused_by_kind[kind] += 1
        self.refused.append(RefusedRaw(path=path, kind=kind, reason=reason, seen_tai=self.clock.tai()))

    def _unix(self) -> float:
        return self.clock.tai() - TAI_MINUS_UTC_S

    # --- checks ---

    async def _check_forever(self, root: str, *, helps: bool) -> None:
        queue, threads = self._queues[root], self.threads[root]
        while True:
            batch = await (queue.take_as_helper() if helps else queue.take())
            if not self._room.is_set() and not self._is_busy():
                self._room.set()
            queue.under_way += 1
            try:
                # While a raw is CHECKING, sightings only mark it: none queues it twice.
                states = await threads.run(read_states, self._start_checks(root, batch))
            except TimeoutError:
                for pending in batch:
                    pending.timed_out()
                    self._pause(pending, HANGING_PAUSE_S)
                continue
            finally:
                queue.under_way -= 1
            same_clock = self.same_clock(root)
            for pending, state in zip(batch, states, strict=True):
                if isinstance(state, BadMessage):
                    self._conclude(pending, _refusal(state))
                else:
                    self._evaluate(pending, state, same_clock=same_clock)

    def _start_checks(
        self, root: str, batch: Collection[PendingRaw]
    ) -> list[tuple[tuple[RawPath, ...], bool, bool]]:
        orders = [pending.start_check() for pending in batch]
        # Of writers on other hosts the kernel knows nothing.
        local = self.same_clock(root)
        return [(files, structure, writers and local) for files, structure, writers in orders]

    def _evaluate(self, pending: PendingRaw, state: FileState, *, same_clock: bool) -> None:
        if pending.known:
            delivery = _key(pending.name), state.file_id
            now = self.clock.mono()
            if not pending.redeliver and (
                state.file is None or self._delivered_files.contains(delivery, now)
            ):
                self._end_known(pending, now)
                return
            pending.known = False
        changed_unix = max(state.modified_ns, state.changed_ns) / 1e9
        age_s = max(0.0, self._unix() - changed_unix) if same_clock and changed_unix else 0.0
        match pending.evaluate(state, self.clock.mono(), age_s):
            case Recheck(pause_s) if pause_s > 0.0:
                self._pause(pending, pause_s)
            case Recheck():
                pending.recheck()
                self._queues[pending.files[0].root].add_first(pending)
            case Abandon(kind, reason):
                self._conclude(pending, Abandon(kind, f"{pending.files[0].path}: {reason}"))
            case Deliver() as complete:
                self._find_group(pending, complete)

    def _end_known(self, pending: PendingRaw, now: float) -> None:
        """Drop a raw whose file was delivered before, unless it was reported again during its check."""
        if pending.conclude(delivered=False, mono=now):
            del self._pending[_key(pending.name)]
        else:
            self._queue(pending)

    def _pause(self, pending: PendingRaw, pause_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._timers[_key(pending.name)] = loop.call_later(pause_s, self._pause_ended, pending)

    def _pause_ended(self, pending: PendingRaw) -> None:
        del self._timers[_key(pending.name)]
        self._recheck(pending)

    def _recheck(self, pending: PendingRaw) -> None:
        pending.recheck()
        self._queue(pending)

    def _queue(self, pending: PendingRaw) -> None:
        self._queues[pending.files[0].root].add(pending)
        if self._is_busy():
            self._room.clear()

    def _is_busy(self) -> bool:
        return sum(len(queue.waiting) for queue in self._queues.values()) > MAX_QUEUED

    # --- the group ---

    def _find_group(self, pending: PendingRaw, complete: Deliver) -> None:
        """Deliver a complete raw when the group of its exposure is known; read one raw at a time."""
        if complete.facts is not None:
            self.exposures.count_group(pending.name, complete.facts)
        facts = self.exposures.cached(pending.name)
        if facts is not None:
            self._conclude_with(pending, facts, has_sidecar=complete.has_sidecar)
            return
        key = pending.name.instrument, pending.name.exposure, complete.file.root
        waiting = self._ungrouped.setdefault(key, deque())
        waiting.append(pending)
        if len(waiting) == 1:
            self.spawn(self._resolve_exposure(key))
        elif complete.has_sidecar and not _complete(waiting[0]).has_sidecar:
            # Otherwise all would wait until the first raw has its own sidecar.
            self.spawn(self.exposures.read_sidecar(pending.name, sidecar_of(complete.file)))

    async def _resolve_exposure(self, key: _ExposureKey) -> None:
        """Find the group of an exposure, deliver its raws, and refuse raws without a group."""
        waiting, threads = self._ungrouped[key], self.threads[key[2]]
        asked: PendingRaw | None = None
        try:
            while waiting:
                asked = waiting[0]
                file, since_mono = _complete(asked).file, asked.complete_mono
                facts = self.exposures.cached(asked.name) or await self._retry_hanging(
                    self.exposures.facts, asked.name, file, since_mono
                )
                # A group that only the path of this raw contains does not apply to the others.
                alike = self.exposures.cached(asked.name) is not None
                batch = [*itertools.islice(waiting, AT_ONCE if alike else 1)]
                # Sidecars may have arrived while the group was read.
                orders = [(_complete(each).file, _complete(each).facts is None) for each in batch]
                found = await self._retry_hanging(threads.run, read_sidecars, orders)
                # All are counted before the first is delivered: the others may have no group.
                for pending, (_, own) in zip(batch, found, strict=True):
                    if own is not None:
                        pending.complete = replace(_complete(pending), facts=own)
                        self.exposures.count_group(pending.name, own)
                for pending, (has_sidecar, _) in zip(batch, found, strict=True):
                    waiting.popleft()
                    known = self.exposures.cached(pending.name) or facts
                    self._conclude_with(pending, known, has_sidecar=has_sidecar)
        finally:
            del self._ungrouped[key]
            # An internal error with one raw must not block the others.
            for pending in waiting:
                if pending is not asked:
                    self._recheck(pending)

    async def _retry_hanging[T](self, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Call a function again while the filesystem hangs."""
        while True:
            try:
                return await ask(*args)
            except TimeoutError:
                await asyncio.sleep(HANGING_PAUSE_S)

    # --- the end ---

    def _conclude_with(self, pending: PendingRaw, facts: ExposureFacts | None, *, has_sidecar: bool) -> None:
        """Deliver a complete raw with the facts of its exposure, or refuse it without.

        Where its own header, or without a group there its sidecar, contradicts the facts of the
        exposure, the own group is used: one wrong sidecar must not assign all detectors wrongly.
        """
        complete, name = _complete(pending), pending.name
        path, own = complete.file.path, complete.facts
        # A misplaced file of another exposure stays with the visit of its path, which reports it as bad.
        obsid = name.obsid or (facts and facts.obsid)
        is_misplaced = own is not None and None not in (own.obsid, obsid) and own.obsid != obsid
        if own and facts and own.group != facts.group and name.group is None and not is_misplaced:
            text = f"{path}: its header or sidecar has the group {own.group!r}, other files of its exposure "
            with _about(name, own.group):
                self.counts.warn("contradiction", f"{text}have {facts.group!r}; its own group is used")
            facts = own
        try:
            if facts is None:
                raise BadMessage(f"{path}: no group in sidecar or header, not delivered", "no_group")
            raws = self._raws(name, path, facts, complete.file_id, has_sidecar=has_sidecar)
        except BadMessage as error:
            self._conclude(pending, _refusal(error))
        else:
            self._conclude(pending, raws)

    def _conclude(self, pending: PendingRaw, end: list[Raw] | Abandon) -> None:
        """Deliver or abandon a raw; remove it from the pending raws unless it was reported again."""
        delivered, now = not isinstance(end, Abandon), self.clock.mono()
        if not pending.conclude(delivered=delivered, mono=now):
            self._queue(pending)
            return
        pending.end = end
        del self._pending[_key(pending.name)]
        if isinstance(end, Abandon):
            with _about(pending.name, pending.name.group):
                self.refuse(pending.files[0].path, end.kind, end.reason)
            return
        # Before `deliver`: a sighting that it causes must not deliver the raw again.
        key = _key(pending.name)
        self._delivered.add(key, now)
        self._delivered_files.add((key, _complete(pending).file_id), now)
        self.counts.count("delivered" if _complete(pending).intact else "delivered_broken")
        if pending.changed_unix >= self._started_unix:
            self.latencies.delivered(pending.source, pending.latency_s)
        for raw in end:
            self.deliver(raw)

    def _raws(
        self,
        name: RawName,
        path: str,
        facts: ExposureFacts,
        file_id: FileId | str | None,
        *,
        has_sidecar: bool = False,
    ) -> list[Raw]:
        """Return the raw of a file's detector; of a file that holds all detectors, one for each that this
        node serves. Raises BadMessage if header values are not valid.
        """
        seen_tai = self.clock.tai()
        detectors = sorted(self.served[name.instrument]) if name.detector is None else [name.detector]
        try:
            return [
                Raw(
                    path=path,
                    sidecar=sidecar_path(path) if has_sidecar else None,
                    instrument=name.instrument,
                    group=facts.group,
                    detector=detector,
                    exposure=name.exposure,
                    snap=facts.snap,
                    snaps=facts.snaps,
                    seen_tai=seen_tai,
                    file_id=file_id,
                )
                for detector in detectors
            ]
        except pydantic.ValidationError as error:
            raise BadMessage(f"{path}: {error.errors()[0]['loc']} is not valid", "header") from None


class _Queue:
    """Raws to be checked, shared by the `READERS` tasks of a root."""

    def __init__(self) -> None:
        self.waiting: deque[PendingRaw] = deque()
        self.under_way = 0
        """Number of batches that are being checked."""
        self._filled = asyncio.Event()
        self._added_mono = 0.0
        self._taken_mono: float | None = None
        """When the first task has taken its batch; `None` while it waits for one."""

    def add(self, pending: PendingRaw) -> None:
        self.waiting.append(pending)
        self._added_mono = time.monotonic()
        self._filled.set()

    def add_first(self, pending: PendingRaw) -> None:
        """Add a raw whose check continues; it does not count as a new sighting."""
        self.waiting.appendleft(pending)
        self._filled.set()

    @property
    def is_flooded(self) -> bool:
        """Whether many raws are queued and more are being added."""
        return len(self.waiting) > FLOOD_QUEUED and time.monotonic() - self._added_mono < CALM_S

    async def take(self) -> list[PendingRaw]:
        """Wait for raws; return as many as one batch may have."""
        self._taken_mono = None
        await self._until_filled()
        self._taken_mono = time.monotonic()
        return self._first(AT_ONCE)

    async def take_as_helper(self) -> list[PendingRaw]:
        """Wait for raws that the first task leaves for too long; return a share of them."""
        while self.is_flooded or not (self.waiting and self._is_late):
            await asyncio.sleep(CALM_S if self.is_flooded else HELP_S)
            await self._until_filled()
        return self._first(min(AT_ONCE, -(-len(self.waiting) // READERS)))

    @property
    def _is_late(self) -> bool:
        if len(self.waiting) > MANY_QUEUED:
            return True
        return self._taken_mono is not None and time.monotonic() - self._taken_mono >= HELP_S

    async def _until_filled(self) -> None:
        while not self.waiting:
            self._filled.clear()
            await self._filled.wait()

    def _first(self, most: int) -> list[PendingRaw]:
        return [self.waiting.popleft() for _ in range(min(most, len(self.waiting)))]


def _complete(pending: PendingRaw) -> Deliver:
    assert pending.complete is not None
    return pending.complete


def _refusal(error: BadMessage) -> Abandon:
    return Abandon(f"refused.{error.kind}", str(error))


def _key(name: RawName) -> _Key:
    return name.instrument, name.exposure, name.detector


def _about(name: RawName, group: str | None) -> AbstractContextManager[None]:
    """Add a raw, and its group if that is known, to the lines that are logged within."""
    return log.about(instrument=name.instrument, group=group, detector=name.detector, exposure=name.exposure)


async def until_concluded(pending: PendingRaw) -> None:
    """Wait until a raw is delivered or abandoned."""
    concluded = asyncio.Event()
    pending.when_concluded(concluded.set)
    await concluded.wait()
