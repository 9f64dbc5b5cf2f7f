# SPDX-License-Identifier: BSD-3-Clause
"""What a visit would get: plans of the toy camera's visits, and the real command on the demo's repo."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from demovisits import BEGIN_TAI_S
from lsst.daf.butler import Butler, CollectionType, DatasetType
from toycam import BEGIN_TAI, DEC, EPOCH, NAME, RA, Rig, load_toy_camera, write_pipelines

from ppdaemon.clock import Clock, tai_iso
from ppdaemon.errors import Unavailable
from ppdaemon.middleware.preload.rulecheck import RuleChecker
from ppdaemon.plan.models import DetectorPlan, Plan, PlanOrder, exit_code
from ppdaemon.plan.planner import Planner
from ppdaemon.states import ExitCode

pytest_plugins = ["toyfixtures"]

NOW_TAI = 1795400000.0
type MakePlan = Callable[..., Plan]


@pytest.fixture
def pipelines(tmp_path: Path) -> dict[str, str]:
    """Give the paths of the toy pipelines, by name."""
    folder = tmp_path / "plan-pipelines"
    folder.mkdir()
    return write_pipelines(folder)


@pytest.fixture
def planned(tmp_path: Path, toy_central: Path, pipelines: dict[str, str]) -> MakePlan:
    """Give a function that plans a visit; pipelines are named by their files, comma-separated."""
    numbers = itertools.count()

    def paths(names: str) -> list[str]:
        return [pipelines[name] for name in names.split(",") if name]

    def plan(
        *,
        main: str = "Full",
        before: str = "Known",
        rules: list[dict[str, Any]] | None = None,
        detectors: tuple[int, ...] = (1,),
        central: Path = toy_central,
        **sal: Any,
    ) -> Plan:
        chosen = {
            "preprocessing": [{"pipelines": paths(before)}],
            "main": rules if rules is not None else [{"pipelines": paths(main)}],
        }
        root = tmp_path / f"rig{next(numbers)}"
        rig = Rig(root, root / "ram", central, pipelines=chosen)
        order = PlanOrder(
            config_path=tmp_path / "node.yaml",
            config=rig.config,
            visit=rig.order(**sal).visit,
            now_tai=NOW_TAI,
            detectors=detectors,
        )
        assert rig.config.butler is not None
        scratch = tmp_path / "scratch"
        planner = Planner(order, rig.config.butler, scratch, Clock(), load_toy_camera)
        with closing(planner):
            made = planner.plan(lambda done: None)
        assert not scratch.exists()
        return made

    return plan


def only(plan: Plan) -> DetectorPlan:
    (detector,) = plan.detectors
    return detector


def found(plan: DetectorPlan, dataset_type: str) -> list[dict[str, int | str]]:
    """Return the data IDs of what would be preloaded of a type."""
    return [dict(each.data_id) for each in plan.datasets if each.dataset_type == dataset_type]


def test_a_visit_with_a_pointing_gets_all_inputs_of_its_pipelines(planned: MakePlan) -> None:
    plan = planned()
    detector = only(plan)
    assert (detector.outcome, detector.reason, detector.missing) == ("would_run", "", ())
    assert found(detector, "bias") == [{"instrument": NAME, "detector": 1}]
    assert found(detector, "flat") == [{"instrument": NAME, "detector": 1, "physical_filter": "r_03"}]
    assert {each["band"] for each in found(detector, "toy_template")} == {"r"}
    assert 1 <= len(found(detector, "toy_template")) < 25
    assert found(detector, "toy_refcat")
    assert exit_code(plan) is ExitCode.OK


def test_datasets_have_their_run_and_the_size_of_their_file(planned: MakePlan, toy_central: Path) -> None:
    detector = only(planned(main="Frame"))
    shard = next(each for each in detector.datasets if each.dataset_type == "toy_refcat")
    assert shard.run == "refcats/toy"
    assert shard.size_bytes == len(f"shard {shard.data_id['htm7']}")
    assert shard.region is not None
    assert len(shard.region) == 3
    assert detector.size_bytes == sum(each.size_bytes for each in detector.datasets)
    by_type = {each.dataset_type: each for each in detector.queries}
    assert by_type["toy_refcat"].read_by == ("Frame",)
    assert by_type["toy_refcat"].size_bytes == sum(
        each.size_bytes for each in detector.datasets if each.dataset_type == "toy_refcat"
    )


def test_the_plain_and_the_padded_footprint_have_the_same_order_of_corners(planned: MakePlan) -> None:
    plan = planned()
    footprint = only(plan).footprint
    assert plan.boresight == (RA, DEC)
    assert footprint is not None
    assert footprint.padding_arcsec == 50.1
    assert footprint.center == pytest.approx((RA - 0.1, DEC - 0.1), abs=1e-3)
    for plain, wide in zip(footprint.corners, footprint.padded, strict=True):
        for axis in (0, 1):
            assert abs(wide[axis] - footprint.center[axis]) > abs(plain[axis] - footprint.center[axis])
            assert wide[axis] == pytest.approx(plain[axis], abs=0.0145)


def test_rules_before_the_matching_one_have_the_reason_why_they_do_not_match(
    planned: MakePlan, pipelines: dict[str, str]
) -> None:
    rules = [
        {"survey": "BLOCK-1", "pipelines": [pipelines["Short"]]},
        {"ra": {"min": 10, "max": 20}, "pipelines": [pipelines["Short"]]},
        {"filter": ["g_01", "r_03"], "pipelines": [pipelines["Frame"], pipelines["Short"]]},
        {"pipelines": []},
    ]
    main = only(planned(rules=rules, survey="BLOCK-2")).main
    assert [rule.number for rule in main.tried] == [1, 2, 3]
    assert main.tried[0].conditions == "survey BLOCK-1"
    assert "BLOCK-2" in " ".join(main.tried[0].unmet)
    assert "10 to 20" in " ".join(main.tried[1].unmet)
    assert main.tried[2].unmet == ()
    assert main.tried[2].conditions == "filter g_01 or r_03"
    assert main.pipelines == (pipelines["Frame"], pipelines["Short"])


def test_pipelines_are_in_order_with_their_output_runs(planned: MakePlan) -> None:
    detector = only(planned(main="Full,Short"))
    states = [(each.part, each.name, each.state) for each in detector.pipelines]
    assert states == [
        ("preprocessing", "Known", "first"),
        ("main", "Full", "first"),
        ("main", "Short", "fallback"),
    ]
    for each in detector.pipelines:
        assert each.run is not None
        assert each.run.startswith(f"{NAME}/prompt/output-2026-11-22/{each.name}/")


def test_a_worker_uses_the_runs_that_were_planned(planned: MakePlan, tmp_path: Path, rigs: Any) -> None:
    plan = planned(main="Full")
    rig, work = rigs()
    work.prepare(rig.order())
    ours = {each.run for each in only(plan).pipelines if each.part == "preprocessing"}
    assert ours <= set(work._repo.butler.collections.query("*"))


@pytest.mark.parametrize(
    ("start", "runs"),
    [
        (BEGIN_TAI.unix_tai, {"new"}),
        (EPOCH.unix_tai - 86400.0, {"old"}),
        (EPOCH.unix_tai - 30.0, {"old", "new"}),
    ],
    ids=["after", "before", "across"],
)
def test_calibrations_of_each_possible_validity_range_are_planned(
    planned: MakePlan, start: float, runs: set[str]
) -> None:
    detector = only(planned(main="Short", startTime=start))
    biases = [each for each in detector.datasets if each.dataset_type == "bias"]
    assert {each.run for each in biases} == {f"{NAME}/calib/{name}" for name in runs}
    for each in biases:
        (validity,) = each.validity
        assert validity.collection == f"{NAME}/calib/certified"
        ends = (validity.begin, validity.end)
        assert ends == (("2026-11-20T00:00:00.000", None) if "new" in each.run else (None, ends[1]))


def test_without_a_pointing_no_spatial_dataset_is_planned(planned: MakePlan) -> None:
    plan = planned(main="Full,Short", coordinateSystem=1)
    detector = only(plan)
    assert (plan.boresight, detector.footprint) == (None, None)
    assert [each.state for each in detector.pipelines] == ["dropped", "dropped", "first"]
    assert {each.dataset_type for each in detector.datasets} == {"bias", "flat"}
    lost = {each.dataset_type for each in detector.missing if each.pipeline == "Full" and each.required}
    assert {"toy_refcat", "toy_template"} <= lost
    assert any("without a position on the sky" in note for note in (*plan.notes, *detector.notes))


def test_a_filter_that_the_central_repo_does_not_know_leaves_no_pipeline(planned: MakePlan) -> None:
    detector = only(planned(main="Full,Short", filters="zz_99"))
    assert detector.outcome == "no_pipeline"
    assert "has no record of the filter zz_99" in detector.reason
    assert "butler register-instrument" in detector.reason
    assert {each.state for each in detector.pipelines} == {"dropped"}


def test_a_pipeline_without_its_required_input_is_dropped(planned: MakePlan) -> None:
    plan = planned(main="NeedsModel")
    detector = only(plan)
    assert detector.outcome == "no_pipeline"
    assert "toy_model" in detector.reason
    (pipeline,) = (each for each in detector.pipelines if each.part == "main")
    assert (pipeline.state, pipeline.why, pipeline.run) == ("dropped", "lacks toy_model", None)
    assert [(each.dataset_type, each.pipeline, each.required) for each in detector.missing] == [
        ("toy_model", "NeedsModel", True)
    ]
    assert detector.datasets == ()
    assert exit_code(plan) is ExitCode.FAILED


@pytest.fixture
def central_with_defaults(tmp_path: Path, toy_central: Path) -> Path:
    """Give a copy of the central repo whose model is only in the instrument's defaults."""
    copy = tmp_path / "with-defaults"
    shutil.copytree(toy_central, copy)
    with Butler.from_config(str(copy), writeable=True) as butler:
        model = DatasetType("toy_model", butler.dimensions.empty, "StructuredDataDict")
        butler.registry.registerDatasetType(model)
        run = "pretrained_models/toy"
        butler.collections.register(run)
        butler.put({"weights": 1}, "toy_model", run=run)
        butler.collections.register(f"{NAME}/defaults", CollectionType.CHAINED)
        butler.collections.redefine_chain(f"{NAME}/defaults", [run, f"{NAME}/templates"])
    return copy


def test_the_defaults_of_an_instrument_are_searched(planned: MakePlan, central_with_defaults: Path) -> None:
    plan = planned(main="NeedsModel,Short", central=central_with_defaults)
    assert [each.state for each in only(plan).pipelines if each.part == "main"] == ["first", "fallback"]
    assert {each.run for each in only(plan).datasets if each.dataset_type == "toy_model"} == {
        "pretrained_models/toy"
    }
    assert plan.fallbacks == ()


def test_a_first_pipeline_that_is_dropped_for_every_detector_is_a_failure(planned: MakePlan) -> None:
    plan = planned(main="NeedsModel,Short", detectors=(1, 2, 3))
    assert {each.outcome for each in plan.detectors} == {"would_run"}
    (fallback,) = plan.fallbacks
    assert fallback.startswith("pipelines.main, rule 1: the first pipeline, NeedsModel, is dropped for det")
    assert fallback.endswith("detector 1-3: lacks toy_model")
    assert exit_code(plan) is ExitCode.FAILED
    assert exit_code(plan, allow_fallback=True) is ExitCode.OK


def test_subsets_of_one_file_are_planned_separately(planned: MakePlan, pipelines: dict[str, str]) -> None:
    pipelines |= {"A": f"{pipelines['Full']}#subtract", "B": f"{pipelines['Full']}#isr"}
    detector = only(planned(main="A,B,Full", position=[RA + 2.0, DEC]))
    main = [(each.name, each.state, each.why) for each in detector.pipelines if each.part == "main"]
    assert main == [
        ("Full-subtract", "dropped", "lacks toy_template"),
        ("Full-isr", "first", ""),
        ("Full", "dropped", "lacks toy_template"),
    ]
    assert {each.pipeline for each in detector.missing} == {"Full-subtract", "Full"}
    Path(pipelines["Full"]).write_text("tasks: {isr: no.such.Task}\n")
    whys = [each.why for each in only(planned(main="A,Full,Short")).pipelines if each.state == "dropped"]
    assert [why.partition(" cannot ")[0] for why in whys] == [pipelines["A"], pipelines["Full"]]


CheckRules = Callable[..., list[tuple[str, int, str, str]]]


@pytest.fixture
def checked(tmp_path: Path, toy_central: Path, pipelines: dict[str, str]) -> CheckRules:
    """Give a function that checks the rules of a configuration; each rule is one text of names."""

    def check(
        *main: str, before: tuple[str, ...] = (), central: Path = toy_central, **changes: Any
    ) -> list[tuple[str, int, str, str]]:
        rules = {
            part: [{"pipelines": [pipelines[name] for name in rule.split(",")]} for rule in names]
            for part, names in (("main", main), ("preprocessing", before))
        }
        rig = Rig(tmp_path / "rig", tmp_path / "ram", central, pipelines=rules, **changes)
        assert rig.config.butler is not None
        with Butler.from_config(str(central), writeable=False) as butler:
            found = RuleChecker(rig.config, rig.config.butler).dropped(butler)
            return [(each.part, each.rule, each.name, each.why) for each in found]

    return check


def test_rules_whose_first_pipeline_no_visit_can_get_are_found(checked: CheckRules) -> None:
    assert checked("Short,NeedsModel", "NeedsModel,Short", "Full", before=("Known",)) == [
        ("main", 1, "NeedsModel", f"{NAME} lacks toy_model")
    ]


def test_inputs_in_the_defaults_are_no_lack(checked: CheckRules, central_with_defaults: Path) -> None:
    assert checked("NeedsModel,Short", "Full", before=("Known",), central=central_with_defaults) == []


def test_outputs_of_no_preprocessing_pipeline_are_a_lack(checked: CheckRules) -> None:
    ((part, rule, name, why),) = checked("Full")
    assert (part, rule, name) == ("main", 0, "Full")
    assert "known" in why


def test_detectors_without_calibrations_are_a_lack_only_if_they_are_all(checked: CheckRules) -> None:
    assert checked("Short") == []


def test_detectors_without_calibrations_are_a_lack_if_they_are_all(checked: CheckRules) -> None:
    found = checked("Short", node={"instruments": {NAME: "90-95"}})
    assert [(each[2], each[3]) for each in found] == [("Short", f"{NAME} lacks bias, flat")]


def test_a_pipeline_that_cannot_be_constructed_is_found(
    checked: CheckRules, pipelines: dict[str, str]
) -> None:
    Path(pipelines["Full"]).write_text("tasks: {isr: no.such.Task}\n")
    ((_, _, name, why),) = checked("Full,Short", "Short")
    assert name == "Full"
    assert "cannot be constructed" in why


def test_a_pipeline_without_templates_at_its_position_is_dropped(planned: MakePlan) -> None:
    detector = only(planned(main="Full,Frame", position=[RA + 2.0, DEC]))
    states = {each.name: (each.state, each.why) for each in detector.pipelines}
    assert states["Full"] == ("dropped", "lacks toy_template")
    assert states["Frame"] == ("first", "")
    (template,) = (each for each in detector.queries if each.dataset_type == "toy_template")
    assert (template.datasets, template.preloaded) == (0, False)


def test_a_pipeline_that_cannot_be_constructed_is_dropped_with_the_reason(
    planned: MakePlan, pipelines: dict[str, str]
) -> None:
    Path(pipelines["Full"]).write_text("tasks: {isr: no.such.Task}\n")
    detector = only(planned(main="Full,Short"))
    states = {each.name: each for each in detector.pipelines}
    assert states["Full"].state == "dropped"
    assert "cannot be constructed" in states["Full"].why
    assert states["Short"].state == "first"


def test_a_pipeline_that_combines_visits_is_dropped_with_the_reason(
    planned: MakePlan, checked: CheckRules, pipelines: dict[str, str]
) -> None:
    """It would make a master bias of one exposure."""
    tasks = {"isr": "toycam.IsrTask", "combine": "dimensiontasks.CombineTask"}
    Path(pipelines["Full"]).write_text(yaml.dump({"description": "combines", "tasks": tasks}))
    plan = planned(main="Full,Short")
    full, short = (each for each in only(plan).pipelines if each.part == "main")
    assert (full.state, short.state) == ("dropped", "first")
    assert full.why.endswith("combines several visits, which workers do not do, in: combine")
    assert exit_code(plan) is ExitCode.FAILED
    ((_, _, name, why),) = checked("Full,Short", "Short")
    assert (name, why) == ("Full", full.why)


@pytest.mark.parametrize(
    ("rules", "words"),
    [([{"pipelines": None}], "its rule ignores the visit"), ([], "no rule matches")],
    ids=["ignored", "unmatched"],
)
def test_a_visit_without_pipelines_is_ignored_without_a_query(
    planned: MakePlan, pipelines: dict[str, str], rules: list[dict[str, Any]], words: str
) -> None:
    never = {"survey": "BLOCK-9", "pipelines": [pipelines["Short"]]}
    plan = planned(rules=[never, *rules])
    detector = only(plan)
    assert detector.outcome == "ignored"
    assert words in detector.reason
    assert (detector.queries, detector.pipelines, detector.datasets) == ((), (), ())
    assert detector.footprint is not None
    assert exit_code(plan) is ExitCode.FAILED


def test_an_event_without_a_start_time_is_planned_for_its_sending_time_or_now(planned: MakePlan) -> None:
    sent = planned(main="Short", startTime=0.0, private_sndStamp=BEGIN_TAI.unix_tai)
    assert (sent.begin_from, sent.begin) == ("private_sndStamp", "2026-11-23T03:25:16.000")
    untold = planned(main="Short", startTime=0.0)
    assert (untold.begin_from, untold.begin) == ("now", tai_iso(NOW_TAI))


def test_an_event_that_nodes_would_refuse_as_expired_is_planned_with_a_note(planned: MakePlan) -> None:
    plan = planned(main="Short", private_sndStamp=NOW_TAI - 7200.0)
    assert any("7200 s ago" in note for note in plan.notes)
    assert only(plan).outcome == "would_run"


def test_datasets_that_detectors_share_are_counted_once(planned: MakePlan) -> None:
    plan = planned(detectors=(0, 1, 2, 3))
    each = [len(detector.datasets) for detector in plan.detectors]
    distinct = {dataset.id for detector in plan.detectors for dataset in detector.datasets}
    assert plan.distinct_datasets == len(distinct) < sum(each)


def test_an_unavailable_central_repo_is_reported(planned: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        planned(central=tmp_path / "nowhere")


# --- the real command ------------------------------------------------------

PIPELINES = Path(__file__).parents[2] / "ppdaemon/demo/pipelines"
DEMO_VISIT = {
    "groupId": "2026-11-22T03:25:16.951",
    "instrument": "DemoCam",
    "coordinateSystem": 2,
    "position": [150.1, 2.2],
    "startTime": BEGIN_TAI_S,
    "rotationSystem": 2,
    "cameraAngle": 25.0,
    "filters": "r_03",
    "duration": 35.0,
    "nimages": 1,
    "survey": "BLOCK-365",
}


class Command:
    """``ppdaemon plan`` with a configuration, on a state folder that must stay as it is."""

    def __init__(self, folder: Path, central: Path):
        self._folder = folder
        self.config: dict[str, Any] = {
            "node": {
                "name": "demo",
                "state_dir": str(folder / "state"),
                "ramdisk": str(folder / "ram"),
                "control": str(folder / "control.sock"),
                "instruments": {"DemoCam": "0-8"},
            },
            "arrivals": {"roots": [str(folder)]},
            "butler": {
                "central": str(central),
                "instrument_class": {"DemoCam": "ppdaemon.demo.instrument.DemoCam"},
                "skymap": "demo",
            },
            "pipelines": {
                "main": [
                    {"survey": "cwfs", "pipelines": []},
                    {"pipelines": [str(PIPELINES / "SingleFrame.yaml")]},
                ]
            },
        }

    def __call__(self, *options: str, detector: str = "4", **sal: Any) -> "subprocess.CompletedProcess[str]":
        return self._run("plan", "--visit=-", "--detector", detector, *options, **sal)

    def check(self, *options: str) -> "subprocess.CompletedProcess[str]":
        """Run ``ppdaemon check-config``."""
        return self._run("check-config", *options)

    def _run(self, *arguments: str, **sal: Any) -> "subprocess.CompletedProcess[str]":
        (self._folder / "node.yaml").write_text(yaml.safe_dump(self.config))
        return subprocess.run(
            [
                *(sys.executable, "-m", "ppdaemon.node.app", *arguments),
                f"--config={self._folder / 'node.yaml'}",
            ],
            input=json.dumps(DEMO_VISIT | sal),
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | {"TMPDIR": str(self._folder / "tmp")},
        )


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of change of all files."""
    files = {str(path): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in files.items()}


@pytest.fixture
def command(tmp_path: Path, demo_central: Path) -> Iterator[Command]:
    """Give the command; afterwards no file may have been made or changed."""
    (tmp_path / "tmp").mkdir()
    before = contents(demo_central)
    yield Command(tmp_path, demo_central)
    assert contents(demo_central) == before
    assert not list((tmp_path / "tmp").iterdir())
    assert not (tmp_path / "state").exists()
    assert not (tmp_path / "ram").exists()


def test_the_command_prints_its_plan_as_json_and_draws_it(
    command: Command, tmp_path: Path, pipelines: dict[str, str]
) -> None:
    # Its task is found only in the environment that is configured for workers.
    command.config["pipelines"]["preprocessing"] = [{"pipelines": [pipelines["Known"]]}]
    command.config["workers"] = {"environment": {"PYTHONPATH": str(Path(__file__).parent)}}
    done = command("--json", f"--plot={tmp_path / 'sky.png'}")
    assert (done.returncode, done.stderr) == (0, "")
    plan = Plan.model_validate_json(done.stdout)
    assert only(plan).name == "R22_S11"
    assert [(each.name, each.state) for each in only(plan).pipelines] == [
        ("Known", "first"),
        ("SingleFrame", "first"),
    ]
    assert {each.dataset_type for each in only(plan).datasets} == {"bias", "dark", "flat", "demo_refcat"}
    assert json.loads(done.stdout)["visit"]["groupId"] == DEMO_VISIT["groupId"]
    assert (tmp_path / "sky.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_exits_with_1_if_no_pipeline_would_run_for_a_detector(command: Command) -> None:
    done = command(detector="3-4")
    assert (done.returncode, done.stderr) == (ExitCode.FAILED, "")
    assert "bias, dark, flat" in done.stdout


def test_the_command_reports_an_unavailable_central_repo(command: Command, tmp_path: Path) -> None:
    command.config["butler"] = {**command.config["butler"], "central": str(tmp_path / "nowhere")}
    done = command()
    assert (done.returncode, done.stdout) == (ExitCode.UNAVAILABLE, "")
    assert "nowhere" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def falling_back(command: Command, pipelines: dict[str, str]) -> Command:
    """Give the command with a rule whose first pipeline lacks an input."""
    command.config["pipelines"]["main"][1]["pipelines"].insert(0, pipelines["NeedsModel"])
    command.config["workers"] = {"environment": {"PYTHONPATH": str(Path(__file__).parent)}}
    return command


def test_the_command_prints_tables_with_a_rule_that_falls_back_and_may_allow_it(
    falling_back: Command,
) -> None:
    """That it exits with 1 without the option is tested with `exit_code`."""
    allowed = falling_back("--allow-fallback")
    assert (allowed.returncode, allowed.stderr) == (ExitCode.OK, "")
    for words in ("would run SingleFrame", "survey: 'BLOCK-365'", "demo_refcat", "htm7", "output-2026-11-21"):
        assert words in allowed.stdout
    assert "the first pipeline, NeedsModel, is dropped for" in " ".join(allowed.stdout.split())


def test_check_config_names_the_rule_that_falls_back(
    falling_back: Command, tmp_path: Path, pipelines: dict[str, str]
) -> None:
    done = falling_back.check()
    line = (tmp_path / "node.yaml").read_text().splitlines().index("  - pipelines:") + 1
    text = (
        f"{tmp_path}/node.yaml:{line}: pipelines.main.1: the first pipeline, NeedsModel, is dropped for "
        f"every detector: {pipelines['NeedsModel']} does not fit the repo: "
    )
    assert done.returncode == ExitCode.FAILED
    (line,) = about(done, "pipelines.main")
    assert line.startswith(f"ppdaemon: {text}")


def about(done: "subprocess.CompletedProcess[str]", key: str) -> list[str]:
    """Return the lines about a key; others are about this host."""
    return [line for line in done.stderr.splitlines() if f" {key}" in line]


def test_check_config_does_not_need_the_central_repo(command: Command, tmp_path: Path) -> None:
    # An empty folder, as the mount point of a mount that is away.
    (tmp_path / "mount").mkdir()
    command.config["butler"] = {**command.config["butler"], "central": str(tmp_path / "mount" / "repo")}
    done = command.check()
    assert done.returncode == ExitCode.OK
    assert done.stdout == f"{tmp_path}/node.yaml: valid, node demo\n"
    (line,) = about(done, "butler.central")
    assert line.startswith("ppdaemon: warning: ")
    assert f"{tmp_path}/mount/repo cannot be read now" in line


def test_check_config_refuses_a_central_repo_that_does_not_exist(command: Command, tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    command.config["butler"] = {**command.config["butler"], "central": str(tmp_path / "mian")}
    done = command.check()
    assert done.returncode == ExitCode.CONFIG
    (line,) = about(done, "butler.central")
    assert f"{tmp_path}/mian does not exist; did you mean 'main'?" in line
