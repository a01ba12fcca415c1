"""What a result was computed with: versions, commit and device."""

from __future__ import annotations

import contextlib
import datetime
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = {
    "zoo": "segmentation-zoo",
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "smp": "segmentation-models-pytorch",
}


def versions() -> dict[str, str]:
    """Versions of the packages that compute a result, and of Python."""
    found = dict.fromkeys(PACKAGES, "not installed")
    for name, package in PACKAGES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(package)
    return found | {"python": platform.python_version()}


def commit() -> str:
    """The commit of the source tree that zoo runs from, `-dirty` if it was changed; else empty."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "registry.yaml").is_file():
        return ""
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return ""
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return head + ("-dirty" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def stamp(kind: str) -> dict[str, object]:
    """What every result file says of its origin: device, versions, commit and date."""
    return {
        "device": device_name(kind),
        "env": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def device_name(kind: str) -> str:
    """The processor that computed: the GPU's name, or the CPU's with the number of threads."""
    import torch

    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    """The name of this machine's CPU, found without torch."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
