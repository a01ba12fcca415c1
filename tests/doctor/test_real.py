"""Real data sets have no false errors, and CamVid's shared videos are found."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from helpers.doctor_folders import found_in

from zoo.data.doctor import diagnose
from zoo.data.inspect.near_duplicates import numbered
from zoo.data.load import load_dataset

pytestmark = pytest.mark.real_data


def test_camvid_shares_two_videos_by_name(shared_data: Path) -> None:
    dataset = load_dataset(f"camvid:{shared_data / 'camvid'}")
    samples = [(s.name, split) for split, found in dataset.splits.items() for s in found]
    names, splits = zip(*samples, strict=True)
    counts = {
        found.series: Counter(splits[index] for index in found.members)
        for found in numbered(names, splits)
    }
    assert {series: dict(found) for series, found in counts.items() if len(found) > 1} == {
        "0016E5_*": {"train": 204, "val": 101},
        "0001TP_*": {"train": 62, "test": 62},
    }


def test_camvid_videos_are_confirmed_by_their_looks(shared_data: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        files = sorted((shared_data / "camvid" / split).glob("*.webp"))
        frames = [f for f in files if f.stem.startswith("0001TP")][-12:]
        others = [f for f in files if not f.stem.startswith("0001TP")][:6]
        for file in frames + others:
            for folder, name in ((split, file.name), (f"{split}annot", f"{file.stem}.png")):
                (tmp_path / folder).mkdir(exist_ok=True)
                shutil.copy(shared_data / "camvid" / folder / name, tmp_path / folder / name)
    found = diagnose(f"camvid:{tmp_path}", progress=False)
    assert found.exit_code == 0
    [video] = [finding for finding in found.findings if finding.code == "D504"]
    assert video.detail == "0001TP_*: 12 in train, 12 in test"
    assert len(video.files) == 12
    assert {path.split("/")[0] for path in video.files} == {"test"}


@pytest.mark.slow
def test_nuclei_and_drive_have_no_errors(shared_data: Path, tmp_path: Path) -> None:
    descriptions = {
        "nuclei": "classes: [background, nucleus]",
        "drive": "classes: [background, vessel]\nsplits: {train: {images: images, masks: masks}}",
    }
    for name, text in descriptions.items():
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"version: 1\nroot: {shared_data / name}\n{text}\n")
        assert diagnose(file, progress=False).exit_code == 0
        assert not {code for code, _ in found_in(file)} & {"D210", "D211", "D313", "D503"}


@pytest.mark.slow
def test_camvid_has_no_errors(shared_data: Path) -> None:
    found = diagnose(f"camvid:{shared_data / 'camvid'}", progress=False)
    assert found.exit_code == 0
    [video] = [finding for finding in found.findings if finding.code == "D504"]
    assert "0016E5_*: 204 in train, 101 in val" in video.detail
    assert "0001TP_*: 62 in train, 62 in test" in video.detail
    assert len(video.files) == 101 + 62
