"""A schema registry for tests and experiments: the Confluent interface over HTTP on 127.0.0.1, in memory.

It gives out ids and GUIDs, keeps subjects, checks compatibility of Avro records as far as `compatible_backward` goes, and answers
Apicurio's own two look-ups. `fail_next` makes it answer with errors.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

BASE = "/apis/ccompat/v7"
_OWN = "/apis/registry/v3"


class RegistryDouble:
    """A registry at `url` from `__enter__` to `__exit__`. `requests` are the method and path of each request so far."""

    def __init__(self, level: str = "BACKWARD") -> None:
        self.requests: list[tuple[str, str]] = []
        self.authorization: str | None = None
        self._contents: list[dict[str, Any]] = []
        self._guids: dict[str, int] = {}
        self._subjects: dict[str, list[int]] = {}
        self._levels: dict[str, str] = {}
        self._level = level
        self._failures: list[int] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Bound", (_Handler,), {"registry": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """The base of the Confluent interface."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{BASE}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail_next(self, *statuses: int) -> None:
        """The next requests are answered with these statuses."""
        self._failures.extend(statuses)

    def guid_of(self, number: int) -> str:
        """The GUID of the schema with this id."""
        return next(guid for guid, known in self._guids.items() if known == number)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """The status and content of the answer to one request."""
        self.requests.append((method, path))
        if self._failures:
            return self._failures.pop(0), {"message": "out of order"}
        for pattern, function in _ROUTES:
            match = re.fullmatch(pattern, f"{method} {path}")
            if match:
                answer: tuple[int, Any] = function(self, *match.groups(), *([body] if body is not None else []))
                return answer
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _types(self) -> tuple[int, Any]:
        return 200, ["AVRO", "PROTOBUF", "JSON"]

    def _by_id(self, number: str) -> tuple[int, Any]:
        if not 0 < int(number) <= len(self._contents):
            return 404, {"error_code": 40403, "message": "Schema not found"}
        return 200, self._contents[int(number) - 1]

    def _by_guid(self, guid: str) -> tuple[int, Any]:
        return self._by_id(str(self._guids.get(guid, 0)))

    def _own(self, number: str) -> tuple[int, Any]:
        status, content = self._by_id(number)
        return status, content["schema"] if status == 200 else content

    def _own_references(self, number: str) -> tuple[int, Any]:
        references = self._by_id(number)[1].get("references", [])
        return 200, [{**one, "artifactId": one["subject"]} for one in references]

    def _versions(self, subject: str) -> tuple[int, Any]:
        if subject not in self._subjects:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        return 200, [*range(1, len(self._subjects[subject]) + 1)]

    def _version(self, subject: str, version: str) -> tuple[int, Any]:
        numbers = self._subjects.get(subject, [])
        if not 0 < int(version) <= len(numbers):
            return 404, {"error_code": 40402, "message": "Version not found."}
        number = numbers[int(version) - 1]
        return 200, {"subject": subject, "version": int(version), "id": number, **self._contents[number - 1]}

    def _look_up(self, subject: str, body: Any) -> tuple[int, Any]:
        for number in self._subjects.get(subject, []):
            if self._contents[number - 1] == _content(body):
                return 200, {"subject": subject, "id": number, "version": self._subjects[subject].index(number) + 1}
        return 404, {"error_code": 40403, "message": "Schema not found"}

    def _register(self, subject: str, body: Any) -> tuple[int, Any]:
        content = _content(body)
        if self._against(subject, content):
            return 409, {"error_code": 409, "message": f"incompatible with an earlier schema for subject {subject}"}
        if content not in self._contents:
            self._contents.append(content)
            self._guids[str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(content)))] = len(self._contents)
        number = self._contents.index(content) + 1
        if number not in self._subjects.setdefault(subject, []):
            self._subjects[subject].append(number)
        return 200, {"id": number}

    def _check(self, subject: str, body: Any) -> tuple[int, Any]:
        if subject not in self._subjects:
            return 404, {"error_code": 40401, "message": f"Subject '{subject}' not found."}
        against = self._against(subject, _content(body))
        return 200, {"is_compatible": not against, "messages": against}

    def _configure(self, subject: str, body: Any) -> tuple[int, Any]:
        self._levels[subject] = body["compatibility"]
        return 200, body

    def _against(self, subject: str, content: dict[str, Any]) -> list[str]:
        numbers = self._subjects.get(subject)
        if not numbers or self._levels.get(subject, self._level) == "NONE" or "schemaType" in content:
            return []
        return compatible_backward(self._contents[numbers[-1] - 1]["schema"], content["schema"])


def _content(body: Any) -> dict[str, Any]:
    return {name: body[name] for name in ("schema", "schemaType", "references") if body.get(name)}


def compatible_backward(old: str, new: str) -> list[str]:
    """What keeps the Avro record `new` from reading what `old` wrote: fields that are new and have no default."""
    before = {field["name"] for field in json.loads(old)["fields"]}
    added = [field for field in json.loads(new)["fields"] if field["name"] not in before]
    return [f"the field {field['name']} is new and has no default" for field in added if "default" not in field]


_D = RegistryDouble
_ROUTES = (
    (rf"GET {BASE}/schemas/types", _D._types),  # noqa: SLF001 - of this file
    (rf"GET {BASE}/schemas/ids/(\d+)", _D._by_id),  # noqa: SLF001
    (rf"GET {BASE}/schemas/guids/([0-9a-f-]+)", _D._by_guid),  # noqa: SLF001
    (rf"GET {_OWN}/ids/(?:globalIds|contentIds)/(\d+)", _D._own),  # noqa: SLF001
    (rf"GET {_OWN}/ids/(?:globalIds|contentIds)/(\d+)/references", _D._own_references),  # noqa: SLF001
    (rf"GET {BASE}/subjects/([^/]+)/versions", _D._versions),  # noqa: SLF001
    (rf"GET {BASE}/subjects/([^/]+)/versions/(\d+)", _D._version),  # noqa: SLF001
    (rf"POST {BASE}/subjects/([^/]+)", _D._look_up),  # noqa: SLF001
    (rf"POST {BASE}/subjects/([^/]+)/versions", _D._register),  # noqa: SLF001
    (rf"POST {BASE}/compatibility/subjects/([^/]+)/versions/latest\?verbose=true", _D._check),  # noqa: SLF001
    (rf"PUT {BASE}/config/([^/]+)", _D._configure),  # noqa: SLF001
)


class _Handler(BaseHTTPRequestHandler):
    registry: RegistryDouble
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet, else the client waits for its delayed acknowledgement

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.registry.authorization = self.headers.get("Authorization")
        status, content = self.registry.answer(self.command, self.path, body)
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Says nothing."""
