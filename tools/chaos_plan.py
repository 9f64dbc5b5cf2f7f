# SPDX-License-Identifier: BSD-3-Clause
"""The plan of a chaos run, drawn from a seed. Pure.

Kinds of faults are dealt like cards: each appears once before any appears
twice, so that even a short run has many of them.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ppdaemon.testing.work import WorkerFault


class Fault(StrEnum):
    """Faults from outside the workers; their own faults have other names."""

    KILL_WORKER = "kill_worker"
    STOP_WORKER = "stop_worker"
    KILL_ZYGOTE = "kill_zygote"
    STOP_ZYGOTE = "stop_zygote"
    KILL_EXPORTER = "kill_exporter"
    KILL_ASKER = "kill_asker"
    STOP_ASKER = "stop_asker"
    KILL_SUPERVISOR = "kill_supervisor"
    RELOAD = "reload"
    CLOCK_JUMP = "clock_jump"
    RELAY_SILENT = "relay_silent"
    INVALID_MESSAGE = "invalid_message"
    CENTRAL_DOWN = "central_down"
    STOP_SUPERVISOR = "stop_supervisor"
    KILL_RELAY = "kill_relay"
    STOP_RELAY = "stop_relay"
    DRAIN = "drain"
    CUT_FROM_NODE = "cut_from_node"
    CUT_FROM_RELAY = "cut_from_relay"
    CUT_BOTH = "cut_both"
    DUPLICATE = "duplicate"
    CANCEL = "cancel"
    NO_RAW = "no_raw"
    EARLY_RAW = "early_raw"
    MISSING_SNAP = "missing_snap"
    LATE_RAW = "late_raw"


PROCESS_FAULTS = (
    Fault.KILL_WORKER,
    Fault.STOP_WORKER,
    Fault.KILL_ZYGOTE,
    Fault.KILL_EXPORTER,
    Fault.KILL_ASKER,
    Fault.STOP_ASKER,
    Fault.KILL_SUPERVISOR,
    Fault.RELOAD,
    Fault.CLOCK_JUMP,
    Fault.RELAY_SILENT,
    Fault.INVALID_MESSAGE,
    Fault.CENTRAL_DOWN,
    Fault.STOP_ZYGOTE,
)
"""Faults of processes and of the connections between them."""

NODE_FAULTS = (
    Fault.KILL_WORKER,
    Fault.STOP_WORKER,
    Fault.KILL_ZYGOTE,
    Fault.STOP_ZYGOTE,
    Fault.KILL_EXPORTER,
    Fault.KILL_ASKER,
    Fault.STOP_ASKER,
    Fault.KILL_SUPERVISOR,
    Fault.STOP_SUPERVISOR,
    Fault.KILL_RELAY,
    Fault.STOP_RELAY,
    Fault.DRAIN,
)
"""Faults of a relay with several nodes."""

CUTS = (Fault.CUT_FROM_NODE, Fault.CUT_FROM_RELAY, Fault.CUT_BOTH)
"""Faults of the connection between a node and the relay: messages of the node are lost, of the relay,
or both.
"""

VISIT_FAULTS = (
    Fault.DUPLICATE,
    Fault.CANCEL,
    Fault.NO_RAW,
    Fault.EARLY_RAW,
    Fault.MISSING_SNAP,
    Fault.LATE_RAW,
)
"""Faults of visits."""

STEPS = ("prepare", "ingest", "process", "written", "spooling", "spooled")
"""Steps with worker faults, of `ppdaemon.testing.work.STEPS`."""

WORKER_FAULTS = (
    "hang",
    "deaf",
    "leak",
    "burst",
    "segv",
    "abort",
    "exit",
    "system_exit",
    "raise",
    "refuse",
    "garbage",
    "other_visit",
    "sent_twice",
    "fill",
    "fork",
    "detach",
    "chdir",
)
"""Faults in workers, of `ppdaemon.testing.work.FAULTS`."""

NODE_WORKER_FAULTS = ("segv", "exit", "raise", "hang")
"""Faults in workers of several nodes: these end in different ways, the others at one node only."""

# Killed and stopped workers are the most frequent faults after the first round.
MORE_KILLS = (Fault.KILL_WORKER,) * 4 + (Fault.STOP_WORKER,) * 2
QUIET_BEGIN_S, QUIET_END_S = 0.5, 1.0
LONGEST_S = {
    Fault.STOP_WORKER: 4.0,
    Fault.STOP_ZYGOTE: 1.5,
    # Longer than workers wait for one that makes no progress.
    Fault.STOP_ASKER: 8.0,
    Fault.RELAY_SILENT: 3.0,
    Fault.CENTRAL_DOWN: 2.0,
    # Shorter and longer than the silence after which a relay moves what it can.
    Fault.STOP_SUPERVISOR: 4.0,
    Fault.STOP_RELAY: 3.0,
    Fault.DRAIN: 3.0,
    Fault.CUT_FROM_NODE: 5.0,
    Fault.CUT_FROM_RELAY: 5.0,
    Fault.CUT_BOTH: 5.0,
}
EVERY_ATTEMPT = 0.25
"""Probability that a worker fault happens in every attempt, not only in the first."""


@dataclass(frozen=True, slots=True)
class ProcessFault:
    """A process fault at a time."""

    at_s: float
    fault: Fault
    length_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Visit:
    """One visit with its faults."""

    group: str
    announce_s: float
    detectors: tuple[int, ...]
    snaps: int
    pace_ms: int
    raws_s: tuple[float, ...]
    """Times at which the snaps' raws are written; fewer than `snaps` if some are not."""
    worker_fault: WorkerFault | None = None
    visit_fault: Fault | None = None
    cancel_s: float | None = None
    resend_s: tuple[float, ...] = ()
    """Times at which the reservation is sent again."""

    @property
    def survey(self) -> str:
        """The instructions for the workers, in the form of `ppdaemon.testing.work`."""
        return f"pace:{self.pace_ms}" + (f" {self.worker_fault}" if self.worker_fault else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run; all times are relative to its start."""

    visits: tuple[Visit, ...]
    process_faults: tuple[ProcessFault, ...]


def make_plan(
    seed: int,
    seconds: float,
    detectors: Sequence[int],
    *,
    worker_faults: Sequence[str] = WORKER_FAULTS,
    process_faults: Sequence[Fault] = PROCESS_FAULTS,
    more_faults: Sequence[Fault] = MORE_KILLS,
    visit_every_s: float = 0.45,
    fault_every_s: float = 0.7,
) -> Plan:
    """Draw visits and process faults, in order; a seed always gives the same plan.

    `seconds` is the time in which visits are announced, `more_faults` are dealt in
    addition after the first round, `visit_every_s` and `fault_every_s` are mean intervals.
    """
    draw = random.Random(seed)
    visit_or_worker_faults = _dealt(draw, [*worker_faults, *VISIT_FAULTS, *(None,) * len(VISIT_FAULTS)])
    visits = [
        _visit(draw, f"chaos-{seed}-{number:04d}", at_s, detectors, next(visit_or_worker_faults))
        for number, at_s in enumerate(_random_times(draw, 0.0, seconds, visit_every_s))
    ]
    dealt_faults = _dealt(draw, process_faults, more_faults)
    chosen = [
        ProcessFault(at_s, fault, draw.uniform(0.2, 1.0) * LONGEST_S.get(fault, 0.0))
        for at_s, fault in zip(
            _random_times(draw, QUIET_BEGIN_S, seconds - QUIET_END_S, fault_every_s),
            dealt_faults,
            strict=False,
        )
    ]
    return Plan(tuple(visits), tuple(chosen))


def _dealt[T](draw: random.Random, first: Sequence[T], extra: Sequence[T] = ()) -> Iterator[T]:
    """Deal one pack after another; the first pack has no extra cards."""
    pack = list(first)
    while True:
        draw.shuffle(pack)
        yield from pack
        pack = [*first, *extra]


def _random_times(draw: random.Random, begin_s: float, end_s: float, every_s: float) -> Iterator[float]:
    at_s = begin_s
    while (at_s := at_s + draw.uniform(0.3, 1.7) * every_s) < end_s:
        yield at_s


def _visit(
    draw: random.Random, group: str, at_s: float, detectors: Sequence[int], fault: str | Fault | None
) -> Visit:
    chosen = tuple(sorted(draw.sample(list(detectors), draw.randint(1, min(3, len(detectors))))))
    visit_fault = fault if isinstance(fault, Fault) else None
    snaps = 2 if visit_fault is Fault.MISSING_SNAP or draw.random() < 0.2 else 1
    raws_s = [at_s + draw.uniform(0.1, 1.2) for _ in range(snaps)]
    cancel_s, resend_s = None, ()
    match visit_fault:
        case Fault.NO_RAW:
            raws_s = []
        case Fault.MISSING_SNAP:
            raws_s = raws_s[:1]
        case Fault.EARLY_RAW:
            raws_s = [at_s - draw.uniform(0.05, 0.4) for _ in raws_s]
        case Fault.LATE_RAW:
            raws_s[0] = at_s + draw.uniform(3.0, 6.0)
        case Fault.CANCEL:
            cancel_s = at_s + draw.uniform(0.0, 1.5)
        case Fault.DUPLICATE:
            resend_s = tuple(at_s + draw.uniform(0.0, 3.0) for _ in range(8))
    return Visit(
        group=group,
        announce_s=at_s,
        detectors=chosen,
        snaps=snaps,
        pace_ms=draw.choice((0, 10, 40, 100)),
        raws_s=tuple(raws_s),
        worker_fault=None if fault is None or visit_fault else _worker_fault(draw, str(fault), chosen),
        visit_fault=visit_fault,
        cancel_s=cancel_s,
        resend_s=resend_s,
    )


def _worker_fault(draw: random.Random, name: str, detectors: Sequence[int]) -> WorkerFault:
    step = "spooled" if name == "sent_twice" else draw.choice(STEPS)
    detector = draw.choice([None, *detectors])
    return WorkerFault(name, step, detector, None if draw.random() < EVERY_ATTEMPT else 1)
