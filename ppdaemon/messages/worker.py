# SPDX-License-Identifier: BSD-3-Clause
"""The supervisor and its forked processes: workers, exporter, asker, and the one that creates the template.

SOCK_SEQPACKET with one message per packet.
"""

from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.messages.common import Storable
from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import Group, Name, NextVisit
from ppdaemon.wire import BY_TYPE, Model

Role = Literal["worker", "exporter", "asker", "template"]
"""Task of a forked process."""


class Raw(Model):
    """One raw image of one detector, complete on the shared filesystem."""

    path: str
    """Absolute path of the FITS file, or the percent-encoded URI of an object."""
    sidecar: str | None = None
    """Absolute path of the JSON file beside it; `None` if there is none."""
    instrument: Name
    group: Group
    detector: int
    exposure: int
    """Exposure id: day_obs * 100000 + sequence number."""
    snap: int | None = None
    """Index within the visit, from 1 (``CURINDEX``)."""
    snaps: int | None = None
    """Number of snaps of the visit (``MAXINDEX``)."""
    seen_tai: float
    """When it was found to be complete, TAI seconds since 1970."""
    file_id: tuple[int, int, int, int] | str | None = None
    """Device, inode, size in bytes, and time of the last write in ns; of an object, ETag and size
    as its notice has them; `None` if it has neither."""

    def is_same_file(self, other: "Raw") -> bool:
        """Return whether another raw is the same file with the same content."""
        return (self.path, self.file_id) == (other.path, other.file_id)


class Pipelines(Model):
    """The pipeline files chosen for a visit, in order of preference."""

    preprocessing: tuple[str, ...] = ()
    main: tuple[str, ...] = ()


class Prepare(Model):
    """Order to do everything for a visit-detector that needs no pixels."""

    type: Literal["prepare"] = "prepare"
    visit_number: int = 0
    """Number of the visit, counted per worker from 1; all facts of this visit have it."""
    visit: NextVisit
    detector: int
    attempt: int = 1
    pipelines: Pipelines


class Ingest(Model):
    """Order to ingest a raw into the worker's repo."""

    type: Literal["ingest"] = "ingest"
    raw: Raw


class Process(Model):
    """Order to run the pipeline on these exposures and spool its outputs."""

    type: Literal["process"] = "process"
    exposures: tuple[int, ...]
    partial: bool = False
    """Whether fewer snaps have arrived than were announced."""


class Cross(Model):
    """Order to go on after a `MayCross`."""

    type: Literal["cross"] = "cross"


class GiveUp(Model):
    """Order to abandon the current visit; the next order is for another one."""

    type: Literal["give_up"] = "give_up"
    reason: str


class ExportSpool(Model):
    """Order to register the outputs in these spools in the central repo."""

    type: Literal["export"] = "export"
    spools: tuple[str, ...]
    """Folders with a manifest each."""


class GiveUpImages(Model):
    """Order to delete images of the oldest spools in these folders; answered by `ImagesGivenUp`."""

    type: Literal["give_up_images"] = "give_up_images"
    folders: tuple[str, ...]
    excess_bytes: Storable
    """By how much what waits there is too large."""


class MarkDatastore(Model):
    """Order to mark the datastore of the central repo as the repo's own; answered by `DatastoreMarked`."""

    type: Literal["mark_datastore"] = "mark_datastore"


class Quit(Model):
    """Order to end with exit code 0."""

    type: Literal["quit"] = "quit"


type WorkerOrder = Annotated[
    Prepare | Ingest | Process | Cross | GiveUp | ExportSpool | GiveUpImages | MarkDatastore | Quit, BY_TYPE
]
ORDERS = pydantic.TypeAdapter[WorkerOrder](WorkerOrder)


class Fact(Model):
    """Base of all messages of a worker."""

    visit_number: int = 0
    """`Prepare.visit_number` of the visit that it belongs to; 0 before the first visit."""


class Ready(Fact):
    """The process has started and accepts orders."""

    type: Literal["ready"] = "ready"
    pid: int


class Prepared(Fact):
    """The worker waits for raws."""

    type: Literal["prepared"] = "prepared"
    pipeline: str = ""
    """The pipeline that will run unless its graph cannot be built."""
    detail: dict[str, Any] = {}
    """Times (``..._ms``) and counts of the preload, for the journal."""
    tainted: str = ""
    """As in `Done`: what the preprocessing has left in the process."""
    ran_tasks: bool = pydantic.Field(True, exclude=True)
    """Whether code of tasks has run, which may have changed the process. Not sent."""


class Ingested(Fact):
    """A raw is in the worker's repo."""

    type: Literal["ingested"] = "ingested"
    exposure: int
    shutter_close_tai: float | None = None
    """End of the exposure from its header, TAI seconds since 1970; `None` if the
    header does not have it."""


class RawRefused(Fact):
    """A raw cannot be used; the file is untouched."""

    type: Literal["raw_refused"] = "raw_refused"
    exposure: int
    outcome: Outcome
    reason: str


class StageReached(Fact):
    """The visit-detector has reached a stage."""

    type: Literal["stage"] = "stage"
    stage: Stage
    tai: float
    detail: dict[str, Any] = {}


class MayCross(Fact):
    """The next step must be done on one node only; the worker waits for `Cross`."""

    type: Literal["may_cross"] = "may_cross"
    what: str
    """The task that must not be repeated, or a blank: the outputs are complete, and only they remain
    to be written. This node may still repeat the visit-detector then."""


class Done(Fact):
    """The visit-detector has ended; its outputs, if any, are in the spool."""

    type: Literal["done"] = "done"
    outcome: Outcome
    reason: str = ""
    retriable: bool = False
    nothing_permanent: bool = False
    """Whether it was checked that nothing permanent was written, although
    the point of no return was passed."""
    pipeline: str = ""
    engine: str = ""
    fallback: str = ""
    """Why `pipeline` is not the first one of the order; empty if it is."""
    spool: str | None = None
    """Folder with a manifest, complete on disk, that waits for export."""
    datasets: Storable = 0
    """Number of spooled datasets."""
    tainted: str = ""
    """What the visit has left in the process and only a new one does not have (such as
    ``thread monitor``), so that the worker must be replaced; empty if nothing."""


class ImportsMeasured(Fact):
    """What a forked worker has imported by itself in its first visit."""

    type: Literal["imports"] = "imports"
    modules: tuple[str, ...]
    """The slowest ones."""
    seconds: float
    memory_bytes: int


type WorkerFact = Annotated[
    Ready | Prepared | Ingested | RawRefused | StageReached | MayCross | Done | ImportsMeasured,
    BY_TYPE,
]
FACTS = pydantic.TypeAdapter[WorkerFact](WorkerFact)


class Exported(Model):
    """These spools are registered in the central repo and deleted."""

    type: Literal["exported"] = "exported"
    spools: tuple[str, ...]
    refused: tuple[str, ...] = ()
    """Other spools that cannot be registered; they were moved to quarantine."""
    gone: tuple[str, ...] = ()
    """Other spools that are not there, although this process has not exported them."""
    packing: tuple[str, ...] = ()
    """Other spools, whose images are still being compressed: they have to be exported again."""
    tai: float
    datasets: int
    size_bytes: int = 0
    """Of the files of the exported spools."""
    skipped: dict[str, str] = {}
    """By spool: its datasets that were not exported, because others of the same type, run and data
    ID were, such as ``detector 3 was first: visitSummary``."""
    given_up: dict[str, str] = {}
    """As in `ImagesGivenUp`, which may have got lost."""


class ImagesGivenUp(Model):
    """Images of spools are deleted, because too much waits for export."""

    type: Literal["images_given_up"] = "images_given_up"
    spools: dict[str, str] = {}
    """By spool: the types of its deleted datasets."""
    size_bytes: int = 0


class SpoolRefused(Model):
    """An export failed; the spools are unchanged, another export may succeed."""

    type: Literal["spool_refused"] = "spool_refused"
    spools: tuple[str, ...]
    reason: str


class DatastoreMarked(Model):
    """The datastore of the central repo is marked, or cannot be."""

    type: Literal["datastore_marked"] = "datastore_marked"
    text: str
    """What was done, or why nothing was."""
    refused: bool = False


type ExporterFact = Annotated[Ready | Exported | ImagesGivenUp | SpoolRefused | DatastoreMarked, BY_TYPE]
EXPORTER_FACTS = pydantic.TypeAdapter[ExporterFact](ExporterFact)
ASKER_REPORT_S = 5.0
"""Between two reports of an asker, while it has no questions."""


class Asked(Model):
    """An asker works: it has waited for questions, or answered some of them together."""

    type: Literal["asked"] = "asked"
    waited_s: tuple[float, ...] = ()
    """How long each question had waited for its answer, seconds."""
    idle: bool = False
    """Whether it has answered all questions, and waits for the next ones."""


type AskerFact = Annotated[Ready | Asked, BY_TYPE]
ASKER_FACTS = pydantic.TypeAdapter[AskerFact](AskerFact)


class Connecting(Fact):
    """The template's process connects to the central repo next, and may hang there."""

    type: Literal["connecting"] = "connecting"
    what: str
    """Such as ``the central repo /repo/main``."""


class NotReady(Model):
    """The template cannot be created now: the central repo is not available."""

    type: Literal["not_ready"] = "not_ready"
    reason: str


type TemplateFact = Annotated[Ready | Connecting | NotReady, BY_TYPE]
TEMPLATE_FACTS = pydantic.TypeAdapter[TemplateFact](TemplateFact)
