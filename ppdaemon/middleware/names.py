# SPDX-License-Identifier: BSD-3-Clause
"""Resolves the names in a configuration: of tasks, dataset types, classes, collections, databases.

What does not exist is an error or a warning. What cannot be queried now is reported as unavailable,
so that it is resolved later.
"""

import importlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lsst.daf.butler import Butler, ButlerRepoIndex, DimensionUniverse
from lsst.daf.butler import ButlerConfig as RepoConfig
from lsst.pipe.base import Instrument
from lsst.pipe.base.pipeline_graph import TaskNode

from ppdaemon.clock import Clock
from ppdaemon.config import ButlerConfig, NodeConfig
from ppdaemon.config.shadow import NO_CENTRAL, is_same_place
from ppdaemon.errors import ConfigError, VisitFailed
from ppdaemon.messages import NameFinding, Resolving, TaskNamesResolved
from ppdaemon.middleware.butler.central import CentralReader
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.middleware.pipelines.graph import (
    LoadedPipeline,
    UnusablePipeline,
    labels_named,
    load_pipeline,
    targets_of,
)
from ppdaemon.middleware.preload.findings import FOOTPRINT_TYPE, output_types
from ppdaemon.middleware.preload.groupdata import types_of_groups
from ppdaemon.middleware.preload.rulecheck import RuleChecker
from ppdaemon.middleware.raws.obsbase import require_obs_base
from ppdaemon.middleware.run.initoutputs import types_of_runs
from ppdaemon.middleware.run.provenancegraph import provenance_type
from ppdaemon.pipelinenames import PARAMETERS, override_target
from ppdaemon.selection import Rule
from ppdaemon.yamlfile import KeyPath, did_you_mean

__all__ = ("NameResolver",)


class NameResolver:
    """Resolves the names of one configuration. `config` is the Butler part of `node`."""

    def __init__(self, node: NodeConfig, config: ButlerConfig):
        self._node = node
        self._config = config
        self._loaded: dict[str, LoadedPipeline] = {}
        """Pipelines that can be constructed, by path; without overrides if those are wrong."""
        self._unusable: dict[str, str] = {}
        """Why the others cannot be."""
        self._unparsed: list[str] = []
        """Those of them of which not even the labels are known."""
        self._away: set[str] = set()
        """Those of them that may be constructed later: a file cannot be read now."""
        self._overridden: set[str] = set()
        """Pipelines that cannot be constructed because of overrides."""
        self._labels: set[str] = set()
        """Labels of all tasks, also of pipelines that cannot be constructed."""

    def findings(self) -> Iterator[Resolving | NameFinding | TaskNamesResolved]:
        """Yield all findings; what needs a database or another host's files comes last."""
        yield from self._instrument_classes()
        yield Resolving(what="the pipelines")
        yield from self._pipelines()
        yield from self._task_names()
        if self._node.shadow.enabled:
            yield from self._not_replaced()
        yield TaskNamesResolved()
        yield from self._export_types()
        for instrument, uri in self._node.engine.apdb.items():
            yield Resolving(what=f"the alert database {uri}")
            yield from self._alert_database(instrument, uri)
        yield Resolving(what=f"the central repo {self._config.source}")
        yield from self._central_repo()

    # --- classes -----------------------------------------------------------

    def _instrument_classes(self) -> Iterator[NameFinding]:
        for name, full_name in self._config.instrument_class.items():
            if problem := _instrument_problem(name, full_name):
                yield _error(("butler", "instrument_class", name), problem)
        try:
            require_obs_base(self._config, self._node.node.instruments)
        except ConfigError as error:
            yield _error(("butler", "ingest"), str(error).removeprefix("butler.ingest: "))

    # --- pipelines ---------------------------------------------------------

    def _rules(self) -> Iterator[tuple[KeyPath, Rule]]:
        pipelines = self._node.pipelines
        for part, rules in (("preprocessing", pipelines.preprocessing), ("main", pipelines.main)):
            for number, rule in enumerate(rules):
                yield ("pipelines", part, number), rule

    def _pipelines(self) -> Iterator[NameFinding]:
        overrides = self._node.pipelines.overrides
        wrong: dict[str, str] = {}
        for path in dict.fromkeys(path for _, rule in self._rules() for path in rule.pipelines):
            try:
                self._loaded[path] = load_pipeline(path, overrides)
            except UnusablePipeline as error:
                wrong |= self._load_without_overrides(path, str(error))
        targets = set().union(*(pipeline.targets for pipeline in self._loaded.values()))
        for path in self._unusable:
            try:
                targets |= targets_of(path)
            except UnusablePipeline:
                self._unparsed.append(path)
        self._labels = {target for target in targets if target == target.partition(":")[0]}
        for key in overrides:
            target = override_target(key)
            if key in wrong:
                yield _error(("pipelines", "overrides", key), wrong[key])
            elif target not in targets:
                what = "parameter" if target == key else "task"
                name = target.partition(":")[2] or target
                hint = did_you_mean(target, targets)
                text = f"no configured pipeline has a {what} {name}{hint}"
                yield self._no_such_name(("pipelines", "overrides", key), text, self._unparsed)
        for key_path, rule in self._rules():
            for number, path in enumerate(rule.pipelines):
                # The first one of a rule is reported with the rule.
                if number > 0 and path in self._unusable:
                    yield _warning((*key_path, "pipelines", number), self._unusable[path])

    def _load_without_overrides(self, path: str, reason: str) -> dict[str, str]:
        """Load a pipeline that cannot be constructed; return which overrides are at fault, and why."""
        overrides = self._node.pipelines.overrides
        try:
            pipeline = self._loaded[path] = load_pipeline(path, {})
        except UnusablePipeline as error:
            self._unusable[path] = str(error)
            if _may_be_back(error):
                self._away.add(path)
            return {}
        wrong = {}
        for key, value in overrides.items():
            label, _, field = key.partition(":")
            try:
                load_pipeline(path, {key: value})
            except UnusablePipeline as error:
                wrong[key] = describe(error.__cause__ or error)
                if label != PARAMETERS:
                    config: Any = pipeline.graph.tasks[label].config
                    wrong[key] += did_you_mean(field.partition(".")[0], list(config.keys()))
        self._overridden.add(path)
        # Each is right alone and they are wrong together: none of them can be named.
        return wrong or dict.fromkeys(overrides, reason)

    def _no_such_name(self, key: KeyPath, text: str, unknown: Collection[str]) -> NameFinding:
        """Return an error; or, if pipelines of unknown content may have the name, a warning, or that it
        could not be resolved now.
        """
        if not unknown:
            return _error(key, text)
        away = [path for path in unknown if path in self._away]
        path = next(iter(away or unknown))
        text += f", unless it is in a pipeline that cannot be used: {self._unusable[path]}"
        # A warning is not resolved again: a pipeline that is wrong does not change by itself.
        return NameFinding(level="unavailable" if away else "warning", key=key, text=text)

    def _task_names(self) -> Iterator[NameFinding]:
        graphs = [pipeline.graph for pipeline in self._loaded.values()]
        classes = {task.task_class_name for graph in graphs for task in graph.tasks.values()}
        for part, danger in (
            ("no_return", "its results could be written twice"),
            ("apdb_tasks", "the alert database would not be queried"),
        ):
            for number, name in enumerate(getattr(self._node.engine, part)):
                if name in self._labels or any(labels_named(graph, [name]) for graph in graphs):
                    continue
                hint = did_you_mean(name, classes if "." in name else self._labels)
                text = f"no configured pipeline has a task {name}: {danger}{hint}"
                # The classes of tasks are known only of a pipeline that can be constructed.
                unknown = self._unusable if "." in name else self._unparsed
                yield self._no_such_name(("engine", part, number), text, unknown)

    def _not_replaced(self) -> Iterator[NameFinding]:
        """Find tasks that would write in shadow mode where those of the present service write."""
        shadow, overrides = self._node.shadow, self._node.pipelines.overrides
        others = {name: value for name, value in overrides.items() if name not in shadow.overrides}
        texts = [f"what its tasks write cannot be checked: {reason}" for reason in self._unusable.values()]
        for path in sorted(self._loaded.keys() - self._overridden):
            graph = self._loaded[path].graph
            permanent = labels_named(graph, self._node.engine.no_return)
            try:
                before: Mapping[str, TaskNode] = load_pipeline(path, others).graph.tasks
            except UnusablePipeline:  # without the overrides a setting is missing
                before = {}
            for label, task in graph.tasks.items():
                fields = _fields_of(task)
                if label in before:
                    texts += _unchanged(label, fields, _fields_of(before[label]), label in permanent)
                texts += [
                    f"the task {label} would send alerts: set {label}:{name}: false, or another server as"
                    " AP_KAFKA_SERVER in shadow.environment"
                    for name in fields
                    if _sends_alerts(name, fields) and not shadow.environment.get("AP_KAFKA_SERVER")
                ]
        yield from (_error(("shadow", "overrides"), text) for text in dict.fromkeys(texts))
        if self._config.central != NO_CENTRAL and (
            problem := _shared(self._config.central, self._config.source)
        ):
            yield _error(("shadow", "central"), problem)

    def _export_types(self) -> Iterator[NameFinding]:
        universe = DimensionUniverse()
        names = {
            each.name
            for each in (*types_of_runs(universe), *types_of_groups(universe), provenance_type(universe))
        }
        names |= {FOOTPRINT_TYPE, *output_types(self._loaded.values())}
        for number, pattern in enumerate(self._node.export.types):
            if not any(re.fullmatch(pattern, name) for name in names):
                text = (
                    f"{pattern!r} matches no output of the configured pipelines{did_you_mean(pattern, names)}"
                )
                yield _warning(("export", "types", number), text)

    # --- databases ---------------------------------------------------------

    def _alert_database(self, instrument: str, uri: str) -> Iterator[NameFinding]:
        key = ("engine", "apdb", instrument)
        try:
            from lsst.dax.apdb import Apdb  # needed only if a database is configured

            Apdb.from_uri(uri)
        except DATABASE_ERRORS as error:
            yield _not_opened(key, uri, error, _absence)
        except Exception as error:  # not YAML, another schema, a driver that is missing
            yield _error(key, f"{uri} cannot be opened: {describe(error)}")

    def _central_repo(self) -> Iterator[NameFinding]:
        key: KeyPath = ("butler", "read" if self._config.read else "central")
        uri = self._config.source
        central = CentralReader(uri)
        try:
            with central.reading(Timings(Clock())) as butler:
                # Sent at once: the repo may become unavailable while the next ones are resolved.
                yield from self._in_central(butler)
                yield from self._dropped_rules(butler)
        except VisitFailed as error:
            yield _not_opened(key, uri, error.__cause__ or error, _repo_absence)
        except Exception as error:  # a driver that is missing, tables of another version
            yield _error(key, f"{uri} cannot be opened: {describe(error)}")
        finally:
            central.close()

    def _dropped_rules(self, butler: Butler) -> Iterator[NameFinding]:
        for each in RuleChecker(self._node, self._config).dropped(butler):
            rule = getattr(self._node.pipelines, each.part)[each.rule]
            if rule.pipelines[0] not in self._overridden:
                text = f"the first pipeline, {each.name}, is dropped for every detector: {each.why}"
                key = ("pipelines", each.part, each.rule)
                yield NameFinding(level="fallback", key=key, text=text)

    def _in_central(self, butler: Butler) -> Iterator[NameFinding]:
        universe = butler.dimensions
        if "group" not in universe.dimensions:
            text = f"{self._config.source} has dimensions of version {universe.version}, 6 is needed"
            yield _error(("butler", "central"), text)
        yield from self._instruments(butler)
        yield from self._collections(butler)
        skymap = self._config.skymap
        if skymap is not None:
            skymaps = {str(each.name) for each in butler.query_dimension_records("skymap", explain=False)}
            if skymap not in skymaps:
                hint = did_you_mean(skymap, skymaps)
                yield _error(("butler", "skymap"), f"the central repo has no sky map {skymap}{hint}")
        filters = {
            str(each.name) for each in butler.query_dimension_records("physical_filter", explain=False)
        }
        for key_path, rule in self._rules():
            for name in rule.filter or ():
                if name not in filters:
                    text = f"the central repo has no physical filter {name}{did_you_mean(name, filters)}"
                    yield _warning((*key_path, "filter"), text)

    def _instruments(self, butler: Butler) -> Iterator[NameFinding]:
        known = {str(each.name) for each in butler.query_dimension_records("instrument", explain=False)}
        for name, detectors in self._node.node.instruments.items():
            key = ("node", "instruments", name)
            if name not in known:
                yield _error(key, f"the central repo has no instrument {name}{did_you_mean(name, known)}")
                continue
            records = butler.query_dimension_records("detector", instrument=name, explain=False)
            if missing := set(detectors) - {int(each.id) for each in records}:
                numbers = ", ".join(map(str, sorted(missing)))
                yield _error(key, f"the central repo has no detector {numbers} of {name}")

    def _collections(self, butler: Butler) -> Iterator[NameFinding]:
        """Find collections that do not exist; of the default ones, some may be missing."""
        known = set(butler.collections.query("*"))
        for part in ("calibs", "inputs"):
            default = ButlerConfig.model_fields[part].default
            for number, pattern in enumerate(getattr(self._config, part)):
                names = {pattern.format(instrument=name) for name in self._node.node.instruments}
                if known.isdisjoint(names) and pattern not in default:
                    name = min(names)
                    text = f"the central repo has no collection {name}{did_you_mean(name, known)}"
                    yield _warning(("butler", part, number), text)


def _fields_of(task: TaskNode) -> dict[str, Any]:
    """Return the values of a task's configuration by their dotted names."""
    config: Any = task.config
    return dict(_flat(config.toDict()))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unchanged(
    label: str, fields: Mapping[str, Any], before: Mapping[str, Any], permanent: bool
) -> Iterator[str]:
    """Yield why a task is not replaced: one with an alert database needs another, others any change."""
    databases = {name: value for name, value in fields.items() if name.startswith("apdb")}
    if databases and all(is_same_place(before.get(name), value) for name, value in databases.items()):
        names = ", ".join(f"{label}:{name}" for name in databases)
        yield (
            f"the task {label} would use the alert database of the present service: set {names}, or the"
            " parameter of the pipeline, to one of its own"
        )
    elif permanent and fields == before:
        yield (
            f"nothing in it changes the task {label}, which would write where that of the present service"
            f" does: set {label}:FIELD or parameters:NAME"
        )


def _sends_alerts(name: str, fields: Mapping[str, Any]) -> bool:
    """Return whether a field is the switch of ``lsst.ap.association`` for the alert stream, and on."""
    is_on = name.rpartition(".")[2] == "doProduceAlerts" and bool(fields[name])
    return is_on and fields.get("doPackageAlerts") is not False


def _shared(own: str, other: str) -> str:
    """Return why a repo may be another one: it has its folder, database or datastore; blank if it is not.

    Names may be aliases, and a replica may have the datastore of the repo that it replicates.
    """
    try:
        shares = not _places_of(own).isdisjoint(_places_of(other))
    except Exception as error:  # a repo that is away, another store's driver that is missing
        return f"whether {own} and {other} are different repos cannot be checked: {describe(error)}"
    return f"{own} is the repo of the present service, or shares its database or files" if shares else ""


def _places_of(uri: str) -> set[tuple[str, ...]]:
    """Return the database and the roots of a repo."""
    config = RepoConfig(uri)
    folder = config.configDir
    root = str(folder) if folder is None or not folder.isLocal else os.path.realpath(folder.ospath)

    def value(*key: str) -> str:
        return str(config[key] or "").replace("<butlerRoot>", root) if key in config else ""

    database = (value("registry", "db"), value("registry", "namespace"))
    return {(root,), database, (value("datastore", "root"),)}


def _instrument_problem(name: str, full_name: str) -> str:
    """Return why a class cannot be the instrument's, or an empty text."""
    module_name, _, class_name = full_name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the module's code may raise anything, or be a script
        return f"{full_name} cannot be imported: {describe(error)}"
    if not hasattr(module, class_name):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        return f"{module_name} has no class {class_name}{did_you_mean(class_name, classes)}"
    try:
        actual = Instrument.from_string(full_name).getName()
    except Exception as error:  # no Instrument, or one whose constructor raises
        return f"{full_name} is not usable as an instrument: {describe(error)}"
    return "" if actual == name else f"{full_name} is the class of {actual}, not of {name}"


def _not_opened(key: KeyPath, uri: str, error: BaseException, absence: Callable[[str], str]) -> NameFinding:
    """Return an error if what a URI or alias names does not exist, else that it is not available now."""
    absent = isinstance(_system_error(error), FileNotFoundError | NotADirectoryError | IsADirectoryError)
    problem = absence(uri) if absent else ""
    if problem:
        return _error(key, problem)
    text = f"{uri} cannot be read now: {describe(error)}"
    return NameFinding(level="unavailable", key=key, text=text)


def _system_error(error: BaseException | None) -> OSError | None:
    """Return the first error of the system that caused another one, if any."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _may_be_back(error: BaseException) -> bool:
    """Return whether a file cannot be read now: its filesystem fails, or its mount may be away."""
    cause = _system_error(error)
    return cause is not None and not (cause.filename and _absence(str(cause.filename)))


def _absence(uri: str, kind: str = "file") -> str:
    """Return why there is no such file, or other kind, at a URI; empty if there is one, or if its mount may
    be away.

    The mount point of a mount that is away is an empty folder, or does not exist.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return ""
    path = Path(parts.path)
    if not path.is_absolute():
        return f"{uri} is no absolute path"
    try:
        if path.is_dir():
            return f"{path} is no {kind}" if any(path.iterdir()) else ""
        if path.exists():
            return ""
        siblings = [each.name for each in path.parent.iterdir()]
    except OSError:
        return ""
    return f"{path} does not exist{did_you_mean(path.name, siblings)}" if siblings else ""


def _repo_absence(uri: str) -> str:
    """Return why there is no repo at a URI or alias; empty as that of `_absence`."""
    if urlsplit(uri).scheme or Path(uri).is_absolute():
        return _absence(uri, "repo")
    aliases = ButlerRepoIndex.get_known_repos()
    if uri in aliases:
        return _absence(str(ButlerRepoIndex.get_repo_uri(uri)), "repo")
    if not aliases and os.environ.get(ButlerRepoIndex.index_env_var):
        return ""  # the index itself cannot be read
    return f"{uri} is no alias, and no absolute path{did_you_mean(uri, aliases)}"


def _error(key: KeyPath, text: str) -> NameFinding:
    return NameFinding(level="error", key=key, text=text)


def _warning(key: KeyPath, text: str) -> NameFinding:
    return NameFinding(level="warning", key=key, text=text)
