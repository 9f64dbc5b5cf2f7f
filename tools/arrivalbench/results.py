# SPDX-License-Identifier: BSD-3-Clause
"""The latencies of files of each source, and their goals. Pure."""

from benching.floors import PYTHON_START
from benching.orders import Samples
from benching.results import Goal, Scalar

# A raw may be written just after a poll; then the daemon still needs some time.
POLL_SLACK_MS = 100


def source_results(source: str, files: Samples) -> dict[str, Scalar]:
    """Return the results of one source; percentiles are `None` if no file was found.

    Results of ``inotify`` have no prefix.
    """
    return files.results("notice" if source == "inotify" else f"{source}_notice")


def goals(poll_s: float) -> dict[str, Goal]:
    """Return the goals by name of the result, for two idle cores."""
    return {
        "missed": Goal(0, kind="count"),
        "twice": Goal(0, kind="count"),
        "notice_p99_ms": Goal(50, "below", floor=PYTHON_START),
        "burst_notice_p99_ms": Goal(90, "below", floor=PYTHON_START),
        "burst_notice_worst_ms": Goal(500, "below", floor=PYTHON_START),
        "zmq_notice_p99_ms": Goal(50, "below", floor=PYTHON_START),
        "poll_notice_p99_ms": Goal(poll_s * 1e3 + POLL_SLACK_MS, "below", floor=PYTHON_START),
        "races_missed": Goal(0, kind="count"),
        "races_twice": Goal(0, kind="count"),
        "storm_missed": Goal(0, kind="count"),
        "storm_s": Goal(2, floor=PYTHON_START),
        "old_tree_start_s": Goal(5, floor=PYTHON_START),
        "old_tree_mb": Goal(200, "below"),
    }
