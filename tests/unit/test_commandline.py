# SPDX-License-Identifier: BSD-3-Clause
"""The end of programs whose output nobody reads any more."""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from test_night import DAY, entry, write

from ppdaemon.commandline import ended_by_reader
from ppdaemon.node.visits.journal import Journal

PPCTL = "from ppdaemon.ctl.cli import main; main()"
SEND_VISIT = "from ppdaemon.ctl.send import main; main()"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (PPCTL, ("--help",)),
        (PPCTL, ("night", str(DAY), "--journal", "{journal}")),
        (SEND_VISIT, ("--help",)),
    ],
    ids=["by click", "as text", "other program"],
)
def test_a_reader_that_ends_first_ends_the_program_without_a_message(
    tmp_path: Path, program: str, arguments: tuple[str, ...]
) -> None:
    path = tmp_path / "journal.sqlite"
    with closing(Journal(path)) as journal:
        write(journal, entry("g"))
    command = [sys.executable, "-c", program, *(each.format(journal=path) for each in arguments)]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_program_with_a_closed_output_runs() -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", PPCTL, "--help"]
    done = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_end_of_another_pipe_is_an_error() -> None:
    with pytest.raises(BrokenPipeError), ended_by_reader():
        raise BrokenPipeError
