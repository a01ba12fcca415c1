"""Grey masks: what `grey:` may say, and that every reader gives the pixels of the nearest level."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_folders import fails, load, random_image, save
from PIL import Image, ImageDraw, ImageFilter

from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE, Dataset, nearest_levels
from zoo.data.description.init import init
from zoo.data.doctor import diagnose
from zoo.data.doctor.codes import Diagnosis, Finding
from zoo.data.doctor.fix import repair
from zoo.data.inspect.scan import count_labels, scan_labels
from zoo.data.load import load_dataset
from zoo.data.loading.decoded import DecodedPairs
from zoo.data.pixels.masks import read_mask, read_pair, to_source_ids
from zoo.data.split import split

CRACK = "version: 1\nclasses: [background, crack]\ngrey: {0: background, 255: crack}\n"
TRIMAP = (
    "version: 1\nclasses: [background, animal]\ngrey: {0: background, 128: ignore, 255: animal}\n"
)


def grey_set(root: Path, values: Any, suffix: str = ".png", **options: Any) -> Path:
    """One image and its mask in each of train and val."""
    array = np.array(values, dtype=np.uint8)
    for place in ("train", "val"):
        save(root / place / "images" / "x.png", random_image(0, *array.shape[:2]))
        save(root / place / "masks" / f"x{suffix}", array, **options)
    return root / "train" / "masks" / f"x{suffix}"


def test_a_pixel_has_the_class_of_the_nearest_level(tmp_path: Path) -> None:
    grey_set(tmp_path, [[0, 63, 64, 127], [128, 191, 192, 255]])
    two = load(tmp_path, CRACK)
    assert read_mask(two.splits["train"][0], two).tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    three = load(tmp_path, TRIMAP)
    mask = read_mask(three.splits["train"][0], three)
    assert mask.tolist() == [[0, 0, IGNORE, IGNORE], [IGNORE, IGNORE, 1, 1]]
    assert to_source_ids(mask, three).tolist() == [[0, 0, 128, 128], [128, 128, 255, 255]]


def test_midway_between_two_levels_the_higher_one_counts() -> None:
    found = nearest_levels({0: 1, 100: 0, 255: IGNORE})
    assert [found[value] for value in (0, 49, 50, 177, 178, 255)] == [1, 1, 0, 0, IGNORE, IGNORE]
    assert len(found) == 256


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_every_mode_is_read_as_grey(tmp_path: Path, mode: str) -> None:
    file = grey_set(tmp_path, [[0, 255, 255]])
    with Image.open(file) as picture:
        stored = picture.convert(mode)
    if mode == "P":  # an index of each colour that says nothing of its brightness
        stored = Image.fromarray(np.array([[7, 3, 3]], dtype=np.uint8))
        stored.putpalette([9, 9, 9] * 3 + [255, 255, 255] + [9, 9, 9] * 3 + [0, 0, 0])
    stored.save(file)
    dataset = load(tmp_path, CRACK)
    assert read_mask(dataset.splits["train"][0], dataset).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_masks_with_loss_are_read_alike_everywhere(
    tmp_path: Path, suffix: str, quality: int
) -> None:
    truth = np.zeros((64, 64), dtype=np.uint8)
    truth[16:48, 8:40] = 255  # along the blocks of 8 x 8, where JPEG keeps edges
    grey_set(tmp_path, truth, suffix, quality=quality)
    dataset = load(tmp_path, CRACK)
    sample = dataset.splits["train"][0]
    expected = (truth == 255).astype(np.uint8)
    assert np.array_equal(read_mask(sample, dataset), expected)
    assert np.array_equal(read_pair(sample, dataset)[1], expected)
    assert np.array_equal(DecodedPairs(dataset, [sample], 10**6)[0][1], expected)
    counts = [64 * 64 - 32 * 32, 32 * 32]
    for _ in range(2):  # decoded, then from the stored facts
        assert scan_labels(dataset).splits["val"].pixels.tolist() == counts
        assert count_labels(dataset, [sample]).tolist() == [counts]


def test_a_split_keeps_the_rule(tmp_path: Path) -> None:
    grey_set(tmp_path / "data", [[0, 200]], ".jpg")
    save(tmp_path / "data" / "train" / "images" / "y.png", random_image(1, 1, 2))
    save(tmp_path / "data" / "train" / "masks" / "y.png", [[100, 255]])
    load(tmp_path / "data", TRIMAP)
    (file,) = split(tmp_path / "data", ratios=(0.5, 0.5), out=tmp_path / "parts", stratify=False)
    dataset = load(tmp_path / "parts", file.read_text())
    assert dataset.grey == {0: 0, 128: IGNORE, 255: 1}
    assert dataset.allowed_ids() == nearest_levels({0: 0, 128: IGNORE, 255: 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grey: {0: a}", "grey: Dictionary should have at least 2 items"),
        ("grey: {0: a, 256: b}", "the key 256 of grey: Input should be less than or equal to 255"),
        ("grey: {0: a, 255: c}", "grey: Unknown class 'c'"),
        ("grey: {0: a, 255: a}", "grey: at least two levels of different classes are needed"),
        ("grey: {0: a, 255: b}\nmapping: {0: 0}", "mapping: not with `grey`, which gives each"),
        ("grey: {0: a, 255: b}\nignore: 9", "ignore: not with `grey`"),
        ("grey: {0: a, 255: b}\ncolours: true", "colours: not with `grey`"),
        ("gray: {0: a, 255: b}", "Unknown key 'gray'. Did you mean grey"),
    ],
)
def test_what_grey_may_say(tmp_path: Path, text: str, expected: str) -> None:
    grey_set(tmp_path, [[0, 255]])
    assert expected in fails(tmp_path, f"version: 1\nclasses: [a, b]\n{text}\n")


def test_what_is_no_grey_mask(tmp_path: Path) -> None:
    file = grey_set(tmp_path, [[[0, 0, 0], [255, 0, 0]]])
    dataset = load(tmp_path, CRACK)
    sample = dataset.splits["train"][0]
    for pixels, expected in (
        ([[[0, 0, 0], [255, 255, 254]]], "is a colour image; `grey:` in dataset.yaml is for"),
        ([[[0, 0, 0, 255], [255, 255, 255, 9]]], "is partly transparent"),
        (np.array([[0, 65535]], dtype=np.uint16), "has 16 bits per channel"),
    ):
        save(file, pixels)
        with pytest.raises(InputError) as caught:
            read_mask(sample, dataset)
        assert expected in str(caught.value)
        assert str(file) in str(caught.value)


def test_jpeg_masks_without_the_rule_are_refused_with_it(tmp_path: Path) -> None:
    grey_set(tmp_path, [[0, 255]], ".jpg")
    message = fails(tmp_path, "version: 1\nclasses: [a, b]\n")
    assert "holds 1 JPEG masks (x.jpg)" in message
    assert "write `grey:` in dataset.yaml (`zoo data init` proposes it)" in message


# zoo data init


def drawing(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """Two white ellipses on black, smoothed along their edges: drawn four times as large."""
    rng = np.random.default_rng(seed)
    large = Image.new("L", (4 * size[0], 4 * size[1]))
    pen = ImageDraw.Draw(large)
    for _ in range(2):
        x, y = (int(rng.integers(length, 3 * length)) for length in size)
        pen.ellipse((x - size[0] // 2, y - size[1] // 2, x + size[0], y + size[1] // 2), fill=255)
    return large.resize(size, Image.Resampling.BOX)


def ids_of_squares(values: Sequence[int], seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    ids = np.zeros((90, 120), dtype=np.uint8)
    for _ in range(25):
        top, left = rng.integers(0, 80), rng.integers(0, 110)
        height, width = rng.integers(1, 30, 2)
        ids[top : top + height, left : left + width] = rng.choice(values)
    return ids


def described(root: Path, masks: Sequence[Any], suffix: str = ".png", **options: Any) -> Dataset:
    for number, mask in enumerate(masks):
        array = np.asarray(mask, dtype=np.uint8)
        save(root / "images" / f"{number}.png", random_image(number, *array.shape[:2]))
        save(root / "masks" / f"{number}{suffix}", array, **options)
    return load_dataset(init(root))


def test_init_finds_smoothed_edges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = [drawing(seed) for seed in range(4)]
    dataset = described(tmp_path, masks)
    assert dataset.decoder == "grey"
    assert dataset.classes == ["background", "foreground"]
    assert dataset.grey == {0: 0, 255: 1}
    array = np.asarray(masks[0])
    sample = dataset.splits["train"][0]
    assert np.array_equal(read_mask(sample, dataset), (array >= 128).astype(np.uint8))
    white = [np.count_nonzero(np.asarray(mask) >= 247) / array.size for mask in masks]
    text = (tmp_path / "dataset.yaml").read_text()
    assert "grey: {0: background, 255: foreground}" in text
    assert f"- foreground  # level 255, {100 * np.mean(white):.2g} %" in text
    said = capsys.readouterr().err
    assert re.search(r"4 masks hold 1[78] grey values: 0 \(\d\d %\), 255 \(\d\d %\) and", said)


@pytest.mark.parametrize("quality", [50, 75, 85, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_init_finds_jpeg_masks(tmp_path: Path, quality: int, mode: str) -> None:
    masks = [drawing(seed).convert(mode) for seed in range(3)]
    dataset = described(tmp_path, masks, ".jpg", quality=quality)
    assert dataset.grey == {0: 0, 255: 1}
    truth = np.asarray(masks[0].convert("L")) >= 128
    wrong = (read_mask(dataset.splits["train"][0], dataset) == 1) != truth
    assert wrong.mean() < 0.01  # of the pixels, along the edges


def test_init_finds_what_was_jpeg_before(tmp_path: Path) -> None:
    masks = []
    for seed in range(3):
        stream = io.BytesIO()
        Image.fromarray(ids_of_squares([255], seed)).save(stream, "JPEG", quality=90)
        masks.append(Image.open(stream))
    assert described(tmp_path, masks).grey == {0: 0, 255: 1}


def test_init_finds_three_levels(tmp_path: Path) -> None:
    masks = []
    for seed in range(3):
        large = Image.fromarray(ids_of_squares([128, 255], seed)).resize((480, 360))
        masks.append(large.resize((123, 91), Image.Resampling.BILINEAR))
    dataset = described(tmp_path, masks)
    assert dataset.classes == ["class_0", "class_1", "class_2"]
    assert dataset.grey == {0: 0, 128: 1, 255: 2}


def test_init_of_one_mask_of_many_empty_ones(tmp_path: Path) -> None:
    empty = np.zeros((90, 120), dtype=np.uint8)
    assert described(tmp_path, [*[empty] * 30, drawing(0)]).grey == {0: 0, 255: 1}
    black = described(tmp_path / "black", [empty], ".jpg")
    assert black.grey == {0: 0, 255: 1}


@pytest.mark.parametrize(
    "values",
    [
        [255], [128, 200], [1, 2, 255], [*range(1, 21), 255],
        [255, 255, 255, 20, 30, 40], [*range(182)], [*range(0, 250, 25)],
    ],
)  # fmt: skip
def test_ids_are_never_taken_for_grey(tmp_path: Path, values: list[int]) -> None:
    masks = [ids_of_squares(values, seed) for seed in range(6)]
    dataset = described(tmp_path, masks)
    assert dataset.decoder == "ids"
    assert {0, *np.unique(masks)} <= set(dataset.allowed_ids())


@pytest.mark.parametrize("values", [[128, 255], [64, 128, 191, 255]])
def test_clean_levels_that_end_at_white_are_classes(tmp_path: Path, values: list[int]) -> None:
    """255 beside such values is a level, not a mark for what to ignore."""
    masks = [ids_of_squares(values, seed) for seed in range(6)]
    dataset = described(tmp_path, masks)
    assert dataset.grey == {value: index for index, value in enumerate([0, *values])}
    assert scan_labels(dataset).splits["train"].ignored == 0


def test_one_photograph_does_not_make_ids_grey(tmp_path: Path) -> None:
    masks = [ids_of_squares([1, 2], seed) for seed in range(6)]
    with pytest.raises(InputError, match="neither ids nor grey levels"):
        described(tmp_path, [*masks, random_image(0, 90, 120)[:, :, 0]])


def test_palettes_are_never_taken_for_grey(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / "images" / f"{number}.png", random_image(number, 90, 120))
        picture = Image.fromarray(np.asarray(drawing(number)) // 2)
        picture.putpalette(list(range(256)) * 3)
        (tmp_path / "masks").mkdir(exist_ok=True)
        picture.save(tmp_path / "masks" / f"{number}.png")
    assert load_dataset(init(tmp_path)).decoder == "ids"


def test_grey_values_that_a_gif_numbers_are_grey(tmp_path: Path) -> None:
    masks = [drawing(seed) for seed in range(3)]
    dataset = described(tmp_path, masks, ".gif")
    assert dataset.grey == {0: 0, 255: 1}
    expected = (np.asarray(masks[1]) >= 128).astype(np.uint8)
    assert np.array_equal(read_mask(dataset.splits["train"][1], dataset), expected)


def palette_of(values: Any, file: Path) -> None:
    """Grey values as a file whose palette holds just the greys that occur, as GIF writers do."""
    greys, ids = np.unique(np.asarray(values), return_inverse=True)
    picture = Image.fromarray(ids.reshape(np.shape(values)).astype(np.uint8), "P")
    picture.putpalette([int(grey) for grey in greys for _ in range(3)])
    picture.save(file)


@pytest.mark.parametrize("smoothed", [False, True])
@pytest.mark.parametrize("others", [0, 2])
def test_palettes_of_single_files_do_not_make_ids(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], others: int, smoothed: bool
) -> None:
    masks = [np.asarray(drawing(seed)) for seed in range(4)]
    masks = [mask if smoothed else np.uint8(255) * (mask >= 128) for mask in masks]
    masks[3] = np.full_like(masks[3], 255)  # its id 0 is white
    for number, mask in enumerate(masks):
        save(tmp_path / "images" / f"{number}.png", random_image(number, *mask.shape))
        if number < others:
            save(tmp_path / "masks" / f"{number}.png", mask)
        else:
            (tmp_path / "masks").mkdir(exist_ok=True)
            palette_of(mask, tmp_path / "masks" / f"{number}.gif")
    with pytest.raises(
        InputError, match=r"not ids\. `zoo data init .*` writes this file"
    ) as caught:
        load_dataset(tmp_path)
    assert "grey: {0: background, 255: foreground}" in str(caught.value)
    dataset = load_dataset(init(tmp_path))
    assert dataset.grey == {0: 0, 255: 1}
    assert ("blurred edges" in capsys.readouterr().err) == smoothed
    for sample, mask in zip(dataset.splits["train"], masks, strict=True):
        assert np.array_equal(read_mask(sample, dataset), mask >= 128)


def test_palettes_that_disagree_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = [[0, 0, 0, 200, 0, 0], [0, 0, 0, 0, 200, 0]]
    for number, palette in enumerate(colours):
        save(tmp_path / "images" / f"{number}.png", random_image(number, 90, 120))
        picture = Image.fromarray(ids_of_squares([0, 1], number), "P")
        picture.putpalette(palette)
        (tmp_path / "masks").mkdir(exist_ok=True)
        picture.save(tmp_path / "masks" / f"{number}.png")
    with pytest.raises(InputError, match=r"write `colours: true` and the colour of each class"):
        load_dataset(tmp_path)
    assert load_dataset(init(tmp_path)).decoder == "ids"
    assert "index 1 is the colour [200, 0, 0] in" in capsys.readouterr().err


def test_soft_masks_are_refused_with_the_way_on(tmp_path: Path) -> None:
    blurred = drawing(0).filter(ImageFilter.GaussianBlur(20))
    with pytest.raises(InputError) as caught:
        described(tmp_path, [blurred])
    message = str(caught.value)
    assert (
        "neither ids nor grey levels with blurred edges, but soft masks such as mattes" in message
    )
    text = message[message.index("version: 1") :]
    (tmp_path / "dataset.yaml").write_text(
        f"{text}\nsplits: {{train: {{images: images, masks: masks}}}}\n"
    )
    dataset = load_dataset(tmp_path)
    expected = np.asarray(blurred) >= 128
    assert np.array_equal(read_mask(dataset.splits["train"][0], dataset), expected)


def test_jpeg_masks_without_levels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither ids nor grey levels"):
        described(tmp_path, [ids_of_squares(range(5), 0)], ".jpg")
    colour = np.zeros((90, 120, 3), dtype=np.uint8)
    colour[:40, :, 0] = 255
    with pytest.raises(InputError, match="compressed with loss, so its colours have changed"):
        described(tmp_path / "colour", [colour], ".jpg")


def test_gray_and_rgb_files_may_be_mixed_where_all_is_grey(tmp_path: Path) -> None:
    masks = [drawing(0), drawing(1).convert("RGB")]
    assert described(tmp_path, masks).grey == {0: 0, 255: 1}


def test_masks_that_cannot_be_read_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "images" / "x.png", random_image(0, 9, 9))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 files cannot be used"):
        init(tmp_path)
    described(tmp_path, [ids_of_squares([1], 0)])
    assert "1 of 2 masks cannot be read, the first:" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["ids", "colours", "smoothed", "smoothed_rgb", "jpeg"])
def test_what_init_read_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    squares = [ids_of_squares([1, 2], seed) for seed in range(3)]
    drawings = [drawing(seed) for seed in range(3)]
    masks, suffix = {
        "ids": (squares, ".png"),
        "colours": ([np.stack([m, m * 9, m], axis=2) for m in squares], ".png"),
        "smoothed": (drawings, ".png"),
        "smoothed_rgb": ([one.convert("RGB") for one in drawings], ".png"),
        "jpeg": (drawings, ".jpg"),
    }[kind]
    dataset = described(tmp_path, masks, suffix)
    opened = []
    real = Image.open

    def counting(path: Path, *args: Any, **options: Any) -> Image.Image:
        opened.append(Path(path))
        return real(path, *args, **options)

    monkeypatch.setattr(Image, "open", counting)
    scan = scan_labels(dataset).splits["train"]
    assert scan.pixels.sum() == 3 * 90 * 120
    assert count_labels(dataset, dataset.splits["train"]).sum(axis=0).tolist() == list(scan.pixels)
    diagnosis = diagnose(tmp_path, progress=False)
    assert diagnosis.facts["pixels"]["train"] == list(scan.pixels)
    assert [path for path in opened if path.parent.name == "masks"] == []


# the doctor


def blurred_set(root: Path, text: str, suffix: str = ".png", count: int = 3) -> list[Any]:
    """Drawings in train and val under a dataset.yaml of this text; returns the true ids."""
    truths = []
    for split_name in ("train", "val"):
        for number in range(count):
            mask = drawing(number + 10 * (split_name == "val"))
            picture = random_image(number, 90, 120) // 2 + 10 * len(truths)
            save(root / split_name / "images" / f"{number}.png", picture)
            (root / split_name / "masks").mkdir(parents=True, exist_ok=True)
            mask.save(root / split_name / "masks" / f"{number}{suffix}")
            truths.append((np.asarray(mask) >= 128).astype(np.uint8))
    (root / "dataset.yaml").write_text(text)
    return truths


def finding(diagnosis: Diagnosis, code: str) -> Finding:
    return next(one for one in diagnosis.findings if one.code == code)


PLAIN = "version: 1\nclasses: [background, crack]\n"


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"{PLAIN}mapping: {{0: 0, 255: 1}}\n",
        f"{PLAIN}mapping: {{{', '.join(f'{v}: {int(v > 99)}' for v in range(256))}}}\n",
    ],
    ids=["unmapped", "mapped", "every_value_mapped"],
)
def test_the_doctor_finds_blurred_edges(tmp_path: Path, text: str, suffix: str) -> None:
    blurred_set(tmp_path, text, suffix)
    diagnosis = diagnose(tmp_path, progress=False)
    errors = diagnosis.of("error")
    assert [one.code for one in errors] == ["D318"]
    assert len(errors[0].files) == 6
    said = errors[0].files[f"val/masks/2{suffix}"]
    assert re.fullmatch(r"(JPEG: )?\d+(\.\d+)? % of the pixels are not 0, 255", said)
    suggested = diagnosis.facts["dataset_yaml"]
    (tmp_path / "dataset.yaml").write_text(suggested)
    assert load_dataset(tmp_path).classes == ["background", "crack"]
    assert load_dataset(tmp_path).grey == {0: 0, 255: 1}
    assert diagnose(tmp_path, progress=False).of("error") == []


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize(
    "extra", ["", "mapping: {0: 0, 255: 1}\n", "grey: {0: background, 255: crack}\n"]
)
def test_fix_writes_clean_masks(tmp_path: Path, suffix: str, extra: str) -> None:
    truths = blurred_set(tmp_path / "data", PLAIN + extra, suffix)
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    lines = repair(diagnose(tmp_path / "data", progress=False), tmp_path / "new")
    assert [path.read_bytes() for path in files] == before
    assert lines[0] == f"Wrote {tmp_path / 'new'}: 6 pairs, 6 files changed."
    copy = load_dataset(tmp_path / "new")
    assert diagnose(tmp_path / "new", progress=False).of("error") == []
    samples = [*copy.splits["train"], *copy.splits["val"]]
    for sample, truth in zip(samples, truths, strict=True):
        with Image.open(sample.mask) as stored:
            assert stored.mode == "P"
            assert set(np.unique(np.array(stored))) <= {0, 1, 255}
        different = (read_mask(sample, copy) != truth).mean()
        assert different == 0 if suffix == ".png" else different < 0.01


def test_ids_1_and_2_under_grey_are_not_called_shifted(tmp_path: Path) -> None:
    grey_set(tmp_path, [[1, 2], [1, 2]])
    load(tmp_path, CRACK)
    assert "D312" not in {one.code for one in diagnose(tmp_path, progress=False).findings}


def test_fix_does_not_guess_what_a_level_means(tmp_path: Path) -> None:
    blurred_set(tmp_path / "data", "version: 1\nclasses: [a, b, c]\nmapping: {7: 0, 8: 1, 9: 2}\n")
    lines = repair(diagnose(tmp_path / "data", progress=False), tmp_path / "new")
    assert "dataset.yaml does not say which classes the levels 0, 255 of the masks are" in lines[0]
    assert not (tmp_path / "new").exists()


def test_the_doctor_names_a_photograph_among_grey_masks(tmp_path: Path) -> None:
    blurred_set(tmp_path, CRACK)
    assert "D319" not in {one.code for one in diagnose(tmp_path, progress=False).findings}
    save(tmp_path / "train" / "masks" / "1.png", random_image(5, 90, 120)[:, :, 0])
    # 214 of the 256 values, 21 to 234, are more than 20 from both levels
    share = finding(diagnose(tmp_path, progress=False), "D319").files["train/masks/1.png"]
    assert abs(float(share.split()[0]) - 100 * 214 / 256) < 2
