"""Large TIFFs: the pixels of windows, GeoTIFFs with their georeference, what cannot be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
import torch
from PIL import Image
from rasterio.transform import from_origin

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.data.pixels.images import read_pixels
from zoo.inference.predictor import BrokenImagesError
from zoo.inference.raster import is_large_tiff, open_raster
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec, class_names, palette_for

HEIGHT, WIDTH = 600, 700
PLACE = from_origin(5e5, 5e6, 0.5, 0.5)


@pytest.fixture(autouse=True)
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "0.3")


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    made = zoo.create("unet-test_resnet", classes=["a", "b", "c"], encoder_weights=None).eval()
    with torch.no_grad():
        made.net.segmentation_head[0].bias.zero_()
    return made


def noise(channels: int = 3, dtype: str = "uint8") -> Any:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, np.iinfo(dtype).max, (channels, 75, 88), dtype=dtype)
    return np.kron(coarse, np.ones((1, 8, 8), dtype))[:, :HEIGHT, :WIDTH]


def write(path: Path, pixels: Any, **options: Any) -> Path:
    options = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"} | options
    count, height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=pixels.dtype,
        **options,
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


def spec_of(channels: int, value_range: tuple[float, float] | None) -> ModelSpec:
    names = class_names(3)
    return ModelSpec(
        name="unet-x", decoder="unet", encoder="x", classes=names, in_chans=channels,
        palette=palette_for(names, None), mean=[0.0] * channels, std=[1.0] * channels,
        value_range=value_range,
    )  # fmt: skip


def colour_map(path: Path) -> None:
    table = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(path, noise(1)[0], photometric="palette", colormap=table, tile=(256, 256))


VARIANTS: dict[str, tuple[Callable[[Path], Any], int, tuple[float, float] | None]] = {
    "rgb": (lambda p: write(p, noise(), photometric="rgb"), 3, None),
    "strips": (lambda p: tifffile.imwrite(p, noise().transpose(1, 2, 0), rowsperstrip=7), 3, None),
    "planes": (lambda p: write(p, noise(), interleave="band"), 3, None),
    "alpha": (lambda p: write(p, noise(4), photometric="rgb", ALPHA="NON-PREMULTIPLIED"), 3, None),
    "gray": (lambda p: write(p, noise(1)), 3, None),
    "16 bits": (lambda p: write(p, noise(3, "uint16")), 3, None),
    "big-endian": (lambda p: write(p, noise(3, "uint16"), ENDIANNESS="BIG"), 3, None),
    "floats": (lambda p: write(p, noise(5, "uint16").astype("float32")), 5, (100.0, 60000.0)),
    "signed": (lambda p: write(p, noise(2, "int16")), 2, (-5.0, 9000.0)),
    "colour map": (colour_map, 3, None),
    "white is zero": (lambda p: write(p, noise(1), photometric="miniswhite"), 3, None),
    "BigTIFF": (lambda p: write(p, noise(), BIGTIFF="YES", photometric="rgb"), 3, None),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_windows_have_the_pixels_of_the_whole_image(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, channels, value_range = VARIANTS[variant]
    path = tmp_path / "a.tif"
    make(path)
    assert is_large_tiff(path)
    rows, columns = slice(37, 301), slice(511, 700)
    with open_raster(path, spec_of(channels, value_range)) as source:
        assert (source.height, source.width) == (HEIGHT, WIDTH)
        found = source.read(rows, columns)
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "1")
    assert not is_large_tiff(path)
    assert np.array_equal(found, read_pixels(path, channels, value_range)[rows, columns])


def test_jpeg_of_half_the_colours_is_nearly_what_it_is_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) // 2 % 256]).astype("uint8")
    path = write(tmp_path / "a.tif", pixels, photometric="ycbcr", compress="jpeg")
    with open_raster(path, spec_of(3, None)) as source:
        found = source.read(slice(0, HEIGHT), slice(0, WIDTH)).astype(int)
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "1")
    difference = np.abs(found - read_pixels(path))
    assert 0 < difference.mean() < 1


def test_a_large_tiff_becomes_a_geotiff(
    tmp_path: Path, model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = noise()
    pixels[:, :90, :130] = 0
    image = write(
        tmp_path / "a.tif", pixels, crs="EPSG:32632", transform=PLACE, nodata=0, photometric="rgb"
    )
    predictor = zoo.Predictor(model, precision="fp32", window=256, overlap=0.5, blend="gaussian")
    found, small = predictor.stream([image, photo(tmp_path)], out=tmp_path / "out")
    assert found.mask is None
    assert small.mask.shape == (40, 56)
    assert {kind: path.relative_to(tmp_path).as_posix() for kind, path in found.files.items()} == {
        "geotiff": "out/geotiff/a.tif",
        "overlay": "out/overlays/a.png",
        "json": "out/statistics/a.json",
    }
    with rasterio.open(found.files["geotiff"]) as file:
        assert file.crs.to_epsg() == 32632
        assert file.transform == PLACE
        assert (file.nodata, file.profile["tiled"], file.compression.name) == (255, True, "deflate")
        assert json.loads(file.tags()["CLASSES"]) == ["a", "b", "c"]
        assert file.tags()["CLASS_2"] == "c"
        assert file.colormap(1)[1][:3] == tuple(model.spec.palette[1])
        ids = file.read(1)
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "1")
    whole = predictor(image).mask.copy()
    assert len(np.unique(whole)) > 1
    whole[(pixels == 0).all(0)] = 255  # some pixels outside of the corner are black too
    assert np.array_equal(ids, whole)
    counts = np.bincount(whole.ravel(), minlength=256)
    assert {one["id"]: one["pixels"] for one in found.statistics["classes"]} == {
        index: counts[index] for index in range(3) if counts[index]
    }
    with Image.open(found.files["overlay"]) as shown:
        assert shown.width >= WIDTH
    # the same of an image that is decoded whole
    (again,) = predictor.stream(image, out=tmp_path / "whole", save="geotiff")
    with rasterio.open(again.files["geotiff"]) as file:
        assert np.array_equal(file.read(1), whole)
        assert file.transform == PLACE


def photo(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "small.png")
    return folder / "small.png"


def test_images_without_a_georeference_get_none(tmp_path: Path, model: SegmentationModel) -> None:
    image = write(tmp_path / "a.tif", noise(), photometric="rgb")
    found, small = zoo.predict(
        model, [image, photo(tmp_path)], out=tmp_path / "out", save=["geotiff"], window=256
    )
    for prediction in (found, small):
        with rasterio.open(prediction.files["geotiff"]) as file:
            assert file.crs is None
            assert file.transform.is_identity
    assert "overlay" not in found.files


def cut_short(path: Path) -> None:
    write(path, noise(), compress=None)
    path.write_bytes(path.read_bytes()[:-400_000])


def broken_inside(path: Path) -> None:
    write(path, noise())
    with tifffile.TiffFile(path) as file:
        place, length = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    content = bytearray(path.read_bytes())
    content[place : place + length] = bytes(length)
    path.write_bytes(bytes(content))


REFUSED: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "cut short": (cut_short, {}, "cut"),
    "broken inside": (broken_inside, {}, "cannot be decoded"),
    "channels": (lambda p: write(p, noise(5)), {}, "has 5 channels"),
    "CMYK": (
        lambda p: tifffile.imwrite(p, noise(4).transpose(1, 2, 0), photometric="separated"),
        {},
        "cannot be read window by window: it stores colours as SEPARATED",
    ),
    "rotated": (
        lambda p: tifffile.imwrite(
            p, noise().transpose(1, 2, 0), photometric="rgb", extratags=[(274, 3, 1, 6, True)]
        ),
        {},
        "it is stored rotated or mirrored",
    ),
    "one strip": (
        lambda p: tifffile.imwrite(
            p, noise().transpose(1, 2, 0), compression="zlib", rowsperstrip=HEIGHT
        ),
        {},
        "it is stored in pieces of 0.42 megapixels",
    ),
    "probabilities": (
        lambda p: write(p, noise()),
        {"confidence": True, "min_area": 3, "save": "npz"},
        "which gives no confidence, npz, min_area. Leave that out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said_and_the_rest_is_done(
    tmp_path: Path, model: SegmentationModel, case: str
) -> None:
    make, options, message = REFUSED[case]
    make(tmp_path / "a.tif")
    out = tmp_path / "out"
    stream = zoo.predict(
        model, [tmp_path / "a.tif", photo(tmp_path)], out=out, window=256, **options
    )
    assert next(stream).image.name == "small.png"
    with pytest.raises(BrokenImagesError, match="1 of 2 images cannot be predicted") as caught:
        next(stream)
    assert "a.tif" in str(caught.value)
    assert message in str(caught.value)
    assert not [path for path in out.rglob("*") if path.is_file() and "a.tif" in path.name]


def test_without_a_place_for_the_result(tmp_path: Path, model: SegmentationModel) -> None:
    image = write(tmp_path / "a.tif", noise())
    with pytest.raises(InputError, match=r"more than 0.3 megapixels. Give out= \(--out\)"):
        list(zoo.predict(model, image))


def test_a_model_that_reduces_images_needs_them_whole(
    tmp_path: Path, model: SegmentationModel
) -> None:
    reducing = SegmentationModel(model.net, model.spec.model_copy(update={"input_side": 256}))
    image = write(tmp_path / "a.tif", noise())
    with pytest.raises(InputError, match=r"as the model resizes images \(shorter side to 256"):
        list(zoo.predict(reducing, image, out=tmp_path / "out"))


def test_without_rasterio(
    tmp_path: Path, model: SegmentationModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = write(tmp_path / "a.tif", noise())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(InputError, match=r"window by window needs the package rasterio"):
        list(zoo.predict(model, image, out=tmp_path / "out"))


def test_the_input_is_never_overwritten(tmp_path: Path, model: SegmentationModel) -> None:
    (tmp_path / "geotiff").mkdir()
    image = write(tmp_path / "geotiff" / "a.tif", noise())
    before = image.read_bytes()
    with pytest.raises(InputError, match=r"geotiff/a.tif is an input of this command"):
        zoo.predict(model, image, out=tmp_path, overwrite=True)
    assert image.read_bytes() == before


def test_the_command_line_names_the_files(
    tmp_path: Path, model: SegmentationModel, capsys: pytest.CaptureFixture[str]
) -> None:
    from zoo.hub.folder import save_folder

    training = {"dataset": "scenes", "recipe": "cnn", "seed": 0, "steps": 7, "chosen_on": "val"}
    save_folder(model, tmp_path / "model", training=training, metrics={})
    image = write(tmp_path / "a.tif", noise())
    out = tmp_path / "out"
    assert (
        run(["predict", str(tmp_path / "model"), str(image), "--out", str(out), "--window", "256"])
        == 0
    )
    assert str(out / "geotiff" / "a.tif") in capsys.readouterr().out
