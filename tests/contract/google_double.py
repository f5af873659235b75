"""A double of Google's token endpoint, security token service, metadata server and prediction endpoint, all in one server."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import jwt

SUBJECT = "subject-token-of-the-platform"


class GoogleDouble:
    """Serves from ``with`` to its end. `grants` counts what tokens were asked for with; those in `valid` are taken.

    A token lives for `expires_in` seconds. `down` answers 503 where tokens are asked for.
    """

    def __init__(self) -> None:
        self.grants: Counter[str] = Counter()
        self.valid: set[str] = set()
        self.expires_in = 3600
        self.down = False
        self.refused = 0
        self.bodies: list[tuple[str, Any]] = []
        self._lock = threading.Lock()
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
        public = serialization.PublicFormat.SubjectPublicKeyInfo
        self._public = key.public_key().public_bytes(serialization.Encoding.PEM, public)

    def __enter__(self) -> Self:
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self._answer(*double._post(self.path, body, self.headers.get("Authorization", "")))

            def do_GET(self) -> None:
                self._answer(*double._metadata(self.path))

            def log_message(self, *args: Any) -> None: ...

            def _answer(self, status: int, content: Any) -> None:
                body = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Type", "application/text" if isinstance(content, str) else "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.address}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def service_account(self, folder: Path) -> str:
        """Write the key of a service account; return its path."""
        return self._written(
            folder / "service-account.json",
            type="service_account",
            client_email="me@example.com",
            private_key=self._private,
            private_key_id="1",
            token_uri=f"{self.url}/token",
        )

    def workload_identity(self, folder: Path) -> str:
        """Write the configuration of workload identity federation, with the platform's token in a file; return its path."""
        (folder / "subject").write_text(SUBJECT)
        return self._written(
            folder / "workload.json",
            type="external_account",
            audience="//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
            subject_token_type="urn:ietf:params:oauth:token-type:jwt",
            token_url=f"{self.url}/sts",
            credential_source={"file": str(folder / "subject")},
        )

    def revoke(self) -> None:
        """Take none of the tokens that were given out."""
        with self._lock:
            self.valid.clear()

    def _written(self, path: Path, **content: Any) -> str:
        path.write_text(json.dumps(content))
        return str(path)

    def _post(self, path: str, body: bytes, authorization: str) -> tuple[int, Any]:
        if path == "/token":
            assertion = parse_qs(body.decode())["assertion"][0]
            jwt.decode(assertion, certs=self._public, verify=True)
            return self._grant("service account")
        if path == "/sts":
            assert parse_qs(body.decode())["subject_token"] == [SUBJECT]
            return self._grant("workload identity")
        with self._lock:
            if authorization.removeprefix("Bearer ") not in self.valid:
                self.refused += 1
                return 401, {
                    "error": {"code": 401, "message": f"Not taken: {authorization}", "status": "UNAUTHENTICATED"}
                }
            asked = json.loads(body)
            self.bodies.append((path, asked))
        return 200, {"predictions": [{"score": 0.5} for _ in asked["instances"]], "deployedModelId": "d-1"}

    def _metadata(self, path: str) -> tuple[int, Any]:
        if "/token" in path:
            return self._grant("metadata")
        if "recursive" in path:
            return 200, {"email": "me@example.com", "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        return 200, "my-project"

    def _grant(self, kind: str) -> tuple[int, Any]:
        with self._lock:
            self.grants[kind] += 1
            if self.down:
                return 503, {"error": "unavailable"}
            token = f"token-{sum(self.grants.values())}-of-the-double"
            self.valid.add(token)
        issued = "urn:ietf:params:oauth:token-type:access_token"
        return 200, {
            "access_token": token,
            "expires_in": self.expires_in,
            "token_type": "Bearer",
            "issued_token_type": issued,
        }
