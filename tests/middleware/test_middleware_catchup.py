# SPDX-License-Identifier: BSD-3-Clause
"""What the catch-up brings into the central repo, and how it recognizes what was made there."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lsst.ctrl.bps import BPS_DEFAULTS, BpsConfig
from lsst.ctrl.bps.parsl.site import SiteConfig
from lsst.daf.butler import Butler, DatasetType
from lsst.daf.butler.logging import ButlerLogRecord, ButlerLogRecords
from lsst.pipe.base import QuantumSuccessCaveats, TaskMetadata
from toycam import BEGIN_TAI, DAY, GROUP, NAME, Rig, load_toy_camera

from ppdaemon.catchup import CatchupItem, CatchupOrder, CatchupRow, inputs_of, run_of
from ppdaemon.ctl.catchupfiles import CatchupUnit, pipetask_command
from ppdaemon.errors import Unavailable
from ppdaemon.middleware.catchup import check, main, prepare
from ppdaemon.middleware.export.mark import MARK
from ppdaemon.pipelinenames import output_chain
from ppdaemon.states import ExitCode

pytest_plugins = ["toyfixtures"]

ROOT = Path(__file__).parents[2]
FIRST = DAY * 100000 + 1
CHAIN = output_chain(NAME, DAY)
RAWS = f"{NAME}/raw/all"


@pytest.fixture
def rig(tmp_path: Path, toy_central: Path) -> Rig:
    """Give a node with a central repo of its own, without its processes."""
    shutil.copytree(toy_central, tmp_path / "central")
    return Rig(tmp_path / "node", tmp_path / "ram", tmp_path / "central", arrivals={"layout": "generic"})


def an_item(
    rig: Rig, detector: int = 1, *, exposures: tuple[int, ...] = (), main: str = "Frame"
) -> CatchupItem:
    order = rig.order(detector, main=main)
    return CatchupItem(
        instrument=NAME,
        group=GROUP,
        detector=detector,
        attempt=1,
        visit=order.visit,
        received_tai=BEGIN_TAI.unix_tai,
        exposures=exposures,
        chain=CHAIN,
        pipeline=rig.paths[main],
        run=run_of(CHAIN, main),
    )


def land(rig: Rig, detector: int = 1, seq_num: int = 1, **header: Any) -> Path:
    """Write a raw where the layout expects it."""
    raw = Path(rig.raw(detector, seq_num, **header).path)
    folder = rig.raws / NAME / str(detector) / GROUP / "1" / str(DAY * 100000 + seq_num) / "r_03"
    folder.mkdir(parents=True)
    raw.with_suffix(".json").rename(folder / f"{raw.stem}.json")
    return raw.rename(folder / raw.name)


def prepared(rig: Rig, tmp_path: Path, *items: CatchupItem) -> list[CatchupRow]:
    with Butler.from_config(str(rig.central), writeable=True) as butler:
        return list(prepare(butler, rig.config, items, tmp_path, load_toy_camera))


def content(rig: Rig) -> dict[str, Any]:
    """Return the raws with their ids, the regions and the collections of the central repo."""
    with Butler.from_config(str(rig.central)) as butler:
        raws = butler.query_datasets("raw", collections=RAWS, explain=False)
        regions = butler.query_dimension_records("visit_detector_region", explain=False)
        return {
            "raws": sorted((ref.dataId["exposure"], ref.dataId["detector"], str(ref.id)) for ref in raws),
            "stored": [butler.get(ref) for ref in raws],
            "regions": {(each.visit, each.detector): each.region for each in regions},
            "visits": butler.query_dimension_records("visit", explain=False),
            "inputs": butler.collections.get_info(inputs_of(CHAIN)).children,
            "chain": butler.collections.get_info(CHAIN).children,
        }


def test_raws_exposures_and_visits_with_regions_are_brought_once(rig: Rig, tmp_path: Path) -> None:
    """A second call, also after a detector was added, changes nothing of what is there."""
    path = land(rig, 1)
    (row,) = prepared(rig, tmp_path, an_item(rig))
    assert (row.state, row.exposures, row.new_raws, row.text) == ("prepared", (FIRST,), 1, "")
    first = content(rig)
    assert [raw[:2] for raw in first["raws"]] == [(FIRST, 1)]
    assert first["stored"] == [{"exposure": 1, "sum": 2000.0}]
    assert first["regions"][FIRST, 1] is not None
    assert first["visits"][0].region is not None
    assert first["chain"][0] == run_of(CHAIN, "Frame")
    preloaded = run_of(CHAIN, "NoPipeline")
    assert first["inputs"] == (preloaded, f"{NAME}/calib/certified", f"{NAME}/templates", "refcats/toy", RAWS)
    assert path.exists()  # the raw itself stays

    land(rig, 2)
    rows = prepared(rig, tmp_path, an_item(rig, 1), an_item(rig, 2))
    assert [(row.state, row.new_raws) for row in rows] == [("prepared", 0), ("prepared", 1)]
    second = content(rig)
    assert second["raws"][0] == first["raws"][0]
    assert len(second["raws"]) == 2
    assert second["regions"].keys() == {(FIRST, 1), (FIRST, 2)}
    assert prepared(rig, tmp_path, an_item(rig, 1))[0].new_raws == 0
    assert content(rig) == second


def test_nothing_is_brought_into_a_datastore_without_its_mark(rig: Rig, tmp_path: Path) -> None:
    """Such as the empty folder of a filesystem that is not mounted."""
    land(rig, 1)
    (rig.central / MARK).unlink()
    with pytest.raises(Unavailable, match="has no mark"):
        prepared(rig, tmp_path, an_item(rig))
    with Butler.from_config(str(rig.central)) as butler:
        assert not butler.query_dimension_records("exposure", explain=False)
        assert not butler.collections.query(CHAIN + "*")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            "a: [1\nb: }",
            "ParserError: while parsing a flow sequence in .*butler.yaml.*line 2, column 2; correct",
        ),
        ("\0", "ReaderError: unacceptable character #x0000.*butler.yaml.*position 0; correct its config"),
        ("only text", r"TypeError: .*; correct its configuration \(butler.yaml\), or name another repo$"),
        ("registry: {db: 'none:///x'}", "ValueError: .* dialect .* none; correct its configuration"),
        ("datastore: {cls: none.Such}", "RuntimeError: .*none.Such.*; use the version of the stack that has"),
    ],
)
@pytest.mark.parametrize("task", ["check", "prepare"])
def test_a_central_repo_whose_configuration_is_broken_is_named_with_the_problem(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    settings: str,
    problem: str,
    task: str,
) -> None:
    (rig.central / "butler.yaml").write_text(settings)
    order = CatchupOrder(config=rig.config, items=()).model_dump_json(by_alias=True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(order.encode())))
    monkeypatch.setattr(sys, "argv", ["catchup", task])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == ExitCode.CONFIG
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(f"ppctl: butler.central: {rig.central} cannot be opened: {problem}", last), last


def test_a_raw_that_only_the_central_repo_has_is_used(rig: Rig, tmp_path: Path) -> None:
    """The observatory ingests raws itself; visits and regions of this detector may be missing."""
    path = land(rig, 1)
    prepared(rig, tmp_path, an_item(rig))
    path.unlink()
    (row,) = prepared(rig, tmp_path, an_item(rig))
    assert (row.state, row.exposures, row.new_raws) == ("prepared", (FIRST,), 0)


def test_a_visit_detector_without_a_usable_raw_has_the_reason(rig: Rig, tmp_path: Path) -> None:
    damaged = land(rig, 2)
    damaged.write_bytes(damaged.read_bytes()[:2000])
    missing, bad = prepared(rig, tmp_path, an_item(rig, 1), an_item(rig, 2))
    assert (missing.state, missing.exposures) == ("no_raw", ())
    assert missing.text == "no raw in the central repo, and none below arrivals.roots"
    assert bad.state == "no_raw"
    assert "not a complete FITS file" in bad.text
    assert not content(rig)["raws"]


def test_a_raw_whose_path_has_no_group_is_found_by_its_header(tmp_path: Path, toy_central: Path) -> None:
    shutil.copytree(toy_central, tmp_path / "central")
    layout = {"path": "{instrument}/{day_obs}/{exposure}_{detector:03d}"}
    rig = Rig(tmp_path / "node", tmp_path / "ram", tmp_path / "central", arrivals={"layout": layout})
    folder = rig.raws / NAME / str(DAY)
    folder.mkdir(parents=True)
    for seq_num, group in ((1, GROUP), (2, "another")):
        raw = Path(rig.raw(1, seq_num, GROUPID=group, sidecar=seq_num == 2).path)
        if seq_num == 2:
            raw.with_suffix(".json").rename(folder / f"{DAY * 100000 + seq_num}_001.json")
        raw.rename(folder / f"{DAY * 100000 + seq_num}_001.fits")
    (row,) = prepared(rig, tmp_path, an_item(rig))
    assert (row.state, row.exposures, row.text) == ("prepared", (FIRST,), "")


def test_preprocessing_gets_its_input_once_and_its_outputs_are_found_first(rig: Rig, tmp_path: Path) -> None:
    land(rig, 1)
    item = an_item(rig).model_copy(update={"preprocessing": (rig.paths["Known"],)})
    night = f"{CHAIN}/Known/0a1b2c3d"
    with Butler.from_config(str(rig.central), writeable=True) as butler:
        butler.collections.register(night)
    for _ in range(2):
        assert [row.state for row in prepared(rig, tmp_path, item)] == ["prepared"]
        first, *others = content(rig)["inputs"]
        assert first == run_of(CHAIN, "Known")
        assert set(others[:2]) == {night, run_of(CHAIN, "NoPipeline")}
        with Butler.from_config(str(rig.central)) as butler:
            (ref,) = butler.query_datasets("regionTimeInfo", collections=inputs_of(CHAIN), explain=False)
            assert (ref.dataId["group"], ref.dataId["detector"]) == (GROUP, 1)
            assert butler.get(ref).region is not None
    assert checked(rig, item) == [("not_run", "known has not run")]


def checked(rig: Rig, *items: CatchupItem) -> list[tuple[str, str]]:
    with Butler.from_config(str(rig.central)) as butler:
        return [(row.state, row.text) for row in check(butler, rig.config, items)]


def test_what_was_made_is_judged_by_the_metadata_of_each_task(rig: Rig, tmp_path: Path) -> None:
    item = an_item(rig)
    assert checked(rig, item) == [("not_run", "no raw in the central repo: ppctl catchup prepare")]
    land(rig, 1)
    prepared(rig, tmp_path, item)
    assert checked(rig, item) == [("not_run", "isr has not run")]
    metadata, log = {"quantum": {"caveats": 0}}, "calibrate_log"
    with Butler.from_config(str(rig.central), writeable=True) as butler:
        put_outputs(butler, item, "isr_metadata", metadata)
        assert checked(rig, item) == [("not_run", "calibrate has not run")]
        put_outputs(butler, item, log, "no stars: 0 found")
        assert checked(rig, item) == [("failed", "calibrate: RuntimeError: no stars: 0 found")]
        partial = QuantumSuccessCaveats.PARTIAL_OUTPUTS_ERROR.value
        put_outputs(butler, item, "calibrate_metadata", {"quantum": {"caveats": partial}})
    assert checked(rig, item) == [("done", "partial outputs of calibrate")]


def test_pipetask_fails_if_the_file_of_a_raw_is_gone(rig: Rig, tmp_path: Path) -> None:
    """By itself it takes the raw for an output that no task has made: a success without work."""
    land(rig, 1)
    item = an_item(rig)
    prepared(rig, tmp_path, item)
    with Butler.from_config(str(rig.central)) as butler:
        (raw,) = butler.query_datasets("raw", collections=RAWS)
        Path(butler.getURI(raw).ospath).unlink()
    unit = CatchupUnit(NAME, CHAIN, item.pipeline, item.run, ((FIRST, 1),))
    command = pipetask_command(unit, rig.config, 1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], env=environment)
    assert ended.returncode == 1
    ((state, text),) = checked(rig, item)
    assert state == "failed"
    assert text.startswith("isr: FileNotFoundError: ")


def put_outputs(butler: Butler, item: CatchupItem, name: str, value: Any) -> None:
    """Put what a task leaves: metadata, or a log with an error."""
    label = name.partition("_")[0]
    dimension = "exposure" if label == "isr" else "visit"
    kind = "ButlerLogRecords" if name.endswith("_log") else "TaskMetadata"
    dimensions = ("instrument", dimension, "detector")
    butler.registry.registerDatasetType(DatasetType(name, dimensions, kind, universe=butler.dimensions))
    if kind == "TaskMetadata":
        content: Any = TaskMetadata.from_dict(value)
    else:
        record = {
            "name": label,
            "asctime": "2026-11-22T00:00:00Z",
            "message": f"Execution of task 'calibrate' failed. Exception RuntimeError: {value}",
            "levelno": 40,
            "levelname": "ERROR",
            "filename": "a.py",
            "pathname": "a.py",
            "lineno": 1,
            "funcName": "f",
            "process": 1,
            "processName": "p",
            "MDC": {},
        }
        content = ButlerLogRecords.from_records([ButlerLogRecord.model_validate(record)])
    data_id = {"instrument": NAME, dimension: FIRST, "detector": item.detector}
    butler.put(content, name, data_id, run=item.run)


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_bps_reads_the_submit_file_and_parsl_its_site(tmp_path: Path, name: str) -> None:
    """With the packages themselves; Slurm is not needed for that. The override arrives as one word."""
    file = tmp_path / "bps.yaml"
    text = (ROOT / "tests" / "data" / "catchup" / "bps.yaml").read_text()
    if name == "slurm":
        own = text[text.index("wmsServiceClass") :]
        shared = (
            (ROOT / "etc" / "bps" / "slurm.yaml")
            .read_text()
            .replace("    nodes: 1", "    retries: 5\n    nodes: 1")
        )
        (tmp_path / "slurm.yaml").write_text(shared)
        text = f"includeConfigs: [{tmp_path / 'slurm.yaml'}]\n{text.removesuffix(own)}"
        text += "site: {slurm: {retries: 0}}\n"
    file.write_text(text)
    config = BpsConfig(str(file), defaults=BPS_DEFAULTS)
    config[".bps_defined.operator"] = "somebody"  # as bps does
    _, command = config.search("createQuantumGraph", opt={"curvals": {"qgraphFile": "a.qg"}})
    words = shlex.split(command)
    assert words[words.index("-d") + 1].endswith("AND ((exposure IN (11, 12) AND detector IN (0..2, 5)))")
    assert {"--extend-run", "--clobber-outputs", "alerts:folder='/a b'"} <= set(words)
    assert "-o" not in words
    # The executor of the host itself is not made: Parsl leaves sockets open then.
    site = SiteConfig.from_config(config)
    assert type(site).__name__ == name.capitalize()
    assert site.site["retries"] == 0  # as `get_parsl_config` reads it
    if name == "slurm":
        (executor,) = site.get_executors()
        assert executor.provider.walltime == "02:00:00"


def test_the_site_for_condor_has_all_that_the_submit_file_leaves_open() -> None:
    config = BpsConfig(str(ROOT / "etc" / "bps" / "htcondor.yaml"))
    assert config["wmsServiceClass"] == "lsst.ctrl.bps.htcondor.HTCondorService"
    assert config[".site.pool.profile.condor"]
