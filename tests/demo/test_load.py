"""Many clients at once, with uploads among theirs that are no images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long
pytest.importorskip("gradio")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "demo_load.py"


def test_no_good_request_fails(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--clients", "16", "--seconds", "10"], capture_output=True,
        text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert set(found["outcomes"]) == {"bad error", "good complete"}
    assert min(found["outcomes"].values()) >= 16
    assert found["resident_mb"][-1] - found["resident_mb"][1] < 100
    assert "Traceback" not in done.stderr
