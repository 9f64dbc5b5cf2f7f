# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's news of folders, by inotify through watchdog.

Of watchdog only the reader is used (`watchdog.observers.inotify_c`), one for
each raw root. Its observers do more than is wanted here, and tell less: they
walk through all that is below a folder, have a thread for each, hold events
back for 0.5 s while half of a move is missing, add a folder twice that was
made while its parent was walked through (which is what its warning "Callback
with id ... already exists" means: harmless, except where warnings are errors,
which ends the thread), and keep it to themselves that the queue has
overflowed.

What a new folder had before it was watched raises no event: whoever hears of
a new folder must look into it.
"""

import contextlib
import errno
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
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

__all__ = ("FileNews", "FolderNews", "FolderWatch", "Identity", "LostNews", "News", "SoonCaller")

BACKLOG = 100_000
"""Events that may wait for the event loop; above, they are lost, and said to be."""
AT_ONCE = 100
"""News told without a pause: some 2 ms."""

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


@dataclass(frozen=True, slots=True)
class FileNews:
    """A file appeared, or was closed by its writer, or moved here."""

    path: str
    finished: bool
    """Whether it was closed or moved."""


@dataclass(frozen=True, slots=True)
class FolderNews:
    """A folder appeared and is watched from now on."""

    path: str


@dataclass(frozen=True, slots=True)
class LostNews:
    """Events were lost, or a watched folder was: all has to be looked at."""

    kind: str
    """``overflow``, ``backlog`` or ``unwatched``."""


type News = FileNews | FolderNews | LostNews


class SoonCaller(Protocol):
    """The part of an event loop that other threads may use."""

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> object:
        """Have the loop call something."""


class FolderWatch:
    """Watches a changing set of folders, and proves that it does.

    `start`, `watch`, `keep` and `stop` may block as the filesystem does: they
    are to be called in a thread.

    Parameters
    ----------
    loop : `SoonCaller`
        The event loop.
    tell : `~collections.abc.Callable`
        Called in the loop with `FileNews`, `FolderNews` and `LostNews`.
    wanted : `~collections.abc.Callable`
        Tells by its path whether a new folder is to be watched.
    canary : `pathlib.Path` or `None`
        A file of our own, outside of all raw roots, that `touch` writes to.
    """

    def __init__(
        self,
        loop: SoonCaller,
        tell: Callable[[News], None],
        wanted: Callable[[str], bool],
        canary: Path | None,
    ):
        self._mailbox = _Mailbox(loop, tell)
        self._wanted = wanted
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
        self.touched = 0
        """How often the canary was touched (`int`)."""
        self.heard = 0
        """How often the kernel has told of it (`int`)."""

    @property
    def problem(self) -> str:
        """Why not everything is watched, or empty (`str`)."""
        if self._reader is None:
            return self._refused or "not started"
        if not self.alive:
            return "the thread that reads inotify has ended"
        return self._refused

    @property
    def folders(self) -> int:
        """How many folders are watched (`int`)."""
        return len(self._numbers)

    @property
    def reading(self) -> bool:
        """Whether it was started (`bool`)."""
        return self._reader is not None

    @property
    def alive(self) -> bool:
        """Whether the thread runs that reads what the kernel tells (`bool`)."""
        return self._reader is not None and self._reader.is_alive()

    def start(self) -> None:
        """Start to read, if that was not done; what is refused is told in `problem`."""
        with self._lock:
            if self._reader is not None or self._stopping:
                return
            try:
                reader = InotifyFD()
            except OSError as error:
                self._refused = _explain(error)
                return
            # It is not reading yet. By itself it says that it is, and if it is
            # stopped before it does, its descriptors are never closed.
            reader._is_reading = False
            reader.start()
            self._reader, self._refused = reader, ""

    def watch(self, folder: str, identity: Identity) -> None:
        """Watch a folder from now on; it may be watched already.

        Parameters
        ----------
        folder : `str`
            Absolute path; one that is gone is passed over.
        identity : `Identity`
            What the folder there is now.
        """
        with self._lock:
            number = self._numbers.get(folder)
            if number is not None:
                if self._watched[number].identity == identity:
                    return
                self._forget(number)
            self._add(folder, identity)

    def keep(self, folders: Collection[str]) -> None:
        """Watch no other folders than these any more.

        To be called after `watch` was called for all of these: what was
        refused before that is no problem any more.

        Parameters
        ----------
        folders : `~collections.abc.Collection` [`str`]
            Absolute paths.
        """
        if self._reader is None:
            return
        with self._lock:
            self._refused, self._refused_lately = self._refused_lately, ""
            for folder in self._numbers.keys() - set(folders):
                self._forget(self._numbers[folder])

    def touch(self) -> None:
        """Touch the canary; the kernel has to tell of it.

        Raises
        ------
        OSError
            Raised if that cannot be done, which says nothing of the watch.
        """
        if self._canary is None or self._reader is None:
            return
        if self._canary_number < 0:
            self._add_canary(self._reader, self._canary)
        self.touched += 1
        os.utime(self._canary)

    @property
    def singing(self) -> bool:
        """Whether the kernel's news of the canary is through (`bool`)."""
        return self.heard >= self.touched

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

    def _add(self, folder: str, identity: Identity) -> bool:
        if self._reader is None:
            return False
        id_ = CallbackId(next(self._ids))
        try:
            number = self._reader.add_callback(os.fsencode(folder), _FOLDER, self, id_)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            self._refused = self._refused_lately = _explain(error, folder)
            return False
        if number < 0:  # watchdog passes over EACCES
            self._refused = self._refused_lately = _explain(
                PermissionError(errno.EACCES, "no permission"), folder
            )
            return False
        if (known := self._watched.get(number)) is not None:
            # The same folder was watched under another path.
            self._numbers.pop(known.folder, None)
            self._reader.remove_callbacks([(number, known.id)])
        self._watched[number] = _Watched(folder, identity, id_)
        self._numbers[folder] = number
        return True

    def _forget(self, number: WatchDescriptor) -> None:
        watched = self._watched.pop(number)
        del self._numbers[watched.folder]
        if self._reader is not None:
            with contextlib.suppress(OSError):  # the kernel has forgotten it too
                self._reader.remove_callbacks([(number, watched.id)])

    # --- in the reader's thread ---

    def on_event(self, event: InotifyEvent) -> None:
        """Take an event; watchdog calls this.

        Parameters
        ----------
        event : `watchdog.observers.inotify_c.InotifyEvent`
            What the kernel says.
        """
        if event.wd == self._canary_number:
            self.heard = self.touched
            return
        with self._lock:
            watched = self._watched.get(event.wd)
        if watched is None or not event.name:
            return
        path = f"{watched.folder}/{os.fsdecode(event.name)}"
        if event.mask & InotifyConstants.IN_ISDIR:
            self._folder_event(event, path)
        elif not event.is_moved_from and not event.name.startswith(b"."):
            self._mailbox.put(FileNews(path, finished=not event.is_create))

    def _folder_event(self, event: InotifyEvent, path: str) -> None:
        if event.is_moved_from:
            # Its watch and those below would go on under names that are wrong.
            with self._lock:
                for folder in [*self._numbers]:
                    if folder == path or folder.startswith(path + "/"):
                        self._forget(self._numbers[folder])
        elif self._wanted(path):
            # At once: what is closed in it from now on is known to be complete.
            with contextlib.suppress(OSError):
                status = os.stat(path, follow_symlinks=False)
                self.watch(path, (status.st_dev, status.st_ino))
            self._mailbox.put(FolderNews(path))

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Take note of a folder that is gone; watchdog calls this.

        Parameters
        ----------
        wd : `int`
            The kernel's number of the watch.
        """
        with self._lock:
            if wd == self._canary_number:
                self._canary_number = WatchDescriptor(-1)
            watched = self._watched.pop(wd, None)
            if watched is None:
                return
            del self._numbers[watched.folder]
            told = os.path.dirname(watched.folder) in self._numbers
        if not told and not self._stopping:
            self._mailbox.put(LostNews("unwatched"))

    def on_queue_overflow(self) -> None:
        """Take note that the kernel has dropped events; watchdog calls this."""
        self._mailbox.put(LostNews("overflow"))


class _Mailbox:
    """Hands news from the reader's thread to the loop, many at a time."""

    def __init__(self, loop: SoonCaller, tell: Callable[[News], None]):
        self._loop = loop
        self._tell = tell
        self._backlog: deque[News] = deque()
        self._called = False

    def put(self, news: News) -> None:
        """Take news; in the reader's thread."""
        if len(self._backlog) > BACKLOG:
            return
        self._backlog.append(news if len(self._backlog) < BACKLOG else LostNews("backlog"))
        if not self._called:
            self._called = True
            self._call()

    def _call(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        # Cleared first: what is appended from here on calls again.
        self._called = False
        for _ in range(AT_ONCE):
            if not self._backlog:
                return
            self._tell(self._backlog.popleft())
        # The loop has other things to do too.
        self._called = True
        self._call()


def _explain(error: OSError, folder: str = "") -> str:
    sysctl = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
    remedy = f", raise the sysctl {sysctl[error.errno]}" if error.errno in sysctl else ""
    where = f"{folder}: " if folder else ""
    return f"{where}no inotify ({error.strerror}{remedy}); files are found by polling and scanning"
