# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's events in folders, by inotify through watchdog.

Of watchdog only the reader is used (`watchdog.observers.inotify_c`), one for
each raw root. Its observers do more than is wanted here, and report less: they
walk through all that is below a folder, have a thread for each, hold events
back for 0.5 s while half of a move is missing, add a folder twice that was
made while its parent was walked through (which is what its warning "Callback
with id ... already exists" means: harmless, except where warnings are errors,
which ends the thread), and do not report that the queue has overflowed.

What a new folder had before it was watched raises no event: new folders must
be looked into.
"""

import asyncio
import contextlib
import errno
import itertools
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from ppdaemon.node.arrivals.threads import Mailbox

__all__ = ("FolderWatch", "Identity", "WatchListener")

BACKLOG = 100_000
"""Events that may wait for the event loop; above, they are lost, and reported as lost."""
_FOLDER = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_ONLYDIR
)
_STOP_S = 2.0

type Identity = tuple[int, int]
"""Device and inode: changes when a folder is made anew, or mounted over."""


@dataclass(frozen=True, slots=True)
class _Watched:
    folder: str
    identity: Identity
    id: CallbackId


class WatchListener(Protocol):
    """Receives the kernel's events; all but `admits` in the event loop."""

    def admits(self, folder: str) -> bool:
        """Return whether a new folder is to be watched; called in the reader's thread."""

    def file_seen(self, path: str, *, finished: bool) -> None:
        """Take a file that appeared, or was closed by its writer or moved here: then it is finished."""

    def folder_seen(self, path: str) -> None:
        """Take a folder that appeared and is watched from now on."""

    def events_lost(self, kind: str) -> None:
        """Take note that events were lost, or a watched folder: ``overflow``, ``backlog`` or
        ``unwatched``.
        """


class FolderWatch:
    """Watches a changing set of folders, and proves by a canary file that it does.

    `start`, `watch`, `keep`, `touch` and `stop` may block as the filesystem
    does: they are to be called in a thread. The canary is a file of our own,
    outside of all raw roots.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: WatchListener, canary: Path | None):
        self._mailbox = Mailbox(loop, BACKLOG, partial(listener.events_lost, "backlog"))
        self._listener = listener
        self._canary = canary
        self._canary_number = WatchDescriptor(-1)
        self._reader: InotifyFD | None = None
        self._ids = itertools.count()
        self._lock = threading.Lock()
        """Held while a folder is added, so that its first event finds it."""
        self._watched: dict[WatchDescriptor, _Watched] = {}
        self._numbers: dict[str, WatchDescriptor] = {}
        self._stopping = False
        self._refused = self._refused_lately = ""
        self._touched = self._canary_seen = 0

    @property
    def problem(self) -> str:
        """Why not everything is watched, or empty."""
        if self._reader is None:
            return self._refused or "not started"
        if not self.alive:
            return "the thread that reads inotify has ended"
        return self._refused

    @property
    def reading(self) -> bool:
        """Whether it was started."""
        return self._reader is not None

    @property
    def alive(self) -> bool:
        """Whether the thread runs that reads the kernel's events."""
        return self._reader is not None and self._reader.is_alive()

    def start(self) -> None:
        """Start to read, if that was not done; `problem` has what is refused."""
        with self._lock:
            if self._reader is not None or self._stopping:
                return
            try:
                reader = InotifyFD()
            except OSError as error:
                self._refused = _explain(error)
                return
            # It is not reading yet. By itself it claims that it is, and if it is
            # stopped before it does, its descriptors are never closed.
            reader._is_reading = False
            reader.start()
            self._reader, self._refused = reader, ""

    def watch(self, folder: str, identity: Identity) -> None:
        """Watch a folder from now on, unless it is watched already or gone."""
        with self._lock:
            number = self._numbers.get(folder)
            if number is not None:
                if self._watched[number].identity == identity:
                    return
                self._forget(number)
            self._add(folder, identity)

    def keep(self, folders: Collection[str]) -> None:
        """Watch no other folders than these any more, after `watch` was called for all of them: what
        was refused before that is no problem any more.
        """
        if self._reader is None:
            return
        with self._lock:
            self._refused, self._refused_lately = self._refused_lately, ""
            for folder in self._numbers.keys() - set(folders):
                self._forget(self._numbers[folder])

    def touch(self) -> None:
        """Touch the canary, which the kernel has to report; an OSError means nothing for the watch."""
        if self._canary is None or self._reader is None:
            return
        if self._canary_number < 0:
            self._add_canary(self._reader, self._canary)
        self._touched += 1
        os.utime(self._canary)

    @property
    def canary_heard(self) -> bool:
        """Whether the kernel has reported the last touch of the canary."""
        return self._canary_seen >= self._touched

    def stop(self) -> None:
        """End the thread; waits a little for it."""
        with self._lock:
            self._stopping = True
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()
            reader.join(_STOP_S)
        if self._canary is not None:
            self._canary.unlink(missing_ok=True)

    def _add_canary(self, reader: InotifyFD, canary: Path) -> None:
        canary.parent.mkdir(parents=True, exist_ok=True)
        canary.touch()
        with self._lock:
            self._canary_number = reader.add_callback(
                os.fsencode(canary), InotifyConstants.IN_ATTRIB, self, CallbackId(next(self._ids))
            )

    # --- with the lock ---

    def _add(self, folder: str, identity: Identity) -> None:
        if self._reader is None:
            return
        id_ = CallbackId(next(self._ids))
        try:
            number = self._reader.add_callback(os.fsencode(folder), _FOLDER, self, id_)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._refused = self._refused_lately = _explain(error, folder)
            return
        if number < 0:  # watchdog passes over EACCES
            self._refused = self._refused_lately = _explain(
                PermissionError(errno.EACCES, "no permission"), folder
            )
            return
        if (known := self._watched.get(number)) is not None:
            # The same folder was watched under another path.
            self._numbers.pop(known.folder, None)
            self._reader.remove_callbacks([(number, known.id)])
        self._watched[number] = _Watched(folder, identity, id_)
        self._numbers[folder] = number

    def _forget(self, number: WatchDescriptor) -> None:
        watched = self._watched.pop(number)
        del self._numbers[watched.folder]
        if self._reader is not None:
            with contextlib.suppress(OSError):  # the kernel has forgotten it too
                self._reader.remove_callbacks([(number, watched.id)])

    # --- in the reader's thread ---

    def on_event(self, event: InotifyEvent) -> None:
        """Take an event; watchdog calls this."""
        if event.wd == self._canary_number:
            self._canary_seen = self._touched
            return
        with self._lock:
            watched = self._watched.get(event.wd)
        if watched is None or not event.name:
            return
        path = f"{watched.folder}/{os.fsdecode(event.name)}"
        if event.mask & InotifyConstants.IN_ISDIR:
            self._folder_event(event, path)
        elif not event.is_moved_from and not event.name.startswith(b"."):
            self._mailbox.put(partial(self._listener.file_seen, path, finished=not event.is_create))

    def _folder_event(self, event: InotifyEvent, path: str) -> None:
        if event.is_moved_from:
            # Its watch and those below would go on under names that are wrong.
            with self._lock:
                for folder in [*self._numbers]:
                    if folder == path or folder.startswith(path + "/"):
                        self._forget(self._numbers[folder])
        elif self._listener.admits(path):
            # At once: what is closed in it from now on is known to be complete.
            with contextlib.suppress(OSError):
                status = os.stat(path, follow_symlinks=False)
                self.watch(path, (status.st_dev, status.st_ino))
            self._mailbox.put(partial(self._listener.folder_seen, path))

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Take note of a folder that is gone; watchdog calls this."""
        with self._lock:
            if wd == self._canary_number:
                self._canary_number = WatchDescriptor(-1)
            watched = self._watched.pop(wd, None)
            if watched is None:
                return
            del self._numbers[watched.folder]
            known = os.path.dirname(watched.folder) in self._numbers
        if not known and not self._stopping:
            self._mailbox.put(partial(self._listener.events_lost, "unwatched"))

    def on_queue_overflow(self) -> None:
        """Take note that the kernel has dropped events; watchdog calls this."""
        self._mailbox.put(partial(self._listener.events_lost, "overflow"))


def _explain(error: OSError, folder: str = "") -> str:
    sysctl = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
    remedy = f", raise the sysctl {sysctl[error.errno]}" if error.errno in sysctl else ""
    where = f"{folder}: " if folder else ""
    return f"{where}no inotify ({error.strerror}{remedy}); files are found by polling and scanning"
