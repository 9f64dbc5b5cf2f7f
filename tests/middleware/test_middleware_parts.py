# SPDX-License-Identifier: BSD-3-Clause
"""Parts of the middleware that need no visit."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from lsst.daf.butler import Butler, ButlerConfig, DataCoordinate, DimensionUniverse
from storeserver import serving
from toycam import BEGIN_TAI, DAY, GROUP, NAME, RA, MakeRig, load_toy_camera

from ppdaemon.clock import Clock
from ppdaemon.config import ExportConfig
from ppdaemon.middleware import work
from ppdaemon.middleware.butler.central import CentralReader, ParsedConfig
from ppdaemon.middleware.butler.failures import describe, is_out_of_space
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import UnusablePipeline, load_pipeline
from ppdaemon.middleware.raws.records import make_record
from ppdaemon.middleware.raws.regions import find_camera, footprint_of
from ppdaemon.middleware.run.engine import DataQuery
from ppdaemon.pipelinenames import output_chain
from ppdaemon.visit import NextVisit, read_next_visit

pytest_plugins = ("toyfixtures",)

QUIET = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
ZYGOTE = """
import os, socket, sys
from ppdaemon.middleware import work
work.set_up_libraries()
sockets = [fd for fd in os.listdir("/proc/self/fd") if int(fd) > 2]
import astropy.utils.iers
print(len(os.listdir("/proc/self/task")), len(sockets), astropy.utils.iers.conf.auto_download)
before = set(sys.modules)
from lsst.daf.butler import Butler
with Butler.from_config(sys.argv[1]) as butler, butler.query() as query:
    list(query.datasets("bias", "ToyCam/calib/new", find_first=False))
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("name", ["A%41.yaml", "a b+c.yaml", "Ap"])
def test_the_path_of_a_pipeline_is_taken_literally(tmp_path: Path, name: str) -> None:
    task = "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask"
    (tmp_path / "AA.yaml").write_text(f"description: another\ntasks: {{other: {task}}}\n")
    (tmp_path / name).write_text(f"description: x\ntasks: {{a: {task}, b: {task}}}\n")
    assert list(load_pipeline(f"{tmp_path / name}#b", {}).graph.tasks) == ["b"]


def test_an_override_sets_a_parameter_only_where_the_pipeline_has_it(tmp_path: Path) -> None:
    task = "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask"
    config = "config: {saveLogOutput: parameters.logs}"
    for name, parameters in (("with", "parameters: {logs: true}"), ("without", "")):
        steps = f"tasks: {{a: {{class: {task}, {config if parameters else 'config: {}'}}}}}"
        (tmp_path / f"{name}.yaml").write_text(f"description: x\n{parameters}\n{steps}\n")
    overrides = {"parameters:logs": False, "parameters:other": 1, "b:saveLogOutput": 1}
    changed, same = (load_pipeline(str(tmp_path / f"{name}.yaml"), overrides) for name in ("with", "without"))
    assert (changed.graph.tasks["a"].config.saveLogOutput, changed.targets) == (
        False,
        {"a", "parameters:logs"},
    )
    assert (same.graph.tasks["a"].config.saveLogOutput, same.targets) == (True, {"a"})


def test_a_pipeline_without_tasks_is_not_usable(tmp_path: Path) -> None:
    """Tasks of a range depend on each other: between two independent ones there is none."""
    task = "lsst.pipe.base.tests.mocks.DynamicTestPipelineTask"
    path = tmp_path / "p.yaml"
    path.write_text(f"description: x\ntasks: {{a: {task}, b: {task}, c: {task}}}\n")
    assert list(load_pipeline(f"{path}#c..", {}).graph.tasks) == ["c"]
    with pytest.raises(UnusablePipeline, match="a\\.\\.c has no tasks"):
        load_pipeline(f"{path}#a..c", {})


def test_the_central_repo_may_be_named_by_the_profile_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    Butler.makeRepo(str(tmp_path / "repo"))
    config = yaml.safe_load((tmp_path / "repo" / "butler.yaml").read_text())
    config["registry"] = {"db": f"sqlite:///{tmp_path}/repo/gen3.sqlite3"}
    with serving() as store:
        for name, value in store.s3_environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("S3_ENDPOINT_URL")
        endpoint = store.uri.replace("http://", "http://user:nothing@")
        monkeypatch.setenv("LSST_RESOURCES_S3_PROFILE_summit", endpoint)
        store.objects["/bucket/repo/butler.yaml"] = yaml.safe_dump(config).encode()
        reader = CentralReader("s3://summit@bucket/repo/butler.yaml")
        with reader.reading(Timings(Clock())) as butler:
            assert list(butler.collections.query("*")) == []
        reader.close()
        assert store.reads("butler.yaml") >= 1


def test_a_parsed_configuration_is_used_until_its_file_changes(tmp_path: Path) -> None:
    root, template = tmp_path / "repo", tmp_path / "template"
    template.mkdir()
    Butler.makeRepo(str(root))
    ParsedConfig.write(template, str(root))
    parsed = ParsedConfig.read(template, str(root))
    assert parsed is not None
    assert parsed.config == ButlerConfig(str(root))
    with Butler.from_config(parsed.config, writeable=False) as butler:
        assert list(butler.collections.query("*")) == []
    assert ParsedConfig.read(template, str(tmp_path / "other")) is None
    with (root / "butler.yaml").open("a") as file:
        file.write("# changed\n")
    assert ParsedConfig.read(template, str(root)) is None


def test_a_configuration_that_depends_on_other_files_is_parsed_by_each_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, index = tmp_path / "repo", tmp_path / "index.yaml"
    Butler.makeRepo(str(root))
    index.write_text(f"main: {root}\n")
    monkeypatch.setenv("DAF_BUTLER_REPOSITORY_INDEX", str(index))
    ParsedConfig.write(tmp_path, "main")
    assert ParsedConfig.read(tmp_path, "main") is None
    (tmp_path / "more.yaml").write_text("{}")
    with (root / "butler.yaml").open("a") as file:
        file.write("includeConfigs: ../more.yaml\n")
    ParsedConfig.write(tmp_path, str(root))
    assert ParsedConfig.read(tmp_path, str(root)) is None


def test_a_zygote_has_one_thread_nothing_open_and_everything_imported(toy_central: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    shown = subprocess.run(
        [sys.executable, "-c", ZYGOTE, str(toy_central)],
        env=os.environ | QUIET | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    threads, open_files, download = shown[0].split()
    assert (threads, download) == ("1", "False")
    assert open_files == "1", "the listing of the folder itself"
    late = [name for name in shown[1].split() if name.startswith(("lsst.", "sqlalchemy."))]
    assert set(late) <= {"lsst.daf.butler.registry.attributes"}


def announce(**sal: object) -> NextVisit:
    fields = {
        "groupId": GROUP,
        "instrument": NAME,
        "coordinateSystem": 2,
        "position": [RA, 2.0],
        "startTime": BEGIN_TAI.unix_tai,
        "rotationSystem": 2,
        "duration": 35.0,
    }
    return read_next_visit(fields | sal)


@pytest.mark.parametrize(
    ("sal", "has_position"),
    [
        ({}, True),
        ({"position": [RA - 360.0, 2.0]}, True),
        ({"position": [RA, 91.0]}, False),
        ({"coordinateSystem": 3}, False),
        ({"rotationSystem": 3}, False),
    ],
)
def test_only_visits_with_a_sky_position_have_a_footprint(sal: dict[str, object], has_position: bool) -> None:
    camera = load_toy_camera(NAME)
    footprint = footprint_of(
        announce(**sal), 1, camera, padding_arcsec=30.0, image_deadline_s=100.0, now_tai=0.0
    )
    assert (footprint.region is not None) == has_position
    assert footprint.day_obs == DAY


def test_an_instrument_without_a_table_has_no_footprint(caplog: pytest.LogCaptureFixture) -> None:
    camera = find_camera(load_toy_camera, "NoCam")
    assert camera is None
    assert "no focal-plane table for 'NoCam'" in caplog.text
    footprint = footprint_of(announce(), 1, camera, padding_arcsec=30.0, image_deadline_s=100.0, now_tai=0.0)
    assert footprint.region is None


def test_times_that_are_not_announced_are_estimated() -> None:
    limits = {"padding_arcsec": 0.0, "image_deadline_s": 100.0, "now_tai": 1.9e9}
    for sal, begin in (({}, BEGIN_TAI.unix_tai), ({"startTime": 0.0, "private_sndStamp": 2e9}, 2e9)):
        footprint = footprint_of(announce(**sal), 1, None, **limits)
        assert footprint.exposure.begin.unix_tai == pytest.approx(begin, abs=1e-3)
        assert footprint.validity.end.unix_tai == pytest.approx(begin + 100.0, abs=1e-3)
    footprint = footprint_of(announce(startTime=0.0, duration=0.0), 1, None, **limits)
    assert (footprint.exposure.end - footprint.exposure.begin).sec == pytest.approx(60.0)


def test_a_full_disk_is_recognized_as_the_cause_of_other_exceptions(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    wrapped = RuntimeError("put failed")
    wrapped.__cause__ = full
    assert is_out_of_space(full)
    assert is_out_of_space(wrapped)
    assert is_out_of_space(ExceptionGroup("of files", [ValueError(), ExceptionGroup("of others", [wrapped])]))
    assert not is_out_of_space(ExceptionGroup("of files", [ValueError()]))
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "file").touch()
    for code, is_full in ((errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)):
        copy = Mock(side_effect=OSError(code, os.strerror(code)))
        with pytest.raises(shutil.Error) as caught:
            shutil.copytree(tmp_path / "repo", tmp_path / "copy", copy_function=copy, dirs_exist_ok=True)
        assert is_out_of_space(caught.value) == is_full
    assert not is_out_of_space(OSError(errno.EIO, "Input/output error"))


def test_exceptions_are_described_in_one_line() -> None:
    assert describe(ValueError("first\nsecond")) == "ValueError: first"
    assert describe(ExceptionGroup("of files", [ValueError("first"), KeyError()])) == "ValueError: first"
    assert describe(KeyError()) == "KeyError"


def test_a_missing_repo_is_described_without_remarks_about_aliases(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        Butler.from_config(str(tmp_path / "gone"))
    text = describe(caught.value)
    assert text == f"FileNotFoundError: Config location file://{tmp_path}/gone does not exist."


def test_names_of_runs_and_selections() -> None:
    assert output_chain("A", 20261122) == "A/prompt/output-2026-11-22"
    selection = DataQuery.of_exposures("A", "g", 3, (1, 2))
    assert selection.where == "instrument = 'A' AND detector = 3 AND exposure IN (1, 2)"
    assert selection.context == {"INSTRUMENT": "A", "GROUP": "g", "DETECTOR": "3", "EXPOSURE": "1, 2"}
    query, quoted = (
        DataQuery.of_group(
            DataCoordinate.standardize(instrument="A", group=group, detector=3, universe=DimensionUniverse())
        )
        for group in ("g", "x' OR '1'='1")
    )
    assert query.literal() == "instrument = 'A' AND detector = 3 AND group = 'g'"
    assert quoted.bind == {"visit_group": "x' OR '1'='1"}
    with pytest.raises(UnusablePipeline, match="cannot be written in a query"):
        quoted.literal()


def test_groups_with_quotes_are_only_names(rigs: MakeRig) -> None:
    rig, worker = rigs()
    assert worker.prepare(rig.order(groupId="it's #1 ~ of 2%")).pipeline == "Full"


def test_a_record_has_no_value_that_databases_refuse(tmp_path: Path) -> None:
    Butler.makeRepo(str(tmp_path))
    with Butler.from_config(str(tmp_path), writeable=True) as butler:
        universe: DimensionUniverse = butler.dimensions
        key = {"instrument": "Cam", "day_obs": 20260101, "group": "g", "physical_filter": "r"}
        angles = {"sky_angle": float("nan"), "azimuth": float("nan"), "zenith_angle": 30.0}
        texts = {"observation_type": 17 * "x", "observation_reason": "a\0", "science_program": "\ud83d"}
        texts |= {"target_name": 300 * "x"}
        records = [
            make_record(
                universe,
                "instrument",
                name="Cam",
                detector_max=1,
                visit_max=9,
                exposure_max=9,
                class_name="C",
            ),
            make_record(universe, "physical_filter", instrument="Cam", name="r", band="r"),
            make_record(universe, "day_obs", instrument="Cam", id=20260101),
            make_record(universe, "group", instrument="Cam", name="g"),
            make_record(
                universe, "exposure", id=1, obs_id="o", exposure_time=float("nan"), **key, **angles, **texts
            ),
        ]
        for record in (*records, records[-1]):  # the second time, it is compared with what is stored
            butler.registry.syncDimensionData(record.definition.name, record)
        (stored,) = butler.query_dimension_records("exposure", instrument="Cam")
        assert (stored.sky_angle, stored.azimuth, stored.zenith_angle) == (None, None, 30.0)
        assert stored.exposure_time is None
        assert (stored.observation_type, stored.observation_reason) == (None, None)
        assert (stored.science_program, stored.target_name) == (None, 300 * "x")


def test_after_an_outage_the_first_try_of_an_export_comes_within_ten_seconds() -> None:
    # The last try before the end may wait for a server that does not answer; a pause follows.
    assert work.CONNECT_S + ExportConfig().retry_s <= 10.0
