# SPDX-License-Identifier: BSD-3-Clause
"""Bringing spools into the central repo: what is registered, what waits, what is set apart.

Covers the judgement of failures. A central repo that is away concerns all
spools alike, and all wait. A spool that cannot be registered though the
central repo works is *set apart*, in another folder, where an operator finds
it with the reason; it keeps no other waiting. Registering itself is
`ppdaemon.middleware.export.register`'s.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import sqlalchemy.exc
from lsst.daf.butler import Butler, ButlerUserError
from lsst.daf.butler.registry import ConflictingDefinitionError

from ppdaemon.clock import Clock
from ppdaemon.durable import sync
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.folders import REFUSAL, remove_spool
from ppdaemon.messages import Exported
from ppdaemon.middleware.butler.central import close
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.export.register import Registrar
from ppdaemon.middleware.export.spool import Manifest, check_files, read_manifest
from ppdaemon.middleware.run.initoutputs import note_exported

__all__ = ("CentralExporter",)

_LOG = logging.getLogger(__name__)

_DATA_ERRORS = (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.DataError)
"""Of what databases raise, that which is about the data."""

_AWAY_ERRORS = (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError)
"""What databases raise, also when they are away or may not be written."""

_CONTENT_ERRORS = (*_DATA_ERRORS, ButlerUserError, ConflictingDefinitionError)
"""What is held against a spool by itself. Any other error is held against it
only if the central repo has taken another spool."""

type Batch = Mapping[Path, Manifest]


@dataclass(slots=True)
class _Sorted:
    """What became of the spools of one export."""

    done: list[Path] = field(default_factory=list)
    datasets: int = 0
    refused: list[Path] = field(default_factory=list)
    suspects: dict[Path, Exception] = field(default_factory=dict)
    """Not registered, and not yet known whose fault it is."""


class CentralExporter:
    """Writes to the central repo on behalf of a host.

    Parameters
    ----------
    uri : `str`
        Root, configuration file or alias of the central repo.
    clock : `~ppdaemon.clock.Clock`
        Tells when.
    node : `str`
        Name of this host's node; no other exporter into this repo has it.
    refused : `pathlib.Path`
        Where spools are set apart; on the filesystem of the spools.
    runs : `pathlib.Path`, optional
        What the workers of this host share of each run
        (`~ppdaemon.middleware.run.initoutputs.InitOutputs`): it is noted there
        when it is in the central repo.
    """

    def __init__(self, uri: str, clock: Clock, node: str, refused: Path, runs: Path | None = None):
        self._uri = uri
        self._clock = clock
        self._refused = refused
        self._runs = runs
        self._registrar = Registrar(node)
        self._butler: Butler | None = None

    def export(self, spools: Sequence[Path]) -> Exported:
        """Register spooled outputs and delete the spools.

        Parameters
        ----------
        spools : `~collections.abc.Sequence` [`pathlib.Path`]
            Spool folders; those that are gone count as exported, unless
            they were set apart.

        Returns
        -------
        exported : `~ppdaemon.messages.Exported`
            The spools that are in the central repo now, and those that
            were set apart.

        Raises
        ------
        ppdaemon.errors.Unavailable
            Raised if the central repo takes nothing. The spools stay,
            but for those that are bad without doubt.
        """
        present = [path for path in spools if path.exists()]
        gone = [path for path in spools if path not in present]
        result = _Sorted(refused=[path for path in gone if (self._refused / path.name).exists()])
        if batch := self._read(present, result):
            try:
                self._export_some(self._open(), batch, result)
                self._judge(result)
            except Unavailable:
                self.close()
                raise
        for path in result.done:
            if self._runs is not None:
                note_exported(self._runs, (ref for file in batch[path].files for ref in file.refs))
            remove_spool(path)
        for path in gone:
            remove_spool(path)
        finished = {*result.done, *gone}.difference(result.refused)
        return Exported(
            spools=tuple(str(path) for path in spools if path in finished),
            refused=tuple(str(path) for path in spools if path in result.refused),
            tai=self._clock.tai(),
            datasets=result.datasets,
        )

    def close(self) -> None:
        """Disconnect; the next export connects anew."""
        butler, self._butler = self._butler, None
        close(butler)

    def _open(self) -> Butler:
        if self._butler is None:
            try:
                self._butler = Butler.from_config(self._uri, writeable=True)
            except Exception as error:  # away, of a newer kind, without its driver: nothing can be exported
                raise Unavailable(
                    f"the central repo {self._uri} cannot be opened for writing: {describe(error)}"
                ) from error
        return self._butler

    def _read(self, spools: Sequence[Path], result: _Sorted) -> Batch:
        """Read manifests; set apart what has none that can be used."""
        batch: dict[Path, Manifest] = {}
        for spool in spools:
            try:
                manifest = read_manifest(spool)
                check_files(spool, manifest)
            except BadMessage as error:
                self._set_apart(spool, error, result)
            else:
                batch[spool] = manifest
        return batch

    def _export_some(self, butler: Butler, batch: Batch, result: _Sorted) -> None:
        """Register all at once; where that does not go, find out which spools are to blame."""
        try:
            result.datasets += self._registrar.register(butler, batch)
            result.done += batch
            return
        except Exception as error:
            failure = error
        if isinstance(failure, OSError):
            parts = [self._readable(batch, failure, result)]
        elif isinstance(failure, _AWAY_ERRORS) and not isinstance(failure, _DATA_ERRORS):
            raise self._takes_nothing(failure) from failure
        elif len(batch) == 1:
            result.suspects.update(dict.fromkeys(batch, failure))
            return
        else:
            _LOG.warning("registering %d spools in halves: %s", len(batch), describe(failure))
            parts = _halves(batch)
        for part in parts:
            if part:
                self._export_some(butler, part, result)

    def _readable(self, batch: Batch, failure: OSError, result: _Sorted) -> Batch:
        """Set apart the spools that cannot be read, whose failure it is then."""
        bad: dict[Path, BadMessage] = {}
        if not is_out_of_space(failure):
            for spool, manifest in batch.items():
                try:
                    check_files(spool, manifest, through=True)
                except BadMessage as error:
                    bad[spool] = error
        if not bad:
            raise self._takes_nothing(failure) from failure
        for spool, fault in bad.items():
            self._set_apart(spool, fault, result)
        return {spool: manifest for spool, manifest in batch.items() if spool not in bad}

    def _judge(self, result: _Sorted) -> None:
        """Set apart what is bad; a central repo that has taken nothing may be to blame itself."""
        doubtful = {}
        for spool, error in result.suspects.items():
            if result.done or isinstance(error, _CONTENT_ERRORS):
                self._set_apart(spool, error, result)
            else:
                doubtful[spool] = error
        if doubtful:
            first = next(iter(doubtful.values()))
            raise self._takes_nothing(first) from first

    def _set_apart(self, spool: Path, error: Exception, result: _Sorted) -> None:
        """Move a spool out of the way, for good, with the reason in it."""
        reason = describe(error)
        _LOG.error("%s cannot be exported, it is set apart in %s: %s", spool.name, self._refused, reason)
        self._refused.mkdir(exist_ok=True)
        try:
            (spool / REFUSAL).write_text(_note(spool, self._uri, reason))
        except OSError as problem:  # what is damaged may refuse a note too
            _LOG.warning("no %s in %s: %s", REFUSAL, spool.name, describe(problem))
        shutil.rmtree(self._refused / spool.name, ignore_errors=True)  # the same spool, copied back before
        spool.rename(self._refused / spool.name)
        sync(self._refused)
        sync(spool.parent)
        result.refused.append(spool)

    def _takes_nothing(self, error: Exception) -> Unavailable:
        return Unavailable(f"the central repo {self._uri} takes nothing: {describe(error)}")


def _halves(batch: Batch) -> list[Batch]:
    middle = len(batch) // 2
    return [dict(islice(batch.items(), middle)), dict(islice(batch.items(), middle, None))]


def _note(spool: Path, uri: str, reason: str) -> str:
    return (
        f"These outputs could not be registered in {uri}:\n\n    {reason}\n\n"
        f"Mend the cause, move this folder back to {spool.parent}\n"
        "and call 'ppctl reload'; or delete it.\n"
    )
