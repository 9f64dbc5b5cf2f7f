# SPDX-License-Identifier: BSD-3-Clause
"""Log lines as all processes write them."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ppdaemon import log


@pytest.fixture
def written() -> Iterator[Callable[[logging.LogRecord], dict[str, object]]]:
    """Give a function that logs a record and returns the line; the former logging comes back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    log.set_up("INFO", "json", stream=stream, slot=3)

    def write(record: logging.LogRecord) -> dict[str, object]:
        root.handle(record)
        return json.loads(stream.getvalue().splitlines()[-1])

    yield write
    root.handlers[:] = handlers
    root.setLevel(level)


def a_record(message: str = "done", **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "lsst.isr", "levelno": logging.INFO, "levelname": "INFO", "msg": message, **extra}
    )


def test_extra_values_of_a_task_are_beside_the_bound_ones(written) -> None:
    log.bind(detector=1)
    mapped = {"LABEL": "isr:{exposure: 7}", "RUN": "run", "DETECTOR": "1", "EXPOSURE": "7", "GROUP": "g"}
    line = written(a_record(MDC=mapped))
    assert (line["task"], line["data_id"], line["exposure"], line["group"]) == (
        "isr",
        "{exposure: 7}",
        7,
        "g",
    )
    assert (line["detector"], line["slot"], line["event"]) == (1, 3, "done")
    assert "MDC" not in line


def test_of_several_exposures_the_worker_names_the_first(written) -> None:
    log.bind(exposure=7, detector=1)
    line = written(a_record(MDC={"EXPOSURE": "7, 8", "DETECTOR": "1"}))
    assert (line["exposure"], line["detector"]) == (7, 1)


def test_the_fields_of_a_process_are_in_the_lines_of_its_threads_until_they_are_removed(written) -> None:
    log.bind(group="g", detector=1)
    with ThreadPoolExecutor(1) as threads:
        line = threads.submit(written, a_record()).result()
        assert (line["group"], line["detector"], line["slot"]) == ("g", 1, 3)
        log.bind(group=None, detector=None)
        assert not {"group", "detector"} & threads.submit(written, a_record()).result().keys()
    assert log.bound() == {"slot": 3}


def test_fields_of_some_lines_are_in_these_only(written) -> None:
    with log.about(group="g", detector=1, exposure=None, slot=4):
        with log.about(detector=2):
            assert (line := written(a_record()))["detector"] == 2
        assert "exposure" not in line
        assert (line["group"], line["slot"], written(a_record())["detector"]) == ("g", 4, 1)
    assert written(a_record()).keys() == {"event", "level", "logger", "timestamp", "slot"}


def test_other_lines_know_of_no_task(written) -> None:
    assert not {"task", "data_id", "exposure", "MDC"} & written(a_record(MDC={})).keys()
    assert "task" not in written(a_record())


@pytest.mark.parametrize("form", ["json", "console"])
def test_lines_for_the_journal_of_systemd_have_its_priorities(written, tmp_path, monkeypatch, form) -> None:
    path = tmp_path / "journal"
    with path.open("w") as journal, (tmp_path / "log").open("w") as other:
        status = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        for stream in (other, journal):
            log.set_up("DEBUG", form, stream=stream)
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
                logging.getLogger("a").log(level, "text")
    assert [line[:3] for line in path.read_text().splitlines()] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert "<6>" not in (tmp_path / "log").read_text()


def test_each_line_of_a_traceback_has_the_priority(written, tmp_path, monkeypatch) -> None:
    path = tmp_path / "journal"
    with path.open("w") as journal:
        status = os.fstat(journal.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        log.set_up("INFO", "console", stream=journal)
        try:
            raise ValueError("wrong")
        except ValueError:
            logging.getLogger("a").exception("failed")
    lines = path.read_text().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_loggers_have_levels_of_their_own_until_the_next_call(written) -> None:
    arrivals, task = logging.getLogger("ppdaemon.node.arrivals"), logging.getLogger("lsst.isr")
    below = logging.getLogger("ppdaemon.node.arrivals.watch")
    log.set_up("INFO", "json", {arrivals.name: "DEBUG", task.name: "ERROR", "watchdog": "DEBUG"})
    assert [each.isEnabledFor(logging.DEBUG) for each in (arrivals, below)] == [True, True]
    assert not task.isEnabledFor(logging.WARNING)
    assert logging.getLogger("watchdog").isEnabledFor(logging.DEBUG)
    assert not logging.getLogger("ppdaemon.node").isEnabledFor(logging.DEBUG)
    log.set_up("WARNING", "json", {task.name: "INFO"})  # as a reload does
    assert not below.isEnabledFor(logging.INFO)
    assert not logging.getLogger("watchdog").isEnabledFor(logging.INFO)
    assert task.isEnabledFor(logging.INFO)
    log.set_up("WARNING", "json")
    assert not task.isEnabledFor(logging.INFO)


def test_long_messages_are_cut(written) -> None:
    event = written(a_record("x" * (log.MAX_MESSAGE + 5)))["event"]
    assert event == "x" * log.MAX_MESSAGE + " [5 more characters]"


def test_what_cannot_be_json_is_described(written) -> None:
    line = written(a_record(path=os, group=None, counts={"a": [1, 2.5]}))
    assert (line["path"], line["group"], line["counts"]) == (repr(os), None, {"a": [1, 2.5]})


def test_a_traceback_is_a_field(written) -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        exception = written(a_record(exc_info=sys.exc_info()))["exception"]
    assert exception.startswith("Traceback")
    assert exception.endswith("ValueError: wrong")


def test_a_field_of_a_line_replaces_those_around_it(written) -> None:
    log.bind(group="bound", detector=1)
    with log.about(group="around"):
        assert written(a_record())["group"] == "around"
        assert written(a_record(group="own"))["group"] == "own"
    assert written(a_record())["group"] == "bound"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "is_colored"), [(io.StringIO(), False), (_Terminal(), True)])
def test_lines_for_people_have_colors_on_a_terminal(written, stream, is_colored) -> None:
    log.set_up("INFO", "console", stream=stream, slot=3)
    with log.about(group="g"):
        logging.getLogger("lsst.isr").warning("text", extra={"path": "a b", "empty": ""})
    assert ("\x1b[33mwarning  \x1b[0m" in stream.getvalue()) == is_colored
    assert stream.getvalue().rstrip("\n").endswith("[lsst.isr] slot=3 group=g path='a b' empty=''")


@pytest.mark.parametrize("program", ["node", "relay", "bridge"])
def test_daemons_import_nothing_for_terminals(program) -> None:
    code = f"import sys, ppdaemon.{program}.app; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"rich", "pygments", "structlog"} & set(modules.split())
    # A process that stays small has no use for the configuration of a node.
    assert ("ppdaemon.config" in modules.split()) == (program == "node")
