# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the variables, files, folders and maps that a configuration names.

They run while the file is validated; each raises `ValueError`, which the validation
reports with the line of the key.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

from ppdaemon.skymaps import SkyMap

__all__ = ("HostContext", "host_context")

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
        """Return an absolute path, with ``$NAME`` and ``${NAME}`` replaced."""

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in self.environment:
                raise ValueError(f"{text}: environment variable {name!r} is not set")
            return self.environment[name]

        return os.path.abspath(_VARIABLE.sub(value, text))

    def sky_map(self, text: str) -> SkyMap:
        """Return the sky map of a path, read from its file."""
        path = self.path(text)
        if path not in self.maps:
            self.maps[path] = SkyMap(path).read()
        return self.maps[path]

    def folder(self, path: Path) -> Path:
        """Return a folder in which files can be created; it may not exist yet."""
        if not self.writing:
            return path
        # The daemon creates missing folders, so that the nearest existing one counts.
        nearest = path
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise ValueError(f"{path}: {nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ValueError(f"{path}: not writable ({nearest})")
        return path


def host_context(info: pydantic.ValidationInfo) -> HostContext | None:
    """Return the context of a validation; `None` if it does not check this host."""
    return info.context if isinstance(info.context, HostContext) else None
