# SPDX-License-Identifier: BSD-3-Clause
"""Moves a spool that cannot be exported to another folder, with the reason, for an operator."""

import errno
import logging
import shutil
from pathlib import Path

from lsst.daf.butler import DatasetTypeNotSupportedError

from ppdaemon import log
from ppdaemon.durable import sync
from ppdaemon.errors import BadMessage
from ppdaemon.folders import REFUSAL, NodeFolders, move_spool
from ppdaemon.middleware.butler.failures import describe

__all__ = ("quarantine", "rejection")

_LOG = logging.getLogger(__name__)


def quarantine(spool: Path, error: Exception, refused: Path, uri: str) -> None:
    """Move a spool to the quarantine folder `refused`, with the reason in it; `uri` is the central repo."""
    reason = describe(error)
    names = ("instrument", "group", "detector", "attempt")
    with log.about(**dict(zip(names, NodeFolders.parse_spool_name(spool.name) or (), strict=False))):
        _LOG.error(
            "spool %s cannot be exported, it is quarantined in %s (see %s there to export it again): %s",
            spool.name,
            refused,
            REFUSAL,
            reason,
        )
    refused.mkdir(exist_ok=True)
    try:
        (spool / REFUSAL).write_text(_note(refused.with_name("spool"), uri, reason))
    except OSError as problem:  # a damaged folder may not be writable either
        _LOG.warning(
            "the reason cannot be written to %s in spool %s: %s", REFUSAL, spool.name, describe(problem)
        )
    # The operator may have copied the spool back, instead of moving it.
    shutil.rmtree(refused / spool.name, ignore_errors=True)
    try:
        spool.rename(refused / spool.name)
    except OSError as problem:
        if problem.errno != errno.EXDEV:
            raise
        try:
            move_spool(spool, refused)  # it is on the RAM disk
        except OSError as full:
            # Not raised: the exports that make room on the disk would wait for it.
            _LOG.error("spool %s stays in %s until the next start: %s", spool.name, spool.parent, full)
    else:
        # The new entry first: a power failure must not lose both.
        sync(refused)
        sync(spool.parent)


def rejection(error: DatasetTypeNotSupportedError) -> BadMessage:
    """Return the reason for a spool with a dataset that the datastore does not accept."""
    return BadMessage(
        f"the datastore's constraints, in butler.yaml, reject a type of export.types: {describe(error)}"
    )


def _note(spools: Path, uri: str, reason: str) -> str:
    return (
        f"These outputs could not be registered in {uri}:\n\n    {reason}\n\n"
        f"To export them, remove the cause, move this folder back to {spools}\n"
        "and run 'ppctl reload'. To make them again instead, run 'ppctl retry GROUP DETECTOR',\n"
        "and delete this folder.\n"
    )
