# SPDX-License-Identifier: BSD-3-Clause
"""The central repo of a demonstration, kept for the next one.

Each demonstration works on a copy, because it changes registry, datastore and alert database.
"""

import fcntl
import hashlib
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ppdaemon.demo import central
from ppdaemon.demo.central import APDB_NAME, Done, Progress, make_apdb, make_central_repo
from ppdaemon.middleware.export import mark

__all__ = ("central_key", "copy_central_repo", "keep_central_repo", "provide_central_repo")

DISTRIBUTIONS = ("astropy", "lsst-daf-butler", "lsst-dax-apdb", "lsst-images", "lsst-sphgeom", "numpy")
"""What makes the repo, beside the modules of this package."""


def central_key(bands: Sequence[str]) -> str:
    """Return a name for the repo that changes with all that it is made of.

    These are the bands of its templates, the modules of the demonstration, and the
    versions of `DISTRIBUTIONS`. It may change without need, never too rarely.
    """
    digest = hashlib.sha256(repr((*bands, *(version(each) for each in DISTRIBUTIONS))).encode())
    for source in (*sorted(Path(central.__file__).parent.glob("*.py")), Path(mark.__file__)):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def provide_central_repo(
    folder: Path, root: Path, bands: Sequence[str], *, progress: Progress, done: Done
) -> bool:
    """Copy the repo that is kept in a folder, made first if it is not there; return whether it was.

    Waits for another demonstration that makes or copies one there.
    """
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept, was_there = keep_central_repo(folder, bands, progress=progress, done=done)
        copy_central_repo(kept, root)
    return was_there


def keep_central_repo(
    folder: Path, bands: Sequence[str], *, progress: Progress, done: Done
) -> tuple[Path, bool]:
    """Return the repo in a folder, and whether it was there; make it and delete older ones if not."""
    kept = folder / central_key(bands)
    if kept.exists():
        return kept, True
    shutil.rmtree(folder, ignore_errors=True)
    return make_central_repo(kept, bands=bands, progress=progress, done=done), False


def copy_central_repo(source: Path, root: Path) -> None:
    """Copy a central repo, with an empty alert database in place of its own.

    It appears by a rename: what an interrupted copy leaves is no repo, and the next one deletes it.
    """
    partial_root = root.with_name(f"{root.name}-partial")
    shutil.rmtree(partial_root, ignore_errors=True)
    # The configuration of the database has its absolute path.
    shutil.copytree(source, partial_root, ignore=shutil.ignore_patterns(f"{APDB_NAME}.*"))
    make_apdb(partial_root, root)
    partial_root.rename(root)
