# SPDX-License-Identifier: BSD-3-Clause
"""A collector of OpenTelemetry for tests: receives OTLP over HTTP and decodes it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Status

PATH = "/v1/traces"


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """A span as it came over the wire."""

    name: str
    service: str
    instance: str
    trace: bytes
    number: bytes
    parent: bytes
    """Blank for a root."""
    begin_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    problem: str | None


@dataclass(eq=False)
class ReceivingCollector:
    """Serves `endpoint` until the end of the block; answers with `status`, once `go_on` is set."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    requests: int = 0
    status: int = 200
    go_on: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests += 1
                collector.go_on.wait()
                if self.path == PATH and collector.status == 200:
                    collector.spans += received(body)
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: object) -> None:
                pass

        self.go_on.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}{PATH}"
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def received(body: bytes) -> list[ReceivedSpan]:
    """Return the spans of a request."""
    found = []
    for resource_spans in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = values(resource_spans.resource.attributes)
        for scope_spans in resource_spans.scope_spans:
            assert scope_spans.scope.name == "ppdaemon"
            found += [
                ReceivedSpan(
                    span.name,
                    resource["service.name"],
                    resource["service.instance.id"],
                    span.trace_id,
                    span.span_id,
                    span.parent_span_id,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    values(span.attributes),
                    span.status.message if span.status.code == Status.STATUS_CODE_ERROR else None,
                )
                for span in scope_spans.spans
            ]
    return found


def values(attributes: list[KeyValue]) -> dict[str, Any]:
    """Return attributes by name."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
