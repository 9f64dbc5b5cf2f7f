# SPDX-License-Identifier: BSD-3-Clause
"""Reading the central repo: opened on first use, kept, reopened after a failure.

Nothing is ever written there: a SQLite file is opened read-only, so that
neither a journal nor a lock of one reader is in another's way.
"""

import logging
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import sqlalchemy
from lsst.daf.butler import (
    Butler,
    ButlerUserError,
    DatasetType,
    MissingCollectionError,
    MissingDatasetTypeError,
)

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe, is_out_of_space
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.states import Outcome

__all__ = ("CentralReader", "close", "existing_collections", "known_dataset_type")

_LOG = logging.getLogger(__name__)

PAUSE_S = (0.2, 1.0)
"""Between two tries to connect; at random, or all workers would come again together."""


class CentralReader:
    """Reads the central repo on behalf of one worker.

    Parameters
    ----------
    uri : `str`
        Root, configuration file or alias of the central repo.
    patience_s : `float`, optional
        How long to try to connect. A server that restarts, or has as many
        connections as it takes, is asked again: the 205 detectors of a visit
        come all at once, and PostgreSQL's default are 100 connections.
    """

    def __init__(self, uri: str, retry_s: float = 0.0):
        self._uri = uri
        self._retry_s = retry_s
        self._butler: Butler | None = None
        self._engines: set[sqlalchemy.Engine] = set()

    @contextmanager
    def reading(self, timings: Timings) -> Iterator[Butler]:
        """Give the Butler; what fails within ends the visit, not the worker.

        Parameters
        ----------
        timings : `~ppdaemon.middleware.butler.timings.Timings`
            Takes how long connecting took.

        Yields
        ------
        butler : `lsst.daf.butler.Butler`
            Read-only; opened now if it is not yet. It looks up each
            collection once, and anew with the next reading.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``PRELOAD_FAILED``, to be tried again, if the central
            repo cannot be read. A full disk is not its fault.
        """
        try:
            with self._blamed():
                butler = self._connected(timings)
                with butler.registry.caching_context():
                    yield butler
        finally:
            self._disconnect()

    @contextmanager
    def lending(self, timings: Timings) -> Iterator[Butler]:
        """Give the Butler to work that also writes elsewhere.

        Parameters
        ----------
        timings : `~ppdaemon.middleware.butler.timings.Timings`
            Takes how long connecting took.

        Yields
        ------
        butler : `lsst.daf.butler.Butler`
            As of `reading`.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``PRELOAD_FAILED``, to be tried again, if something
            fails and the central repo cannot be read then. If it can, the
            failure is another's, and raised as it is.
        """
        try:
            with self._blamed():
                butler = self._connected(timings)
            try:
                yield butler
            except (*DATABASE_ERRORS, ButlerUserError):
                with self.reading(timings) as butler:
                    known_dataset_type(butler, "raw")
                raise
        finally:
            self._disconnect()

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Hold failures against the central repo."""
        try:
            yield
        except (*DATABASE_ERRORS, ButlerUserError) as error:
            if is_out_of_space(error):
                raise
            self.close()
            raise VisitFailed(
                Outcome.PRELOAD_FAILED,
                f"the central repo {self._uri} cannot be read: {describe(error)}",
                retriable=True,
            ) from error

    def _connected(self, timings: Timings) -> Butler:
        """Connect, if it must be again and again."""
        give_up = timings.clock.mono() + self._retry_s
        with timings.timed("connect"):
            while True:
                try:
                    return self._connect()
                except sqlalchemy.exc.OperationalError as error:
                    self.close()
                    if timings.clock.mono() >= give_up:
                        raise
                    _LOG.info("connecting to the central repo again: %s", describe(error))
                    time.sleep(random.uniform(*PAUSE_S))

    def _connect(self) -> Butler:
        if self._butler is None:
            with _engines_noted(self._engines):
                self._butler = Butler.from_config(self._uri, writeable=False)
        else:
            # Collections and dataset types may be new since.
            self._butler.registry.refresh()
        return self._butler

    def _disconnect(self) -> None:
        """Leave no idle connection at a server: 1700 workers are more than it takes.

        They look for a second and then work for minutes. Connecting anew
        takes a few milliseconds, opening the Butler anew 50.
        """
        for engine in self._engines:
            if engine.dialect.name != "sqlite":
                engine.dispose()

    def close(self) -> None:
        """Disconnect; the next reading connects anew."""
        butler, self._butler = self._butler, None
        self._engines.clear()
        close(butler)


@contextmanager
def _engines_noted(engines: set[sqlalchemy.Engine]) -> Iterator[None]:
    """Note the engines with which a Butler connects; it has no public way to tell."""

    def note(connection: sqlalchemy.Connection) -> None:
        engines.add(connection.engine)

    sqlalchemy.event.listen(sqlalchemy.Engine, "engine_connect", note)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "engine_connect", note)


def close(butler: Butler | None) -> None:
    """Disconnect from the central repo, if anybody is connected, as far as it still answers."""
    if butler is not None:
        try:
            butler.close()
        except DATABASE_ERRORS as error:
            _LOG.debug("closing the central repo: %s", describe(error))


def existing_collections(butler: Butler, names: Iterable[str]) -> tuple[str, ...]:
    """Return those collections that exist, without chains.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        The central repo.
    names : `~collections.abc.Iterable` [`str`]
        Collections in the order of search.

    Returns
    -------
    existing : `tuple` [`str`]
        Chains are replaced by what they hold, and names are not repeated.
    """
    names = list(names)
    with suppress(MissingCollectionError):
        # All at once; if one is missing, those that are not are in the
        # Butler's cache after that, while it is read.
        return tuple(butler.collections.query(names, flatten_chains=True)) if names else ()
    found: dict[str, None] = {}
    for name in names:
        try:
            found.update(dict.fromkeys(butler.collections.query(name, flatten_chains=True)))
        except MissingCollectionError:
            _LOG.debug("no collection %s in the central repo", name)
    return tuple(found)


def known_dataset_type(butler: Butler, name: str) -> DatasetType | None:
    """Return the definition of a dataset type, if the repo has one.

    Parameters
    ----------
    butler : `lsst.daf.butler.Butler`
        Any repo.
    name : `str`
        Name of the dataset type.

    Returns
    -------
    dataset_type : `lsst.daf.butler.DatasetType` or `None`
        Its definition.
    """
    try:
        return butler.get_dataset_type(name)
    except MissingDatasetTypeError:
        return None
