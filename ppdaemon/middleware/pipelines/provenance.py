# SPDX-License-Identifier: BSD-3-Clause
"""Names that identify what produced a dataset: deployments, output runs and their chains."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable

from lsst.utils.packages import Packages, getEnvironmentPackages

from ppdaemon.config import NodeConfig
from ppdaemon.middleware.pipelines.graph import LoadedPipeline
from ppdaemon.pipelinenames import output_chain

__all__ = ("NO_PIPELINE_RUN", "deployment_hash", "hash_versions", "output_run", "system_packages")

NO_PIPELINE_RUN = "NoPipeline"
"""Replaces the pipeline in the name of the run of footprints and metrics."""

_DIGITS = 8
"""Of the hash, in the name of each run: short, and enough to distinguish a site's deployments."""


def hash_versions() -> str:
    """Return a hexadecimal hash of the versions of all installed packages, also those set up by EUPS.

    Takes about 0.1 s.
    """
    versions = {
        f"{distribution.metadata['Name']} {distribution.version}"
        for distribution in importlib.metadata.distributions()
    }
    if importlib.util.find_spec("eups") is not None:
        setup = getEnvironmentPackages(include_all=True)
        versions |= {f"{name} {version}" for name, version in setup.items()}
    return hashlib.sha256("\n".join(sorted(versions)).encode()).hexdigest()


def system_packages() -> Packages:
    """Return the versions of all imported packages; takes 0.3 s, unless no package was imported since."""
    packages = {
        name
        for name in tuple(sys.modules)
        # Those within a namespace, such as ``lsst``, are packages with versions of their own.
        if not (parent := name.rpartition(".")[0])
        or ("." not in parent and getattr(sys.modules.get(parent), "__file__", None) is None)
    }
    return _packages(frozenset(packages))


@functools.lru_cache(1)
def _packages(_imported: frozenset[str]) -> Packages:
    return Packages.fromSystem()


def deployment_hash(
    config: NodeConfig, instrument: str, versions: str, pipelines: Iterable[LoadedPipeline]
) -> str:
    """Return eight hexadecimal digits of a hash of all that decides the outputs of pipelines.

    Task classes and complete configurations are hashed, not the text of
    pipeline files, so that imported files and overrides count, too. The node's
    configuration contributes the keys that decide which data pipelines get,
    and nothing that differs between hosts or engines. `versions` is from
    `hash_versions`.
    """
    digest = hashlib.sha256(versions.encode())
    digest.update(json.dumps(_settings(config, instrument), sort_keys=True).encode())
    for pipeline in pipelines:
        digest.update(pipeline.fingerprint.encode())
    return digest.hexdigest()[:_DIGITS]


def _settings(config: NodeConfig, instrument: str) -> dict[str, object]:
    assert config.butler is not None  # no pipeline can be loaded without it
    butler = config.butler
    return {
        **butler.model_dump(mode="json", include={"calibs", "inputs", "skymap", "local"}),
        "class": butler.instrument_class.get(instrument),
        "visits": butler.visits.get(instrument),
        "ingest": butler.ingest_of(instrument),
        "padding_arcsec": config.preload.padding_arcsec,
    }


def output_run(
    config: NodeConfig,
    instrument: str,
    versions: str,
    pipelines: Iterable[LoadedPipeline],
    day_obs: int,
    name: str,
) -> str:
    """Return the name of an output run for a pipeline, or for `NO_PIPELINE_RUN`.

    For instance ``LSSTCam/prompt/output-2026-11-22/ApPipe/0a1b2c3d``. The last
    part is `deployment_hash`, unless another is configured.
    """
    assert config.butler is not None  # no pipeline can be loaded without it
    deployment = config.butler.deployment or deployment_hash(config, instrument, versions, pipelines)
    return f"{output_chain(instrument, day_obs)}/{name}/{deployment}"
