"""A folder without dataset.yaml: used where its masks leave no doubt, else refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_folders import save

import zoo
from zoo.common.errors import InputError
from zoo.data import split as split_module
from zoo.data.dataset import IGNORE
from zoo.data.doctor import diagnose
from zoo.data.load import load_dataset
from zoo.data.pixels import masks as mask_reading
from zoo.data.split import split, with_val
from zoo.training.engine import trainer


def blocks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """100 values as 10 x 10 blocks of 6 x 6 pixels."""
    return values.reshape(10, 10, *values.shape[1:]).repeat(6, 0).repeat(6, 1)


def folder(root: Path, ids: list[int], count: int = 10, sides: str = "images masks") -> Path:
    """`count` noisy images, whose masks together hold `ids`; every fifth repeats the one before."""
    images, masks = sides.split()
    generator = np.random.default_rng(0)
    pixels = np.zeros(0)
    for number in range(count):
        if number % 5 != 1:
            pixels = blocks(generator.integers(0, 256, (100, 3), dtype=np.uint8))
        codes = generator.permutation(np.resize(np.array(ids), 100))
        mask = blocks(codes.astype(np.uint8 if max(ids) < 256 else np.uint16))
        save(root / images / f"{number}.png", pixels)
        save(root / masks / f"{number}.png", mask)
    return root


@pytest.mark.parametrize(
    ("ids", "classes", "id_map"),
    [
        ([0, 1], ["background", "foreground"], {0: 0, 1: 1, 255: IGNORE}),
        ([0, 255], ["background", "foreground"], {0: 0, 255: 1}),
        ([0, 1, 255], ["background", "foreground"], {0: 0, 1: 1, 255: IGNORE}),
        ([0, 1, 2], ["class_0", "class_1", "class_2"], {0: 0, 1: 1, 2: 2, 255: IGNORE}),
        (
            list(range(64)),
            [f"class_{n}" for n in range(64)],
            {n: n for n in range(64)} | {255: IGNORE},
        ),
    ],
)
def test_ids_without_doubt(
    tmp_path: Path,
    ids: list[int],
    classes: list[str],
    id_map: dict[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = load_dataset(folder(tmp_path, ids, 2))
    assert (dataset.classes, dataset.id_map, dataset.described) == (classes, id_map, False)
    said = capsys.readouterr().err
    assert "All 2 masks hold the ids 0, " in said
    assert ("255 is ignored" in said) == (ids == [0, 1, 255])


@pytest.mark.parametrize("ids", [[0], [255], [1, 2], [0, 2], [0, 1, 254], [0, 300], range(65)])
def test_ids_with_doubt(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(InputError, match=r"has no dataset\.yaml") as caught:
        load_dataset(folder(tmp_path, list(ids), 1))
    assert f"`zoo data init {tmp_path}`" in str(caught.value)


def test_commands_in_messages_can_be_pasted(tmp_path: Path) -> None:
    root = folder(tmp_path / "my data", [0, 1], 2)
    with pytest.raises(InputError, match=f"`zoo data split '{root}' --out parts`"):
        load_dataset(root).samples("val")
    save(root / "masks" / "0.png", np.full((60, 60), 7, np.uint8))
    with pytest.raises(InputError, match=f"`zoo data init '{root}'`"):
        load_dataset(root)


def test_other_folders_without_description(tmp_path: Path) -> None:
    pattern = folder(tmp_path / "pattern", [0, 1], 2, "img img_masks")
    assert [sample.name for sample in load_dataset(pattern).splits["train"]] == ["0", "1"]
    official = folder(tmp_path / "official", [0, 1], 1, "leftImg8bit/train gtFine/train")
    with pytest.raises(InputError, match=f"give `cityscapes:{official}` as the data"):
        load_dataset(official)


def test_masks_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_dataset(folder(tmp_path, [0, 1], 3))

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(mask_reading, "opened", refuse)
    assert load_dataset(tmp_path).classes == ["background", "foreground"]


def test_the_doctor_calls_it_a_note(tmp_path: Path) -> None:
    found = {
        finding.code: finding.about.severity
        for finding in diagnose(folder(tmp_path, [0, 1])).findings
    }
    assert found["D109"] == "note"
    assert "D101" not in found
    assert "D102" not in found


def test_val_is_made_out_of_train(tmp_path: Path) -> None:
    dataset = load_dataset(folder(tmp_path / "data", [0, 1], 20))
    divided, made = with_val(dataset)
    assert made is not None
    names = {split: [s.name for s in samples] for split, samples in divided.splits.items()}
    assert sorted(names["train"] + names["val"], key=int) == [str(n) for n in range(20)]
    assert len(names["val"]) == 6
    for copy in range(1, 20, 5):  # near-duplicates stay together
        assert (str(copy) in names["val"]) == (str(copy - 1) in names["val"])
    assert (made["group"], made["seed"], made["val"]) == ("similarity", 0, sorted(names["val"]))
    assert with_val(dataset)[1] == made
    assert with_val(dataset, ["3", "7"])[0].splits["val"] == dataset.samples("train")[3:8:4]
    with pytest.raises(InputError, match="1 of 2 images of the run's val split are gone: 99"):
        with_val(dataset, ["3", "99"])
    (file,) = split(tmp_path / "data", out=tmp_path / "parts")
    described = load_dataset(file)
    assert described.classes == dataset.classes
    assert with_val(described) == (described, None)


def test_val_cannot_be_made_of_one_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no val split, and none can be made: .* 1 groups by"):
        with_val(load_dataset(folder(tmp_path, [0, 1], 1)))


def test_a_run_records_its_split_and_keeps_it(tmp_path: Path) -> None:
    data, run = folder(tmp_path / "data", [0, 1]), tmp_path / "run"
    settings = ["stages.all.epochs=1", "batch_size=2", "crop=32", "workers=0", "precision=fp32"]
    result = zoo.finetune(
        "unet-test_resnet", data, out=run, encoder_weights=None, overrides=settings
    )
    recorded = json.loads((run / "run.json").read_text())["data"]
    assert recorded["images"] == {"train": 7, "val": 3}
    assert recorded["divided"] == with_val(load_dataset(data))[1]
    for given in (run, run / "best"):
        found = zoo.evaluate(given, data, split="val", precision="fp32")
        assert len(found.per_image) == 3
        assert found.metrics["miou"] == pytest.approx(result.best_miou, abs=1e-6)
    for source in ({}, {"data": data}):
        predicted = list(zoo.predict(run, split="val", precision="fp32", **source))
        assert [file.image.stem for file in predicted] == recorded["divided"]["val"]
    save(data / "images" / "new.png", np.zeros((60, 60, 3), np.uint8))
    save(data / "masks" / "new.png", np.zeros((60, 60), np.uint8))
    assert len(list(zoo.predict(run, split="train", precision="fp32"))) == 8
    assert len(zoo.evaluate(run, data, split="val").per_image) == 3
    with pytest.raises(InputError, match=r"Unknown split 'val'.* `zoo data split"):
        zoo.evaluate(zoo.create(run), data, split="val")


def test_a_resumed_run_keeps_the_split_it_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = folder(tmp_path / "data", [0, 1]), tmp_path / "run"
    settings = ["stages.all.epochs=1", "batch_size=2", "crop=32", "workers=0", "precision=fp32"]

    def run(**options: Any) -> zoo.Result:
        return zoo.finetune(
            "unet-test_resnet", data, out=out, encoder_weights=None, overrides=settings, **options
        )

    def killed(*_: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_update", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    recorded = json.loads((out / "run.json").read_text())["data"]

    def never(*_: object) -> None:
        raise AssertionError("divided anew")

    monkeypatch.setattr(split_module, "_divide", never)
    assert run(resume=True).steps == 3
    assert json.loads((out / "run.json").read_text())["data"] == recorded
