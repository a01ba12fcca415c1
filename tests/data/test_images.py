"""Reading images and masks: every mode by hand-worked pixels, every message."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_folders import plain, random_image, sample, save
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE
from zoo.data.load import load_dataset
from zoo.data.pixels.images import image_size, read_image
from zoo.data.pixels.masks import check_ids, read_mask, read_pair, read_source_ids


def fails(function: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("extension", ["png", "webp", "bmp", "tif", "ppm", "tga", "sgi", "qoi"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, extension: str) -> None:
    pixels = random_image(0, 5, 7)
    options = {"lossless": True} if extension == "webp" else {}
    read = read_image(save(tmp_path / f"x.{extension}", pixels, **options))
    assert read.dtype == np.uint8
    assert np.array_equal(read, pixels)


def test_modes_become_rgb(tmp_path: Path) -> None:
    gray = read_image(save(tmp_path / "l.png", [[7, 9]]))
    assert gray.tolist() == [[[7, 7, 7], [9, 9, 9]]]
    alpha = read_image(save(tmp_path / "a.png", [[[1, 2, 3, 0]]]))
    assert alpha.tolist() == [[[1, 2, 3]]]
    bits = read_image(save(tmp_path / "1.png", np.array([[False, True]])))
    assert bits.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    palette = Image.fromarray(np.array([[1, 0]], dtype=np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").tolist() == [[[40, 50, 60], [10, 20, 30]]]
    assert read_image(save(tmp_path / "c.jpg", random_image(0, 8, 8), mode="CMYK")).shape == (
        8,
        8,
        3,
    )


def test_16_bit_gray_is_scaled(tmp_path: Path) -> None:
    wide = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("x.png", "x.tif", "x.pgm"):
        assert read_image(save(tmp_path / name, wide))[0, :, 1].tolist() == [0, 0, 1, 1, 128, 255]


def test_32_bit_and_float_pixels(tmp_path: Path) -> None:
    whole = save(tmp_path / "s.tif", np.array([[65535, 0]], dtype=np.int32))
    assert "has signed 32-bit pixels, which have no fixed range" in fails(read_image, whole)
    real = save(tmp_path / "f.tif", np.array([[0.5]], dtype=np.float32))
    assert "floating-point pixels" in fails(read_image, real)
    assert "Save it with 8 or 16 bits per channel" in fails(read_source_ids, real)


def test_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "x.png", [[[1, 1, 1], [2, 2, 2]]], exif=exif)
    assert read_image(path)[:, :, 0].tolist() == [[1], [2]]
    assert image_size(path) == (2, 1)
    mask = save(tmp_path / "m.png", [[1, 2]], exif=exif)
    assert read_source_ids(mask).tolist() == [[1], [2]]


def test_size_from_the_header(tmp_path: Path) -> None:
    assert image_size(save(tmp_path / "x.png", random_image(0, 3, 9))) == (3, 9)


def test_broken_files(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", random_image(0, 40, 40)).read_bytes()
    for name, content in {"cut.png": whole[: len(whole) // 2], "head.png": whole[:20]}.items():
        (tmp_path / name).write_bytes(content)
        message = fails(read_image, tmp_path / name)
        assert str(tmp_path / name) in message
        assert "replace it or remove it together with its partner" in message or "known" in message
    (tmp_path / "cut.jpg").write_bytes(
        save(tmp_path / "w.jpg", random_image(0, 64, 64)).read_bytes()[:600]
    )
    assert "is broken or cut short" in fails(read_image, tmp_path / "cut.jpg")
    (tmp_path / "text.png").write_text("not a picture")
    assert "not an image in a known format: PNG" in fails(read_image, tmp_path / "text.png")
    assert "does not exist" in fails(read_image, tmp_path / "gone.png")
    assert "is a folder, not a file" in fails(read_image, tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on odd TIFF tags
def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    extensions = ("png", "jpg", "tif", "gif", "bmp", "webp")
    refused: Counter[str] = Counter()
    for extension in extensions:
        whole = bytearray(save(tmp_path / f"x.{extension}", random_image(0, 16, 16)).read_bytes())
        for _ in range(30):
            broken = bytearray(whole)
            for place in generator.integers(0, len(whole), 4):
                broken[place] = generator.integers(0, 256)
            path = tmp_path / f"broken.{extension}"
            path.write_bytes(broken)
            for read in (read_image, read_source_ids, image_size):
                try:
                    read(path)
                except InputError:
                    refused[extension] += 1
    assert all(refused[extension] > 0 for extension in extensions), refused


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.png", [[0] * 2000] * 1000)
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "1.9")
    message = fails(read_image, path)
    assert "has 2 megapixels; the limit is 1.9. Set ZOO_MAX_MEGAPIXELS higher" in message
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "2")
    assert read_image(path).shape == (1000, 2000, 3)
    for value in ("many", "0", "nan"):
        monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", value)
        assert f"ZOO_MAX_MEGAPIXELS is '{value}'; it must be" in fails(read_image, path)


def test_the_limit_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.png", [[0] * 30] * 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_image(path).shape == (30, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_masks_of_every_mode(tmp_path: Path) -> None:
    dataset = plain(3)
    assert read_mask(save(tmp_path / "l.png", [[0, 2, 255]]), dataset).tolist() == [[0, 2, IGNORE]]
    palette = Image.fromarray(np.array([[2, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    for name in ("p.png", "p.bmp", "p.tif"):
        palette.save(tmp_path / name)
        assert read_mask(tmp_path / name, dataset).tolist() == [[2, 1]]
    assert read_mask(save(tmp_path / "1.png", np.array([[True, False]])), dataset).tolist() == [
        [1, 0]
    ]
    wide = save(tmp_path / "w.png", np.array([[0, 1000]], dtype=np.uint16))
    assert read_mask(wide, plain(2, {0: 0, 1000: 1})).tolist() == [[0, 1]]
    assert read_mask(wide, plain(2, {0: 1, 1000: IGNORE})).dtype == np.uint8


def test_gif_masks_keep_their_indices(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 200, 100, 0])
    palette.save(tmp_path / "x.gif", optimize=False)
    assert read_mask(tmp_path / "x.gif", plain(3)).tolist() == [[0, 1, 2]]


def gray_png(bits: int, packed: bytes, width: int) -> bytes:
    """A gray PNG of one row with fewer than eight bits a pixel, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, 1, bits, 0, 0, 0, 0)
    data = zlib.compress(b"\0" + packed)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_gray_of_2_and_4_bits_is_not_spread(tmp_path: Path) -> None:
    (tmp_path / "2.png").write_bytes(gray_png(2, bytes([0b00_01_10_11]), 4))
    assert read_source_ids(tmp_path / "2.png").tolist() == [[0, 1, 2, 3]]
    (tmp_path / "4.png").write_bytes(gray_png(4, bytes([0x0A, 0xF3]), 4))
    assert read_source_ids(tmp_path / "4.png").tolist() == [[0, 10, 15, 3]]


def test_ids_are_mapped_one_by_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    id_map = {source: int(rng.integers(0, 5)) for source in range(200)} | {255: IGNORE}
    stored = rng.choice(sorted(id_map), (20, 30)).astype(np.uint8)
    read = read_mask(save(tmp_path / "x.png", stored), plain(5, id_map))
    expected = [[id_map[int(value)] for value in row] for row in stored]
    assert read.tolist() == expected


def test_unknown_ids(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", [[0, 3, 3], [9, 1, 255]])
    message = fails(read_mask, path, plain(3))
    assert f"{path} holds ids that are not classes: 3 (2 pixels), 9 (1 pixels)." in message
    assert "Allowed: 0 to 2, ignored: 255." in message
    assert "Name the missing classes in dataset.yaml" in message
    message = fails(read_mask, path, plain(3, {0: 0, 1: 1, 7: 2}))
    assert "Allowed: 0 to 1, 7. Name" in message
    wide = save(tmp_path / "w.png", np.array([[0, 70, 1000]], dtype=np.uint16))
    assert "not classes: 70 (1 pixels), 1000 (1 pixels)" in fails(read_mask, wide, plain(3))


def test_0_and_255_with_two_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", [[0, 255]])
    message = fails(read_mask, path, plain(2, {0: 0, 1: 1}))
    assert "If 255 is the class 'class_1', write `mapping: {0: 0, 255: 1}`" in message
    assert "if it marks pixels to ignore, write `ignore: 255`" in message


def test_allowed_ids_raise_nothing(tmp_path: Path) -> None:
    check_ids(tmp_path, {0: 5, 255: 1}, plain(3))


def test_colour_masks(tmp_path: Path) -> None:
    colour = save(tmp_path / "c.png", [[[1, 2, 3]]])
    message = fails(read_mask, colour, plain(3))
    assert "is a colour image (mode RGB); a mask holds one id per pixel" in message
    assert "replace each colour by the id of its class and save the ids as PNG" in message
    equal = save(tmp_path / "e.png", [[[1, 1, 1, 255]]])
    message = fails(read_mask, equal, plain(3))
    assert "(mode RGBA)" in message
    assert "Its channels are equal: save one of them" in message


def test_lossy_masks_under_another_name(tmp_path: Path) -> None:
    save(tmp_path / "x.jpg", [[0] * 8] * 8).rename(tmp_path / "x.png")
    assert "is stored as JPEG, which may change ids" in fails(
        read_mask, tmp_path / "x.png", plain(3)
    )
    path = save(tmp_path / "x.tif", [[0] * 16] * 16, compression="jpeg")
    assert "Export the mask again as PNG" in fails(read_mask, path, plain(3))


def test_pair_of_unequal_size(tmp_path: Path) -> None:
    image = save(tmp_path / "i.png", random_image(0, 2, 3))
    mask = save(tmp_path / "m.png", [[0, 0], [0, 0], [0, 0]])
    message = fails(read_pair, sample(image, mask), plain(3))
    assert f"{mask} is 2x3 pixels, its image {image} is 3x2." in message
    assert "resize masks with nearest only" in message
    assert "has no mask" in fails(read_pair, sample(image, None), plain(3))


@pytest.mark.real_data
def test_real_camvid_pair(shared_data: Path) -> None:
    dataset = load_dataset(f"camvid:{shared_data / 'camvid'}")
    image, mask = read_pair(dataset.splits["test"][0], dataset)
    assert image.shape == (360, 480, 3)
    stored = np.asarray(Image.open(shared_data / "camvid/testannot/0001TP_008550.png"))
    assert np.array_equal(mask == IGNORE, stored == 11)
    assert np.array_equal(mask[stored < 11], stored[stored < 11])
