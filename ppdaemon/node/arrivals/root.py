# SPDX-License-Identifier: BSD-3-Clause
"""One raw root: the watch on it, the looks at it, and whether they work.

A root has threads of its own: one for surveys, one for polling, and those in
which its files are read. When its filesystem hangs, vanishes or comes back
from another device, everything that looks at it is made anew, and all is
looked through again.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppdaemon.clock import Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.mounts import Mount, mount_of
from ppdaemon.node.arrivals.mounts import LOCAL, Means, means_for
from ppdaemon.node.arrivals.poll import Poller
from ppdaemon.node.arrivals.pool import FilePool
from ppdaemon.node.arrivals.scan import Moment, Scanner
from ppdaemon.node.arrivals.tally import Tally
from ppdaemon.node.arrivals.tree import RawRoot, RawTree, Sighting
from ppdaemon.node.arrivals.watch import FileNews, FolderNews, FolderWatch, LostNews, News
from ppdaemon.raws.path import Expected

__all__ = ("RootSource", "SourceState", "Surroundings")

STUCK_S = 5.0
"""A look at the filesystem that lasts longer is told to the operator."""
GIVE_UP_S = 10.0
"""One that lasts longer is given up."""
CANARY_S = 1.0
"""Interval of touching the canary."""
CANARY_STEPS, CANARY_STEP_S = 12, 0.25
"""How long its news may take. Steps, because the whole daemon may have been
stopped for a while."""
SURVEY_SHARE = 20.0
"""A survey is followed by a pause of so many times its CPU time: it costs 5 %
of a core at the most, however many folders there are."""
LONGEST_PAUSE_S = 60.0
FAILED_PAUSE_S = 5.0
"""One that failed costs nothing, and is not waited for longer than this."""
SLICE_S = 0.02
"""Work in a thread after which the loop gets what was found."""
SLICE_FILES = 500


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the sources of all roots share."""

    tree: RawTree
    config: ArrivalsConfig
    clock: Clock
    tally: Tally
    """Counts what goes wrong."""
    tell: Callable[[Sighting], None]
    """Gets each sighting."""
    room: Callable[[], Awaitable[None]]
    """Returns when not too much waits that was told before."""
    lost: Callable[[str], None]
    """To be called when what the kernel told of a root was lost."""
    expected: Callable[[], Sequence[Expected]]
    """Returns what is waited for."""
    canaries: Path | None
    """A folder of our own, outside of all raw roots."""


@dataclass(frozen=True, slots=True)
class SourceState:
    """How one source is."""

    name: str
    live: bool
    note: str
    """Why it is not, or what else to know."""


@dataclass(frozen=True, slots=True)
class _Eyes:
    """What looks at the filesystem that is there now."""

    mount: Mount
    scanner: Scanner
    poller: Poller
    watch: FolderWatch | None


class RootSource:
    """Watches, polls and scans one raw root.

    New folders are first watched, then listed, and whatever both find is told
    twice: the receiver drops duplicates. In this order nothing is missed.

    Parameters
    ----------
    root : `~ppdaemon.node.arrivals.tree.RawRoot`
        The root.
    number : `int`
        Its place among the roots.
    shared : `Surroundings`
        What it shares with the other roots.
    reading : `~ppdaemon.node.arrivals.pool.FilePool`
        The threads in which its files are read.
    """

    def __init__(self, root: RawRoot, number: int, shared: Surroundings, reading: FilePool):
        self._root = root
        self._shared = shared
        self._clock = shared.clock
        self._canary = None if shared.canaries is None else shared.canaries / f"canary-{number}"
        self._reading = reading
        self._surveying, self._polling, self._own = (FilePool(1, shared.clock.mono) for _ in range(3))
        self._names = {kind: f"{kind} {root.path}" for kind in ("inotify", "poll", "scan")}
        self._eyes: _Eyes | None = None
        self._means = means_for(root.watch, "")
        self._usual_mount: Mount | None = None
        self._wake = asyncio.Event()
        self._survey_wanted = True
        self._new_folders: set[str] = set()
        self._problem = "not scanned yet"
        self._poll_problem = ""
        self._silent = ""
        self._survey_cost_s = 0.0
        self._retiring: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Watch, poll and scan until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._survey_forever())
            tasks.create_task(self._poll_forever())
            tasks.create_task(self._prove_forever())

    async def stop(self) -> None:
        """End the watch."""
        if self._eyes is not None and self._eyes.watch is not None:
            self._retire(self._eyes.watch)
        try:
            await asyncio.gather(*self._retiring)
        finally:
            for pool in (self._surveying, self._polling, self._own):
                pool.close()

    def look_again(self) -> None:
        """Have everything listed again: what was told could not be taken."""
        if self._eyes is not None:
            self._eyes.scanner.unsettle()

    @property
    def means(self) -> Means:
        """How raws are found here at present (`~ppdaemon.node.arrivals.mounts.Means`)."""
        return Means(self._means.watch, self._means.poll or bool(self._watch_problem()))

    @property
    def is_local(self) -> bool:
        """Whether only this host writes there, as far as is known (`bool`)."""
        return self._eyes is not None and self._eyes.mount.kind in LOCAL

    def states(self) -> tuple[SourceState, ...]:
        """Tell how the sources are.

        Returns
        -------
        states : `tuple` [`SourceState`]
            The watch and the polling, if there are to be, and the scan.
        """
        problem = self._stuck() or self._problem
        seen = problem or (self._eyes.scanner.problem if self._eyes is not None else "")
        states = [SourceState(self._names["scan"], not problem, seen)]
        if self.means.poll:
            trouble = problem or self._poll_problem
            states.insert(0, SourceState(self._names["poll"], not trouble, trouble or self._why_polled()))
        if self.means.watch:
            trouble = problem or self._watch_problem()
            states.insert(0, SourceState(self._names["inotify"], not trouble, trouble))
        return tuple(states)

    def _stuck(self) -> str:
        stuck_s = max(pool.stuck_s() for pool in (self._surveying, self._polling, self._reading))
        return f"the filesystem has not answered for {stuck_s:.0f} s" if stuck_s > STUCK_S else ""

    def _watch_problem(self) -> str:
        if not self._means.watch or self._eyes is None or self._eyes.watch is None:
            return ""
        return self._silent or self._eyes.watch.problem

    def _why_polled(self) -> str:
        if self._eyes is None or self._root.watch == "poll":
            return ""
        if not self._means.poll:
            return "because the watch does not work"
        return f"because this is {self._eyes.mount.kind}"

    # --- looking through the folders ---

    async def _survey_forever(self) -> None:
        due = self._clock.mono()
        while True:
            self._wake.clear()
            if self._survey_wanted or self._clock.mono() >= due:
                self._survey_wanted = False
                self._survey_cost_s = 0.0
                succeeded = await self._survey()
                due = self._clock.mono() + self._pause_s(succeeded)
            elif self._new_folders and self._eyes is not None:
                await self._explore(self._eyes)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, due - self._clock.mono()))

    def _pause_s(self, succeeded: bool) -> float:
        """Return how long after a survey the next one is due."""
        scan_s = self._shared.config.scan_s
        if not succeeded:
            return min(scan_s, FAILED_PAUSE_S)
        return max(scan_s, min(SURVEY_SHARE * self._survey_cost_s, LONGEST_PAUSE_S))

    async def _survey(self) -> bool:
        """Look through all folders in which something new can be; tell
        whether that was possible.
        """
        try:
            mount = await self._surveying.run(mount_of, self._root.path)
            eyes = self._eyes
            if eyes is None or eyes.mount.filesystem != mount.filesystem:
                eyes = await self._look_anew(mount)
            if eyes.watch is not None:
                await self._own.run(eyes.watch.start)
            await self._collect(self._surveying, eyes.scanner.survey(Moment.by(self._clock)), eyes)
            if eyes.watch is not None:
                await self._surveying.run(eyes.watch.keep, eyes.scanner.folders)
        except TimeoutError:
            self._problem = f"{self._root.path}: the filesystem does not answer"
            self._shared.lost(self._root.path)
            if self._eyes is not None and self._eyes.watch is not None:
                self._retire(self._eyes.watch)
            self._eyes = None
        except OSError as error:
            self._problem = f"{error.filename}: {error.strerror}"
            self._shared.lost(self._root.path)
            if self._eyes is not None and self._eyes.watch is not None:
                await self._own.run(self._eyes.watch.keep, ())
        else:
            self._problem = self._lacking(mount)
            return True
        return False

    async def _explore(self, eyes: _Eyes) -> None:
        folders, self._new_folders = self._new_folders, set()
        try:
            await self._collect(self._surveying, eyes.scanner.explore(folders, Moment.by(self._clock)), None)
        except OSError:
            self._survey_wanted = True  # which says what is the matter
            self._wake.set()

    async def _collect(
        self, pool: FilePool, found: Iterator[list[Sighting]], surveyor: _Eyes | None = None
    ) -> None:
        """Tell what a look finds, and look into new folders in between."""
        more = True
        while more:
            sightings, more, cost_s = await pool.run(_slice, found)
            for sighting in sightings:
                self._shared.tell(sighting)
            if surveyor is not None:
                self._survey_cost_s += cost_s
                for error in surveyor.scanner.refusals():
                    self._shared.tally.complain(f"refused.{error.kind}", f"{self._names['scan']}: {error}")
                if self._new_folders:
                    await self._explore(surveyor)
            await self._shared.room()

    def _lacking(self, mount: Mount) -> str:
        """Return what is wrong with where the root lies now, if anything."""
        usual = self._usual_mount
        if usual is not None and len(mount.point) < len(usual.point):
            return f"{usual.point} is not mounted any more"
        if usual is not None and mount.read_only and not usual.read_only:
            return f"the filesystem at {mount.point} has become read-only"
        self._usual_mount = mount
        return ""

    async def _look_anew(self, mount: Mount) -> _Eyes:
        """Make anew what looks at the root; the next survey finds everything."""
        if self._eyes is not None and self._eyes.watch is not None:
            self._retire(self._eyes.watch)
        self._means = means_for(self._root.watch, mount.kind)
        watch = None
        if self._means.watch:
            watch = FolderWatch(asyncio.get_running_loop(), self._heard, self._wanted, self._canary)
        scanner = Scanner(
            self._shared.tree,
            self._root,
            self._names["scan"],
            self._shared.config.remember_s,
            watch.watch if watch is not None else lambda folder, identity: None,
        )
        self._eyes = _Eyes(mount, scanner, self._new_poller(), watch)
        return self._eyes

    def _new_poller(self) -> Poller:
        return Poller(self._shared.tree, self._root, self._names["poll"], self._shared.config.remember_s)

    def _retire(self, watch: FolderWatch) -> None:
        """End a watch, which may take as long as the filesystem likes."""
        closer = FilePool(1, self._clock.mono)

        async def close() -> None:
            try:
                await closer.run(watch.stop)
            finally:
                closer.close()

        task = asyncio.create_task(close())
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    # --- the kernel's news ---

    def _wanted(self, folder: str) -> bool:
        """Tell whether a new folder is to be watched; in the reader's thread."""
        return self._eyes is not None and self._eyes.scanner.admits(folder)

    def _heard(self, news: News) -> None:
        match news:
            case FileNews(path, finished):
                try:
                    located = self._shared.tree.locate(path)
                except BadMessage as error:
                    name = self._names["inotify"]
                    self._shared.tally.complain(f"refused.{error.kind}", f"{name}: {error}")
                else:
                    if located is not None:
                        name = self._names["inotify"]
                        self._shared.tell(Sighting(name, *located, confirmed=finished, begun=not finished))
            case FolderNews(path):
                self._new_folders.add(path)
                self._wake.set()
            case LostNews(kind):
                self._shared.tally.complain(
                    f"watch.{kind}", f"{self._names['inotify']}: {kind}: everything is looked through"
                )
                self._shared.lost(self._root.path)
                self._survey_wanted = True
                self._wake.set()
            case unexpected:
                raise AssertionError(unexpected)

    # --- polling ---

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(self._shared.config.poll_s)
            eyes = self._eyes
            if eyes is None or not self.means.poll:
                continue
            expected = self._shared.expected()
            if not expected:
                self._poll_problem = ""  # what the survey says is newer
                continue
            try:
                look = eyes.poller.look(expected, eyes.scanner.live, Moment.by(self._clock))
                await self._collect(self._polling, look)
            except TimeoutError:
                self._poll_problem = f"{self._root.path}: the filesystem does not answer"
                if self._eyes is eyes:
                    self._eyes = replace(eyes, poller=self._new_poller())
            except OSError as error:
                self._poll_problem = f"{error.filename}: {error.strerror}"
            else:
                self._poll_problem = ""

    # --- whether it works ---

    async def _prove_forever(self) -> None:
        while True:
            await asyncio.sleep(CANARY_S)
            for pool in (self._surveying, self._polling, self._reading):
                pool.give_up(GIVE_UP_S)
            eyes = self._eyes
            if eyes is None or eyes.watch is None or not eyes.watch.reading:
                continue
            if await self._sings(eyes.watch):
                self._silent = ""
            elif self._eyes is eyes:
                self._silent = "the kernel's news do not come through; watching anew"
                self._shared.tally.complain("watch.silent", f"{self._names['inotify']}: {self._silent}")
                self._shared.lost(self._root.path)
                await self._look_anew(eyes.mount)
                self._survey_wanted = True
                self._wake.set()

    async def _sings(self, watch: FolderWatch) -> bool:
        """Touch the canary and wait for the kernel's news of it."""
        try:
            await self._own.run(watch.touch)
        except OSError as error:
            self._shared.tally.complain(
                "no_canary", f"{self._canary}: {error.strerror}: nothing proves that inotify works"
            )
        for _ in range(CANARY_STEPS):
            if not watch.alive:
                return False
            if watch.singing:
                return True
            await asyncio.sleep(CANARY_STEP_S)
        return False


def _slice(found: Iterator[list[Sighting]]) -> tuple[list[Sighting], bool, float]:
    """Take what is found within a short while; tell whether there is more,
    and the CPU time of it, s.
    """
    sightings: list[Sighting] = []
    until, began = time.monotonic() + SLICE_S, time.thread_time()
    for portion in found:
        sightings += portion
        if len(sightings) >= SLICE_FILES or time.monotonic() >= until:
            return sightings, True, time.thread_time() - began
    return sightings, False, time.thread_time() - began
