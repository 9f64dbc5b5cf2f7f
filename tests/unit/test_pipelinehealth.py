# SPDX-License-Identifier: BSD-3-Clause
"""Which pipelines are set aside because they end their workers."""

from hypothesis import given
from hypothesis import strategies as st
from test_slot import an_assignment

from ppdaemon.messages import Pipelines
from ppdaemon.node.slots.assignment import Key
from ppdaemon.node.slots.pipelinehealth import WINDOW_S, PipelineHealth

A, B, C = "/p/A.yaml", "/p/B.yaml", "/p/C.yaml"
RETRY_S = 60.0


class World:
    """Visits of one rule or more, whose workers live or die."""

    def __init__(self):
        self.health = PipelineHealth()
        self.now = 0.0
        self.visits = 0

    def choose(self, *main):
        return self.health.choose(Pipelines(main=main), self.now, RETRY_S).main

    def visit(self, *main, dies, slot=0, group=None, detector=0):
        """Process one visit-detector; return the pipeline that it got."""
        self.now += 1.0
        self.visits += group is None
        chosen = self.choose(*main)
        key = Key("DemoCam", group or f"g{self.visits}", detector)
        assignment = an_assignment()._replace(key=key, pipelines=Pipelines(main=chosen))
        if chosen[0] in dies:
            self.health.died(assignment, slot, "worker ended by signal 11 (SIGSEGV)", self.now, RETRY_S)
        else:
            self.health.lived(assignment, self.now)
        return chosen[0]

    def three_deaths(self, *main, dies):
        for slot in range(3):
            self.visit(*main, dies=dies, slot=slot)


def test_a_pipeline_whose_workers_die_in_three_visits_is_set_aside_while_others_live():
    world = World()
    world.visit(C, dies={A})
    for slot in range(2):
        assert world.visit(A, B, dies={A}, slot=slot) == A
        world.visit(C, dies={A})
    assert world.health.problems == ()
    assert world.visit(A, B, dies={A}, slot=2) == A
    (problem,) = world.health.problems
    assert problem == (
        "pipeline A is set aside, its rule's next one is used: workers ended by themselves in"
        " 3 visit-detectors of 3 visits, last: worker ended by signal 11 (SIGSEGV); one"
        " visit-detector every 60 s tries it"
    )
    assert world.choose(A, B) == (B,)
    assert world.choose(C) == (C,)


def test_a_pipeline_is_also_set_aside_if_no_other_has_run_because_the_next_one_shows_the_cause():
    world = World()
    world.three_deaths(A, B, dies={A})
    assert world.choose(A, B) == (B,)
    for slot in range(9):
        world.visit(A, B, dies={A}, slot=slot)
    assert world.health.host_problem == ""


def test_many_detectors_of_one_visit_and_attempts_of_one_detector_count_once():
    world = World()
    for group in ("g1", "g2"):
        for detector in range(50):
            for slot in (1, 2):
                world.visit(A, B, dies={A}, slot=slot, group=group, detector=detector)
    assert world.choose(A, B) == (A, B)
    world.visit(A, B, dies={A}, slot=1, group="g3")
    assert world.choose(A, B) == (B,)
    assert "101 visit-detectors of 3 visits" in world.health.problems[0]


def test_deaths_on_one_slot_are_not_the_pipelines():
    world = World()
    for _ in range(9):
        world.visit(A, B, dies={A}, slot=7)
    assert world.choose(A, B) == (A, B)


def test_a_worker_that_lives_clears_the_deaths_before():
    world = World()
    for slot in range(9):
        if slot % 3 == 2:
            world.visit(A, B, dies=())
        else:
            world.visit(A, B, dies={A}, slot=slot)
    assert world.choose(A, B) == (A, B)


def test_deaths_long_ago_do_not_count():
    world = World()
    for slot in range(9):
        world.visit(A, B, dies={A}, slot=slot)
        world.now += WINDOW_S / 2 + 1
        assert world.choose(A, B) == (A, B)


def test_one_visit_detector_a_minute_tries_a_pipeline_that_is_set_aside_and_a_life_brings_it_back():
    world = World()
    world.three_deaths(A, B, dies={A})
    world.now += RETRY_S
    assert [world.visit(A, B, dies={A}) for _ in range(3)] == [A, B, B]
    world.now += RETRY_S
    assert [world.visit(A, B, dies=()) for _ in range(3)] == [A, A, A]
    assert world.health.problems == ()


def test_the_last_pipeline_of_a_rule_is_used_whatever_happens():
    world = World()
    world.visit(C, dies={A})
    for slot in range(9):
        assert world.visit(A, dies={A}, slot=slot) == A
        assert world.visit(B, A, dies={A}, slot=slot) == B
    (problem,) = world.health.problems
    assert "its rule has no other, it is used nevertheless" in problem


def test_several_pipelines_may_be_set_aside():
    world = World()
    for _ in range(2):
        world.three_deaths(A, B, C, dies={A, B})
    assert world.choose(A, B, C) == (C,)
    world.now += RETRY_S
    # One at a time: the first try does not fall back to another pipeline that is set aside.
    assert [world.choose(A, B, C) for _ in range(3)] == [(A, C), (B, C), (C,)]


def test_where_the_workers_of_all_pipelines_die_the_host_is_suspected_and_none_is_set_aside():
    world = World()
    for slot in range(3):
        world.visit(A, B, dies={A, C}, slot=slot)
        world.visit(C, dies={A, C}, slot=slot)
    assert world.choose(A, B) == (A, B)
    assert world.health.problems == (world.health.host_problem,)
    assert "the host may be faulty" in world.health.host_problem
    world.visit(C, dies=())
    assert world.health.problems == ()


def test_a_fallback_whose_workers_die_too_shows_that_it_is_the_host():
    world = World()
    world.three_deaths(A, B, dies={A, B})
    assert world.choose(A, B) == (B,)
    world.three_deaths(A, B, dies={A, B})
    assert world.health.host_problem
    assert world.choose(A, B) == (A, B)
    world.three_deaths(A, B, dies={A, B})  # no longer the pipeline's
    assert world.choose(A, B) == (A, B)


def test_a_single_pipeline_whose_workers_all_die_may_be_the_host():
    world = World()
    world.three_deaths(A, dies={A})
    assert world.health.problems == (world.health.host_problem,)


def test_the_pipeline_that_was_prepared_counts_not_the_first_of_its_rule():
    health = PipelineHealth()
    for slot in range(3):
        key = Key("DemoCam", f"g{slot}", 0)
        main = Pipelines(main=(A, B, C))
        health.died(
            an_assignment()._replace(key=key, pipelines=main, pipeline="B"), slot, "died", 1.0, RETRY_S
        )
    assert health.choose(Pipelines(main=(A, B, C)), 2.0, RETRY_S).main == (A, C)


RULES = st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3, unique=True)


@given(
    st.lists(
        st.tuples(RULES, st.booleans(), st.integers(0, 3), st.sampled_from([0.0, 10.0, RETRY_S, WINDOW_S]))
    )
)
def test_whatever_happens_each_visit_gets_pipelines_of_its_rule_in_order_and_the_last_one(steps):
    world = World()
    tried = {A: -RETRY_S, B: -RETRY_S, C: -RETRY_S}
    for main, dies, slot, seconds in steps:
        world.now += seconds
        aside = set(world.health._aside)
        chosen = world.choose(*main)
        assert chosen == tuple(pipeline for pipeline in main if pipeline in chosen)
        assert chosen[-1] == main[-1]
        for pipeline in set(chosen[:-1]) & aside:  # a try
            assert chosen[0] == pipeline
            assert world.now - tried[pipeline] >= RETRY_S
            tried[pipeline] = world.now
        world.visit(*main, dies=set(main) if dies else (), slot=slot)
        assert not (world.health.host_problem and world.health._aside)
