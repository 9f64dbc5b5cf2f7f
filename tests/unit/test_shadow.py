# SPDX-License-Identifier: BSD-3-Clause
"""Shadow mode: what is in effect, what is refused, and that nothing of the two modes is mixed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ppdaemon.clock import Clock
from ppdaemon.config import NodeConfig, load_node
from ppdaemon.config.shadow import NO_CENTRAL
from ppdaemon.errors import ConfigError, StateUnusable, Unavailable
from ppdaemon.folders import NodeFolders
from ppdaemon.messages import Hello, ReserveVisit
from ppdaemon.night.reading import copy_night, read_night
from ppdaemon.night.tables import facts
from ppdaemon.node.lock import lock_node
from ppdaemon.node.processes.reload import needs_restart
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import Accept, JournalEntry, Reserved
from ppdaemon.node.visits.recovery import spools_left
from ppdaemon.relay.dispatcher import Dispatcher
from ppdaemon.relay.orders import RefuseHello, SendWelcome
from ppdaemon.visit import read_next_visit

PRODUCTION = "https://sasquatch.example/rest"
OWN = "https://sasquatch-dev.example/rest"


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """Give the configuration of a host of the present service."""
    (tmp_path / "ApPipe.yaml").touch()
    return {
        "node": {
            "name": "n1",
            "state_dir": str(tmp_path / "state"),
            "ramdisk": str(tmp_path),
            "control": str(tmp_path / "control"),
            "instruments": {"DemoCam": "0-8"},
        },
        "arrivals": {"roots": [str(tmp_path / "raw")]},
        "workers": {"environment": {"AP_KAFKA_SERVER": "alerts:9092", "HOME": "/h"}},
        "butler": {"central": "/repo/main", "instrument_class": {"DemoCam": "demo.DemoCam"}},
        "pipelines": {
            "main": [{"pipelines": [str(tmp_path / "ApPipe.yaml")]}],
            "overrides": {"parameters:apdb_config": "/apdb.yaml", "isr:doBias": True},
        },
        "engine": {
            "no_return": ["associate"],
            "apdb": {"DemoCam": "/apdb.yaml"},
            "apdb_tasks": ["associate"],
        },
        "export": {"types": ["difference_.*"]},
        "publish": [{"what": ".*", "to": PRODUCTION}],
    }


def load(folder: Path, document: Any) -> NodeConfig:
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_node(path, {})


def test_without_replacements_nothing_is_written_anywhere(node: dict[str, Any], tmp_path: Path) -> None:
    config = load(tmp_path, node | {"shadow": True})
    assert config.shadow.enabled
    assert config.butler is not None
    assert (config.butler.source, config.butler.central) == ("/repo/main", NO_CENTRAL)
    assert config.export.types == ()
    assert config.publish == ()
    assert (config.engine.apdb, config.engine.apdb_tasks) == ({}, ())
    # Also those of the daemon's own environment are blank in its workers.
    blank = {"AP_KAFKA_SERVER": "", "DAF_BUTLER_SASQUATCH_REST_PROXY_URL": ""}
    assert config.workers.environment == {"HOME": "/h"} | blank


def test_what_replaces_is_in_effect_and_the_rest_stays(node: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("confluent_kafka")
    node["export"]["writer"] = {"to": "kafka://broker:9092/writer"}
    shadow = {
        "enabled": True,
        "central": "/repo/shadow",
        "publish": [{"what": "telemetry", "to": OWN}],
        "overrides": {"parameters:apdb_config": "/own.yaml"},
        "environment": {"AP_KAFKA_SERVER": "dev:9092"},
        "apdb": {"DemoCam": "/own.yaml"},
    }
    config = load(tmp_path, node | {"shadow": shadow})
    assert config.butler is not None
    assert (config.butler.source, config.butler.central) == ("/repo/main", "/repo/shadow")
    assert config.export.types == ("difference_.*",)
    assert config.export.writer.to is None
    assert [publication.to for publication in config.publish] == [OWN]
    assert config.pipelines.overrides == {"parameters:apdb_config": "/own.yaml", "isr:doBias": True}
    assert config.workers.environment["AP_KAFKA_SERVER"] == "dev:9092"
    assert config.engine.apdb == {"DemoCam": "/own.yaml"}
    # As its processes get it.
    assert NodeConfig.model_validate_json(config.model_dump_json()) == config


def test_a_replica_stays_the_repo_that_is_read(node: dict[str, Any], tmp_path: Path) -> None:
    node["butler"]["read"] = "/repo/replica"
    butler = load(tmp_path, node | {"shadow": True}).butler
    assert butler is not None
    assert (butler.source, butler.central) == ("/repo/replica", NO_CENTRAL)


@pytest.mark.parametrize(
    ("shadow", "text"),
    [
        ({"central": "file:///repo/main/"}, "central: file:///repo/main/ is the repo of the present service"),
        ({"publish": [{"what": ".*", "to": PRODUCTION}]}, "publish.0: https://sasquatch.example/rest is"),
        ({"overrides": {"parameters:apdb_config": "/apdb.yaml"}}, "overrides.parameters:apdb_config: has"),
        ({"environment": {"AP_KAFKA_SERVER": "alerts:9092"}}, "environment.AP_KAFKA_SERVER: has the value"),
        ({"apdb": {"DemoCam": "/apdb.yaml"}}, "shadow.apdb.DemoCam: has the value of the present service"),
    ],
)  # fmt: skip
def test_what_would_write_to_the_present_service_is_refused(
    node: dict[str, Any], tmp_path: Path, shadow: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, node | {"shadow": shadow | {"enabled": True}})
    (problem,) = caught.value.problems
    assert text in problem
    assert ".yaml:" in problem
    # It is only compared: the present service's own file may have it while the mode is off.
    assert load(tmp_path, node | {"shadow": shadow | {"enabled": False}}).publish[0].to == PRODUCTION


def test_what_would_write_to_the_present_service_is_found_under_other_names(
    node: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("confluent_kafka")
    repo, apdb = tmp_path / "repo", tmp_path / "apdb.yaml"
    repo.mkdir()
    apdb.write_text("db_url: sqlite:////apdb.db")
    (tmp_path / "alias").symlink_to(repo)
    (tmp_path / "copy.yaml").write_text(apdb.read_text())
    node["butler"]["central"] = str(repo)
    node["pipelines"]["overrides"]["parameters:apdb_config"] = f"file://{apdb}"
    node["engine"]["apdb"] = {"DemoCam": str(apdb)}
    node["publish"] = [{"what": ".*", "to": "kafka://a:9092,b:9092/metrics"}]
    del node["workers"]["environment"]
    shadow = {
        "enabled": True,
        "central": str(tmp_path / "alias"),
        "publish": [{"what": ".*", "to": "kafka://b:9092/metrics"}],
        "overrides": {"parameters:apdb_config": str(apdb)},
        "apdb": {"DemoCam": str(tmp_path / "copy.yaml")},
        "environment": {"AP_KAFKA_SERVER": "alerts:9092"},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(node | {"shadow": shadow}))
    with pytest.raises(ConfigError) as caught:
        load_node(path, {"AP_KAFKA_SERVER": "alerts:9092"})
    keys = [problem.split(": ")[1] for problem in caught.value.problems]
    assert keys == [
        "shadow.central",
        "shadow.publish.0",
        "shadow.overrides.parameters:apdb_config",
        "shadow.environment.AP_KAFKA_SERVER",
        "shadow.apdb.DemoCam",
    ]


def test_the_part_without_the_switch_is_refused(node: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shadow\.enabled: missing key"):
        load(tmp_path, node | {"shadow": {"central": "/repo/shadow"}})


def test_a_variable_whose_value_would_be_lost_is_refused(node: dict[str, Any], tmp_path: Path) -> None:
    shadow = {"enabled": True, "environment": {"OMP_NUM_THREADS": "4"}}
    with pytest.raises(ConfigError, match=r"shadow\.environment\.OMP_NUM_THREADS: ppdaemon sets"):
        load(tmp_path, node | {"shadow": shadow})


def test_the_mode_needs_a_restart(node: dict[str, Any], tmp_path: Path) -> None:
    before, after = load(tmp_path, node), load(tmp_path, node | {"shadow": True})
    assert needs_restart(before, after) == ["shadow.enabled"]


@pytest.mark.parametrize("shadow", [False, True])
def test_a_relay_takes_only_nodes_of_its_mode(shadow: bool) -> None:
    dispatcher = Dispatcher(resend_s=1, silence_s=4, rejoin_s=0, give_up_s=900, shadow=shadow)
    fields: dict[str, Any] = {"incarnation": "a", "instruments": {"DemoCam": (0,)}, "capacity": 9}
    hello = Hello(origin="n1", sent_tai=0, sequence=1, shadow=not shadow or None, **fields)
    assert not dispatcher.is_new(b"p", hello)
    (refusal,) = dispatcher.receive(b"p", hello, 0.0).sends
    assert isinstance(refusal, RefuseHello)
    assert "shadow must be the same in both files" in refusal.reason
    assert "n1" not in dispatcher.registry
    hello = Hello(origin="n1", sent_tai=0, sequence=1, shadow=shadow or None, **fields)
    assert isinstance(dispatcher.receive(b"p", hello, 0.0).sends[0], SendWelcome)


def test_outputs_of_one_mode_do_not_lie_where_the_other_one_takes_its_own(
    node: dict[str, Any], tmp_path: Path
) -> None:
    node["export"]["spill"] = str(tmp_path)
    present, shadow = (NodeFolders.of(load(tmp_path, node | {"shadow": mode})) for mode in (False, True))
    # Other names also of nodes: none of the present service can have the folder of one in shadow mode.
    assert {present.ramdisk.name, shadow.ramdisk.name} == {"ppdaemon-n1", "ppdaemon.shadow-n1"}
    for folders, other in ((present, shadow), (shadow, present)):
        lock_node(folders, "run").unlock()
        for folder in (folders.ramdisk_spool, *folders.disk_spools):
            (folder / "DemoCam~g~0~1").mkdir()
        folders.publish.mkdir()
        (folders.publish / "DemoCam~g~0~1.json").touch()
        # The other mode neither exports nor publishes nor deletes it, also without its journal.
        lock_node(other, "run").release(other)
        assert not {folders.publish, folders.refused} & {other.publish, other.refused}
        assert all((folder / "DemoCam~g~0~1").exists() for folder in folders.disk_spools)
        assert (folders.ramdisk_spool / "DemoCam~g~0~1").exists()
        lock_node(folders, "run").release(folders)
    assert len(spools_left(shadow)[0]) == 2


def make_journal(path: Path, *, shadow: bool) -> Path:
    journal = Journal(path, shadow=shadow)
    visit = read_next_visit({"groupId": "g", "instrument": "DemoCam", "survey": "S"})
    entry = JournalEntry(Key("DemoCam", "g", 0, 1), visit, Clock().tai())
    message = ReserveVisit(origin="r", sent_tai=0, sequence=1, visit=visit, detectors=(0,), received_tai=0)
    reserved = Reserved(message, {})
    journal.write(Accept(reserved, (entry,)))
    journal.close()
    return path


@pytest.mark.parametrize("shadow", [False, True])
def test_a_journal_with_visits_is_not_used_in_the_other_mode(tmp_path: Path, shadow: bool) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path, shadow=not shadow).close()
    make_journal(path, shadow=shadow)  # without visits it may change
    Journal(path, shadow=shadow).close()
    with pytest.raises(StateUnusable, match=r"use another node\.state_dir"):
        Journal(path, shadow=not shadow)


def test_the_report_of_a_night_has_the_mode_and_mixes_none(tmp_path: Path) -> None:
    own = make_journal(tmp_path / "own.sqlite", shadow=True)
    other = make_journal(tmp_path / "other.sqlite", shadow=False)
    copy_night(own, None, Clock(), tmp_path / "copy.sqlite")
    report = read_night([tmp_path / "copy.sqlite"], None, Clock())
    assert report.shadow
    assert ("mode", "shadow, beside the present service") in list(facts(report))
    assert not read_night([other], None, Clock()).shadow
    with pytest.raises(Unavailable, match="report them apart"):
        read_night([own, other], None, Clock())
