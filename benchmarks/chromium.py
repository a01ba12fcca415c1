"""A headless Chromium, driven over two pipes by its DevTools protocol: no port, no driver."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TIMEOUT = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# The protocol asks for the descriptors 3 and 4, whatever the pipes have here.
START = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def find() -> str | None:
    """The browser's command, None where none is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if (found := shutil.which(name))), None)


class Chromium:
    """One page of a browser; `problems` has every error of its console and every blocked load.

    `addresses` has every address that it asked for.
    """

    def __init__(self, width: int = 1200, height: int = 900):
        command = find()
        if command is None:
            raise FileNotFoundError("no Chromium is installed")
        self.problems: list[str] = []
        self.addresses: list[str] = []
        self._numbers = itertools.count(1)
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        ours, theirs = os.pipe(), os.pipe()  # what the browser reads, what it writes
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(ours[0]), str(theirs[1]), command, *FLAGS,
             f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}"],
            pass_fds=(ours[0], theirs[1]),
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self._write, self._read = os.fdopen(ours[1], "wb"), os.fdopen(theirs[0], "rb")
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._write.close()
        self._read.close()
        self._profile.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the protocol and return its answer; events before it are recorded."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        watch = threading.Timer(TIMEOUT, self._process.kill)
        watch.start()
        try:
            while (answer := self._next()).get("id") != number:
                self._note(answer)
        finally:
            watch.cancel()
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, page: Path | str, fragment: str = "") -> None:
        """Load a file, or an address, and wait until it is complete."""
        address = page.resolve().as_uri() if isinstance(page, Path) else page
        self.call("Page.navigate", url=address + fragment)
        self.run(
            "new Promise(r => document.readyState === 'complete' ? r() : (onload = () => r()))"
        )

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise awaited. Raises where it throws."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 30.0) -> Any:
        """The value of an expression as soon as it is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {expression}")
            time.sleep(0.05)
        return value

    def choose(self, selector: str, file: Path) -> None:
        """Put a file into the file field that a CSS selector names, as a person would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def drop(self, selector: str, file: Path) -> None:
        """Drop a file on the middle of an element, as it comes from a folder."""
        middle = "r.x + r.width / 2, r.y + r.height / 2"
        x, y = self.run(
            f"(r => [{middle}])(document.querySelector({json.dumps(selector)})"
            ".getBoundingClientRect())"
        )
        data = {"items": [], "files": [str(file.resolve())], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def press(self, key: str, code: int, text: str = "") -> None:
        """One key, as a keyboard would send it."""
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def screenshot(self, path: Path) -> None:
        """A PNG of what the window shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _next(self) -> dict[str, Any]:
        content = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser has ended")
            content += byte
        found: dict[str, Any] = json.loads(content)
        return found

    def _note(self, event: dict[str, Any]) -> None:
        method, said = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.addresses.append(said["request"]["url"])
        kind = (
            said.get("entry", {}).get("level") if method == "Log.entryAdded" else said.get("type")
        )
        if method == "Runtime.exceptionThrown" or (
            method in ("Log.entryAdded", "Runtime.consoleAPICalled")
            and kind in ("error", "warning")
        ):
            self.problems.append(json.dumps(said))
