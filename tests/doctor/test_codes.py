"""Each fault is put into one of 60 files: the doctor names that code and that file alone.

The files are generated scenes, and again frames of real videos.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers.doctor_folders import (
    FACTS,
    Found,
    add_pair,
    classes_of,
    found_in,
    fresh,
    image,
    mask,
    pixels,
    replace,
    save,
)
from PIL import Image

from zoo.data.doctor import diagnose
from zoo.data.doctor.codes import CODES

Spoil = Callable[[Path], list[Path]]
ONE = "train_0007"
NO_FILE = Path()


def unpaired_image(data: Path) -> list[Path]:
    mask(data, ONE).unlink()
    return [image(data, ONE)]


def unpaired_mask(data: Path) -> list[Path]:
    image(data, ONE).unlink()
    return [mask(data, ONE)]


def same_stem(data: Path) -> list[Path]:
    return [save(image(data, ONE).with_suffix(".webp"), pixels(image(data, ONE)))]


def empty_split(data: Path) -> list[Path]:
    shutil.rmtree(data / "test" / "masks")
    (data / "test" / "masks").mkdir()
    for path in (data / "test" / "images").iterdir():
        path.unlink()
    return [data / "test" / "images", data / "test" / "masks"]


def not_an_image(data: Path) -> list[Path]:
    fresh(image(data, ONE)).write_bytes(b"no picture")
    return [image(data, ONE)]


def cut_image(data: Path) -> list[Path]:
    content = image(data, ONE).read_bytes()
    fresh(image(data, ONE)).write_bytes(content[: len(content) // 2])
    return [image(data, ONE)]


def float_image(data: Path) -> list[Path]:
    gray = pixels(image(data, ONE))[:, :, 0].astype(np.float32)
    return [replace(image(data, ONE), ".tiff", gray)]


def upside_down(data: Path) -> list[Path]:
    exif = Image.Exif()
    exif[0x0112] = 3
    return [save(image(data, ONE), pixels(image(data, ONE)), exif=exif)]


def turned_beside_its_mask(data: Path) -> list[Path]:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(image(data, ONE), pixels(image(data, ONE)), exif=exif)
    return [mask(data, ONE)]


def image_16_bit(data: Path) -> list[Path]:
    for name in every(data):
        save(image(data, name), pixels(image(data, name)).mean(axis=2).astype(np.uint8))
    wide = pixels(image(data, ONE)).astype(np.uint16) * 257
    return [save(image(data, ONE), wide)]


def image_with_alpha(data: Path) -> list[Path]:
    colours = pixels(image(data, ONE))
    alpha = np.full((*colours.shape[:2], 1), 200, dtype=np.uint8)
    return [save(image(data, ONE), np.concatenate([colours, alpha], axis=2))]


def cmyk_image(data: Path) -> list[Path]:
    picture = Image.open(image(data, ONE)).convert("CMYK")
    image(data, ONE).unlink()
    picture.save(image(data, ONE).with_suffix(".tiff"))
    return [image(data, ONE).with_suffix(".tiff")]


def two_frames(data: Path) -> list[Path]:
    first = Image.open(image(data, ONE))
    path = image(data, ONE).with_suffix(".tiff")
    first.save(path, save_all=True, append_images=[first.rotate(180)])
    image(data, ONE).unlink()
    return [path]


def two_channels(data: Path) -> list[Path]:
    planes = np.moveaxis(pixels(image(data, ONE))[:, :, :2], 2, 0).copy()
    return [write_tiff(image(data, ONE), planes, photometric="minisblack")]


def cielab(data: Path) -> list[Path]:
    return [write_tiff(image(data, ONE), pixels(image(data, ONE)), photometric="cielab")]


def one_hot_mask(data: Path) -> list[Path]:
    planes = np.stack([pixels(mask(data, ONE)) == value for value in range(3)]).astype(np.uint8)
    return [write_tiff(mask(data, ONE), planes, photometric="minisblack")]


def white_as_zero(data: Path) -> list[Path]:
    return [write_tiff(mask(data, ONE), pixels(mask(data, ONE)), photometric="miniswhite")]


def write_tiff(path: Path, array: np.ndarray[Any, Any], **options: Any) -> Path:
    """The same file as TIFF, planes one after another."""
    path.unlink()
    if array.ndim == 3 and array.shape[-1] > 3:
        options["planarconfig"] = "separate"
    tifffile.imwrite(path.with_suffix(".tif"), array, metadata=None, **options)
    return path.with_suffix(".tif")


def one_colour(data: Path) -> list[Path]:
    return [save(image(data, ONE), np.full((64, 80, 3), (10, 20, 30), dtype=np.uint8))]


def no_contrast(data: Path) -> list[Path]:
    return [save(image(data, ONE), pixels(image(data, ONE)) // 64)]


def gray_image(data: Path) -> list[Path]:
    return [save(image(data, ONE), pixels(image(data, ONE))[:, :, 0])]


def scale_pair(data: Path, width: int, height: int) -> list[Path]:
    for path in (image(data, ONE), mask(data, ONE)):
        with Image.open(path) as picture:
            picture.load()
        picture.resize((width, height), Image.Resampling.NEAREST).save(fresh(path))
    return [image(data, ONE)]


def unreadable_mask(data: Path) -> list[Path]:
    fresh(mask(data, ONE)).write_bytes(b"")
    return [mask(data, ONE)]


def cut_mask(data: Path) -> list[Path]:
    save(mask(data, ONE), pixels(mask(data, ONE)), compress_level=0)
    mask(data, ONE).write_bytes(mask(data, ONE).read_bytes()[:2000])
    return [mask(data, ONE)]


def small_mask(data: Path) -> list[Path]:
    return [save(mask(data, ONE), pixels(mask(data, ONE))[:60])]


def jpeg_mask(data: Path) -> list[Path]:
    return [replace(mask(data, ONE), ".jpg", pixels(mask(data, ONE)))]


def colour_mask(data: Path) -> list[Path]:
    with Image.open(mask(data, ONE)) as picture:
        colours = np.array(picture.convert("RGB"))
    return [save(mask(data, ONE), colours)]


def alpha_mask(data: Path) -> list[Path]:
    ids = pixels(mask(data, ONE))
    return [save(mask(data, ONE), np.stack([ids, np.full_like(ids, 255)], axis=2))]


def mask_16_bit(data: Path) -> list[Path]:
    return [save(mask(data, ONE), pixels(mask(data, ONE)).astype(np.uint16))]


def mask_1_bit(data: Path) -> list[Path]:
    bits = Image.fromarray(pixels(mask(data, ONE)) * 255).convert("1")
    bits.save(fresh(mask(data, ONE)))
    return [mask(data, ONE)]


def other_palette(data: Path) -> list[Path]:
    with Image.open(mask(data, ONE)) as picture:
        picture.load()
    colours = picture.getpalette() or []
    picture.putpalette([*colours[3:6], *colours[:3], *colours[6:]])
    picture.save(fresh(mask(data, ONE)))
    return [mask(data, ONE)]


def strange_id(data: Path) -> list[Path]:
    ids = pixels(mask(data, ONE))
    ids[3, 4] = 99
    return [save(mask(data, ONE), ids)]


def foreground_255(data: Path) -> list[Path]:
    return [save(mask(data, ONE), pixels(mask(data, ONE)) * 255)]


def from_one(data: Path) -> list[Path]:
    for path in data.rglob("masks/*.png"):
        ids = pixels(path)
        save(path, np.where(ids == 255, 255, ids + 1).astype(np.uint8))
    return [NO_FILE]


def interpolated(data: Path) -> list[Path]:
    ids = Image.fromarray(np.where(pixels(mask(data, ONE)) == 255, 0, pixels(mask(data, ONE))))
    small = ids.resize((60, 48), Image.Resampling.NEAREST)
    return [save(mask(data, ONE), np.array(small.resize((80, 64), Image.Resampling.BILINEAR)))]


def all_ignored(data: Path) -> list[Path]:
    return [save(mask(data, ONE), np.full((64, 80), 255, dtype=np.uint8))]


def single_class(data: Path) -> list[Path]:
    return [save(mask(data, ONE), np.full((64, 80), 2, dtype=np.uint8))]


def extra_class(data: Path) -> list[Path]:
    text = (data / "dataset.yaml").read_text()
    fresh(data / "dataset.yaml").write_text(f"{text}  - unicorn\n")
    return [NO_FILE]


def unicorn(data: Path) -> int:
    """The id of the class that `extra_class` added."""
    return classes_of(data).index("unicorn")


def only_in_val(data: Path) -> list[Path]:
    extra_class(data)
    for name in every(data, "val") + every(data, "test"):
        change_some(data, name, unicorn(data))
    return [NO_FILE]


def only_in_train(data: Path) -> list[Path]:
    extra_class(data)
    for name in every(data, "train"):
        change_some(data, name, unicorn(data))
    return [NO_FILE]


def few_pixels(data: Path) -> list[Path]:
    extra_class(data)
    for name in every(data):
        change_some(data, name, unicorn(data), pixel_count=8)
    return [NO_FILE]


def few_images(data: Path) -> list[Path]:
    only_in_val(data)
    change_some(data, ONE, unicorn(data), pixel_count=4800)
    return [NO_FILE]


def change_some(data: Path, name: str, value: int, pixel_count: int = 160) -> None:
    ids = pixels(mask(data, name))
    ids.reshape(-1)[-pixel_count:] = value
    save(mask(data, name), ids)


def twice_in_train(data: Path) -> list[Path]:
    return [add_pair(data, "train_9000", ONE)]


def leaked(data: Path) -> list[Path]:
    return [add_pair(data, "val_9000", ONE)]


def nearly_leaked(data: Path) -> list[Path]:
    path = add_pair(data, "val_9000", ONE)
    shutil.copy(mask(data, "val_0003"), mask(data, "val_9000"))
    relabel(mask(data, "val_9000"), 0, 1)
    softer = 0.9 * pixels(path) + 12 + np.random.default_rng(0).normal(0, 2, (64, 80, 3))
    return [replace(path, ".jpg", softer.clip(0, 255).astype(np.uint8), quality=80)]


def video(data: Path) -> list[Path]:
    """A camera that pans over one wide, cloudy picture: 12 frames in train, 6 in val."""
    random = np.random.default_rng(0).integers(0, 256, (4, 9, 3), dtype=np.uint8)
    grid = Image.fromarray(random)
    wide = np.array(grid.resize((80 + 18 * 14, 64), Image.Resampling.BICUBIC))
    val = []
    for number in range(18):
        split = "train" if number < 12 else "val"
        here = wide[:, 14 * number : 14 * number + 80]
        path = save(data / split / "images" / f"pan_{100 + number}.png", here)
        path_of_mask = data / split / "masks" / f"pan_{100 + number}.png"
        shutil.copy(mask(data, f"train_{number:04d}"), path_of_mask)
        relabel(path_of_mask, number, number + 1)
        val += [path] if split == "val" else []
    return val


def relabel(path: Path, start: int, stop: int) -> Path:
    """Another id than before in a corner of the square from row and column `start` to `stop`."""
    ids = pixels(path)
    ids[start:stop, start:stop] = 1 if ids[start, start] == 0 else 0
    return save(path, ids)


def contradiction(data: Path) -> list[Path]:
    add_pair(data, "train_9000", ONE)
    return [relabel(mask(data, "train_9000"), 10, 20)]


def copied_mask(data: Path) -> list[Path]:
    shutil.copy(mask(data, "train_0003"), fresh(mask(data, ONE)))
    return [mask(data, ONE)]


def every(data: Path, split: str = "*") -> list[str]:
    return sorted(path.stem for path in data.glob(f"{split}/images/*.png"))


def bad_description(data: Path) -> list[Path]:
    (data / "dataset.yaml").unlink()  # a link to the clean one
    (data / "dataset.yaml").write_text("version: 1\n")
    return [data / "dataset.yaml"]


def no_description(data: Path) -> list[Path]:
    (data / "dataset.yaml").unlink()
    return [NO_FILE]


def no_val(data: Path) -> list[Path]:
    shutil.rmtree(data / "val")
    return [NO_FILE]


def no_test(data: Path) -> list[Path]:
    shutil.rmtree(data / "test")
    return [NO_FILE]


def set_of_ids(data: Path, name: str) -> set[int]:
    return set(np.unique(pixels(mask(data, name))).tolist())


def few_in_test(data: Path) -> list[Path]:
    for name in sorted(every(data, "test"), key=lambda name: len(set_of_ids(data, name)))[:-4]:
        image(data, name).unlink()
        mask(data, name).unlink()
    return [NO_FILE]


SPOILED: dict[str, Spoil] = {
    "D101": bad_description,
    "D102": no_val,
    "D103": no_test,
    "D104": empty_split,
    "D105": unpaired_image,
    "D106": unpaired_mask,
    "D107": same_stem,
    "D108": few_in_test,
    "D109": no_description,
    "D201": not_an_image,
    "D202": cut_image,
    "D203": float_image,
    "D204": upside_down,
    "D205": turned_beside_its_mask,
    "D207": image_with_alpha,
    "D208": cmyk_image,
    "D209": two_frames,
    "D210": one_colour,
    "D211": no_contrast,
    "D212": gray_image,
    "D214": lambda data: scale_pair(data, 50, 40),
    "D215": lambda data: scale_pair(data, 330, 64),
    "D216": two_channels,
    "D218": cielab,
    "D301": unreadable_mask,
    "D302": cut_mask,
    "D303": small_mask,
    "D304": jpeg_mask,
    "D305": colour_mask,
    "D306": alpha_mask,
    "D307": mask_16_bit,
    "D309": other_palette,
    "D310": strange_id,
    "D312": from_one,
    "D313": interpolated,
    "D314": all_ignored,
    "D315": single_class,
    "D316": one_hot_mask,
    "D317": white_as_zero,
    "D401": extra_class,
    "D402": only_in_val,
    "D403": only_in_train,
    "D404": few_pixels,
    "D405": few_images,
    "D501": twice_in_train,
    "D502": leaked,
    "D503": nearly_leaked,
    "D504": video,
    "D505": contradiction,
    "D506": copied_mask,
}
TOGETHER = {
    "D104": {("D103", "")},
    "D505": {("D501", "train/images/train_9000.png")},
}
"""What a fault brings with it: an empty split is no split, a contradiction needs a copy."""


def expected(data: Path, code: str, paths: list[Path]) -> Found:
    names = ["" if path == NO_FILE else path.relative_to(data).as_posix() for path in paths]
    return {(code, name) for name in names} | TOGETHER.get(code, set())


@pytest.mark.parametrize("code", SPOILED)
def test_one_fault_among_many_files(code: str, among_many: Path, many_found: Found) -> None:
    wanted = expected(among_many, code, SPOILED[code](among_many))
    assert found_in(among_many) - many_found == wanted


@pytest.mark.parametrize(("code", "spoil"), [("D308", mask_1_bit), ("D311", foreground_255)])
def test_one_fault_in_masks_of_two_classes(
    code: str, spoil: Spoil, among_many_binary: Path, many_binary_found: Found
) -> None:
    wanted = expected(among_many_binary, code, spoil(among_many_binary))
    assert found_in(among_many_binary) - many_binary_found == wanted


def test_a_16_bit_image_among_gray_ones(among_many: Path, many_found: Found) -> None:
    image_16_bit(among_many)
    assert found_in(among_many) - many_found == {("D206", "train/images/train_0007.png")}


def test_16_bit_images_of_a_12_bit_sensor(among_many: Path, many_found: Found) -> None:
    image_16_bit(among_many)
    paths = [image(among_many, name) for name in every(among_many)]
    save(image(among_many, ONE), pixels(image(among_many, ONE)) // 16)
    found = diagnose(among_many, progress=False)
    assert next(f.detail for f in found.findings if f.code == "D217") == (
        "16-bit images use 12 bits: their values are below 4096, but 65535 is white, so they are "
        "at most 16 of 255 bright. 1 of 60 images have 16 bits: save all with 8, or all with 16."
    )
    for path in paths:
        gray = pixels(path)
        save(path, gray // 16 if gray.dtype == np.uint16 else gray.astype(np.uint16) * 16)
    found = diagnose(among_many, progress=False)
    detail = next(f.detail for f in found.findings if f.code == "D217")
    assert "Write `range: [0, 4095]` in dataset.yaml." in detail
    text = (among_many / "dataset.yaml").read_text()
    fresh(among_many / "dataset.yaml").write_text(f"{text}range: [0, 4095]\n")
    codes = {f.code for f in diagnose(among_many, progress=False).findings}
    assert not codes & {"D206", "D217"}


def test_sizes_that_differ_by_more_than_sixteen_times(among_many: Path, many_found: Found) -> None:
    scale_pair(among_many, 80 * 5, 64 * 5)
    new = found_in(among_many) - many_found
    assert {code for code, _ in new} == {"D213"}
    assert ("D213", "train/images/train_0007.png") in new


def test_every_foreground_stored_as_an_ignored_255(among_many_binary: Path) -> None:
    data = among_many_binary
    text = "version: 1\nclasses: [rest, ground]\nignore: 255\n"
    fresh(data / "dataset.yaml").write_text(text)
    for path in data.rglob("masks/*.png"):
        save(path, pixels(path) * 255)
    found = diagnose(data, progress=False)
    assert len(next(f for f in found.findings if f.code == "D311").files) == 60
    assert "mapping: {0: 0, 255: 1}" in found.facts["dataset_yaml"]


def test_every_code_has_a_test() -> None:
    elsewhere = {"D206", "D213", "D217", "D308", "D311", "D318", "D319"} | FACTS
    assert set(SPOILED) | elsewhere == set(CODES)


def test_a_clean_set_has_neither_errors_nor_warnings(many: Path, many_found: Found) -> None:
    found = diagnose(many, progress=False)
    assert found.exit_code == 0
    assert len(found.pairs) == 60
    assert {code for code, _ in many_found if CODES[code].severity != "note"} == set()
