# SPDX-License-Identifier: BSD-3-Clause
"""Models of the output of ``ppdaemon plan``, which are also its JSON.

`ppdaemon.selection` evaluates the rules, `ppdaemon.plan.planner` queries the central repo.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.config import NodeConfig
from ppdaemon.detectorlist import parse_detector_list, ranges
from ppdaemon.errors import BadMessage, PPDaemonError
from ppdaemon.pointing import BeginField
from ppdaemon.selection import Rule, TargetPositions
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
    "find_fallbacks",
    "requested_detectors",
)

SCHEMA = 1
"""Version of the JSON; incremented when the meaning of a field changes."""

type Degrees = tuple[float, float]
"""ICRS right ascension and declination, degrees."""


class VisitIgnored(PPDaemonError):
    """The visit is ignored by every node, so there is nothing to plan."""

    exit_code = ExitCode.FAILED


class RuleTried(Model):
    """One rule, evaluated for a visit-detector."""

    number: int
    """Position in the list of rules, from 1."""
    conditions: str
    """The conditions as text; empty if the rule matches every visit."""
    unmet: tuple[str, ...]
    """Conditions that do not hold, each with the actual value; empty if the rule matches."""
    pipelines: tuple[str, ...]
    """Files of the rule, in order of preference; empty if it ignores the visit."""


class Choice(Model):
    """Result of one list of rules."""

    tried: tuple[RuleTried, ...]
    """Evaluated rules in order; the last one is the rule that matched, if any did."""
    pipelines: tuple[str, ...] | None
    """Files in order of preference; `None` if no rule matched."""


class PlanOrder(Model):
    """Input of the planner; complete, so that the planner reads no file."""

    config_path: Path
    config: NodeConfig
    visit: NextVisit
    now_tai: float
    """Used as the time of an event that has no time, TAI seconds since 1970."""
    detectors: Annotated[tuple[int, ...], pydantic.Field(min_length=1)]


class FootprintPlan(Model):
    """Footprint of a detector on the sky, ICRS degrees."""

    center: Degrees
    """Middle of the detector."""
    corners: tuple[Degrees, ...]
    """Corners of the detector."""
    padded: tuple[Degrees, ...]
    """Corners of the region that preload searches."""
    padding_arcsec: float
    """Distance between the two outlines."""


class PipelinePlan(Model):
    """One of the selected pipelines."""

    part: Literal["preprocessing", "main"]
    """The list of rules that selected it."""
    name: str
    """Its name: that of the file without its suffix."""
    path: str
    """Its file."""
    state: Literal["first", "fallback", "dropped"]
    """``first``: its graph is built first; ``fallback``: built if the graphs of the pipelines
    before it cannot be built; ``dropped``: not used."""
    why: str = ""
    """Reason if it is dropped."""
    run: str | None = None
    """Output run; `None` if it is dropped."""


class QueryPlan(Model):
    """One query for the datasets of one type."""

    dataset_type: str
    dimensions: tuple[str, ...]
    """Dimensions of the dataset type."""
    calibration: bool
    """Whether it is selected by its validity range."""
    datasets: int
    """Number of datasets found."""
    size_bytes: int
    """Sum over all files, bytes."""
    query_ms: float
    """Duration of the query, ms."""
    read_by: tuple[str, ...]
    """Names of the pipelines that have it as an input."""
    preloaded: bool
    """Whether a usable pipeline reads it; otherwise its datasets are not copied."""


class Validity(Model):
    """Validity range of a calibration in a collection, TAI."""

    collection: str
    """The calibration collection."""
    begin: str | None
    """`None` means unbounded."""
    end: str | None
    """`None` means unbounded."""


class DatasetPlan(Model):
    """One dataset that would be preloaded."""

    dataset_type: str
    id: str
    """Its UUID in the central repo."""
    data_id: Mapping[str, int | str]
    """Its data ID, by dimension."""
    run: str
    """The run that it is in."""
    file: str
    """URI of its file, which may be an archive with other datasets."""
    size_bytes: int
    """Size of that file."""
    validity: tuple[Validity, ...] = ()
    """Validity ranges, if it is a calibration."""
    region: tuple[Degrees, ...] | None = None
    """Corners of its patch or shard; `None` if its dimensions are not spatial."""


def distinct_bytes(datasets: Iterable[DatasetPlan]) -> int:
    """Return the size of the files of datasets, each once."""
    return sum({each.file: each.size_bytes for each in datasets}.values())


class MissingPlan(Model):
    """An input of a pipeline of which the central repo has no dataset for this visit."""

    dataset_type: str
    pipeline: str
    """Name of the pipeline."""
    required: bool
    """Whether the pipeline cannot run without it."""
    sought: str
    """The query: data ID, collections and time."""


class DetectorPlan(Model):
    """Plan of one detector."""

    detector: int
    name: str | None
    """Name in the focal-plane table, such as ``R22_S11``."""
    outcome: Literal["would_run", "ignored", "no_pipeline"]
    """What would happen to it."""
    reason: str = ""
    """Reason if no pipeline would run."""
    footprint: FootprintPlan | None
    """Its footprint; `None` if the pointing is not known on the sky."""
    preprocessing: Choice
    """The rules of ``pipelines.preprocessing``."""
    main: Choice
    """The rules of ``pipelines.main``."""
    pipelines: tuple[PipelinePlan, ...] = ()
    """The selected pipelines."""
    queries: tuple[QueryPlan, ...] = ()
    """The queries, one for each dataset type."""
    datasets: tuple[DatasetPlan, ...] = ()
    """Datasets to preload."""
    missing: tuple[MissingPlan, ...] = ()
    """Inputs without a dataset."""
    phases_ms: Mapping[str, float] = {}
    """Duration of each step of planning, ms."""
    notes: tuple[str, ...] = ()
    """Warnings that a worker would log."""

    @property
    def size_bytes(self) -> int:
        """Size of all files to preload, bytes (`int`)."""
        return distinct_bytes(self.datasets)


class Plan(Model):
    """Plan of one visit on one node."""

    schema_version: int = SCHEMA
    """Version of the output of ``ppdaemon plan --json``."""
    node: str
    config: str
    """Path of the configuration file."""
    central: str
    """URI of the central repo."""
    visit: NextVisit
    """The event, with the names of SAL."""
    begin: str
    """Expected begin of the exposure, TAI."""
    begin_from: BeginField
    """Field of the event from which `begin` is taken."""
    valid_begin: str
    """Begin of the interval in which the exposure may be taken, TAI. Calibrations that are
    valid at any time within it are preloaded."""
    valid_end: str
    """End of that interval, TAI."""
    day_obs: int
    """Observing day of the exposure, ``YYYYMMDD``."""
    boresight: Degrees | None
    """ICRS degrees; `None` if the pointing is not known on the sky."""
    sky_angle_deg: float | None
    """Position angle of focal-plane +Y, north through east."""
    chain: str
    """Chained collection of all outputs of the day."""
    detectors: tuple[DetectorPlan, ...]
    """The detectors that were asked for."""
    distinct_datasets: int
    """Number of datasets of all detectors; a dataset that several detectors share counts once."""
    distinct_bytes: int
    """Their size on the RAM disk, bytes."""
    fallbacks: tuple[str, ...] = ()
    """Rules whose first pipeline is dropped for each of these detectors that they match, with the
    reason."""
    notes: tuple[str, ...] = ()
    """Remarks about the visit itself."""


def choice_of(rules: Sequence[Rule], aim: TargetPositions, detector: int) -> Choice:
    """Select pipelines as `ppdaemon.selection.select` does, with the reason for each rule."""
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


def requested_detectors(
    texts: Iterable[str], instrument: str, served: Mapping[str, Sequence[int]]
) -> tuple[int, ...]:
    """Return the detectors named by texts such as ``12``, ``0-8,12`` or ``all``.

    They are in the order of the texts, each once. `served` has the node's detectors by
    instrument. Raises ValueError if a text is not a list of detectors,
    `~ppdaemon.errors.BadMessage` if the node does not serve one of them, and `VisitIgnored` if
    the visit has no instrument.
    """
    if not instrument:
        raise VisitIgnored("the visit is ignored: it names no instrument, so its script takes no image")
    offered = served.get(instrument)
    if offered is None:
        raise BadMessage(
            f"instrument {instrument!r} is not served: node.instruments has {', '.join(served)}", "instrument"
        )
    chosen: dict[int, None] = {}
    for text in texts:
        chosen.update(dict.fromkeys(offered if text.strip() == "all" else parse_detector_list(text)))
    unserved = [detector for detector in chosen if detector not in offered]
    if unserved:
        raise BadMessage(
            f"{instrument} {ranges(unserved)}: not served, node.instruments has {ranges(offered)}", "detector"
        )
    return tuple(chosen)


def find_fallbacks(detectors: Iterable[DetectorPlan]) -> Iterator[str]:
    """Yield a line for each rule whose first pipeline is dropped for each detector that it matches.

    The usual cause is a collection that the configuration does not name: visits then succeed,
    with another pipeline than the intended one.
    """
    first: dict[tuple[str, int], list[tuple[int, PipelinePlan]]] = {}
    for detector in detectors:
        for part, choice in (("preprocessing", detector.preprocessing), ("main", detector.main)):
            own = [each for each in detector.pipelines if each.part == part]
            if own:
                first.setdefault((part, choice.tried[-1].number), []).append((detector.detector, own[0]))
    for (part, number), pipelines in first.items():
        if all(pipeline.state == "dropped" for _, pipeline in pipelines):
            reasons = dict.fromkeys(pipeline.why for _, pipeline in pipelines)
            numbers = ranges(detector for detector, _ in pipelines)
            yield (
                f"pipelines.{part}, rule {number}: the first pipeline, {pipelines[0][1].name}, is dropped "
                f"for detector {numbers}: {'; '.join(reasons)}"
            )


def exit_code(plan: Plan, *, allow_fallback: bool = False) -> ExitCode:
    """Return ``OK`` if a pipeline would run for each detector and, unless it is allowed, no rule
    falls back for all of them; else ``FAILED``.
    """
    good = all(each.outcome == "would_run" for each in plan.detectors)
    return ExitCode.OK if good and (allow_fallback or not plan.fallbacks) else ExitCode.FAILED
