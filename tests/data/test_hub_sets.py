"""`hf:` data sets: saved to disk or as parquet files, without a network; every message."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from helpers.data_folders import random_image, save
from helpers.hub_server import LoopbackHub
from huggingface_hub import constants

from zoo.common.errors import InputError, RunError
from zoo.data.dataset import IGNORE, Dataset
from zoo.data.formats import hub_sets as hub
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import read_pair

datasets = pytest.importorskip("datasets")

NAMES = {"0": "sky", "1": "road", "7": "car"}
MASK = [[0, 1, 7], [255, 0, 0]]


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")


def table(root: Path, count: int, mask: str = "label", image: str = "image") -> Any:
    columns: dict[str, list[str]] = {image: [], mask: []}
    for number in range(count):
        source = root / "source"
        columns[image].append(str(save(source / f"{number}.jpg", random_image(number, 2, 3))))
        columns[mask].append(str(save(source / f"{number}_mask.png", MASK)))
    made = datasets.Dataset.from_dict(columns)
    return made.cast_column(image, datasets.Image()).cast_column(mask, datasets.Image())


def saved(root: Path, splits: dict[str, Any], names: object = NAMES) -> Path:
    folder = root / "saved"
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    if names is not None:
        (folder / "id2label.json").write_text(json.dumps(names))
    return folder


def fails(data: str) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(data)
    return str(caught.value)


def check(dataset: Dataset) -> None:
    assert dataset.classes == ["sky", "road", "car"]
    assert dataset.allowed_ids() == {0: 0, 1: 1, 7: 2, 255: IGNORE}
    image, mask = read_pair(dataset.splits["train"][0], dataset)
    assert image.shape == (2, 3, 3)
    assert mask.tolist() == [[0, 1, 2], [IGNORE, 0, 0]]
    assert scan_labels(dataset).splits["train"].ignored == len(dataset.splits["train"])


def test_saved_to_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(tmp_path, {"train": table(tmp_path, 3), "validation": table(tmp_path, 2)})
    dataset = load_dataset(f"hf:{folder}")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 3,
        "val": 2,
    }
    assert dataset.name == "saved"
    check(dataset)
    stored = dataset.splits["train"][1].image.read_bytes()
    assert stored == (tmp_path / "source" / "1.jpg").read_bytes()
    assert "this happens once" in capsys.readouterr().err
    load_dataset(f"hf:{folder}")
    assert "this happens once" not in capsys.readouterr().err


def test_parquet_files(tmp_path: Path) -> None:
    folder = tmp_path / "parquet"
    folder.mkdir()
    table(tmp_path, 2, mask="annotation").to_parquet(str(folder / "train-0.parquet"))
    (folder / "id2label.json").write_text(json.dumps(NAMES))
    check(load_dataset(f"hf:{folder}"))


def test_a_single_split(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    table(tmp_path, 1, mask="mask", image="pixel_values").save_to_disk(str(folder))
    (folder / "id2label.json").write_text(json.dumps(NAMES))
    check(load_dataset(f"hf:{folder}"))


def test_without_names(tmp_path: Path) -> None:
    message = fails(f"hf:{saved(tmp_path, {'train': table(tmp_path, 1)}, None)}")
    assert "has no id2label.json, so its ids have no names" in message
    assert "`zoo data init " in message


@pytest.mark.parametrize("names", [[], {"a": "b"}, {"0": 1}])
def test_names_of_another_form(tmp_path: Path, names: object) -> None:
    folder = saved(tmp_path, {"train": table(tmp_path, 1)}, names)
    assert "must map ids to names" in fails(f"hf:{folder}")


def test_columns(tmp_path: Path) -> None:
    made = table(tmp_path, 1)
    folder = saved(tmp_path, {"train": made.rename_column("label", "other")})
    message = fails(f"hf:{folder}")
    assert "has the columns image, other, of which these hold images: image, other" in message
    assert "masks in one of mask, annotation, label" in message


def test_splits_that_differ(tmp_path: Path) -> None:
    made = table(tmp_path, 1)
    folder = saved(tmp_path, {"train": made, "test": made.remove_columns("label")})
    assert "the splits test lack the columns image and label" in fails(f"hf:{folder}")


def test_cells_without_images(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    feature = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = {"image": [{"bytes": b"text", "path": None}], "label": [None]}
    datasets.Dataset.from_dict(rows, features=feature).save_to_disk(str(folder))
    (folder / "id2label.json").write_text(json.dumps(NAMES))
    assert "row 0 of train, column image is not an image in a known format" in fails(f"hf:{folder}")
    png = save(tmp_path / "x.png", np.zeros((1, 1), dtype=np.uint8)).read_bytes()
    rows = {"image": [{"bytes": png, "path": None}], "label": [None]}
    datasets.Dataset.from_dict(rows, features=feature).save_to_disk(str(tmp_path / "b"))
    (tmp_path / "b" / "id2label.json").write_text(json.dumps(NAMES))
    assert "column label holds no image" in fails(f"hf:{tmp_path / 'b'}")


def test_jpeg_masks(tmp_path: Path) -> None:
    made = table(tmp_path, 1)
    swapped = made.rename_columns({"image": "mask", "label": "image"})
    assert "1 JPEG masks" in fails(f"hf:{saved(tmp_path, {'train': swapped})}")


def test_a_repository_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(place: str, revision: str | None) -> None:
        raise ValueError(f"no such thing: {place} {revision}\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    message = fails("hf:someone/something@v1")
    assert "cannot be loaded: ValueError: no such thing: someone/something v1. Give" in message
    assert "more lines" not in message


def test_names_of_a_repository(loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = loopback_hub.add_repo("a/b", {"id2label.json": json.dumps(NAMES).encode()})
    loopback_hub.add_repo("a/none", {"x.parquet": b"x"})
    assert hub._class_names(f"a/b@{commit}") == NAMES
    assert hub._class_names("a/b") == NAMES
    assert hub._class_names("a/none") is None
    file = Path(constants.HF_HUB_CACHE, "datasets--a--b", "snapshots", commit, "id2label.json")
    file.unlink()
    file.write_text(json.dumps(NAMES | {"1": "river"}))
    assert hub._class_names("a/b") == NAMES
    file.unlink()
    file.write_text(json.dumps(NAMES | {"1": "river"}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        hub._class_names("a/b")


def test_damaged_files_of_the_cache_are_not_given_to_the_library(
    loopback_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loopback_hub.add_repo("a/b", {"data/x.parquet": b"right", "data/y.parquet": b"y"})

    def fetch(name: str) -> Path:
        path = huggingface_hub.hf_hub_download(
            "a/b", name, repo_type="dataset", cache_dir=constants.HF_HUB_CACHE
        )
        return Path(path)

    seen: list[bytes | None] = []

    def load(place: str, revision: str | None) -> None:
        seen.append(file.read_bytes() if file.exists() else None)
        raise ValueError("no more is needed")

    monkeypatch.setattr(datasets, "load_dataset", load)
    file, other = fetch("data/x.parquet"), fetch("data/y.parquet")
    file.resolve().write_bytes(b"wrong")
    fails("hf:a/b")
    assert "The cached file data/x.parquet of a/b is damaged; deleted:" in capsys.readouterr().err
    assert other.read_bytes() == b"y"
    file = fetch("data/x.parquet")
    fails("hf:a/b")
    content = file.read_bytes()  # a regular file in place of the link, with a digest beside it
    file.unlink()
    file.write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails("hf:a/b")
    assert seen == [None, b"right", b"right"]
    new = file.with_name("new.parquet")
    new.write_bytes(b"from somewhere")
    with pytest.raises(RunError, match=r"data/new\.parquet in .* cannot be verified"):
        load_dataset("hf:a/b")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'segmentation-zoo[datasets]'" in fails("hf:a/b")
