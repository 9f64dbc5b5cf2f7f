# SPDX-License-Identifier: BSD-3-Clause
"""The demonstration without its processes: planning, configuration, display and report."""

import io
import itertools
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from ppdaemon.clock import Clock
from ppdaemon.commandline import run_command
from ppdaemon.config import load_node
from ppdaemon.ctl import cli, send
from ppdaemon.demo import __main__ as program
from ppdaemon.demo import night as demo_night
from ppdaemon.demo import observing, playground, quickstart
from ppdaemon.demo.delivery import Delivery
from ppdaemon.demo.geometry import DETECTOR_COUNT
from ppdaemon.demo.night import CADENCE, NIGHT, may_announce, plan_visit
from ppdaemon.demo.nightreport import CameraReport, HostLoad, HostReport, NightMeter
from ppdaemon.demo.plan import ImageType
from ppdaemon.demo.progress import NightScreen, making_bar, utc
from ppdaemon.demo.report import Report, VisitPipelines, mean_cadence_s, show_report
from ppdaemon.demo.rules import ALERT_MAP, PIPELINES, SURVEYS, DemoRule, write_alert_map
from ppdaemon.demo.services import DemoPaths, node_config, relay_config
from ppdaemon.demo.sky import Sky
from ppdaemon.demo.telescope import Telescope, TelescopeEvent, TelescopeStep, timeline
from ppdaemon.demo.visits import Cadence
from ppdaemon.errors import NotFound
from ppdaemon.messages import Accepted
from ppdaemon.night.totals import NightTotals, last_attempts
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.relay.config import load_relay
from ppdaemon.reports import StatusReport, VisitRow
from ppdaemon.selection import Selector
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import read_next_visit

BEGIN_TAI_S = 1_795_317_916.0
STATUS = StatusReport(
    node="demo",
    version="0.1.0",
    pid=1,
    state="running",
    text="running: 3 idle",
    started_tai=BEGIN_TAI_S,
    tai=BEGIN_TAI_S,
    relay="connected relay",
    slots={},
    workers_max=27,
    capacity=27,
    logs="",
    queued=0,
    open_visits=0,
    outcomes={},
    spooled=0,
    exporter="idle",
    arrivals=(),
    counters={},
)


def night(every_s=30.0):
    """Plan all visits of the night."""
    visits = []
    for number in range(len(NIGHT)):
        seq_num = 1 + sum(len(visit.exposures) for visit in visits)
        visits.append(plan_visit(number, BEGIN_TAI_S + number * every_s, seq_num))
    return visits


@pytest.fixture
def visits():
    return night()


@pytest.fixture
def paths(tmp_path):
    paths = DemoPaths(tmp_path / "disk", tmp_path / "ram")
    for folder in (paths.central, paths.ramdisk):
        folder.mkdir(parents=True)
    write_alert_map(paths.central / ALERT_MAP, Sky())
    return paths


@pytest.fixture
def config(paths, tmp_path):
    """Return the daemon's configuration, read by the daemon's own function."""
    path = tmp_path / "node.yaml"
    path.write_text(yaml.safe_dump(node_config(paths, 5)))
    return load_node(path, {})


def row(group, detector, attempt=1, outcome=Outcome.SUCCEEDED, **changes):
    fields = {"instrument": "DemoCam", "group": group, "detector": detector, "attempt": attempt}
    return VisitRow(**fields | {"outcome": outcome} | changes)


def printed(show, **options):
    """Return the text printed to a console of 100 columns."""
    console = Console(file=io.StringIO(), width=100, **options)
    show(console)
    return console.file.getvalue()


def test_the_night_has_seven_visits_for_three_pipelines(visits):
    assert [len(visit.exposures) for visit in visits] == [1, 2, 1, 1, 1, 1, 1]
    assert [visit.exposures[0].program for visit in visits] == [SURVEYS[planned.rule] for planned in NIGHT]
    assert {planned.pipeline for planned in NIGHT} == {"ApPipe", "SingleFrame", "Calibration"}
    assert visits[-1].exposures[0].image_type is ImageType.BIAS
    assert [visit.next_visit(0.0)["filters"] for visit in visits[3:5]] == ["i_06", ""]
    assert len({visit.group for visit in visits}) == 7
    assert [visit.number for visit in visits] == list(range(7))


def test_the_right_rule_applies_to_each_visit_with_all_detectors(visits, config):
    selector = Selector(config.pipelines.preprocessing, config.pipelines.main)
    for visit, planned in zip(visits, NIGHT, strict=True):
        announced = read_next_visit(visit.next_visit(visit.announced_tai_s))
        chosen = selector.choose(announced, range(DETECTOR_COUNT))
        assert len(chosen) == DETECTOR_COUNT
        for each in chosen.values():
            assert tuple(map(pipeline_name, each.pipelines.main)) == PIPELINES[planned.rule]
            assert bool(each.pipelines.preprocessing) == (planned.rule is DemoRule.IN_MAP)


def test_a_shutter_closes_before_the_next_opens(visits):
    exposures = [exposure for visit in visits for exposure in visit.exposures]
    assert [exposure.seq_num for exposure in exposures] == list(range(1, 9))
    for earlier, later in pairwise(exposures):
        assert earlier.end_tai_s < later.begin_tai_s


def test_the_configurations_are_those_of_a_relay_and_a_node(paths, config, tmp_path):
    path = tmp_path / "relay.yaml"
    path.write_text(yaml.safe_dump(relay_config(paths)))
    assert load_relay(path, {}).instruments["DemoCam"].detectors == tuple(range(DETECTOR_COUNT))
    assert config.workers.max == 5
    assert config.relay.address == relay_config(paths)["nodes"]
    rules = (*config.pipelines.preprocessing, *config.pipelines.main)
    assert all(Path(pipeline).is_file() for rule in rules for pipeline in rule.pipelines)


def test_the_last_attempt_counts():
    first, second = row("g", 0, 1, Outcome.CRASHED), row("g", 0, 2)
    assert last_attempts([second, first]) == {("g", 0): second}


def test_without_a_terminal_each_change_is_a_line(visits):
    group = visits[0].group

    def show(console):
        with NightScreen(console, visits, 2) as screen:
            screen.on_event(
                TelescopeEvent(TelescopeStep.ANNOUNCE, BEGIN_TAI_S, visits[0], None, "accepted by the relay")
            )
            screen.show([row(group, 0, outcome=None)], STATUS)
            retried = [row(group, 0, 1, Outcome.CRASHED), row(group, 0, 2)]
            for _ in range(3):
                screen.show(retried, STATUS)
            screen.show([*retried, row(group, 1)], STATUS)

    assert printed(show).splitlines() == [
        f"{utc(BEGIN_TAI_S)}  announced {group[11:]}  accepted by the relay",
        f"{group}: 1 of 2 detectors done",
        f"{group}: 2 of 2 detectors done",
    ]


def test_on_a_terminal_each_detector_has_a_symbol(visits):
    group = visits[0].group
    rows = [
        row(group, 0, stages={Stage.ACCEPTED: 1.0, Stage.CENTRAL: 2.0}),
        row(group, 1, outcome=Outcome.FAILED),
        row(group, 2, outcome=None, stages={Stage.ACCEPTED: 1.0}),
    ]

    def show(console):
        with NightScreen(console, visits, 3) as screen:
            screen.show(rows, STATUS)

    assert "█ ✗ ·" in printed(show, force_terminal=True, color_system=None)


def selected(number, ran, reason="", *, group=None, detectors=9):
    """Compare a visit of the night, whose detectors all got one pipeline, with the plan."""
    visit = plan_visit(number, BEGIN_TAI_S, 1)
    rows = [row(visit.group, k, pipeline=f"/p/{ran}.yaml", reason=reason) for k in range(detectors)]
    compared = VisitPipelines.of(visit, rows)
    return compared if group is None else compared.model_copy(update={"group": group})


LACKS = "ApPipe lacks template (band i)"


@pytest.mark.parametrize(
    ("number", "ran", "reason", "fallbacks", "wrong"),
    [
        (0, "ApPipe", "", 0, 0),
        (0, "SingleFrame", LACKS, 9, 9),
        (3, "SingleFrame", LACKS, 9, 0),
        (3, "SingleFrame", "", 9, 9),
        (3, "SingleFrame", "ApPipe finds nothing to do: its graph is empty", 9, 9),
        (3, "ApPipe", "", 0, 9),
        (4, "SingleFrame", "ApPipe finds nothing to do: its graph is empty", 9, 0),
        (4, "SingleFrame", LACKS, 9, 9),
        (5, "SingleFrame", "", 0, 0),
        (5, "SingleFrame", LACKS, 0, 9),
        (6, "Calibration", "", 0, 0),
    ],
)
def test_a_visit_has_to_get_its_pipeline_for_the_right_reason(number, ran, reason, fallbacks, wrong):
    compared = selected(number, ran, reason)
    assert (compared.ran, compared.fallbacks, compared.wrong) == ({ran: 9}, fallbacks, wrong)


def test_the_report_shows_rule_and_fallback_of_each_visit():
    rows = [row("g", 0, pipeline="/p/SingleFrame.yaml")]
    the_report = report(selected=(selected(3, "SingleFrame", LACKS, group="g"),))
    text = printed(lambda console: show_report(the_report, rows, console))
    assert "alerts, in the map  SingleFrame (fallback)  0      1 of 1" in text
    assert f"g {LACKS}" in text
    assert "wrong pipelines" in text
    the_report = report(selected=(selected(3, "ApPipe", group="g"),))
    assert "9 wrong: SingleFrame expected" in printed(lambda console: show_report(the_report, rows, console))


def report(**changes):
    fields = {
        "announced": 9, "accepted": 9, "succeeded": 9, "outcomes": {Outcome.SUCCEEDED: 9}, "retried": 0,
        "exposures": 9, "central": 9, "datasets": 90, "pipelines": {"ApPipe": 9}, "selected": (),
        "engine": "separable",
        "injected": 4, "recovered": 3, "false_positives": 1, "alerts": 10, "scored": 9,
        "leaked_processes": 0, "leaked_repos": 0, "left": (), "total_s": 100.0, "latencies": {},
        "visits": 1, "doubled": 0, "cadence_s": 12.0, "central_kept": False, "camera": CameraReport(),
        "host": HostReport(load=HostLoad(cores=2, begin=0.5, end=3.0, cpu_share=0.75)),
    }  # fmt: skip
    return Report(**NightTotals().fields() | fields | changes)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"announced": 18}, False),
        ({"succeeded": 8}, False),
        ({"central": 8}, False),
        ({"left": ("4711 ppdaemon worker",)}, False),
        ({"selected": (selected(0, "SingleFrame"),)}, False),
        (dict.fromkeys(("announced", "accepted", "succeeded", "central"), 0), False),
    ],
)
def test_a_report_is_good_only_without_losses(changes, good):
    assert report(**changes).good is good


def test_a_report_computes_its_rates(tmp_path):
    assert (report().completeness, report().false_positives_per_detector) == (0.75, 0.1111)
    assert report(injected=0, recovered=0).completeness is None


def test_the_report_shows_failures_and_leftovers():
    rows = [
        row("g", 0),
        row("g", 1, 1, Outcome.CRASHED, reason="signal 11"),
        row("g", 1, 2),
        row("g", 2, 1, Outcome.FAILED, reason="task isr: ValueError: empty"),
    ]
    the_report = report(left=("4711 [worker]",), selected=(selected(0, "ApPipe", group="g"),))
    text = printed(lambda console: show_report(the_report, rows, console))
    assert "2 of 3" in text
    assert "1 failed" in text
    assert "task isr: ValueError: empty" in text
    assert "left over: 4711 [worker]" in text


def test_a_demonstration_that_is_stopped_early_ends_at_once(visits):
    stop, asleep = threading.Event(), threading.Event()

    def sleep(seconds):
        asleep.set()
        observing.interruptible_sleep(stop, seconds)

    class Unanswering:
        def ask(self, event):
            raise AssertionError("the first visit is announced although the telescope was stopped")

    events = timeline(visits, CADENCE, announce=True, cancel=False)[1:]
    telescope = Telescope(None, None, Unanswering(), sleep=sleep)
    with observing.TelescopeThread(telescope, events, stop) as night:
        assert asleep.wait(10.0)
        assert not night.finished()
    assert not night._thread.is_alive()


def test_a_telescope_that_fails_ends_the_demonstration(visits):
    class Broken:
        def ask(self, event):
            raise RuntimeError("no power")

    events = timeline(visits, CADENCE, announce=True, cancel=False)
    night = observing.TelescopeThread(Telescope(None, None, Broken()), events, threading.Event())
    with night:
        night._thread.join(10.0)
        with pytest.raises(observing.DemoFailed, match="the telescope failed: no power"):
            night.finished()


@pytest.mark.parametrize("options", [[], ["--stay"]])
def test_an_output_folder_that_cannot_be_made_is_an_error_without_a_traceback(tmp_path, capsys, options):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        run_command(program.main, "ppctl demo", ["--output", str(tmp_path / "file" / "demo"), *options])
    error = capsys.readouterr().err
    assert (ended.value.code, error.count("\n")) == (73, 1)
    assert "Not a directory" in error


def test_without_its_packages_the_demonstration_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ppdaemon.demo.quickstart", None)
    result = CliRunner().invoke(program.main, [])
    assert result.exit_code == 69
    assert "pip install 'ppdaemon[demo]'" in result.output


# --- the cadence -------------------------------------------------------------


class Daemon:
    """Answers as a node does that has rows of visits."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def status(self):
        return STATUS

    def visit(self, group):
        self.asked.append(group)
        if not self.rows.get(group):
            raise NotFound(group)
        return self.rows[group]


def observed(daemon):
    """Return a telescope that takes visits at once."""

    class Relay:
        def ask(self, event):
            return Accepted(status="accepted", detectors=9)

    class Camera:
        detectors = (0,)

        def read_out(self, plan):
            return iter([(0, Path("raw.fits"), b"image", b"sidecar")])

        def write_detector_list(self, root, plan):
            pass

    class Raws:
        root = None

        def deliver_all(self, files):
            return 1

    screen = NightScreen(Console(file=io.StringIO()), (), DETECTOR_COUNT)
    telescope = observing.Observing(Relay(), Raws(), daemon, screen, (), NightMeter())
    telescope._camera = Camera()
    return telescope


def open_ones(count, spooled=0):
    return STATUS.model_copy(update={"open_visits": count, "spooled": spooled})


def test_the_night_is_taken_visit_by_visit_and_the_last_one_is_waited_for(monkeypatch):
    taken, times = [], itertools.count(BEGIN_TAI_S)
    monkeypatch.setattr(quickstart, "Clock", lambda: Clock(tai=lambda: next(times)))

    class TelescopeOf:
        def take(self, visit, ended):
            rows = [each for visit, _ in taken for each in processed(visit.group)]
            answers = [ended(status, [*rows, *processed(visit.group)]) for status in statuses]
            taken.append((visit, [ended(statuses[0], rows), *answers]))
            return rows

    statuses = open_ones(9), open_ones(0, spooled=1), open_ones(0)
    visits, rows = quickstart._take_night(TelescopeOf())
    assert len(rows) == 6 * DETECTOR_COUNT
    assert [visit for visit, _ in taken] == visits
    assert [visit.number for visit in visits] == list(range(7))
    assert [each.seq_num for visit in visits for each in visit.exposures] == list(range(1, 9))
    assert [went_on for _, went_on in taken[:-1]] == [[False, True, True, True]] * 6
    assert taken[-1][1] == [False, False, False, True]


def processed(group, landed_tai=100.0, took_s=20.0):
    """Return rows of a visit that has ended."""
    times = [
        # The first one of two exposures arrives earlier.
        {
            Stage.ARRIVED: landed_tai - 6.0 - k,
            Stage.INGESTED: landed_tai - k,
            Stage.SPOOLED: landed_tai + took_s - k,
        }
        for k in range(DETECTOR_COUNT)
    ]
    return [row(group, k, stages=stages) for k, stages in enumerate(times)]


def under_way(group, landed_tai=200.0):
    """Return rows of a visit of which one detector is left."""
    *ended, _ = processed(group, landed_tai)
    stages = {Stage.ARRIVED: landed_tai - 6.0, Stage.INGESTED: landed_tai}
    return [*ended, row(group, DETECTOR_COUNT - 1, outcome=None, stages=stages)]


@pytest.mark.parametrize("took_s", [20.0, 60.0])
def test_raws_land_when_the_visit_before_is_expected_to_have_ended(visits, took_s):
    first, second = visits[0].group, visits[1].group
    until_landed_s = CADENCE.lead_s + CADENCE.exposure_s + CADENCE.readout_s
    rows = [*processed(first, took_s=took_s), *under_way(second)]
    assert [len(visit.exposures) for visit in visits[:2]] == [1, 2]
    announced_tai = 200.0 + 2 * took_s - until_landed_s
    assert not may_announce(announced_tai - 0.1, visits[:2], rows)
    assert may_announce(announced_tai, visits[:2], rows)


def test_a_visit_is_announced_at_once_if_they_take_less_time_than_its_raws(visits):
    rows = [*processed(visits[0].group, took_s=4.0), *under_way(visits[1].group)]
    assert may_announce(200.0, visits[:2], rows)


def test_a_visit_that_has_ended_is_followed_at_once_and_the_first_one_is_waited_for(visits):
    first = processed(visits[0].group)
    assert may_announce(100.0, visits[:1], first)
    assert may_announce(100.0, visits[:2], [*first, *processed(visits[1].group, took_s=90.0)])
    assert not may_announce(1e9, visits[:1], under_way(visits[0].group))


def test_at_most_one_visit_is_processed_while_the_next_one_is_taken(visits):
    first, second, third = (visit.group for visit in visits[:3])
    assert not may_announce(1e9, visits[:2], [*under_way(first), *under_way(second)])
    assert not may_announce(1e9, visits[:3], [*under_way(first), *processed(second), *under_way(third)])


def test_a_visit_that_the_node_does_not_have_yet_has_not_ended(visits):
    assert not may_announce(1e9, visits[:1], [])
    assert not may_announce(1e9, visits[:1], processed(visits[0].group)[1:])
    assert not may_announce(1e9, visits[:2], processed(visits[0].group))
    unnoticed = [row(visits[1].group, k, outcome=None) for k in range(DETECTOR_COUNT)]
    assert not may_announce(1e9, visits[:2], [*processed(visits[0].group), *unnoticed])


def test_an_attempt_that_was_repeated_does_not_keep_a_visit_open(visits):
    group = visits[0].group
    assert may_announce(
        0.0, visits[:1], [row(group, 0, outcome=None), row(group, 0, 2), *processed(group)[1:]]
    )


def test_rows_are_those_of_all_visits_of_the_telescope(monkeypatch):
    for module in (demo_night, observing):
        monkeypatch.setattr(module, "CADENCE", Cadence(lead_s=0.0, exposure_s=0.0, readout_s=0.0))
    monkeypatch.setattr(observing, "POLL_S", 0.01)
    first, second = night(100.0)[:2]
    exported = [row(first.group, k, stages={Stage.CENTRAL: 1.0}) for k in range(DETECTOR_COUNT)]
    daemon, seen = Daemon({first.group: exported[1:]}), []
    telescope = observed(daemon)

    def ended(status, rows):
        seen.append(rows)
        return len(seen) > 2

    assert telescope.take(first, ended) == exported[1:]
    daemon.rows[first.group] = exported
    assert telescope.take(second, ended) == exported  # the node does not have the second one yet
    daemon.rows[second.group] = [row(second.group, 0)]
    daemon.asked.clear()
    assert telescope._rows() == [*exported, row(second.group, 0)]
    assert daemon.asked == [second.group]


def test_of_many_visits_the_last_ones_are_followed(monkeypatch):
    for module in (demo_night, observing):
        monkeypatch.setattr(module, "CADENCE", Cadence(lead_s=0.0, exposure_s=0.0, readout_s=0.0))
    visits = [plan_visit(0, BEGIN_TAI_S + 60.0 * number, 1) for number in range(10)]
    telescope = observed(Daemon({visit.group: [row(visit.group, 0)] for visit in visits}))
    for visit in visits:
        rows = telescope.take(visit, lambda status, rows: True)
    assert [each.group for each in rows] == [visit.group for visit in visits[-7:]]


def test_the_cadence_is_the_mean_time_between_announcements():
    visits = [
        replace(visit, announced_tai_s=at_s) for visit, at_s in zip(night(), (0.0, 9.0, 40.0), strict=False)
    ]
    assert mean_cadence_s(visits) == 20.0
    assert mean_cadence_s(visits[:1]) == 0.0


def test_raws_have_the_time_at_which_the_shutter_is_open():
    visit = plan_visit(0, BEGIN_TAI_S, 1)
    events = timeline([visit], CADENCE, announce=True, cancel=False)
    assert visit.announced_tai_s == BEGIN_TAI_S
    for event in events[1:]:
        opened = event.exposure.begin_tai_s - visit.announced_tai_s
        closed = event.exposure.end_tai_s - visit.announced_tai_s
        due_s = opened if event.step is TelescopeStep.EXPOSE else closed + CADENCE.readout_s
        assert event.after_s == pytest.approx(due_s)


# --- the playground ----------------------------------------------------------


def test_a_playground_takes_a_visit_every_40_s_and_not_before_the_last_one_has_ended():
    lines = []
    pace = playground.Pace("g", lines.append, next_mono=100.0)
    under_way = [row("g", k, outcome=None) for k in range(DETECTOR_COUNT)]
    ended = [row("g", k) for k in range(DETECTOR_COUNT)]
    assert not pace.may_begin(99.0, ended)
    assert lines == []
    assert pace.may_begin(100.0, ended)
    assert not pace.may_begin(101.0, ended[1:])
    assert not pace.may_begin(102.0, under_way)
    assert pace.may_begin(103.0, ended)
    assert len(lines) == 1
    assert "longer than 40 s" in lines[0]


def test_exposures_of_a_playground_have_numbers_of_their_second():
    noon = 1_795_300_000.0 // 86_400.0 * 86_400.0 + 43_200.0
    assert [playground.seq_num_at(noon + s) for s in (0.0, 0.9, 1.0, 86_399.0)] == [1, 1, 2, 86_400]
    assert playground.seq_num_at(noon + 86_400.0) == 1


def test_a_playground_suggests_commands_that_exist(paths):
    group = click.Context(cli._ppctl)
    for command, shows in playground.suggestions(paths, "127.0.0.1:9464"):
        assert shows
        words = command.split()
        if words[0] == "curl":
            assert words[-1] == "http://127.0.0.1:9464/metrics"
            continue
        assert words[0] == "ppctl"
        arguments = words[3:] if words[1] == "--socket" else words[1:]
        known = cli._ppctl.get_command(group, arguments[0])
        assert known is not None, command
        if arguments[0] == "send":
            options = {option for each in send.command.params for option in each.opts}
            assert {word for word in arguments if word.startswith("--")} <= options


def test_the_page_is_opened_for_a_playground_only():
    result = CliRunner().invoke(program.main, ["--open"])
    assert result.exit_code == 2
    assert "--open needs --stay" in result.output


SERVING = """
import socket, sys
host, _, port = sys.argv[sys.argv.index("--listen") + 1].partition(":")
server = socket.create_server((host, int(port)))
while True:
    server.accept()[0].close()
"""


@pytest.mark.parametrize(
    ("page", "served", "note"),
    [
        (None, False, ""),
        ("raise SystemExit('the page needs aiohttp')", False, "the page needs aiohttp"),
        (SERVING, True, ""),
    ],
)
def test_the_page_is_served_where_it_is_installed(paths, tmp_path, monkeypatch, page, served, note):
    if page is not None:
        (tmp_path / "modules" / "somepage").mkdir(parents=True)
        (tmp_path / "modules" / "somepage" / "__init__.py").touch()
        (tmp_path / "modules" / "somepage" / "app.py").write_text(page)
        monkeypatch.syspath_prepend(tmp_path / "modules")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    monkeypatch.setattr(playground, "WEB", "somepage")
    paths.scratch.mkdir(exist_ok=True)
    urls = []

    def show(console):
        with playground._page(paths, "mark", console) as url:
            urls.append(url)

    assert note in printed(show)
    assert [url.startswith("http://127.0.0.1:") for url in urls] == [served]


# --- the screen --------------------------------------------------------------


def test_times_are_utc():
    assert utc(1_795_317_916.0) == "03:24:39Z"


def test_late_raws_are_marked_but_not_the_time_that_making_them_takes(visits):
    def show(console):
        with NightScreen(console, visits, 2) as screen:
            for step, late_s in (
                (TelescopeStep.ANNOUNCE, 0.2), (TelescopeStep.EXPOSE, 7.0), (TelescopeStep.WRITE, 4.6),
            ):  # fmt: skip
                screen.on_event(TelescopeEvent(step, BEGIN_TAI_S, visits[0], None, "x", late_s))

    assert ["behind by 5 s" in line for line in printed(show).splitlines()] == [False, False, True]


def test_a_screen_shows_the_last_visits(visits):
    def show(console):
        with NightScreen(console, (), 2) as screen:
            screen.add(visits)
            screen.add([plan_visit(0, BEGIN_TAI_S + 1000.0, 1)])
            screen.show([], STATUS)

    text = printed(show, force_terminal=True, color_system=None)
    assert visits[0].group[11:] not in text
    assert all(visit.group[11:] in text for visit in visits[1:])


def test_what_is_made_is_one_line_without_a_terminal_and_one_bar_on_it():
    def show(console):
        with making_bar(console, "making the central repo") as (progress, done):
            done(3, 20)
            progress("3/20 calibrations of detector 4 in epoch 1: 2 files")

    assert printed(show) == "making the central repo\n"
    shown = printed(show, force_terminal=True, color_system=None)
    assert "calibrations of detector 4" in shown
    assert "3/20" in shown


def test_a_telescope_measures_how_late_it_wrote(visits, tmp_path):
    now, events = [100.0], []

    class Camera:
        detectors = (0,)

        def read_out(self, plan):
            now[0] += 60.0  # longer than the exposure
            return iter([(0, Path("raw.fits"), b"image", b"sidecar")])

        def write_detector_list(self, root, plan):
            pass

    def sleep(seconds):
        now[0] += seconds

    telescope = Telescope(
        Camera(),
        Delivery(tmp_path, lambda: BEGIN_TAI_S),
        clock=Clock(mono=lambda: now[0]),
        sleep=sleep,
        on_event=events.append,
    )
    telescope.run(timeline(visits[:1], CADENCE, announce=True, cancel=False))
    assert [event.step for event in events] == list(TelescopeStep)[:1] + list(TelescopeStep)[2:]
    # The raws were due 9 s after the announcement, and the pixels were made 63 s after it.
    assert [event.late_s for event in events] == pytest.approx([0.0, 60.0, 54.0])
