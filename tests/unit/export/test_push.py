"""--push, to a hub on 127.0.0.1 that takes what huggingface_hub sends."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.command_line import CommandLine

RUN = ROOT / "tests" / "golden" / "2026-11-26" / "bytes"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`files` are those of the last commit, `made` the repositories that were asked for, `status` the answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.status = 200

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        hub, body = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        if hub.status != 200:
            self._answer(hub.status, {"error": "as asked"})
        elif self.path == "/api/repos/create":
            hub.made.append(json.loads(body))
            self._answer(200, {"url": f"{hub.endpoint}/me/{hub.made[-1]['name']}"})
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
            self._answer(200, {"files": modes})
        elif "/commit/" in self.path:
            entries = [json.loads(line) for line in body.splitlines()]
            hub.files = {
                entry["value"]["path"]: base64.b64decode(entry["value"]["content"])
                for entry in entries
                if entry["key"] == "file"
            }
            self._answer(200, {"commitUrl": f"{hub.endpoint}/me/it/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer(404, {"error": "not found"})

    def _answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub
        hub.shutdown()
        thread.join()


def test_the_folder_goes_up_as_it_is(hub: Hub, cli: CommandLine, tmp_path: Path) -> None:
    words = ("export", RUN, "--to", "hf", "--output", tmp_path / "out", "--push", "small")
    assert cli.document(*words)["address"] == f"{hub.endpoint}/me/small"
    assert hub.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert [made["visibility"] for made in hub.made] == ["private"]
    cli.document(*words, "--replace", "--public")
    assert [made["visibility"] for made in hub.made] == ["private", "public"]


def test_a_hub_that_refuses_is_told_in_one_line_and_the_folder_stays(
    hub: Hub, cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", RUN, "--to", "safetensors", "--output", tmp_path / "out", "--replace", "--push")
    for status, reason in ((401, "access denied with the token"), (503, "try again later")):
        hub.status = status
        done = cli(*words, "me/small")
        last = done.told.rpartition("bytetwin: ")[2]
        assert done.status == 2 and f"answers {status} for model me/small: {reason}" in last
        assert (tmp_path / "out" / "model.safetensors").exists()
    done = cli(*words, "a name")
    assert done.status == 2 and "bytetwin: --push a name: " in done.told
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot reach the hub" in cli(*words, "me/small").told
