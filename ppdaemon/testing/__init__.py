# SPDX-License-Identifier: BSD-3-Clause
"""Test kit: played relays and nodes, scripted workers, small raws; for ppdaemon's tests and a
site's own.

A site's test runs the real daemon with the site's own rules. Its workers need
no LSST software: the survey of a visit scripts their steps and faults
(`ppdaemon.testing.work` has the syntax)::

    import yaml
    from pathlib import Path

    from ppdaemon.states import Outcome
    from ppdaemon.testing.node import running_node

    RULES = Path("etc/ppdaemon.yaml")


    def test_engineering_visits_are_ignored_and_a_crash_is_tried_again(tmp_path):
        rules = yaml.safe_load(RULES.read_text())["pipelines"]
        with running_node(tmp_path, pipelines=rules) as node:
            node.relay.reserve("group-1", survey="BLOCK-T1")
            assert node.relay.outcome("group-1").outcome == Outcome.IGNORED

            node.relay.reserve("group-2", detectors=[3, 4], survey="process:die@1/4")
            node.raws.land("group-2", detectors=[3, 4])
            for detector in (3, 4):
                assert node.relay.outcome("group-2", detector).outcome == Outcome.SUCCEEDED
            assert [row.attempt for row in node.visit("group-2") if row.detector == 4] == [1, 2]

`ppdaemon.testing.node`
    A real ``ppdaemon`` process, with a relay that the test plays.
`ppdaemon.testing.relay`
    A real ``pprelay`` process, and a client that announces visits to it.
`ppdaemon.testing.telescope`
    A real ``pprelay`` with several real ``ppdaemon``.
`ppdaemon.testing.hosts`
    Network namespaces as hosts, whose connections can be cut in one direction.
`ppdaemon.testing.played`
    Both ends of the link between relay and node, played by the test.
`ppdaemon.testing.work`
    Workers and exporter that follow the script in a visit's survey.
`ppdaemon.testing.raws`
    Small FITS files, and exposures that land with their sidecars.
`ppdaemon.testing.waiting`, `ppdaemon.testing.processes`
    Waiting for a condition with a deadline; inspecting processes.

Nothing here needs pytest, and nothing imports LSST code.
"""
