# SPDX-License-Identifier: BSD-3-Clause
"""Errors as texts and exit codes."""

import pytest

from ppdaemon.errors import ConfigError, NeedsRestart
from ppdaemon.states import ExitCode


@pytest.mark.parametrize(
    ("problems", "brief"),
    [
        (["a.yaml:3: x: unknown key"], "a.yaml:3: x: unknown key"),
        (["a.yaml:3: x: no\n  line", "b"], "a.yaml:3: x: no line; 1 more error"),
        (["a", "b", "c"], "a; 2 more errors"),
    ],
)
def test_many_errors_of_a_file_are_one_and_their_number_in_a_line(problems, brief):
    assert ConfigError(problems).brief == brief


def test_what_needs_a_restart_is_an_error_of_the_configuration():
    error = NeedsRestart(["node.name", "publish"])
    assert error.exit_code is ExitCode.CONFIG
    assert str(error).splitlines() == [
        f"{key}: cannot change while the daemon runs; restart it instead" for key in ("node.name", "publish")
    ]
