"""What a prediction holds and the files that are written for it, by hand."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.common.files import MANIFEST, OutputFolder
from zoo.creation.create import create
from zoo.hub.folder import save_folder
from zoo.inference.outputs import (
    OUTPUTS,
    Prediction,
    check_kinds,
    check_min_area,
    check_results,
    measured,
)
from zoo.inference.predictor import Predictor
from zoo.models.spec import ModelSpec

SPEC = ModelSpec(
    name="unet-test",
    decoder="unet",
    encoder="test",
    classes=["sky", "car", "background"],
    palette=[(0, 0, 255), (255, 0, 0), (0, 0, 0)],
    mean=[0.5] * 3,
    std=[0.5] * 3,
)
ABOUT = {"model": {"name": "unet-test"}, "settings": {"precision": "fp32"}}
MASK = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 2]], np.uint8)
PIXELS = np.full((3, 4, 3), 100, np.uint8)


def given(*values: list[float]) -> torch.Tensor:
    """Probabilities 1 x K x 1 x W, by pixel."""
    return torch.tensor(values).T[None, :, None]


def test_confidence_and_entropy_by_hand() -> None:
    pixels = given([1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0])
    found = measured(pixels, {"confidence", "entropy"})
    assert set(found) == {"confidence", "entropy"}
    assert found["confidence"].tolist() == [[[1, 0.25, 0.5]]]
    # ln 1, ln 4 and ln 2 over ln 4
    assert found["entropy"].tolist() == [[[0, 1, pytest.approx(0.5)]]]
    two = measured(given([0.25, 0.75]), {"entropy", "probabilities"})
    assert two["entropy"].item() == pytest.approx(
        -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    )
    assert two["probabilities"].shape == (1, 2, 1, 1)


def finished(out: Path, **wanted: Any) -> Prediction:
    results = check_results(SPEC, **wanted)
    high = np.linspace(0.5, 1, MASK.size, dtype=np.float32).reshape(MASK.shape)
    probabilities = np.stack([high, 1 - high, np.zeros_like(high)])
    every = {"probabilities": probabilities, "confidence": high, "entropy": 1 - high}
    measures = {name: every[name] for name in results.measures}
    return results.finish("a.png", "a", PIXELS, MASK, measures, OutputFolder(out, []), ABOUT)


def test_a_file_of_every_kind(tmp_path: Path) -> None:
    found = finished(tmp_path, save=OUTPUTS)
    assert found.mask.tolist() == MASK.tolist()
    assert (found.probabilities, found.confidence, found.entropy) == (None, None, None)
    files = {path.relative_to(tmp_path).as_posix() for path in found.files.values()}
    assert files == {
        "masks/a.png",
        "index/a.png",
        "overlays/a.png",
        "probabilities/a.npz",
        "confidence/a.png",
        "entropy/a.png",
        "polygons/a.geojson",
        "geotiff/a.tif",
        "statistics/a.json",
    }
    assert (found.mask_file, found.overlay_file) == (
        tmp_path / "masks" / "a.png",
        tmp_path / "overlays" / "a.png",
    )
    stored = {}
    for kind in ("palette", "index", "overlay", "confidence", "entropy"):
        with Image.open(found.files[kind]) as image:
            stored[kind] = image.mode, np.asarray(image)
    assert [mode for mode, _ in stored.values()] == ["P", "L", "RGB", "L", "L"]
    assert stored["palette"][1].tolist() == stored["index"][1].tolist() == MASK.tolist()
    # 12 pixels from 0.5 to 1: 127.5 is even at 128, 255 * 0.545... = 139.09
    assert stored["confidence"][1].ravel()[[0, 1, -1]].tolist() == [128, 139, 255]
    assert stored["entropy"][1].ravel()[[0, 1, -1]].tolist() == [128, 116, 0]
    # upsampled 120 times; a car pixel without a border, half red, half gray
    assert stored["overlay"][1][60, 420].tolist() == [178, 50, 50]

    with np.load(found.files["npz"]) as arrays:
        assert arrays["probabilities"].dtype == np.float16
        assert arrays["probabilities"].shape == (3, 3, 4)
        assert arrays["probabilities"][:, 0, 0].tolist() == [0.5, 0.5, 0]
        assert arrays["mask"].tolist() == MASK.tolist()
        assert arrays["classes"].tolist() == SPEC.classes
    polygons = json.loads(found.files["geojson"].read_text())["features"]
    assert [one["properties"] for one in polygons] == [
        {"id": 0, "class": "sky", "pixels": 7, "confidence": 0.7403},
        {"id": 1, "class": "car", "pixels": 4, "confidence": 0.7045},
    ]
    listed = [json.loads(line)["file"] for line in (tmp_path / MANIFEST).read_text().splitlines()]
    assert set(listed) == files


def test_the_json_beside_a_prediction(tmp_path: Path) -> None:
    found = finished(tmp_path, save="confidence", min_area=2)
    assert found.mask.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]
    stored = json.loads((tmp_path / "statistics" / "a.json").read_text())
    assert found.statistics == {key: stored[key] for key in list(stored)[:6]}
    assert stored == {
        "image": "a.png",
        "height": 3,
        "width": 4,
        "confidence": 0.75,
        "classes": [
            {
                "id": 0,
                "class": "sky",
                "pixels": 8,
                "fraction": 0.666667,
                "confidence": pytest.approx(0.7727, abs=1e-4),
            },
            {
                "id": 1,
                "class": "car",
                "pixels": 4,
                "fraction": 0.333333,
                "confidence": pytest.approx(0.7045, abs=1e-4),
            },
        ],
        "min_area": 2,
        "model": {"name": "unet-test"},
        "settings": {"precision": "fp32"},
        "files": {"confidence": "confidence/a.png", "json": "statistics/a.json"},
    }


def test_what_is_kept_is_what_was_asked_for(tmp_path: Path) -> None:
    found = finished(tmp_path, save="npz", entropy=True)
    assert found.probabilities is None
    assert found.confidence is None
    assert found.entropy is not None
    assert found.entropy[0, 0] == 0.5
    assert check_results(SPEC, save=["npz", "index"], entropy=True).measures == {
        "probabilities",
        "entropy",
    }
    assert check_results(SPEC).measures == set()


@pytest.mark.parametrize(("crs", "first"), [("EPSG:32633", [15, 0]), (None, [0, 0])])
def test_polygons_of_a_tiff_lie_where_it_lies(
    crs: str | None, first: list[int], tmp_path: Path
) -> None:
    """Zone 33 begins 500 km east at 15 degrees; a TIFF without a coordinate system has pixels."""
    import rasterio

    file = tmp_path / "a.tif"
    if crs is None:
        Image.fromarray(PIXELS).save(file)
    else:
        with rasterio.open(
            file, "w", driver="GTiff", height=3, width=4, count=3, dtype="uint8", crs=crs,
            transform=rasterio.Affine(10, 0, 500000, 0, -10, 0),
        ) as raster:  # fmt: skip
            raster.write(PIXELS.transpose(2, 0, 1))
    results = check_results(SPEC, save="geojson")
    made = results.finish(file, "a", PIXELS, MASK, {}, OutputFolder(tmp_path / "out", []))
    found = json.loads(made.files["geojson"].read_text())
    assert found["unit"] == ("pixel" if crs is None else "degree")
    assert first in found["features"][0]["geometry"]["coordinates"][0]


def test_images_are_finished_in_several_threads(tmp_path: Path) -> None:
    results = check_results(SPEC, save=["index", "overlay", "geojson"], min_area=2)
    target = OutputFolder(tmp_path, [])
    masks = [np.full((20, 30), number % 3, np.uint8) for number in range(24)]
    pixels = np.zeros((20, 30, 3), np.uint8)
    with ThreadPoolExecutor(6) as pool:
        done = list(
            pool.map(
                lambda n: results.finish(f"{n}", f"{n}", pixels, masks[n], {}, target), range(24)
            )
        )
    for number, found in enumerate(done):
        with Image.open(found.files["index"]) as image:
            assert set(np.asarray(image).ravel().tolist()) == {number % 3}
        assert found.statistics["classes"][0]["class"] == SPEC.classes[number % 3]


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (["polygon"], r"Unknown kind of output 'polygon'\..* Available: palette, index, overlay"),
        ("pallete", r"Unknown kind of output 'pallete'\. Did you mean palette"),
        ([3], r"save lists kinds of files by name, got 3 \(int\)\."),
    ],
)
def test_kinds_are_checked(save: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_kinds(save)  # type: ignore[arg-type]


def test_the_json_is_always_written() -> None:
    assert check_kinds("index") == ("index", "json")
    assert check_kinds(["json", "overlay", "overlay"]) == ("json", "overlay")
    assert check_kinds([]) == ("json",)


@pytest.mark.parametrize("value", [-1, 2.5, "10", True])
def test_min_area_is_a_number_of_pixels(value: object) -> None:
    with pytest.raises(InputError, match=r"min_area \(--min-area\) is a number of pixels, 0 or mo"):
        check_min_area(value)  # type: ignore[arg-type]


def test_polygons_need_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rasterio", None)
    message = r"The output geojson needs the package rasterio, .*pip install 'segmentation-zoo\[geo"
    with pytest.raises(InputError, match=message):
        check_kinds(["palette", "geojson"])


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (1, {}),
        (4, {}),
        (4, {"window": 64, "blend": "cut"}),
        (1, {"window": 64, "blend": "gaussian", "tta": "flip"}),
    ],
)
def test_quantities_of_a_model_from_one_pass(
    classes: int, options: dict[str, Any], tmp_path: Path
) -> None:
    model = create("unet-test_resnet", classes=classes, encoder_weights=None).eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    asked = {"probabilities": True, "confidence": True, "entropy": True}
    options = options | {"precision": "fp32"}
    found = Predictor(model, **options)(image, **asked)
    probabilities, count = found.probabilities, max(2, classes)
    assert probabilities is not None
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (count, 40, 70))
    assert np.allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    assert (probabilities.argmax(axis=0) == found.mask).all()
    assert np.array_equal(found.confidence, probabilities.max(axis=0))
    by_hand = -(probabilities * np.log(probabilities)).sum(axis=0) / math.log(count)
    assert np.allclose(found.entropy, by_hand, atol=1e-5)

    kinds = ["npz", "confidence", "index"]
    (written,) = zoo.predict(model, image, out=tmp_path, save=kinds, **options)
    assert (written.probabilities, written.confidence) == (None, None)
    with np.load(written.files["npz"]) as arrays:
        assert np.abs(arrays["probabilities"] - probabilities).max() <= 2**-12
    stored = json.loads(written.files["json"].read_text())
    assert stored["model"]["name"] == "unet-test_resnet"
    assert stored["model"]["weights"].startswith("given-")
    assert stored["settings"]["precision"] == "fp32"
    assert stored["confidence"] == pytest.approx(found.confidence.mean(), abs=1e-5)
    plain = Predictor(model)(image)
    assert (plain.probabilities, plain.confidence, plain.entropy) == (None, None, None)


def test_outputs_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    save_folder(create("unet-test_resnet", classes=3, encoder_weights=None), folder)
    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(
        image
    )
    out = tmp_path / "out"
    given = ["predict", str(folder), str(image), "--out", str(out), "--min-area", "40"]
    assert run([*given, "--save", "index", "--save", "geojson"]) == 0
    printed = capsys.readouterr().out
    assert printed.strip().split("\t") == [
        str(out / "index" / "a.png"),
        str(out / "polygons" / "a.geojson"),
    ]
    assert (out / "statistics" / "a.json").is_file()
    features = json.loads((out / "polygons" / "a.geojson").read_text())["features"]
    assert min(one["properties"]["pixels"] for one in features) >= 40
    assert run([*given, "--save", "pictures"]) == 2
    assert "Unknown kind of output 'pictures'" in capsys.readouterr().err
    assert run([*given[:-1], "-1"]) == 2
    assert "--min-area) is a number of pixels, 0 or more" in capsys.readouterr().err
