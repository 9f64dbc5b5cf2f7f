# SPDX-License-Identifier: BSD-3-Clause
"""Reads the central repo: opened on first use, reused, reopened after a failure.

Never writes: a SQLite file is opened read-only, so that a reader creates
neither a journal nor a lock that could block others.
"""

import logging
import pickle
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import sqlalchemy
from lsst.daf.butler import (
    Butler,
    ButlerConfig,
    ButlerUserError,
    Config,
    DatasetType,
    DimensionUniverse,
    MissingCollectionError,
    MissingDatasetTypeError,
)
from lsst.resources import ResourcePath

from ppdaemon.errors import ConfigError, VisitFailed
from ppdaemon.middleware.butler.failures import DATABASE_ERRORS, describe, is_out_of_space
from ppdaemon.middleware.butler.timings import Timings
from ppdaemon.states import Outcome

__all__ = (
    "CentralReader",
    "Definitions",
    "ParsedConfig",
    "close",
    "disconnect",
    "existing_collections",
    "known_dataset_type",
    "observed_databases",
    "open_central",
    "own_storage_classes",
    "recorded_engines",
)

_LOG = logging.getLogger(__name__)

_PARSED = "central"
_STEPS = ("do_connect", "after_cursor_execute")
RECONNECT_S = (0.2, 1.0)
"""Seconds between two attempts to connect; random, because workers that failed
together would otherwise reconnect together."""


class Definitions(Protocol):
    """The dimensions and dataset types of a repo, such as a Butler."""

    @property
    def dimensions(self) -> DimensionUniverse:
        """All dimensions."""

    def get_dataset_type(self, name: str) -> DatasetType:
        """Return a definition; raise ``MissingDatasetTypeError`` if there is none."""


@dataclass(frozen=True, slots=True)
class ParsedConfig:
    """A repo's configuration, parsed once for all workers: that takes a third of opening the repo."""

    uri: str
    config: ButlerConfig
    file: ResourcePath
    text: bytes

    @classmethod
    def write(cls, template: Path, uri: str) -> None:
        """Parse a repo's configuration, and write it into the workers' template, unless it depends on other
        files: on the index of the names of repos, or on what it includes.
        """
        file = ButlerConfig(uri).configFile
        if file is not None and "/" in uri and b"include" not in (text := file.read()):
            # Parsed after the text was read: if the file is changed meanwhile, it differs from the text.
            (template / _PARSED).write_bytes(pickle.dumps(cls(uri, ButlerConfig(uri), file, text)))

    @classmethod
    def read(cls, template: Path, uri: str) -> Self | None:
        """Read what `write` has written for a repo; return `None` if it was not, or if the file in the repo
        has changed since.
        """
        with suppress(OSError):
            parsed = pickle.loads((template / _PARSED).read_bytes())
            assert isinstance(parsed, cls)
            if parsed.uri == uri and parsed.file.read() == parsed.text:
                return parsed
        return None


def open_central(uri: str, *, writeable: bool = False) -> Butler:
    """Open the central repo ``butler.central``.

    Raises `~ppdaemon.errors.ConfigError` if its configuration, driver or version does not fit, and one of
    `~ppdaemon.middleware.butler.failures.DATABASE_ERRORS` if it cannot be reached.
    """
    try:
        return Butler.from_config(uri, writeable=writeable)
    except DATABASE_ERRORS:
        raise
    except Exception as error:
        action = "correct its configuration (butler.yaml), or name another repo"
        if isinstance(error, ImportError):
            action = "install this driver, or name another one in its registry.db"
        elif isinstance(error, RuntimeError):  # other tables, or a class that is not there
            action = "use the version of the stack that has made it, or name another repo"
        raise ConfigError([f"butler.central: {uri} cannot be opened: {describe(error)}; {action}"]) from error


def own_storage_classes(uri: str) -> dict[str, Any]:
    """Return the storage classes that a repo's own configuration defines."""
    config = Config(ButlerConfig(uri).configFile)
    return dict(config["storageClasses"].toDict()) if "storageClasses" in config else {}


class CentralReader:
    """Reads the central repo for one worker.

    Connecting is retried for `retry_s` seconds: the 205 detectors of a visit
    connect at once, and PostgreSQL accepts 100 connections by default.
    `template` is that of the workers, which may have the `ParsedConfig`.
    """

    def __init__(self, uri: str, retry_s: float = 0.0, template: Path | None = None):
        self._uri = uri
        self._template = template
        self._retry_s = retry_s
        self._butler: Butler | None = None
        self._engines: set[sqlalchemy.Engine] = set()

    @contextmanager
    def reading(self, timings: Timings) -> Iterator[Butler]:
        """Yield the Butler, read-only; collections are cached until the block ends.

        Database errors within the block raise
        `~ppdaemon.errors.VisitFailed` (``PRELOAD_FAILED``, retriable), so that
        they end the visit and not the worker. A full disk is raised unchanged.
        """
        try:
            with self._failing_visit():
                butler = self._connect_with_retries(timings)
                with butler.registry.caching_context():
                    yield butler
        finally:
            self._disconnect()

    @contextmanager
    def copying(self, timings: Timings) -> Iterator[Butler]:
        """Yield the Butler to code that copies from it into another repo.

        Raises `~ppdaemon.errors.VisitFailed` (``PRELOAD_FAILED``, retriable)
        if that fails and the central repo cannot be read afterwards. If it can
        be read, the other repo is at fault, and its error is raised unchanged.
        """
        try:
            with self._failing_visit():
                butler = self._connect_with_retries(timings)
            try:
                yield butler
            except (*DATABASE_ERRORS, ButlerUserError):
                # A test query: is the central repo at fault?
                with self.reading(timings) as butler:
                    known_dataset_type(butler, "raw")
                raise
        finally:
            self._disconnect()

    @contextmanager
    def _failing_visit(self) -> Iterator[None]:
        """Turn database errors into a failed, retriable visit."""
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

    def _connect_with_retries(self, timings: Timings) -> Butler:
        """Connect; repeat until it succeeds or the time is over."""
        give_up = timings.clock.mono() + self._retry_s
        with timings.timed("connect"):
            while True:
                try:
                    return self._connect()
                except sqlalchemy.exc.OperationalError as error:
                    self.close()
                    if timings.clock.mono() >= give_up:
                        raise
                    _LOG.info("cannot connect to the central repo, retrying: %s", describe(error))
                    time.sleep(random.uniform(*RECONNECT_S))

    def _connect(self) -> Butler:
        if self._butler is None:
            parsed = None if self._template is None else ParsedConfig.read(self._template, self._uri)
            with recorded_engines(self._engines):
                config = self._uri if parsed is None else parsed.config
                self._butler = Butler.from_config(config, writeable=False)
        else:
            # Collections and dataset types may have been added since the last reading.
            self._butler.registry.refresh()
        return self._butler

    def _disconnect(self) -> None:
        """Close connections to a database server; the Butler stays open."""
        # A worker reads for a second and then computes for minutes, and a server
        # does not accept idle connections of 1700 workers. Connecting again
        # takes a few milliseconds, opening the Butler again 50.
        disconnect(self._engines)

    def close(self) -> None:
        """Disconnect; the next reading connects again."""
        butler, self._butler = self._butler, None
        self._engines.clear()
        close(butler)


def disconnect(engines: Iterable[sqlalchemy.Engine]) -> None:
    """Close connections to database servers; the next query connects again."""
    for engine in engines:
        if engine.dialect.name != "sqlite":
            engine.dispose()


@contextmanager
def recorded_engines(engines: set[sqlalchemy.Engine]) -> Iterator[None]:
    """Collect the engines with which a Butler connects; it has no public attribute for them."""

    def record(connection: sqlalchemy.Connection) -> None:
        engines.add(connection.engine)

    sqlalchemy.event.listen(sqlalchemy.Engine, "engine_connect", record)
    try:
        yield
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "engine_connect", record)


@contextmanager
def observed_databases(progressed: Callable[[], None]) -> Iterator[None]:
    """Call a function at each attempt to connect to a database and after each statement."""

    def observe(*_: object) -> None:
        progressed()

    for name in _STEPS:
        sqlalchemy.event.listen(sqlalchemy.Engine, name, observe)
    try:
        yield
    finally:
        for name in _STEPS:
            sqlalchemy.event.remove(sqlalchemy.Engine, name, observe)


def close(butler: Butler | None) -> None:
    """Disconnect from the central repo, if connected; errors of the database are ignored."""
    if butler is not None:
        try:
            butler.close()
        except DATABASE_ERRORS as error:
            _LOG.debug("closing the central repo: %s", describe(error))


def existing_collections(butler: Butler, names: Iterable[str]) -> tuple[str, ...]:
    """Return the named collections that exist, chains replaced by their members, each once, in order."""
    names = list(names)
    with suppress(MissingCollectionError):
        # One query for all. If one is missing, the others are in the Butler's
        # cache afterwards, so that the loop below is fast.
        return tuple(butler.collections.query(names, flatten_chains=True)) if names else ()
    found: list[str] = []
    for name in names:
        try:
            found += butler.collections.query(name)
        except MissingCollectionError:
            _LOG.debug("no collection %s in the central repo", name)
    return tuple(butler.collections.query(found, flatten_chains=True)) if found else ()


def known_dataset_type(repo: Definitions, name: str) -> DatasetType | None:
    """Return the definition of a dataset type, or `None` if the repo has none."""
    try:
        return repo.get_dataset_type(name)
    except MissingDatasetTypeError:
        return None
