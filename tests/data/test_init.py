"""`zoo data init`: what it finds in each kind of folder; what it writes loads as it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.data_folders import random_image, save

from zoo.common.errors import InputError, RunError
from zoo.common.files import read_yaml
from zoo.data.dataset import IGNORE, Dataset
from zoo.data.description.init import init
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import read_mask


def pair(root: Path, images: str, masks: str, pixels: object, name: str = "x") -> None:
    mask = np.array(pixels, dtype=np.uint8)
    save(root / images / f"{name}.png", random_image(0, mask.shape[0], mask.shape[1]))
    save(root / masks / f"{name}.png", mask)


def written(root: Path) -> Dataset:
    path = init(root)
    assert path == root / "dataset.yaml"
    dataset = load_dataset(root)
    scan_labels(dataset)
    return dataset


def fails(root: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        init(root, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(tmp_path, "train/images", "train/masks", [[0, 0, 2, 255]])
    pair(tmp_path, "val/images", "val/masks", [[0, 0, 0, 0]])
    dataset = written(tmp_path)
    assert dataset.id_map == {0: 0, 1: 1, 2: 2, 255: IGNORE}
    text = (tmp_path / "dataset.yaml").read_text()
    assert "  - class_0  # id 0, 75 %" in text
    assert "  - class_1  # id 1, not seen" in text
    assert "ignore: 255  # 12 % of the pixels" in text
    said = capsys.readouterr().err
    assert 'train: 1 image with masks ({images: "train/images", masks: "train/masks"})' in said
    assert "2 masks hold the ids 0, 2, 255." in said
    assert "Wrote" in said


def test_0_and_255(tmp_path: Path) -> None:
    pair(tmp_path, "images", "masks", [[0, 255]])
    dataset = written(tmp_path)
    assert dataset.classes == ["background", "foreground"]
    assert dataset.id_map == {0: 0, 255: 1}
    text = (tmp_path / "dataset.yaml").read_text()
    assert "replace the line above by `ignore: 255`" in text
    assert "`zoo data split` makes one" in text


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([0, 1], {0: 0, 1: 1}),
        ([0, 128], {0: 0, 128: 1}),
        ([0], {0: 0, 255: 1}),
        ([255], {0: 0, 255: 1}),
        ([1, 2], {0: 0, 1: 1, 2: 2, 255: IGNORE}),
        ([7], {**{index: index for index in range(8)}, 255: IGNORE}),
        ([90], {0: 0, 90: 1, 255: IGNORE}),
        ([10, 90, 200], {10: 0, 90: 1, 200: 2, 255: IGNORE}),
    ],
)
def test_meaning_of_ids(tmp_path: Path, ids: list[int], expected: dict[int, int]) -> None:
    pair(tmp_path, "images", "masks", [ids])
    assert written(tmp_path).id_map == expected


def test_16_bit_ids(tmp_path: Path) -> None:
    save(tmp_path / "images" / "x.png", [[0, 0, 0]])
    save(tmp_path / "masks" / "x.png", np.array([[0, 1000, 2000]], dtype=np.uint16))
    assert written(tmp_path).id_map == {0: 0, 1000: 1, 2000: 2, 255: IGNORE}


def test_colours(tmp_path: Path) -> None:
    pair(tmp_path, "images", "masks", [[[0, 0, 0], [0, 0, 0], [255, 0, 9]]])
    dataset = written(tmp_path)
    assert dataset.decoder == "colours"
    assert dataset.palette == [(0, 0, 0), (255, 0, 9)]
    assert read_mask(dataset.splits["train"][0], dataset).tolist() == [[0, 0, 1]]
    assert "# 67 %" in (tmp_path / "dataset.yaml").read_text()


def test_other_names_of_folders(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        pair(tmp_path, f"data/{split}/img", f"data/{split}/labels", [[0, 1, 2]], f"{split}_1")
    dataset = written(tmp_path)
    assert sorted(dataset.splits) == ["train", "val"]
    sample = dataset.splits["val"][0]
    assert sample.mask == tmp_path / "data" / "valid" / "labels" / "valid_1.png"


def test_nested_folders(tmp_path: Path) -> None:
    for city in ("bonn", "rome"):
        pair(tmp_path, f"images/{city}", f"masks/{city}", [[0, 1, 2]])
    assert len(written(tmp_path).splits["train"]) == 2


def test_split_folders_below_images(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pair(tmp_path, f"images/{split}", f"masks/{split}", [[0, 1, 2]])
    assert list(written(tmp_path).splits) == ["train", "test"]


def test_two_candidates(tmp_path: Path) -> None:
    pair(tmp_path, "a/img", "a/mask", [[0, 1]])
    pair(tmp_path, "b/img", "b/mask", [[0, 1]])
    assert "several files could be the images and masks of 'train'" in fails(tmp_path)


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "val" / "x.png", random_image(0, 4, 4))
    shapes = [
        {"label": label, "points": [[0, 0], [1, 1]], "shape_type": "rectangle"}
        for label in ("car", "on", "__ignore__")
    ]
    content = {"shapes": shapes, "imageHeight": 4, "imageWidth": 4}
    (tmp_path / "val" / "x.json").write_text(json.dumps(content))
    dataset = written(tmp_path)
    assert dataset.classes == ["background", "car", "on"]
    assert dataset.unlabelled == 0
    assert read_mask(dataset.splits["val"][0], dataset)[0].tolist() == [IGNORE, IGNORE, 0, 0]
    assert "The shapes have the labels __ignore__, car, on." in capsys.readouterr().err


def coco(root: Path, file: str, folder: str, name: str = "x.png") -> None:
    save(root / folder / name, random_image(0, 4, 4))
    content = {
        "images": [{"id": 1, "file_name": name, "height": 4, "width": 4}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "never seen"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]}
        ],
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))


def test_coco(tmp_path: Path) -> None:
    coco(tmp_path, "annotations/instances_train2017.json", "train2017", "a.png")
    coco(tmp_path, "valid/_annotations.coco.json", "valid", "b.png")
    (tmp_path / "notes.json").write_text("[]")
    dataset = written(tmp_path)
    assert dataset.classes == ["background", "cat"]
    assert sorted(dataset.splits) == ["train", "val"]
    assert read_mask(dataset.splits["val"][0], dataset)[0].tolist() == [1, 1, 0, 0]


def test_coco_without_images(tmp_path: Path) -> None:
    coco(tmp_path, "a.json", "images")
    coco(tmp_path, "b.json", "images")
    assert "belong to a second train split of" in fails(tmp_path)
    (tmp_path / "b.json").unlink()
    (tmp_path / "images" / "x.png").unlink()
    assert "are in no folder below" in fails(tmp_path)


def test_description_elsewhere(tmp_path: Path) -> None:
    pair(tmp_path / "data", "images", "masks", [[0, 1]])
    path = init(tmp_path / "data", out=tmp_path / "descriptions" / "mine.yaml")
    assert read_yaml(path)["root"] == "../data"
    assert len(load_dataset(path).splits["train"]) == 1
    assert not (tmp_path / "data" / "dataset.yaml").exists()


def test_nothing_is_replaced_without_force(tmp_path: Path) -> None:
    pair(tmp_path, "images", "masks", [[0, 1]])
    (tmp_path / "dataset.yaml").write_text("mine")
    assert "exists. Give --force to replace it, or another --out" in fails(tmp_path)
    assert (tmp_path / "dataset.yaml").read_text() == "mine"
    init(tmp_path, force=True)
    assert load_dataset(tmp_path).classes == ["background", "foreground"]


def test_official_layouts_need_no_description(tmp_path: Path) -> None:
    for folder in ("leftImg8bit/train", "gtFine/train"):
        (tmp_path / folder).mkdir(parents=True)
    message = fails(tmp_path)
    assert "has the official layout of cityscapes and needs no description" in message
    assert f"give `cityscapes:{tmp_path}` as the data" in message
    assert not (tmp_path / "dataset.yaml").exists()


def test_folders_without_anything(tmp_path: Path) -> None:
    assert "holds no images with matching masks" in fails(tmp_path)
    assert "is not a folder" in fails(tmp_path / "gone")
    assert "must be a .yaml file" in fails(tmp_path, out=tmp_path / "x.txt")


def test_half_a_split(tmp_path: Path) -> None:
    save(tmp_path / "train" / "images" / "x.png", [[0]])
    assert "no images and masks for 'train'" in fails(tmp_path)


def test_masks_of_two_kinds(tmp_path: Path) -> None:
    pair(tmp_path, "images", "masks", [[0, 1]], "a")
    pair(tmp_path, "images", "masks", [[[0, 1, 2]]], "b")
    message = fails(tmp_path)
    assert "Some masks are colour images or were compressed with loss, and some hold" in message
    assert str(tmp_path / "masks" / "b.png") in message


def test_photographs_instead_of_masks(tmp_path: Path) -> None:
    pair(tmp_path, "images", "masks", random_image(0, 20, 20))
    assert "colours, more than 255 classes: these look like photographs" in fails(tmp_path)
    assert not (tmp_path / "dataset.yaml").exists()
    wide = np.arange(400, dtype=np.uint16).reshape(20, 20)
    save(tmp_path / "masks" / "x.png", wide)
    assert "400 different ids, more than 255 classes" in fails(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    pair(tmp_path, "images", "masks", [[0, 1]])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="Cannot write"):
        init(tmp_path, out=tmp_path / "file" / "x.yaml")


def test_a_camvid_like_layout(tmp_path: Path) -> None:
    pair(tmp_path, "val", "valannot", [[0, 3]])
    assert list(written(tmp_path).splits) == ["val"]


@pytest.mark.real_data
def test_real_folders(shared_data: Path, tmp_path: Path) -> None:
    nuclei = load_dataset(init(shared_data / "nuclei", out=tmp_path / "nuclei.yaml"))
    assert {split: len(samples) for split, samples in nuclei.splits.items()} == {
        "train": 129,
        "val": 43,
    }
    assert nuclei.id_map in ({0: 0, 1: 1}, {0: 0, 255: 1})
    drive = load_dataset(init(shared_data / "drive", out=tmp_path / "drive.yaml"))
    assert len(drive.splits["train"]) == 20
    assert "official layout of voc2012" in fails(shared_data / "layouts" / "voc2012")
