# SPDX-License-Identifier: BSD-3-Clause
"""Images that are spooled uncompressed and compressed beside the exporter."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import astropy.io.fits
import numpy as np
import pytest
from centrals import FIRST
from lsst.daf.butler import Butler, ButlerConfig, Config, DatasetProvenance, DatasetRef, DatasetType
from lsst.images import Image, MaskedImage, MaskPlane, MaskSchema
from lsst.images.serialization import open_archive
from lsst.pipe.base import PipelineTask, Struct
from lsst.pipe.base.connectionTypes import Output
from objecttasks import RAW, task
from toycam import EXPOSURE, NAME, MakeRig, ToyCam

from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig
from ppdaemon.demo.services import QUICK_IMAGES
from ppdaemon.errors import VisitFailed
from ppdaemon.folders import REFUSAL, NodeFolders
from ppdaemon.messages import Exported, Process
from ppdaemon.middleware import butlerwork, work
from ppdaemon.middleware.butler.datafiles import LocatedFile
from ppdaemon.middleware.butler.repo import template_dimensions, template_repo, write_content
from ppdaemon.middleware.direct.files import DatasetWriter, MemoryDataset
from ppdaemon.middleware.direct.writing import write_outputs
from ppdaemon.middleware.export import exporter as exporting
from ppdaemon.middleware.export import manifest as manifests
from ppdaemon.middleware.export import packing
from ppdaemon.middleware.export.exporter import CentralExporter
from ppdaemon.middleware.export.manifest import MANIFEST, SpooledFile, SpoolKey, read_manifest
from ppdaemon.middleware.export.outputs import SelectedOutputs
from ppdaemon.middleware.export.packing import Packer, pack
from ppdaemon.middleware.export.spool import check_files, write_spool
from ppdaemon.middleware.run.engine import PipelineRun
from ppdaemon.states import Outcome
from ppdaemon.uncompressed import Uncompressed, UncompressedRoom

pytest_plugins = ("toyfixtures",)

RUN, CHAIN = f"{NAME}/prompt/run", f"{NAME}/prompt"
IMAGE_RUN = f"{NAME}/prompt/images"
MASK = MaskSchema([MaskPlane("BAD", "bad")])


def an_image(detector: int) -> MaskedImage:
    pixels = np.random.default_rng(detector).normal(scale=10, size=(300, 400)).astype(np.float32)
    pixels[1, 2] = np.nan
    image = MaskedImage(Image(pixels), variance=Image(np.abs(pixels) + 100), mask_schema=MASK)
    image.metadata["epoch"] = "new"
    return image


IMAGE = "MaskedImageV2"


def _show(self: PipelineTask, raw: Any) -> Struct:
    return Struct(picture=an_image(int(raw["exposure"] % 10)))


PictureTask = task(
    "Picture",
    {
        "raw": RAW,
        "picture": Output(name="picture", doc="", storageClass=IMAGE, dimensions=EXPOSURE),
    },
    module=__name__,
    run=_show,
)


class Site:
    """A template, a central repo, and spools with an image and a catalog each."""

    def __init__(self, folder: Path):
        self.folder, self.spool = folder, folder / "spool"
        quick = Config({"datastore": {"formatters": QUICK_IMAGES}})
        Butler.makeRepo(str(folder / "template" / "repo"), config=quick)
        write_content(folder / "template", "versions")
        self.central = folder / "central"
        Butler.makeRepo(str(self.central))
        with Butler.from_config(str(self.central), writeable=True) as butler:
            ToyCam().register(butler.registry)
            self.universe = butler.dimensions
            self.ids = [butler.registry.expandDataId(instrument=NAME, detector=each) for each in range(3)]
        dimensions = ("instrument", "detector")
        self.image = DatasetType("image", dimensions, IMAGE, universe=self.universe)
        self.catalog = DatasetType("catalog", dimensions, "StructuredDataDict", universe=self.universe)
        self.writer = DatasetWriter(ButlerConfig(str(folder / "template" / "repo")), self.universe)
        (folder / "uncompressed").mkdir()
        self.room = UncompressedRoom(folder / "uncompressed", folder, 10, 10**9)

    def outputs(self, detector: int, image_run: str = RUN) -> list[MemoryDataset]:
        runs = {self.image: image_run, self.catalog: RUN}
        refs = [DatasetRef(each, self.ids[detector], run=run) for each, run in runs.items()]
        provenance = DatasetProvenance(inputs=[refs[1].to_simple()], quantum_id=refs[1].id)
        contents = an_image(detector), {"sources": detector}
        return [
            MemoryDataset(ref, content, to_export=True, provenance=provenance)
            for ref, content in zip(refs, contents, strict=True)
        ]

    def write(
        self,
        detector: int = 0,
        outputs: Iterable[MemoryDataset] = (),
        *,
        plain: bool = True,
        runs: tuple[str, ...] = (RUN,),
    ) -> Path:
        def written(folder: Path) -> list[LocatedFile]:
            link = self.folder / "link"
            take = (lambda ref, size: True) if plain else None
            files, failures = write_outputs(datasets, folder, link, self.writer, 1, take)
            assert not failures
            return files

        datasets = list(outputs or self.outputs(detector))
        key = SpoolKey(instrument=NAME, group="g", detector=detector, attempt=1)
        outputs = SelectedOutputs((), cast(PipelineRun, SimpleNamespace(write=written)))
        return write_spool(self.spool, key, outputs.fill, [], {CHAIN: runs})

    def exporter(self, processes: int = 2) -> CentralExporter:
        packer = Packer(self.folder / "template", (self.spool,), processes, self.room)
        config, refused = ExportConfig(images=("image",)), self.folder / "refused"
        return CentralExporter(str(self.central), Clock(), "n1", refused, config=config, packer=packer)

    def registered(self, name: str) -> dict[int, Any]:
        """Return the datasets of a type, by detector."""
        with Butler.from_config(str(self.central)) as butler:
            refs = butler.query_datasets(name, collections=CHAIN, instrument=NAME, explain=False)
            return {int(ref.dataId["detector"]): butler.get(ref) for ref in refs}

    def files(self) -> dict[str, Path]:
        return {path.name: path for path in self.central.rglob("*.fits")}


@pytest.fixture(autouse=True)
def _idle_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def until_exported(exporter: CentralExporter, spools: list[Path]) -> Exported:
    """Export again until no image has to be packed."""
    while (exported := exporter.export(spools)).packing:
        assert set(exported.packing) <= set(map(str, spools))
    return exported


def hdus(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield headers and data as they are stored, without the time of writing."""
    with astropy.io.fits.open(path, disable_image_compression=True) as found:
        for hdu in found:
            header = {card.keyword: card.value for card in hdu.header.cards if card.keyword != "DATE"}
            yield header, b"" if hdu.data is None else hdu.data.tobytes()


def test_a_packed_image_is_that_which_the_worker_would_have_written(site: Site) -> None:
    outputs = site.outputs(1)
    image = outputs[0]
    (site.folder / "direct").mkdir()
    direct = site.writer.write(image.content, image.ref, site.folder / "direct", image.provenance).path
    spool = site.write(1, outputs)
    before = read_manifest(spool)
    assert [file.plain for file in before.files] == [True, False]
    pack(spool, site.writer)
    after = read_manifest(spool)
    assert [file.plain for file in after.files] == [False, False]
    assert before.files[1] == after.files[1]
    assert {path.name for path in spool.iterdir()} == {MANIFEST, *(file.name for file in after.files)}
    packed = spool / after.files[0].name
    assert list(hdus(packed)) == list(hdus(direct))
    assert (packed.stat().st_size, packed.suffix) == (direct.stat().st_size, ".fits")
    assert before.files[0].size_bytes > 3 * after.files[0].size_bytes
    assert before.files[0].checksum != after.files[0].checksum


def test_catalogs_are_exported_before_the_images_are_packed(site: Site) -> None:
    spools = [site.write(detector) for detector in range(3)]
    with closing(site.exporter()) as exporter:
        first = exporter.export(spools)
        assert (first.spools, first.packing) == ((), tuple(map(str, spools)))
        assert site.registered("catalog") == {detector: {"sources": detector} for detector in range(3)}
        assert all(spool.exists() for spool in spools)
        last = until_exported(exporter, spools)
        assert exporter.export(spools).gone == tuple(map(str, spools))
    assert set(last.spools) <= set(map(str, spools))
    assert not list(site.spool.iterdir())
    images = site.registered("image")
    for detector in range(3):
        # Quantized: of a plain file each pixel would be that of the task.
        assert not np.array_equal(images[detector].image.array, an_image(detector).image.array)
        assert np.allclose(images[detector].image.array, an_image(detector).image.array, 0, 1, equal_nan=True)


def test_spools_that_were_being_packed_are_packed_by_the_next_exporter(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spools = [site.write(detector) for detector in range(2)]
    killed = site.exporter()
    with closing(killed), monkeypatch.context() as before:
        before.setattr(DatasetWriter, "write", stop)
        killed.export(spools)
        killed._packer.close()
    (spools[0] / "packing-of-a-previous-run").mkdir()
    with closing(site.exporter()) as exporter:
        assert exporter.export(spools).datasets == 0, "the catalogs are registered"
        until_exported(exporter, spools)
    assert not list(site.spool.iterdir())
    assert set(site.registered("image")) == {0, 1}


def test_what_a_killed_packer_has_left_is_deleted_by_the_next_one(site: Site) -> None:
    spool = site.write()
    (spool / "packing-of-a-previous-run").mkdir()
    for name in ("packing-of-a-previous-run/half.fits", "packed-of-a-previous-run.fits"):
        (spool / name).touch()
    pack(spool, site.writer)
    names = {file.name for file in read_manifest(spool).files}
    assert {path.name for path in spool.iterdir()} == {MANIFEST, *names}


def type_of(file: SpooledFile) -> str:
    assert file.refs[0].datasetType is not None
    return file.refs[0].datasetType.name


def fail(*args: object) -> None:
    raise RuntimeError("no such recipe")


def die(*args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(*args: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def use_up_the_disk(*args: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def use_up_the_memory(*args: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("happens", [fail, die, stop, use_up_the_disk, use_up_the_memory])
def test_an_image_that_cannot_be_packed_is_registered_as_it_is(
    site: Site, monkeypatch: pytest.MonkeyPatch, happens: Callable[..., None]
) -> None:
    spool = site.write()
    monkeypatch.setattr(DatasetWriter, "write", happens)
    monkeypatch.setattr(packing, "LIMIT_S", 1.0 if happens is stop else 300.0)
    with closing(site.exporter()) as exporter:
        assert exporter.export([spool]).packing == (str(spool),)
        # Other workers must not add to what packers cannot reduce.
        assert site.room.used().images == 1
        assert until_exported(exporter, [spool]).spools == (str(spool),)
        exporter._packer.collect(wait=True)
        assert not exporter._packer.busy
    assert np.array_equal(site.registered("image")[0].image.array, an_image(0).image.array, equal_nan=True), (
        "the formatter reads it"
    )


def test_images_that_a_full_disk_has_no_room_for_leave_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        if path.name.startswith(f"{MANIFEST}."):
            raise OSError(errno.ENOSPC, "No space left on device")

    old, spool = site.write(0), site.write(1)
    os.utime(old, (1, 1))
    image = next(file.name for file in read_manifest(old).files if file.plain)
    before = [{path.name for path in each.iterdir()} for each in (old, spool)]
    with monkeypatch.context() as full:
        full.setattr(manifests, "sync", refuse)
        pack(spool, site.writer)
        with closing(site.exporter()) as exporter:
            assert exporter.give_up_images([site.spool], 1).spools == {str(old): "image"}
        after = [{path.name for path in each.iterdir()} for each in (old, spool)]
        assert after == [before[0] - {image}, before[1]]
    for each in (old, spool):
        pack(each, site.writer)
        check_files(each, read_manifest(each))


def test_a_file_without_datasets_does_not_end_the_exporter_that_gives_up_images(site: Site) -> None:
    bad, good = site.write(0), site.write(1)
    manifest = json.loads((bad / MANIFEST).read_text())
    manifest["files"]["datasets"][0] = 0
    del manifest["checksum"]
    (bad / MANIFEST).write_text(json.dumps(manifest))
    with closing(site.exporter()) as exporter:
        assert exporter.give_up_images([site.spool], 1).spools == {str(good): "image"}
        assert str(bad) in until_exported(exporter, [bad, good]).refused


def test_the_manifest_of_a_spool_is_not_read_again_while_it_is_packed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, read = site.write(), list[Path]()
    monkeypatch.setattr(DatasetWriter, "write", stop)
    monkeypatch.setattr(packing, "LONGEST_WAIT_S", 0.0)
    monkeypatch.setattr(exporting, "read_manifest", lambda spool: read.append(spool) or read_manifest(spool))
    with closing(site.exporter()) as exporter, closing(exporter._packer):
        for _ in range(3):
            assert exporter.export([spool]).packing == (str(spool),)
    assert read == [spool]


def test_only_what_is_packed_gives_its_room_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    spools = [site.write(detector) for detector in range(2)]
    sizes = [next(file.size_bytes for file in read_manifest(each).files if file.plain) for each in spools]
    with closing(Packer(site.folder / "template", (site.spool,), 1, site.room)) as packer:
        packer.start()
        assert site.room.used() == Uncompressed(2, sum(sizes)), "also those of an earlier run"
    pack(spools[0], site.writer, site.room)
    assert site.room.used() == Uncompressed(1, sizes[1])
    monkeypatch.setattr(DatasetWriter, "write", fail)
    pack(spools[1], site.writer, site.room)
    assert site.room.used() == Uncompressed(1, sizes[1])


def test_a_packer_that_cannot_be_killed_keeps_its_spools_and_nothing_waits_for_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wait(*args: object) -> None:
        raise AssertionError("it waits for the end of a process")

    spool, sent = site.write(), list[tuple[int, int]]()
    monkeypatch.setattr(DatasetWriter, "write", stop)
    monkeypatch.setattr(packing, "LIMIT_S", 0.0)
    with closing(Packer(site.folder / "template", (site.spool,), 1)) as packer:
        packer.start()
        with monkeypatch.context() as unkillable:  # as while it waits for a disk
            unkillable.setattr(os, "kill", lambda *args: sent.append(args))
            unkillable.setattr(os, "waitpid", wait)
            packer.collect()
            packer.collect()
        assert [number for _, number in sent] == [signal.SIGKILL]
        assert len([each for each in caplog.messages if "is killed" in each]) == 1
        assert packer.busy == {spool}
        os.kill(*sent[0])
        packer.collect(wait=True)
        assert not packer.busy
        packer.start()
        assert not packer.busy, "it is registered as it is"


def test_each_spool_of_a_process_has_the_whole_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    spools = [site.write(detector) for detector in range(3)]
    monkeypatch.setattr(DatasetWriter, "write", stop)
    with closing(Packer(site.folder / "template", (site.spool,), 1)) as packer:
        packer.start()
        begin = time.monotonic()
        for after_s, signalled in ((3 * packing.LIMIT_S - 10.0, False), (3 * packing.LIMIT_S + 1.0, True)):
            monkeypatch.setattr(time, "monotonic", lambda after_s=after_s: begin + after_s)
            packer.collect()
            assert packer.busy == set(spools)
            packer.collect(wait=signalled)
            assert packer.busy == (set() if signalled else set(spools))


def test_packers_leave_cores_and_memory_to_the_tasks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def note(*args: object) -> None:
        score = Path("/proc/self/oom_score_adj").read_text().strip()
        (site.folder / "seen").write_text(f"{os.nice(0) - before} {score}")

    before, spool = os.nice(0), site.write()
    monkeypatch.setattr(DatasetWriter, "write", note)
    with closing(site.exporter()) as exporter:
        until_exported(exporter, [spool])
    assert (site.folder / "seen").read_text() == f"{packing.NICENESS} 1000"


def test_processes_share_what_waits(site: Site) -> None:
    spools = [site.write(detector) for detector in range(3)]
    with closing(Packer(site.folder / "template", (site.spool,), 2)) as packer:
        packer.start()
        assert sorted(len(share.spools) for share in packer._running.values()) == [1, 2]
        assert packer.busy == set(spools)


def test_without_packers_images_that_were_spooled_uncompressed_are_exported(site: Site) -> None:
    spool = site.write()
    with closing(site.exporter(processes=0)) as exporter:
        assert exporter.export([spool]).datasets == 2


def test_an_image_that_was_changed_before_it_was_packed_is_isolated(site: Site) -> None:
    bad, good = site.write(0), site.write(1)
    path = bad / read_manifest(bad).files[0].name
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"changed in place")
    with closing(site.exporter()) as exporter:
        exported = until_exported(exporter, [bad, good])
    note = (site.folder / "refused" / bad.name / REFUSAL).read_text()
    assert "was changed in the spool" in note
    assert exported.refused + exported.spools
    assert set(site.registered("image")) == {1}


def test_images_are_packed_though_the_central_repo_is_away(site: Site) -> None:
    spools = [site.write(detector) for detector in range(3)]
    away = site.central.rename(site.folder / "away")
    with closing(site.exporter()) as exporter:
        while any(file.plain for spool in spools for file in read_manifest(spool).files):
            with pytest.raises(Exception, match="cannot be opened"):
                exporter.export(spools)
        away.rename(site.central)
        assert set(until_exported(exporter, spools).spools) <= set(map(str, spools))
    assert set(site.registered("image")) == {0, 1, 2}


def test_what_is_packed_now_is_not_given_up(site: Site) -> None:
    spools = [site.write(detector) for detector in range(2)]
    with closing(site.exporter(processes=1)) as exporter:
        exporter.export(spools[:1])
        assert exporter._packer.busy == set(spools)
        assert not exporter.give_up_images([site.spool], 1).spools
        while exporter._packer.busy:
            exporter._packer.collect(wait=True)
        assert exporter.give_up_images([site.spool], 1).spools == {str(spools[0]): "image"}


def test_all_images_of_an_earlier_run_are_counted_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spools = [site.write(detector) for detector in range(3)]
    sizes = [file.size_bytes for each in spools for file in read_manifest(each).files if file.plain]
    monkeypatch.setattr(packing, "AT_ONCE", 1)
    monkeypatch.setattr(DatasetWriter, "write", stop)
    with closing(Packer(site.folder / "template", (site.spool,), 1, site.room)) as packer:
        packer.start()
        assert packer.busy == set(spools[:1])
        assert site.room.used() == Uncompressed(3, sum(sizes))


def test_of_many_spools_that_wait_to_be_packed_few_manifests_are_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    spools, read = [site.write(detector) for detector in range(3)], list[Path]()
    monkeypatch.setattr(packing, "AT_ONCE", 1)
    monkeypatch.setattr(packing, "read_manifest", lambda spool: read.append(spool) or read_manifest(spool))
    with closing(Packer(site.folder / "template", (site.spool,), 1)) as packer:
        packer.start()
        assert (read, packer.busy) == (spools, set(spools[:1])), "all are counted once"
        packer.start()
        assert read == spools, "all processes are busy"
        while packer.busy:
            packer.collect(wait=True)
        packer.start()
        assert (read, packer.busy) == ([*spools, spools[1]], set(spools[1:2]))


def test_only_images_of_a_known_kind_are_written_uncompressed(site: Site, tmp_path: Path) -> None:
    image, catalog = site.outputs(0)
    spool = site.write(0, plain=False)
    assert not any(file.plain for file in read_manifest(spool).files)
    assert (site.writer.writes_plain(image.ref), site.writer.writes_plain(catalog.ref)) == (True, False)
    as_json = Config(
        {
            "datastore": {
                "formatters": {
                    "MaskedImageV2": {
                        "formatter": "lsst.images.formatters.GenericFormatter",
                        "parameters": {"format": "json"},
                    }
                }
            }
        }
    )
    Butler.makeRepo(str(tmp_path / "json"), config=as_json)
    writer = DatasetWriter(ButlerConfig(str(tmp_path / "json")), site.universe)
    assert not writer.writes_plain(image.ref)


def spool_picture(rigs: MakeRig, *central: Path, **export: Any) -> tuple[Any, Path, SpooledFile]:
    """Let a worker process a visit with an image; return its rig, the spool and the file of the image."""
    rig, worker = rigs(*central, engine={"kind": "direct"}, export={"types": [".*"], **export})
    rig.context.spool.mkdir()  # as the daemon does: an image is decided about before its spool is begun
    rig.add_pipeline("Picture", {"picture": "PictureTask"}, __name__)
    worker.prepare(rig.order(main="Picture", before=""))
    worker.ingest(rig.raw())
    spool = Path(worker.process(Process(exposures=(FIRST,))).spool or "")
    (file,) = (file for file in read_manifest(spool).files if type_of(file) == "picture")
    worker.reset()
    return rig, spool, file


def room_of(rig: Any) -> UncompressedRoom:
    export = rig.config.export
    return UncompressedRoom.of(NodeFolders.of(rig.config).uncompressed, rig.context.spool, export)


def test_images_that_were_spooled_before_packers_were_turned_off_are_packed(
    rigs: MakeRig, toy_central: Path, tmp_path: Path
) -> None:
    central = Path(shutil.copytree(toy_central, tmp_path / "central"))
    rig, spool, file = spool_picture(rigs, central)
    assert file.plain
    off = rig.config.model_copy(update={"export": rig.config.export.model_copy(update={"packers": 0})})
    with closing(work.open_exporter(replace(rig.context, config=off))) as exporter:
        until_exported(exporter, [spool])
    assert room_of(rig).used().images == 0
    (stored,) = (path for path in rig.central.rglob("*.fits") if "picture" in path.name)
    assert stored.stat().st_size < file.size_bytes


def test_beyond_the_bound_workers_compress_by_themselves(rigs: MakeRig) -> None:
    rig, _, file = spool_picture(rigs, uncompressed_max=1_000_000)
    assert not file.plain
    assert (room_of(rig).used().images, room_of(rig).declined()) == (0, 1)


def test_a_visit_without_a_spool_gives_its_room_back(rigs: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        kwargs["fill"](Path(args[0]) / "partial")
        raise VisitFailed(Outcome.STATE_FULL, "", retriable=True)

    rig, worker = rigs(engine={"kind": "direct"}, export={"types": [".*"]})
    rig.add_pipeline("Picture", {"picture": "PictureTask"}, __name__)
    (rig.context.spool / "partial").mkdir(parents=True)
    monkeypatch.setattr(butlerwork, "write_spool", refuse)
    worker.prepare(rig.order(main="Picture", before=""))
    worker.ingest(rig.raw())
    with pytest.raises(VisitFailed):
        worker.process(Process(exposures=(FIRST,)))
    assert room_of(rig).used().images == 1
    worker.reset()
    assert room_of(rig).used().images == 0


def test_an_image_that_is_spooled_compressed_after_all_gives_its_room_back(
    rigs: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatasetWriter, "write_plain", DatasetWriter.write)  # as if a task had read its file
    rig, _, file = spool_picture(rigs)
    assert not file.plain
    assert (room_of(rig).used().images, room_of(rig).declined()) == (0, 0)


def test_a_visit_that_is_processed_keeps_its_room_as_long_as_it_may_take(
    rigs: MakeRig, toy_central: Path
) -> None:
    rig, *_ = spool_picture(rigs, toy_central)
    room, times = room_of(rig), rig.config.workers.times
    assert room.take("Cam~another~1~1", "0", 1)
    with closing(work.open_exporter(rig.context)) as exporter:
        for age_s, images in ((times.run_s + times.export_s, 2), (times.after_images_s + 60.0, 1)):
            os.utime(room.folder / "Cam~another~1~1~0", (time.time() - age_s,) * 2)
            exporter._packer._waiting(1)
            assert room.used().images == images


@pytest.mark.parametrize("packers", [0, 1])
def test_a_worker_spools_images_uncompressed_if_they_are_packed(
    rigs: MakeRig, tmp_path: Path, packers: int
) -> None:
    rig, spool, file = spool_picture(rigs, packers=packers)
    assert file.plain == bool(packers)
    assert room_of(rig).used().images == packers
    assert [each.name for each in read_manifest(spool).files if each.plain] == [file.name] * packers
    writer = DatasetWriter(
        ButlerConfig(str(template_repo(rig.context.template))), template_dimensions(rig.context.template)
    )
    pack(spool, writer)
    assert not any(each.plain for each in read_manifest(spool).files)
    check_files(spool, read_manifest(spool))
    assert "%" in spool.name
    (packed,) = (file for file in read_manifest(spool).files if type_of(file) == "picture")
    shutil.copy(spool / packed.name, tmp_path / "packed.fits")
    with open_archive(tmp_path / "packed.fits") as reader:
        found, info = reader.read(), reader.butler_info
    assert packed.size_bytes < an_image(1).image.array.nbytes * 2
    assert np.array_equal(found.image.array, an_image(1).image.array, equal_nan=True), "lossless by default"
    assert [ref.datasetType.name for ref in info.provenance.inputs] == ["raw"]


@pytest.mark.parametrize("plain", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("runs", [(IMAGE_RUN, RUN), (RUN, IMAGE_RUN)])
def test_a_run_that_has_only_what_is_packed_keeps_its_place_in_the_chain(
    site: Site, runs: tuple[str, ...], plain: tuple[bool, ...]
) -> None:
    spools = [
        site.write(detector, site.outputs(detector, IMAGE_RUN), runs=runs, plain=each)
        for detector, each in enumerate(plain)
    ]
    with closing(site.exporter()) as exporter:
        assert not exporter.export(spools).refused
        until_exported(exporter, spools)
    with Butler.from_config(str(site.central)) as butler:
        assert butler.collections.get_info(CHAIN).children == runs
        assert len(butler.query_datasets("catalog", CHAIN)) == len(butler.query_datasets("image", CHAIN)) == 2
