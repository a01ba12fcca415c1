"""The page of `zoo demo` under load: many clients, with uploads among theirs that are no images.

    python benchmarks/demo_load.py --clients 16 --seconds 60 [--model MODEL]

Starts `zoo demo` with a tiny model (or MODEL) on this machine and prints, as JSON, the requests by
outcome, their latency, and the resident memory of the server twelve times in that time. Exit code 1
where a good image failed, a bad one did not, or the server died.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def inputs() -> tuple[list[bytes], list[bytes]]:
    """Images that are predicted, and uploads that are refused."""
    rng = np.random.default_rng(0)
    good, bad = [], [b"", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n" + bytes(100)]
    for height, width in ((120, 160), (90, 130), (1, 1), (240, 320)):
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8))
        for kind in ("PNG", "JPEG"):
            stream = io.BytesIO()
            image.save(stream, format=kind)
            good.append(stream.getvalue())
    bad += [good[0][:-300], b"GIF89a" + good[0]]
    stream = io.BytesIO()
    Image.new("L", (3000, 3000)).save(stream, format="PNG")  # 9 megapixels, more than allowed
    return good, [*bad, stream.getvalue()]


def ask(url: str, content: bytes) -> tuple[str, Any]:
    """Upload a file and ask for its mask: the last event and its data."""
    mark = uuid.uuid4().hex
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="image.png"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    path = _post(f"{url}/upload", body, f"multipart/form-data; boundary={mark}")[0]
    asked = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    event = _post(f"{url}/call/predict", json.dumps(asked).encode(), "application/json")
    with urllib.request.urlopen(f"{url}/call/predict/{event['event_id']}", timeout=120) as answer:
        lines = answer.read().decode().strip().splitlines()
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def _post(url: str, body: bytes, kind: str) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def load(url: str, pid: int, clients: int, seconds: float) -> dict[str, Any]:
    """Ask from so many threads for so long: outcomes, latency, memory."""
    good, bad = inputs()
    outcomes: Counter[str] = Counter()
    times: list[float] = []
    wrong: list[str] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        choose = random.Random(number)
        while time.monotonic() < end:
            fine = choose.random() < 0.75
            content, began = choose.choice(good if fine else bad), time.monotonic()
            try:
                event, data = ask(f"{url}/gradio_api", content)
            except (OSError, ValueError, IndexError, KeyError) as error:
                event, data = "failed", repr(error)
            outcomes[f"{'good' if fine else 'bad'} {event}"] += 1
            if fine:
                times.append(time.monotonic() - began)
            refused = event == "error" and "error" in (data or {}) and data["error"]
            if event != "complete" if fine else not refused:
                wrong.append(f"{event}: {data}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    resident = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(seconds / 12)
        resident.append(round(resident_mb(pid), 1))
    with urllib.request.urlopen(url, timeout=10) as answer:
        alive = answer.status == 200
    return {
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong[:5],
        "alive": alive,
        "latency_s": {"p50": statistics.median(times), "max": max(times)},
        "per_second": sum(outcomes.values()) / seconds,
        "resident_mb": resident,
    }


def resident_mb(pid: int) -> float:
    """The memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = asked.model
        if model is None:
            import zoo

            model = f"{folder}/model"
            zoo.save(zoo.create("unet-test_resnet", classes=3, encoder_weights=None), model)
        with socket.socket() as tried:
            tried.bind(("127.0.0.1", 0))
            port = tried.getsockname()[1]
        command = [sys.executable, "-m", "zoo", "demo", model, "--port", str(port),
                   "--max-megapixels", "4"]  # fmt: skip
        server = subprocess.Popen(command, env=os.environ | {"TMPDIR": folder})
        try:
            url = f"http://127.0.0.1:{port}"
            while server.poll() is None:
                try:
                    urllib.request.urlopen(url, timeout=10).close()
                    break
                except OSError:
                    time.sleep(0.2)
            found = load(url, server.pid, asked.clients, asked.seconds)
        finally:
            server.terminate()
            server.wait(30)
    print(json.dumps(found, indent=2))
    return 0 if not found["wrong"] and found["alive"] else 1


if __name__ == "__main__":
    sys.exit(main())
