# SPDX-License-Identifier: BSD-3-Clause
"""Processes one detector of a visit with the field's pipelines, in a process of its own.

Run with an engine, a detector, the folders of the rig, the central repo and the
template, the alert database, and the file that takes the result.
"""

import logging
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

from enginecompare import run_worker, start_worker
from fieldtasks import write_field
from lsst.daf.butler.logging import ButlerMDC
from toycam import Rig, load_toy_camera

from ppdaemon.middleware.butlerwork import ButlerWork


def main(kind: str, detector: str, root: str, central: str, template: str, apdb: str, result: str) -> None:
    """Process the detector and write the result."""

    def make(central: Path, **changes: Any) -> tuple[Rig, ButlerWork]:
        rig = Rig(Path(root), Path(root, "ram"), central, **changes)
        shutil.copytree(template, rig.context.template)
        assert rig.config.butler is not None
        return rig, ButlerWork(rig.context, rig.config.butler, load_toy_camera)

    logging.getLogger().setLevel("INFO")
    ButlerMDC.add_mdc_log_record_factory()
    settings = {"no_return": ["associateApdb"]}
    options: dict[str, Any] = {"settings": settings, "central": Path(central), "write": write_field}
    rig, worker = start_worker(make, kind, **options, **{"associateApdb:apdb": apdb})
    done = run_worker(rig, worker, kind, detector=int(detector), main="FieldPrompt", before="FieldPreload")
    worker.close()
    Path(result).write_bytes(pickle.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])
