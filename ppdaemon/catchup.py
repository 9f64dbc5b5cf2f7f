# SPDX-License-Identifier: BSD-3-Clause
"""The daytime catch-up: names of its collections, orders to its inner process, and what that finds. Pure."""

from typing import Literal

from ppdaemon.config import NodeConfig
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.reports import SCHEMA
from ppdaemon.visit import NextVisit
from ppdaemon.wire import Model

__all__ = ("CatchupItem", "CatchupOrder", "CatchupReport", "CatchupRow", "inputs_of", "run_of")


def run_of(chain: str, pipeline: str) -> str:
    """Return the output run of the catch-up of a pipeline, a member of the day's chain."""
    return f"{chain}/{pipeline}/catchup"


def inputs_of(chain: str) -> str:
    """Return the chain of the collections that the catch-up of a day reads."""
    return f"{chain}/catchup-inputs"


class CatchupItem(Model):
    """A visit-detector to be caught up."""

    instrument: str
    group: str
    detector: int
    attempt: int
    visit: NextVisit
    received_tai: float
    """When the node accepted it, TAI seconds since 1970."""
    exposures: tuple[int, ...]
    """Exposures whose raws arrived in the night; more may be found."""
    chain: str
    """Chain of the day's outputs."""
    pipeline: str
    """Path of the pipeline file."""
    run: str
    """Output run of the catch-up."""
    preprocessing: tuple[str, ...] = ()
    """Paths of the pipelines that run before it, each into a run of its own."""

    @property
    def steps(self) -> tuple[tuple[str, str], ...]:
        """Path and run of all pipelines, in the order in which they run."""
        before = [(path, run_of(self.chain, pipeline_name(path))) for path in self.preprocessing]
        return (*before, (self.pipeline, self.run))


class CatchupOrder(Model):
    """Input of the inner process; complete, so that it reads no configuration."""

    config: NodeConfig
    items: tuple[CatchupItem, ...]


class CatchupRow(Model):
    """What the central repo has of one visit-detector."""

    instrument: str
    group: str
    detector: int
    attempt: int
    """The last attempt of the night."""
    pipeline: str
    """Name of the pipeline of the catch-up."""
    run: str
    """Output run of the catch-up."""
    exposures: tuple[int, ...] = ()
    """Exposures in the central repo with a raw of this detector."""
    state: Literal["prepared", "no_raw", "done", "failed", "not_run", "refused"]
    """``prepared``: raws, exposures and visits are in the central repo. ``no_raw``: no raw was found.
    ``done``: each task has succeeded. ``failed``: one has failed. ``not_run``: one has not run.
    ``refused``: see ``text``."""
    text: str = ""
    """Why, in one sentence."""
    new_raws: int = 0
    """Raws that were copied into the central repo."""


class CatchupReport(Model):
    """Result of the catch-up."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppctl --json``."""
    rows: tuple[CatchupRow, ...]
    """The visit-detectors, those that are refused last."""
