# SPDX-License-Identifier: BSD-3-Clause
"""Exports spools to the central repo, and decides what happens to those that fail.

If the central repo is not available, all spools wait. A spool that cannot be
registered although the central repo works is *quarantined*: moved to another
folder, together with the reason, where an operator finds it; it does not block
the others. Registering is done by `ppdaemon.middleware.export.register`.
"""

import gc
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path

import sqlalchemy
from lsst.daf.butler import Butler, ButlerUserError
from lsst.daf.butler.registry import ConflictingDefinitionError

from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.folders import remove_spool
from ppdaemon.messages import Exported, ImagesGivenUp
from ppdaemon.middleware.butler.central import close, disconnect, recorded_engines
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe
from ppdaemon.middleware.export.manifest import Manifest, read_manifest
from ppdaemon.middleware.export.mark import DatastoreMark, mark_datastore
from ppdaemon.middleware.export.packing import Packer
from ppdaemon.middleware.export.quarantine import quarantine
from ppdaemon.middleware.export.register import DamagedSpools, Registrar
from ppdaemon.middleware.export.spool import check_files, give_up_oldest_images
from ppdaemon.middleware.run.initoutputs import record_exported

__all__ = ("CentralExporter",)

_LOG = logging.getLogger(__name__)

_DATA_ERRORS = (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.DataError)
"""Database errors caused by the data."""

_REPO_ERRORS = (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError, OSError)
"""All errors of the database and of the datastore's filesystem; those that are not data
errors mean that they are not available or not writable."""

_SPOOL_ERRORS = (*_DATA_ERRORS, BadMessage, ButlerUserError, ConflictingDefinitionError)
"""Errors caused by the spool itself. Any other error is attributed to the spool
only if the central repo accepted another spool in the same export."""

type Batch = Mapping[Path, Manifest]


@dataclass(slots=True)
class _Results:
    """Results of the spools of one export."""

    done: list[Path] = field(default_factory=list)
    datasets: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    refused: list[Path] = field(default_factory=list)
    suspects: dict[Path, Exception] = field(default_factory=dict)
    """Not registered; not yet decided whether the spool or the repo is the cause."""


class CentralExporter:
    """Writes the spools of a host to the central repo.

    `node` must differ between the hosts that export to one repo. `refused` is
    the quarantine folder, on the filesystem of the spools. In `runs`, shared by
    the host's workers (`~ppdaemon.middleware.run.initoutputs.InitOutputs`),
    exported init-outputs are recorded.
    """

    def __init__(
        self,
        uri: str,
        clock: Clock,
        node: str,
        refused: Path,
        runs: Path | None = None,
        config: ExportConfig | None = None,
        packer: Packer | None = None,
    ):
        self._uri = uri
        self._clock = clock
        self._refused = refused
        self._runs = runs
        config = config or ExportConfig()
        self._copies = config.copies
        self._registrar = Registrar(node, config)
        self._packer = packer or Packer(Path(), (), 0)
        self._begun: set[Path] = set()
        """Spools whose images are being packed; all other datasets of them are registered."""
        self._unreported: set[Path] = set()
        """Deleted spools that are in no report yet: an error may follow before there is one."""
        self._butler: Butler | None = None
        self._mark: DatastoreMark | None = None
        self._engines: set[sqlalchemy.Engine] = set()

    def export(self, spools: Sequence[Path]) -> Exported:
        """Register spooled outputs and delete the spools; report which were exported and which quarantined.
        While the images of a spool are packed, only its other datasets are registered, and it stays.

        Of the spool folders that do not exist, those in quarantine, and those that
        this exporter has not exported, are reported as such. Raises
        `~ppdaemon.errors.Unavailable` if the central repo accepts nothing: the spools
        then stay, except those that are certainly invalid.
        """
        self._packer.collect(wait=self._begun.issuperset(spools))
        try:
            with _without_collections():
                return self._export(spools)
        finally:
            # Afterwards: no thread is active, and no connection is in use.
            self._packer.start()

    def _export(self, spools: Sequence[Path]) -> Exported:
        present = {path: None for path in spools if path.exists()}
        gone = [path for path in spools if path not in present]
        result = _Results(refused=[path for path in gone if (self._refused / path.name).exists()])
        batch: Batch = {}
        try:
            # First: a repo that is away costs no more than this.
            # Nor does one whose spools all wait for packers.
            opened = self._open() if any(not self._waits(path) for path in present) else None
            if opened is not None and (batch := self._read(present, result)):
                self._export_some(*opened, batch, result)
                self._resolve_suspects(result)
        except Unavailable:
            self.close()
            raise
        # A firewall drops idle connections without a word, and the next query would hang.
        disconnect(self._engines)
        packing = [path for path in present if self._packer.has_images_of(path)]
        self._begun = self._begun.intersection(packing).union(path for path in packing if path in result.done)
        done = [path for path in result.done if path not in packing]
        # Before the spools are deleted: after a crash in between, they are exported
        # again, and recorded then.
        if self._runs is not None:
            record_exported(self._runs, (each for path in done for each in batch[path].init_outputs()))
        self._unreported.update(done)
        self._remove((*done, *gone))  # of those that are gone, a half-deleted folder may be left
        finished = {*done, *self._unreported}
        self._unreported.difference_update(spools)
        return Exported(
            spools=tuple(str(path) for path in spools if path in finished),
            refused=tuple(str(path) for path in spools if path in result.refused),
            gone=tuple(str(path) for path in gone if path not in finished and path not in result.refused),
            packing=tuple(str(path) for path in packing if path not in result.refused),
            tai=self._clock.tai(),
            datasets=result.datasets,
            size_bytes=sum(file.size_bytes for path in done for file in batch[path].files),
            skipped={str(path): result.skipped[path] for path in result.done if path in result.skipped},
            given_up={str(path): ", ".join(batch[path].given_up) for path in done if batch[path].given_up},
        )

    def _waits(self, spool: Path) -> bool:
        """Return whether only images of a spool are left, and they are packed now."""
        return spool in self._begun and self._packer.has_images_of(spool)

    def _remove(self, spools: Sequence[Path]) -> None:
        # In parallel: each name that is deleted may wait for the filesystem's journal.
        def remove(left: Iterator[Path]) -> None:
            for spool in left:
                remove_spool(spool)

        with ThreadPoolExecutor(self._copies, "remove") as threads:
            for _ in threads.map(remove, repeat(iter(spools), self._copies)):
                pass

    def give_up_images(self, folders: Sequence[Path], excess_bytes: int) -> ImagesGivenUp:
        """Delete images of about this size, those of the oldest spools in these folders first."""
        return give_up_oldest_images(folders, self._registrar.images, excess_bytes, self._packer.busy)

    def mark_datastore(self) -> str:
        """Mark the datastore as the repo's; see `ppdaemon.middleware.export.mark`."""
        try:
            return mark_datastore(self._connect())
        except DATABASE_ERRORS as error:
            raise self._unavailable(error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Disconnect; the next export connects again."""
        butler, self._butler, self._mark = self._butler, None, None
        self._engines.clear()
        close(butler)

    def _open(self) -> tuple[Butler, DatastoreMark]:
        """Connect, and check that the datastore is there."""
        butler = self._connect()
        try:
            if self._mark is None:
                self._mark = DatastoreMark(butler)
                self._registrar.connect(butler)
        except DATABASE_ERRORS as error:
            raise self._unavailable(error) from error
        self._mark.check()
        return butler, self._mark

    def _connect(self) -> Butler:
        if self._butler is None:
            try:
                with recorded_engines(self._engines):
                    self._butler = Butler.from_config(self._uri, writeable=True)
            # Down, of a newer version, or without its driver: nothing can be exported.
            except Exception as error:
                raise Unavailable(
                    f"the central repo {self._uri} cannot be opened for writing: {describe(error)}"
                ) from error
        return self._butler

    def _read(self, spools: Iterable[Path], result: _Results) -> Batch:
        """Read the manifests; quarantine spools without a valid one."""
        batch: dict[Path, Manifest] = {}
        for spool in spools:
            if self._waits(spool):
                continue
            try:
                # Those that are packed now are renamed at any time.
                manifest = self._packer.reduced(spool, read_manifest(spool))
                check_files(spool, manifest)
            except BadMessage as error:
                self._quarantine(spool, error, result)
            else:
                batch[spool] = manifest
        return batch

    def _export_some(self, butler: Butler, mark: DatastoreMark, batch: Batch, result: _Results) -> None:
        """Register all spools together; if that fails, find the spools that cause it."""
        try:
            registered = self._registrar.register(butler, mark, batch)
            result.datasets += registered.datasets
            result.skipped.update(registered.skipped)
            result.done += batch
            return
        except Unavailable:
            raise
        except Exception as error:
            failure = error
        parts: list[Batch]
        if isinstance(failure, DamagedSpools):
            for spool, fault in failure.faults.items():
                self._quarantine(spool, fault, result)
            parts = [{spool: manifest for spool, manifest in batch.items() if spool not in failure.faults}]
        elif isinstance(failure, _REPO_ERRORS) and not isinstance(failure, _DATA_ERRORS):
            raise self._unavailable(failure) from failure
        elif self._registrar.forget():
            parts = [batch]  # what the repo had at an earlier export may have been removed since
        elif len(batch) == 1:
            result.suspects.update(dict.fromkeys(batch, failure))
            return
        else:
            _LOG.warning(
                "%d spools cannot be registered together, trying in halves to find the bad one: %s",
                len(batch),
                describe(failure),
            )
            parts = _halves(batch)
        for part in parts:
            if part:
                self._export_some(butler, mark, part, result)

    def _resolve_suspects(self, result: _Results) -> None:
        """Quarantine the suspects, unless the central repo, having accepted nothing, may be the cause."""
        undecided = {}
        for spool, error in result.suspects.items():
            if result.done or isinstance(error, _SPOOL_ERRORS):
                self._quarantine(spool, error, result)
            else:
                undecided[spool] = error
        if undecided:
            first = next(iter(undecided.values()))
            raise self._unavailable(first) from first

    def _quarantine(self, spool: Path, error: Exception, result: _Results) -> None:
        """Move a spool to quarantine, with the reason in it."""
        quarantine(spool, error, self._refused, self._uri)
        result.refused.append(spool)

    def _unavailable(self, error: Exception) -> Unavailable:
        return Unavailable(f"the central repo {self._uri} cannot be written to: {describe(error)}")


@contextmanager
def _without_collections() -> Iterator[None]:
    """Let no garbage be collected: a collection finds each dataset of the export in use, and takes a
    fifteenth of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _halves(batch: Batch) -> list[Batch]:
    middle = len(batch) // 2
    return [dict(islice(batch.items(), middle)), dict(islice(batch.items(), middle, None))]
