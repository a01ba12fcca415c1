"""The picture of a data set: its panels, its numbers, and what is said about bad arguments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from zoo.cli.data import data_app
from zoo.common.errors import InputError
from zoo.data.load import load_dataset
from zoo.data.loading.loader import TrainLoader
from zoo.data.loading.transforms import draw
from zoo.data.pixels.masks import read_pair
from zoo.data.scenes import write_scenes
from zoo.data.show import GAP, HEADING, SIDE, augmented, show
from zoo.registry.recipe import Augment

NOTHING = Augment(flip=0.0)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(folder, train=5, val=1, test=1, size=(64, 80))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_the_grid_has_a_row_for_each_image(scenes: Path, tmp_path: Path) -> None:
    wide = round(80 * SIDE / 64)
    page = pixels(show(scenes, tmp_path / "a.png", augment=NOTHING, crop=64, count=6))
    assert page.shape[1] == wide + 3 * (GAP + SIDE)
    grid = HEADING + 2 * SIDE + GAP
    assert grid < page.shape[0] < grid + 100  # a legend below
    assert (page[HEADING:grid, wide : wide + GAP] == 255).all()
    assert (page[HEADING + SIDE : HEADING + SIDE + GAP] == 255).all()
    one = pixels(show(scenes, tmp_path / "b.png", augment=NOTHING, crop=64, count=1))
    assert one.shape[1] == wide + GAP + SIDE


def test_a_crop_of_the_whole_image_looks_like_the_image(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "square", train=2, val=1, test=1, size=(64, 64))
    page = pixels(show(data, tmp_path / "a.png", augment=NOTHING, crop=64, count=3))
    image, *crops = (
        page[HEADING : HEADING + SIDE, left : left + SIDE]
        for left in range(0, 4 * (SIDE + GAP), SIDE + GAP)
    )
    assert all(np.array_equal(image, crop) for crop in crops)
    turned = pixels(show(data, tmp_path / "b.png", augment=Augment(flip=1.0), crop=64, count=3))
    left = SIDE + GAP
    mirrored = turned[HEADING : HEADING + SIDE, left : left + SIDE]
    difference = np.abs(mirrored - image[:, ::-1]).mean(axis=2)
    assert (difference < 8).mean() > 0.9  # borders are drawn at the other side


@pytest.mark.parametrize("preset", ["light", "strong"])
def test_the_crops_are_those_of_the_loader(scenes: Path, preset: str) -> None:
    dataset, augment = load_dataset(scenes), Augment(preset=preset)
    train = TrainLoader(dataset, "train", crop=32, batch_size=5, augment=augment, seed=3)
    ((images, masks),) = train.epoch(2)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(order_seed(3, 2))).tolist()
    pairs = [read_pair(dataset.splits["train"][index], dataset) for index in order]
    shown = augmented(pairs, [draw(3, 2, index) for index in order], 32, augment)
    for row, (image, mask) in enumerate(shown):
        assert np.array_equal(images[row].permute(1, 2, 0).numpy(), image)
        assert np.array_equal(masks[row].numpy(), mask)


def order_seed(seed: int, epoch: int) -> int:
    from zoo.data.loading.transforms import mix

    return mix(seed, epoch)


def test_the_picture_follows_its_arguments(scenes: Path, tmp_path: Path) -> None:
    strong = Augment(preset="strong")
    names = ("a", "b", "c")
    for name, seed in zip(names, (1, 1, 2), strict=True):
        show(scenes, tmp_path / f"{name}.png", augment=strong, crop=32, seed=seed)
    first, same, other = ((tmp_path / f"{name}.png").read_bytes() for name in names)
    assert first == same
    assert first != other


def test_more_crops_than_images_are_not_made_up(scenes: Path, tmp_path: Path) -> None:
    path = show(scenes, tmp_path / "a.png", split="val", augment=NOTHING, crop=32, count=30)
    assert pixels(path).shape[0] < HEADING + SIDE + 100


def test_all_wrong_arguments_are_named_at_once(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        show(scenes, tmp_path / "a.jpg", augment=NOTHING, crop=0, count=0)
    said = str(caught.value)
    assert "crop must be at least 1, not 0" in said
    assert "count must be at least 1, not 0" in said
    assert f"write {tmp_path / 'a.png'}, not {tmp_path / 'a.jpg'}" in said
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="is a folder; give the name of a file in it"):
        show(scenes, tmp_path / "folder.png", augment=NOTHING, crop=32)
    with pytest.raises(InputError, match=r"Unknown split 'trian'\. Did you mean train"):
        show(scenes, tmp_path / "a.png", split="trian", augment=NOTHING, crop=32)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_the_verb_writes_the_picture_of_a_recipe(scenes: Path, tmp_path: Path) -> None:
    given = ["show", str(scenes), "augment.preset=medium", "crop=64", "seed=4", "--count", "3"]
    given += ["--split", "val", "--out", str(tmp_path / "verb.png")]
    done = CliRunner().invoke(data_app, given, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == f"{tmp_path / 'verb.png'}\n"
    medium = Augment(preset="medium")
    path = show(
        scenes, tmp_path / "function.png", split="val", augment=medium, crop=64, seed=4, count=3
    )
    assert path.read_bytes() == (tmp_path / "verb.png").read_bytes()
    wrong = CliRunner().invoke(data_app, ["show", str(scenes), "augment.presett=medium"])
    assert "there is no key 'presett'; allowed: preset," in str(wrong.exception)


@pytest.mark.real_data
def test_camvid_is_shown(shared_data: Path, tmp_path: Path) -> None:
    camvid = f"camvid:{shared_data / 'camvid'}"
    page = pixels(
        show(camvid, tmp_path / "a.png", augment=Augment(preset="strong"), crop=128, count=3)
    )
    assert page.shape[1] == 480 * SIDE // 360 + 3 * (GAP + SIDE)
    assert page.std() > 20
