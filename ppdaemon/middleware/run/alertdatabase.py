# SPDX-License-Identifier: BSD-3-Clause
"""Whether a failure behind a point of no return has left anything: the alert database is asked."""

import logging
from collections.abc import Collection, Iterable

from ppdaemon.config import EngineConfig
from ppdaemon.middleware.butler.failures import describe
from ppdaemon.middleware.pipelines.graph import LoadedPipeline, labels_named

__all__ = ("has_nothing",)

_LOG = logging.getLogger(__name__)


def has_nothing(
    config: EngineConfig,
    instrument: str,
    detector: int,
    visits: Iterable[int],
    pipeline: LoadedPipeline,
    passed: Collection[str],
) -> bool:
    """Find out whether nothing permanent is left of a visit-detector, so that it can be tried again.

    Parameters
    ----------
    config : `~ppdaemon.config.EngineConfig`
        Tells the database, and which tasks write nowhere else.
    instrument : `str`
        Short name.
    detector : `int`
        Id of the detector.
    visits : `~collections.abc.Iterable` [`int`]
        Ids of its visits.
    pipeline : `~ppdaemon.middleware.pipelines.graph.LoadedPipeline`
        What was run.
    passed : `~collections.abc.Collection` [`str`]
        Labels of tasks whose point of no return was passed.

    Returns
    -------
    nothing : `bool`
        True only if the database has answered so, and no task has started
        that writes something permanent elsewhere, such as alerts.
    """
    url = config.apdb.get(instrument)
    asked = list(visits)
    if url is None or not asked or not set(passed) <= labels_named(pipeline.graph, config.apdb_tasks):
        return False
    from lsst.dax.apdb import Apdb  # only where a database is configured

    try:
        apdb = Apdb.from_uri(url)
        return not any(apdb.containsVisitDetector(visit=visit, detector=detector) for visit in asked)
    except Exception as error:  # each kind of database has errors of its own
        _LOG.warning("%s does not tell what it has of the visit: %s", url, describe(error))
        return False
