# SPDX-License-Identifier: BSD-3-Clause
"""Hands the metrics of a visit-detector to the publisher: one file, beside the spool."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ppdaemon.clock import TAI_MINUS_UTC_S
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.export.manifest import read_manifest
from ppdaemon.publish.config import Publication
from ppdaemon.publish.messages import BUNDLES, Bundle

__all__ = ("BUNDLE_STORAGE", "hand_to_publisher")

_LOG = logging.getLogger(__name__)

BUNDLE_STORAGE = "MetricMeasurementBundle"
"""Storage class of metrics; its files are JSON."""


def hand_to_publisher(spool: Path, publish: Sequence[Publication], folder: Path, tai: float) -> None:
    """Write those metrics of a spool to a folder that are published; without any, no file is written.

    An error is logged: metrics are less than the outputs of a visit.
    """
    if not publish:
        return
    found = []
    try:
        for file in read_manifest(spool).files:
            for ref in file.refs:
                kind = ref.datasetType
                if kind.storageClass != BUNDLE_STORAGE or not any(
                    each.includes(kind.name) for each in publish
                ):
                    continue
                found.append(
                    Bundle(
                        id=ref.id,
                        run=ref.run,
                        dataset_type=kind.name,
                        data_id=ref.dataId.dataId,
                        utc=tai - TAI_MINUS_UTC_S,
                        content=json.loads((spool / file.name).read_text()),
                    )
                )
        if found:
            partial = folder / f"{spool.name}.part"
            partial.write_bytes(BUNDLES.dump_json(tuple(found)))
            partial.rename(folder / f"{spool.name}.json")
    except (OSError, ValueError) as error:
        _LOG.warning("the metrics of %s are not published: %s", spool.name, describe(error))
