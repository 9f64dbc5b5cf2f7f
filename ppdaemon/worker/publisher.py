# SPDX-License-Identifier: BSD-3-Clause
"""Publishes metrics and telemetry, for the supervisor.

A separate process: its threads wait for networks, and the client library of Kafka starts threads of
its own. Started only where something is published.
"""

import logging
import os
import select
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pydantic

from ppdaemon import log
from ppdaemon.errors import BadMessage
from ppdaemon.messages import PACKET_LIMIT
from ppdaemon.publish import messages
from ppdaemon.publish.config import Publication
from ppdaemon.publish.destination import Destination, open_sink
from ppdaemon.publish.records import bundle_records, telemetry_records
from ppdaemon.wire import decode, encode
from ppdaemon.worker.service import run_service

__all__ = ("main",)

_LOG = logging.getLogger(__name__)

REPORT_S = 1.0
"""Shortest interval of reports."""
LEAVE_S = 60.0
"""How long what waits for a place is sent there after a reload without it: the longest pause of a
destination."""


class Publisher:
    """Reads orders, and distributes what they name to the destinations."""

    def __init__(self, channel: socket.socket, settings: messages.PublisherSettings):
        self._channel = channel
        self._folder = Path(settings.folder)
        self._places: dict[str, Destination] = {}
        self._leaving: dict[str, tuple[float, Destination]] = {}
        """Where nothing more is published, and until when what waits is sent there."""
        self._orders = 0
        self._last: messages.PublishReport | None = None
        self._configure(settings.publish)

    def _configure(self, publish: Sequence[Publication]) -> None:
        """Publish there from now on; what waits for another place is still sent for a while."""
        for name in self._places.keys() - {config.name for config in publish}:
            self._leaving[name] = (time.monotonic() + LEAVE_S, self._places.pop(name))
        for config in publish:
            if (back := self._leaving.pop(config.name, None)) is not None:
                self._places[config.name] = back[1]
            if (place := self._places.get(config.name)) is not None:
                place.config = config  # what waits goes there with the new options
            else:
                self._places[config.name] = Destination(config, open_sink)
                self._places[config.name].start()

    def _leave(self) -> None:
        """Give up the places where nothing more waits, or the time is over."""
        for name, (until, place) in list(self._leaving.items()):
            waiting = place.report().waiting
            if waiting and time.monotonic() < until:
                continue
            if waiting:
                _LOG.warning("%d records are dropped, %s is no longer configured", waiting, name)
            place.stop()
            del self._leaving[name]

    def serve(self) -> None:
        """Serve until the supervisor closes its end."""
        self._channel.send(encode(messages.PublisherReady(pid=os.getpid())))
        due = time.monotonic() + REPORT_S
        # Left by a publisher that has died; those of visits under way are found a second time, and gone then.
        for path in sorted(self._folder.glob("*.json")):
            self._publish_file(path)
            if time.monotonic() >= due:
                self._last = None  # reports also that nothing has changed: it works, and orders wait
                self._report()
                due = time.monotonic() + REPORT_S
        poll, due = select.poll(), 0.0
        poll.register(self._channel, select.POLLIN)
        while True:
            if poll.poll(REPORT_S * 1000):
                packet = self._channel.recv(PACKET_LIMIT)
                if not packet:
                    return
                order = decode(packet, messages.PUBLISHER_ORDERS, limit=PACKET_LIMIT)
                match order:
                    case messages.Publish():
                        self._publish(order)
                    case messages.PublisherSettings():
                        log.set_up(order.log_level, order.log_format, {}, role="publisher")
                        self._configure(order.publish)
            if time.monotonic() >= due:
                self._leave()
                self._report()
                due = time.monotonic() + REPORT_S

    def _publish(self, order: messages.Publish) -> None:
        self._orders += 1
        for place in self._places.values():
            place.add(telemetry_records(order.telemetry, place.config))
        self._publish_file(self._folder / order.file)

    def _publish_file(self, path: Path) -> None:
        """Publish the bundles of a visit-detector and delete their file, if there is one."""
        try:
            content = messages.BUNDLES.validate_json(path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, pydantic.ValidationError) as error:  # a full disk, or a crash while it was written
            first = str(error).splitlines()[0]
            _LOG.warning("%s cannot be read, its metrics are not published: %s", path.name, first)
            content = ()
        path.unlink(missing_ok=True)  # first: a file that this process does not survive is not read again
        for bundle in content:
            for place in self._places.values():
                try:
                    place.add(list(bundle_records(bundle, place.config)))
                except BadMessage as error:
                    _LOG.warning("metrics of %s are not published: %s", path.name, error)

    def _report(self) -> None:
        leaving = [place for _, place in self._leaving.values()]
        places = tuple(place.report() for place in (*self._places.values(), *leaving))
        report = messages.PublishReport(orders=self._orders, places=places)
        if report != self._last:
            self._channel.send(encode(report))
            self._last = report


def _serve(channel: socket.socket) -> None:
    settings = decode(channel.recv(PACKET_LIMIT), messages.PUBLISHER_ORDERS, limit=PACKET_LIMIT)
    assert isinstance(settings, messages.PublisherSettings)
    log.set_up(settings.log_level, settings.log_format, {}, role="publisher")
    Publisher(channel, settings).serve()


def main() -> None:
    """Run the publisher."""
    run_service("publisher", __doc__, _serve)


if __name__ == "__main__":
    main()
