"""A model of one class: one logit per pixel, id 1 where it is above 0, else id 0, background."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from helpers.data_folders import random_image, save
from PIL import Image

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.creation.import_checkpoint import import_checkpoint
from zoo.hub.card import card
from zoo.inference.tiling import best_class
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.records.record import read_records
from zoo.training.losses import cross_entropy, dice, focal, jaccard, lovasz, tversky

NAME = "unet-test_resnet"
SHORT = ["crop=64", "batch_size=2", "precision=fp32", "stages=[{name: all, epochs: 1}]"]


@pytest.fixture
def theirs(tmp_path: Path) -> Any:
    """A network of SMP with one logit per pixel, some above 0, also saved in both of its ways."""
    torch.manual_seed(0)
    net = smp.Unet("tu-test_resnet", encoder_weights=None, classes=1).eval()
    torch.save(net.state_dict(), tmp_path / "binary.pth")
    net.save_pretrained(str(tmp_path / "smp"))
    return net


def imported(theirs: Any, folder: Path) -> Path:
    import_checkpoint(folder / "binary.pth", NAME, ["road"], folder / "model")
    return folder / "model"


def write_data(root: Path, classes: str = "bg, road") -> Path:
    """Two images a split; the ids of the masks are 0 and 1, with some ignored."""
    for number, split in enumerate(["train", "train", "val", "val", "test", "test"]):
        mask = np.zeros((64, 96), np.uint8)
        mask[10 : 40 + number, 20:70] = 1
        mask[:3] = 255
        save(root / split / "images" / f"{number}.png", random_image(number, 64, 96))
        save(root / split / "masks" / f"{number}.png", mask)
    (root / "dataset.yaml").write_text(f"version: 1\nclasses: [{classes}]\nignore: 255\n")
    return root


def truth_from_logits(net: SegmentationModel, image: Path) -> Any:
    pixels = torch.from_numpy(np.array(Image.open(image))).permute(2, 0, 1)[None]
    with torch.no_grad():
        return (net.eval()(normalise(pixels, net.spec, "cpu"))[0, 0] > 0).numpy()


def test_what_is_imported_predicts_the_class_where_the_logit_is_above_0(
    theirs: Any, tmp_path: Path
) -> None:
    save(tmp_path / "in" / "a.png", random_image(3, 64, 96))
    folder = imported(theirs, tmp_path)
    for place in (folder, tmp_path / "smp"):
        model = zoo.create(place)
        right = truth_from_logits(model, tmp_path / "in" / "a.png")
        assert 0.05 < right.mean() < 0.95
        out = tmp_path / f"seen_{place.name}"
        [found] = zoo.predict(model, tmp_path / "in", out=out, precision="fp32")
        assert np.array_equal(found.mask, right)
        stored = Image.open(out / "masks" / "a.png")
        assert np.array_equal(np.array(stored), right)
        assert (stored.getpalette() or [])[:6] == [0, 0, 0, 128, 0, 0]
        # the background stays as it is in the image, the class does not
        shown = np.array(Image.open(out / "overlays" / "a.png"))
        factor = shown.shape[1] // 96
        seen = shown[: 64 * factor : factor, ::factor]
        image = np.array(Image.open(tmp_path / "in" / "a.png"))
        assert np.array_equal((seen == image).all(axis=2), ~right)

    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        again = smp.from_pretrained(str(folder)).eval()
        assert torch.equal(again(images), theirs(images))
    spec = zoo.create(folder).spec
    assert (spec.classes, spec.id_names) == (["road"], ["background", "road"])
    text = card(spec, None, None)
    assert "| classes | 2: background, road |" in text
    assert "| logits | one per pixel; above 0 it is road |" in text


def test_a_logit_is_compared_with_0_after_it_is_resized() -> None:
    logits = torch.tensor([[[[-1.0, 3.0]]]])
    assert best_class(logits, (1, 2)).tolist() == [[[0, 1]]]
    assert best_class(logits, (1, 4)).tolist() == [[[0, 0, 1, 1]]]  # -1, 0, 2, 3
    assert best_class(torch.zeros(1, 1, 1, 1), (1, 1)).tolist() == [[[0]]]


def test_the_class_of_a_created_model() -> None:
    model = zoo.create(NAME, classes=1, encoder_weights=None)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert model.spec.id_names == ["background", "class_0"]
    assert model.spec.id_palette == [(0, 0, 0), (128, 0, 0)]
    painted = zoo.create(NAME, classes=["background"], palette=[(1, 2, 3)], encoder_weights=None)
    assert painted.spec.id_names == ["rest", "background"]
    assert painted.spec.id_palette == [(0, 0, 0), (1, 2, 3)]
    with pytest.raises(InputError, match=r'two at least: give classes=\["background", "class_0"\]'):
        zoo.create("eomt-test_vit", classes=1, encoder_weights=None)


def test_scores_and_records_have_both_classes_of_the_data(theirs: Any, tmp_path: Path) -> None:
    folder, data = imported(theirs, tmp_path), write_data(tmp_path / "data")
    found = zoo.evaluate(folder, data, out=tmp_path / "records")
    matrix = np.zeros((2, 2), np.int64)
    for image in sorted((data / "test" / "images").iterdir()):
        truth = np.array(Image.open(data / "test" / "masks" / image.name))
        right = truth_from_logits(zoo.create(folder), image)
        for true in (0, 1):
            for predicted in (0, 1):
                matrix[true, predicted] += ((truth == true) & (right == predicted)).sum()
    assert (matrix > 0).all()
    assert found.confusion.matrix.tolist() == matrix.tolist()
    [record] = read_records(tmp_path / "records")
    assert (record.classes, record.confusion) == (["bg", "road"], matrix.tolist())
    assert set(record.metrics.model_dump()["iou_per_class"]) == {"bg", "road"}
    for classes in ("road, bg", "bg, sky, road"):
        with pytest.raises(InputError, match=r"predicts 2 classes \(background, road ...\)"):
            zoo.evaluate(folder, write_data(tmp_path / classes, classes))


def test_training_takes_the_sigmoids_of_one_logit(
    theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, data, out = imported(theirs, tmp_path), write_data(tmp_path / "data"), tmp_path / "run"
    result = zoo.finetune(folder, data, out=out, overrides=SHORT)
    said = " ".join(capsys.readouterr().err.split())
    assert "A model of one class learns with activation=sigmoid and class_weights=none." in said
    stored = json.loads((out / "run.json").read_text())
    assert stored["overrides"]["activation"] == "sigmoid"
    assert stored["overrides"]["class_weights"] == "none"
    best = zoo.create(out)
    assert best.spec.classes == ["road"]
    assert zoo.evaluate(out, data, split="val").metrics["miou"] == result.best_miou
    metrics = json.loads((out / "best" / "config.json").read_text())["_zoo"]["metrics"]
    assert set(metrics["iou_per_class"]) == {"bg", "road"}


@pytest.mark.parametrize(
    ("override", "classes", "message"),
    [
        ("activation=softmax", "bg, road", "for which activation is sigmoid, not softmax"),
        ("class_weights=log", "bg, road", "for which class_weights is none, not log"),
        ("loss={ce: 1.0}", "road, bg", "was trained on 2 classes"),
        ("loss={ce: 1.0}", "road", "1 given; 2 to 255 are allowed, background counts as one"),
    ],
)
def test_what_one_logit_cannot_learn(
    theirs: Any, tmp_path: Path, override: str, classes: str, message: str
) -> None:
    folder, data = imported(theirs, tmp_path), write_data(tmp_path / "data", classes)
    with pytest.raises(InputError, match=message):
        zoo.finetune(folder, data, out=tmp_path / "run", overrides=[*SHORT, override])
    assert not (tmp_path / "run").exists()


def test_a_new_head_has_a_logit_for_the_background(theirs: Any, tmp_path: Path) -> None:
    folder, data = imported(theirs, tmp_path), write_data(tmp_path / "data")
    command = ["finetune", str(folder), "--data", str(data), "--out", str(tmp_path / "run")]
    assert run([*command, "--new-head", *SHORT]) == 0
    assert zoo.create(tmp_path / "run").spec.classes == ["bg", "road"]


@pytest.mark.parametrize(
    ("ours", "smps"),
    [
        (cross_entropy, smp.losses.SoftBCEWithLogitsLoss()),
        (dice, smp.losses.DiceLoss("binary")),
        (focal, smp.losses.FocalLoss("binary")),
        (jaccard, smp.losses.JaccardLoss("binary")),
        (tversky, smp.losses.TverskyLoss("binary", alpha=0.3, beta=0.7)),
        (lovasz, smp.losses.LovaszLoss("binary", per_image=True)),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_losses_of_ids_0_and_1_equal_smps_binary_ones(ours: Any, smps: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 9, 11, generator=generator) * 2
    mask = torch.randint(0, 2, (2, 9, 11), generator=generator)
    expected = smps(logits, mask[:, None].float()).item()
    assert ours(logits, mask, activation="sigmoid").item() == pytest.approx(expected, rel=1e-5)
    # ignored pixels count nowhere: the loss of the left part alone
    ignored = torch.where(torch.arange(11) < 6, mask, 255)
    left = smps(logits[..., :6], mask[:, None, :, :6].float()).item()
    assert ours(logits, ignored, activation="sigmoid").item() == pytest.approx(left, rel=1e-5)
    with pytest.raises(InputError, match="the ids should be 0 to 1 or 255"):
        ours(logits, mask + 1, activation="sigmoid")
