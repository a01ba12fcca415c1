"""`zoo demo` in a process of its own, which notes every address outside this machine it asks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

WATCHED = """import os, sys

def note(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        if arguments[1][0] not in ("127.0.0.1", "localhost", "::1"):
            print("FOREIGN", arguments[1], file=sys.stderr, flush=True)
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", "::1"):
        print("FOREIGN", arguments[0], file=sys.stderr, flush=True)

sys.addaudithook(note)
from runpy import run_module, run_path
sys.argv = sys.argv[1:]
(run_path if sys.argv[0].endswith(".py") else run_module)(sys.argv[0], run_name="__main__")
"""


class Server:
    """A page that is served; `log` holds what the process says."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path):
        self.process, self.url, self._log = process, url, log

    @property
    def log(self) -> str:
        """Everything that was said so far."""
        return self._log.read_text()

    def resident_mb(self) -> float:
        """The memory of the process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


@contextlib.contextmanager
def demo_server(
    command: Sequence[str], folder: Path, port: int, **environment: str
) -> Iterator[Server]:
    """Run `command` (a module or script and its arguments) until the end of the block."""
    log, url = folder / "server.log", f"http://127.0.0.1:{port}"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", WATCHED, *command], cwd=folder, stdout=stream, stderr=stream,
            env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)} | environment,
        )  # fmt: skip
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{url}/config", timeout=5).read()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"no server: {log.read_text()}") from None
                time.sleep(0.1)
        yield Server(process, url, log)
    finally:
        process.terminate()  # a shell that runs tests in the background has SIGINT ignored
        try:
            process.wait(30)
        finally:
            process.kill()
