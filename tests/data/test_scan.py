"""Scans: hand-counted labels, all faults in one message, and what is kept between scans."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_folders import THREE, save, three_classes
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.inspect import facts
from zoo.data.inspect.facts import FactCache
from zoo.data.inspect.scan import count_labels, data_hash, scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader, TrainLoader
from zoo.data.pixels import images
from zoo.data.scenes import write_scenes
from zoo.registry.recipe import Augment
from zoo.runtime import memory

IMAGE = np.zeros((2, 3, 3), dtype=np.uint8)


def two_masks(root: Path) -> None:
    """Two images of 2x3 and one of 1x2, with masks whose ids are easy to count."""
    for name, mask in {
        "a": [[0, 0, 1], [1, 1, 255]],
        "b": [[0, 0, 0], [0, 0, 0]],
        "c": [[1, 255]],
    }.items():
        height, width = len(mask), len(mask[0])
        save(root / "train" / "images" / f"{name}.png", IMAGE[:height, :width])
        save(root / "train" / "masks" / f"{name}.png", mask)
    (root / "dataset.yaml").write_text(THREE)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are opened while the test runs."""
    names: list[str] = []
    opened = Image.open

    def counting(path: Path, *args: Any, **options: Any) -> Image.Image:
        names.append(path.name)
        return opened(path, *args, **options)

    monkeypatch.setattr(Image, "open", counting)
    return names


def test_counts(tmp_path: Path) -> None:
    two_masks(tmp_path)
    result = scan_labels(load_dataset(tmp_path)).splits["train"]
    assert result.pixels.tolist() == [8, 4, 0]
    assert result.pixels.dtype == np.int64
    assert result.images.tolist() == [2, 2, 0]
    assert result.ignored == 2
    assert result.ignored_fraction == 2 / 14
    assert result.sizes == {(2, 3): 2, (1, 2): 1}


def test_ids_that_share_a_class_are_added(tmp_path: Path) -> None:
    save(tmp_path / "val" / "images" / "x.png", IMAGE)
    save(tmp_path / "val" / "masks" / "x.png", [[5, 6, 6], [7, 7, 8]])
    (tmp_path / "dataset.yaml").write_text(
        "version: 1\nclasses: [a, b]\nmapping: {5: 1, 6: 1, 7: 0}\nignore: [8]\n"
    )
    result = scan_labels(load_dataset(tmp_path), ["val"]).splits["val"]
    assert result.pixels.tolist() == [2, 3]
    assert result.images.tolist() == [1, 1]
    assert result.ignored == 1


def test_the_second_scan_opens_nothing(tmp_path: Path, decoded: list[str]) -> None:
    two_masks(tmp_path)
    dataset = load_dataset(tmp_path)
    first = scan_labels(dataset).splits["train"]
    assert len(decoded) == 6
    decoded.clear()
    second = scan_labels(dataset).splits["train"]
    assert decoded == []
    assert second.pixels.tolist() == first.pixels.tolist()
    assert second.sizes == first.sizes


def test_a_changed_file_is_read_again(tmp_path: Path, decoded: list[str]) -> None:
    two_masks(tmp_path)
    dataset = load_dataset(tmp_path)
    scan_labels(dataset)
    decoded.clear()
    path = save(tmp_path / "train" / "masks" / "b.png", [[2, 2, 2], [2, 2, 2]])
    os.utime(path, ns=(1, 1))
    assert scan_labels(dataset).splits["train"].pixels.tolist() == [2, 4, 6]
    assert decoded == ["b.png"]


def test_another_mapping_uses_what_was_seen(tmp_path: Path, decoded: list[str]) -> None:
    two_masks(tmp_path)
    scan_labels(load_dataset(tmp_path))
    decoded.clear()
    (tmp_path / "dataset.yaml").write_text(f"{THREE}mapping: {{1: 0, 0: 2}}\nignore: 255\n")
    assert scan_labels(load_dataset(tmp_path)).splits["train"].pixels.tolist() == [4, 0, 8]
    (tmp_path / "dataset.yaml").write_text(f"{THREE}ignore: 9\n")
    with pytest.raises(InputError, match=r"a.png holds ids that are not classes: 255 \(1 pixels\)"):
        scan_labels(load_dataset(tmp_path))
    assert decoded == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"version": 1, "files": {}}', b"\xff" * 5000, b"SQLite format 3\0"]
)
def test_a_broken_cache_is_rebuilt(
    tmp_path: Path, cache_folder: Path, decoded: list[str], content: bytes
) -> None:
    two_masks(tmp_path)
    dataset = load_dataset(tmp_path)
    scan_labels(dataset)
    (file,) = (cache_folder / "scan").iterdir()
    file.write_bytes(content)
    assert scan_labels(dataset).splits["train"].pixels.tolist() == [8, 4, 0]
    decoded.clear()
    scan_labels(dataset)
    assert decoded == []


def test_a_cache_that_cannot_be_written_gives_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two_masks(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "file"))
    remarks: list[str] = []
    monkeypatch.setattr(facts, "warn", remarks.append)
    assert scan_labels(load_dataset(tmp_path)).splits["train"].ignored == 2
    assert "will be slow: cannot write" in remarks[0]


def test_an_interrupted_scan_goes_on_where_it_stopped(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    two_masks(tmp_path)
    dataset = load_dataset(tmp_path)
    counted = facts.count_ids

    def interrupted(ids: np.ndarray) -> dict[int, int]:  # type: ignore[type-arg]
        if ids.shape == (1, 2):
            raise KeyboardInterrupt
        return counted(ids)

    monkeypatch.setattr(facts.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(facts, "count_ids", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan_labels(dataset)
    monkeypatch.setattr(facts, "count_ids", counted)
    decoded.clear()
    assert scan_labels(dataset).splits["train"].pixels.tolist() == [8, 4, 0]
    assert set(decoded) == {"c.png"}


def test_two_runs_add_to_one_cache(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b", os.fsdecode(b"\xff"))]
    caches = []
    for number, file in enumerate(files):
        file.write_bytes(b"x")
        cached = FactCache(tmp_path)
        seen = cached.get(file)
        seen.shape, seen.ids["r"], seen.digests["d"] = (number, 7), {5: 2**40}, "0"
        cached.keep(seen)
        caches.append(cached)
    for cached in caches:
        cached.save()
    found = [FactCache(tmp_path).get(file) for file in files]
    assert [seen.shape for seen in found] == [(0, 7), (1, 7), (2, 7)]
    assert all(seen.ids == {"r": {5: 2**40}} and seen.digests == {"d": "0"} for seen in found)


def test_facts_that_cannot_be_read_are_forgotten(tmp_path: Path, cache_folder: Path) -> None:
    two_masks(tmp_path)
    dataset = load_dataset(tmp_path)
    scan_labels(dataset)
    (file,) = (cache_folder / "scan").iterdir()
    for text in ("", "[]", "{}", '{"shape": [1], "ids": {}, "digests": {}}'):
        with contextlib.closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE files SET facts = ?", (text,))
        assert scan_labels(dataset).splits["train"].pixels.tolist() == [8, 4, 0]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", "~/here")
    assert memory.cache_folder() == Path.home() / "here"
    monkeypatch.delenv("ZOO_CACHE")
    assert memory.cache_folder() == Path.home() / ".cache" / "zoo"


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        FactCache(tmp_path).get(tmp_path / "gone.png")


def test_all_faults_in_one_message(tmp_path: Path) -> None:
    two_masks(tmp_path)
    dataset = load_dataset(tmp_path)
    (tmp_path / "train" / "images" / "a.png").write_bytes(b"broken")
    save(tmp_path / "train" / "masks" / "b.png", [[0, 77]])
    save(tmp_path / "train" / "masks" / "c.png", [[0, 77]])
    with pytest.raises(InputError) as caught:
        scan_labels(dataset)
    header, *faults = str(caught.value).split("\n  - ")
    assert header == f"{tmp_path}: 3 files cannot be used:"
    assert "a.png is not an image" in faults[0]
    assert "b.png is 2x1 pixels, its image" in faults[1]
    assert "c.png holds ids that are not classes: 77 (1 pixels)" in faults[2]


def test_twenty_faults_are_shown(tmp_path: Path) -> None:
    for index in range(23):
        save(tmp_path / "val" / "images" / f"{index}.png", [[0]])
        save(tmp_path / "val" / "masks" / f"{index}.png", [[9]])
    (tmp_path / "dataset.yaml").write_text(THREE)
    with pytest.raises(InputError) as caught:
        scan_labels(load_dataset(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("23 files cannot be used:")
    assert len(lines) == 22
    assert lines[-1] == "  - ... and 3 more"


def test_splits_without_masks_are_left_out_unless_named(tmp_path: Path) -> None:
    two_masks(tmp_path)
    save(tmp_path / "new" / "x.png", IMAGE)
    (tmp_path / "dataset.yaml").write_text(f"{THREE}splits: {{train: train, new: {{images: new}}}}")
    dataset = load_dataset(tmp_path)
    assert list(scan_labels(dataset).splits) == ["train"]
    with pytest.raises(InputError, match="images without masks"):
        scan_labels(dataset, ["new"])
    assert len(data_hash(dataset, "new")) == 16


def test_hash_depends_on_content_alone(tmp_path: Path) -> None:
    first = three_classes(tmp_path / "one", [(4, 5), (3, 3)])
    before = data_hash(first, "train")
    moved = tmp_path / "two"
    shutil.copytree(tmp_path / "one", moved)
    for file in (moved / "train" / "images").glob("*.png"):
        save(file.with_suffix(".bmp"), images.read_image(file))
        file.unlink()
    assert data_hash(load_dataset(moved), "train") == before
    assert data_hash(first, "train") == before


def test_hash_changes_with_any_pixel(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(4, 5), (3, 3)])
    hashes = {data_hash(dataset, "train")}
    sample = dataset.splits["train"][0]
    assert sample.mask is not None
    for path in (sample.image, sample.mask):
        pixels = np.array(Image.open(path))
        pixels[0, 0] = (pixels[0, 0] + 1) % 3
        os.utime(save(path, pixels), ns=(5, 5))
        hashes.add(data_hash(dataset, "train"))
    assert len(hashes) == 3


def test_hash_sees_train_ids_not_stored_ids(tmp_path: Path) -> None:
    save(tmp_path / "a" / "images" / "x.png", IMAGE)
    save(tmp_path / "a" / "masks" / "x.png", [[0, 1, 1], [0, 0, 1]])
    save(tmp_path / "b" / "images" / "x.png", IMAGE)
    save(tmp_path / "b" / "masks" / "x.png", [[0, 255, 255], [0, 0, 255]])
    text = "version: 1\nclasses: [x, y]\nsplits: {train: S}\n"
    (tmp_path / "a.yaml").write_text(text.replace("S", "a"))
    (tmp_path / "b.yaml").write_text(text.replace("S", "b") + "mapping: {0: 0, 255: 1}\n")
    (tmp_path / "c.yaml").write_text(text.replace("S", "b") + "mapping: {0: 1, 255: 0}\n")
    first, second, third = (
        data_hash(load_dataset(tmp_path / f"{name}.yaml"), "train") for name in "abc"
    )
    assert first == second
    assert first != third


def test_hash_reports_every_fault(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(4, 4)] * 3)
    for sample in dataset.splits["train"][:2]:
        sample.image.write_bytes(sample.image.read_bytes()[:60])
    with pytest.raises(InputError, match="2 files cannot be used"):
        data_hash(dataset, "train")


def test_hashing_and_scanning_share_one_cache(tmp_path: Path, decoded: list[str]) -> None:
    dataset = three_classes(tmp_path, [(4, 4)])
    scan_labels(dataset)
    before = data_hash(dataset, "train")
    decoded.clear()
    scan_labels(dataset)
    assert data_hash(dataset, "train") == before
    assert decoded == []


def test_a_second_run_opens_no_file_before_its_first_step(
    tmp_path: Path, decoded: list[str]
) -> None:
    three_classes(tmp_path, [(4, 4)] * 3)
    dataset = three_classes(tmp_path, [(4, 5)] * 2, split="val")
    loader = TrainLoader(dataset, "train", crop=4, batch_size=2, augment=Augment(), seed=0)
    assert loader.decoded is not None
    rows = []
    for _ in range(2):
        decoded.clear()
        scan = scan_labels(dataset, ["train", "val"]).splits["train"]
        counts = count_labels(dataset, dataset.samples("train"))  # class_weights=median, oversample
        data_hash(dataset, "train", loader.decoded.read)
        data_hash(dataset, "val")
        EvalLoader(dataset, "val")
        rows.append((counts.tolist(), len(decoded)))
        assert counts.sum(axis=0).tolist() == scan.pixels.tolist()
    assert rows == [(rows[0][0], 5 * 3 + 3), (rows[0][0], 0)]


def test_a_mask_is_decoded_once_for_counts_and_hash(tmp_path: Path, decoded: list[str]) -> None:
    dataset = three_classes(tmp_path, [(4, 4)])
    scan_labels(dataset)
    count_labels(dataset, dataset.samples("train"))
    data_hash(dataset, "train")
    assert len(decoded) == 3  # the image's header, the mask, the image
    other = load_dataset(tmp_path)
    other = dataclasses.replace(other, id_map={0: 1, 1: 0, 2: 2})
    decoded.clear()
    scan_labels(other)
    assert decoded == []
    assert data_hash(other, "train") != data_hash(dataset, "train")
    assert len(decoded) == 1  # the mask, for its other train ids


@pytest.mark.real_data
def test_real_camvid_counts(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(f"camvid:{shared_data / 'camvid'}")
    dataset.splits["val"][:] = dataset.splits["val"][:4]
    result = scan_labels(dataset, ["val"]).splits["val"]
    stored = [
        np.asarray(Image.open(sample.mask)) for sample in dataset.splits["val"] if sample.mask
    ]
    counts = np.bincount(np.concatenate(stored).ravel(), minlength=12)
    assert result.pixels.tolist() == counts[:11].tolist()
    assert result.ignored == counts[11]
    assert result.sizes == {(360, 480): 4}


def test_what_is_hashed_is_decoded_for_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    dataset = load_dataset(write_scenes(tmp_path / "scenes", train=4, val=1, test=1, size=(64, 64)))
    loader = TrainLoader(dataset, "train", crop=32, batch_size=2, augment=Augment(), seed=0)
    assert loader.decoded is not None
    filled = data_hash(dataset, "train", loader.decoded.read)
    plain = [batch[0] for batch in TrainLoader(
        dataset, "train", crop=32, batch_size=2, augment=Augment(), seed=0
    ).epoch(0)]  # fmt: skip
    for sample in dataset.samples("train"):
        sample.image.write_bytes(b"gone")
    found = [batch[0] for batch in loader.epoch(0)]
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    assert len(filled) == 16


def test_the_hash_is_the_same_however_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(write_scenes(tmp_path / "scenes", train=4, val=1, test=1, size=(64, 64)))
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "one"))
    loader = TrainLoader(dataset, "train", crop=32, batch_size=2, augment=Augment(), seed=0)
    through_the_loader = data_hash(dataset, "train", loader.decoded.read)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "two"))
    assert data_hash(dataset, "train") == through_the_loader
