"""A small hub on 127.0.0.1 that speaks what huggingface_hub asks, and fails on demand.

`HubStandin` serves one data set from memory: its description, sizes and hashes of its files, and the files
themselves from a second address, as the real hub does, with ranges. Faults are set per path or for all.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    """What was asked: `server` is "hub" or "content"."""

    server: str
    method: str
    path: str
    range_header: str | None
    authorization: str | None
    user_agent: str


@dataclass
class Faults:
    """What goes wrong. Numbers of a list are used up, one by each answer for the path."""

    drop_after_bytes: dict[str, list[int]] = field(default_factory=dict)  # Reset the connection after so many.
    end_after_bytes: dict[str, list[int]] = field(default_factory=dict)  # Close it in order, with less than said.
    hold_after_bytes: dict[str, list[int]] = field(default_factory=dict)  # Send no more until `release` is set.
    file_status: dict[str, list[int]] = field(default_factory=dict)
    api_status: int = 200
    wrong_bytes: dict[str, bytes] = field(default_factory=dict)  # Sent in place of the file's own.
    wrong_hash: dict[str, str] = field(default_factory=dict)
    ignore_ranges: bool = False
    api_text: bytes | None = None  # Sent in place of every description.
    hidden: set[str] = field(default_factory=set)  # Listed, but without size and hash.


class HubStandin:
    """Use it as a context manager. `requests` is the log; `endpoint` is for HF_ENDPOINT."""

    def __init__(self, repo_id: str, files: dict[str, bytes], *, small: frozenset[str] = frozenset()) -> None:
        """`files`: content by path; those in `small` are kept by git itself, and so have no SHA-256."""
        self.repo_id = repo_id
        self.files = dict(files)
        self.small = small
        self.faults = Faults()
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.release = threading.Event()
        self._servers = [_Server(self, "hub"), _Server(self, "content")]
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}) for server in self._servers
        ]

    @property
    def endpoint(self) -> str:
        """Address of the hub."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def content_endpoint(self) -> str:
        """Address that files are fetched from. Another name, so that a token must not follow."""
        return f"http://localhost:{self._servers[1].server_port}"

    def fetched(self, path: str) -> list[str | None]:
        """The range header of every request for a file's bytes."""
        return [entry.range_header for entry in self.requests if entry.server == "content" and entry.path == path]

    def __enter__(self) -> HubStandin:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: HubStandin, kind: str) -> None:
        self.hub = hub
        self.kind = kind
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing where the client has hung up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.server.kind == "content":
            self._log(path.lstrip("/"))
            self._file(path.lstrip("/"))
            return
        self._log(path)
        hub = self.server.hub
        resolve = re.fullmatch(rf"/datasets/{hub.repo_id}/resolve/{REVISION}/(.+)", path)
        if resolve is not None:
            self._resolve(resolve[1])
        elif path == f"/api/datasets/{hub.repo_id}":
            siblings = [{"rfilename": name} for name in hub.files]
            self._description({"id": hub.repo_id, "sha": REVISION, "siblings": siblings})
        else:
            self._json(404, {"error": "not found"})

    def do_POST(self) -> None:
        body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        path = unquote(urlsplit(self.path).path)
        self._log(path)
        hub = self.server.hub
        if path != f"/api/datasets/{hub.repo_id}/paths-info/{REVISION}":
            self._json(404, {"error": "not found"})
            return
        known = [name for name in body["paths"] if name in hub.files and name not in hub.faults.hidden]
        self._description([self._described(name) for name in known])

    def _described(self, name: str) -> dict[str, object]:
        hub = self.server.hub
        content = hub.files[name]
        blob_id = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": blob_id}
        if name not in hub.small:
            sha256 = hub.faults.wrong_hash.get(name, hashlib.sha256(content).hexdigest())
            entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, name: str) -> None:
        hub = self.server.hub
        statuses = hub.faults.file_status.get(name)
        if statuses:
            status = statuses.pop(0)
            if status != 200:
                self._json(status, {"error": "as asked"})
                return
        if name not in hub.files:
            self._json(404, {"error": "not found"})
            return
        self.send_response(302)
        self.send_header("Location", f"{hub.content_endpoint}/{name}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _file(self, name: str) -> None:
        faults = self.server.hub.faults
        content = faults.wrong_bytes.get(name, self.server.hub.files[name])
        begin = 0
        asked = re.fullmatch(r"bytes=([0-9]+)-", self.headers.get("Range", ""))
        if asked is not None and not faults.ignore_ranges:
            begin = int(asked[1])
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        for cut, resets in ((faults.drop_after_bytes, True), (faults.end_after_bytes, False)):
            if cut.get(name):
                self.wfile.write(content[begin : begin + cut[name].pop(0)])
                self._disconnect(resets)
                return
        hub = self.server.hub
        if faults.hold_after_bytes.get(name):
            self.wfile.write(content[begin : begin + faults.hold_after_bytes[name].pop(0)])
            self.wfile.flush()
            hub.release.wait()
            self.close_connection = True
            return
        self.wfile.write(content[begin:])

    def _disconnect(self, resets: bool) -> None:
        self.wfile.flush()
        if resets:
            # Closing with no time to linger sends a reset; what is under way may get lost with it.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _description(self, document: object) -> None:
        faults = self.server.hub.faults
        if faults.api_text is not None:
            self._send(200, faults.api_text)
        elif faults.api_status != 200:
            self._json(faults.api_status, {"error": "as asked"})
        else:
            self._json(200, document)

    def _json(self, status: int, document: object) -> None:
        self._send(status, json.dumps(document).encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        self.wfile.write(body)

    def _log(self, path: str) -> None:
        entry = Request(
            self.server.kind,
            self.command,
            path,
            self.headers.get("Range"),
            self.headers.get("Authorization"),
            self.headers.get("User-Agent", ""),
        )
        with self.server.hub.lock:
            self.server.hub.requests.append(entry)
