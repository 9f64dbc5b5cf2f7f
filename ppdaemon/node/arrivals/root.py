# SPDX-License-Identifier: BSD-3-Clause
"""One raw root: the watch on it and the scan behind the watch."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping

from ppdaemon.clock import TAI_MINUS_UTC_S, Clock
from ppdaemon.config import ArrivalsConfig
from ppdaemon.errors import BadMessage
from ppdaemon.node.arrivals.pool import FilePool
from ppdaemon.node.arrivals.scan import Scanner
from ppdaemon.node.arrivals.tally import Tally
from ppdaemon.node.arrivals.tree import RawTree, Sighting
from ppdaemon.node.arrivals.watch import FileNews, FolderNews, FolderWatch, News
from ppdaemon.reports import ArrivalSource

__all__ = ("RootSource",)

STUCK_S = 5.0
"""A look at the filesystem that lasts longer is told to the operator."""


class RootSource:
    """Watches and scans one raw root.

    New folders are first watched, then scanned, and whatever both find is
    told twice: the receiver drops duplicates. In this order nothing is missed.

    Parameters
    ----------
    tree : `~ppdaemon.node.arrivals.tree.RawTree`
        What to look for.
    root : `str`
        One of its roots.
    config : `~ppdaemon.config.ArrivalsConfig`
        Whether to watch, and how often to scan.
    clock : `~ppdaemon.clock.Clock`
        The time.
    pool : `~ppdaemon.node.arrivals.pool.FilePool`
        Where blocking calls run.
    tell : `~collections.abc.Callable`
        Called with each sighting.
    tally : `~ppdaemon.node.arrivals.tally.Tally`
        Counts what is refused.
    """

    def __init__(
        self,
        tree: RawTree,
        root: str,
        config: ArrivalsConfig,
        clock: Clock,
        pool: FilePool,
        tell: Callable[[Sighting], None],
        tally: Tally,
    ):
        self._tree = tree
        self._clock = clock
        self._pool = pool
        self._tell = tell
        self._tally = tally
        self._scan_s = config.scan_s
        self._watch_name = f"inotify {root}"
        self._scan_name = f"scan {root}"
        self._scanner = Scanner(tree, root, self._scan_name, config.remember_s)
        self._watch = FolderWatch(asyncio.get_running_loop(), self._heard) if config.inotify else None
        self._wake = asyncio.Event()
        self._survey_wanted = True
        self._new_folders: set[str] = set()
        self._problem = "not scanned yet"

    async def run(self) -> None:
        """Watch and scan until cancelled."""
        due = self._clock.mono()
        while True:
            self._wake.clear()
            folders, self._new_folders = self._new_folders, set()
            if folders:
                await self._collect(self._scan_folders, folders)
            if self._survey_wanted or self._clock.mono() >= due:
                self._survey_wanted = False
                await self._collect(self._survey)
                due = self._clock.mono() + self._scan_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), due - self._clock.mono())

    async def stop(self) -> None:
        """End the watch."""
        if self._watch is not None:
            # All threads of the common pool may be stuck in the filesystem.
            closer = FilePool(1, self._clock.mono)
            try:
                await closer.run(self._watch.stop)
            finally:
                closer.close()

    def report(self, files: Mapping[str, int]) -> tuple[ArrivalSource, ...]:
        """Tell how the watch and the scan are.

        Parameters
        ----------
        files : `~collections.abc.Mapping` [`str`, `int`]
            Raws first seen, by source.

        Returns
        -------
        sources : `tuple` [`~ppdaemon.reports.ArrivalSource`]
            The watch, if there is to be one, and the scan.
        """
        stuck_s = self._pool.stuck_s()
        stuck = f"the filesystem has not answered for {stuck_s:.0f} s" if stuck_s > STUCK_S else ""
        problem = stuck or self._problem
        scan = ArrivalSource(
            name=self._scan_name,
            live=not problem,
            files=files.get(self._scan_name, 0),
            note=problem or self._scanner.problem,
        )
        if self._watch is None:
            return (scan,)
        watch = ArrivalSource(
            name=self._watch_name,
            live=self._watch.live and not problem,
            files=files.get(self._watch_name, 0),
            note=problem or self._watch.problem,
        )
        return watch, scan

    def _heard(self, news: News) -> None:
        """Take the watch's news, in the event loop."""
        match news:
            case FileNews(path, finished):
                try:
                    located = self._tree.locate(path)
                except BadMessage as error:
                    self._tally.complain(f"refused.{error.kind}", f"{self._watch_name}: {error}")
                else:
                    if located is not None:
                        self._tell(Sighting(self._watch_name, *located, confirmed=finished))
            case FolderNews(path):
                if self._scanner.needs_survey(path):
                    self._survey_wanted = True
                else:
                    self._new_folders.add(path)
                self._wake.set()
            case unexpected:
                raise AssertionError(unexpected)

    async def _collect(self, look: Callable[..., list[Sighting]], *args: object) -> None:
        try:
            sightings = await self._pool.run(look, *args)
        except OSError as error:
            self._problem = f"{error.filename}: {error.strerror}"
            return
        self._problem = ""
        for sighting in sightings:
            self._tell(sighting)

    # --- in a thread ---

    def _survey(self) -> list[Sighting]:
        """Find the folders in which something can appear; watch, then scan."""
        now_tai = self._clock.tai()
        try:
            folders = self._scanner.folders(now_tai, now_tai - TAI_MINUS_UTC_S)
        except OSError:
            self._keep({})
            raise
        self._keep(folders)
        return self._scanner.scan(now_tai - TAI_MINUS_UTC_S, self._clock.mono())

    def _keep(self, folders: Mapping[str, bool]) -> None:
        if self._watch is not None:
            self._watch.keep(folders)

    def _scan_folders(self, folders: Iterable[str]) -> list[Sighting]:
        now_unix = self._clock.tai() - TAI_MINUS_UTC_S
        return [sighting for folder in folders for sighting in self._scanner.scan_folder(folder, now_unix)]
