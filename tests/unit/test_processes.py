# SPDX-License-Identifier: BSD-3-Clause
"""Names of signals."""

import signal

from ppdaemon.processes import signal_name


def test_signals_have_names_where_python_knows_one():
    assert signal_name(signal.SIGKILL) == "SIGKILL"
    assert signal_name(signal.SIGRTMIN + 3) == f"signal {signal.SIGRTMIN + 3}"
