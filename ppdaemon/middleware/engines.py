# SPDX-License-Identifier: BSD-3-Clause
"""Which engines a seat has, by its configuration."""

from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.direct.engine import DirectEngine
from ppdaemon.middleware.pipetask.engine import PipetaskEngine
from ppdaemon.middleware.run.engine import Engine
from ppdaemon.middleware.run.separable import SeparableEngine
from ppdaemon.work import Seat

__all__ = ("make_direct", "make_reference")


def make_direct(seat: Seat) -> DirectEngine | None:
    """Make the engine that works in memory, if it is configured.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Configuration and places.

    Returns
    -------
    engine : `~ppdaemon.middleware.direct.engine.DirectEngine` or `None`
        The engine; its memory is a part of what a worker may use.
    """
    config, hard = seat.config.engine, seat.config.workers.memory.hard
    if config.kind != "direct":
        return None
    return DirectEngine(
        seat.config.export.types,
        seat.repo / "direct",
        memory_bytes=hard // 4 if config.memory_max is None else config.memory_max,
        read_ahead_bytes=hard // 8 if config.read_ahead_max is None else config.read_ahead_max,
        urgent=config.no_return,
        processes=config.processes,
    )


def make_reference(seat: Seat, repo: LocalRepo) -> Engine:
    """Make the engine that runs anything.

    Parameters
    ----------
    seat : `~ppdaemon.work.Seat`
        Configuration and places.
    repo : `~ppdaemon.middleware.butler.repo.LocalRepo`
        The worker's repo.

    Returns
    -------
    engine : `~ppdaemon.middleware.run.engine.Engine`
        The configured one, or the one that stands in for ``direct``.
    """
    match seat.config.engine.kind:
        case "direct" | "separable":
            return SeparableEngine()
        case "pipetask":
            return PipetaskEngine(repo.root, seat.repo / "pipetask", seat.config.log)
        case unexpected:
            raise AssertionError(unexpected)
