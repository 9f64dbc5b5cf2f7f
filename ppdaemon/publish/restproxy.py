# SPDX-License-Identifier: BSD-3-Clause
"""Requests to a REST proxy of Kafka, as that of Sasquatch: topics by its version 3, records by version 2."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppdaemon.errors import BadMessage, PPDaemonError, Unavailable
from ppdaemon.publish.records import Record

__all__ = ("RestProxy", "TooMany")

PARTITIONS = 1
REPLICATION_FACTOR = 3
"""Of new topics; both are those of ``lsst.analysis.tools``."""
EXISTS = 400
"""Answer of the proxy if a new topic exists."""
TOO_LARGE = 413
"""Answer of a proxy, or of a web server before it, to a request that is too large."""
UNPROCESSABLE = 422
"""Answer to a record or a schema that the proxy does not accept, also with `EXISTS`'s number."""
ANSWER_BYTES = 1_000_000
REASON_CHARACTERS = 300


class TooMany(PPDaemonError):
    """The request was too large: send its records in several."""


class RestProxy:
    """Sends records by HTTP; `token` is a file with a bearer token, read for each request."""

    def __init__(self, url: str, token: Path | None, timeout_s: float):
        self._url = url.rstrip("/")
        self._token = token
        self._timeout_s = timeout_s
        self._cluster = ""
        self._created: set[str] = set()

    def send(self, records: Sequence[Record]) -> None:
        """Send records of one topic and schema in one request, and create the topic if needed.

        Raises `~ppdaemon.errors.Unavailable` if they may be accepted later, `TooMany` if fewer may be,
        and `~ppdaemon.errors.BadMessage` if they never will.
        """
        topic, schema = records[0].topic, records[0].schema
        self._create(topic)
        body: dict[str, Any] = {"records": [{"value": record.value} for record in records]}
        if schema is not None:
            body["value_schema"] = schema
        kind = "json" if schema is None else "avro"
        status, answer = self._request(
            "POST", f"/topics/{topic}", body, f"application/vnd.kafka.{kind}.v2+json"
        )
        if status == TOO_LARGE and len(records) > 1:
            raise TooMany(_reason(f"{len(records)} records of {topic}", status, answer))
        if status in (400, TOO_LARGE, UNPROCESSABLE):
            raise BadMessage(_reason(f"records of {topic}", status, answer))
        self._check(f"records of {topic}", status, answer)
        if errors := [each["error"] for each in answer.get("offsets") or () if each.get("error")]:
            # Those of the same request that were accepted are not sent twice.
            raise BadMessage(f"{len(errors)} of {len(records)} records of {topic} were refused: {errors[0]}")

    def _create(self, topic: str) -> None:
        if topic in self._created:
            return
        if not self._cluster:
            status, answer = self._request("GET", "/v3/clusters")
            self._check("its clusters", status, answer)
            try:
                self._cluster = str(answer["data"][0]["cluster_id"])
            except (LookupError, TypeError) as error:
                raise Unavailable(f"{self._url} has no cluster: {answer!r:.{REASON_CHARACTERS}}") from error
        body = {
            "topic_name": topic,
            "partitions_count": PARTITIONS,
            "replication_factor": REPLICATION_FACTOR,
        }
        status, answer = self._request("POST", f"/v3/clusters/{self._cluster}/topics", body)
        if status != EXISTS:
            self._check(f"topic {topic}", status, answer)
        self._created.add(topic)

    def _check(self, what: str, status: int, answer: Any) -> None:
        if not 200 <= status < 300:
            raise Unavailable(f"{self._url}: {_reason(what, status, answer)}")

    def _request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json"
    ) -> tuple[int, Any]:
        """Return status and answer, also if it is an error; raise `~ppdaemon.errors.Unavailable` if there
        is none.
        """
        try:
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(
                f"{self._url}{path}", data, {"Content-Type": content_type}, method=method
            )
            if self._token is not None:  # not for the server to which this one may redirect
                token = self._token.read_text().strip()
                request.add_unredirected_header("Authorization", f"Bearer {token}")
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                answer = json.loads(response.read(ANSWER_BYTES) or b"{}")
                if not isinstance(answer, dict):
                    raise ValueError(f"answered {answer!r:.{REASON_CHARACTERS}}")
                return response.status, answer
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(REASON_CHARACTERS).decode(errors="replace")
        except (OSError, http.client.HTTPException, ValueError) as error:  # away, late, or no JSON
            raise Unavailable(f"{self._url}: {error}") from error


def _reason(what: str, status: int, answer: object) -> str:
    return f"{what}: HTTP {status} {answer!s:.{REASON_CHARACTERS}}"
