"""What a killed process left is deleted by the next; what a living one uses is not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_models import REPO, add_tiny, write_tiny
from helpers.hub_server import LoopbackHub

import zoo
from zoo.common.files import new_folder

WAITING = """
import pathlib, sys, tempfile, time
from zoo.common.files import new_folder, scratch_folder
target = pathlib.Path(sys.argv[1])
if target.name == "push":
    made = scratch_folder(pathlib.Path(tempfile.gettempdir()), "zoo-push-")
else:
    made = new_folder(target)
with made as folder:
    (folder / "file").write_text("half")
    print(folder, flush=True)
    time.sleep(60)
"""


def start(target: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is in the middle of writing `target`, and its temporary folder."""
    command = [sys.executable, "-c", WAITING, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("what", ["push", "model"])
def test_folders_of_killed_processes_are_deleted_and_those_of_others_are_not(
    loopback_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    killed, left = start(tmp_path / what)
    alive, used = start(tmp_path / what)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    mine = tmp_path / f"{left.name[:-8]}by-hand"  # not a name that zoo gives
    mine.mkdir()
    try:
        assert left.is_dir()
        if what == "push":
            zoo.push(write_tiny(tmp_path / "tiny"), REPO, dry_run=True)
        else:
            with new_folder(tmp_path / what) as folder:
                (folder / "file").write_text("whole")
            assert (tmp_path / what / "file").read_text() == "whole"
        assert not left.exists()
        assert (used / "file").read_text() == "half"
        assert mine.is_dir()
    finally:
        alive.kill()
        alive.wait()


def test_the_part_of_a_killed_download_is_deleted(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    add_tiny(loopback_hub, tmp_path / "made")
    weights = (zoo.pull(f"hf-hub:{REPO}") / "model.safetensors").resolve()
    part = weights.with_name(f"{weights.name}.0123abcd.incomplete")
    part.write_bytes(b"half")
    weights.unlink()
    zoo.pull(f"hf-hub:{REPO}")
    assert not part.exists()
    assert weights.is_file()
