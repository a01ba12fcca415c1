"""Splits: exact sizes, whole groups, lists that load, and warnings about leakage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from helpers.data_folders import save
from PIL import Image
from typer.testing import CliRunner

from zoo.cli.data import split_command
from zoo.common.errors import InputError
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import read_mask
from zoo.data.scenes import write_scenes
from zoo.data.split import split

YAML = "version: 1\nclasses: [sky, road, car]\n"
Parts = dict[str, set[str]]


def picture(seed: int, shift: int = 0, side: int = 34) -> np.ndarray[Any, Any]:
    """Smooth random colours; with `shift` the same scene seen from a little further along."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 16, 3), dtype=np.uint8)
    scene = Image.fromarray(colours).resize((384, 144), Image.Resampling.BICUBIC)
    return np.array(scene.crop((shift, 0, shift + 144, 144)).resize((side, side)))


def write(root: Path, split: str, name: str, image: Any, ids: Sequence[int] = (0, 1)) -> None:
    mask = np.zeros(image.shape[:2], dtype=np.uint8)
    for row, value in enumerate(ids):
        mask[row] = value
    save(root / split / "images" / f"{name}.png", image)
    save(root / split / "masks" / f"{name}.png", mask)


def numbered(root: Path, count: int = 10, text: str = YAML) -> Path:
    """Different pictures with running numbers, most of them in train, the rest in val."""
    for index in range(count):
        write(root, "train" if index < 0.8 * count else "val", f"p_{index}", picture(index))
    (root / "dataset.yaml").write_text(text)
    return root


def slow_videos(root: Path, videos: int = 3, frames: int = 20) -> Path:
    """Videos that move slowly past a scene, all in train."""
    for video in range(videos):
        for frame in range(frames):
            write(root, "train", f"v{video}/f{frame:03d}", picture(video, 9 * frame))
    (root / "dataset.yaml").write_text(YAML)
    return root


def parts_of(file: Path) -> Parts:
    found = load_dataset(file).splits
    return {name: {sample.image.stem for sample in samples} for name, samples in found.items()}


def videos_of(file: Path) -> Parts:
    found = load_dataset(file).splits
    return {name: {s.image.parent.name for s in samples} for name, samples in found.items()}


def test_seven_to_three_by_default(tmp_path: Path) -> None:
    data = numbered(tmp_path / "data")
    before = sorted(data.rglob("*"))
    (file,) = split(data, out=tmp_path / "out")
    assert file == tmp_path / "out" / "dataset.yaml"
    parts = parts_of(file)
    assert {name: len(found) for name, found in parts.items()} == {"train": 7, "val": 3}
    assert parts["train"] | parts["val"] == {f"p_{index}" for index in range(10)}
    assert sorted(data.rglob("*")) == before
    assert sorted(p.name for p in file.parent.iterdir()) == ["dataset.yaml", "train.csv", "val.csv"]
    lines = (tmp_path / "out" / "train.csv").read_text().splitlines()
    assert lines[0] == "image,mask"
    assert len(lines) == 8
    assert all(
        line.split(",")[0].replace("images", "masks") == line.split(",")[1] for line in lines[1:]
    )


def test_the_seed_determines_the_division(tmp_path: Path) -> None:
    data = numbered(tmp_path / "data")
    found = [
        parts_of(split(data, seed=seed, out=tmp_path / f"{index}")[0])["val"]
        for index, seed in enumerate((0, 0, 1, 2, 3))
    ]
    assert found[0] == found[1]
    assert len({frozenset(part) for part in found}) > 2


def test_three_parts_and_own_names(tmp_path: Path) -> None:
    data = numbered(tmp_path / "data")
    parts = parts_of(split(data, ratios="0.6:0.2:0.2", out=tmp_path / "a")[0])
    assert {name: len(found) for name, found in parts.items()} == {"train": 6, "val": 2, "test": 2}
    parts = parts_of(split(data, ratios=(0.5, 0.5), names=["one", "two"], out=tmp_path / "b")[0])
    assert {name: len(found) for name, found in parts.items()} == {"one": 5, "two": 5}


def test_folds_test_each_image_once(tmp_path: Path) -> None:
    files = split(numbered(tmp_path / "data", 11), folds=5, out=tmp_path / "out")
    assert [file.parent.name for file in files] == [f"fold_{number}" for number in range(5)]
    folds = [parts_of(file) for file in files]
    assert sorted(name for fold in folds for name in fold["val"]) == sorted(
        f"p_{index}" for index in range(11)
    )
    assert sorted(len(fold["val"]) for fold in folds) == [2, 2, 2, 2, 3]
    assert all(not fold["train"] & fold["val"] for fold in folds)
    assert all(len(fold["train"] | fold["val"]) == 11 for fold in folds)


def test_a_rare_class_is_spread_over_the_parts(tmp_path: Path) -> None:
    for index in range(20):
        ids = (0, 1, 2) if index < 4 else (0, 1)
        write(tmp_path / "data", "train", f"p_{index}", picture(index), ids)
    (tmp_path / "data" / "dataset.yaml").write_text(YAML)
    for seed in range(4):
        parts = parts_of(
            split(tmp_path / "data", ratios="0.5:0.5", seed=seed, out=tmp_path / f"{seed}")[0]
        )
        assert len(parts["val"] & {"p_0", "p_1", "p_2", "p_3"}) == 2


@pytest.mark.parametrize("group", [r"^(v\d)/", "folder", "similarity"])
def test_groups_stay_whole(tmp_path: Path, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = slow_videos(tmp_path / "data")
    videos = videos_of(split(data, group=group, out=tmp_path / "out")[0])
    assert sorted(map(len, videos.values())) == [1, 2]
    assert not videos["train"] & videos["val"]
    assert "leakage" not in capsys.readouterr().err


def test_a_video_across_parts_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split(slow_videos(tmp_path / "data"), out=tmp_path / "out")
    said = capsys.readouterr().err
    assert (
        "pairs of neighbouring video frames are split across parts (leakage), first v0/f0" in said
    )
    assert "Keep them together with --group" in said


def test_numbered_photographs_are_no_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split(numbered(tmp_path / "data", 30), out=tmp_path / "out")
    scenes = write_scenes(tmp_path / "scenes", train=20, val=2, test=2, size=(64, 80))
    split(scenes, out=tmp_path / "scenes_out")
    assert "leakage" not in capsys.readouterr().err


def test_near_duplicates_across_parts_are_reported_and_grouped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for index in range(6):
        image = picture(index, side=64)
        write(data, "train", f"{'abcdef'[index]}", image)
        smaller = np.array(Image.fromarray(image).resize((40, 40)))
        write(data, "val", f"{'abcdef'[index]} copy", smaller // 2 + 60)
    (data / "dataset.yaml").write_text(YAML)
    split(data, ratios="0.5:0.5", out=tmp_path / "plain")
    assert "pairs of near-duplicates are split across parts (leakage)" in capsys.readouterr().err
    parts = parts_of(split(data, ratios="0.5:0.5", group="similarity", out=tmp_path / "kept")[0])
    assert "leakage" not in capsys.readouterr().err
    assert all({name.removesuffix(" copy") for name in part} != part for part in parts.values())
    assert {name.removesuffix(" copy") for name in parts["train"]}.isdisjoint(
        name.removesuffix(" copy") for name in parts["val"]
    )


def test_the_rule_of_the_data_set_holds_unless_switched_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = slow_videos(tmp_path / "data")
    (data / "dataset.yaml").write_text(YAML + "group: folder\n")
    videos = videos_of(split(data, out=tmp_path / "whole")[0])
    assert not videos["train"] & videos["val"]
    assert (
        "Grouped by 'folder', as dataset.yaml says (--group none: no groups)"
        in capsys.readouterr().err
    )
    videos = videos_of(split(data, group="none", out=tmp_path / "torn")[0])
    assert videos["train"] & videos["val"]


def test_images_smaller_than_the_grid(tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / "data", "train", f"p_{index}", picture(index)[:3, :2])
    (tmp_path / "data" / "dataset.yaml").write_text(YAML)
    assert len(split(tmp_path / "data", out=tmp_path / "out")) == 1


def test_ids_classes_and_colours_are_kept(tmp_path: Path) -> None:
    text = (
        'version: 1\nname: "a: b"\nclasses: ["1e3", {name: "yes #", colour: [1, 2, 3]}]\n'
        "mapping: {7: 0, 300: 1, 1: 1}\nignore: [0, 9]\n"
    )
    root = tmp_path / "data"
    for index in range(4):
        mask = np.array([[7, 300], [0, 1]], dtype=np.uint16)
        save(root / "train" / "images" / f"p,{index}.png", picture(index, side=34)[:2, :2])
        save(root / "train" / "masks" / f"p,{index}.png", mask)
    (root / "dataset.yaml").write_text(text)
    before = load_dataset(root)
    after = load_dataset(split(root, out=tmp_path / "deep" / "er" / "out")[0])
    assert (after.name, after.classes, after.palette) == (
        before.name,
        before.classes,
        before.palette,
    )
    assert after.allowed_ids() == before.allowed_ids()
    sample = after.splits["val"][0]
    assert sample.mask is not None
    assert read_mask(sample.mask, after).tolist() == [[0, 1], [255, 1]]


def test_colours_channels_and_range_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for index in range(4):
        mask = np.zeros((4, 4, 3), dtype=np.uint8)
        mask[1:, :, 0], mask[3:, :, 2] = 255, 9
        save(root / "train" / "masks" / f"p{index}.png", mask)
        (root / "train" / "images").mkdir(exist_ok=True, parents=True)
        values = np.random.default_rng(index).random((4, 4, 5), dtype=np.float32)
        np.save(root / "train" / "images" / f"p{index}.npy", values)
    classes = "[{name: a, colour: [0, 0, 0]}, {name: b, colour: [255, 0, 0]}]"
    (root / "dataset.yaml").write_text(
        f"version: 1\nclasses: {classes}\ncolours: true\nignore_colours: [[255, 0, 9]]\n"
        f"channels: 5\nrange: [0.0, 1.0]\n"
    )
    before = load_dataset(root)
    after = load_dataset(split(root, out=tmp_path / "out")[0])
    assert (after.decoder, after.channels, after.value_range) == ("colours", 5, (0.0, 1.0))
    assert (after.reading(), after.allowed_ids()) == (before.reading(), before.allowed_ids())


def test_shapes_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for index in range(4):
        save(root / "train" / f"p{index}.png", picture(index))
        points = [[2, 2], [20, 2], [20, 20]]
        shapes = [{"label": "auto", "shape_type": "polygon", "points": points}]
        content = {"shapes": shapes, "imageHeight": 34, "imageWidth": 34}
        (root / "train" / f"p{index}.json").write_text(json.dumps(content))
    (root / "dataset.yaml").write_text(
        "version: 1\nclasses: [ground, car]\nlabels: {auto: car, blur: ignore}\n"
        "unlabelled: ground\nsplits: {train: {labelme: train}}\n"
    )
    after = load_dataset(split(root, out=tmp_path / "out")[0])
    assert after.labels == {"ground": 0, "car": 1, "auto": 1, "blur": 255}
    assert (after.decoder, after.unlabelled) == ("labelme", 0)


def test_a_folder_without_splits(tmp_path: Path) -> None:
    for index in range(10):
        write(tmp_path, "data", f"p_{index}", picture(index))
    (tmp_path / "data" / "dataset.yaml").write_text(YAML)
    parts = parts_of(split(tmp_path / "data", out=tmp_path / "out")[0])
    assert {name: len(found) for name, found in parts.items()} == {"train": 7, "val": 3}
    (tmp_path / "data" / "dataset.yaml").unlink()
    parts = parts_of(split(tmp_path / "data", out=tmp_path / "other")[0])
    assert {name: len(found) for name, found in parts.items()} == {"train": 7, "val": 3}


def test_an_image_in_two_lists_is_one_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = numbered(tmp_path / "data")
    (data / "dataset.yaml").write_text(
        YAML + "splits: {train: train, again: train, val: {images: val/images}}\n"
    )
    parts = parts_of(split(data, out=tmp_path / "out")[0])
    assert sum(len(part) for part in parts.values()) == 8
    assert "Skipped: no masks in val." in capsys.readouterr().err


def test_a_split_may_be_split_again(tmp_path: Path) -> None:
    (first,) = split(numbered(tmp_path / "data"), out=tmp_path / "a")
    (second,) = split(first, ratios="0.5:0.5", out=tmp_path / "b")
    assert {name: len(found) for name, found in parts_of(second).items()} == {"train": 5, "val": 5}


def test_classes_that_one_part_cannot_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = numbered(tmp_path / "data")
    write(data, "train", "p_0", picture(0), (0, 1, 2))
    split(data, out=tmp_path / "out")
    said = capsys.readouterr().err
    assert "Warning: only one image shows car, so only one part can" in said
    assert "shows car." in said
    split(data, group=r"p_(\d)", out=tmp_path / "groups")
    assert "Warning: only one group shows car" in capsys.readouterr().err
    split(data, stratify=False, out=tmp_path / "plain")
    assert "car" not in capsys.readouterr().err


def test_large_groups_change_the_shares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split(slow_videos(tmp_path / "data", videos=2, frames=4), group="folder", out=tmp_path / "out")
    said = capsys.readouterr().err
    assert "train has 50.0 % of the images instead of 70.0 %, because groups are kept whole" in said
    assert "train: 4 images, val: 4 images" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"ratios": (0.7, 0.2)},
            r"ratios 0\.7:0\.2 add up to 0\.9; give numbers above 0 that add up",
        ),
        ({"ratios": "7:3"}, r"ratios 7:3 add up to 10"),
        ({"ratios": "1.5:-0.5"}, r"numbers above 0 that add up to 1"),
        ({"ratios": "nan:1"}, r"numbers above 0 that add up to 1"),
        ({"ratios": "0.7-0.3"}, r"Invalid ratio '0\.7-0\.3': give numbers with colons"),
        ({"ratios": (1.0,)}, r"The ratio 1 makes one part; give at least 2"),
        ({"ratios": [0.25] * 4}, r"4 ratios need 4 names, 0 given: none\. Give --names"),
        ({"names": ["train"]}, r"2 ratios need 2 names, 1 given: train"),
        ({"names": ["a", "a"]}, r"Names must differ and have only letters"),
        ({"names": ["../a", "b"]}, r"Names must differ and have only letters"),
        ({"folds": 1}, r"folds must be at least 2, not 1"),
        ({"folds": 11}, r"10 groups by 'image' cannot fill 11 parts"),
        ({"seed": -1}, r"The seed must be 0 or more, not -1"),
        (
            {"group": "("},
            r"'\(' is not a valid regular expression: .*\. Other choices: folder, similarity",
        ),
        (
            {"group": "p_"},
            r"'p_' must be `folder`, or a regular expression of at most 200 characters",
        ),
        (
            {"group": "(x)"},
            r"`group: \(x\)` finds no group in 10 of 10 names: p_0, p_1, p_2, p_3, p_4",
        ),
        ({"group": "(p)_"}, r"1 groups by '\(p\)_' cannot fill 2 parts\. Choose another --group"),
        ({"group": "folder"}, r"1 groups by 'folder' cannot fill 2 parts"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    data = numbered(tmp_path / "data")
    with pytest.raises(InputError, match=message):
        split(data, **options, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_existing_output_is_left_alone(tmp_path: Path) -> None:
    data = numbered(tmp_path / "data")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="out exists; choose another --out, or delete it first"):
        split(data, out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_broken_mask_leaves_nothing_behind(tmp_path: Path) -> None:
    data = numbered(tmp_path / "data")
    (data / "train" / "masks" / "p_3.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="1 files cannot be used:"):
        split(data, out=tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_coco_cannot_be_divided_into_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Dataset("c", tmp_path, ["a", "b"], [(0, 0, 0)] * 2, {"train": []}, decoder="coco")
    monkeypatch.setattr("zoo.data.split.load_dataset", lambda _: dataset)
    with pytest.raises(InputError, match="masks in one COCO file cannot be divided into lists"):
        split(tmp_path, out=tmp_path / "out")


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(split_command)
    data = numbered(tmp_path / "data")
    options = ["--ratio", "0.5:0.5", "--names", "a,b", "--seed", "3", "--no-stratify"]
    done = CliRunner().invoke(app, [str(data), *options, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'out' / 'dataset.yaml'}\n"
    assert set(parts_of(tmp_path / "out")) == {"a", "b"}
    done = CliRunner().invoke(app, [str(data), "--folds", "2", "--out", str(tmp_path / "folds")])
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.long
@pytest.mark.real_data
def test_frames_of_camvid(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three videos, 101 + 62 + 171 frames: a plain division spreads each over both parts."""
    names = [f"class_{number}" for number in range(11)]
    (tmp_path / "dataset.yaml").write_text(
        f"version: 1\nroot: {json.dumps(str(shared_data / 'camvid'))}\nclasses: {names}\n"
        "ignore: [11]\nsplits: {val: {images: val, masks: valannot}, test: test}\n"
    )
    (plain,) = split(tmp_path, stratify=False, out=tmp_path / "plain")
    assert {name: len(part) for name, part in parts_of(plain).items()} == {"train": 234, "val": 100}
    said = capsys.readouterr().err
    assert "pairs of neighbouring video frames are split across parts" in said
    assert "pairs of near-duplicates are split across parts (leakage)" in said
    for group in ("^([^_]+)_", "similarity"):
        (whole,) = split(tmp_path, stratify=False, group=group, out=tmp_path / f"by {len(group)}")
        videos = {name: {n.split("_")[0] for n in part} for name, part in parts_of(whole).items()}
        assert not videos["train"] & videos["val"]
        assert "leakage" not in capsys.readouterr().err


@pytest.mark.parametrize("folds", [None, 2])
def test_an_official_test_split_stays(
    tmp_path: Path, folds: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for index in range(14):
        write(data, "train" if index < 10 else "test", f"p_{index}", picture(index))
    (data / "dataset.yaml").write_text(YAML)
    sizes = {"train": 7, "val": 3} if folds is None else {"train": 5, "val": 5}
    for file in split(data, folds=folds, keep=["test"], out=tmp_path / "out"):
        parts = load_dataset(file).splits
        assert {name: len(found) for name, found in parts.items()} == sizes | {"test": 4}
        official = [sample.image.name for sample in parts["test"]]
        assert official == ["p_10.png", "p_11.png", "p_12.png", "p_13.png"]
    assert "divided again" not in capsys.readouterr().err
    split(data, out=tmp_path / "anew")
    assert "Warning: the images of test are divided again with the rest" in capsys.readouterr().err


def test_splits_that_cannot_be_kept(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for index in range(4):
        write(data, "train", f"p_{index}", picture(index))
    (data / "dataset.yaml").write_text(YAML)
    with pytest.raises(InputError, match="train cannot be both kept and divided"):
        split(data, keep=["train"], out=tmp_path / "out")
    with pytest.raises(InputError, match="Unknown split 'other'"):
        split(data, keep=["other"], out=tmp_path / "out")
    with pytest.raises(InputError, match="no images are left to divide beside train"):
        split(data, keep=["train"], names=["a", "b"], out=tmp_path / "out")
