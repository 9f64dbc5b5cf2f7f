# SPDX-License-Identifier: BSD-3-Clause
"""Reading the central repo: opened on first use, kept, reopened after a failure."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from lsst.daf.butler import (
    Butler,
    ButlerUserError,
    DatasetType,
    MissingCollectionError,
    MissingDatasetTypeError,
)

from ppdaemon.errors import VisitFailed
from ppdaemon.middleware.failures import DATABASE_ERRORS, describe, is_out_of_space
from ppdaemon.states import Outcome

__all__ = ("CentralReader", "existing_collections", "known_dataset_type")

_LOG = logging.getLogger(__name__)


class CentralReader:
    """Reads the central repo on behalf of one worker.

    Parameters
    ----------
    uri : `str`
        Root, configuration file or alias of the central repo.
    """

    def __init__(self, uri: str):
        self._uri = uri
        self._butler: Butler | None = None

    @contextmanager
    def reading(self) -> Iterator[Butler]:
        """Give the Butler; what fails within ends the visit, not the worker.

        Yields
        ------
        butler : `lsst.daf.butler.Butler`
            Read-only; opened now if it is not yet.

        Raises
        ------
        ppdaemon.errors.VisitFailed
            Raised with ``PRELOAD_FAILED``, to be tried again, if the central
            repo cannot be read. A full RAM disk is not its fault.
        """
        try:
            if self._butler is None:
                self._butler = Butler.from_config(self._uri, writeable=False)
            yield self._butler
        except (*DATABASE_ERRORS, ButlerUserError) as error:
            if is_out_of_space(error):
                raise
            self.close()
            raise VisitFailed(
                Outcome.PRELOAD_FAILED,
                f"the central repo {self._uri} cannot be read: {describe(error)}",
                retriable=True,
            ) from error

    def close(self) -> None:
        """Disconnect; the next reading connects anew."""
        butler, self._butler = self._butler, None
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
