# SPDX-License-Identifier: BSD-3-Clause
"""The fields of all lines that the programs log in a whole run."""

import re

import pytest
from node import observatory

from ppdaemon.ctl.log import LogLine, lines_of, worker_log
from ppdaemon.states import Outcome, Stage
from ppdaemon.testing.waiting import wait_until

TIMEOUT_S = 60.0
NAMES = {"instrument", "group", "detector", "attempt", "stage", "slot"}
ENDS = {
    # group: survey, whether its raw lands, outcome, words of the only line of each process about a failure
    "good": ("process:log", True, Outcome.SUCCEEDED, ()),
    "refused": ("process:refuse", True, Outcome.BAD_RAW, ("refused by order of the test",) * 2),
    "bad": ("ingest:refuse", True, Outcome.BAD_RAW, ("refused by order of the test",) * 2),
    "broken": ("process:raise", True, Outcome.FAILED, ("division by zero",) * 2),
    "dead": ("process:die@", True, Outcome.CRASHED, ("ended by signal 9 (SIGKILL)",)),
    "empty": ("", False, Outcome.NO_IMAGE, ("no raw arrived in time",)),
    "early": ("prepare:refuse", False, Outcome.BAD_RAW, ("refused by order of the test",) * 2),
}
"""Each visit of the run has a way to end."""


def lines(path, source) -> list[LogLine]:
    with path.open("rb") as stream:
        return list(lines_of(stream, source))


@pytest.mark.parametrize("form", ["json", pytest.param("console", marks=pytest.mark.slow)])
def test_every_line_about_a_visit_detector_has_its_fields(tmp_path, socket_dir, form):
    keys = {"arrivals": {"image_timeout_s": 1}, "attempts": 1}
    with observatory(
        tmp_path,
        socket_dir,
        relay_keys={"log": {"format": form}, "instruments": {"DemoCam": {"detectors": "0"}}},
        node_keys={"log": {"format": form}},
        **keys,
    ) as (relay, node, client):
        for number, (group, (survey, lands, *_)) in enumerate(ENDS.items(), 1):
            assert client.announce(group, survey=survey, nimages=1, duration=1)["status"] == "accepted"
            if lands:
                node.land(group, 0, number=number)

        def ended() -> dict[str, str | None]:
            return {group: client.outcomes(group).get(0) for group in ENDS}

        wait_until(lambda: None not in ended().values(), TIMEOUT_S, lambda: f"{ended()}\n{node.story()}")
        assert ended() == {group: outcome for group, (_, _, outcome, _) in ENDS.items()}
        exposures = {group: node.raws.day * 100_000 + number for number, group in enumerate(ENDS, 1)}
        slots = range(len(node.workers()))
    supervisor = lines(node.log, "supervisor")
    workers = [
        line for slot in slots for line in lines(worker_log(node.state / "logs", slot), f"slot {slot}")
    ]
    everything = [*lines(relay.log, "relay"), *supervisor, *workers]
    # The name of a visit is in no line that does not have it as a field.
    named = re.compile(rf"\b({'|'.join(ENDS)})\b")
    for line in everything:
        if found := named.findall(f"{line.fields} {line.more}"):  # texts have some of these words, too
            assert line.fields.get("group") in found, line
            assert line.fields["instrument"] == "DemoCam", line
    about = [line for line in (*supervisor, *workers) if "group" in line.fields]
    for line in about:
        assert line.fields.keys() >= NAMES, line
        assert (line.fields["detector"], line.fields["attempt"]) == (0, 1), line
        has_raw = list(Stage).index(line.fields["stage"]) >= list(Stage).index(Stage.ARRIVED)
        assert line.fields.get("exposure") == (exposures[line.fields["group"]] if has_raw else None), line
    for group, (*_, outcome, texts) in ENDS.items():
        (end,) = [line for line in supervisor if line.fields.get("group") == group]
        assert end.fields["outcome"] == outcome, end
        slot = end.fields["slot"]
        own = [line for line in workers if line.fields.get("group") == group]
        assert all(line.source == f"slot {slot}" and line.fields["slot"] == slot for line in own), own
        # One line per failure and process; a traceback only where the failure is not foreseen.
        failures = [line for line in (end, *own) if line.fields["level"] != "info"]
        assert len(failures) == len(texts), failures
        assert all(text in line.fields["event"] for text, line in zip(texts, failures, strict=True)), failures
        traced = [line for line in failures if line.fields.get("exception") or line.more]
        assert len(traced) == (outcome == Outcome.FAILED), traced
    (task,) = [line for line in workers if line.fields["event"] == "logged by a task"]
    assert (task.fields["group"], task.fields["stage"]) == ("good", Stage.FIRST_TASK)
    assert any(line.fields.get("group") == "good" for line in everything if line.source == "relay")
