# SPDX-License-Identifier: BSD-3-Clause
"""Messages between the processes.

Relay and node use ZeroMQ; the supervisor and its workers, zygote and reader use
SOCK_SEQPACKET with one message per packet. Names of orders are in the imperative,
names of facts in the past tense. The requests of the control socket are in
`ppdaemon.reports`, the observatory's events in `ppdaemon.visit`.
"""

from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.errors import BadMessage
from ppdaemon.states import Outcome, Stage
from ppdaemon.throttle import sample_of
from ppdaemon.visit import Group, Name, NextVisit
from ppdaemon.wire import Model, parse_json

_BY_TYPE = pydantic.Field(discriminator="type")

SUBMIT_LIMIT = 65_536
"""Largest request on the submit socket, bytes."""

NODE_LIMIT = 1_048_576
"""Largest message that a relay accepts from a node, bytes."""

RELAY_LIMIT = 262_144
"""Largest message that a node accepts from a relay, bytes."""

PACKET_LIMIT = 131_072
"""Largest packet between supervisor and worker or zygote, bytes."""


# --- submit socket ---------------------------------------------------------


class DetectorOutcome(Model):
    """State of one detector of a visit at the relay."""

    detector: int
    node: str | None = None
    """The node that has it; `None` if it was not sent to a node."""
    outcome: Outcome | None = None
    """`None` while it is under way."""
    reason: str = ""
    attempt: int = 1


class Accepted(Model):
    """The relay's answer to a request on its submit socket.

    ``duplicate``: it was accepted before. ``ignored``: nothing is to be done, for
    example because the visit takes no image. ``rejected``: it has an error or
    cannot be accepted now, see `reason`.
    """

    status: Literal["accepted", "duplicate", "ignored", "rejected"]
    group: str = pydantic.Field("", alias="groupId")
    detectors: int = 0
    """Number of detectors of the visit, or of those that a cancellation ends."""
    reason: str = ""
    outcomes: tuple[DetectorOutcome, ...] | None = None
    """Only in the answer to ``visit_status``."""
    unserved: tuple[int, ...] | None = None
    """Detectors of an announced visit that no connected node serves now: they wait for one."""
    again: Annotated[bool, pydantic.Field(exclude=True)] = False
    """Not sent: the same request may be accepted later."""

    model_config = pydantic.ConfigDict(validate_by_name=True, validate_by_alias=True)


BUSY = "busy"
"""Beginning of the reason of an `Accepted` for a request that was not read: send it again later."""


class VisitStatus(Model):
    """Request for the outcomes of a visit's detectors."""

    type: Literal["visit_status"]
    group: Group = pydantic.Field(alias="groupId")


Storable = Annotated[int, pydantic.Field(ge=-(1 << 63), lt=1 << 63)]
"""An integer of 64 bits: SQLite raises an error for a larger one."""

Attempt = Annotated[int, pydantic.Field(ge=0, le=1 << 31)]
"""Number of an attempt: the next ones are integers of 64 bits, too."""


# --- relay and node --------------------------------------------------------

PROTOCOL: Literal[2] = 2
"""Version of the messages between relay and nodes; 2 has permits."""


def other_protocol(data: bytes) -> str:
    """Return what to do about an invalid message, if it has another version; blank otherwise."""
    try:
        content = parse_json(data, limit=NODE_LIMIT)
    except BadMessage:
        return ""
    version = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(version, int) or version == PROTOCOL:
        return ""
    origin = sample_of(str(content.get("origin")))[:80]
    return (
        f"{origin} sends messages of version {version}, this program of version {PROTOCOL}: install the same"
        " version of ppdaemon on the relay and on all nodes"
    )


class _Envelope(Model):
    """Fields of all messages between relay and node."""

    model_config = pydantic.ConfigDict(extra="ignore", validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[2] = pydantic.Field(PROTOCOL, alias="schema")
    """Version of this protocol; all nodes of a relay must have the same."""
    origin: Name
    """Name of the node or relay that sends it."""
    sent_tai: float
    sequence: Storable
    """Number of the message, counted by the sender for each receiver; 0 if it is not
    counted. A gap means that messages were lost."""


class DetectorsOfVisit(Model):
    """Detectors of one visit in one attempt of the relay."""

    instrument: Name
    group: Group
    attempt: Attempt
    """The relay's number, from the last `ReserveVisit`; retries of the node itself do not change it."""
    detectors: tuple[Storable, ...]


class HeldDetectors(DetectorsOfVisit):
    """Detectors that a node has in its journal without an outcome."""

    state: Literal["held", "permitted", "crossed"]
    """``held``: nothing permanent was written and this run of the node has no permit.
    ``permitted``: it has one. ``crossed``: something permanent may have been written."""


class EndedDetectors(DetectorsOfVisit):
    """Detectors that have an outcome in the journal of a node."""

    outcome: Outcome
    reported: bool
    """Whether a relay has confirmed it; otherwise `Results` follow."""
    last: Attempt | None = None
    """The node's own number of the attempt, if it differs: that of a retry, or of a requeue."""


class Hello(_Envelope):
    """A node registers at the relay, after its start or a new connection, or its state has changed."""

    type: Literal["hello"] = "hello"
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """Random string that differs for each start of the node."""
    instruments: dict[Name, tuple[Storable, ...]]
    """Detectors that the node may process, by instrument."""
    capacity: Annotated[Storable, pydantic.Field(ge=0)]
    """Number of visit-detectors that it can have at once; with 0 it gets none."""
    spare: bool = False
    """Whether it only gets what no other node can get."""
    holds: tuple[HeldDetectors, ...] = ()
    """All visit-detectors in its journal without an outcome."""
    ended: tuple[EndedDetectors, ...] = ()
    """The latest outcomes in its journal, if it is not connected: the ledger of the relay may be an
    older copy."""
    complete: bool = True
    """Whether `ended` has them; a node that is connected, as far as it knows, leaves them out."""
    alone: bool = False
    """Whether the node writes permanently without a permit while it has no connection to a relay."""
    version: str = ""
    """Version of ppdaemon; blank from an older one."""
    shadow: bool | None = None
    """Whether the node runs in shadow mode; `None`: it does not."""


class VisitAccepted(_Envelope):
    """The node's journal has these detectors of a visit."""

    type: Literal["ack"] = "ack"
    instrument: Name
    group: Group
    detectors: tuple[Storable, ...]
    attempt: Attempt = 1


class VisitRefused(_Envelope):
    """The node refuses these detectors of a visit."""

    type: Literal["nak"] = "nak"
    instrument: Name
    group: Group
    detectors: tuple[Storable, ...]
    attempt: Attempt = 1
    reason: str
    final: bool
    """Whether sending it again, to this or another node, is useless."""


class ResultEntry(Model):
    """The outcome of a visit-detector."""

    instrument: Name
    group: Group
    detector: Storable
    attempt: Attempt = 1
    outcome: Outcome
    reason: str = ""
    asked: Attempt | None = None
    """The relay's number of the attempt, without retries of the node itself; `None` means `attempt`."""
    returned: bool | None = None
    """Whether this is no outcome: the node has ended it without writing anything permanent, so that
    another one may have it."""


class Results(_Envelope):
    """Outcomes; sent again until the relay confirms them with `ResultsSeen`."""

    type: Literal["results"] = "results"
    entries: tuple[ResultEntry, ...]


class PermitRequest(_Envelope):
    """The node asks to write permanently for these detectors; sent again until answered."""

    type: Literal["permit"] = "permit"
    visits: tuple[DetectorsOfVisit, ...]


class Heartbeat(_Envelope):
    """The sender is running; sent when there is no other message."""

    type: Literal["heartbeat"] = "heartbeat"
    state: str = ""
    """State of a node, as in `~ppdaemon.reports.StatusReport`; blank from a relay and from an older node."""
    problem: str = ""
    """The worst problem of a node, or blank."""


class Welcome(_Envelope):
    """The node is registered; visits that it has not acknowledged follow."""

    type: Literal["welcome"] = "welcome"
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """Random string that differs for each start of the relay."""
    epoch: Storable
    """Number that grows with each start of the relay."""


class HelloRefused(_Envelope):
    """The relay does not serve the node on this connection."""

    type: Literal["sorry"] = "sorry"
    code: Literal["stranger", "taken"]
    """``stranger``: the connection is not registered, send `Hello` at once.
    ``taken``: a connected node has the same name, or the node is in shadow mode and the relay is not, or
    the reverse; send `Hello` again after a heartbeat interval. It is accepted when the other node has
    disconnected."""
    reason: str


class SendHello(_Envelope):
    """The node must send `Hello` again: messages of it were lost."""

    type: Literal["send_hello"] = "send_hello"


class ReserveVisit(_Envelope):
    """A visit and the node's detectors of it; sent again until acknowledged."""

    type: Literal["visit"] = "visit"
    visit: NextVisit
    detectors: tuple[Storable, ...]
    attempt: Attempt = 1
    received_tai: float
    """When the relay accepted the visit, TAI seconds since 1970; deadlines are
    counted from here."""


class CancelVisit(_Envelope):
    """A visit is canceled; sent again until its outcomes have arrived."""

    type: Literal["cancel"] = "cancel"
    instrument: Name
    group: Group
    detectors: tuple[Storable, ...] | None = None
    """Only these detectors, because another node has them now; `None` means all."""
    attempt: Attempt | None = None
    """Later attempts than this one stay; `None` means all attempts."""


class Permitted(_Envelope):
    """The node may write permanently for these detectors: no other node will get them."""

    type: Literal["permitted"] = "permitted"
    epoch: Storable
    """Epoch of the relay; a node ignores a lower one than it has received before."""
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """The run of the node that has asked."""
    visits: tuple[DetectorsOfVisit, ...]


class PermitRefused(_Envelope):
    """The node must end these detectors without writing anything permanent."""

    type: Literal["not_permitted"] = "not_permitted"
    visits: tuple[DetectorsOfVisit, ...]
    reason: str


class ResultsSeen(_Envelope):
    """The relay has these outcomes on disk."""

    type: Literal["results_seen"] = "results_seen"
    entries: tuple[tuple[str, str, Storable, Storable], ...]
    """Keys: instrument, group, detector, attempt."""
    moved: tuple[tuple[str, str, Storable, Storable], ...] = ()
    """Those that do not count: the relay has given the detector to another node."""


type NodeMessage = Annotated[
    Hello | VisitAccepted | VisitRefused | PermitRequest | Results | Heartbeat, _BY_TYPE
]
type RelayMessage = Annotated[
    Welcome
    | HelloRefused
    | SendHello
    | ReserveVisit
    | CancelVisit
    | Permitted
    | PermitRefused
    | ResultsSeen
    | Heartbeat,
    _BY_TYPE,
]
FromNode = pydantic.TypeAdapter[NodeMessage](NodeMessage)
FromRelay = pydantic.TypeAdapter[RelayMessage](RelayMessage)


# --- supervisor and worker -------------------------------------------------

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
    Prepare | Ingest | Process | Cross | GiveUp | ExportSpool | GiveUpImages | MarkDatastore | Quit, _BY_TYPE
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
    _BY_TYPE,
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


type ExporterFact = Annotated[Ready | Exported | ImagesGivenUp | SpoolRefused | DatastoreMarked, _BY_TYPE]
EXPORTER_FACTS = pydantic.TypeAdapter[ExporterFact](ExporterFact)
type AskerFact = Ready
ASKER_FACTS = pydantic.TypeAdapter[AskerFact](AskerFact)


# --- supervisor and zygote -------------------------------------------------


class ForkWorker(Model):
    """Order to fork a process; `Forked` returns its channel and pidfd."""

    type: Literal["fork"] = "fork"
    role: Role
    slot: int
    """Number of the slot; negative for processes without a slot."""
    epoch: int
    """Number of the process, counted per slot."""
    repo: str
    """The folder of this process on the RAM disk."""
    log: str
    """The file for its standard output and error."""
    generation: int = 1
    """Generation of its configuration and template repo; see `ppdaemon.folders`."""


ZYGOTE_ORDERS = pydantic.TypeAdapter[ForkWorker](ForkWorker)


class ZygoteReady(Model):
    """The zygote has imported everything and has one thread, so that it can fork."""

    type: Literal["zygote_ready"] = "zygote_ready"
    pid: int
    import_s: float
    modules: int
    cold: str = ""
    """Why it has not warmed up, so that the first visit of each worker takes longer; blank if it has."""


class ZygoteRefused(Model):
    """The modules of the configuration cannot be used; the zygote ends."""

    type: Literal["zygote_refused"] = "zygote_refused"
    problems: tuple[str, ...]


class Forked(Model):
    """A process was forked; the packet also transfers its channel and its pidfd."""

    type: Literal["forked"] = "forked"
    role: Role
    slot: int
    epoch: int
    pid: int


class ForkFailed(Model):
    """The fork failed."""

    type: Literal["fork_failed"] = "fork_failed"
    role: Role
    slot: int
    epoch: int
    reason: str


class Reaped(Model):
    """A process of this zygote has ended."""

    type: Literal["reaped"] = "reaped"
    pid: int
    status: int
    """Exit code, or the negative number of the signal."""
    max_rss_bytes: int
    cpu_s: float


type ForkFact = Annotated[Forked | ForkFailed | Reaped, _BY_TYPE]
"""Result of a fork, or end of a forked process."""
type ZygoteFact = Annotated[ZygoteReady | ZygoteRefused | Forked | ForkFailed | Reaped, _BY_TYPE]
ZYGOTE_FACTS = pydantic.TypeAdapter[ZygoteFact](ZygoteFact)


# --- bridge of object stores and node ---------------------------------------

ASK_LIMIT = 4096
"""Largest question that a bridge accepts, bytes."""

NOTICES_LIMIT = 1_048_576
"""Largest frame that a node accepts from a bridge, bytes: a notice has at most 1 MB."""


class AskNotices(Model):
    """A node's question for the notices that it does not have. It asks again after each answer."""

    type: Literal["ask_notices"] = "ask_notices"
    node: Name
    request: int
    """Number of the question, repeated in the answer."""
    epoch: str = ""
    """The ring to which `number` belongs; blank if the node was never connected."""
    number: int = 0
    """The last notice that the node has."""
    age_s: float | None = None
    """Notices received within this time are sent again; in the first question of a run."""


class Notices(Model):
    """A bridge's answer; the notices follow, one in each frame, as they were received."""

    type: Literal["notices"] = "notices"
    request: int
    epoch: str
    first: int
    """Number of the first notice; the others follow without a gap."""
    lost: int = 0
    """Notices after the node's last one that the ring no longer has."""
    is_other: bool = False
    """Whether the ring is not the one of the question: what it had is lost."""
    newest_age_s: float | None = None
    """How long ago the bridge received its last notice; `None` if the ring is empty."""


ASK_NOTICES = pydantic.TypeAdapter[AskNotices](AskNotices)
NOTICES = pydantic.TypeAdapter[Notices](Notices)


# --- supervisor and reader -------------------------------------------------

FACT_KEYS = ("GROUPID", "OBSID", "CURINDEX", "MAXINDEX", "expectedSensors")
"""The keys that the reader returns of a sidecar, a header, or a list of detectors."""


class ReadObject(Model):
    """Order to read the metadata of an exposure from an object store."""

    type: Literal["read_object"] = "read_object"
    number: int
    """Number of the request, repeated in the answer."""
    what: Literal["json", "header"]
    """``json``: the whole object. ``header``: the primary header of a FITS file."""
    uri: str
    """Percent-encoded."""


READER_ORDERS = pydantic.TypeAdapter[ReadObject](ReadObject)


class ReaderReady(Model):
    """The reader has imported what it needs."""

    type: Literal["reader_ready"] = "reader_ready"
    pid: int


class ObjectRead(Model):
    """An object was read."""

    type: Literal["object_read"] = "object_read"
    number: int
    content: dict[str, Any]
    """Those of `FACT_KEYS` that it has; the values are not validated."""


class ObjectUnread(Model):
    """An object was not read."""

    type: Literal["object_unread"] = "object_unread"
    number: int
    why: Literal["missing", "bad", "unavailable"]
    """The object does not exist; it is invalid; or the store does not answer now."""
    reason: str


type ReaderFact = Annotated[ReaderReady | ObjectRead | ObjectUnread, _BY_TYPE]
READER_FACTS = pydantic.TypeAdapter[ReaderFact](ReaderFact)


# --- supervisor and the process that creates the template -------------------


class Connecting(Fact):
    """The template's process connects to the central repo next, and may hang there."""

    type: Literal["connecting"] = "connecting"
    what: str
    """Such as ``the central repo /repo/main``."""


class NotReady(Model):
    """The template cannot be created now: the central repo is not available."""

    type: Literal["not_ready"] = "not_ready"
    reason: str


type TemplateFact = Annotated[Ready | Connecting | NotReady, _BY_TYPE]
TEMPLATE_FACTS = pydantic.TypeAdapter[TemplateFact](TemplateFact)


# --- supervisor and the process that resolves names ------------------------


class Resolving(Model):
    """The next names are resolved; the process may hang there."""

    type: Literal["resolving"] = "resolving"
    what: str
    """Such as ``the central repo``."""


class NameFinding(Model):
    """A name in the configuration that does not exist, or could not be resolved."""

    type: Literal["name"] = "name"
    level: Literal["error", "warning", "fallback", "unavailable"]
    """``error``: with this configuration the daemon does not start. ``fallback``: the first
    pipeline of a rule is dropped for every detector. ``unavailable``: the database or mount
    that has the name does not answer now."""
    key: tuple[str | int, ...]
    """Keys and indexes of the value in the configuration file."""
    text: str


class TaskNamesResolved(Model):
    """The names of tasks have been resolved, or could not be; other names follow."""

    type: Literal["task_names_resolved"] = "task_names_resolved"


class NamesResolved(Model):
    """All names have been resolved, or could not be; the process exits."""

    type: Literal["names_resolved"] = "names_resolved"


type NameFact = Annotated[Resolving | NameFinding | TaskNamesResolved | NamesResolved, _BY_TYPE]
NAME_FACTS = pydantic.TypeAdapter[NameFact](NameFact)
