# SPDX-License-Identifier: BSD-3-Clause
"""Rich renderables of a plan for the terminal; this module prints nothing."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdaemon.detectorlist import ranges
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.plan import models
from ppdaemon.terminal import duration, new_table, plain, size

__all__ = ("plan_view",)

_OUTCOME_STYLES = {"would_run": "green", "ignored": "yellow", "no_pipeline": "bold red"}
_STATE_STYLES = {"first": "green", "fallback": "cyan", "dropped": "red"}


def plan_view(plan: models.Plan) -> RenderableType:
    """Return a plan as text for 80 columns: one detector in full, several as a table."""
    parts: list[RenderableType] = [_head(plan), Text()]
    if len(plan.detectors) == 1:
        parts += _one(plan.detectors[0], plan.chain)
    else:
        parts += _several(plan)
    notes = dict.fromkeys((*plan.notes, *(note for each in plan.detectors for note in each.notes)))
    parts += _section("Fallbacks", [Text(f"- {plain(each)}", style="bold red") for each in plan.fallbacks])
    parts += _section("Notes", [Text(f"- {plain(note)}") for note in notes])
    return Group(*parts[:-1])


def _section(title: str, lines: Sequence[RenderableType]) -> list[RenderableType]:
    """Return the lines below a title and above a blank line; nothing if there are no lines."""
    return [Text(title, style="bold underline"), *lines, Text()] if lines else []


def _facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


def _head(plan: models.Plan) -> RenderableType:
    visit = plan.visit
    survey = f"  survey {visit.survey}" if visit.survey else ""
    title = Text(plain(f"{visit.instrument} {visit.group}{survey}"), style="bold")
    snaps = (
        f"{visit.nimages} snap{'' if visit.nimages == 1 else 's'}"
        if visit.nimages
        else "number of snaps not announced"
    )
    pointing = "not known on the sky"
    if plan.boresight is not None:
        angle = "rotation not known" if plan.sky_angle_deg is None else f"sky angle {plan.sky_angle_deg:.3f}"
        pointing = f"RA {plan.boresight[0]:.5f}  Dec {plan.boresight[1]:+.5f}  {angle}"
    return Group(
        title,
        _facts(
            (
                ("node", plain(f"{plan.node}, {plan.config}")),
                ("central repo", plain(plan.central)),
                ("exposure", f"{_short(plan.begin)} TAI (by {plan.begin_from}), day_obs {plan.day_obs}"),
                ("calibs for", f"{_short(plan.valid_begin)} to {_short(plan.valid_end)} TAI"),
                ("boresight", pointing),
                ("filters", plain(f"{', '.join(visit.filter_names) or 'any'}; {snaps}")),
                ("outputs", plain(plan.chain)),
            )
        ),
    )


# --- one detector ----------------------------------------------------------


def _one(plan: models.DetectorPlan, chain: str) -> Iterator[RenderableType]:
    yield _outcome(plan)
    yield Text()
    yield from _section("Footprint (ICRS degrees)", _footprint(plan.footprint))
    for name, choice in (("Preprocessing", plan.preprocessing), ("Main", plan.main)):
        yield from _section(f"{name} rules", _rules(choice))
    if plan.pipelines:
        yield from _section("Pipelines", _pipelines(plan, chain))
    if plan.missing:
        yield from _section("Missing", _missing(plan))
    if plan.queries:
        yield from _section("Queries", _queries(plan))
    if plan.datasets:
        yield from _section("Datasets to preload", _datasets(plan))


def _outcome(plan: models.DetectorPlan) -> Text:
    text = Text.assemble((f"Detector {plan.detector}", "bold"), f" {plain(plan.name)}: ")
    if plan.outcome == "would_run":
        first = next(each.name for each in plan.pipelines if each.part == "main" and each.state == "first")
        return text.append(f"would run {plain(first)}", style="bold green")
    if plan.outcome == "no_pipeline":  # the table of pipelines has the reasons
        return text.append("no pipeline could run", style=_OUTCOME_STYLES["no_pipeline"])
    return text.append(f"ignored: {plain(plan.reason)}", style=_OUTCOME_STYLES["ignored"])


def _footprint(found: models.FootprintPlan | None) -> list[RenderableType]:
    if found is None:
        return [Text("none: no spatial dataset is preloaded", style="yellow")]
    table = new_table("", "RA>", "Dec>", f'padded {found.padding_arcsec:g}" RA>', "Dec>")
    table.add_row("center", *_degrees(found.center))
    for number, (corner, wide) in enumerate(zip(found.corners, found.padded, strict=False), 1):
        table.add_row(f"corner {number}", *_degrees(corner), *_degrees(wide))
    return [table]


def _degrees(point: models.Degrees) -> tuple[str, str]:
    return f"{point[0]:.6f}", f"{point[1]:+.6f}"


def _rules(choice: models.Choice) -> list[RenderableType]:
    if not choice.tried:
        return [Text("none", style="dim")]
    table = new_table("rule>", "conditions~", "result~")
    for rule in choice.tried:
        table.add_row(str(rule.number), plain(rule.conditions) or "(every visit)", _why(rule))
    if choice.pipelines is None:
        table.add_row("", "", Text("no rule matches", style="yellow"))
    return [table]


def _why(rule: models.RuleTried) -> Text:
    if rule.unmet:
        return Text(f"no: {plain('; '.join(rule.unmet))}", style="dim")
    names = ", ".join(pipeline_name(path) for path in rule.pipelines)
    return Text(f"matches: {plain(names) or 'ignore the visit'}", style="green")


def _pipelines(plan: models.DetectorPlan, chain: str) -> list[RenderableType]:
    table = new_table("part", "pipeline", "state", "output run or reason~")
    for each in plan.pipelines:
        state = Text(each.state, style=_STATE_STYLES[each.state])
        run = each.why if each.run is None else f"(outputs)/{each.run.removeprefix(f'{chain}/')}"
        table.add_row(each.part, plain(each.name), state, plain(run))
    return [table]


def _missing(plan: models.DetectorPlan) -> list[RenderableType]:
    table = new_table("type", "pipeline", "is", "query~")
    for each in plan.missing:
        kind = Text("required", style="red") if each.required else Text("optional", style="yellow")
        table.add_row(plain(each.dataset_type), plain(each.pipeline), kind, plain(each.sought))
    return [table]


def _queries(plan: models.DetectorPlan) -> list[RenderableType]:
    table = new_table("type", "found>", "size>", "query>", "read by~")
    for each in plan.queries:
        style = "" if each.preloaded else "dim"
        table.add_row(
            plain(each.dataset_type),
            str(each.datasets),
            size(each.size_bytes),
            duration(each.query_ms / 1000.0),
            plain(", ".join(each.read_by)) + ("" if each.preloaded else " (not preloaded)"),
            style=style,
        )
    total_s = sum(each.query_ms for each in plan.queries) / 1000.0
    table.add_section()
    table.add_row(
        "to preload", str(len(plan.datasets)), size(plan.size_bytes), duration(total_s), style="bold"
    )
    phases = ", ".join(
        f"{name.removesuffix('_ms')} {duration(ms / 1000.0)}" for name, ms in plan.phases_ms.items()
    )
    return [table, Text(f"planning took: {phases}", style="dim")]


def _datasets(plan: models.DetectorPlan) -> list[RenderableType]:
    table = new_table("type", "data ID~", "size>", "run~")
    for each in plan.datasets:
        table.add_row(
            plain(each.dataset_type), plain(_data_id(each)), size(each.size_bytes), plain(_where(each))
        )
    return [table]


def _data_id(dataset: models.DatasetPlan) -> str:
    """Format a data ID without the dimensions that all datasets have in common."""
    shown = {k: value for k, value in dataset.data_id.items() if k not in ("instrument", "skymap")}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _where(dataset: models.DatasetPlan) -> str:
    return "; ".join((dataset.run, *(f"valid {_span(each)}" for each in dataset.validity)))


def _span(validity: models.Validity) -> str:
    begin, end = (_short(each) if each else "..." for each in (validity.begin, validity.end))
    return f"{begin} to {end}"


def _short(instant: str) -> str:
    """Remove trailing zeros of a time."""
    return instant.removesuffix(".000").removesuffix("T00:00:00")


# --- several detectors -----------------------------------------------------


def _several(plan: models.Plan) -> Iterator[RenderableType]:
    table = new_table("det>", "name", "outcome", "pipeline", "datasets>", "size>", "queries>", "reason~")
    for each in plan.detectors:
        table.add_row(*_row(each))
    yield table
    yield Text()
    yield Text(
        f"all detectors: {plan.distinct_datasets} distinct datasets, "
        f"{size(plan.distinct_bytes)} on the RAM disk"
    )
    yield Text()
    yield from _section("Rules", [_chosen(plan)])
    yield from _section("Types", [_types(plan)])
    yield Text(
        "a plan of one detector shows its rules, data IDs and runs; --json has everything", style="dim"
    )
    yield Text()


def _row(plan: models.DetectorPlan) -> Iterator[str | Text]:
    first = next((p.name for p in plan.pipelines if p.part == "main" and p.state == "first"), "")
    required = {each.dataset_type for each in plan.missing if each.required}
    yield str(plan.detector)
    yield plain(plan.name)
    yield Text(plan.outcome.replace("_", " "), style=_OUTCOME_STYLES[plan.outcome])
    yield plain(first)
    yield str(len(plan.datasets))
    yield size(plan.size_bytes)
    yield duration(sum(each.query_ms for each in plan.queries) / 1000.0)
    yield plain(plan.reason if plan.outcome == "ignored" else ", ".join(sorted(required)))


def _chosen(plan: models.Plan) -> Table:
    """Return a table of the detectors that each rule matched."""
    chosen: dict[tuple[str, int, str], list[int]] = {}
    for each in plan.detectors:
        for part, choice in (("preprocessing", each.preprocessing), ("main", each.main)):
            number = choice.tried[-1].number if choice.pipelines is not None else 0
            names = ", ".join(pipeline_name(path) for path in choice.pipelines or ())
            chosen.setdefault((part, number, names), []).append(each.detector)
    table = new_table("part", "rule>", "detectors~", "pipelines~")
    for (part, number, names), detectors in sorted(chosen.items()):
        table.add_row(part, str(number or "none"), ranges(detectors), plain(names) or "nothing")
    return table


def _types(plan: models.Plan) -> Table:
    """Return a table of the datasets of all detectors by type."""
    distinct: dict[str, dict[str, models.DatasetPlan]] = {}
    for each in plan.detectors:
        for dataset in each.datasets:
            distinct.setdefault(dataset.dataset_type, {})[dataset.id] = dataset
    table = new_table("type", "distinct>", "size>")
    for name, datasets in sorted(distinct.items()):
        table.add_row(plain(name), str(len(datasets)), size(models.distinct_bytes(datasets.values())))
    return table
