# SPDX-License-Identifier: BSD-3-Clause
"""The executor of all engines, which can write each log and each metadata dataset, and misses no input.

Text may have half of a surrogate pair, for example in a file name that is not
UTF-8, and a task may put any object into its metadata. JSON in UTF-8 has
neither; without this executor the quantum would fail, though its outputs are
written.
"""

import datetime
import logging
import uuid
from collections.abc import Mapping
from typing import Any

from lsst.daf.butler import DatasetRef, LimitedButler, Quantum
from lsst.daf.butler.logging import ButlerLogRecord, ButlerLogRecords, ButlerMDC
from lsst.pipe.base import TaskMetadata
from lsst.pipe.base.pipeline_graph import TaskNode
from lsst.pipe.base.quantum_graph_executor import QuantumExecutionResult
from lsst.pipe.base.single_quantum_executor import SingleQuantumExecutor
from pydantic_core import PydanticSerializationError

from ppdaemon.middleware.butler.failures import describe, encodable

__all__ = ("EncodingExecutor", "LogRecords", "encodable_end")

_LOG = logging.getLogger(__name__)


class EncodingExecutor(SingleQuantumExecutor):
    """Writes logs and metadata with replacement characters where they cannot be encoded.

    Inputs that are no outputs of the graph are expected to exist: see `_should_assume_exists`.
    """

    def execute(
        self,
        task_node: TaskNode,
        /,
        quantum: Quantum,
        quantum_id: uuid.UUID | None = None,
        *,
        log_records: ButlerLogRecords | None = None,
    ) -> QuantumExecutionResult:
        """Execute a quantum; see `lsst.pipe.base.quantum_graph_executor.QuantumExecutor`.

        Like the metadata in the result, `log_records` may have what cannot be
        encoded: see `encodable_end`.
        """
        records = LogRecords([])  # the log that is written must be of this class
        try:
            # An error of writing the log is raised outside of the task's own context.
            with ButlerMDC.set_mdc({"LABEL": task_node.label}):
                return super().execute(task_node, quantum, quantum_id, log_records=records)
        finally:
            if log_records is not None:
                log_records.extend(records)
                log_records.extra = records.extra

    def _should_assume_exists(self, quantum: Quantum, ref: DatasetRef) -> bool | None:
        """Return `True` for an input of another run than the outputs: no task of the graph makes it.

        If its file is gone, the task fails when it reads it. The base class knows that only of
        graphs with datastore records; otherwise it takes a raw that is gone for an output that an
        earlier task did not make, and the quantum for a success without work.
        """
        made = super()._should_assume_exists(quantum, ref)
        if made is not None:
            return made
        outputs = {each.run for refs in quantum.outputs.values() for each in refs}
        return True if ref.run not in outputs else None

    def _write_metadata(
        self, quantum: Quantum, metadata: Any, task_node: TaskNode, /, limited_butler: LimitedButler
    ) -> None:
        try:
            metadata.model_dump_json(warnings=False)
        except PydanticSerializationError as error:
            _LOG.warning(
                "metadata of task %s are written with replacements, they cannot be encoded: %s",
                task_node.label,
                describe(error),
            )
            metadata = _encodable_metadata(metadata)
        super()._write_metadata(quantum, metadata, task_node, limited_butler)


def encodable_end(
    records: ButlerLogRecords, metadata: TaskMetadata | None
) -> tuple[ButlerLogRecords, TaskMetadata | None]:
    """Return log and metadata of a quantum, or copies with replacement characters, that can be written."""
    try:
        records.to_json_data()
    except PydanticSerializationError:
        records = _encodable_records(records)
    if metadata is not None:
        try:
            metadata.model_dump_json(warnings=False)
        except PydanticSerializationError:
            metadata = _encodable_metadata(metadata)
    return records, metadata


class LogRecords(ButlerLogRecords):
    """Records of a task's log that can always be written."""

    def to_json_data(self) -> str:
        """Return JSON, with replacement characters where a text cannot be encoded."""
        try:
            return super().to_json_data()
        except PydanticSerializationError as error:
            _LOG.warning("a task's log is written with replacement characters: %s", describe(error))
        return _encodable_records(self).to_json_data()


def _encodable_records(records: ButlerLogRecords) -> ButlerLogRecords:
    return ButlerLogRecords(
        [_encodable_record(record) for record in records], extra=_encodable_value(records.extra)
    )


def _encodable_record(record: ButlerLogRecord) -> ButlerLogRecord:
    # Only the fields that are set: others are not written.
    fields = record.model_dump(exclude_unset=True)
    return ButlerLogRecord.model_construct(
        **{name: _encodable_value(value) for name, value in fields.items()}
    )


def _encodable_metadata(metadata: TaskMetadata) -> TaskMetadata:
    # Not validated, which would make floats of integers.
    return TaskMetadata.model_construct(
        scalars=_encodable_value(metadata.scalars),
        arrays=_encodable_value(metadata.arrays),
        metadata={encodable(key): _encodable_metadata(each) for key, each in metadata.metadata.items()},
    )


def _encodable_value(value: Any) -> Any:
    """Return a value that JSON has, with the text of any other object."""
    match value:
        case None | bool() | int() | float() | datetime.datetime():
            return value
        case Mapping():
            return {encodable(str(key)): _encodable_value(each) for key, each in value.items()}
        case list() | tuple():
            return [_encodable_value(each) for each in value]
        case _:
            return encodable(str(value))
