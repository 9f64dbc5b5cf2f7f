# SPDX-License-Identifier: BSD-3-Clause
"""Datasets that tasks have put, in this process or in a forked one."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsst.daf.butler import DatasetProvenance, DatasetRef

from ppdaemon.middleware.direct.files import DatasetFile

__all__ = ("MemoryDataset", "TransferredDataset")


@dataclass(slots=True)
class MemoryDataset:
    """A dataset that a task has put."""

    ref: DatasetRef
    """As the repo defines it."""
    content: Any = None
    file: DatasetFile | None = None
    """Where it is written."""
    in_memory: bool = True
    shared: bool = False
    """Whether anybody else may have the object, or a part of it."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0
    wanted: bool = False
    """Whether it is to be written for export."""

    @property
    def unwritten(self) -> bool:
        """Whether it is still to be written (`bool`)."""
        return self.wanted and self.file is None

    def drop(self) -> None:
        """Forget the object."""
        self.content, self.in_memory = None, False


@dataclass(frozen=True, slots=True)
class TransferredDataset:
    """A dataset on its way from one process to another."""

    id: uuid.UUID
    content: Any = None
    file: tuple[Path, str] | None = None
    """Where it is instead, and the class that reads it."""
    provenance: DatasetProvenance | None = None
    size_bytes: int = 0
