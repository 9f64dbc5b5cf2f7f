# SPDX-License-Identifier: BSD-3-Clause
"""What the state disk says of an attempt whose worker cannot speak any more."""

import json
from pathlib import Path

from ppdaemon.folders import NodeFolders
from ppdaemon.node.journal import Entry
from ppdaemon.states import Outcome

__all__ = ("judge_unfinished", "spool_failure")


def judge_unfinished(entry: Entry, folders: NodeFolders) -> Outcome:
    """Find out how an attempt of a former life ended.

    Parameters
    ----------
    entry : `~ppdaemon.node.journal.Entry`
        The attempt; its reason, point of no return and whether it may be
        tried again are set.
    folders : `~ppdaemon.folders.NodeFolders`
        The node's folders.

    Returns
    -------
    outcome : `~ppdaemon.states.Outcome`
        What is spooled has succeeded, or failed as its manifest says; all
        else was interrupted.
    """
    mark = folders.mark(*entry.key)
    if mark.exists():
        entry.no_return = entry.no_return or mark.read_text() or "something permanent"
    folder = folders.spooled(*entry.key)
    if folder.is_dir():
        entry.reason = spool_failure(folder)
        return Outcome.FAILED if entry.reason else Outcome.SUCCEEDED
    entry.reason = "the daemon ended before the visit did"
    entry.retriable = not entry.no_return
    return Outcome.INTERRUPTED


def spool_failure(folder: Path) -> str:
    """Return why a complete spool holds partial outputs only.

    Parameters
    ----------
    folder : `pathlib.Path`
        A spool; its ``manifest.json`` says so under ``failed``.

    Returns
    -------
    reason : `str`
        Blank if the pipeline has succeeded.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return str(manifest.get("failed", ""))
    except (OSError, ValueError, AttributeError) as error:
        return f"the manifest of {folder.name} cannot be read: {error}"
