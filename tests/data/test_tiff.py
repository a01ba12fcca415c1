"""TIFFs are read by what the file says, equal to tifffile's samples, or refused with the way on."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers.data_folders import save
from numpy.typing import NDArray
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.pixels.images import image_size, read_pixels
from zoo.data.pixels.masks import read_colours, read_ids

HEIGHT, WIDTH = 19, 35


def refused(function: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def write(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    tifffile.imwrite(path, pixels, metadata=None, **options)
    return path


def random(dtype: str, *shape: int) -> NDArray[Any]:
    generator = np.random.default_rng(len(shape))
    if dtype.startswith("float"):
        return generator.normal(0, 50, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, int(limits.max) + 1, shape, dtype=dtype)


def scaled(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    fractions = (values.astype(float).clip(low, high) - low) / (high - low)
    return np.floor(fractions * 255 + 0.5).astype(np.uint8)


LAYOUTS = list(
    itertools.product(
        ("uint8", "uint16", "int32", "float32"),
        (1, 3, 5),
        ("contig", "separate"),
        (None, "lzw", "zlib", "packbits"),
        (None, (16, 16)),
        (("<", False), (">", True)),
    )
)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_every_layout_has_the_stored_samples(tmp_path: Path, dtype: str) -> None:
    path, read = tmp_path / "x.tif", 0
    for kind, samples, planar, compression, tile, (endian, big) in LAYOUTS:
        if kind != dtype:
            continue
        contig = planar == "contig"
        stored = random(dtype, *((HEIGHT, WIDTH, samples) if contig else (samples, HEIGHT, WIDTH)))
        write(
            path,
            stored.reshape(HEIGHT, WIDTH) if samples == 1 else stored,
            photometric="minisblack",
            planarconfig=planar if samples > 1 else None,
            compression=compression,
            predictor=compression in {"lzw", "zlib"},
            tile=tile,
            byteorder=endian,
            bigtiff=big,
        )
        pixels = stored if contig else np.moveaxis(stored, 0, 2)
        assert np.array_equal(read_pixels(path, samples, (-20.0, 99.0)), scaled(pixels, -20, 99))
        assert image_size(path) == (HEIGHT, WIDTH)
        if dtype in {"uint8", "uint16"}:
            expected = scaled(pixels, 0, np.iinfo(dtype).max)
            assert np.array_equal(read_pixels(path, samples), expected)
            if samples == 1:
                assert np.array_equal(read_pixels(path, 3), np.repeat(expected, 3, axis=2))
                assert np.array_equal(read_ids(path), stored.reshape(HEIGHT, WIDTH))
        else:
            assert "which have no fixed range" in refused(read_pixels, path, samples)
        if samples == 5:
            message = refused(read_pixels, path, 3, (0.0, 1.0))
            assert "has 5 channels, the data set 3" in message
        if samples > 1:
            assert f"has {samples} samples per pixel" in refused(read_ids, path)
            assert "samples.argmax(axis=-1)" in refused(read_ids, path)
        read += 1
    assert read == len(LAYOUTS) / 4


def test_channels_of_imagej_and_pages(tmp_path: Path) -> None:
    stored, path = random("uint8", 3, HEIGHT, WIDTH), tmp_path / "x.tif"
    tifffile.imwrite(path, stored, imagej=True, metadata={"axes": "CYX"})
    assert np.array_equal(read_pixels(path), np.moveaxis(stored, 0, 2))
    assert np.array_equal(read_pixels(path, 3, (0, 100)), scaled(np.moveaxis(stored, 0, 2), 0, 100))
    assert "has 3 channels, the data set 1" in refused(read_pixels, path, 1)
    assert "has 3 samples per pixel" in refused(read_ids, path)
    for axes, shape in {"ZYX": (3,), "TZYX": (2, 3), "ZCYX": (2, 3)}.items():
        tifffile.imwrite(
            path, random("uint8", *shape, HEIGHT, WIDTH), imagej=True, metadata={"axes": axes}
        )
        for read in (read_pixels, read_ids, image_size):
            message = refused(read, path)
            assert f"is a TIFF with the axes {axes}" in message
            assert "Save each plane in a file of its own" in message
    with tifffile.TiffWriter(path) as writer:
        for page in stored[:2]:
            writer.write(page, photometric="minisblack", contiguous=False, metadata=None)
    assert np.array_equal(read_pixels(path, 2), np.moveaxis(stored[:2], 0, 2))
    assert "has 2 channels, the data set 3" in refused(read_pixels, path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(stored[0], photometric="minisblack")
        writer.write(stored[0, :9], photometric="minisblack")
    assert "has 2 images; an image file holds one image" in refused(read_pixels, path)


def test_smaller_versions_and_transparency_masks_are_left_out(tmp_path: Path) -> None:
    stored, path = random("uint8", HEIGHT, WIDTH), tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(stored[::2, ::2], photometric="minisblack", subfiletype=1)
        writer.write(stored, photometric="minisblack")
        writer.write(stored > 9, photometric="minisblack", subfiletype=4)
    assert np.array_equal(read_pixels(path, 1)[:, :, 0], stored)
    assert np.array_equal(read_ids(path), stored)


def test_white_as_zero(tmp_path: Path) -> None:
    gray = write(tmp_path / "8.tif", np.array([[0, 1, 255]], np.uint8), photometric="miniswhite")
    assert read_pixels(gray, 1).tolist() == [[[255], [254], [0]]]
    wide = np.array([[0, 65535]], np.uint16)
    assert read_pixels(write(tmp_path / "16.tif", wide, photometric="miniswhite"), 1).tolist() == [
        [[255], [0]]
    ]
    bits = write(tmp_path / "1.tif", np.array([[True, False]]), photometric="miniswhite")
    assert read_pixels(bits, 1).tolist() == [[[0], [255]]]
    assert "as MINISWHITE, which cannot be read exactly with a `range`" in refused(
        read_pixels, gray, 1, (0.0, 9.0)
    )
    for path in (gray, bits):
        assert "is stored with white as zero (WhiteIsZero)" in refused(read_ids, path)
    assert "it holds no class colours" in refused(read_colours, gray)


def test_masks_of_32_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", np.array([[0, 7, 65535]], np.int32))
    assert read_ids(path).tolist() == [[0, 7, 65535]]
    assert "has signed 32-bit pixels, which have no fixed range" in refused(read_pixels, path, 1)
    assert read_pixels(path, 1, (0.0, 14.0)).tolist() == [[[0], [128], [255]]]
    write(path, np.array([[-1, 70000]], np.int32))
    assert "holds ids from -1 to 70000; ids must be between 0 and 65535" in refused(read_ids, path)
    write(path, np.array([[0.0, 1.0]], np.float32))
    assert "has floating-point pixels; a mask holds whole numbers" in refused(read_ids, path)
    write(path, np.array([[1j]], np.complex64))
    assert "has complex pixels" in refused(read_pixels, path, 1, (0.0, 1.0))
    write(path, np.array([[np.nan]], np.float32))
    assert "has NaN pixels" in refused(read_pixels, path, 1, (0.0, 1.0))


def test_few_bits(tmp_path: Path) -> None:
    bits = write(tmp_path / "1.tif", np.array([[True, False]]), photometric="minisblack")
    assert read_pixels(bits, 1).tolist() == [[[255], [0]]]
    assert read_ids(bits).tolist() == [[1, 0]]
    four = write(tmp_path / "4.tif", np.array([[0, 7, 15]], np.uint8), bitspersample=4)
    assert read_pixels(four, 1).tolist() == [[[0], [119], [255]]]
    assert read_ids(four).tolist() == [[0, 7, 15]]
    twelve = np.array([[0, 2048, 4095, 1]], np.uint16)
    packed = write(tmp_path / "12.tif", twelve, bitspersample=12)
    assert read_pixels(packed, 1).tolist() == [[[0], [128], [255], [0]]]


def test_colour_maps(tmp_path: Path) -> None:
    indices = np.array([[0, 2], [1, 2]], np.uint8)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, :3] = np.array([[10, 0, 0], [0, 20, 0], [0, 0, 30]]) * 257
    for tile in (None, (16, 16)):
        path = write(
            tmp_path / "x.tif", indices, photometric="palette", colormap=colours, tile=tile
        )
        expected = [[[10, 0, 0], [0, 0, 30]], [[0, 20, 0], [0, 0, 30]]]
        assert read_pixels(path).tolist() == expected
        assert read_ids(path).tolist() == indices.tolist()
        assert read_colours(path).tolist() == [[10 << 16, 30], [20 << 8, 30]]


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_alpha(tmp_path: Path, planar: str) -> None:
    stored, path = random("uint8", HEIGHT, WIDTH, 4), tmp_path / "x.tif"

    def written(alpha: str, pixels: NDArray[Any]) -> Path:
        shaped = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
        return write(
            path, np.ascontiguousarray(shaped), photometric="rgb", planarconfig=planar,
            extrasamples=[alpha],
        )  # fmt: skip

    assert np.array_equal(read_pixels(written("unassalpha", stored)), stored[:, :, :3])
    assert np.array_equal(read_pixels(path, 4), stored)
    assert "is a colour image (mode RGBA)" in refused(read_ids, path)
    assert "multiplied by its alpha channel" in refused(read_pixels, written("assocalpha", stored))
    stored[:, :, 3] = 255
    assert np.array_equal(read_pixels(written("assocalpha", stored)), stored[:, :, :3])
    # the fourth channel of a sensor is not alpha
    assert "has 4 channels, the data set 3" in refused(read_pixels, written("unspecified", stored))
    assert np.array_equal(read_pixels(path, 4), stored)


def test_colour_spaces(tmp_path: Path) -> None:
    cmyk = random("uint8", HEIGHT, WIDTH, 4)
    expected = np.array(Image.fromarray(cmyk, mode="CMYK").convert("RGB"))
    for planar, shaped in {"contig": cmyk, "separate": np.moveaxis(cmyk, 2, 0).copy()}.items():
        path = write(tmp_path / "x.tif", shaped, photometric="separated", planarconfig=planar)
        assert np.array_equal(read_pixels(path), expected)
        assert "has 3 channels, the data set 4" in refused(read_pixels, path, 4)
        assert "is a colour image (mode CMYK)" in refused(read_ids, path)
    smooth = np.tile(np.arange(32, dtype=np.uint8)[:, None, None] * 7, (1, 32, 3))
    jpeg = save(tmp_path / "j.tif", smooth, compression="jpeg", quality=100)
    assert np.abs(read_pixels(jpeg).astype(int) - smooth).max() <= 2
    assert "is stored as TIFF with JPEG compression, which may change ids" in refused(
        read_ids, jpeg
    )
    write(path, random("uint8", HEIGHT, WIDTH, 3), photometric="cielab")
    assert "as CIELAB, which cannot be read exactly. Save it as RGB" in refused(read_pixels, path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_every_layout(tmp_path: Path, orientation: int) -> None:
    stored = random("uint8", HEIGHT, WIDTH, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(save(tmp_path / "x.png", stored, exif=exif)) as picture:
        expected = read_pixels(tmp_path / "x.png")
        assert picture.size == (WIDTH, HEIGHT)
    tag = [(274, "H", 1, orientation, True)]
    for planar, shaped in {"contig": stored, "separate": np.moveaxis(stored, 2, 0).copy()}.items():
        path = write(
            tmp_path / "x.tif", shaped, photometric="rgb", planarconfig=planar, extratags=tag
        )
        assert np.array_equal(read_pixels(path), expected)
        assert image_size(path) == expected.shape[:2]
    for compression in (None, "zlib"):
        mask = write(
            tmp_path / "m.tif", stored[:, :, 0].copy(), compression=compression, extratags=tag
        )
        assert np.array_equal(read_ids(mask), expected[:, :, 0])
    smooth = np.tile(np.arange(32, dtype=np.uint8)[:, None, None] * 7, (1, 48, 3))
    jpeg = save(tmp_path / "j.tif", smooth, compression="jpeg", tiffinfo={274: orientation})
    plain = read_pixels(save(tmp_path / "x.png", smooth, exif=exif))
    assert np.abs(read_pixels(jpeg).astype(int) - plain).max() <= 4


def test_compressions_without_imagecodecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = random("uint16", 3, HEIGHT, WIDTH)
    separate = {"photometric": "minisblack", "planarconfig": "separate"}
    paths = {
        name: write(tmp_path / f"{name}.tif", stored, compression=name, **separate)
        for name in ("zlib", "packbits", "lzw")
    }
    plain = write(tmp_path / "p.tif", stored[0].copy(), compression="lzw", predictor=True)
    for name in [
        name for name in sys.modules if name.partition(".")[0] in {"tifffile", "rasterio"}
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("imagecodecs", "rasterio"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("zlib", "packbits"):
        expected = scaled(np.moveaxis(stored, 0, 2), 0, 65535)
        assert np.array_equal(read_pixels(paths[name]), expected)
    assert np.array_equal(read_ids(plain), stored[0])
    assert np.array_equal(read_pixels(plain, 1)[:, :, 0], scaled(stored[0], 0, 65535))
    message = refused(read_pixels, paths["lzw"])
    assert f"{paths['lzw']} (LZW) needs the package imagecodecs" in message
    assert "pip install 'segmentation-zoo[formats]'" in message


def test_broken_and_misnamed_tiffs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = random("uint16", 3, HEIGHT, WIDTH)
    path = write(
        tmp_path / "x.tif", stored, photometric="minisblack", planarconfig="separate",
        compression="zlib",
    )  # fmt: skip
    expected = scaled(np.moveaxis(stored, 0, 2), 0, 65535)
    assert np.array_equal(read_pixels(path.rename(tmp_path / "x.png")), expected)
    assert "has 3 samples per pixel" in refused(read_ids, tmp_path / "x.png")
    assert image_size(tmp_path / "x.png") == (HEIGHT, WIDTH)
    content = (tmp_path / "x.png").read_bytes()
    for length in (5, 100, len(content) // 2, len(content) - 9):
        path.write_bytes(content[:length])
        assert "is broken or cut short" in refused(read_pixels, path)
    save(tmp_path / "y.png", [[1, 2]]).rename(path)  # a PNG with the name of a TIFF
    assert read_pixels(path, 1).tolist() == [[[1], [2]]]
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "0.0001")
    assert "megapixels; the limit is 0.0001" in refused(read_pixels, tmp_path / "x.png")


def test_missing_strips_are_no_black(tmp_path: Path) -> None:
    stored, path = random("uint8", HEIGHT, WIDTH), tmp_path / "x.tif"
    for compression, tag in itertools.product((None, "zlib"), ("StripOffsets", "StripByteCounts")):
        write(path, stored, rowsperstrip=5, compression=compression)
        with tifffile.TiffFile(path) as file:
            place = file.pages[0].tags[tag].offset  # type: ignore[union-attr]
        content = bytearray(path.read_bytes())
        assert content[place + 4] == 4
        content[place + 4] = 3
        path.write_bytes(content)
        assert "strips or tiles are missing" in refused(read_ids, path)
        assert "is broken or cut short" in refused(image_size, path)
