"""A forward proxy in a thread: CONNECT and absolute URLs, with basic authentication where it is asked for."""

from __future__ import annotations

import base64
import contextlib
import select
import socket
import socketserver
import threading
from typing import Any, Self
from urllib.parse import urlsplit


class ProxyDouble:
    """Serves from ``with`` to its end. `heads` are the request lines with headers that it saw, `bodies` what was sent behind them."""

    def __init__(self, user: str = "", password: str = "") -> None:
        self.heads: list[str] = []
        self.first_bytes: list[bytes] = []
        self._wanted = base64.b64encode(f"{user}:{password}".encode()).decode() if user else None

    def __enter__(self) -> Self:
        double = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                double._handle(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, client: Any) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            more = client.recv(65536)
            if not more:
                return
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        text = head.decode("latin-1")
        self.heads.append(text)
        if self._wanted is not None and f"proxy-authorization: basic {self._wanted}".lower() not in text.lower():
            client.sendall(
                b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        method, target, _ = text.split(" ", 2)
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            with socket.create_connection((host, int(port))) as server:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._pipe(client, server)
            return
        parts = urlsplit(target)
        with socket.create_connection((parts.hostname or "", parts.port or 80)) as server:
            self.first_bytes.append(body)
            path = target.removeprefix(f"{parts.scheme}://{parts.netloc}")
            server.sendall(data.replace(target.encode(), path.encode(), 1))
            self._pipe(client, server)

    def _pipe(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                for ready in select.select([one, other], [], [])[0]:
                    data = ready.recv(65536)
                    if not data:
                        return
                    (other if ready is one else one).sendall(data)
