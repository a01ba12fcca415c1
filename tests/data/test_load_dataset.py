"""load_dataset: what is found where, and every message for what is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.data_folders import THREE, plain, save, three_classes, write_split

from zoo.common.class_lists import default_palette
from zoo.common.errors import InputError
from zoo.common.files import natural_key, parse_yaml
from zoo.data.dataset import IGNORE, Dataset
from zoo.data.description.init import suggested_file
from zoo.data.formats import pairs
from zoo.data.formats.pairs import list_files, pair
from zoo.data.load import load_dataset

PIXEL = [[0]]


def fails(data: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(data)
    return str(caught.value)


def test_natural_order_puts_2_before_10() -> None:
    names = ["f10", "f2", "f1a", "F3", "f02"]
    assert sorted(names, key=natural_key) == ["F3", "f1a", "f02", "f2", "f10"]


def test_images_and_masks_in_each_split(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(2, 3)] * 11)
    assert list(dataset.splits) == ["train"]
    assert [sample.name for sample in dataset.splits["train"]] == [
        f"train_{index}" for index in range(11)
    ]
    sample = dataset.splits["train"][10]
    assert sample.image == tmp_path / "train" / "images" / "train_10.png"
    assert sample.mask == tmp_path / "train" / "masks" / "train_10.png"
    assert dataset.name == tmp_path.name
    assert dataset.classes == ["sky", "road", "car"]
    assert dataset.palette == default_palette(3)
    assert dataset.id_map == {0: 0, 1: 1, 2: 2, 255: IGNORE}


def test_annot_folders(tmp_path: Path) -> None:
    save(tmp_path / "val" / "a.bmp", PIXEL)
    save(tmp_path / "valannot" / "a.png", PIXEL)
    (tmp_path / "dataset.yaml").write_text(THREE)
    (sample,) = load_dataset(tmp_path).splits["val"]
    assert (sample.image.name, sample.mask and sample.mask.name) == ("a.bmp", "a.png")


def test_split_folders_below_images_and_masks_with_subfolders(tmp_path: Path) -> None:
    for city in ("rome", "bonn"):
        save(tmp_path / "images" / "test" / city / "1.jpg", PIXEL)
        save(tmp_path / "masks" / "test" / city / "1.png", PIXEL)
    (tmp_path / "dataset.yaml").write_text(THREE)
    dataset = load_dataset(tmp_path / "dataset.yaml")
    assert [sample.name for sample in dataset.splits["test"]] == ["bonn/1", "rome/1"]


def test_splits_as_written(tmp_path: Path) -> None:
    data = tmp_path / "elsewhere"
    for folder in ("pictures", "labels", "all/images", "all/masks", "more"):
        save(data / folder / "x.png", PIXEL)
    yaml = tmp_path / "descriptions" / "mine.yaml"
    yaml.parent.mkdir()
    yaml.write_text(
        f"{THREE}name: mine\nroot: ../elsewhere\n"
        "splits: {train: {images: pictures, masks: labels}, val: all, test: {images: more}}\n"
    )
    dataset = load_dataset(yaml)
    assert dataset.name == "mine"
    assert dataset.splits["train"][0].mask == yaml.parent / "../elsewhere/labels/x.png"
    assert dataset.splits["val"][0].image.exists()
    assert dataset.splits["test"][0].mask is None
    yaml.write_text(f"{THREE}root: {data}\nsplits: {{train: all}}\n")
    assert load_dataset(yaml).name == "elsewhere"


def test_a_dot_is_the_root_itself(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        save(tmp_path / folder / "x.png", PIXEL)
    (tmp_path / "dataset.yaml").write_text(f"{THREE}splits: {{train: .}}\n")
    assert len(load_dataset(tmp_path).splits["train"]) == 1


def test_hidden_files_are_left_out_and_a_link_in_a_circle_ends(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png", PIXEL)
    save(tmp_path / ".thumbs" / "x.png", PIXEL)
    (tmp_path / "a" / ".DS_Store").write_bytes(b"")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert list_files(tmp_path) == ["a/x.png"]


def test_split_by_name(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(2, 2)])
    assert dataset.samples("train") == dataset.splits["train"]
    with pytest.raises(InputError, match=r"Unknown split 'trian'. Did you mean train\?"):
        dataset.samples("trian")


def test_split_without_masks(tmp_path: Path) -> None:
    save(tmp_path / "t" / "x.png", PIXEL)
    (tmp_path / "dataset.yaml").write_text(f"{THREE}splits: {{test: {{images: t}}}}\n")
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples("test", masks=False)) == 1
    with pytest.raises(InputError, match=r"'test' has images without masks.*`masks:` folder"):
        dataset.samples("test")


def test_identity_without_id_map() -> None:
    assert plain(2).allowed_ids() == {0: 0, 1: 1, 255: IGNORE}
    assert plain(2, {7: 0}).allowed_ids() == {7: 0}


def test_missing_path(tmp_path: Path) -> None:
    message = fails(tmp_path / "nowhere")
    assert "nowhere does not exist" in message
    assert "a folder, a dataset.yaml or FORMAT:PATH (formats: ade20k, camvid, " in message


def test_other_file(tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(b"")
    assert "data.zip is neither a folder nor a .yaml file" in fails(tmp_path / "data.zip")


def test_unknown_format() -> None:
    message = fails("camvd:somewhere")
    assert "Unknown data format 'camvd'. Did you mean camvid or camvid32? Available" in message
    assert "needs no format" in message


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    three_classes(tmp_path / "camvid:mine", [(1, 1)])
    assert load_dataset("camvid:mine").classes == ["sky", "road", "car"]


def test_unpaired_files_on_both_sides(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(1, 1)] * 2)
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "train" / "images" / f"{name}.png", PIXEL)
    save(tmp_path / "train" / "masks" / "z.png", PIXEL)
    (tmp_path / "dataset.yaml").write_text(THREE)
    message = fails(tmp_path)
    assert "4 of 6 images in" in message
    assert "have no mask of the same name" in message
    assert "a, b, c ... and 1 more" in message
    assert "1 of 3 masks in" in message
    assert message.endswith(": z")


def test_problems_of_all_splits_at_once(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for side in ("images", "masks"):
            (tmp_path / split / side).mkdir(parents=True)
    (tmp_path / "dataset.yaml").write_text(THREE)
    message = fails(tmp_path)
    assert message.startswith(f"{tmp_path / 'dataset.yaml'} cannot be used:")
    assert message.count("is empty. Allowed image extensions: .png .jpg") == 2
    assert message.count("is empty. Allowed mask extensions: .png .bmp") == 2


def test_two_files_of_one_name(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(1, 1)])
    save(tmp_path / "train" / "images" / "train_0.jpg", PIXEL)
    (tmp_path / "dataset.yaml").write_text(THREE)
    message = fails(tmp_path)
    assert "holds 1 names twice (train_0.jpg and train_0.png): keep one file" in message


def test_jpeg_masks(tmp_path: Path) -> None:
    save(tmp_path / "i" / "x.png", PIXEL)
    save(tmp_path / "m" / "x.jpg", PIXEL)
    with pytest.raises(InputError, match=r"1 JPEG masks \(x.jpg\): JPEG blurs ids.*again as PNG"):
        pair(tmp_path / "i", tmp_path / "m")


def test_folder_of_other_files(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy", "c"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        InputError, match=r"holds no image, only 2 x \.npy, 1 x no extension. Allow"
    ):
        pair(tmp_path, None)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(pairs.os, "scandir", refuse)
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read: Permission denied"):
        list_files(tmp_path)


def test_missing_folder_as_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dataset.yaml").write_text(
        f"{THREE}splits: {{train: {{images: gone, masks: file}}, val: {{images: lost}}}}\n"
    )
    message = fails(tmp_path)
    assert f"{tmp_path / 'gone'} is missing" in message
    assert f"{tmp_path / 'file'} is not a folder" in message
    assert f"{tmp_path / 'lost'} is missing" in message


def test_missing_split_folder(tmp_path: Path) -> None:
    (tmp_path / "half" / "images").mkdir(parents=True)
    (tmp_path / "dataset.yaml").write_text(f"{THREE}splits: {{train: gone, val: half}}\n")
    message = fails(tmp_path)
    assert f"splits.train: {tmp_path / 'gone'} is missing" in message
    assert "no images and masks for 'half'. Looked for" in message
    assert "halfannot" in message


def test_two_layouts(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(1, 1)])
    (tmp_path / "trainannot").mkdir()
    (tmp_path / "dataset.yaml").write_text(THREE)
    message = fails(tmp_path)
    assert "'train' could mean" in message
    assert "Name both folders under `splits:`" in message


def test_no_split(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text(THREE)
    message = fails(tmp_path)
    assert "no train, val or test below" in message
    assert "`splits: {train: {images: images, masks: masks}}`" in message


def test_no_split_and_no_description(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "pictures").mkdir()
    message = fails(tmp_path)
    assert "has no dataset.yaml" in message
    assert "looked for train/images/ + train/masks/" in message
    assert "The folder holds: notes.txt, pictures/." in message


def pasted(folder: Path) -> Dataset:
    """The data set that the suggestion in the message for `folder` leads to."""
    _, _, text = fails(folder).partition("dataset.yaml:\n\n")
    (folder / "dataset.yaml").write_text(text)
    return load_dataset(folder)


def test_suggestion_names_the_ids(tmp_path: Path) -> None:
    save(tmp_path / "train" / "images" / "x.png", [[0, 0, 0]])
    save(tmp_path / "train" / "masks" / "x.png", [[0, 2, 255]])
    assert "1 masks hold the ids 0, 2, 255." in fails(tmp_path)
    dataset = pasted(tmp_path)
    assert dataset.classes == ["class_0", "class_1", "class_2"]
    assert dataset.id_map == {0: 0, 1: 1, 2: 2, 255: IGNORE}


def test_suggestion_for_0_and_255() -> None:
    assert parse_yaml(suggested_file([0, 255], plain=True), "suggestion") == {
        "version": 1,
        "splits": {"train": {"images": "images", "masks": "masks"}},
        "classes": ["background", "foreground"],
        "mapping": {0: 0, 255: 1},
    }


def test_suggestion_for_scattered_ids(tmp_path: Path) -> None:
    save(tmp_path / "val" / "images" / "x.png", [[0, 0, 0]])
    save(tmp_path / "val" / "masks" / "x.png", [[10, 90, 200]])
    assert pasted(tmp_path).id_map == {10: 0, 90: 1, 200: 2, 255: IGNORE}


@pytest.mark.parametrize("only", [0, 7, 255])
def test_suggestion_for_a_single_id_is_valid(tmp_path: Path, only: int) -> None:
    save(tmp_path / "val" / "images" / "x.png", [[0]])
    save(tmp_path / "val" / "masks" / "x.png", [[only]])
    assert only in pasted(tmp_path).allowed_ids()


def test_suggestion_for_colour_masks(tmp_path: Path) -> None:
    save(tmp_path / "val" / "images" / "x.png", [[0]])
    save(tmp_path / "val" / "masks" / "x.png", [[[1, 2, 3]]])
    message = fails(tmp_path)
    assert "A first look at it failed:" in message
    assert "replace each colour by the id of its class" in message


def test_no_suggestion_for_photographs(tmp_path: Path) -> None:
    save(tmp_path / "val" / "images" / "x.png", [list(range(256))])
    save(tmp_path / "val" / "masks" / "x.png", [list(range(256))])
    assert "1 masks hold 256 different ids, more than 255 classes" in fails(tmp_path)


def test_half_a_split_without_description(tmp_path: Path) -> None:
    (tmp_path / "train" / "images").mkdir(parents=True)
    assert "no images and masks for 'train'" in fails(tmp_path)


def test_camvid_needs_its_folders(tmp_path: Path) -> None:
    expected = "of the camvid layout: train + trainannot, val + valannot, test + testannot."
    assert f"{tmp_path} has none of the folders {expected}" in fails(f"camvid:{tmp_path}")
    gone = tmp_path / "gone"
    assert f"{gone} is not a folder with those {expected}" in fails(f"camvid:{gone}")


def test_camvid_with_one_split(tmp_path: Path) -> None:
    save(tmp_path / "val" / "x.png", PIXEL)
    assert "valannot is missing" in fails(f"camvid:{tmp_path}")
    save(tmp_path / "valannot" / "x.png", PIXEL)
    dataset = load_dataset(f"camvid:{tmp_path}")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"val": 1}


@pytest.mark.real_data
def test_real_camvid(shared_data: Path) -> None:
    dataset = load_dataset(f"camvid:{shared_data / 'camvid'}")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 367,
        "val": 101,
        "test": 233,
    }
    assert len(dataset.classes) == 11
    assert dataset.classes[3] == "Road"
    assert dataset.palette[3] == (128, 64, 128)
    assert dataset.allowed_ids()[11] == IGNORE
    assert 255 not in dataset.allowed_ids()


@pytest.mark.real_data
def test_real_folders_with_a_description_elsewhere(shared_data: Path, tmp_path: Path) -> None:
    nuclei = tmp_path / "nuclei.yaml"
    nuclei.write_text(
        f"version: 1\nroot: {shared_data / 'nuclei'}\nclasses: [background, nucleus]\n"
    )
    assert {k: len(v) for k, v in load_dataset(nuclei).splits.items()} == {"train": 129, "val": 43}
    drive = tmp_path / "drive.yaml"
    drive.write_text(
        f"version: 1\nroot: {shared_data / 'drive'}\nclasses: [background, vessel]\n"
        "splits: {train: {images: images, masks: masks}}\n"
    )
    assert len(load_dataset(drive).splits["train"]) == 20


def test_light_imports() -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'segmentation_models_pytorch'}"
    data = ("dataset", "formats", "description.dataset_yaml", "inspect.scan")
    modules = ", ".join(f"zoo.data.{name}" for name in data)
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_suggestion_is_plain_yaml(tmp_path: Path) -> None:
    save(tmp_path / "val" / "images" / "x.png", [[0, 0]])
    save(tmp_path / "val" / "masks" / "x.png", [[0, 2]])
    text = fails(tmp_path).partition("dataset.yaml:\n\n")[2]
    assert parse_yaml(text, "suggestion") == {
        "version": 1,
        "classes": ["class_0", "class_1", "class_2"],
        "ignore": 255,
    }
