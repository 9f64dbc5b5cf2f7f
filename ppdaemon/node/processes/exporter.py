# SPDX-License-Identifier: BSD-3-Clause
"""The exporter: one process that registers spools in the central repo.

A central database that is down only delays exports: the spool folder is the list of pending
exports, and a pause follows each failure.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ppdaemon import messages
from ppdaemon.config import ExportConfig, WorkersConfig
from ppdaemon.errors import Refused
from ppdaemon.folders import NodeFolders, folder_size
from ppdaemon.metrics import Histogram
from ppdaemon.node.processes.lifecycle import Lifecycle, ProcessState
from ppdaemon.node.processes.supervised import ForkedProcess
from ppdaemon.node.processes.uncompressedwatch import UncompressedWatch
from ppdaemon.reports import UncompressedReport
from ppdaemon.spooling import SpoolDisk
from ppdaemon.terminal import size
from ppdaemon.wire import encode

__all__ = ("ExporterProcess",)

_LOG = logging.getLogger(__name__)

SLOT = -1
"""Instead of the number of a slot, in orders to the zygote."""
BOOT_S = 60.0
"""From the order to fork until it is ready; one that is spawned imports everything itself."""
EXPORT_S = 600.0
"""A database that takes longer for one order is regarded as unavailable."""
LONGEST_PAUSE = 16
"""In units of the first one."""
EXPORT_BOUNDS_S = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300, 1800, 7200)
"""An export takes seconds; longer ones waited for a central repo that was away."""
BATCH = 210
"""Spools in one order: all of an exposure of 205 detectors. They share two central transactions, and
the answer, which has a path and a note for each, must fit into one packet."""
MOST_ENDS = 10_000
"""Exports whose times are remembered, for the rate: a host exports less in a minute."""
PACKING_S = 0.5
"""Pause before the next order if the images of a spool are not packed yet."""
LONGEST_GATHERING = 10
"""In units of `~ppdaemon.config.ExportConfig.gather_s`."""
_NO_SPOOLS = ()
"""Instead of the spools of an order that exports none."""


class ExporterProcess(ForkedProcess[messages.ExporterFact]):
    """Supervises the exporter, and sends it the pending spools. `done` is called with each
    `~ppdaemon.messages.Exported` and `~ppdaemon.messages.ImagesGivenUp`.
    """

    def __init__(
        self,
        config: ExportConfig,
        folders: NodeFolders,
        request_fork: Callable[[messages.ForkWorker], bool],
        done: Callable[[messages.Exported | messages.ImagesGivenUp], None],
    ):
        pauses = {"first_pause_s": config.retry_s, "longest_pause_s": LONGEST_PAUSE * config.retry_s}
        lifecycle = Lifecycle(boot_s=BOOT_S, answer_s=EXPORT_S, **pauses)
        repo, log = folders.slots / "exporter", folders.logs / "exporter.log"
        super().__init__("exporter", SLOT, repo, log, messages.EXPORTER_FACTS, lifecycle, request_fork)
        self._failure = ""
        self._done = done
        self._config = config
        self._folders = folders
        self._on_ramdisk = f"{folders.ramdisk_spool}/"
        self._gathering: asyncio.TimerHandle | None = None
        self._added = 0.0
        """When the last spool became pending, monotonic seconds."""
        self._not_before = 0.0
        """Until when images are packed at least, monotonic seconds."""
        self._hurried = False
        """Whether what is pending is exported without gathering more."""
        self._marking: asyncio.Future[messages.DatastoreMarked] | None = None
        self._most = BATCH
        """Spools in the next order. Halved when a process dies or is late with an order, which may be too
        large for `EXPORT_S`, or have a spool that kills it: otherwise nothing would ever be exported."""
        self._spools: dict[str, float] = {}
        """Since when each is pending, monotonic seconds, in order."""
        self._doubtful: set[str] = set()
        """Pending spools in orders that no process has answered before it ended: it may have exported them,
        and deleted them."""
        self._begun: set[str] = set()
        """Pending spools whose images are packed: their other datasets are in the central repo."""
        self.times = Histogram(EXPORT_BOUNDS_S)
        """How long spools were pending before they were in the central repo, seconds."""
        self.exported_bytes = 0
        """Size of all files in the exported spools."""
        self._sizes: dict[str, int] = {}
        """Bytes of each pending spool that was measured."""
        self._excess_bytes = 0
        """Size of the images to give up, as last measured."""
        self._has_images = True
        """Whether there may be images to give up."""
        self._uncompressed = UncompressedWatch(folders)
        self.given_up = 0
        """How many visit-detectors have lost their images."""
        self.given_up_bytes = 0
        self._incomplete: set[str] = set()
        """Those of the pending spools."""
        self._ends: deque[float] = deque(maxlen=MOST_ENDS)
        """When the last spools were exported, monotonic seconds."""
        self._has_exported = False
        """Whether the present process has exported anything: what it uses is not only what each needs."""

    @property
    def waiting(self) -> int:
        """How many spools are pending."""
        return len(self._spools)

    @property
    def oldest_s(self) -> float | None:
        """For how many seconds the first spool has been pending; `None` if none is."""
        since = min(self._spools.values(), default=None)
        return None if since is None else self._loop.time() - since

    def waiting_on(self, *, ramdisk: bool) -> tuple[int, SpoolDisk]:
        """Return how many spools are pending on the RAM disk, or on disks, and their size, as far as they
        were measured.
        """
        there = [spool for spool in self._spools if self._is_on_ramdisk(spool) == ramdisk]
        limit = self._config.ramdisk_max if ramdisk else self._config.spill_max
        oldest = min((self._spools[spool] for spool in there), default=self._loop.time())
        used = sum(self._sizes.get(spool, 0) for spool in there)
        return len(there), SpoolDisk(used, limit, self._loop.time() - oldest)

    @property
    def rate(self) -> float:
        """How many spools were exported in the last minute."""
        since = self._loop.time() - 60.0
        return sum(1 for at in self._ends if at >= since)

    async def measure(self) -> None:
        """Measure the pending spools that were added since the last call; give up images if they are too
        large.
        """
        if self._spools or self._sizes:
            await self._measure([spool for spool in self._spools if spool not in self._sizes])
        if self._has_images and self.waiting_on(ramdisk=False)[1].excess_bytes:
            await self._measure(list(self._spools))  # their images may have been packed since
            self._excess_bytes = self.waiting_on(ramdisk=False)[1].excess_bytes
            self._serve()
        spill = self.waiting_on(ramdisk=False)[1]
        await asyncio.to_thread(self._uncompressed.update, self._config, spill, self._loop.time())

    @property
    def uncompressed(self) -> UncompressedReport:
        """The images that wait for packers."""
        return self._uncompressed.report

    async def _measure(self, spools: Iterable[str]) -> None:
        sizes = await asyncio.to_thread(lambda: {spool: folder_size(Path(spool)) for spool in spools})
        known = self._sizes | sizes
        self._sizes = {spool: known[spool] for spool in self._spools if spool in known}

    @property
    def incomplete(self) -> int:
        """How many pending spools have lost their images."""
        return len(self._incomplete)

    @property
    def problem(self) -> str:
        """Why the last export failed, or blank."""
        return self._failure

    @property
    def pausing(self) -> bool:
        """Whether the pending spools are tried again only after a pause."""
        due = self.lifecycle.deadline
        is_idle = self.lifecycle.state in (ProcessState.PAUSING, ProcessState.RETRYING)
        return is_idle and due is not None and due > self._loop.time()

    @property
    def text(self) -> str:
        """The state of the exporter in a few words, for operators."""
        if self.problem:
            return f"failing: {self.problem}"
        if self.lifecycle.state in (ProcessState.PAUSING, ProcessState.STARTING):
            return "starting"
        return f"exporting {len(self._exporting)}" if self._exporting else "idle"

    def add(self, spool: str, *, is_incomplete: bool = False) -> None:
        """Export this spool, a folder with a manifest, as soon as possible; an incomplete one has lost its
        images in a previous run.
        """
        if is_incomplete:
            self._incomplete.add(spool)
        self._added = self._loop.time()
        self._spools.setdefault(spool, self._added)
        self._has_images = True
        self._serve()

    def hurry(self, *, retry: bool = True) -> str:
        """Export what is pending now: gather no more, and start the next process instead of after its
        pause. Without `retry`, the pause after a failed export stays: the daemon stops. Return what is
        done, for an operator.
        """
        if self._spools or self._marking is not None:
            self._hurried = True
            if retry:
                self.lifecycle.hurry()
            if self.lifecycle.state is ProcessState.PAUSING:
                self.start()
            self._serve()
            self._set_timer()
        return f"exporting {len(self._spools)}" if self._spools else "nothing waits for export"

    async def mark_datastore(self) -> str:
        """Mark the datastore as that of the central repo; return what was done.

        Raises `~ppdaemon.errors.Refused` if that was not possible.
        """
        if self._marking is None:
            self._marking = self._loop.create_future()
        marking = self._marking
        self.hurry()
        answer = await asyncio.shield(marking)
        if answer.refused:
            raise Refused(answer.text)
        return answer.text

    def has(self, name: str) -> bool:
        """Return whether a spool of this name is pending."""
        return any(Path(spool).name == name for spool in self._spools)

    def withdraw(self, spool: str) -> bool:
        """Remove a spool from the pending ones; return `False` if it is being exported, or may be exported in
        part: the datasets of another attempt would be mixed with these.
        """
        if spool in self._exporting or spool in self._begun or spool in self._doubtful:
            return False
        self._spools.pop(spool, None)
        self._incomplete.discard(spool)
        return True

    def replace(self, config: ExportConfig) -> None:
        """Replace the process by one with a new configuration, after the present export."""
        self._config = config
        self.lifecycle.set_pauses(config.retry_s, LONGEST_PAUSE * config.retry_s)
        if self._child is None:
            self.start()  # one that is being forked has the old configuration: its epoch is refused
        else:
            self._replace()

    def _replace(self) -> None:
        self.lifecycle.replace(self._loop.time())
        self._serve()
        self._set_timer()

    def measured(self, used_bytes: int, config: WorkersConfig) -> None:
        """Replace the process after the present export if it uses much memory, kill it if too much."""
        super().measured(used_bytes, config)
        is_large = used_bytes > (most := config.memory.soft)
        # While images are packed it stays: its packers would end with it, each time anew.
        may_end = self._has_exported and not self._begun and self.lifecycle.state is ProcessState.SERVING
        if is_large and may_end:
            used = f"{size(used_bytes)}, more than the {size(most)} of workers.memory.soft"
            _LOG.info("the exporter is replaced after the present export: it uses %s", used)
            self._replace()

    @property
    def _exporting(self) -> tuple[str, ...]:
        return tuple(spool for spools in self.lifecycle.unanswered for spool in spools)

    def _serve(self) -> None:
        if self.lifecycle.unanswered:
            return
        if self.lifecycle.state is ProcessState.REPLACING and self._child is not None:
            self._child.send(encode(messages.Quit()))
        elif self._marking is not None:
            self._order(_NO_SPOOLS, messages.MarkDatastore())
        elif self._excess_bytes:
            folders = tuple(map(str, self._folders.disk_spools))
            order = messages.GiveUpImages(folders=folders, excess_bytes=self._excess_bytes)
            if self._order(_NO_SPOOLS, order):
                self._excess_bytes = 0  # until it is measured again: exports go on if there are no images
        elif self._spools and self._is_gathered():
            spools = tuple(self._spools)[: self._most]
            self._order(spools, messages.ExportSpool(spools=spools))

    def _is_on_ramdisk(self, spool: str) -> bool:
        # Of 10,000 paths the parents would take 0.1 s, several times a second.
        return spool.startswith(self._on_ramdisk)

    def _is_gathered(self) -> bool:
        """Return whether the pending spools are to be exported now; otherwise `_serve` is called then."""
        oldest = next(iter(self._spools.values()))
        gather_s = self._config.gather_s
        due = min(self._added + gather_s, oldest + LONGEST_GATHERING * gather_s)
        due = max(self._not_before, min(due, 0.0) if len(self._spools) >= self._most else due)
        if self._hurried or due <= self._loop.time():
            return True
        if self._gathering is not None:
            self._gathering.cancel()
        self._gathering = self._loop.call_at(due, self._serve)
        return False

    def _received(self, message: messages.ExporterFact, descriptors: list[int]) -> None:
        self._answered(self._exporting)
        match message:
            case messages.Ready():
                self._has_exported = False
                if not self._spools:
                    self._failure = ""  # with spools, the next export tells whether it works
                self._ready()
                return
            case messages.Exported():
                now = self._loop.time()
                message = self._without_doubtful(message)
                for spool in message.spools:
                    if (since := self._spools.pop(spool, None)) is not None:
                        self.times.add(now - since)
                        self._ends.append(now)
                self._most = min(BATCH, 2 * self._most)
                self.exported_bytes += message.size_bytes
                for spool in (*message.refused, *message.gone):
                    self._spools.pop(spool, None)
                for spool in message.packing:
                    if since := self._spools.pop(spool, None):  # behind those that can be exported
                        self._spools[spool] = since
                self._not_before = now + PACKING_S if message.packing else 0.0
                self._begun.update(message.packing)
                self._begun.intersection_update(self._spools)
                self._doubtful.intersection_update(self._spools)
                self._incomplete.intersection_update(self._spools)
                self._failure = ""
                self._hurried = self._hurried and bool(self._spools)
                self._has_exported = True
                self.lifecycle.succeeded()
                self._done(message)
            case messages.ImagesGivenUp():
                self.given_up += len(message.spools)
                self.given_up_bytes += message.size_bytes
                self._incomplete.update(spool for spool in message.spools if spool in self._spools)
                self._sizes = {
                    spool: size for spool, size in self._sizes.items() if spool not in message.spools
                }
                self._has_images = bool(message.spools)
                if message.spools:
                    self._done(message)
            case messages.DatastoreMarked():
                self._marked(message)
                self.hurry()
            case messages.SpoolRefused(reason=reason):
                # A central repo that is away for the night fails thousands of times.
                level = logging.DEBUG if reason == self._failure else logging.ERROR
                _LOG.log(
                    level, "export failed; the spools stay and are tried again after a pause: %s", reason
                )
                self._failure = reason
                self.lifecycle.failed(self._loop.time())
        self._serve()
        self._set_timer()

    def _without_doubtful(self, message: messages.Exported) -> messages.Exported:
        """Return a report in which spools that are gone count as exported if another process may have
        exported them.
        """
        exported = tuple(spool for spool in message.gone if spool in self._doubtful)
        gone = tuple(spool for spool in message.gone if spool not in self._doubtful)
        return message.model_copy(update={"spools": (*message.spools, *exported), "gone": gone})

    def _end(self, cause: str) -> None:
        self._doubtful.update(self._exporting)
        super()._end(cause)

    def _give_up(self, cause: str, unanswered: list[Any]) -> None:
        self._failure = f"the process {cause}"
        exporting = [spool for spools in unanswered for spool in spools if spool in self._spools]
        if exporting:
            self._most = max(1, len(exporting) // 2)
            if len(exporting) == 1:  # behind the others, which it would hold up
                self._spools[exporting[0]] = self._spools.pop(exporting[0])
        self._marked(messages.DatastoreMarked(text=f"the exporter {cause}", refused=True))

    def _marked(self, answer: messages.DatastoreMarked) -> None:
        if self._marking is not None and not self._marking.done():
            self._marking.set_result(answer)
        self._marking = None
