# SPDX-License-Identifier: BSD-3-Clause
"""Which engines a worker has, by its configuration."""

from ppdaemon.middleware.butler.repo import LocalRepo
from ppdaemon.middleware.direct.engine import DirectEngine
from ppdaemon.middleware.pipetask.engine import PipetaskEngine
from ppdaemon.middleware.run.engine import Engine
from ppdaemon.middleware.run.separable import SeparableEngine
from ppdaemon.work import WorkerContext

__all__ = ("make_engines",)


def make_engines(context: WorkerContext, repo: LocalRepo) -> tuple[Engine, ...]:
    """Make the configured engine, and after ``direct`` the one that stands in for it."""
    config, hard = context.config.engine, context.config.workers.memory.hard
    match config.kind:
        case "direct":
            direct = DirectEngine(
                context.config.export.types,
                context.repo / "direct",
                memory_bytes=hard // 4 if config.memory_max is None else config.memory_max,
                read_ahead_bytes=hard // 8 if config.read_ahead_max is None else config.read_ahead_max,
                urgent=config.no_return,
                processes=config.processes,
            )
            return direct, SeparableEngine()
        case "separable":
            return (SeparableEngine(),)
        case "pipetask":
            return (PipetaskEngine(repo.root, context.repo / "pipetask", context.config.log),)
        case unexpected:
            raise AssertionError(unexpected)
