# SPDX-License-Identifier: BSD-3-Clause
"""Finds the files of one raw root by watch, polling and survey, and tests whether these work.

When its filesystem hangs, disappears or is mounted from another device, all
observers are replaced, and a survey finds every file again.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from ppdaemon.clock import Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.mounts import Mount, mount_of
from ppdaemon.node.arrivals.counts import ErrorCounts
from ppdaemon.node.arrivals.roots import RawRoot, RawRoots, Sighting
from ppdaemon.node.arrivals.threads import FileThreads
from ppdaemon.node.arrivals.walk import RawSearch, Survey, WalkTime
from ppdaemon.node.arrivals.watch import FolderWatch
from ppdaemon.node.arrivals.watchmethods import LOCAL, methods_for
from ppdaemon.raws.path import ExpectedRaws

__all__ = ("RootSource", "SourceContext", "SourceState")

THREADS = 4
"""One each for the survey, the polling, the canary, and a watch that is being closed."""
STUCK_S = 5.0
"""A filesystem call that takes longer is reported to the operator."""
ABANDON_S = 10.0
"""A filesystem call that takes longer is abandoned."""
CANARY_S = 1.0
"""Interval of canary tests."""
CANARY_STEPS, CANARY_STEP_S = 12, 0.25
"""How long its event may take: 3 s. In steps, because the whole daemon may have been
stopped meanwhile."""
SURVEY_SHARE = 20.0
"""Pause after a survey as a multiple of its CPU time: surveys take at most 5 % of a
core, for any number of folders."""
LONGEST_PAUSE_S = 60.0
"""Limit of that pause."""
FAILED_PAUSE_S = 5.0
"""A failed survey takes no CPU time, and is soon repeated."""
SLICE_S = 0.02
"""Time in a thread after which the files found so far go to the event loop."""
SLICE_FILES = 500
"""Number of files after which they go to the event loop, which must not be blocked for long."""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Objects that the sources of all roots share."""

    roots: RawRoots
    config: ArrivalsConfig
    clock: Clock
    counts: ErrorCounts
    """Counts and logs problems."""
    on_sighting: Callable[[Sighting], None]
    """Receives each sighting."""
    wait_for_room: Callable[[], Awaitable[None]]
    """Waits while too many sighted files are queued."""
    on_events_lost: Callable[[str], None]
    """Called with a root when its events were lost."""
    expected: Callable[[], Sequence[ExpectedRaws]]
    """Returns the raws that open visits need."""
    canaries: Path | None
    """A folder outside all raw roots, for the canary files."""


class SourceState(NamedTuple):
    """The state of one source."""

    name: str
    live: bool
    note: str
    """Why it is not live, or other information for the operator."""


@dataclass(frozen=True, slots=True)
class _Observers:
    """The observers of the filesystem that is mounted now."""

    mount: Mount
    survey: Survey
    search: RawSearch
    watch: FolderWatch | None


class RootSource:
    """Watches, polls and surveys one raw root.

    New folders are first watched, then listed: in this order no file is missed,
    and the receiver drops duplicates. `reading` are the threads in which the
    root's files are read.
    """

    def __init__(self, root: RawRoot, number: int, context: SourceContext, reading: FileThreads):
        self._root = root
        self._context = context
        self._clock = context.clock
        self._canary = None if context.canaries is None else context.canaries / f"canary-{number}"
        self._reading = reading
        # Separate from `reading`, whose threads may all be busy with files.
        self._threads = FileThreads(THREADS, context.clock.mono)
        self._inotify, self._poll, self._scan = (
            f"{kind} {root.path}" for kind in ("inotify", "poll", "scan")
        )
        self._observers: _Observers | None = None
        self._methods = methods_for(root.watch, "")
        self._usual_mount: Mount | None = None
        self._wake = asyncio.Event()
        self._survey_requested = True
        self._new_folders: set[str] = set()
        self._problem = "not scanned yet"
        self._poll_problem = ""
        self._canary_problem = ""
        self._survey_cost_s = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Watch, poll and survey until canceled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._survey_forever())
            tasks.create_task(self._poll_forever())
            tasks.create_task(self._test_watch_forever())
            tasks.create_task(self._abandon_forever())

    async def stop(self) -> None:
        """Close the watch and the threads."""
        self._close_watch()
        try:
            await asyncio.gather(*self._closing)
        finally:
            self._threads.close()

    def relist(self) -> None:
        """Make the next survey list all folders again, because sighted files were dropped."""
        if self._observers is not None:
            self._observers.survey.relist()

    @property
    def is_local(self) -> bool:
        """Whether all writes go through this host's kernel, as far as is known."""
        return self._observers is not None and self._observers.mount.kind in LOCAL

    def states(self) -> tuple[SourceState, ...]:
        """Return the states of the survey and, where used, of the watch and the polling."""
        problem = self._stuck() or self._problem
        states = []
        if self._methods.watch:
            trouble = problem or self._watch_problem()
            states.append(SourceState(self._inotify, not trouble, trouble))
        if self._polls:
            trouble = problem or self._poll_problem
            states.append(SourceState(self._poll, not trouble, trouble or self._polling_note()))
        seen = problem or (self._observers.survey.problem if self._observers is not None else "")
        return (*states, SourceState(self._scan, not problem, seen))

    @property
    def _polls(self) -> bool:
        return self._methods.poll or bool(self._watch_problem())

    def _stuck(self) -> str:
        stuck_s = max(self._threads.stuck_s(), self._reading.stuck_s())
        return f"the filesystem has not responded for {stuck_s:.0f} s" if stuck_s > STUCK_S else ""

    def _watch_problem(self) -> str:
        if self._observers is None or self._observers.watch is None:
            return ""
        return self._canary_problem or self._observers.watch.problem

    def _polling_note(self) -> str:
        if self._observers is None or self._root.watch == "poll":
            return ""
        if not self._methods.poll:
            return "polling because the watch does not work"
        return f"polling because the filesystem type is {self._observers.mount.kind}"

    async def _abandon_forever(self) -> None:
        while True:
            await asyncio.sleep(CANARY_S)
            for threads in (self._threads, self._reading):
                threads.abandon_calls(ABANDON_S)

    # --- the survey ---

    async def _survey_forever(self) -> None:
        due = self._clock.mono()
        while True:
            # Before the requests are read: one that comes during the survey wakes the next turn.
            self._wake.clear()
            if self._survey_requested or self._clock.mono() >= due:
                # Before the survey: a request during it means that it may have missed something.
                self._survey_requested = False
                self._survey_cost_s = 0.0
                succeeded = await self._survey()
                due = self._clock.mono() + self._pause_s(succeeded)
            elif self._new_folders and self._observers is not None:
                await self._explore(self._observers)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, due - self._clock.mono()))

    def _pause_s(self, succeeded: bool) -> float:
        """Return the pause until the next survey, seconds."""
        scan_s = self._context.config.scan_s
        if not succeeded:
            return min(scan_s, FAILED_PAUSE_S)
        return max(scan_s, min(SURVEY_SHARE * self._survey_cost_s, LONGEST_PAUSE_S))

    async def _survey(self) -> bool:
        """List all folders that may contain new files; return whether that succeeded."""
        try:
            mount = await self._threads.run(mount_of, self._root.path)
            observers = self._observers
            if observers is None or observers.mount.filesystem != mount.filesystem:
                observers = self._replace_observers(mount)
            survey, watch = observers.survey, observers.watch
            if watch is not None:
                await self._threads.run(watch.start)
            await self._collect(survey.survey(WalkTime.by(self._clock)), observers)
            # After the survey, which has watched the folders that are still needed.
            if watch is not None:
                await self._threads.run(watch.watch_only, survey.folders)
        except OSError as error:
            self._failed(error)
        else:
            self._problem = self._mount_problem(mount)
            return True
        return False

    async def _explore(self, observers: _Observers) -> None:
        # Taken before the first `await`: folders that are reported meanwhile are explored next.
        folders, self._new_folders = self._new_folders, set()
        try:
            await self._collect(observers.survey.explore(folders, WalkTime.by(self._clock)))
        except OSError as error:
            self._failed(error)
            self._request_survey()

    async def _collect(self, found: Iterator[list[Sighting]], surveying: _Observers | None = None) -> None:
        """Report the files that a walk finds; between the slices of a survey, explore new folders."""
        more = True
        while more:
            sightings, more, cost_s = await self._threads.run(_slice, found)
            for sighting in sightings:
                self._context.on_sighting(sighting)
            if surveying is not None:
                self._survey_cost_s += cost_s
                while surveying.survey.refusals:
                    self._warn_refused(surveying.survey.refusals.popleft(), self._scan)
                if self._new_folders:
                    await self._explore(surveying)
            await self._context.wait_for_room()

    def _warn_refused(self, error: BadMessage, source: str) -> None:
        self._context.counts.warn(f"refused.{error.kind}", f"{source}: {error}")

    def _failed(self, error: OSError) -> None:
        self._problem = self._describe(error)
        self._context.on_events_lost(self._root.path)
        # Everything is watched and listed again when the root is back. The old observers are
        # not reused: a thread that hangs may still be using them.
        self._close_watch()
        self._observers = None

    def _describe(self, error: OSError) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._root.path}: the filesystem does not respond"
        where = "" if str(error.filename) == str(self._root.path) else f"{error.filename}: "
        return f"{where}{error.strerror}"

    def _mount_problem(self, mount: Mount) -> str:
        """Return the problem of the root's current mount, or an empty text."""
        usual = self._usual_mount
        if usual is not None and len(mount.point) < len(usual.point):
            return f"{usual.point} is not mounted any more"
        if usual is not None and mount.read_only and not usual.read_only:
            return f"the filesystem at {mount.point} has become read-only"
        self._usual_mount = mount
        return ""

    def _replace_observers(self, mount: Mount) -> _Observers:
        """Replace the observers of the root; the next survey finds all files again."""
        self._close_watch()
        self._methods = methods_for(self._root.watch, mount.kind)
        watch = None
        if self._methods.watch:
            watch = FolderWatch(asyncio.get_running_loop(), self, self._canary)
        survey = Survey(
            self._context.roots,
            self._root,
            self._scan,
            self._context.config.remember_s,
            watch.watch if watch is not None else lambda folder, identity: None,
        )
        self._observers = _Observers(mount, survey, self._new_search(), watch)
        return self._observers

    def _new_search(self) -> RawSearch:
        return RawSearch(self._context.roots, self._root, self._poll, self._context.config.remember_s)

    def _close_watch(self) -> None:
        """Close the watch, if there is one, in a thread: it blocks if the filesystem hangs."""
        if self._observers is None or self._observers.watch is None:
            return
        task = asyncio.create_task(self._close(self._observers.watch))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, watch: FolderWatch) -> None:
        with contextlib.suppress(TimeoutError):  # abandoned: its thread hangs
            await self._threads.run(watch.stop)

    def _request_survey(self) -> None:
        self._survey_requested = True
        self._wake.set()

    # --- events from the watch ---

    def admits(self, folder: str) -> bool:
        """Return whether a new folder is to be watched; called in the thread that reads inotify."""
        observers = self._observers
        return observers is not None and observers.survey.admits(folder)

    def on_file(self, path: str, *, finished: bool) -> None:
        """Report a file that was created, or that is finished."""
        try:
            located = self._context.roots.locate(path)
        except BadMessage as error:
            self._warn_refused(error, self._inotify)
            return
        if located is not None:
            self._context.on_sighting(
                Sighting(self._inotify, *located, confirmed=finished, close_expected=not finished)
            )

    def on_folder(self, path: str) -> None:
        """Request the exploration of a new folder."""
        self._new_folders.add(path)
        self._wake.set()

    def on_events_lost(self, kind: str) -> None:
        """Count lost events, and request a survey."""
        text = f"{self._inotify}: events were lost ({kind}); surveying the whole root"
        self._context.counts.warn(f"watch.{kind}", text)
        self._context.on_events_lost(self._root.path)
        self._request_survey()

    # --- polling ---

    async def _poll_forever(self) -> None:
        while True:
            poll_s = self._context.config.poll_s
            # While inotify works this only waits for its end, which is found once in `CANARY_S`.
            await asyncio.sleep(poll_s if self._polls else max(poll_s, CANARY_S))
            observers = self._observers
            if observers is None or not self._polls:
                continue
            expected = self._context.expected()
            if not expected:
                self._poll_problem = ""  # from an older poll: the survey reports newer problems
                continue
            search, live = observers.search, observers.survey.live
            try:
                await self._collect(search.poll(expected, live, WalkTime.by(self._clock)))
            except OSError as error:
                self._poll_problem = self._describe(error)
                if self._observers is observers:
                    # Not reused: a thread that hangs may still be using it.
                    self._observers = replace(observers, search=self._new_search())
            else:
                self._poll_problem = search.problem

    # --- tests of the watch ---

    async def _test_watch_forever(self) -> None:
        while True:
            await asyncio.sleep(CANARY_S)
            observers = self._observers
            if observers is None or observers.watch is None or not observers.watch.reading:
                continue
            if await self._canary_works(observers.watch):
                self._canary_problem = ""
            elif self._observers is observers:  # not replaced during the test
                self._canary_problem = "inotify events do not arrive; restarting the watch"
                self._context.counts.warn("watch.silent", f"{self._inotify}: {self._canary_problem}")
                self._context.on_events_lost(self._root.path)
                self._replace_observers(observers.mount)
                self._request_survey()

    async def _canary_works(self, watch: FolderWatch) -> bool:
        """Touch the canary file, and return whether inotify reports it."""
        try:
            await self._threads.run(watch.touch)
        except OSError as error:
            why = error.strerror or error
            text = f"{self._canary}: {why}: cannot test whether inotify works; make this folder writable"
            self._context.counts.warn("no_canary", text)
        for _ in range(CANARY_STEPS):
            if not watch.alive:
                return False
            if watch.canary_reported:
                return True
            await asyncio.sleep(CANARY_STEP_S)
        return False


def _slice(found: Iterator[list[Sighting]]) -> tuple[list[Sighting], bool, float]:
    """Return what is found within `SLICE_S`, whether there is more, and the CPU time used, seconds."""
    sightings: list[Sighting] = []
    until, began = time.monotonic() + SLICE_S, time.thread_time()
    for portion in found:
        sightings += portion
        if len(sightings) >= SLICE_FILES or time.monotonic() >= until:
            return sightings, True, time.thread_time() - began
    return sightings, False, time.thread_time() - began
