# SPDX-License-Identifier: BSD-3-Clause
"""Commands and files that process visit-detectors again by day: lines for ``pipetask``, submit files for
``bps``.
"""

import csv
import io
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ppdaemon.catchup import inputs_of
from ppdaemon.config import NodeConfig
from ppdaemon.errors import ConfigError
from ppdaemon.pipelinenames import pipeline_name
from ppdaemon.reports import VisitRow
from ppdaemon.retries import again
from ppdaemon.yamlfile import read_key

__all__ = ("CatchupUnit", "bps_file", "data_query", "failed_csv", "pipetask_command", "units_of")

COLUMNS = (
    "instrument",
    "group",
    "detector",
    "attempt",
    "outcome",
    "again",
    "pipeline",
    "exposures",
    "reason",
)


@dataclass(frozen=True, slots=True)
class CatchupUnit:
    """What one command or one submit file processes: a pipeline on visits of a day."""

    instrument: str
    chain: str
    """Chain of the day's outputs."""
    pipeline: str
    """Path of the pipeline file, with labels."""
    run: str
    """Output run."""
    exposures: tuple[tuple[int, int], ...]
    """Exposures and their detectors."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Configuration of its tasks, by ``label:field``."""

    @property
    def name(self) -> str:
        """Name for files, such as ``LSSTCam-2026-11-22-ApPipe`` (`str`)."""
        day = self.chain.rpartition("output-")[2]
        return f"{self.instrument}-{day}-{pipeline_name(self.pipeline)}"


def units_of(found: Iterable[tuple[str, str, str, str, int, Sequence[int]]]) -> list[CatchupUnit]:
    """Return one unit for each day and pipeline, of tuples of instrument, chain, pipeline, run, detector and
    exposures.
    """
    units: dict[tuple[str, str, str, str], set[tuple[int, int]]] = {}
    for *key, detector, exposures in found:
        units.setdefault((key[0], key[1], key[2], key[3]), set()).update(
            (each, detector) for each in exposures
        )
    return [CatchupUnit(*key, tuple(sorted(pairs))) for key, pairs in sorted(units.items()) if pairs]


def failed_csv(rows: Iterable[VisitRow]) -> str:
    """Return failed visit-detectors as CSV with a line of names."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = row.model_dump(mode="json") | {
            "again": again(row),
            "exposures": " ".join(map(str, row.exposures)),
        }
        writer.writerow([values[name] for name in COLUMNS])
    return file.getvalue()


def data_query(unit: CatchupUnit, skymap: str | None) -> str:
    """Return the query for exposures and detectors. A visit is not named: it is what the exposures are in."""
    detectors: dict[int, set[int]] = {}
    for exposure, detector in unit.exposures:
        detectors.setdefault(exposure, set()).add(detector)
    exposures: dict[str, list[int]] = {}
    for exposure, ids in detectors.items():
        exposures.setdefault(_numbers(ids), []).append(exposure)
    parts = [
        f"(exposure IN ({', '.join(map(str, those))}) AND detector IN ({ids}))"
        for ids, those in exposures.items()
    ]
    sky = "" if skymap is None else f" AND skymap='{skymap}'"
    return f"instrument='{unit.instrument}'{sky} AND ({' OR '.join(parts)})"


def _numbers(numbers: Iterable[int]) -> str:
    """Format numbers for a query, ranges as ``0..8``."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}..{last}" if first < last else str(first) for first, last in runs)


def pipetask_command(unit: CatchupUnit, config: NodeConfig, processes: int) -> list[str]:
    """Return the ``pipetask`` command of a unit."""
    assert config.butler is not None
    # Without the records of datastores a raw whose file is gone is a success without work.
    flags = ["--register-dataset-types", "--qgraph-datastore-records"]
    options = ["--output-run", unit.run, *flags, "-j", str(processes)]
    return [
        *("pipetask", "--long-log", "run", "-b", config.butler.central, "-p", unit.pipeline),
        *("-i", inputs_of(unit.chain)),
        *options,
        *_graph_options(unit),
        *("-d", data_query(unit, config.butler.skymap)),
    ]


def bps_file(
    unit: CatchupUnit, config: NodeConfig, folder: Path, cores: int, *, site: Path | None = None
) -> str:
    """Return the submit file of a unit for ``bps submit``.

    It runs with Parsl on this host, or as a file for another site says. Everything that is written, except
    the outputs, is below ``folder``. Raises `~ppdaemon.errors.ConfigError` if that file
    cannot be read.
    """
    assert config.butler is not None
    settings: dict[str, Any] = {
        "pipelineYaml": unit.pipeline,
        "project": "ppdaemon",
        "campaign": unit.name,
        "payload": {
            "payloadName": unit.name,
            "butlerConfig": config.butler.central,
            "inCollection": inputs_of(unit.chain),
            "outputRun": unit.run,
            "dataQuery": data_query(unit, config.butler.skymap),
        },
        # The run is a member of the day's chain already.
        "pipetaskOutput": "",
        "extraQgraphOptions": shlex.join(_graph_options(unit)),
        "submitPath": f"{folder}/submit/{unit.name}/{{timestamp}}",
        "defaultPreCmdOpts": "--long-log --log-level=INFO",
        "numberOfRetries": 0,  # a task that failed late may have written alerts
        # 16 by default, of which each imports the middleware again.
        "finalJob": {"requestCpus": 1, "updateOutputChain": ""},
    }
    if site is None:
        settings["wmsServiceClass"] = "lsst.ctrl.bps.parsl.ParslService"
        settings["computeSite"] = "local"
        local = {"class": "lsst.ctrl.bps.parsl.sites.Local", "cores": cores, "retries": 0}
        settings["site"] = {"local": local | {"run_dir": f"{folder}/parsl"}}
    else:
        settings = {"includeConfigs": [str(site)], **settings}
        # Parsl repeats a failed job once, whatever `numberOfRetries` is. The name may be in a file that is
        # included there: then the setting stays with who has written it.
        if name := read_key(site, ("computeSite",), os.environ, default=""):
            settings["site"] = {name: {"retries": 0}}
    head = (
        f"# bps submit THIS-FILE, after: ppctl catchup prepare\n# {len(unit.exposures)} exposure-detectors\n"
    )
    return head + yaml.safe_dump(settings, sort_keys=False, width=100)


def _graph_options(unit: CatchupUnit) -> list[str]:
    """Return the options that build the graph: what has succeeded in this run is not repeated."""
    return [
        *("--extend-run", "--clobber-outputs"),
        *(part for pair in _overrides(unit.overrides) for part in ("-c", pair)),
    ]


def _overrides(overrides: Mapping[str, Any]) -> Iterable[str]:
    for key, value in overrides.items():
        text = repr(value)  # both parse it as an expression of Python
        if set(text) & set("{}$"):
            problem = f"{key}: {text} cannot be passed to bps by an option"
            raise ConfigError([f"pipelines.overrides: {problem}; write it into the pipeline file"])
        yield f"{key}={text}"
