# SPDX-License-Identifier: BSD-3-Clause
"""Commands and submit files for what has failed: compared with files of ``tests/data/catchup``."""

import csv
import shlex
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from test_journalfile import entry

from ppdaemon.catchup import CatchupRow
from ppdaemon.config import NodeConfig, ShadowConfig
from ppdaemon.ctl import catchup, catchupfiles, cli, queries
from ppdaemon.ctl.catchuprun import reason_in
from ppdaemon.ctl.client import Daemon
from ppdaemon.errors import ConfigError, NotRunning, Refused
from ppdaemon.folders import NodeFolders
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.visits.journal import Journal
from ppdaemon.node.visits.model import Accept, MarkCatchup, MarkQuarantined, Reserved, Update
from ppdaemon.reports import RequeueRow
from ppdaemon.retries import WAITS_FOR_EXPORT, refusal_reason
from ppdaemon.statelock import StateLock
from ppdaemon.states import ExitCode, Outcome

DATA = Path(__file__).parents[1] / "data" / "catchup"
TAI = 1795317916.0
"""2026-11-22T03:25:16, of the night of 20261121."""
CHAIN = "DemoCam/prompt/output-2026-11-21"


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def make_config(folder, **overrides):
    (folder / "state").mkdir(exist_ok=True)
    return NodeConfig.model_validate(
        {
            "node": {
                "name": "n1",
                "state_dir": folder / "state",
                "ramdisk": folder / "ram",
                "control": folder / "control",
                "instruments": {"DemoCam": "0-8"},
            },
            "arrivals": {"roots": ["/raws"]},
            "butler": {"central": "/repo", "instrument_class": {"DemoCam": "a.DemoCam"}, "skymap": "demo"},
            "pipelines": {
                "main": [
                    {"survey": "none", "pipelines": []},
                    {"survey": "other", "pipelines": ["/p/Other.yaml"]},
                    {"pipelines": ["/p/ApPipe.yaml", "/p/SingleFrame.yaml#isr,calibrate"]},
                ],
                "overrides": {"isr:doBias": False, "alerts:folder": "/a b"} | overrides,
            },
        }
    )


def bad(group, detector, exposure=None, **changes):
    """Return a visit-detector that has failed; its raw has arrived if it has an exposure."""
    seen = () if exposure is None else (exposure,)
    return entry(group, detector, tai=TAI, outcome=Outcome.CRASHED, reason="SIGSEGV", seen=seen, **changes)


def fill(config, *entries):
    journal = Journal(NodeFolders.of(config).journal)
    journal.write(Accept(Reserved(None, {}), entries))
    journal.write(Update(entries))
    return journal


@pytest.fixture
def night(config):
    """Give a journal of each kind of failure."""
    journal = fill(
        config,
        *(bad("g1", detector, 11) for detector in (0, 1, 2, 5)),
        *(bad("g2", detector, 12) for detector in (0, 1, 2, 5)),
        bad("g3", 4, 13, pipeline="SingleFrame-isr-calibrate"),
        bad("g4", 1, 14, survey="other"),
        bad("g5", 1),
        bad("g6", 1, 16, survey="none"),
        bad("g7", 1, 17, no_return="alert database"),
        bad("g8", 1, 18),
        entry("g9", 1, tai=TAI, outcome=Outcome.SUCCEEDED),
    )
    journal.write(MarkCatchup((Key("DemoCam", "g8", 1, 1),), "done", "R", 7.0))
    journal.close()
    return config


def chosen(config, **options):
    items, others = catchup.items_of(config, catchup.failed_of(config, 100, {}), **options)
    return items, {row.group: (row.state, row.text) for row in others}


def test_what_failed_has_the_pipeline_that_ran_or_the_first_that_is_selected(night):
    items, others = chosen(night)
    pipelines = {item.group: item.pipeline for item in items}
    assert pipelines == {
        "g1": "/p/ApPipe.yaml",
        "g2": "/p/ApPipe.yaml",
        "g3": "/p/SingleFrame.yaml#isr,calibrate",
        "g4": "/p/Other.yaml",
        "g5": "/p/ApPipe.yaml",
    }
    assert {item.chain for item in items} == {CHAIN}
    assert others["g8"] == ("done", "")
    assert others["g7"][0] == others["g6"][0] == "refused"
    assert "point of no return (alert database)" in others["g7"][1]
    assert "its rule ignores the visit" in others["g6"][1]
    items, others = chosen(night, force=True, pipeline="/p/Day.yaml")
    assert {item.pipeline for item in items} == {"/p/Day.yaml"}
    assert not others


def test_the_query_names_exposures_and_ranges_of_detectors(night):
    units = {unit.name: unit for unit in catchup.units_of_items(chosen(night)[0])}
    query = catchupfiles.data_query(units["DemoCam-2026-11-21-ApPipe"], "demo")
    assert query == (
        "instrument='DemoCam' AND skymap='demo' AND ((exposure IN (11, 12) AND detector IN (0..2, 5)))"
    )
    other = catchupfiles.data_query(units["DemoCam-2026-11-21-Other"], None)
    assert other == "instrument='DemoCam' AND ((exposure IN (14) AND detector IN (1)))"


def test_exposures_with_different_detectors_are_not_mixed():
    pairs = ((11, 0), (11, 1), (12, 1), (13, 0), (13, 1))
    unit = catchupfiles.CatchupUnit("DemoCam", CHAIN, "/p/A.yaml", "R", pairs)
    assert catchupfiles.data_query(unit, None) == (
        "instrument='DemoCam' AND ((exposure IN (11, 13) AND detector IN (0..1))"
        " OR (exposure IN (12) AND detector IN (1)))"
    )


def test_the_commands_and_the_submit_file_are_those_of_the_files(night):
    units = [
        replace(unit, overrides=night.pipelines.overrides)
        for unit in catchup.units_of_items(chosen(night)[0])
    ]
    lines = [shlex.join(catchupfiles.pipetask_command(unit, night, 8)) for unit in units]
    assert lines == (DATA / "pipetask.txt").read_text().splitlines()
    text = catchupfiles.bps_file(units[0], night, Path("/catchup"), 8)
    assert text == (DATA / "bps.yaml").read_text()


def test_a_failed_job_is_not_repeated_at_another_site(night, tmp_path):
    unit = catchup.units_of_items(chosen(night)[0])[0]
    file = tmp_path / "site.yaml"
    file.write_text("computeSite: summit\nsite:\n  summit:\n    retries: 3\n")
    site = yaml.safe_load(catchupfiles.bps_file(unit, night, Path("/catchup"), 8, site=file))
    assert site["includeConfigs"] == [str(file)]
    assert site["site"] == {"summit": {"retries": 0}}
    assert not site.keys() & {"computeSite", "wmsServiceClass"}
    file.write_text("includeConfigs: [others.yaml]\n")
    assert "site" not in yaml.safe_load(catchupfiles.bps_file(unit, night, Path("/catchup"), 8, site=file))


@pytest.mark.parametrize("value", [{"a": 1}, "${HOME}", "{x}"])
def test_an_override_that_bps_would_change_is_refused(tmp_path, value):
    config = make_config(tmp_path, **{"isr:field": value})
    unit = catchupfiles.CatchupUnit(
        "DemoCam", CHAIN, "/p/A.yaml", "R", ((11, 0),), config.pipelines.overrides
    )
    with pytest.raises(ConfigError, match="isr:field"):
        catchupfiles.bps_file(unit, config, Path("/catchup"), 8)


@pytest.mark.parametrize(("journal", "shadow"), [(True, False), (True, True), (False, True)])
def test_nothing_of_shadow_mode_is_caught_up_in_a_central_repo(config, journal, shadow):
    Journal(NodeFolders.of(config).journal, shadow=journal).close()
    config = config.model_copy(update={"shadow": ShadowConfig(enabled=shadow)})
    with pytest.raises(Refused, match="in shadow mode"):
        catchup.failed_of(config, 100, {})


def test_csv_has_what_may_be_done_with_each(night):
    rows = [each.row for each in catchup.failed_of(night, 100, {})]
    read = {row["group"]: row for row in csv.DictReader(catchupfiles.failed_csv(rows).splitlines())}
    assert read["g1"]["again"] == "may fail again"
    assert (read["g7"]["again"], read["g8"]["again"]) == ("needs --force", "done by the catch-up")
    assert read["g3"]["pipeline"] == "SingleFrame-isr-calibrate"
    assert "g9" not in read


def test_a_success_whose_outputs_are_quarantined_is_processed_by_day(config):
    success = entry("g1", 0, tai=TAI, outcome=Outcome.SUCCEEDED, seen=(11,))
    with closing(fill(config, success)) as journal:
        journal.write(MarkQuarantined((Key("DemoCam", "g1", 0, 1),)))
    (failed,) = catchup.failed_of(config, 100, {})
    assert catchupfiles.again(failed.row) == "may succeed"
    items, others = chosen(config)
    assert ([item.group for item in items], others) == (["g1"], {})
    folders = NodeFolders.of(config)
    (folders.spool / folders.spooled("DemoCam", "g1", 0, 1).name).mkdir(parents=True)
    assert chosen(config) == ([], {"g1": ("refused", WAITS_FOR_EXPORT)}), "it was moved back"
    assert [item.group for item in chosen(config, force=True)[0]] == ["g1"]


def test_what_the_catch_up_has_is_not_retried_and_is_released(night):
    journal = Journal(NodeFolders.of(night).journal)
    (before,) = journal.last_attempts("g8")
    assert "the catch-up has processed it (run R)" in refusal_reason(before, 1, force=False)
    assert refusal_reason(before, 1, force=True) == ""
    key = Key("DemoCam", "g1", 0, 1)
    journal.write(MarkCatchup((key,), "running", "R", 7.0))
    assert "ppctl catchup run goes on with it: its outputs" in refusal_reason(
        journal.last_attempts("g1")[0], 1, force=False
    )
    items, _ = chosen(night)  # one that was killed is taken up again
    assert ("g1", 0) in {(item.group, item.detector) for item in items}
    journal.write(MarkCatchup((key,), "released", "R", 8.0))
    assert refusal_reason(journal.last_attempts("g1")[0], 1, force=False) == ""
    journal.close()


def test_the_command_line_prints_commands_and_writes_submit_files(night, tmp_path, monkeypatch, capsys):
    rules = night.pipelines.model_copy(update={"overrides": {}})  # for them pipelines are read
    monkeypatch.setattr(queries, "node_config", lambda path: night.model_copy(update={"pipelines": rules}))
    socket = ("--socket", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as ended:
        cli.main([*socket, "failed", "--format", "pipetask"])
    out, err = capsys.readouterr()
    assert ended.value.code == ExitCode.OK
    assert [line.split()[0] for line in out.splitlines()] == ["pipetask"] * 3
    assert "# g5 detector 1: no raw is known" in err
    assert "# g7 detector 1: attempt 1 passed the point of no return" in err
    with pytest.raises(SystemExit):
        cli.main([*socket, "failed", "--format", "bps", "--folder", str(tmp_path / "day")])
    written = capsys.readouterr().out.splitlines()
    assert len(written) == 3
    assert all(yaml.safe_load(Path(path).read_text())["payload"]["outputRun"] for path in written)


def test_the_reason_is_the_last_exception_or_the_last_errors():
    line = "2026-11-29T14:39:58.404+00:00 lsst.pipe.base ()(a.py:218) - "
    warnings = f"WARNING {line}no eups\nERROR {line}dropped\nERROR {line}empty\nINFO {line}end\n"
    assert reason_in(iter(["", warnings])) == "dropped; empty"
    empty = f"ERROR {line}no rows, so QuantumGraph will be empty.\nError: QuantumGraph was empty; see above\n"
    assert reason_in(iter([empty])) == "no rows, so QuantumGraph will be empty."
    raised = f"{warnings}Traceback\n  File x\nlsst.a.EmptyQuantumGraphError: no quanta\nmore\n"
    assert reason_in(iter([raised, warnings])) == "lsst.a.EmptyQuantumGraphError: no quanta"
    assert reason_in(iter(["", f"INFO {line}all is well\n"])) == ""


def test_two_catchups_of_a_node_do_not_run_at_once_even_in_two_folders(config, tmp_path):
    state = config.node.state_dir
    with (
        catchup._locked(state, tmp_path / "20261121"),
        pytest.raises(Refused, match="another catch-up of this node runs"),
        catchup._locked(state, tmp_path / "all"),
    ):
        pass
    with catchup._locked(state, tmp_path / "all"):
        pass


def without_daemon(night, monkeypatch, outcome="done"):
    """Return a catch-up of a node that does not run; the central repo has `outcome` of all."""
    states = []

    def ask_central(task, config, items, folder):
        states.append(marks_of(night))
        return [
            CatchupRow(
                **item.model_dump(include={"instrument", "group", "detector", "attempt", "run"}),
                pipeline="",
                state="prepared" if task == "prepare" else outcome,
            )
            for item in items
        ]

    monkeypatch.setattr(catchup, "ask_central", ask_central)
    monkeypatch.setattr(catchup, "units_of_items", lambda *_: [])
    daemon = Daemon(night.node.control)
    return catchup.Catchup(daemon, night, night.node.state_dir / "catchup", force=False), states


def marks_of(config):
    rows = [each.row for each in catchup.failed_of(config, 100, {})]
    return {(row.group, row.detector): row.figures["catchup"]["state"] for row in rows if row.figures}


def test_without_the_daemon_the_journal_gets_what_is_under_way_and_done(night, monkeypatch, capsys):
    work, states = without_daemon(night, monkeypatch)
    NodeFolders.of(night).lock.touch()
    before = marks_of(night)
    items, _ = chosen(night)
    work.run(items, "pipetask", 1, None)
    assert capsys.readouterr().err == ""
    keys = [(item.group, item.detector) for item in items]
    assert states == [before | dict.fromkeys(keys, "running")] * 2
    assert marks_of(night) == before | dict.fromkeys(keys, "done")
    assert not chosen(night)[0]
    journal = Journal(NodeFolders.of(night).journal)  # as the daemon at its next start
    assert "the catch-up has processed it" in refusal_reason(journal.last_attempts("g1")[0], 1, force=False)
    journal.close()


def test_without_the_daemon_what_is_not_done_is_released(night, monkeypatch):
    work, states = without_daemon(night, monkeypatch, "failed")
    NodeFolders.of(night).lock.touch()
    before = marks_of(night)
    work.run(chosen(night)[0], "pipetask", 1, None)
    assert states[0] != before
    assert marks_of(night) == before


def test_what_a_daemon_refused_before_it_ended_is_not_marked(night, monkeypatch):
    work, states = without_daemon(night, monkeypatch)
    NodeFolders.of(night).lock.touch()
    items, _ = chosen(night)
    refused = {items[0].group}

    def mark_catchup(_daemon, instrument, group, detectors, **_):
        if group not in refused:
            raise NotRunning("ended")
        return [RequeueRow(instrument=instrument, detector=each, text="no") for each in detectors]

    monkeypatch.setattr(Daemon, "mark_catchup", mark_catchup)
    before = marks_of(night)
    work.run(items, "pipetask", 1, None)
    keys = [(item.group, item.detector) for item in items if item.group not in refused]
    assert states[0] == before | dict.fromkeys(keys, "running")


@pytest.mark.parametrize("outcome", ["done", "failed"])
def test_a_journal_that_is_not_written_is_reported_once(night, monkeypatch, capsys, outcome):
    work, states = without_daemon(night, monkeypatch, outcome)
    before = marks_of(night)
    work.run(chosen(night)[0], "pipetask", 1, None)
    assert capsys.readouterr().err.count("the daemon does not run") == 1
    assert states == [before] * 2


def test_a_journal_that_is_not_written_is_reported_and_done_later(night, monkeypatch, capsys):
    work, _ = without_daemon(night, monkeypatch)
    work.check(chosen(night)[0])
    assert "lock does not exist; run later: ppctl catchup check" in capsys.readouterr().err
    NodeFolders.of(night).lock.touch()
    with closing(StateLock(NodeFolders.of(night).lock)):
        work.check(chosen(night)[0])
    assert "it is starting; run later: ppctl catchup check" in capsys.readouterr().err
    assert chosen(night)[0]
    work.check(chosen(night)[0])
    assert not chosen(night)[0]
