# SPDX-License-Identifier: BSD-3-Clause
"""What a visit would get: the answer of ``ppdaemon plan``, as JSON writes it.

Covers the models. Rules are tried by `ppdaemon.selection`; what a central repo
has is found by `ppdaemon.plan.planner`.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.config import NodeConfig
from ppdaemon.configtypes import detector_set
from ppdaemon.errors import BadMessage, PPDaemonError
from ppdaemon.pointing import BeginField
from ppdaemon.selection import Aim, Rule
from ppdaemon.states import ExitCode
from ppdaemon.visit import NextVisit
from ppdaemon.wire import Model

__all__ = (
    "Choice",
    "DatasetPlan",
    "DetectorPlan",
    "FootprintPlan",
    "MissingPlan",
    "PipelinePlan",
    "Plan",
    "PlanOrder",
    "QueryPlan",
    "RuleTried",
    "Validity",
    "VisitIgnored",
    "choice_of",
    "exit_code",
    "ranges",
    "wanted_detectors",
)

SCHEMA = 1
"""Version of the JSON: a number more where a field changes its meaning."""

type Degrees = tuple[float, float]
"""ICRS right ascension and declination."""


class VisitIgnored(PPDaemonError):
    """No node would get this visit: there is nothing to plan."""

    exit_code = ExitCode.FAILED


class RuleTried(Model):
    """One rule, held against a visit-detector."""

    number: int
    """Its place in the list, from 1."""
    conditions: str
    """What it asks for; empty if it takes every visit."""
    unmet: tuple[str, ...]
    """Which conditions do not hold, and how it is; empty if it matches."""
    pipelines: tuple[str, ...]


class Choice(Model):
    """How one list of rules chose pipelines."""

    tried: tuple[RuleTried, ...]
    """Rules in order, up to the one that matched."""
    pipelines: tuple[str, ...] | None
    """Files in order of preference; `None` if no rule matched."""


class PlanOrder(Model):
    """What a plan is made of; complete, so that its maker reads no file."""

    config_path: Path
    config: NodeConfig
    visit: NextVisit
    now_tai: float
    """Stands for the time of an event that tells none; TAI seconds since
    1970."""
    detectors: Annotated[tuple[int, ...], pydantic.Field(min_length=1)]


class FootprintPlan(Model):
    """Where a detector looks; ICRS degrees."""

    center: Degrees
    corners: tuple[Degrees, ...]
    padded: tuple[Degrees, ...]
    """What preload searches."""
    padding_arcsec: float


class PipelinePlan(Model):
    """One of the selected pipelines."""

    part: Literal["preprocessing", "main"]
    name: str
    path: str
    state: Literal["first", "fallback", "dropped"]
    """``first``: the one that is built first; ``fallback``: built if those
    before it cannot be; ``dropped``: not used."""
    why: str = ""
    """Why it is dropped."""
    run: str | None = None
    """Where its outputs would go."""


class QueryPlan(Model):
    """One query for the datasets of one type."""

    dataset_type: str
    dimensions: tuple[str, ...]
    calibration: bool
    datasets: int
    size_bytes: int
    """Of all files together."""
    query_ms: float
    read_by: tuple[str, ...]
    """Names of pipelines."""
    preloaded: bool
    """Whether a pipeline that can run reads it; else nothing is copied."""


class Validity(Model):
    """From when to when a collection certifies a calibration; TAI."""

    collection: str
    begin: str | None
    """`None` is for ever."""
    end: str | None
    """`None` is for ever."""


class DatasetPlan(Model):
    """One dataset that would be preloaded."""

    dataset_type: str
    id: str
    """Its UUID in the central repo."""
    data_id: Mapping[str, int | str]
    run: str
    size_bytes: int
    validity: tuple[Validity, ...] = ()
    """Of a calibration."""
    region: tuple[Degrees, ...] | None = None
    """Corners of its patch or shard; `None` if it has no place on the sky."""


class MissingPlan(Model):
    """A dataset type that a pipeline reads and of which nothing is there."""

    dataset_type: str
    pipeline: str
    required: bool
    """Whether the pipeline cannot run without."""
    sought: str
    """What was looked for, where."""


class DetectorPlan(Model):
    """What one detector would get."""

    detector: int
    name: str | None
    """As the focal-plane table calls it."""
    outcome: Literal["would_run", "ignored", "no_pipeline"]
    reason: str = ""
    """Why nothing would run."""
    footprint: FootprintPlan | None
    preprocessing: Choice
    main: Choice
    pipelines: tuple[PipelinePlan, ...] = ()
    queries: tuple[QueryPlan, ...] = ()
    datasets: tuple[DatasetPlan, ...] = ()
    """What would be preloaded."""
    missing: tuple[MissingPlan, ...] = ()
    phases_ms: Mapping[str, float] = {}
    """What the parts of the look took."""
    notes: tuple[str, ...] = ()
    """What a worker would log as a warning."""

    @property
    def size_bytes(self) -> int:
        """Of all files that would be preloaded (`int`)."""
        return sum(each.size_bytes for each in self.datasets)


class Plan(Model):
    """What a visit would get on one node."""

    schema_version: int = SCHEMA
    node: str
    config: str
    """The configuration file."""
    central: str
    """The central repo."""
    visit: NextVisit
    begin: str
    """Expected begin of the exposure, TAI."""
    begin_from: BeginField
    """Which field tells it."""
    valid_begin: str
    """Calibrations that are valid at some time from here..."""
    valid_end: str
    """...to here are preloaded: the image may come in all this time. TAI."""
    day_obs: int
    boresight: Degrees | None
    """ICRS."""
    sky_angle_deg: float | None
    """Position angle of focal-plane +Y, north through east."""
    chain: str
    """The collection that finds all outputs of the day."""
    detectors: tuple[DetectorPlan, ...]
    distinct_datasets: int
    """Of all detectors together, each counted once."""
    distinct_bytes: int
    """What these take on the RAM disk."""
    notes: tuple[str, ...] = ()
    """What is odd about the visit."""


def choice_of(rules: Sequence[Rule], aim: Aim, detector: int) -> Choice:
    """Select as `ppdaemon.selection.select` does, and say why.

    Parameters
    ----------
    rules : `~collections.abc.Sequence` [`~ppdaemon.selection.Rule`]
        In order.
    aim : `~ppdaemon.selection.Aim`
        The visit.
    detector : `int`
        Id of the detector.

    Returns
    -------
    choice : `Choice`
        The pipelines, and the rules up to the one that matched.
    """
    tried = []
    for number, rule in enumerate(rules, 1):
        unmet = tuple(rule.unmet(aim, detector))
        tried.append(
            RuleTried(number=number, conditions=_conditions(rule), unmet=unmet, pipelines=rule.pipelines)
        )
        if not unmet:
            return Choice(tried=tuple(tried), pipelines=rule.pipelines)
    return Choice(tried=tuple(tried), pipelines=None)


def _conditions(rule: Rule) -> str:
    hidden = {"pipelines"} if rule.on_sky else {"pipelines", "coord_type"}
    asked = rule.model_dump(exclude=hidden, exclude_none=True, by_alias=True)
    return ", ".join(f"{name} {_asked(value)}" for name, value in asked.items())


def _asked(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['min']:g} to {value['max']:g}"
    return " or ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def wanted_detectors(
    texts: Iterable[str], instrument: str, served: Mapping[str, Sequence[int]]
) -> tuple[int, ...]:
    """Return the detectors that a command line names.

    Parameters
    ----------
    texts : `~collections.abc.Iterable` [`str`]
        Such as ``12``, ``0-8,12`` or ``all``.
    instrument : `str`
        The visit's.
    served : `~collections.abc.Mapping` [`str`, `~collections.abc.Sequence`]
        Detectors that the node serves, by instrument.

    Returns
    -------
    detectors : `tuple` [`int`]
        In the order written, none twice.

    Raises
    ------
    ValueError
        Raised if a text is no list of detectors.
    ppdaemon.errors.BadMessage
        Raised if the node does not serve one of them.
    VisitIgnored
        Raised if the visit has no instrument.
    """
    if not instrument:
        raise VisitIgnored("the visit is ignored: it names no instrument, so its script takes no image")
    ours = served.get(instrument)
    if ours is None:
        raise BadMessage(
            f"instrument {instrument!r} is not served: node.instruments has {', '.join(served)}", "instrument"
        )
    chosen: dict[int, None] = {}
    for text in texts:
        chosen.update(dict.fromkeys(ours if text.strip() == "all" else detector_set(text)))
    strangers = [detector for detector in chosen if detector not in ours]
    if strangers:
        raise BadMessage(
            f"{instrument} {ranges(strangers)}: not served, node.instruments has {ranges(ours)}", "detector"
        )
    return tuple(chosen)


def ranges(numbers: Iterable[int]) -> str:
    """Write numbers as `ppdaemon.configtypes.detector_set` reads them.

    Parameters
    ----------
    numbers : `~collections.abc.Iterable` [`int`]
        In any order.

    Returns
    -------
    text : `str`
        Such as ``0-8,12``.
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def exit_code(plan: Plan) -> ExitCode:
    """Say with which status the program ends.

    Parameters
    ----------
    plan : `Plan`
        What was found.

    Returns
    -------
    code : `~ppdaemon.states.ExitCode`
        ``OK`` if a pipeline would run for each detector, else ``FAILED``.
    """
    good = all(each.outcome == "would_run" for each in plan.detectors)
    return ExitCode.OK if good else ExitCode.FAILED
