# SPDX-License-Identifier: BSD-3-Clause
"""Names that tell what made a dataset: deployments, output runs and their chains."""

import hashlib
import importlib.metadata
from collections.abc import Iterable

from lsst.pipe.base.pipeline_graph import PipelineGraph

__all__ = (
    "NO_PIPELINE_RUN",
    "deployment_of",
    "hash_versions",
    "output_chain",
    "output_run",
)

NO_PIPELINE_RUN = "NoPipeline"
"""Stands for the pipeline in the name of the run of what preload made."""

_DIGITS = 8


def hash_versions() -> str:
    """Return a digest of the versions of all installed packages.

    Returns
    -------
    digest : `str`
        Hexadecimal; takes ~0.1 s to make.
    """
    versions = {
        f"{distribution.metadata['Name']} {distribution.version}"
        for distribution in importlib.metadata.distributions()
    }
    return hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()


def deployment_of(versions: str, graphs: Iterable[PipelineGraph]) -> str:
    """Return a short hash of all that decides what pipelines make.

    Parameters
    ----------
    versions : `str`
        From `hash_versions`.
    graphs : `~collections.abc.Iterable` [`lsst.pipe.base.PipelineGraph`]
        The pipelines, configured.

    Returns
    -------
    deployment : `str`
        Eight hexadecimal digits.

    Notes
    -----
    Task classes and complete configurations are hashed, not the text of
    pipeline files, so that imported files and overrides count too.
    """
    digest = hashlib.sha256(versions.encode())
    for graph in graphs:
        for label, task in sorted(graph.tasks.items()):
            digest.update(f"{label}\0{task.task_class_name}\0{task.get_config_str()}\0".encode())
    return digest.hexdigest()[:_DIGITS]


def output_chain(instrument: str, day_obs: int) -> str:
    """Return the name of the chain that finds all outputs of a day.

    Parameters
    ----------
    instrument : `str`
        Short name.
    day_obs : `int`
        ``YYYYMMDD``.

    Returns
    -------
    chain : `str`
        For instance ``LSSTCam/prompt/output-2026-11-22``.
    """
    digits = f"{day_obs:08d}"
    return f"{instrument}/prompt/output-{digits[:4]}-{digits[4:6]}-{digits[6:]}"


def output_run(instrument: str, day_obs: int, pipeline: str, deployment: str) -> str:
    """Return the name of an output run.

    Parameters
    ----------
    instrument : `str`
        Short name.
    day_obs : `int`
        ``YYYYMMDD`` of the exposure.
    pipeline : `str`
        Name of the pipeline, or `NO_PIPELINE_RUN`.
    deployment : `str`
        From `deployment_of`, or configured.

    Returns
    -------
    run : `str`
        For instance ``LSSTCam/prompt/output-2026-11-22/ApPipe/0a1b2c3d``.
    """
    return f"{output_chain(instrument, day_obs)}/{pipeline}/{deployment}"
