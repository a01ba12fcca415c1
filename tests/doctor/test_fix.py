"""The corrected copy: what is repaired, what is left out, what is said, what is never touched."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.doctor_folders import add_pair, image, mask, pixels, replace, save
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.doctor import diagnose, doctor
from zoo.data.doctor.fix import repair
from zoo.data.load import load_dataset
from zoo.data.pixels.images import read_image
from zoo.data.pixels.masks import read_mask, read_source_ids


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fixed(data: Path, new: Path) -> list[str]:
    before = content(data)
    lines = repair(diagnose(data, progress=False), new)
    assert content(data) == before
    return lines


def test_a_copy_without_the_faults(data: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = pixels(image(data, "train_0001"))
    ids = pixels(mask(data, "train_0001"))
    save(image(data, "train_0001"), wide, exif=exif)
    save(mask(data, "train_0002"), pixels(mask(data, "train_0002")).astype(np.uint16))
    mask(data, "train_0003").unlink()
    image(data, "val_0001").unlink()
    add_pair(data, "train_9000", "train_0005")
    clear = np.full((64, 80, 1), 255, dtype=np.uint8)
    save(image(data, "val_0004"), np.concatenate([pixels(image(data, "val_0004")), clear], axis=2))
    lines = fixed(data, tmp_path / "new")
    assert lines[0] == f"Wrote {tmp_path / 'new'}: 58 pairs, 4 files changed."
    assert "train/images/train_9000.png" in lines[1]
    assert diagnose(tmp_path / "new", progress=False).exit_code == 0
    copy = load_dataset(tmp_path / "new")
    assert {split: len(found) for split, found in copy.splits.items()} == {
        "train": 39, "val": 11, "test": 8,
    }  # fmt: skip
    turned = read_image(image(tmp_path / "new", "train_0001"))
    assert np.array_equal(turned, np.rot90(wide, -1))
    assert np.array_equal(read_source_ids(mask(tmp_path / "new", "train_0001")), np.rot90(ids, -1))
    for name in ("train_0002", "val_0004", "test_0001"):
        old = read_mask(mask(data, name), load_dataset(tmp_path / "new"))
        assert np.array_equal(read_mask(mask(tmp_path / "new", name), copy), old)
    assert Image.open(image(tmp_path / "new", "val_0004")).mode == "RGB"


def test_0_255_and_1_bit_masks_become_ids(binary: Path, tmp_path: Path) -> None:
    truth = {name: pixels(mask(binary, name)) for name in ("train_0001", "train_0002")}
    save(mask(binary, "train_0001"), truth["train_0001"] * 255)
    Image.fromarray(truth["train_0002"] * 255).convert("1").save(mask(binary, "train_0002"))
    fixed(binary, tmp_path / "new")
    found = diagnose(tmp_path / "new", progress=False)
    assert found.exit_code == 0
    for name, ids in truth.items():
        assert np.array_equal(read_source_ids(mask(tmp_path / "new", name)), ids)


def class_colours(path: Path) -> None:
    with Image.open(path) as picture:
        colours: Any = np.array(picture.convert("RGB"))
        ids = np.array(picture)
    colours[ids == 255] = (112, 174, 222)
    save(path, colours)


def equal_channels(path: Path) -> None:
    save(path, np.repeat(pixels(path)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("spoil", [class_colours, equal_channels])
def test_colour_masks_whose_meaning_is_certain(
    spoil: Callable[[Path], None], data: Path, tmp_path: Path
) -> None:
    truth = pixels(mask(data, "train_0001"))
    truth = np.where(truth == 255, 0, truth) if spoil is class_colours else truth
    spoil(mask(data, "train_0001"))
    fixed(data, tmp_path / "new")
    assert diagnose(tmp_path / "new", progress=False).exit_code == 0
    assert np.array_equal(read_source_ids(mask(tmp_path / "new", "train_0001")), truth)


def test_what_cannot_be_fixed_is_said(data: Path, tmp_path: Path) -> None:
    replace(mask(data, "train_0001"), ".jpg", pixels(mask(data, "train_0001")))
    colours = np.repeat(pixels(mask(data, "train_0002"))[:, :, None], 3, axis=2)
    colours[:, :, 0] = 201
    save(mask(data, "train_0002"), colours)
    alpha = np.stack([pixels(mask(data, "train_0003"))] * 2, axis=2)
    save(mask(data, "train_0003"), alpha)
    wide = pixels(mask(data, "train_0004")).astype(np.uint16)
    wide[0, 0] = 300
    save(mask(data, "train_0004"), wide)
    equal = np.full((64, 80, 3), 99, dtype=np.uint8)
    save(mask(data, "train_0005"), equal)
    text = "\n".join(fixed(data, tmp_path / "new"))
    assert "Not fixed: D304 Mask in a lossy format (train/masks/train_0001.jpg)" in text
    assert "train_0002.png has colours that belong to no class" in text
    assert "train_0003.png is partly transparent; ids there are ambiguous" in text
    assert "train_0004.png has ids above 255, which need 16 bits" in text
    assert "train_0005.png has equal channels, but ids without a class" in text
    assert content(tmp_path / "new" / "train")["masks/train_0001.jpg"]


def test_contradicting_copies_both_stay(data: Path, tmp_path: Path) -> None:
    add_pair(data, "train_9000", "train_0005")
    ids = pixels(mask(data, "train_9000"))
    ids[:5] = 3
    save(mask(data, "train_9000"), ids)
    fixed(data, tmp_path / "new")
    assert image(tmp_path / "new", "train_9000").is_file()


def test_nothing_to_fix_writes_nothing(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(clean, fix=tmp_path / "new") == 0
    assert "Nothing to fix automatically" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_where_no_copy_is_written(data: Path, tmp_path: Path) -> None:
    mask(data, "train_0001").unlink()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").touch()
    with pytest.raises(InputError, match="already exists; give --fix a new folder"):
        doctor(data, fix=tmp_path / "old")
    with pytest.raises(InputError, match="which is never changed; give --fix a folder elsewhere"):
        doctor(data, fix=data / "new")
    (data / "dataset.yaml").unlink()
    with pytest.raises(InputError, match="has no valid dataset"):
        doctor(data, fix=tmp_path / "new")


def test_only_plain_data_is_repaired(data: Path, tmp_path: Path) -> None:
    text = (data / "dataset.yaml").read_text()
    (data / "dataset.yaml").write_text(text + "channels: 1\n")
    shutil.rmtree(data / "test")
    with pytest.raises(InputError, match="repairs RGB images; this data set has"):
        doctor(data, fix=tmp_path / "new")


def test_masks_of_colours_become_ids(data: Path, tmp_path: Path) -> None:
    """By the class colours of dataset.yaml; one with another colour is left out."""
    dataset = load_dataset(data)
    truth = {}
    for split, samples in dataset.splits.items():
        for sample in samples:
            assert sample.mask is not None
            truth[f"{split}/{sample.name}"] = pixels(sample.mask)
            class_colours(sample.mask)
    lines = ["version: 1", "colours: true", "classes:"]
    for name, colour in zip(dataset.classes, dataset.palette, strict=True):
        lines.append(f"  - {{name: {name}, colour: {list(colour)}}}")
    (data / "dataset.yaml").write_text("\n".join(lines) + "\n")
    strange = pixels(mask(data, "val_0003"))
    strange[0, 0] = (1, 2, 3)
    save(mask(data, "val_0003"), strange)
    assert diagnose(data, progress=False).exit_code == 2
    said = fixed(data, tmp_path / "new")
    assert said[0] == f"Wrote {tmp_path / 'new'}: 59 pairs, 59 files changed."
    assert said[1] == "Skipped: val/images/val_0003.png"
    assert "val_0003.png holds 1 colours that are not classes: (1, 2, 3) (1 pixels)" in said[-1]
    copy = load_dataset(tmp_path / "new")
    assert diagnose(tmp_path / "new", progress=False).exit_code == 0
    for split, samples in copy.splits.items():
        for sample in samples:
            expected = truth[f"{split}/{sample.name}"]
            expected = np.where(expected == 255, 0, expected)  # drawn as sky by class_colours
            assert np.array_equal(read_mask(sample, copy), expected)
