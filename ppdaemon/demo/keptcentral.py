# SPDX-License-Identifier: BSD-3-Clause
"""The central repo of a demonstration, kept for the next one.

Each demonstration works on a copy, because it changes registry, datastore and alert database.
"""

import hashlib
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from ppdaemon.demo import central
from ppdaemon.demo.central import APDB_NAME, Done, Progress, make_apdb, make_central_repo
from ppdaemon.middleware.export import mark

__all__ = ("central_key", "copy_central_repo", "keep_central_repo")

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
    """Copy a central repo, with an empty alert database in place of its own."""
    # The configuration of the database has its absolute path.
    shutil.copytree(source, root, ignore=shutil.ignore_patterns(f"{APDB_NAME}.*"))
    make_apdb(root)
