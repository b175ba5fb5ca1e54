"""A headless Chromium that tests look at pages with: it speaks the DevTools protocol over two pipes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
# The elements that reach beyond the page and are not inside a box that scrolls, then letters smaller than 11 px.
OUTSIDE = """
(() => {
  const wide = document.documentElement.clientWidth, found = [];
  const scrolls = (node) => node && (getComputedStyle(node).overflowX !== "visible" || scrolls(node.parentElement));
  document.querySelectorAll("body *:not(i)").forEach((node) => {
    if (!node.checkVisibility()) return;
    const box = node.getBoundingClientRect(), letters = parseFloat(getComputedStyle(node).fontSize);
    const name = `${node.tagName}.${node.getAttribute("class")} ${node.textContent.slice(0, 40)}`;
    if (box.width && (box.right > wide + 1 || box.left < -1) && !scrolls(node.parentElement))
      found.push(`${name}: from ${box.left} to ${box.right}`);
    if (box.width && node.childElementCount === 0 && node.textContent.trim() && letters < 11)
      found.push(`${name}: letters of ${letters} pixels`);
  });
  const all = document.documentElement.scrollWidth;
  return all > wide ? [`the page is ${all} pixels wide`, ...found] : found;
})()
"""
LOADED = """
new Promise((done) => {
  const drawn = () => requestAnimationFrame(() => requestAnimationFrame(done));
  document.readyState === "complete" ? drawn() : addEventListener("load", drawn);
}).then(() => 1)
"""


def find_browser() -> str | None:
    """The path of a Chromium, None where none is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class Browser:
    """One page of a running browser. `errors` are what its scripts threw and its console complained of."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._buffer, self._count = write, read, b"", 0
        self.errors: list[str] = []
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, path: Path, width: int, *, dark: bool = False) -> None:
        """Load a file in a window of this many pixels, and wait until its scripts ran."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.evaluate(LOADED)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, or of what it promises."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """A picture of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._read, 1 << 16)
            assert piece, "the browser has ended"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(params["args"])[:500])
        return message


@contextlib.contextmanager
def open_browser(path: str, profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile in the folder `profile`, and end it."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()

    def pipes_to_3_and_4() -> None:
        # Above 4 first: the ends may have the numbers that are wanted.
        high_in, high_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(high_in, 3)
        os.dup2(high_out, 4)

    words = [path, *FLAGS, f"--user-data-dir={profile}", "--hide-scrollbars"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=pipes_to_3_and_4,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.terminate()
        process.wait(30)
        os.close(ours_in)
        os.close(ours_out)
