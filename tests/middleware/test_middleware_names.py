# SPDX-License-Identifier: BSD-3-Clause
"""Names in a configuration: each misspelling, with its line and a hint, on a real central repo."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from centrals import make_few
from postgres import OwnPostgresServer, running_server
from toycam import DETECTORS, NAME, Rig, write_pipelines

from ppdaemon.configfile import ConfigFile
from ppdaemon.errors import ConfigError, Refused, Unavailable
from ppdaemon.messages import NameFinding, Resolving, TaskNamesResolved
from ppdaemon.middleware.work import build_template
from ppdaemon.node.processes.names import Resolution
from ppdaemon.reports import ReloadRequest
from ppdaemon.states import ExitCode, SlotState
from ppdaemon.testing.node import NodeProcess
from ppdaemon.testing.waiting import TIMEOUT_S
from ppdaemon.worker.names import resolve_names

pytest_plugins = ["toyfixtures"]

type Document = dict[str, Any]


@pytest.fixture
def document(tmp_path: Path, toy_central: Path) -> Document:
    """Give a configuration in which every name exists."""
    folder = tmp_path / "pipelines"
    folder.mkdir()
    paths = write_pipelines(folder)
    (tmp_path / "raw").mkdir()
    return {
        "node": {
            "name": "toy",
            "state_dir": str(tmp_path / "state"),
            "ramdisk": str(tmp_path / "ram"),
            "control": str(tmp_path / "control"),
            "instruments": {NAME: f"0-{DETECTORS - 1}"},
        },
        "arrivals": {"roots": [str(tmp_path / "raw")], "layout": "generic"},
        "workers": {
            "preload": ["toycam"],
            "environment": {"PYTHONPATH": str(Path(__file__).parent)},
        },
        "butler": {
            "central": str(toy_central),
            "instrument_class": {NAME: "toycam.ToyCam"},
            "skymap": "toy",
        },
        "pipelines": {
            "preprocessing": [{"pipelines": [paths["Known"]]}],
            "main": [{"pipelines": [paths["Full"], paths["Short"]]}],
            "overrides": {"isr:saveLogOutput": True},
        },
        "engine": {"no_return": ["associate", "toycam.IsrTask"]},
        "export": {"types": ["toy_.*", ".*_config", ".*_log", "packages", "regionTimeInfo"]},
    }


def read(folder: Path, document: Document) -> ConfigFile:
    path = folder / "node.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return ConfigFile.read(path, {})


def resolved(folder: Path, document: Document) -> Resolution:
    file = read(folder, document)
    found = [each for each in resolve_names(file.config) if isinstance(each, NameFinding)]
    return Resolution.of(file, found)


def set_at(document: Document, place: str, value: Any) -> None:
    *steps, last = place.split("/")
    part = document
    for step in steps:
        part = part.setdefault(step, {})
    part[last] = value


def test_a_configuration_without_misspelling_has_no_finding(tmp_path: Path, document: Document) -> None:
    assert resolved(tmp_path, document) == Resolution()


@pytest.mark.parametrize(
    ("place", "value", "level", "key", "text"),
    [
        (
            "engine/no_return",
            ["asociate"],
            "errors",
            "engine.no_return.0",
            "a task asociate: .* 'associate'?",
        ),
        (
            "engine/no_return",
            ["toycam.IsrTusk"],
            "errors",
            "engine.no_return.0",
            "did you mean 'toycam.IsrTask'",
        ),
        ("engine/no_return", ["associate", "ISR"], "errors", "engine.no_return.1", "did you mean 'isr'?"),
        ("engine/no_return", [""], "errors", "engine.no_return.0", "no configured pipeline has a task : "),
        ("pipelines/overrides", {"irs:doBias": 1}, "errors", "pipelines.overrides.irs:doBias", "mean 'isr'?"),
        (
            "pipelines/overrides",
            {"parameters:apdb_confg": "x"},
            "errors",
            "pipelines.overrides.parameters:apdb_confg",
            "has a parameter apdb_confg",
        ),
        (
            "pipelines/overrides",
            {"isr:saveLogOutputs": True},
            "errors",
            "pipelines.overrides.isr:saveLogOutputs",
            "no attribute saveLogOutputs; did you mean 'saveLogOutput'?",
        ),
        (
            "pipelines/overrides",
            {"isr:saveLogOutput": [1]},
            "errors",
            "pipelines.overrides.isr:saveLogOutput",
            "FieldValidationError",
        ),
        (
            "pipelines/overrides",
            {"isr:connections.bais": "x"},
            "errors",
            "overrides.isr:connections.bais",
            "bais",
        ),
        (
            "export/types",
            ["toy_difference.*", "pakages"],
            "warnings",
            "export.types.1",
            "did you mean 'packages'?",
        ),
        ("export/types", [".*_configs"], "warnings", "export.types.0", "'.*_configs' matches no output"),
        (
            "export/types",
            ["calexp"],
            "warnings",
            "export.types.0",
            "'calexp' matches no output of the config",
        ),
        ("butler/instrument_class", {NAME: "toycan.ToyCam"}, "errors", f"instrument_class.{NAME}", "toycan"),
        (
            "butler/instrument_class",
            {NAME: "toycam.ToyCan"},
            "errors",
            f"instrument_class.{NAME}",
            "'ToyCam'?",
        ),
        (
            "butler/instrument_class",
            {NAME: "toycam.IsrTask"},
            "errors",
            f"class.{NAME}",
            "not usable as an instr",
        ),
        (
            "butler/instrument_class",
            {NAME: "site_script.ToyCam"},
            "errors",
            f"instrument_class.{NAME}",
            "site_script.ToyCam cannot be imported: SystemExit",
        ),
        (
            "butler/instrument_class",
            {NAME: "ToyCam"},
            "errors",
            f"instrument_class.{NAME}",
            "cannot be imported",
        ),
        (
            "butler/instrument_class",
            {NAME: "ppdaemon.demo.instrument.DemoCam"},
            "errors",
            f"butler.instrument_class.{NAME}",
            f"is the class of DemoCam, not of {NAME}",
        ),
        (
            "workers/preload",
            ["toycan"],
            "errors",
            "workers.preload.0",
            "No module named 'toycan'; .*'toycam'?",
        ),
        ("workers/preload", ["lsst.pipe.bas"], "errors", "preload.0", "did you mean 'lsst.pipe.base'?"),
        ("workers/preload", ["toycam", "json.x"], "errors", "workers.preload.1", "json.x cannot be imported"),
        (
            "engine",
            {"apdb": {NAME: "/usr/apbd.yaml"}},
            "errors",
            f"engine.apdb.{NAME}",
            "/usr/apbd.yaml does not",
        ),
        (
            "engine",
            {"apdb": {NAME: "apdb.yaml"}},
            "errors",
            f"engine.apdb.{NAME}",
            "apdb.yaml is no absolute",
        ),
        ("engine", {"apdb": {NAME: "/usr"}}, "errors", f"engine.apdb.{NAME}", "/usr is no file"),
        ("engine", {"apdb": {NAME: __file__}}, "errors", f"engine.apdb.{NAME}", "cannot be opened"),
        ("engine", {"apdb": {NAME: "/nowhere/apdb.yaml"}}, "unavailable", f"engine.apdb.{NAME}", "read now"),
        ("butler/calibs", [f"{NAME}/calibs"], "warnings", "butler.calibs.0", f"did you mean '{NAME}/calib'?"),
        ("butler/inputs", ["templates", "ref_cats"], "warnings", "butler.inputs.1", "did you mean 'refcats"),
        ("butler/inputs", ["{instrument}/no"], "warnings", "butler.inputs.0", f"no collection {NAME}/no"),
        ("butler/skymap", "toi", "errors", "butler.skymap", "no sky map toi"),
        ("butler/skymap", "Toy", "errors", "butler.skymap", "did you mean 'toy'?"),
        ("butler/central", "/usr/repo", "errors", "butler.central", "/usr/repo does not exist"),
        ("butler/central", "/usr", "errors", "butler.central", "/usr is no repo"),
        ("butler/central", "main", "errors", "butler.central", "main is no alias, and no absolute"),
        (
            "butler/central",
            "/nowhere/repo",
            "unavailable",
            "butler.central",
            "/nowhere/repo cannot be read now",
        ),
        ("node/instruments", {NAME: "0-99"}, "errors", f"node.instruments.{NAME}", "has no detector "),
    ],
)
def test_a_misspelling_is_found_with_line_and_hint(
    tmp_path: Path,
    document: Document,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    value: Any,
    level: str,
    key: str,
    text: str,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "site_script.py").write_text("raise SystemExit(2)\n")
    if place == "engine":
        value = {"no_return": ["associate"], "apdb_tasks": ["associate"], **value}
    set_at(document, place, value)
    found = resolved(tmp_path, document)
    (line,) = getattr(found, level)
    assert re.search(re.escape(key) + ": .*" + text.replace("?", r"\?"), line), line
    file, number, _ = line.split(":", 2)
    last = re.split(r"[./]", place)[-1]
    assert file == str(tmp_path / "node.yaml")
    assert int(number) > (tmp_path / "node.yaml").read_text().split(f"{last}:")[0].count("\n")


SITE_TASKS = """\
import toycam
from lsst.pex.config import ConfigField, Config, Field


class PackagerConfig(Config):
    doProduceAlerts = Field[bool]("send", default=False)


class AlertConfig(toycam.AssociateConfig, pipelineConnections=toycam.AssociateConnections):
    apdb_config = Field[str]("database", default="/apdb.yaml")
    doPackageAlerts = Field[bool]("package", default=True)
    alertPackager = ConfigField[PackagerConfig]("alerts")


class AlertTask(toycam.AssociateTask):
    ConfigClass = AlertConfig
"""
OWN = {"associate:fail": "no", "alerts:apdb_config": "/own.yaml"}


@pytest.mark.parametrize(
    ("overrides", "texts"),
    [
        (
            {},
            [
                "the task alerts would use the alert database",
                "alerts would send alerts: set alerts:alertPackager.doProduceAlerts: false",
                "nothing in it changes the task associate",
            ],
        ),
        ({"associate:fail": "no", "alerts:apdb_config": "/own.yaml"}, ["alerts would send alerts"]),
        (
            {"associate:fail": "no", "alerts:alertPackager.doProduceAlerts": False},
            ["the task alerts would use the alert database of the present service: set alerts:apdb_config"],
        ),
        (OWN | {"alerts:alertPackager.doProduceAlerts": False}, []),
        (OWN | {"alerts:doPackageAlerts": False}, []),
        (OWN | {"server": "dev:9092"}, []),
    ],
    ids=["nothing", "still sends", "same database", "sends none", "packages none", "other server"],
)  # fmt: skip
def test_in_shadow_mode_each_task_that_writes_must_be_replaced(
    tmp_path: Path,
    document: Document,
    monkeypatch: pytest.MonkeyPatch,
    overrides: dict[str, Any],
    texts: list[str],
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "site_tasks.py").write_text(SITE_TASKS)
    path = Path(document["pipelines"]["main"][0]["pipelines"][0])
    path.write_text(f"{path.read_text()}  alerts: site_tasks.AlertTask\n")
    document["pipelines"]["overrides"] = {
        "alerts:alertPackager.doProduceAlerts": True,
        "alerts:connections.output": "toy_alerts",
    }
    assert resolved(tmp_path, document) == Resolution()
    document["engine"]["no_return"] = ["associate"]
    environment = {"AP_KAFKA_SERVER": overrides["server"]} if "server" in overrides else {}
    overrides = {name: value for name, value in overrides.items() if name != "server"}
    document["shadow"] = {"enabled": True, "overrides": overrides, "environment": environment}
    found = resolved(tmp_path, document)
    assert found.repeating == found.errors
    assert len(found.errors) == len(texts), found.errors
    for line, text in zip(found.errors, texts, strict=True):
        assert "shadow.overrides" in line or "shadow: " in line
        assert text in line


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("ALIAS", "ALIAS is the repo of the present service"),
        ("copy", "copy is the repo of the present service, or shares its database"),
        ("none", "are different repos cannot be checked"),
        ("own", ""),
    ],
)
def test_in_shadow_mode_the_repo_of_outputs_is_another_one(
    tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    index, central = tmp_path / "index.yaml", Path(document["butler"]["central"])
    index.write_text(yaml.safe_dump({"ALIAS": str(central)}))
    monkeypatch.setenv("DAF_BUTLER_REPOSITORY_INDEX", str(index))
    for folder, root in (("copy", central), ("own", tmp_path / "own")):
        (tmp_path / folder).mkdir()
        config = yaml.safe_load((central / "butler.yaml").read_text())
        config["registry"]["db"] = f"sqlite:///{root}/gen3.sqlite3"
        (tmp_path / folder / "butler.yaml").write_text(yaml.safe_dump(config))
    document["engine"]["no_return"] = []
    own = name if name == "ALIAS" else str(tmp_path / name)
    document["shadow"] = {"enabled": True, "central": own}
    errors = resolved(tmp_path, document).errors
    assert len(errors) == bool(problem), errors
    for line in errors:
        assert "shadow.central" in line
        assert problem in line


def test_in_shadow_mode_a_pipeline_that_cannot_be_checked_is_an_error(
    tmp_path: Path, document: Document
) -> None:
    Path(document["pipelines"]["main"][0]["pipelines"][1]).write_text("tasks: [\n")
    document["engine"]["no_return"] = []
    assert resolved(tmp_path, document).errors == ()
    document["shadow"] = True
    (error,) = resolved(tmp_path, document).errors
    assert "what its tasks write cannot be checked" in error


def test_all_names_are_reported_at_once(tmp_path: Path, document: Document) -> None:
    document["engine"] = {
        "no_return": ["asociate"],
        "apdb_tasks": ["asociate"],
        "apdb": {NAME: "/usr/x.yaml"},
    }
    document["pipelines"]["overrides"] = {"irs:a": 1, "isr:b": 2}
    document["pipelines"]["main"] += [{"filter": "r_3", "pipelines": None}]
    document["butler"] |= {"skymap": "toi", "calibs": ["no/calib"]}
    document["workers"]["preload"] = ["toycan"]
    document["export"]["types"] += ["pakages"]
    found = resolved(tmp_path, document)
    assert len(found.errors) == 7
    assert {line.split(": ")[1] for line in found.errors} == {
        "engine.no_return.0",
        "engine.apdb_tasks.0",
        f"engine.apdb.{NAME}",
        "pipelines.overrides.irs:a",
        "pipelines.overrides.isr:b",
        "butler.skymap",
        "workers.preload.0",
    }
    assert {line.split(": ")[1] for line in found.warnings} == {
        "butler.calibs.0",
        "export.types.5",
        "pipelines.main.1.filter",
    }
    assert [line.split(": ")[1] for line in found.repeating] == ["engine.no_return.0", "engine.apdb_tasks.0"]


def test_a_label_of_a_pipeline_that_cannot_be_constructed_is_no_error(
    tmp_path: Path, document: Document
) -> None:
    path = Path(document["pipelines"]["main"][0]["pipelines"][1])
    path.write_text("description: broken\ntasks: {alerts: no.such.Task}\n")
    document["engine"]["no_return"] = ["associate", "alerts", "no.such.Task", "alarts"]
    found = resolved(tmp_path, document)
    (error,) = found.errors
    assert "engine.no_return.3: no configured pipeline has a task alarts" in error
    assert found.unavailable == ()
    first, second = found.warnings
    assert f"pipelines.main.0.pipelines.1: {path} cannot be constructed" in first
    assert "engine.no_return.2: no configured pipeline has a task no.such.Task" in second
    assert f"unless it is in a pipeline that cannot be used: {path} cannot be constructed" in second


def test_a_pipeline_that_is_no_yaml_leaves_labels_unknown(tmp_path: Path, document: Document) -> None:
    """What is wrong in a pipeline does not change by itself: it is not resolved again."""
    path = Path(document["pipelines"]["main"][0]["pipelines"][1])
    path.write_text("tasks: [\n")
    document["engine"]["no_return"] = ["alerts"]
    found = resolved(tmp_path, document)
    assert found.errors == found.unavailable == ()
    assert [line.split(": ")[1] for line in found.warnings] == [
        "pipelines.main.0.pipelines.1",
        "engine.no_return.0",
    ]


def test_a_name_that_a_file_on_a_mount_that_is_away_may_have_is_resolved_later(
    tmp_path: Path, document: Document
) -> None:
    path = Path(document["pipelines"]["main"][0]["pipelines"][1])
    path.write_text(f"description: parts\nimports: [{{location: {tmp_path}/mount/alerts.yaml}}]\n")
    document["engine"]["no_return"] = ["alerts", "no.such.Task"]
    (tmp_path / "mount").mkdir()
    found = resolved(tmp_path, document)
    assert found.errors == ()
    assert [line.split(": ")[1] for line in found.unavailable] == ["engine.no_return.0", "engine.no_return.1"]
    (tmp_path / "mount" / "alarts.yaml").touch()  # the file does not exist: its folder has another one
    assert resolved(tmp_path, document).unavailable == ()


def test_each_query_is_announced_before_it_can_hang(tmp_path: Path, document: Document) -> None:
    document["engine"] |= {"apdb": {NAME: "/nowhere/apdb.yaml"}, "apdb_tasks": ["associate"]}
    file = read(tmp_path, document)
    what = [each.what for each in resolve_names(file.config) if isinstance(each, Resolving)]
    assert what == [
        "the modules of the workers",
        "the pipelines",
        "the alert database /nowhere/apdb.yaml",
        f"the central repo {document['butler']['central']}",
    ]


def test_names_of_tasks_are_complete_before_any_database_is_queried(
    tmp_path: Path, document: Document
) -> None:
    document["engine"] = {"no_return": ["asociate"], "apdb_tasks": ["asociate"], "apdb": {NAME: "/usr/x"}}
    document["butler"]["skymap"] = "toi"
    facts = list(resolve_names(read(tmp_path, document).config))
    end = facts.index(TaskNamesResolved())
    keys = [fact.key for fact in facts[:end] if isinstance(fact, NameFinding)]
    assert keys == [("engine", "no_return", 0), ("engine", "apdb_tasks", 0)]
    assert not [fact for fact in facts[:end] if isinstance(fact, Resolving) and "/" in fact.what]
    assert {("engine", "apdb", NAME), ("butler", "skymap")} <= {
        fact.key for fact in facts[end:] if isinstance(fact, NameFinding)
    }


def test_an_alias_is_resolved_by_the_index_of_repos(
    tmp_path: Path, document: Document, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index.yaml"
    index.write_text(f"main: {document['butler']['central']}\nold: {tmp_path}/old\n")
    monkeypatch.setenv("DAF_BUTLER_REPOSITORY_INDEX", str(index))
    document["butler"]["central"] = "main"
    assert resolved(tmp_path, document) == Resolution()
    document["butler"]["central"] = "mian"
    (error,) = resolved(tmp_path, document).errors
    assert "butler.central: mian is no alias, and no absolute path; did you mean 'main'?" in error
    document["butler"]["central"] = "old"
    (error,) = resolved(tmp_path, document).errors
    assert f"butler.central: {tmp_path}/old does not exist" in error
    monkeypatch.setenv("DAF_BUTLER_REPOSITORY_INDEX", str(tmp_path / "away.yaml"))
    found = resolved(tmp_path, document)
    assert (len(found.errors), len(found.unavailable)) == (0, 1)


def test_a_repo_that_goes_away_while_names_are_resolved_is_no_error(
    tmp_path: Path, document: Document, toy_central: Path
) -> None:
    mount = tmp_path / "mount"
    shutil.copytree(toy_central, mount / "central")
    document["butler"] |= {"central": str(mount / "central"), "calibs": ["no/calib"]}
    facts = []
    for fact in resolve_names(read(tmp_path, document).config):
        facts.append(fact)
        if isinstance(fact, NameFinding) and (mount / "central").exists():
            (mount / "central").rename(tmp_path / "away")  # its mount point is empty now
    found = [fact for fact in facts if isinstance(fact, NameFinding)]
    assert [each.key for each in found if each.level == "warning"] == [("butler", "calibs", 0)]
    assert not [each for each in found if each.level == "error"]


# --- the real daemon -------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, socket_dir: Path, document: Document) -> Callable[[], NodeProcess]:
    """Give a function that makes a node which is not started."""
    document["node"] |= {"ramdisk": str(socket_dir / "ram"), "control": str(socket_dir / "control")}
    document["workers"] |= {"min": 1, "spare": 0, "max": 1, "times": {"stop_s": 1}}
    document["export"]["retry_s"] = 0.5
    document["log"] = {"format": "console"}
    return lambda: NodeProcess(tmp_path, document)


def check_config(node: NodeProcess) -> "subprocess.CompletedProcess[str]":
    node.rewrite()
    command = [sys.executable, "-m", "ppdaemon.node.app", "check-config", f"--config={node.path}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def errors_of(text: str) -> list[str]:
    """Return the lines of errors about names, without what precedes the file."""
    lines = [line.removeprefix("ppdaemon: ") for line in text.splitlines()]
    return [line for line in lines if line.startswith("/") and ("engine." in line or "overrides." in line)]


@pytest.mark.slow
def test_check_config_start_and_reload_report_the_same(
    node: Callable[[], NodeProcess], document: Document
) -> None:
    """Fault 78: names that do not exist, at each of the three."""
    daemon = node()
    good = {"engine": dict(document["engine"]), "pipelines": dict(document["pipelines"])}
    document["engine"] = {"no_return": ["asociate", "associate"]}
    document["pipelines"] = {**document["pipelines"], "overrides": {"irs:a": 1, "isr:b": 2}}
    checked = check_config(daemon)
    assert checked.returncode == ExitCode.CONFIG
    expected = errors_of(checked.stderr)
    assert len(expected) == 3
    daemon.launch()
    assert daemon.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    assert errors_of(daemon.log.read_text()) == expected
    bad = {"engine": dict(document["engine"]), "pipelines": dict(document["pipelines"])}
    document |= good
    with daemon.start():
        document |= bad
        daemon.rewrite()
        with pytest.raises(ConfigError) as refused:
            daemon.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        assert sorted(errors_of(str(refused.value))) == sorted(expected)
        assert daemon.status().generation == 1


@pytest.fixture
def stoppable() -> Iterator[OwnPostgresServer]:
    """Give a PostgreSQL server for one test, which may stop it."""
    with running_server() as server:
        yield server


def test_names_in_a_stopped_database_and_the_template_are_unavailable(
    tmp_path: Path, document: Document, stoppable: OwnPostgresServer
) -> None:
    """Faults 77, 78: what the start then does is tested with scripted names and templates."""
    document["butler"]["central"] = str(make_few(tmp_path / "few", stoppable).root)
    stoppable.stop()
    found = resolved(tmp_path, document)
    assert found.errors == ()
    (line,) = found.unavailable
    assert "butler.central: " in line
    assert "cannot be read now: OperationalError" in line
    rig = Rig(tmp_path / "rig", tmp_path / "rig" / "ram", Path(document["butler"]["central"]))
    with pytest.raises(Unavailable, match="OperationalError"):
        build_template(rig.context)


@pytest.mark.slow
def test_a_start_with_a_stopped_database_is_degraded_until_it_is_back(
    node: Callable[[], NodeProcess], document: Document, tmp_path: Path, stoppable: OwnPostgresServer
) -> None:
    """Faults 77, 78: the database of the central repo is away at the start."""
    central = make_few(tmp_path / "few", stoppable)
    document["butler"]["central"] = str(central.root)
    document["export"]["types"] = ["packages"]
    stoppable.stop()
    daemon = node()
    checked = check_config(daemon)
    assert checked.returncode == ExitCode.OK
    (warning,) = (line for line in checked.stderr.splitlines() if "butler.central" in line)
    assert warning.startswith("ppdaemon: warning: ")
    assert "cannot be read now: OperationalError" in warning
    with daemon:
        daemon.launch()
        daemon.wait(lambda: any("no worker can start: " in text for text in daemon.status().problem_texts))
        assert daemon.status().state == "degraded"
        with pytest.raises(Refused, match="starting"):
            daemon.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        stoppable.start()
        daemon.wait(lambda: daemon.status().slots.get(SlotState.IDLE) == 1)
        daemon.wait(lambda: daemon.status().state == "running")
        stoppable.stop()
        with pytest.raises(Refused, match="cannot be read"):
            daemon.daemon.ask(ReloadRequest(), timeout_s=TIMEOUT_S)
        assert daemon.status().generation == 1
        stoppable.start()


@pytest.mark.slow
def test_a_name_that_a_database_back_again_does_not_have_is_a_problem_or_an_exit(
    node: Callable[[], NodeProcess], document: Document, tmp_path: Path, stoppable: OwnPostgresServer
) -> None:
    """Fault 78: what could not be resolved turns out to be misspelled, before any visit was accepted."""
    document["butler"] |= {"central": str(make_few(tmp_path / "few", stoppable).root), "skymap": "toi"}
    stoppable.stop()
    daemon = node()
    daemon.launch()
    daemon.wait(lambda: daemon.status().state == "degraded")
    stoppable.start()
    assert daemon.process.wait(TIMEOUT_S) == ExitCode.CONFIG
    assert "butler.skymap: the central repo has no sky map toi" in daemon.log.read_text()
