"""The data sets of the suites: folds, ignored pixels, the committed division."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "prepare.py"


def prepare(name: str, source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), name, str(source), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_image_of_drive_is_tested_once_and_the_surroundings_are_ignored(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    for folder in ("images", "masks", "fov"):
        (source / folder).mkdir(parents=True)
    names = [str(number) for number in range(21, 31)]
    for name in names:
        Image.new("RGB", (4, 3)).save(source / "images" / f"{name}.png")
        mask = np.array([[0, 1, 1, 0]] * 3, dtype=np.uint8)
        Image.fromarray(mask).save(source / "masks" / f"{name}.png")
        seen = np.array([[0, 0, 1, 1]] * 3, dtype=np.uint8)
        Image.fromarray(seen).save(source / "fov" / f"{name}.png")
    done = prepare("drive", source, tmp_path / "drive")
    assert done.returncode == 0, done.stderr
    tested = []
    for fold in range(5):
        dataset = load_dataset(tmp_path / "drive" / f"fold_{fold}")
        assert dataset.name == f"drive/fold_{fold}"
        parts = {name: [s.name for s in found] for name, found in dataset.splits.items()}
        assert {name: len(found) for name, found in parts.items()} == {
            "train": 6,
            "val": 2,
            "test": 2,
        }
        assert sorted(name for found in parts.values() for name in found) == names
        tested += parts["test"]
    assert sorted(tested) == names
    assert [s.name for s in load_dataset(tmp_path / "drive/fold_4").splits["val"]] == ["21", "26"]
    found = scan_labels(dataset, ["test"]).splits["test"]
    # of each 12 pixels 6 are seen: 3 of the vessel and 3 of the background
    assert (found.pixels.tolist(), found.ignored) == ([6, 6], 12)


def test_folders_that_are_missing_are_named(tmp_path: Path) -> None:
    done = prepare("nuclei", tmp_path, tmp_path / "out")
    assert done.returncode == 2
    assert "lacks the folders train/images, train/masks, val/images, val/masks." in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.real_data
def test_the_committed_division_of_nuclei_is_whole(shared_data: Path, tmp_path: Path) -> None:
    done = prepare("nuclei", shared_data / "nuclei", tmp_path / "nuclei")
    assert done.returncode == 0, done.stderr
    splits = load_dataset(tmp_path / "nuclei").splits
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 90,
        "val": 39,
        "test": 43,
    }
    names = {sample.name for name in ("train", "val") for sample in splits[name]}
    assert len(names) == 129
