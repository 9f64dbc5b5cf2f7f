# SPDX-License-Identifier: BSD-3-Clause
"""Exports spools by the observatory's own writer service, instead of registering them.

The files are copied to where the central repo's datastore has them, and one event for each spool is
sent over Kafka, in the form that LSST's ``prompt_processing_butler_writer`` reads: the service
registers what it names. Nothing here connects to the central database.

The service loses a whole event if one dataset of it contradicts the registry, so a dataset is handed
over only once: by the first spool that finds no file in its place.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pydantic
from lsst.daf.butler import (
    ButlerConfig,
    DatasetRef,
    DatasetTypeNotSupportedError,
    Datastore,
    DimensionUniverse,
    FileDataset,
    SerializedDatasetType,
    SerializedFileDataset,
)
from lsst.daf.butler._standalone_datastore import instantiate_standalone_datastore
from lsst.daf.butler.dimensions import SerializedDimensionRecord
from lsst.resources import ResourcePath

from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig
from ppdaemon.durable import write_durably
from ppdaemon.errors import BadMessage, Unavailable
from ppdaemon.folders import remove_spool
from ppdaemon.messages import Exported, ImagesGivenUp
from ppdaemon.middleware.butler.datafiles import file_dataset
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.butler.repo import template_dimensions
from ppdaemon.middleware.export.checksums import copy_checked
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import Manifest, SpooledFile, read_manifest
from ppdaemon.middleware.export.mark import COMMAND, MARK
from ppdaemon.middleware.export.packing import Packer
from ppdaemon.middleware.export.quarantine import quarantine, rejection
from ppdaemon.middleware.export.spool import check_files, give_up_oldest_images, image_types
from ppdaemon.middleware.export.syncing import sync_all
from ppdaemon.middleware.run.initoutputs import record_exported
from ppdaemon.publish.kafka import KafkaMessage, KafkaProducer

__all__ = ("WriterEvent", "WriterExporter")

_LOG = logging.getLogger(__name__)

_OURS = "handed_over.txt"
"""File in a spool with the ids of the datasets whose place was free when they were copied: what is
there at another try is of this spool."""


class _Suspect(Unavailable):
    """A spool was not copied; it or the datastore may be the cause."""


class WriterEvent(pydantic.BaseModel):
    """The event of a spool; names and types are those of the service."""

    type: Literal["pp-output"] = "pp-output"
    dimension_records: tuple[SerializedDimensionRecord, ...]
    dataset_types: tuple[SerializedDatasetType, ...]
    datasets: tuple[SerializedFileDataset, ...]


class WriterExporter:
    """Copies spooled files into the datastore of a repo, and sends the events.

    `template` is the repo that workers copy, with the dimensions of the central
    one. `refused` and `runs` as in `~ppdaemon.middleware.export.exporter.CentralExporter`.
    """

    def __init__(
        self,
        uri: str,
        template: Path,
        config: ExportConfig,
        clock: Clock,
        refused: Path,
        runs: Path | None,
        packer: Packer | None = None,
    ):
        self._uri = uri
        self._template = template
        self._config = config.writer
        self._images = image_types(config.images)
        self._clock = clock
        self._refused = refused
        self._runs = runs
        self._universe: DimensionUniverse | None = None
        self._producer: KafkaProducer | None = None
        self._packer = packer or Packer(Path(), (), 0)
        self._packing: set[Path] = set()
        """Spools that wait for their images, because there is one event for each."""
        self._unreported: set[Path] = set()
        """As in `~ppdaemon.middleware.export.exporter.CentralExporter`."""

    def export(self, spools: Sequence[Path]) -> Exported:
        """Hand spools over and delete them; report which were handed over and which quarantined.

        Raises `~ppdaemon.errors.Unavailable` if the datastore or Kafka cannot be
        written to; the spools stay then, except those that were handed over.
        """
        self._packer.collect(wait=self._packing.issuperset(spools))
        try:
            return self._export(spools)
        finally:
            self._packer.start()

    def _export(self, spools: Sequence[Path]) -> Exported:
        present = {spool: None for spool in spools if spool.exists()}
        missing = [spool for spool in spools if spool not in present]
        results = _Results(refused=[spool for spool in missing if (self._refused / spool.name).exists()])
        before = [spool for spool in missing if spool in self._unreported and spool not in results.refused]
        for spool in missing:
            remove_spool(spool)  # a half-deleted folder may be left of it
        for spool in present:
            self._take(spool, results)
        self._resolve_suspects(results)
        later = self._send(results)
        sent = [spool for spool in results.copied if spool not in results.refused and spool not in later]
        for spool in sent:
            if self._runs is not None:
                record_exported(self._runs, results.copied[spool].init_outputs())
            self._unreported.add(spool)
            remove_spool(spool)
        if later and not before and not sent and not results.refused:
            raise Unavailable(next(iter(later.values())))
        self._unreported.difference_update(spools)
        manifests = {str(spool): results.copied[spool] for spool in sent}
        return Exported(
            spools=tuple(map(str, (*before, *sent))),
            refused=tuple(map(str, results.refused)),
            gone=tuple(str(each) for each in missing if each not in before and each not in results.refused),
            packing=tuple(str(spool) for spool in spools if spool in self._packing),
            tai=self._clock.tai(),
            datasets=results.datasets,
            size_bytes=sum(file.size_bytes for manifest in manifests.values() for file in manifest.files),
            skipped={str(spool): text for spool, text in results.skipped.items()},
            given_up={spool: ", ".join(each.given_up) for spool, each in manifests.items() if each.given_up},
        )

    def _take(self, spool: Path, results: "_Results") -> None:
        """Copy the files of a spool, unless its images are being packed."""
        if spool in self._packing and self._packer.has_images_of(spool):
            return
        try:
            manifest = self._packer.reduced(spool, read_manifest(spool))
            check_files(spool, manifest)
            if self._packer.has_images_of(spool):
                self._packing.add(spool)
                return
            self._packing.discard(spool)
            events, others = self._copy(spool, manifest)
        except BadMessage as error:
            self._refuse(spool, error, results)
            return
        except _Suspect as error:
            results.suspects[spool] = error
            return
        results.copied[spool] = manifest
        results.datasets += sum(len(event.datasets) for event in events)
        if others:
            results.skipped[spool] = f"another one was first: {', '.join(others)}"
        key = f"{manifest.key.instrument} {manifest.key.detector}"
        results.events |= {KafkaMessage(key, event.model_dump_json().encode()): spool for event in events}

    def _refuse(self, spool: Path, error: Exception, results: "_Results") -> None:
        quarantine(spool, error, self._refused, self._uri)
        results.refused.append(spool)

    def _resolve_suspects(self, results: "_Results") -> None:
        for spool, suspect in results.suspects.items():
            if not results.copied:
                raise suspect
            # The datastore took another spool: it is not the cause.
            self._refuse(spool, suspect, results)

    def give_up_images(self, folders: Sequence[Path], excess_bytes: int) -> ImagesGivenUp:
        """Delete images of about this size, those of the oldest spools in these folders first."""
        return give_up_oldest_images(folders, self._images, excess_bytes, self._packer.busy)

    def mark_datastore(self) -> str:
        """Mark the datastore as the repo's, with a connection to its database; see
        `~ppdaemon.middleware.export.mark`.
        """
        return CentralExporter(self._uri, self._clock, "", self._refused).mark_datastore()

    def _copy(self, spool: Path, manifest: Manifest) -> tuple[list[WriterEvent], list[str]]:
        """Copy the files whose place is free; return the events, and the types of the other datasets."""
        try:
            universe = self._dimensions()
            datastore, database = instantiate_standalone_datastore(ButlerConfig(self._uri), universe)
        except Exception as error:  # no configuration there, or no template
            raise Unavailable(f"the central repo {self._uri} cannot be read: {describe(error)}") from error
        try:
            try:
                files = [_PlacedFile.of(file, datastore, universe) for file in manifest.files]
            except Exception as error:  # of the references, or of the template of names
                raise BadMessage(f"{spool}: no place in the datastore: {describe(error)}") from error
            taken, ours = _existing(datastore, files), _read_ours(spool)
            free = [each for each in files if each.place not in taken or each.name in ours]
            write_durably(spool / _OURS, "\n".join(each.name for each in free))
            for each in free:
                copy_checked(f"{spool}/{each.file.name}", None, each.file.size_bytes, each.file.checksum)
            copies = [file_dataset(spool / each.file.name, each.refs, each.file.formatter) for each in free]
            if copies:
                datastore.ingest(*copies, transfer="copy", record_validation_info=False)
                _sync(each.place for each in free)
            new = [ref for each in free for ref in each.refs]
            placed = list(datastore.export(new, directory=None, transfer=None))
        except (BadMessage, Unavailable):
            raise
        except DatasetTypeNotSupportedError as error:
            raise rejection(error) from error
        except Exception as error:  # each kind of store raises others
            text = f"the datastore of {self._uri} cannot be written to: {describe(error)}"
            raise (Unavailable if isinstance(error, OSError) else _Suspect)(text) from error
        finally:
            database.dispose()
        others = {each.refs[0].datasetType.name for each in files if each not in free}
        return _events(manifest, placed), sorted(others)

    def _dimensions(self) -> DimensionUniverse:
        if self._universe is None:
            self._universe = template_dimensions(self._template)
        return self._universe

    def _send(self, results: "_Results") -> dict[Path, str]:
        """Send the events; quarantine the spools of those that are never accepted, return those to send
        again with the reason.
        """
        events = results.events
        if not events:
            return {}
        if self._producer is None:
            self._producer = KafkaProducer(
                self._config.brokers, self._config.options, self._config.timeout_s, self._config.password
            )
        unsent = self._producer.send(self._config.topic, list(events))
        for spool in dict.fromkeys(events[message] for message in unsent.refused):
            self._refuse(spool, BadMessage(unsent.reason), results)
        reason = f"the writer's topic {self._config.to} cannot be written to: {unsent.reason}"
        return {events[message]: reason for message in unsent.later if events[message] not in results.refused}


@dataclass(slots=True)
class _Results:
    """Results of the spools of one export."""

    refused: list[Path]
    copied: dict[Path, Manifest] = field(default_factory=dict)
    events: dict[KafkaMessage, Path] = field(default_factory=dict)
    datasets: int = 0
    skipped: dict[Path, str] = field(default_factory=dict)
    suspects: dict[Path, _Suspect] = field(default_factory=dict)
    """Not copied; not yet decided whether the spool or the datastore is the cause."""


@dataclass(frozen=True, slots=True, eq=False)
class _PlacedFile:
    """A spooled file, and where the datastore will have it."""

    file: SpooledFile
    refs: list[DatasetRef]
    place: ResourcePath

    @property
    def name(self) -> str:
        """Its name in `_OURS`; packing changes that of the file."""
        return str(self.refs[0].id)

    @classmethod
    def of(cls, file: SpooledFile, datastore: Datastore, universe: DimensionUniverse) -> "_PlacedFile":
        refs = [DatasetRef.from_simple(ref.simple(), universe=universe) for ref in file.refs]
        place = datastore.getURI(refs[0], predict=True).replace(fragment="")
        extension = ResourcePath(file.name, forceAbsolute=False).getExtension()
        return cls(file, refs, place.updatedExtension(extension))


def _existing(datastore: Datastore, files: Iterable[_PlacedFile]) -> set[ResourcePath]:
    """Return the places that have a file."""
    for root in datastore.roots.values():
        # A mount that is away is an empty folder, or none: its files would be lost with the spool.
        if root is not None and root.isLocal and not root.join(MARK).exists():
            raise Unavailable(
                f"the datastore {root} has no mark {MARK}: nothing is exported. If it is mounted and belongs"
                f" to the repo, run '{COMMAND}' once"
            )
    return {uri for uri, exists in ResourcePath.mexists(each.place for each in files).items() if exists}


def _read_ours(spool: Path) -> set[str]:
    try:
        return set((spool / _OURS).read_text().split("\n"))
    except FileNotFoundError:
        return set()


def _sync(places: Iterable[ResourcePath]) -> None:
    """Write local files and their names to the disk: the spool will be deleted."""
    paths = [Path(uri.ospath) for uri in places if uri.isLocal]
    sync_all([*paths, *{path.parent for path in paths}])


def _events(manifest: Manifest, placed: Sequence[FileDataset]) -> list[WriterEvent]:
    """Return up to two events: of the datasets that several detectors or hosts may have made at the same
    moment, such as configurations, and of the others. Only the first can contradict the registry.
    """
    shared = [file for file in placed if "detector" not in file.refs[0].datasetType.dimensions]
    own = [file for file in placed if "detector" in file.refs[0].datasetType.dimensions]
    return [
        WriterEvent(
            dimension_records=manifest.records,
            dataset_types=tuple(
                each.to_simple() for each in sorted({ref.datasetType for file in files for ref in file.refs})
            ),
            datasets=tuple(file.to_simple() for file in files),
        )
        for files in (shared, own)
        if files
    ]
