# SPDX-License-Identifier: BSD-3-Clause
"""What the state disk says of an attempt whose worker died. Blocks."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from ppdaemon.folders import NodeFolders
from ppdaemon.node.processes.child import wipe
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.turn import Leftovers

__all__ = ("discard", "read_leftovers", "spools_left")


def read_leftovers(folders: NodeFolders, key: Key) -> Leftovers:
    """Read the mark and the spool of an attempt."""
    mark, spool = folders.mark(*key), folders.spooled(*key)
    # A power failure may have cut it anywhere.
    no_return = (mark.read_text(errors="replace") or "something permanent") if mark.exists() else ""
    if not spool.is_dir():
        return Leftovers(no_return)
    return Leftovers(no_return, str(spool), _why_partial(spool))


def _why_partial(spool: Path) -> str:
    """Return why a complete spool holds partial outputs only, or a blank."""
    try:
        manifest = json.loads((spool / "manifest.json").read_bytes())
        # Names of files that are not UTF-8 cannot be written or sent.
        return str(manifest.get("failed", "")).encode(errors="replace").decode()
    except (OSError, ValueError, AttributeError) as error:
        return f"the manifest of {spool.name} cannot be read: {error}"


def discard(folders: Iterable[Path]) -> None:
    """Delete folders; missing ones are fine."""
    for folder in folders:
        if folder.suffix != ".part" and folder.exists():
            # Half of a spool must never be taken for one.
            folder = folder.rename(folder.with_name(f"{folder.name}.part"))
        wipe(folder)


def spools_left(folders: NodeFolders) -> Sequence[Key]:
    """Return the attempts whose spools wait for export, the first by name."""
    names = sorted(folder.name for folder in folders.spool.iterdir())
    return [Key(*name) for name in map(folders.read_spooled, names) if name]
