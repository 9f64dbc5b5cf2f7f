# SPDX-License-Identifier: BSD-3-Clause
"""The mark in the root of the central repo's datastore: outputs are written only where it is.

When a filesystem is not mounted, its mount point is an empty folder. Files written
there would be registered, the spools deleted, and the outputs lost with the next
mount. The mark has the id of the repo, which its registry has too.
"""

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from lsst.daf.butler import Butler, CollectionType, DatasetRef, MissingCollectionError
from lsst.resources import ResourcePath

from ppdaemon.durable import sync
from ppdaemon.errors import Refused, Unavailable
from ppdaemon.middleware.butler.failures import describe

__all__ = ("DatastoreMark", "mark_datastore", "mark_problem")

_LOG = logging.getLogger(__name__)

MARK = "ppdaemon-repo-id.txt"
"""File in the datastore's root."""
ID = "ppdaemon/repo-id"
"""Empty chain whose documentation is the id of the repo: the registry has no better place for it."""
COMMAND = "ppctl export init"
_SAMPLE = 10
"""Datasets of each type whose files are looked for before a root is marked."""
_MOST_FILES = 200
"""Files that are looked for: requests to an object store take 10 ms each."""


class DatastoreMark:
    """The marks of an open central repo."""

    def __init__(self, butler: Butler):
        self._marks = _marks(butler)
        self._repo_id = _repo_id(butler)
        if not self._repo_id and next(_datasets(butler), None) is None:
            mark_datastore(butler)  # the repo is new: nothing can have gone away
            self._repo_id = _repo_id(butler)

    def check(self) -> None:
        """Raise `~ppdaemon.errors.Unavailable` if a root of the datastore does not have the mark."""
        _check(self._marks, self._repo_id)


def mark_problem(butler: Butler) -> str:
    """Return why nothing would be exported to a repo, or a blank; writes nothing."""
    repo_id = _repo_id(butler)
    if not repo_id and next(_datasets(butler), None) is None:
        return ""  # the first export will mark it
    try:
        _check(_marks(butler), repo_id)
    except Unavailable as error:
        return str(error)
    return ""


def mark_datastore(butler: Butler) -> str:
    """Mark the datastore of a repo as its own; return what was done.

    Raises `~ppdaemon.errors.Refused` if another repo has marked it, or if it has
    none of the files that the registry knows.
    """
    roots = _roots(butler)
    if not roots:
        return "the datastore has no root that could be marked"
    uris = list(islice(_uris(butler, _datasets(butler), roots), _MOST_FILES))
    if uris and not any(uri.exists() for uri in uris):
        raise Refused(f"none of {len(uris)} files of the repo is there, such as {uris[0]}: is it mounted?")
    # The registry first: after a crash in between, the mark is still missing.
    butler.collections.register(ID, CollectionType.CHAINED, doc=_repo_id(butler) or str(uuid.uuid4()))
    repo_id = _repo_id(butler)  # another host may have been faster
    done = []
    for root in roots:
        place = root.join(MARK)
        text = f"{repo_id}\nppdaemon exports to this datastore only while this file is here.\n".encode()
        try:
            place.write(text, overwrite=False)
        except FileExistsError:
            if found := _read(place):
                if found != repo_id:
                    raise Refused(
                        f"{root} is marked as that of another repo: its {MARK} has the id {found!r}, not"
                        f" {repo_id}. If it belongs to this repo, delete that file and run the command again"
                    ) from None
                done.append(f"{root} was marked before")
                continue
            place.write(text, overwrite=True)  # a crash of the host has emptied it
        if place.isLocal:
            sync(Path(place.ospath))
            sync(Path(root.ospath))
        done.append(f"{root} is marked now")
        _LOG.warning("the datastore %s is marked as that of repo %s", root, repo_id)
    return "; ".join(done)


def _check(marks: Mapping[ResourcePath, ResourcePath], repo_id: str) -> None:
    for root, mark in marks.items():
        try:
            found = _read(mark)
        except FileNotFoundError:
            found = ""
        except Exception as error:  # of any kind of store
            raise Unavailable(f"the datastore {root} cannot be read: {describe(error)}") from error
        if not found or not repo_id:
            raise Unavailable(
                f"the datastore {root} has no mark {MARK}: nothing is exported. If it is mounted and"
                f" belongs to the repo, run '{COMMAND}' once"
            )
        if found != repo_id:
            raise Unavailable(
                f"the datastore {root} is that of another repo: its mark {MARK} has the id {found}, not"
                f" {repo_id}; nothing is exported"
            )


def _roots(butler: Butler) -> list[ResourcePath]:
    return [root for root in butler.get_datastore_roots().values() if root is not None]


def _marks(butler: Butler) -> dict[ResourcePath, ResourcePath]:
    """Return the place of each root's mark; to make one takes longer than to read the mark."""
    return {root: root.join(MARK) for root in _roots(butler)}


def _repo_id(butler: Butler) -> str:
    """Return the id of a repo, or a blank if it has none yet."""
    try:
        return butler.collections.query_info(ID, include_doc=True)[0].doc
    except MissingCollectionError:
        return ""


def _read(mark: ResourcePath) -> str:
    return mark.read().decode(errors="replace").partition("\n")[0]


def _datasets(butler: Butler) -> Iterator[DatasetRef]:
    """Yield some datasets of each type, with a file or without."""
    for dataset_type in butler.registry.queryDatasetTypes():
        yield from butler.query_datasets(
            dataset_type, collections="*", find_first=False, limit=_SAMPLE, explain=False
        )


def _uris(butler: Butler, refs: Iterable[DatasetRef], roots: list[ResourcePath]) -> Iterator[ResourcePath]:
    """Yield where the files of datasets should be, of those in the roots."""
    for ref in refs:
        # Without a full check: a file that is gone counts.
        if butler.exists(ref, full_check=False):
            found = butler.getURIs(ref)
            for uri in (found.primaryURI, *found.componentURIs.values()):
                if uri is not None and any(uri.relative_to(root) is not None for root in roots):
                    yield uri
