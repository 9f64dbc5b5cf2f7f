# SPDX-License-Identifier: BSD-3-Clause
"""What a configuration refers to on this host: variables, files, folders, maps.

Covers checks while a file is validated; each raises `ValueError`, which the
validation tells with its line.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pydantic

from ppdaemon.skymaps import SkyMap

__all__ = ("ThisHost", "this_host")

_VARIABLE = re.compile(r"\$(?:(\w+)|\{([^}]*)\})")


@dataclass(frozen=True, slots=True)
class ThisHost:
    """The context of a validation that looks at this host, too.

    Without it, a configuration is taken as another process has checked it.
    """

    environment: Mapping[str, str]
    maps: dict[str, SkyMap] = field(default_factory=dict)
    writing: bool = True

    def path(self, text: str) -> str:
        """Return an absolute path with its variables replaced."""

        def value(match: re.Match[str]) -> str:
            name = match[1] or match[2]
            if name not in self.environment:
                raise ValueError(f"{text}: environment variable {name!r} is not set")
            return self.environment[name]

        return os.path.abspath(_VARIABLE.sub(value, text))

    def sky_map(self, text: str) -> SkyMap:
        """Return the map of a path, read."""
        path = self.path(text)
        if path not in self.maps:
            self.maps[path] = SkyMap(path).read()
        return self.maps[path]

    def folder(self, path: Path) -> Path:
        """Return a folder in which files can be made; it may not exist yet."""
        if not self.writing:
            return path
        nearest = path
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir():
            raise ValueError(f"{path}: {nearest} is not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ValueError(f"{path}: not writable ({nearest})")
        return path


def this_host(info: pydantic.ValidationInfo) -> ThisHost | None:
    """Return the context of a validation, if it is one with files."""
    return info.context if isinstance(info.context, ThisHost) else None
