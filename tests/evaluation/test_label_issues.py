"""Labels that a model disputes: swapped regions come first, and every message."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanlab.experimental.label_issues_batched import LabelInspector
from helpers.doctor_folders import pixels, save
from helpers.stripes import CLASSES, brightest, relabel, write_stripes
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.doctor import doctor
from zoo.evaluation.label_issues import LabelCheck


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_stripes(tmp_path / "stripes")


def test_swapped_regions_come_first_and_ignored_pixels_do_not_count(data: Path) -> None:
    relabel(data, "val/d.png", slice(0, 12), slice(0, 10), 1)  # 120 pixels of the road
    relabel(data, "test/g.png", slice(4, 12), slice(36, 44), 0)  # 64 pixels of a car
    relabel(data, "val/c.png", slice(0, 40), slice(0, 8), 255)
    found = LabelCheck(brightest(CLASSES), data, top=2)()
    assert found.splits == ("val", "test")
    assert [image.image for image in found.images[:2]] == [
        "val/images/d.png", "test/images/g.png",
    ]  # fmt: skip
    assert [(image.disputed, image.pixels) for image in found.images] == [
        (120, 1440), (64, 1920), (0, 1920), (0, 1920), (0, 1600), (0, 1920),
    ]  # fmt: skip
    # (label, prediction, pixels): of the pixels with this label
    road = 480 - 120 + 16 * 40 * 5 - 8 * 40 + 64
    sky = 480 + 120 + 16 * 40 * 5
    assert [(p.label, p.model, p.pixels) for p in found.pairs] == [
        ("sky", "road", 120), ("road", "<b>car</b>", 64),
    ]  # fmt: skip
    assert [p.fraction for p in found.pairs] == pytest.approx([120 / sky, 64 / road])
    sure, other = np.exp(6) / (np.exp(6) + 2), 1 / (np.exp(6) + 2)
    assert [image.score for image in found.images[2:]] == pytest.approx([sure] * 4, abs=1e-6)
    # softmin by hand: the mean, weighted by softmax(1 - p) at the temperature 0.1
    weights = np.exp([(1 - sure) / 0.1, (1 - other) / 0.1]) * [1440 - 120, 120]
    expected = (weights * [sure, other]).sum() / weights.sum()
    assert found.images[0].score == pytest.approx(expected, abs=1e-6)
    assert len(found.pictures) == 2
    picture = np.asarray(Image.open(io.BytesIO(found.pictures[0])))
    assert picture.shape[:2] > (24, 4 * 60)


def test_as_many_pixels_are_disputed_as_cleanlab_counts(data: Path) -> None:
    rng = np.random.default_rng(0)
    for path in (*data.glob("val/images/*.png"), *data.glob("test/images/*.png")):
        save(path, rng.integers(0, 256, (*pixels(path).shape[:2], 3), dtype=np.uint8))
    model, inspector = brightest(CLASSES), LabelInspector(num_class=3, verbose=False)
    labels, probabilities = [], []
    for path in sorted((*data.glob("val/images/*.png"), *data.glob("test/images/*.png"))):
        image = torch.from_numpy(pixels(path).copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            probabilities.append(model.net(image)[0].softmax(0).flatten(1).T.numpy())
        labels.append(pixels(path.parent.parent / "masks" / path.name).flatten())
    every, all_labels = np.concatenate(probabilities), np.concatenate(labels)
    inspector.update_confident_thresholds(all_labels, every)
    inspector.score_label_quality(all_labels, every)
    found = LabelCheck(model, data)()
    assert 1000 < inspector.get_num_issues() < len(all_labels)
    disputed = sum(image.disputed for image in found.images)
    # a few probabilities are equal to a threshold but for rounding
    assert disputed == pytest.approx(inspector.get_num_issues(), abs=5)


def test_a_model_of_one_class(data: Path) -> None:
    (data / "dataset.yaml").write_text("version: 1\nclasses: [rest, road]\n")
    for path in data.glob("*/masks/*.png"):
        save(path, (pixels(path) == 0).astype(np.uint8))
    relabel(data, "test/g.png", slice(4, 12), slice(36, 44), 1)
    model = brightest(["road"])
    with torch.no_grad():
        model.net.bias.fill_(-3.0)
    found = LabelCheck(model, data)()
    assert found.images[0].image == "test/images/g.png"
    assert [(p.label, p.model, p.pixels) for p in found.pairs] == [("road", "rest", 64)]


def test_the_doctor_shows_them(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relabel(data, "val/d.png", slice(0, 12), slice(0, 10), 2)
    out, check = data.parent / "out", LabelCheck(brightest(CLASSES), data, ["val"], top=1)
    doctor(data, out, labels=check)
    text = capsys.readouterr().out
    assert re.search(r"disputed +split +image +mostly", text)
    assert re.search(r"8\.33 % +val +val/images/d\.png +<b>car</b> -> road", text)
    assert re.search(r"<b>car</b> +road +120 +4\.76 %", text)
    page = (out / "report.html").read_text()
    assert "<b>car" not in page
    assert "8.33 % disputed: &lt;b&gt;car&lt;/b&gt; &rarr; road 120 pixels" in page
    [url] = re.findall(r"data:image/webp;base64,([^\"]+)", page)
    assert base64.b64decode(url) == check().pictures[0]
    doctor(data, as_json=True, labels=check)
    labels = json.loads(capsys.readouterr().out)["labels"]
    assert labels["model"] == "unet-x"
    assert labels["images"][0] == {
        "split": "val", "name": "d", "image": "val/images/d.png", "disputed": 120, "pixels": 1440,
        "score": pytest.approx(0.012, abs=0.01),
        "pairs": [
            {"label": "<b>car</b>", "model": "road", "pixels": 120, "fraction": 120 / 600}
        ],
    }  # fmt: skip
    assert "pictures" not in labels


def test_a_split_that_the_model_learned_from(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LabelCheck(brightest(CLASSES), data, ["train"])
    assert "unet-x may have learned from the split train" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.parametrize(
    ("splits", "top", "message"),
    [
        (["vall"], 12, "Unknown split 'vall'"),
        ([], -1, "The number of images with a picture must be at least 0, not -1"),
        ([], 12, "stripes has no other split with masks than train. Give --split train"),
    ],
)
def test_what_is_refused(data: Path, splits: list[str], top: int, message: str) -> None:
    (data / "dataset.yaml").write_text(
        (data / "dataset.yaml").read_text()
        + "splits: {train: {images: train/images, masks: train/masks}}\n"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        LabelCheck(brightest(CLASSES), data, splits, top)


def test_a_model_of_other_classes_and_masks_without_labels(data: Path) -> None:
    with pytest.raises(InputError, match="predicts 3 classes"):
        LabelCheck(brightest(["a", "b", "c"]), data)
    for path in data.glob("*/masks/*.png"):
        save(path, np.full_like(pixels(path), 255))
    with pytest.raises(InputError, match="every pixel is ignored, so there are no labels"):
        LabelCheck(brightest(CLASSES), data)()
