# SPDX-License-Identifier: BSD-3-Clause
"""Sending visits by hand: the event that is made, following it, the exit code."""

import errno
import threading

import click
import pytest
import zmq
from click.testing import CliRunner
from rich.console import Console

from ppdaemon.ctl import submit
from ppdaemon.ctl.send import command
from ppdaemon.ctl.submit import VisitSubmitter
from ppdaemon.errors import Unavailable
from ppdaemon.messages import Accepted, DetectorOutcome
from ppdaemon.states import ExitCode, Outcome
from ppdaemon.terminal import show
from ppdaemon.visit import read_next_visit
from ppdaemon.wire import encode

NOW_TAI = 1_763_781_916.951


def standing(*outcomes, **fields):
    found = tuple(DetectorOutcome(detector=k, outcome=outcome) for k, outcome in enumerate(outcomes))
    return Accepted(status="accepted", group="g", detectors=len(found), outcomes=found, **fields)


class ScriptedClient:
    def __init__(self, *answers):
        self._answers = list(answers)
        self.asked = []

    def ask(self, fields):
        self.asked.append(fields)
        return self._answers.pop(0)


def test_an_event_made_of_options_is_a_valid_one():
    given = {
        "instrument": "DemoCam",
        "ra": 10.5,
        "dec": -30.0,
        "angle": 180.0,
        "filter": "r_03",
        "nimages": 2,
        "survey": "BLOCK-365",
        "duration": 30.0,
        "group": None,
    }
    visit = read_next_visit(submit.make_event(given, NOW_TAI))
    assert visit.group == "2025-11-22T03:25:16.951"
    assert visit.boresight == (10.5, -30.0)
    assert visit.sky_angle == 180.0
    assert (visit.instrument, visit.filter_names, visit.nimages) == ("DemoCam", ("r_03",), 2)
    assert (visit.survey, visit.duration_s) == ("BLOCK-365", 30.0)
    assert visit.age_s(NOW_TAI) == 0.0


@pytest.mark.parametrize(("half", "other"), [("ra", "dec"), ("dec", "ra")])
def test_half_a_position_is_refused(half, other):
    with pytest.raises(click.UsageError, match=f"--{half} without --{other}"):
        submit.make_event({"instrument": "DemoCam", half: 0.0}, NOW_TAI)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--ra", "nan", "nan is not a finite number"),
        ("--dec", "95", "95.0 is not in the range -90<=x<=90"),
        ("--angle", "inf", "inf is not a finite number"),
        ("--nimages", "-1", "-1 is not in the range x>=0"),
    ],
)
def test_a_value_that_a_relay_would_ignore_is_refused(option, value, reason):
    done = CliRunner().invoke(command, ["--instrument", "DemoCam", "--ra=1", "--dec=2", f"{option}={value}"])
    assert done.exit_code == 2
    assert f"'{option}': {reason}" in done.output


def test_an_event_without_a_position_claims_none():
    visit = read_next_visit(submit.make_event({"instrument": "DemoCam", "group": "mine"}, NOW_TAI))
    assert visit.group == "mine"
    assert visit.boresight is None
    assert visit.sky_angle is None


def test_a_visit_is_followed_until_each_detector_has_its_outcome(clock):
    client = ScriptedClient(
        standing(None, None), standing(Outcome.SUCCEEDED, None), standing(*["succeeded"] * 2)
    )
    shown = []
    last = submit.follow(client, "g", timeout_s=60.0, show=shown.append, mono=clock.mono, pause=clock.advance)
    assert client.asked == [{"type": "visit_status", "groupId": "g"}] * 3
    assert len(shown) == 3
    assert submit.exit_code(last, followed=True, cancelling=False) is ExitCode.OK


def test_following_ends_when_the_time_is_up(clock):
    client = ScriptedClient(*[standing(None)] * 10)
    last = submit.follow(
        client, "g", timeout_s=1.0, show=lambda answer: None, mono=clock.mono, pause=clock.advance
    )
    assert len(client.asked) == 5
    assert submit.exit_code(last, followed=True, cancelling=False) is ExitCode.TRY_LATER


@pytest.mark.parametrize(
    ("answer", "followed", "cancelling", "code"),
    [
        (Accepted(status="accepted"), False, False, ExitCode.OK),
        (Accepted(status="duplicate"), False, False, ExitCode.OK),
        (Accepted(status="ignored"), False, False, ExitCode.OK),
        (Accepted(status="ignored"), True, False, ExitCode.FAILED),
        (Accepted(status="rejected"), False, False, ExitCode.DATA),
        (Accepted(status="rejected"), True, False, ExitCode.DATA),
        (standing(Outcome.SUCCEEDED, Outcome.SUCCEEDED), True, False, ExitCode.OK),
        (standing(Outcome.SUCCEEDED, Outcome.NO_IMAGE), True, False, ExitCode.FAILED),
        (standing(Outcome.SUCCEEDED, Outcome.CANCELLED), True, False, ExitCode.FAILED),
        (standing(Outcome.SUCCEEDED, Outcome.CANCELLED), True, True, ExitCode.OK),
        (standing(Outcome.FAILED, None), True, False, ExitCode.TRY_LATER),
    ],
)
def test_the_exit_code_is_that_of_the_result(answer, followed, cancelling, code):
    assert submit.exit_code(answer, followed=followed, cancelling=cancelling) is code


def test_an_answer_is_one_line():
    answer = Accepted(status="accepted", group="g", detectors=9)
    assert submit.summary(answer) == "accepted: g, 9 detectors"
    assert submit.summary(Accepted(status="rejected", reason="stale")) == "rejected: stale"
    unserved = answer.model_copy(update={"unserved": (0, 1, 2, 7)})
    assert submit.summary(unserved) == "accepted: g, 9 detectors, no node serves 0-2,7 now"


def test_without_a_terminal_only_changes_are_printed(capsys):
    with submit.watching(Console(width=100)) as show:
        for answer in (standing(None, None), standing(None, None), standing(None, Outcome.FAILED)):
            show(answer)
    assert capsys.readouterr().out.splitlines() == [
        "0 of 2 detectors ended",
        "1 of 2 detectors ended: 1 failed",
    ]


def test_on_a_terminal_a_bar_is_shown(capsys):
    console = Console(width=60, force_terminal=True)
    with submit.watching(console) as show:
        show(standing(None, Outcome.FAILED))
    assert "1/2" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_detector_with_markup_taken_literally(capsys):
    reason = f"[red]x[/red] [/dev]\a {'long ' * 30}"
    found = DetectorOutcome(detector=3, node="n1", outcome=Outcome.BAD_RAW, reason=reason)
    show(submit.outcome_table((found, DetectorOutcome(detector=1))))
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["1", "under", "way", "1"]
    assert second.split()[:7] == ["3", "bad_raw", "n1", "1", "[red]x[/red]", "[/dev]?", "long"]
    assert second.count("long") == 30


def test_after_a_question_without_an_answer_another_one_can_be_asked(socket_dir):
    def answer():
        for reason in ("late", "in time"):
            *envelope, _ = relay.recv_multipart()
            relay.send_multipart([*envelope, encode(Accepted(status="ignored", reason=reason))])

    address = f"ipc://{socket_dir}/relay"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as relay:
        relay.linger, relay.rcvtimeo = 0, 30_000
        relay.bind(address)
        with submit.VisitSubmitter(address, 3.0) as client:
            in_time_ms, client._socket.rcvtimeo = client._socket.rcvtimeo, 200
            with pytest.raises(Unavailable, match="no answer from"):
                client.ask({})
            client._socket.rcvtimeo = in_time_ms
            thread = threading.Thread(target=answer)
            thread.start()
            try:
                assert client.ask({}).reason == "in time"
            finally:
                thread.join()


def test_too_many_open_files_are_an_error_of_the_address(monkeypatch):
    def failing(*args, **options):
        raise zmq.ZMQError(errno.EMFILE)

    monkeypatch.setattr(zmq.Context, "socket", failing)
    with pytest.raises(Unavailable, match="cannot be used: Too many open files"):
        VisitSubmitter("tcp://127.0.0.1:1")
