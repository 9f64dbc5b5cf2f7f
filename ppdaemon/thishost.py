# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the variables, files, folders and maps that a configuration names.

They run while the file is validated; each raises `ValueError`, which the validation
reports with the line of the key.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

from ppdaemon.privatefiles import UnsafePath, check_path
from ppdaemon.skymaps import SkyMap
from ppdaemon.yamlfile import did_you_mean

__all__ = (
    "HostContext",
    "filesystem_size",
    "host_context",
    "host_memory",
    "nearest_existing",
)

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


@dataclass(frozen=True, slots=True)
class HostContext:
    """Context of a validation that also checks this host.

    Without it, a configuration is used as another process has checked it. `maps` has
    the sky maps read so far, so that each is read once. With `writing` false, folders
    need not be writable.
    """

    environment: Mapping[str, str]
    maps: dict[str, SkyMap] = field(default_factory=dict)
    writing: bool = True

    def path(self, text: str) -> str:
        """Return a path, with ``$NAME`` and ``${NAME}`` replaced, that must be absolute."""

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in self.environment:
                raise ValueError(
                    f"{text}: environment variable {name!r} is not set{did_you_mean(name, self.environment)}"
                )
            return self.environment[name]

        path = _VARIABLE.sub(value, text)
        if not os.path.isabs(path):
            # The daemon's folder is not the one in which a file is checked.
            raise ValueError(f"{path} is relative; write an absolute path")
        return os.path.abspath(path)

    def sky_map(self, text: str) -> SkyMap:
        """Return the sky map of a path, read from its file."""
        path = self.path(text)
        if path not in self.maps:
            self.maps[path] = SkyMap(path).read()
        return self.maps[path]

    def key[T](self, path: Path, read: Callable[[Path], T]) -> Path:
        """Return the absolute path of a key, or of a folder of keys, that this program can use."""
        if not path.is_absolute():
            raise ValueError(f"{path} is relative; write an absolute path")
        if self.writing:
            read(path)
        return path

    def folder(self, path: Path) -> Path:
        """Return an absolute folder in which files can be created; it may not exist yet."""
        if not path.is_absolute():
            raise ValueError(f"{path} is relative; write an absolute path")
        if not self.writing:
            return path
        try:
            check_path(path)
        except UnsafePath as error:
            raise ValueError(str(error)) from None
        # The daemon creates missing folders, so that the nearest existing one counts.
        nearest = nearest_existing(path)
        if not nearest.is_dir():
            raise ValueError(f"{path}: {nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ValueError(f"{path}: not writable ({nearest})")
        return path


def nearest_existing(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def filesystem_size(folder: Path) -> int:
    """Return the size of the filesystem of a folder, bytes; 0 if it has no limit."""
    status = os.statvfs(folder)
    return status.f_blocks * status.f_frsize


def host_memory() -> int:
    """Return the memory of this host, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host_context(info: pydantic.ValidationInfo) -> HostContext | None:
    """Return the context of a validation; `None` if it does not check this host."""
    return info.context if isinstance(info.context, HostContext) else None
