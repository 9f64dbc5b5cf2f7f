# SPDX-License-Identifier: BSD-3-Clause
"""Receives inotify events of folders, through watchdog.

Only the reader of watchdog is used (`watchdog.observers.inotify_c`), one for
each raw root. Its observers are not suitable: they walk through everything below
a folder, have a thread for each, delay events by 0.5 s while half of a move is
missing, add a folder twice that is created while its parent is walked (hence
the warning "Callback with id ... already exists": harmless, except where warnings
are errors, which end the thread), and do not report an overflow of the queue.

Files that were created in a new folder before it was watched cause no event: new
folders must be listed.
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
"""Events that may wait for the event loop; further ones are dropped and reported as lost."""
_FOLDER = Mask(
    InotifyConstants.IN_CREATE
    | InotifyConstants.IN_CLOSE_WRITE
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_ONLYDIR
)
_STOP_S = 2.0
"""How long `FolderWatch.stop` waits for the thread."""

type Identity = tuple[int, int]
"""Device and inode: they change when a folder is created again, or mounted over."""


@dataclass(frozen=True, slots=True)
class _Watched:
    folder: str
    identity: Identity
    id: CallbackId


class WatchListener(Protocol):
    """Receives the events; all methods but `admits` are called in the event loop."""

    def admits(self, folder: str) -> bool:
        """Return whether a new folder is to be watched; called in the thread that reads inotify."""

    def on_file(self, path: str, *, finished: bool) -> None:
        """Handle a file that was created or, if `finished`, closed by its writer or moved here."""

    def on_folder(self, path: str) -> None:
        """Handle a new folder, which is already watched."""

    def on_events_lost(self, kind: str) -> None:
        """Handle lost events (``overflow``, ``backlog``), or a folder that is no longer watched
        (``unwatched``).
        """


class FolderWatch:
    """Watches a changing set of folders, and tests with a canary file whether inotify works.

    `start`, `watch`, `watch_only`, `touch` and `stop` block while the filesystem
    hangs: they are to be called in a thread. The canary file is outside all raw
    roots.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: WatchListener, canary: Path | None):
        self._mailbox = Mailbox(loop, BACKLOG, partial(listener.on_events_lost, "backlog"))
        self._listener = listener
        self._canary = canary
        self._canary_number = WatchDescriptor(-1)
        self._reader: InotifyFD | None = None
        self._ids = itertools.count()
        self._lock = threading.Lock()
        """Held while a folder is added: the reader's thread then finds it at its first event."""
        self._watched: dict[WatchDescriptor, _Watched] = {}
        self._numbers: dict[str, WatchDescriptor] = {}
        self._stopping = False
        self._refused = self._newly_refused = ""
        self._touched = self._canary_reported = 0

    @property
    def problem(self) -> str:
        """Why some folders are not watched, or empty."""
        if self._reader is None:
            return self._refused or "not started"
        if not self.alive:
            return "the thread that reads inotify has ended"
        return self._refused

    @property
    def reading(self) -> bool:
        """Whether the watch was started."""
        return self._reader is not None

    @property
    def alive(self) -> bool:
        """Whether the thread that reads inotify is running."""
        return self._reader is not None and self._reader.is_alive()

    def start(self) -> None:
        """Start the thread unless it was started; if inotify is not available, `problem` has the reason."""
        with self._lock:
            if self._reader is not None or self._stopping:
                return
            try:
                reader = InotifyFD()
            except OSError as error:
                self._refused = _explain(error)
                return
            # It is not reading yet, although its flag is set from the beginning: a
            # reader stopped before it reads would never close its descriptors.
            reader._is_reading = False
            reader.start()
            self._reader, self._refused = reader, ""

    def watch(self, folder: str, identity: Identity) -> None:
        """Watch a folder, unless it is watched already or was removed."""
        with self._lock:
            number = self._numbers.get(folder)
            if number is not None:
                if self._watched[number].identity == identity:
                    return
                self._forget(number)
            self._add(folder, identity)

    def watch_only(self, folders: Collection[str]) -> None:
        """Stop watching all other folders, after `watch` was called for all of these; problems from
        before those calls are cleared.
        """
        if self._reader is None:
            return
        with self._lock:
            self._refused, self._newly_refused = self._newly_refused, ""
            for folder in self._numbers.keys() - set(folders):
                self._forget(self._numbers[folder])

    def touch(self) -> None:
        """Touch the canary file, which inotify must report; an OSError does not affect the watch."""
        if self._canary is None or self._reader is None:
            return
        if self._canary_number < 0:
            self._add_canary(self._reader, self._canary)
        # Counted before the touch: the reader's thread may handle the event at once.
        self._touched += 1
        os.utime(self._canary)

    @property
    def canary_reported(self) -> bool:
        """Whether inotify has reported the last touch of the canary file."""
        return self._canary_reported >= self._touched

    def stop(self) -> None:
        """Stop the thread; wait up to `_STOP_S` for it."""
        with self._lock:
            self._stopping = True
            reader, self._reader = self._reader, None
        if reader is not None:
            # Without the lock: the thread takes it for each event, and could not end.
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

    # --- called with the lock held ---

    def _add(self, folder: str, identity: Identity) -> None:
        if self._reader is None:
            return
        id_ = CallbackId(next(self._ids))
        try:
            number = self._reader.add_callback(os.fsencode(folder), _FOLDER, self, id_)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            self._refused = self._newly_refused = _explain(error, folder)
            return
        if number < 0:  # watchdog raises no error for EACCES
            self._refused = self._newly_refused = _explain(
                PermissionError(errno.EACCES, "no permission"), folder
            )
            return
        if (known := self._watched.get(number)) is not None:
            # The same folder was watched at another path.
            self._numbers.pop(known.folder, None)
            self._reader.remove_callbacks([(number, known.id)])
        self._watched[number] = _Watched(folder, identity, id_)
        self._numbers[folder] = number

    def _forget(self, number: WatchDescriptor) -> None:
        watched = self._watched.pop(number)
        del self._numbers[watched.folder]
        if self._reader is not None:
            with contextlib.suppress(OSError):  # the kernel has removed the watch already
                self._reader.remove_callbacks([(number, watched.id)])

    # --- called by watchdog in the thread that reads inotify ---

    def on_event(self, event: InotifyEvent) -> None:
        """Handle an event."""
        if event.wd == self._canary_number:
            self._canary_reported = self._touched
            return
        with self._lock:
            watched = self._watched.get(event.wd)
        if watched is None or not event.name:
            return
        path = f"{watched.folder}/{os.fsdecode(event.name)}"
        if event.mask & InotifyConstants.IN_ISDIR:
            self._folder_event(event, path)
        elif not event.is_moved_from and not event.name.startswith(b"."):
            self._mailbox.put(partial(self._listener.on_file, path, finished=not event.is_create))

    def _folder_event(self, event: InotifyEvent, path: str) -> None:
        if event.is_moved_from:
            # Its watch and those below it would report wrong paths.
            with self._lock:
                for folder in [*self._numbers]:
                    if folder == path or folder.startswith(path + "/"):
                        self._forget(self._numbers[folder])
        elif self._listener.admits(path):
            # At once: every file that is closed in it from now on is then reported.
            with contextlib.suppress(OSError):
                status = os.stat(path, follow_symlinks=False)
                self.watch(path, (status.st_dev, status.st_ino))
            self._mailbox.put(partial(self._listener.on_folder, path))

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Handle a watched folder that was removed."""
        with self._lock:
            if wd == self._canary_number:
                self._canary_number = WatchDescriptor(-1)
            watched = self._watched.pop(wd, None)
            if watched is None:
                return
            del self._numbers[watched.folder]
            known = os.path.dirname(watched.folder) in self._numbers
        if not known and not self._stopping:
            self._mailbox.put(partial(self._listener.on_events_lost, "unwatched"))

    def on_queue_overflow(self) -> None:
        """Handle an overflow: the kernel has dropped events."""
        self._mailbox.put(partial(self._listener.on_events_lost, "overflow"))


def _explain(error: OSError, folder: str = "") -> str:
    sysctl = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
    remedy = f", raise the sysctl {sysctl[error.errno]}" if error.errno in sysctl else ""
    where = f"{folder}: " if folder else "folders "
    return f"{where}cannot be watched ({error.strerror}{remedy}); files are found by polling and surveys"
