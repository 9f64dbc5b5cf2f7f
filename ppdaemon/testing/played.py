# SPDX-License-Identifier: BSD-3-Clause
"""Both ends of the link between relay and node, played by a test: `PlayedRelay`
for a real node, `PlayedNode` for a real relay.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self

import zmq

from ppdaemon.clock import Clock
from ppdaemon.curve import ClientKeys
from ppdaemon.messages import (
    NODE_LIMIT,
    CancelVisit,
    FromNode,
    FromRelay,
    Heartbeat,
    Hello,
    HelloRefused,
    PermitRefused,
    PermitRequest,
    Permitted,
    ReserveVisit,
    ResultEntry,
    Results,
    ResultsSeen,
    SendHello,
    VisitAccepted,
    VisitRefused,
    Welcome,
)
from ppdaemon.states import Outcome
from ppdaemon.testing.waiting import TIMEOUT_S, wait_until
from ppdaemon.visit import NextVisit, read_next_visit
from ppdaemon.wire import decode, encode

__all__ = ("PlayedNode", "PlayedRelay", "ClientSockets", "VisitDetector")

type VisitDetector = tuple[str, int]
"""Group and detector."""

HEARTBEAT_S = 0.1


class ClientSockets:
    """Creates client sockets and closes all of them; a context manager."""

    def __init__(self) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._made: list[zmq.Socket[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def connect(
        self, kind: zmq.SocketType, address: str, keys: ClientKeys | None = None
    ) -> zmq.Socket[bytes]:
        """Return a connected socket, encrypted if there are keys; receiving waits ``TIMEOUT_S`` at
        most.
        """
        made = self._context.socket(kind)
        self._made.append(made)  # a socket that is collected before it is closed causes a warning
        made.rcvtimeo = round(TIMEOUT_S * 1000)
        made.set(zmq.RECONNECT_IVL, 20)
        if keys is not None:
            keys.apply(made)
        made.connect(address)
        return made


class _LinkEnd:
    """Stamps and numbers the messages of one end of the link."""

    def __init__(self, name: str):
        self.name = name
        self._sequence = 0
        self._next_heartbeat = 0.0

    def message(self, kind: type[Any], **fields: Any) -> bytes:
        """Return a message as it goes over the link."""
        self._sequence += 1
        return encode(kind(origin=self.name, sent_tai=Clock().tai(), sequence=self._sequence, **fields))

    def _heartbeat_is_due(self, every_s: float) -> bool:
        now = time.monotonic()
        if now < self._next_heartbeat:
            return False
        self._next_heartbeat = now + every_s
        return True


class PlayedRelay(_LinkEnd):
    """The relay of one node: sends the messages that a test asks for, confirms outcomes.

    It receives and answers only in `listen`, `wait` and `outcome`, in the thread of the test.

    Parameters
    ----------
    address : `str`, optional
        Where to listen; a free TCP port by default.
    heartbeat_s : `float`, optional
        Period of its heartbeats, in seconds.

    Attributes
    ----------
    address : `str`
        Address for the key ``relay.address`` of the node.
    hellos : `list` [`~ppdaemon.messages.Hello`]
        Hello messages of the node, in order of arrival.
    acked : `set` [`tuple` [`str`, `int`]]
        Visit-detectors that the node has accepted.
    naks : `list` [`~ppdaemon.messages.VisitRefused`]
        Refusals of the node, in order of arrival.
    returned : `list` [`~ppdaemon.messages.ResultEntry`]
        Visit-detectors that the node had accepted and has given back, repetitions included.
    results : `dict`
        By visit-detector, all outcomes that were received, repetitions included.
    open : `set` [`tuple` [`str`, `int`]]
        Visit-detectors that were reserved and have no outcome yet.
    asked : `list` [`tuple` [`str`, `int`]]
        Visit-detectors for which the node has asked for permits, repetitions included.
    permits : {``"granted"``, ``"refused"``, ``"unanswered"``}
        How such requests are answered from now on.
    epoch : `int`
        Epoch in its messages.
    """

    def __init__(self, address: str = "tcp://127.0.0.1:*", *, heartbeat_s: float = HEARTBEAT_S):
        super().__init__("played")
        self.hellos: list[Hello] = []
        self.acked: set[VisitDetector] = set()
        self.naks: list[VisitRefused] = []
        self.returned: list[ResultEntry] = []
        self.results: dict[VisitDetector, list[ResultEntry]] = {}
        self.open: set[VisitDetector] = set()
        self.asked: list[VisitDetector] = []
        self.permits: Literal["granted", "refused", "unanswered"] = "granted"
        self.epoch = 1
        self._heartbeat_s = heartbeat_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        # No limit of queued messages: a test may listen late.
        for option, value in ((zmq.LINGER, 0), (zmq.MAXMSGSIZE, NODE_LIMIT), (zmq.RCVHWM, 0)):
            self._socket.set(option, value)
        self._socket.bind(address)
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._peer: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.term()

    @property
    def connected(self) -> bool:
        """Whether the node has introduced itself (`bool`)."""
        return self._peer is not None

    def send(self, kind: type[Any], **fields: Any) -> None:
        """Send a message of a kind; does nothing before the first message of the node."""
        self.send_raw(self.message(kind, **fields))

    def send_raw(self, data: bytes) -> None:
        """Send any bytes; does nothing before the first message of the node."""
        if self._peer is not None:
            self._socket.send_multipart([self._peer, data])  # dropped if the node has disconnected

    def reserve(
        self, group: str, detectors: Iterable[int] = (0,), *, instrument: str = "DemoCam", **fields: Any
    ) -> float:
        """Reserve detectors for a visit, in one message.

        Parameters
        ----------
        group : `str`
            Group of the visit, unique in the test.
        detectors : `~collections.abc.Iterable` [`int`], optional
            Detectors that the node is to process.
        instrument : `str`, optional
            Short name of the visit's camera.
        **fields
            Further fields of the next_visit by their SAL names; ``survey`` scripts the workers of
            `ppdaemon.testing.work`. One image is announced by default.

        Returns
        -------
        sent : `float`
            Monotonic seconds, just before the message was sent.
        """
        visit = read_next_visit({"groupId": group, "instrument": instrument, "nimages": 1, **fields})
        return self.reserve_visit(visit, detectors)

    def reserve_visit(
        self,
        visit: NextVisit,
        detectors: Iterable[int],
        received_tai: float | None = None,
        attempt: int = 1,
    ) -> float:
        """Reserve detectors for a visit that was read before; see `reserve`."""
        chosen = tuple(detectors)
        self.open |= {(visit.group, detector) for detector in chosen} - self.results.keys()
        tai = Clock().tai() if received_tai is None else received_tai
        data = self.message(ReserveVisit, visit=visit, detectors=chosen, received_tai=tai, attempt=attempt)
        sent = time.monotonic()
        self.send_raw(data)
        return sent

    def cancel(
        self, group: str, detectors: tuple[int, ...] | None = None, *, instrument: str = "DemoCam"
    ) -> None:
        """Cancel a visit, or some of its detectors."""
        self.send(CancelVisit, instrument=instrument, group=group, detectors=detectors)

    def listen(self, wait_s: float = 0.0) -> None:
        """Receive all pending messages, and answer as a relay does.

        Parameters
        ----------
        wait_s : `float`, optional
            How long to wait for a first message.
        """
        if self.connected and self._heartbeat_is_due(self._heartbeat_s):
            self.send(Heartbeat)
        while self._socket.poll(round(wait_s * 1000)):
            wait_s = 0.0
            peer, data = self._socket.recv_multipart()
            message = decode(data, FromNode, limit=NODE_LIMIT)
            if isinstance(message, Hello):
                self._peer = peer
            self.on_message(message)

    def listen_for(self, seconds: float) -> None:
        """Listen for a while."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            self.listen(min(rest, self._heartbeat_s))

    def on_message(self, message: Any) -> None:
        """Store a message of the node and answer it."""
        match message:
            case Hello():
                self.hellos.append(message)
                self.send(Welcome, incarnation="played", epoch=self.epoch)
            case PermitRequest(visits=visits):
                self.asked += [(visit.group, detector) for visit in visits for detector in visit.detectors]
                if self.permits == "granted":
                    run = self.hellos[-1].incarnation
                    self.send(Permitted, epoch=self.epoch, incarnation=run, visits=visits)
                elif self.permits == "refused":
                    self.send(PermitRefused, visits=visits, reason="by order of the test")
            case VisitAccepted(group=group, detectors=detectors):
                self.acked |= {(group, detector) for detector in detectors}
            case VisitRefused():
                self.naks.append(message)
            case Results(entries=entries):
                for entry in entries:
                    key = (entry.group, entry.detector)
                    self.open.discard(key)
                    if entry.returned:
                        self.returned.append(entry)
                        self.acked.discard(key)
                    else:
                        self.results.setdefault(key, []).append(entry)
                keys = tuple((e.instrument, e.group, e.detector, e.attempt) for e in entries)
                self.send(ResultsSeen, entries=keys)

    def wait[T](
        self,
        condition: Callable[[], T],
        deadline_s: float = TIMEOUT_S,
        story: str | Callable[[], object] = "",
    ) -> T:
        """Listen until a condition is true; see `~ppdaemon.testing.waiting.wait_until`."""

        def listening() -> T:
            self.listen()
            return condition()

        return wait_until(listening, deadline_s, story or self.story)

    def outcome(self, group: str, detector: int = 0, deadline_s: float = TIMEOUT_S) -> ResultEntry:
        """Wait for the outcome of a visit-detector; a second, different one is a fault.

        Parameters
        ----------
        group : `str`
            Group of a visit that was reserved before.
        detector : `int`, optional
            Id of one of the reserved detectors.
        deadline_s : `float`, optional
            How long it may take.

        Returns
        -------
        entry : `~ppdaemon.messages.ResultEntry`
            Outcome with attempt and reason, as the node sent it.

        Raises
        ------
        AssertionError
            Raised if the deadline passes, or two different outcomes were sent.
        """
        entries = self.wait(lambda: self.results.get((group, detector)), deadline_s) or []
        if len({(entry.outcome, entry.attempt) for entry in entries}) != 1:
            raise AssertionError(f"different outcomes of one visit-detector: {entries}")
        return entries[0]

    def story(self) -> str:
        """Return the received answers and results, for a failure."""
        return f"acked {sorted(self.acked)} naks {self.naks} results {self.results}"


class PlayedNode(_LinkEnd):
    """A node's end of the link: sends the messages that a test asks for.

    Parameters
    ----------
    sockets : `ClientSockets`
        Creates the socket, and closes it at the end of the test.
    address : `str`
        ZeroMQ address of the relay's node socket.
    name : `str`
        Its name in the introduction.
    incarnation : `str`, optional
        Identifies one run of the node.
    detectors : `~collections.abc.Iterable` [`int`], optional
        Detectors of the instrument that it offers.
    instrument : `str`, optional
        Short name of the camera that it serves.
    capacity : `int`, optional
        Visit-detectors that it offers to have at once; by default it is never full.
    spare : `bool`, optional
        Whether it offers to take only what no other node can.
    keys : `~ppdaemon.curve.ClientKeys`, optional
        Those of an encrypted connection.

    Attributes
    ----------
    received : `list`
        All messages of the relay.
    """

    def __init__(
        self,
        sockets: ClientSockets,
        address: str,
        name: str,
        *,
        incarnation: str = "run1",
        detectors: Iterable[int] = range(9),
        instrument: str = "DemoCam",
        capacity: int = 10_000,
        spare: bool = False,
        keys: ClientKeys | None = None,
    ):
        super().__init__(name)
        self.received: list[Any] = []
        self._incarnation = incarnation
        self._offered = {instrument: tuple(detectors)}
        self._capacity, self._spare = capacity, spare
        self._socket = sockets.connect(zmq.DEALER, address, keys)
        self.hello()

    def send(self, kind: type[Any], **fields: Any) -> None:
        """Send a message of a kind."""
        self._socket.send(self.message(kind, **fields))

    def send_raw(self, *frames: bytes) -> None:
        """Send any frames."""
        self._socket.send_multipart(frames)

    def hello(self) -> None:
        """Introduce the node."""
        fields = {"instruments": self._offered, "capacity": self._capacity, "spare": self._spare}
        self.send(Hello, incarnation=self._incarnation, **fields)

    def listen(self) -> None:
        """Receive all pending messages, send heartbeats; introduce the node again if the relay
        asks for it.
        """
        if self._heartbeat_is_due(HEARTBEAT_S):
            self.send(Heartbeat)
        while self._socket.poll(0):
            message = decode(self._socket.recv(), FromRelay, limit=NODE_LIMIT)
            self.received.append(message)
            stranger = isinstance(message, HelloRefused) and message.code == "stranger"
            if stranger or isinstance(message, SendHello):
                self.hello()

    def wait_for(self, kind: str, count: int = 1) -> list[Any]:
        """Wait until this many messages of a type have arrived; return all of them.

        There can be more: unacknowledged messages are sent again.
        """

        def received_enough() -> list[Any]:
            self.listen()
            found = [message for message in self.received if message.type == kind]
            return found if len(found) >= count else []

        return wait_until(received_enough, TIMEOUT_S, lambda: f"{count} {kind} in {self.received}")

    def ack(self, order: ReserveVisit) -> None:
        """Acknowledge an order."""
        self.send(VisitAccepted, **_names(order), detectors=order.detectors, attempt=order.attempt)

    def nak(self, order: ReserveVisit, reason: str, *, final: bool) -> None:
        """Refuse an order."""
        fields = {"detectors": order.detectors, "attempt": order.attempt, "reason": reason, "final": final}
        self.send(VisitRefused, **_names(order), **fields)

    def finish(self, order: ReserveVisit, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        """Report an outcome for each detector of an order."""
        entries = [
            ResultEntry(**_names(order), detector=detector, attempt=order.attempt, outcome=outcome)
            for detector in order.detectors
        ]
        self.send(Results, entries=tuple(entries))

    def disconnect(self) -> None:
        """Close the connection without a message."""
        self._socket.close(linger=0)


def _names(order: ReserveVisit) -> dict[str, str]:
    return {"instrument": order.visit.instrument, "group": order.visit.group}
