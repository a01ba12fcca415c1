"""Formats other than TIFF whose values a library changes, or of which it returns a part."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_folders import load, random_image, save, write_split
from PIL import Image, features

from zoo.common.errors import InputError
from zoo.data.inspect.scan import check_depth
from zoo.data.pixels.images import image_header, read_pixels, used_bits
from zoo.data.pixels.masks import read_colours, read_ids


def refused(function: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


def deep_png(path: Path, values: np.ndarray[Any, Any]) -> Path:
    """A PNG of 16 bits with the HxWxC `values`; Pillow cannot write one of several channels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_16_bits(tmp_path: Path, channels: int) -> None:
    values = np.array([[[0] * channels, [257 * 77] * channels, [65535] * channels]])
    path = deep_png(tmp_path / "x.png", values)
    assert read_pixels(path)[0, :, 0].tolist() == [0, 77, 255]
    assert read_pixels(path).shape == (1, 3, 3)
    assert image_header(path) == ((1, 3), 16)
    dim = deep_png(tmp_path / "dim.png", values // 16)
    assert (used_bits(path, 3), used_bits(dim, 3)) == (16, 12)
    if channels == 1:
        assert read_pixels(path, 1, (0.0, 65535.0))[0, :, 0].tolist() == [0, 77, 255]
        assert read_ids(dim).tolist() == [[0, 1236, 4095]]
    else:
        assert "several channels of 16 bits, which cannot be read exactly from PNG" in refused(
            read_pixels, path, channels, (0.0, 4095.0)
        )
        assert "is a colour image" in refused(read_ids, path)
    assert "has more than 8 bits per channel, so it holds no class colours" in refused(
        read_colours, path
    )


@pytest.mark.parametrize("extension", ["png", "gif", "webp"])
def test_animations_are_refused(tmp_path: Path, extension: str) -> None:
    if extension == "webp" and not features.check("webp"):
        pytest.skip("Pillow without WebP")
    first, second = (Image.fromarray(random_image(seed, 20, 30)) for seed in range(2))
    path = tmp_path / f"x.{extension}"
    first.save(path, save_all=True, append_images=[second])
    assert "holds 2 frames" in refused(read_pixels, path)
    assert "Save each frame in a file of its own" in refused(read_pixels, path)
    if extension != "webp":
        assert "holds 2 frames" in refused(read_ids, path)
        assert "holds 2 frames" in refused(read_colours, path)


def test_pgm_with_another_highest_value(tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5\n3 1\n3\n" + bytes([0, 1, 3]))
    assert read_pixels(path, 1)[0, :, 0].tolist() == [0, 85, 255]
    for read in (read_ids, read_colours):
        assert "names another highest value than 255 or 65535" in refused(read, path)
    assert "has values scaled to another range" in refused(read_pixels, path, 1, (0.0, 3.0))
    path.write_bytes(b"P5\n2 1\n65535\n" + struct.pack(">HH", 7, 300))
    assert read_ids(path).tolist() == [[7, 300]]
    path.write_bytes(b"P6\n1 1\n65535\n" + struct.pack(">HHH", 257, 514, 65535))
    assert read_pixels(path).tolist() == [[[1, 2, 255]]]
    assert "has values scaled to another range" in refused(read_pixels, path, 3, (0.0, 999.0))


def test_pfm_with_a_range(tmp_path: Path) -> None:
    path = save(tmp_path / "x.ppm", np.array([[0.0, 0.5], [1.0, 2.0]], np.float32))
    assert "floating-point pixels" in refused(read_pixels, path)
    assert read_pixels(path, 1, (0.0, 1.0))[:, :, 0].tolist() == [[0, 128], [255, 255]]


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
def test_jpeg_2000_of_16_bits(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535, 514] * 8] * 32, np.uint16)
    path = save(tmp_path / "x.jp2", values)
    assert read_pixels(path, 1)[0, :4, 0].tolist() == [0, 1, 255, 2]
    assert "has values scaled to another range" in refused(read_pixels, path, 1, (0.0, 4095.0))


def test_npy_byte_orders_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    values = np.array([[[0, 257, 65535]]])
    for dtype in ("<u2", ">u2"):
        np.save(path, values.astype(dtype))
        assert read_pixels(path).tolist() == [[[0, 1, 255]]]
    np.save(path, np.asfortranarray(values.astype(">f8")))
    assert read_pixels(path, 3, (0.0, 257.0)).tolist() == [[[0, 255, 255]]]
    np.save(path, np.zeros((0, 4, 3), np.uint8))
    assert "holds an array of shape (0, 4, 3)" in refused(read_pixels, path)
    np.save(path, np.zeros((2, 4, 3), np.complex64))
    assert "type complex64" in refused(read_pixels, path)


def test_palette_png_with_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "x.png", transparency=0)
    assert read_pixels(tmp_path / "x.png").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert read_ids(tmp_path / "x.png").tolist() == [[0, 1]]


def test_a_run_says_that_16_bits_are_not_used(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(20, 30)] * 2)
    write_split(tmp_path, "val", [(20, 30)])
    wide = random_image(0, 20, 30).astype(np.uint16) * 16
    for path in tmp_path.rglob("images/*.png"):
        deep_png(path, wide)
    text = "version: 1\nclasses: [sky, road, car]\n"
    dataset = load(tmp_path, text)
    expected = (
        "16-bit images use 12 bits: their values are below 4096, but 65535 is white, so they are "
        "at most 16 of 255 bright. Write `range: [0, 4095]` in dataset.yaml."
    )
    for _ in range(2):  # the second time from the cache
        assert check_depth(dataset, ["train", "val"]) == expected
    assert check_depth(load(tmp_path, f"{text}range: [0, 4095]\n"), ["train", "val"]) == ""
    save(tmp_path / "val" / "images" / "val_0.png", random_image(0, 20, 30))
    assert "2 of 3 images have 16 bits: save all with 8, or all with 16." in check_depth(
        load(tmp_path, text), ["train", "val"]
    )
    for path in tmp_path.rglob("train/images/*.png"):
        deep_png(path, wide * 16)
    assert check_depth(load(tmp_path, text), ["train"]) == ""
