# SPDX-License-Identifier: BSD-3-Clause
"""Finding the lines of a visit in the logs of a node."""

import json
import logging
from io import StringIO

import pytest
from controlserver import visit

from ppdaemon import log as program_log
from ppdaemon.ctl.log import line_text, supervisor_lines, visit_lines, worker_lines, worker_log
from ppdaemon.errors import Unreadable
from ppdaemon.reports import VisitRow

GROUP = "2025-11-22T03:25:16.951"


def row(detector, slot):
    return VisitRow.model_validate(visit(detector, slot=slot))


@pytest.fixture(params=["json", "console"])
def written(request):
    """Return the function that gives what a worker logs, in one of the formats."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = StringIO()
    program_log.set_up("INFO", request.param, stream=stream, role="worker", slot=3)

    def written(*lines):
        stream.truncate(stream.seek(0))
        for line in lines:
            if isinstance(line, str):
                stream.write(f"{line}\n")
                continue
            group, detector, text, *error = line
            program_log.bind(instrument="DemoCam", group=group, detector=detector)
            logging.getLogger("lsst.isr").warning(text, exc_info=error[0] if error else None)
        return stream.getvalue()

    yield written
    root.handlers[:], root.level = handlers, level


def test_the_lines_of_one_visit_are_found_with_what_follows_them(tmp_path, written):
    lines = written(
        ("other", 4, "of another visit"),
        "a line without fields of another visit",
        (GROUP, 4, "bias has NaN"),
        "Fatal Python error: Segmentation fault",
        '  File "isr.py", line 7',
        (GROUP, 5, "of another detector"),
        "its traceback",
        (GROUP, 4, "flat is old"),
        (f"{GROUP}9", 4, "of a longer group"),
    )
    worker_log(tmp_path, 3).write_text(lines)
    found = worker_lines(tmp_path, [row(4, 3)])
    assert [(line.source, line.fields["event"]) for line in found] == [
        ("slot 3", "bias has NaN"),
        ("slot 3", "flat is old"),
    ]
    assert found[0].more == ["Fatal Python error: Segmentation fault", '  File "isr.py", line 7']
    assert found[1].more == []
    assert (found[0].fields["level"], found[0].fields["detector"]) == ("warning", 4)
    text = line_text(found[0]).plain
    assert "slot 3" in text
    assert "warning bias has NaN" in text
    assert "\n      File" in text


def test_a_text_with_pairs_and_a_field_with_spaces_are_whole(tmp_path, written):
    text = "Preparing label=isr dataId={instrument: 'DemoCam', detector: 4} [of 3]"
    program_log.bind(instrument="DemoCam", group=GROUP, detector=4, data_id="{band: 'r', detector: 4}")
    worker_log(tmp_path, 3).write_text(written((GROUP, 4, text)))
    (found,) = worker_lines(tmp_path, [row(4, 3)])
    assert found.fields["event"] == text
    assert found.fields["data_id"] == "{band: 'r', detector: 4}"
    assert found.fields["detector"] == 4


def test_lines_of_several_slots_are_in_the_order_of_their_times(tmp_path):
    for slot, times in ((1, (10, 40)), (2, (20, 30))):
        worker_log(tmp_path, slot).write_text(
            "".join(
                json.dumps(
                    {"event": str(s), "timestamp": f"2025-11-22T03:25:{s}Z", "group": GROUP, "detector": slot}
                )
                + "\n"
                for s in times
            )
        )
    rows = [row(1, 1), row(2, 2), row(3, None), row(4, 9)]
    assert [line.fields["event"] for line in worker_lines(tmp_path, rows)] == ["10", "20", "30", "40"]
    assert [line.source for line in worker_lines(tmp_path, rows[:1])] == ["slot 1", "slot 1"]


def test_a_log_that_was_cut_or_is_damaged_is_read_all_the_same(tmp_path):
    wanted = json.dumps({"event": "wanted", "group": GROUP, "detector": 4}).encode()
    worker_log(tmp_path, 3).write_bytes(
        b'"group": "half a line"}\n... 17 bytes were cut here\n' + wanted + b"\n{broken\n\xff\xfe\n[1]\n"
    )
    (found,) = worker_lines(tmp_path, [row(4, 3)])
    assert found.fields["event"] == "wanted"


def test_a_log_that_may_not_be_read_is_an_error_that_names_it(tmp_path, monkeypatch):
    def refuse(self, *_args, **_options):
        raise PermissionError

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(Unreadable, match=r"worker-0003\.log: permission denied"):
        worker_lines(tmp_path, [row(4, 3)])


def test_lines_of_the_supervisor_are_those_of_systemd_around_the_visit(tmp_path, monkeypatch):
    program = tmp_path / "journalctl"
    line = json.dumps({"event": "crashed", "group": GROUP, "detector": 4, "slot": 3})
    of_all = json.dumps({"event": "canceled", "group": GROUP})
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/arguments\necho '{line}'\necho '{of_all}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found, whole = supervisor_lines([row(4, 3)])
    assert (found.source, found.fields["event"]) == ("supervisor", "crashed")
    assert whole.fields["event"] == "canceled"
    since, until = (
        float(word.partition("@")[2])
        for word in (tmp_path / "arguments").read_text().split()
        if word.startswith(("--since", "--until"))
    )
    accepted = min(row(4, 3).stages.values()) - 37.0
    assert since < accepted < until


class Away:
    """A node that does not run, whose journal is read."""

    from_journal = True

    def __init__(self, journal):
        self.journal = journal


def test_lines_of_workers_and_supervisor_are_in_the_order_of_their_times(tmp_path, monkeypatch):
    def text(event, second):
        return json.dumps(
            {"event": event, "timestamp": f"2025-11-22T03:25:{second}Z", "group": GROUP, "detector": 4}
        )

    (tmp_path / "logs").mkdir()
    worker_log(tmp_path / "logs", 3).write_text(f"{text('first', 10)}\n{text('third', 30)}\n")
    program = tmp_path / "journalctl"
    program.write_text(f"#!/bin/sh\necho '{text('second', 20)}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = visit_lines(Away(tmp_path / "journal.sqlite"), [row(4, 3)])
    assert [(line.source, line.fields["event"]) for line in found] == [
        ("slot 3", "first"),
        ("supervisor", "second"),
        ("slot 3", "third"),
    ]


def test_without_systemd_there_are_no_lines_of_the_supervisor(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert supervisor_lines([row(4, 3)]) == []
