# SPDX-License-Identifier: BSD-3-Clause
"""Files that an attempt left on the state disk. These functions block."""

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from ppdaemon.durable import sync
from ppdaemon.folders import NodeFolders
from ppdaemon.node.processes.child import wipe
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.model import Leftovers

__all__ = ("discard", "read_leftovers", "spools_left")

_LOG = logging.getLogger(__name__)


def read_leftovers(folders: NodeFolders, key: Key) -> Leftovers:
    """Read the point-of-no-return mark and the spool of an attempt."""
    mark, spool = folders.mark(*key), folders.find_spool(*key)
    # A power failure may have cut the mark anywhere: in a character, or before
    # the first one.
    no_return = (mark.read_text(errors="replace") or "something permanent") if mark.exists() else ""
    if not spool.is_dir():
        return Leftovers(no_return)
    _sync(spool)
    return Leftovers(no_return, str(spool), _why_partial(spool))


def _sync(spool: Path) -> None:
    """Wait until a spool is on the disk: its worker may have ended before it was, although it has its name.
    The exporter does not sync again what it links.
    """
    try:
        for path in (*spool.iterdir(), spool, spool.parent):
            with suppress(FileNotFoundError):  # a packer has replaced the image by one that it has synced
                sync(path)
    except OSError as error:
        _LOG.error(
            "%s cannot be synced, and is exported all the same: %s; check the disk", spool, error.strerror
        )


def _why_partial(spool: Path) -> str:
    """Return why a spool has partial outputs only, or a blank."""
    try:
        manifest = json.loads((spool / "manifest.json").read_bytes())
        # A file name that is not UTF-8 can be neither stored nor sent.
        return str(manifest.get("failed", "")).encode(errors="replace").decode()
    except (OSError, ValueError, AttributeError) as error:
        return f"the manifest of {spool.name} cannot be read: {error}"


def discard(paths: Iterable[Path]) -> None:
    """Delete marks and spools; missing ones are ignored. Raise an `ExceptionGroup` after the others are
    deleted if some cannot be.
    """
    errors = []
    for path in paths:
        try:
            _delete(path)
        except OSError as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup("files of visits cannot be deleted", errors)


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:
        if path.suffix != ".part":
            # A crash in the middle must not leave a spool with half its files under the name of a complete
            # one.
            path = path.rename(path.with_name(f"{path.name}.part"))
        wipe(path)


def spools_left(folders: NodeFolders) -> tuple[Sequence[Key], Sequence[Path]]:
    """Return the attempts whose spools wait for export, sorted by folder name, and other
    complete ones: somebody has renamed them.
    """
    keys, renamed = [], []
    for path in sorted(path for folder in folders.disk_spools for path in folder.iterdir()):
        if name := folders.parse_spool_name(path.name):
            keys.append(Key(*name))
        elif path.suffix not in (".part", ".done") and (path / "manifest.json").exists():
            renamed.append(path)
    return keys, renamed
