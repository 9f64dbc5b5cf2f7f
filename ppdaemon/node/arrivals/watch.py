# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's news of folders, by inotify through watchdog.

One inotify descriptor for all folders of a root. Watchdog adds watches to new
folders below a recursive one by itself; what a new folder had before it was
watched raises no event, so whoever hears of a new folder must scan it.
"""

import contextlib
import errno
import os
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.inotify import InotifyObserver

if TYPE_CHECKING:
    from watchdog.observers.api import ObservedWatch

__all__ = ("FileNews", "FolderNews", "FolderWatch", "News", "SoonCaller")

BACKLOG = 100_000
"""Events that may wait for the event loop; above, they are dropped and the
next scan finds the files."""

_EVENTS: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    DirCreatedEvent,
    DirMovedEvent,
]
_STOP_S = 2.0


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


type News = FileNews | FolderNews


class SoonCaller(Protocol):
    """The part of an event loop that other threads may use."""

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> object:
        """Have the loop call something."""


class FolderWatch:
    """Watches a changing set of folders.

    All methods may block as the filesystem does: they are to be called in a
    thread, one at a time.

    Parameters
    ----------
    loop : `SoonCaller`
        The event loop.
    tell : `~collections.abc.Callable`
        Called in the loop with `FileNews` and `FolderNews`.
    """

    def __init__(self, loop: SoonCaller, tell: Callable[[News], None]):
        self._handler = _Handler(loop, tell)
        self._observer: InotifyObserver | None = None
        self._watches: dict[str, tuple[ObservedWatch, tuple[int, int]]] = {}
        self.problem = "not started"
        """Why folders are not watched, or empty."""

    def keep(self, wanted: Mapping[str, bool]) -> None:
        """Watch these folders from now on, and no others.

        Parameters
        ----------
        wanted : `~collections.abc.Mapping` [`str`, `bool`]
            Whether to watch all below, by folder. Those that are not there
            are passed over.
        """
        try:
            if self._observer is None:
                self._start()
            for folder in [*self._watches]:
                if folder not in wanted or _identity(folder) != self._watches[folder][1]:
                    self._forget(folder)
            for folder, recursive in wanted.items():
                if folder not in self._watches:
                    self._watch(folder, recursive)
        except OSError as error:
            self.problem = _explain(error)
        else:
            self.problem = ""

    @property
    def live(self) -> bool:
        """Whether events come (`bool`)."""
        return not self.problem and self._observer is not None and self._observer.is_alive()

    def stop(self) -> None:
        """End the threads; waits a little for them."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join(_STOP_S)
            self._observer = None
            self._watches.clear()

    def _start(self) -> None:
        # Full events: a file moved here from an unwatched folder counts as moved.
        observer = InotifyObserver(generate_full_events=True)
        observer.start()
        self._observer = observer

    def _watch(self, folder: str, recursive: bool) -> None:
        assert self._observer is not None
        identity = _identity(folder)
        if identity is None:
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            watch = self._observer.schedule(self._handler, folder, recursive=recursive, event_filter=_EVENTS)
            self._watches[folder] = (watch, identity)

    def _forget(self, folder: str) -> None:
        assert self._observer is not None
        watch, _ = self._watches.pop(folder)
        with contextlib.suppress(KeyError):  # a deleted folder's watch ends by itself
            self._observer.unschedule(watch)


class _Handler(FileSystemEventHandler):
    """Hands events from watchdog's thread to the loop, many at a time."""

    def __init__(self, loop: SoonCaller, tell: Callable[[News], None]):
        self._loop = loop
        self._tell = tell
        self._backlog: deque[News] = deque()
        self._called = False

    def dispatch(self, event: FileSystemEvent) -> None:
        """Take one event; in watchdog's thread."""
        news = _news(event)
        if news is None or len(self._backlog) >= BACKLOG:
            return
        self._backlog.append(news)
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        # Cleared first: what is appended from here on calls again.
        self._called = False
        while self._backlog:
            self._tell(self._backlog.popleft())


def _news(event: FileSystemEvent) -> News | None:
    match event:
        case FileMovedEvent() | DirMovedEvent() if not event.dest_path:
            return None  # moved away
        case FileMovedEvent():
            return FileNews(os.fsdecode(event.dest_path), finished=True)
        case FileClosedEvent():
            return FileNews(os.fsdecode(event.src_path), finished=True)
        case FileCreatedEvent():
            return FileNews(os.fsdecode(event.src_path), finished=False)
        case DirMovedEvent():
            return FolderNews(os.fsdecode(event.dest_path))
        case DirCreatedEvent():
            return FolderNews(os.fsdecode(event.src_path))
        case _:
            return None


def _identity(folder: str) -> tuple[int, int] | None:
    """Return what changes when a folder is deleted and made anew, or mounted over."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _explain(error: OSError) -> str:
    sysctl = {errno.ENOSPC: "fs.inotify.max_user_watches", errno.EMFILE: "fs.inotify.max_user_instances"}
    remedy = f", raise the sysctl {sysctl[error.errno]}" if error.errno in sysctl else ""
    return f"no inotify ({error.strerror}{remedy}); files are found by scanning"
