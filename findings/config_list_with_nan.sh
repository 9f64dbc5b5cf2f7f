#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A configuration with NaN or infinity in a list or dictionary is saved and can never be read.
#
# Package:  lsst-pex-config 30.2026.4300, lsst-pipe-base 30.2026.4300, lsst-daf-butler 30.2026.4300, with
#           Python 3.13. Date: 2026-11-30.
# Where:    ListField or DictField of floats: bins or limits that are open at an end, [-inf, 17, 24, inf].
#           Config.save and load; the dataset TASK_config that init_output_run writes into a run.
# Expected: what was saved is loaded, as a Field of one NaN or infinity is, for which the text that is
#           written is float('nan'); or the value is refused when it is set, or when it is saved.
# Seen:     the elements are written by repr: load ends in NameError "name 'inf' is not defined".
#           validate, save and the first init_output_run succeed, and the run is processed. A second process
#           in the same run (--extend-run, another host, a restart) fails, as Butler.get of the
#           configuration does. What the run was made with cannot be read except by hand.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-pex-config==30.2026.4300 lsst-pipe-base==30.2026.4300 lsst-daf-butler==30.2026.4300
cat > "$work/binned.py" <<'PY'
import lsst.pex.config as pexConfig
from lsst.pipe.base import PipelineTask, PipelineTaskConfig, PipelineTaskConnections, Struct, connectionTypes


class BinnedConnections(PipelineTaskConnections, dimensions=("instrument",)):
    counts = connectionTypes.Output(
        name="counts", storageClass="StructuredDataDict", dimensions=("instrument",)
    )


class BinnedConfig(PipelineTaskConfig, pipelineConnections=BinnedConnections):
    limit = pexConfig.Field(doc="Limit.", dtype=float, default=1.0)
    edges = pexConfig.ListField(doc="Edges of bins.", dtype=float, default=[1.0])
    limits = pexConfig.DictField(doc="Limit by band.", keytype=str, itemtype=float, default={})


class BinnedTask(PipelineTask):
    ConfigClass = BinnedConfig
    _DefaultName = "binned"

    def run(self) -> Struct:
        return Struct(counts={})
PY
PYTHONPATH="$work" "$work/venv/bin/python" -W ignore - "$work" <<'PY'
import logging
import math
import sys
from pathlib import Path

from binned import BinnedConfig, BinnedTask
from lsst.daf.butler import Butler
from lsst.pipe.base import PipelineGraph

logging.disable(logging.CRITICAL)
work = Path(sys.argv[1])


def cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return type(error).__name__


def configured(field: str, value: object) -> BinnedConfig:
    config = BinnedConfig()
    setattr(config, field, value)
    config.validate()
    return config


def loaded(field: str, value: object) -> str:
    file = str(work / "config.py")
    configured(field, value).save(file)
    again = BinnedConfig()
    try:
        again.load(file)
    except Exception as error:
        return cause(error)
    return repr(getattr(again, field))


def twice_in_a_run(number: int, field: str, value: object) -> list[str]:
    """Return the outcome of the first and the second process that initialize a run, and of a get."""
    repo = str(work / f"repo{number}")
    Butler.makeRepo(repo)

    def initialize() -> str:
        butler = Butler.from_config(repo, writeable=True, run="run")
        graph = PipelineGraph()
        graph.add_task("binned", BinnedTask, configured(field, value))
        graph.resolve(butler.registry)
        graph.register_dataset_types(butler)
        graph.init_output_run(butler)
        return "initialized"

    def read() -> str:
        return repr(getattr(Butler.from_config(repo, collections="run").get("binned_config"), field))

    outcomes = []
    for step in (initialize, initialize, read):
        try:
            outcomes.append(step())
        except Exception as error:
            outcomes.append(cause(error))
    return outcomes


cases = {
    "field": ("limit", math.inf),
    "list": ("edges", [17.0, math.inf]),
    "dict": ("limits", {"g": math.nan}),
}
seen = {}
for number, (name, (field, value)) in enumerate(cases.items()):
    seen[name] = loaded(field, value), twice_in_a_run(number, field, value)
    print(f"{name} with {value}: loaded {seen[name][0]}; {seen[name][1]}")
unreadable = "NameError", ["initialized", "NameError", "NameError"]
unchanged = seen["field"] == ("inf", ["initialized", "initialized", "inf"])
unchanged &= seen["list"] == seen["dict"] == unreadable
sys.exit(0 if unchanged else 1)
PY
