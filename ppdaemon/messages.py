# SPDX-License-Identifier: BSD-3-Clause
"""What the processes say to each other.

Four conversations: relay and node (ZeroMQ), supervisor and worker, zygote, and
reader (SOCK_SEQPACKET, one message per packet). Orders are in
the imperative, facts in the past tense. The control socket's requests are in
`ppdaemon.reports`, the observatory's events in `ppdaemon.visit`.
"""

from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.states import Outcome, Stage
from ppdaemon.visit import Group, Name, NextVisit
from ppdaemon.wire import Model

_BY_TYPE = pydantic.Field(discriminator="type")

SUBMIT_LIMIT = 65_536
"""Largest next_visit accepted, bytes."""

NODE_LIMIT = 1_048_576
"""Largest message a relay takes from a node, bytes."""

RELAY_LIMIT = 262_144
"""Largest message a node takes from a relay, bytes."""

PACKET_LIMIT = 131_072
"""Largest packet between supervisor and worker or zygote, bytes."""


# --- submit socket ---------------------------------------------------------


class DetectorOutcome(Model):
    """How one detector of a visit stands."""

    detector: int
    node: str | None = None
    outcome: Outcome | None = None
    """`None` while it is under way."""
    reason: str = ""
    attempt: int = 1


class Accepted(Model):
    """The relay's answer to whatever came in on its submit socket."""

    status: Literal["accepted", "duplicate", "ignored", "rejected"]
    group: str = pydantic.Field("", alias="groupId")
    detectors: int = 0
    reason: str = ""
    outcomes: tuple[DetectorOutcome, ...] | None = None
    """Only in the answer to ``visit_status``."""

    model_config = pydantic.ConfigDict(validate_by_name=True, validate_by_alias=True)


class VisitStatus(Model):
    """Asks the relay how a visit stands."""

    type: Literal["visit_status"]
    group: Group = pydantic.Field(alias="groupId")


Storable = Annotated[int, pydantic.Field(ge=-(1 << 63), lt=1 << 63)]
"""A number that the journal can take; a larger one would end the node."""


# --- relay and node --------------------------------------------------------


class _Envelope(Model):
    """What every message between relay and node carries."""

    model_config = pydantic.ConfigDict(extra="ignore", validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[1] = pydantic.Field(1, alias="schema")
    """Version of this wire."""
    origin: Name
    """Name of the node or relay that speaks."""
    sent_tai: float
    sequence: int
    """Counts the speaker's messages from 1 in each of its lives."""


class Hello(_Envelope):
    """A node is there, or there again."""

    type: Literal["hello"] = "hello"
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """Nonce of this life of the node."""
    instruments: dict[Name, tuple[int, ...]]
    """Detectors the node may serve, by instrument."""
    capacity: Annotated[int, pydantic.Field(ge=0)]
    """Visit-detectors it can hold at once."""


class VisitAccepted(_Envelope):
    """The node's journal has these detectors of a visit."""

    type: Literal["ack"] = "ack"
    instrument: Name
    group: Group
    detectors: tuple[int, ...]
    attempt: int = 1


class VisitRefused(_Envelope):
    """The node does not take these detectors of a visit."""

    type: Literal["nak"] = "nak"
    instrument: Name
    group: Group
    detectors: tuple[int, ...]
    attempt: int = 1
    reason: str
    final: bool
    """Whether another try, here or elsewhere, is pointless."""


class ResultEntry(Model):
    """The one outcome of a visit-detector."""

    instrument: Name
    group: Group
    detector: int
    attempt: int = 1
    outcome: Outcome
    reason: str = ""


class Results(_Envelope):
    """Outcomes; repeated until the relay has seen them."""

    type: Literal["results"] = "results"
    entries: tuple[ResultEntry, ...]


class Heartbeat(_Envelope):
    """The speaker is alive."""

    type: Literal["heartbeat"] = "heartbeat"


class Welcome(_Envelope):
    """The relay knows the node; what is unacknowledged will follow."""

    type: Literal["welcome"] = "welcome"
    incarnation: Annotated[Name, pydantic.Field(alias="life")]
    """Nonce of this life of the relay."""


class HelloRefused(_Envelope):
    """The relay does not serve the node on this connection."""

    type: Literal["sorry"] = "sorry"
    code: Literal["stranger", "taken"]
    """``stranger``: say hello (again) at once. ``taken``: a live node has the
    name; say hello again after a heartbeat interval, at the latest it is
    answered once the other one is silent."""
    reason: str


class ReserveVisit(_Envelope):
    """One visit and the node's detectors of it; acknowledged, resent until then."""

    type: Literal["visit"] = "visit"
    visit: NextVisit
    detectors: tuple[int, ...]
    attempt: int = 1
    received_tai: float
    """When the relay accepted the visit: the deadlines count from here."""


class CancelVisit(_Envelope):
    """A visit will not be taken; resent until its outcomes came."""

    type: Literal["cancel"] = "cancel"
    instrument: Name
    group: Group
    detectors: tuple[int, ...] | None = None
    """Only these, because another node has them now; `None` means all."""


class ResultsSeen(_Envelope):
    """The relay has these outcomes on disk."""

    type: Literal["results_seen"] = "results_seen"
    entries: tuple[tuple[str, str, Storable, Storable], ...]
    """Keys: instrument, group, detector, attempt."""


type NodeMessage = Annotated[Hello | VisitAccepted | VisitRefused | Results | Heartbeat, _BY_TYPE]
type RelayMessage = Annotated[
    Welcome | HelloRefused | ReserveVisit | CancelVisit | ResultsSeen | Heartbeat, _BY_TYPE
]
FromNode = pydantic.TypeAdapter[NodeMessage](NodeMessage)
FromRelay = pydantic.TypeAdapter[RelayMessage](RelayMessage)


# --- supervisor and worker -------------------------------------------------

Role = Literal["worker", "exporter", "template"]
"""What a forked process is for."""


class Raw(Model):
    """One raw image of one detector, complete on the shared filesystem."""

    path: str
    """Absolute path of the FITS file, or the URI of an object, escaped."""
    sidecar: str | None = None
    """Absolute path of the JSON file beside it, if there is one."""
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
    """When it was known to be complete, TAI seconds since 1970."""


class Pipelines(Model):
    """The pipeline files chosen for a visit, in order of preference."""

    preprocessing: tuple[str, ...] = ()
    main: tuple[str, ...] = ()


class Prepare(Model):
    """Do everything for this visit-detector that needs no pixels."""

    type: Literal["prepare"] = "prepare"
    visit_number: int = 0
    """Counts the visits of a worker from 1; every fact of this visit bears it."""
    visit: NextVisit
    detector: int
    attempt: int = 1
    pipelines: Pipelines


class Ingest(Model):
    """Take this raw into the local repo."""

    type: Literal["ingest"] = "ingest"
    raw: Raw


class Process(Model):
    """Run the pipeline on these exposures and spool its outputs."""

    type: Literal["process"] = "process"
    exposures: tuple[int, ...]
    partial: bool = False
    """Whether fewer snaps came than announced."""


class GiveUp(Model):
    """Forget the present visit; the next order is for another one."""

    type: Literal["give_up"] = "give_up"
    reason: str


class ExportSpool(Model):
    """Register these spooled visits' outputs in the central repo."""

    type: Literal["export"] = "export"
    spools: tuple[str, ...]
    """Directories with a manifest each."""


class Quit(Model):
    """End now, with exit status 0."""

    type: Literal["quit"] = "quit"


type WorkerOrder = Annotated[Prepare | Ingest | Process | GiveUp | ExportSpool | Quit, _BY_TYPE]
ORDERS = pydantic.TypeAdapter[WorkerOrder](WorkerOrder)


class Fact(Model):
    """What a worker tells; `visit_number` says of which visit."""

    visit_number: int = 0
    """The `Prepare` that it belongs to; 0 before the first one."""


class Ready(Fact):
    """The process has booted and takes orders."""

    type: Literal["ready"] = "ready"
    pid: int


class Prepared(Fact):
    """The worker waits for raws."""

    type: Literal["prepared"] = "prepared"
    pipeline: str = ""
    """The pipeline that will run unless its graph cannot be built."""
    detail: dict[str, Any] = {}
    """Figures of the preload, for the journal."""


class Ingested(Fact):
    """A raw is in the worker's repo."""

    type: Literal["ingested"] = "ingested"
    exposure: int
    shutter_close_tai: float | None = None
    """End of the exposure by its header, TAI seconds since 1970."""


class RawRefused(Fact):
    """A raw cannot be used; the file is untouched."""

    type: Literal["raw_refused"] = "raw_refused"
    exposure: int
    outcome: Outcome
    reason: str


class StageReached(Fact):
    """The visit-detector came so far."""

    type: Literal["stage"] = "stage"
    stage: Stage
    tai: float
    detail: dict[str, Any] = {}


class PointOfNoReturn(Fact):
    """The next thing that happens can not be repeated; said before it."""

    type: Literal["no_return"] = "no_return"
    what: Annotated[str, pydantic.Field(min_length=1)]


class Done(Fact):
    """The visit-detector ended; its outputs, if any, are in the spool."""

    type: Literal["done"] = "done"
    outcome: Outcome
    reason: str = ""
    retriable: bool = False
    nothing_permanent: bool = False
    """Whether it is known that nothing permanent has happened, although a
    point of no return was announced."""
    pipeline: str = ""
    engine: str = ""
    spool: str | None = None
    """Directory with a manifest, complete on disk, waiting for export."""
    datasets: Storable = 0
    """How many datasets are spooled."""
    tainted: str = ""
    """What the visit has changed in the process, which must end for it."""


type WorkerFact = Annotated[
    Ready | Prepared | Ingested | RawRefused | StageReached | PointOfNoReturn | Done, _BY_TYPE
]
FACTS = pydantic.TypeAdapter[WorkerFact](WorkerFact)


class Exported(Model):
    """These spooled visits are in the central repo, and gone from the spool."""

    type: Literal["exported"] = "exported"
    spools: tuple[str, ...]
    refused: tuple[str, ...] = ()
    """Others that cannot be registered; they were set apart."""
    tai: float
    datasets: int


class SpoolRefused(Model):
    """An export failed; the spool is as it was, try again later."""

    type: Literal["spool_refused"] = "spool_refused"
    spools: tuple[str, ...]
    reason: str


type ExporterFact = Annotated[Ready | Exported | SpoolRefused, _BY_TYPE]
EXPORTER_FACTS = pydantic.TypeAdapter[ExporterFact](ExporterFact)


# --- supervisor and zygote -------------------------------------------------


class ForkWorker(Model):
    """Fork a process; its channel and pidfd come back with `Forked`."""

    type: Literal["fork"] = "fork"
    role: Role
    slot: int
    """The slot; below 0 for processes without one."""
    epoch: int
    """Counts the lives in this slot."""
    repo: str
    """The process's own folder on the RAM disk."""
    log: str
    """The file that takes its standard output and error."""
    generation: int = 1
    """Whose configuration and template it has; see `ppdaemon.folders`."""


ZYGOTE_ORDERS = pydantic.TypeAdapter[ForkWorker](ForkWorker)


class ZygoteReady(Model):
    """Everything is imported and one thread is left."""

    type: Literal["zygote_ready"] = "zygote_ready"
    pid: int
    import_s: float
    modules: int


class Forked(Model):
    """A process was forked; packet carries its channel and its pidfd."""

    type: Literal["forked"] = "forked"
    role: Role
    slot: int
    epoch: int
    pid: int


class ForkFailed(Model):
    """The fork did not happen."""

    type: Literal["fork_failed"] = "fork_failed"
    role: Role
    slot: int
    epoch: int
    reason: str


class Reaped(Model):
    """A process of this zygote ended."""

    type: Literal["reaped"] = "reaped"
    pid: int
    status: int
    """Exit status, or minus the signal's number."""
    max_rss_bytes: int
    cpu_s: float


type ForkFact = Annotated[Forked | ForkFailed | Reaped, _BY_TYPE]
"""What became of a fork."""
type ZygoteFact = Annotated[ZygoteReady | Forked | ForkFailed | Reaped, _BY_TYPE]
ZYGOTE_FACTS = pydantic.TypeAdapter[ZygoteFact](ZygoteFact)


# --- supervisor and reader -------------------------------------------------

FACT_KEYS = ("GROUPID", "OBSID", "CURINDEX", "MAXINDEX", "expectedSensors")
"""What is told of a sidecar, a header, or a list of detectors."""


class ReadObject(Model):
    """Read what an object says of its exposure."""

    type: Literal["read_object"] = "read_object"
    number: int
    """Stands in the answer."""
    what: Literal["json", "header"]
    """The whole, or the primary header of a FITS file."""
    uri: str
    """Escaped as URIs are."""


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
    """Those of `FACT_KEYS` that it has; not checked yet."""


class ObjectUnread(Model):
    """An object was not read."""

    type: Literal["object_unread"] = "object_unread"
    number: int
    why: Literal["missing", "bad", "unavailable"]
    """Not there; not to be understood; or the store does not serve now."""
    reason: str


type ReaderFact = Annotated[ReaderReady | ObjectRead | ObjectUnread, _BY_TYPE]
READER_FACTS = pydantic.TypeAdapter[ReaderFact](ReaderFact)
