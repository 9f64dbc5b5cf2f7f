# SPDX-License-Identifier: BSD-3-Clause
"""A daemon whose visits run another than the first pipeline of their rule, and succeed."""

import pytest
from node import running

from ppdaemon.reports import FALLBACK


def test_visits_without_their_first_pipeline_are_a_problem_until_one_has_it(tmp_path, socket_dir):
    with running(tmp_path, socket_dir) as node:

        def visit(group, survey):
            node.succeed(group, survey=survey)

        for group in ("g1", "g2", "g3"):
            assert node.status().problems == ()
            visit(group, "fallback:no_APDB")
        (problem,) = node.wait(lambda: node.status().problems)
        assert (problem.source, problem.degrades) == ("pipelines", False)
        assert problem.text == (
            "pipeline any is not run, scripted of its rule ran instead in the last 3 visit-detectors: no_APDB"
        )
        now = node.status()
        assert now.state == "running"
        (first,) = node.daemon.visit("g1")
        assert first.figures[FALLBACK] == {"first": "any", "reason": "no_APDB"}
        assert problem.since_tai == pytest.approx(first.ended_tai, abs=5.0)
        assert {each.group: each.fallbacks for each in node.daemon.summaries(9)} == dict.fromkeys(
            ("g1", "g2", "g3"), 1
        )
        visit("g4", "new")
        node.wait(lambda: not node.status().problems)
