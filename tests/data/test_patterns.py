"""Images and masks whose names differ: `{stem}` in dataset.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.data_folders import THREE, fails, load, save

from zoo.common.errors import InputError
from zoo.data.description.init import init
from zoo.data.formats.guess import find_pairs, place_text
from zoo.data.load import load_dataset

PIXEL = [[0]]
LAYOUTS = {
    "suffix": (
        'images: "i/{stem}.jpg", masks: "m/{stem}_mask.gif"',
        {"1": ("i/1.jpg", "m/1_mask.gif"), "2": ("i/2.JPG", "m/2_mask.GIF")},
        ["m/2_mask.png"],
    ),
    "one folder": (
        'images: "all/{stem}_image", masks: "all/{stem}_annotation"',
        {n: (f"all/{n}_image.png", f"all/{n}_annotation.png") for n in "12"},
        ["all/1_depth.png"],
    ),
    "one folder, images without suffix": (
        'images: "{stem}", masks: "{stem}_mask"',
        {n: (f"{n}.png", f"{n}_mask.png") for n in "ab"},
        [],
    ),
    "masks below images": (
        "images: ., masks: masks",
        {n: (f"{n}.png", f"masks/{n}.png") for n in "ab"},
        [],
    ),
    "prefix and folders": (
        'images: "i/img_{stem}", masks: "m/gt_{stem}"',
        {f"{city}/1": (f"i/{city}/img_1.png", f"m/{city}/gt_1.png") for city in ("bonn", "rome")},
        ["m/rome/old_1.png"],
    ),
    "a folder for each": (
        'images: "{stem}/image", masks: "{stem}/mask.png"',
        {n: (f"{n}/image.png", f"{n}/mask.png") for n in ("c1", "c2")},
        [],
    ),
    "the name twice": (
        'images: "x/{stem}/{stem}.jpg", masks: "x/{stem}/{stem}_gt"',
        {n: (f"x/{n}/{n}.jpg", f"x/{n}/{n}_gt.png") for n in "12"},
        ["x/2/1_gt.png"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_that_differ(tmp_path: Path, layout: str) -> None:
    entry, expected, more = LAYOUTS[layout]
    for name in [name for pair in expected.values() for name in pair] + more:
        save(tmp_path / name, PIXEL)
    found = load(tmp_path, f"{THREE}splits: {{train: {{{entry}}}}}\n").splits["train"]
    pairs = {
        sample.name: tuple(str(file.relative_to(tmp_path)) for file in (sample.image, sample.mask))
        for sample in found
        if sample.mask is not None
    }
    assert pairs == expected


def test_names_select_among_patterns(tmp_path: Path) -> None:
    for number in "123":
        save(tmp_path / "i" / f"{number}.jpg", PIXEL)
        save(tmp_path / "m" / f"{number}_gt.png", PIXEL)
    (tmp_path / "list.txt").write_text("3\n1.jpg\n")
    entry = '{images: i, masks: "m/{stem}_gt", list: list.txt}'
    found = load(tmp_path, f"{THREE}splits: {{train: {entry}}}\n").splits["train"]
    assert [sample.name for sample in found] == ["1", "3"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ('{images: i, masks: "m/{name}_gt"}', "has {name}; the only placeholder is {stem}"),
        ('{images: i, masks: "../{stem}"}', "must lie below `root`"),
        ("{images: i, masks: m/{stem}_gt}", "Write text with {stem} in quotes."),
        ("{images: i, masks: {stem}}", "write text with {stem} in quotes"),
        ('{images: i, masks: "m/{stem}_mask"}', "no mask named {stem}_mask, but 1_gt.png, 2_gt.p"),
        ('{images: i, masks: "j/{stem}_gt.jpg"}', "JPEG masks (1_gt.jpg)"),
        ("{images: i, masks: i}", "holds both sides, so an image would be its own mask. Write how"),
        ('{images: i, masks: "m/{stem}_gt.png"}', "1 of 2 masks in"),
    ],
)
def test_patterns_that_cannot_be_used(tmp_path: Path, entry: str, message: str) -> None:
    for name in ("i/1.png", "m/1_gt.png", "m/2_gt.png", "j/1_gt.jpg"):
        save(tmp_path / name, PIXEL)
    assert message in fails(tmp_path, f"{THREE}splits: {{train: {entry}}}\n")


FOUND = {
    "a suffix": (
        {"train": (["train/images/{}.jpg"], ["train/masks/{}_mask.gif"])},
        {"train": '{images: "train/images", masks: "train/masks/{stem}_mask"}'},
    ),
    "one folder": (
        {"train": (["{}_image.png"], ["{}_annotation.png", "{}_depth.png"])},
        {"train": '{images: "{stem}_image", masks: "{stem}_annotation"}'},
    ),
    "another kind of file beside": (
        {"train": (["d/a{}.jpg"], ["groundtruth/a{}_segmentation.png", "d/a{}_superpixels.png"])},
        {"train": '{images: "d/{stem}.jpg", masks: "groundtruth/{stem}_segmentation"}'},
    ),
    "folders of other names": (
        {"train": (["images/x{}.jpg"], ["labels/x{}_gt.png"])},
        {"train": '{images: "images", masks: "labels/{stem}_gt"}'},
    ),
    "splits": (
        {
            "train": (["train_img/{}.jpg"], ["train_lab/{}.png"]),
            "test": (["test_img/{}.jpg"], ["test_lab/{}.png"]),
        },
        {
            "train": '{images: "train_img", masks: "train_lab"}',
            "test": '{images: "test_img", masks: "test_lab"}',
        },
    ),
    "prefixes": (
        {"train": (["im/img_{}.png"], ["gt/gt_{}.png"])},
        {"train": '{images: "im/img_{stem}", masks: "gt/gt_{stem}"}'},
    ),
    "a folder for each": (
        {"train": (["c{}/image.png"], ["c{}/mask.png"])},
        {"train": '{images: "{stem}/image", masks: "{stem}/mask"}'},
    ),
    "two extensions": (
        {"train": (["d/{}.jpg"], ["d/{}.png"])},
        {"train": '{images: "{stem}.jpg", masks: "{stem}.png"}'},
    ),
    "nested folders": (
        {"train": (["left/rome/{}.png", "left/bonn/{}.png"], ["gt/rome/{}.png", "gt/bonn/{}.png"])},
        {"train": '{images: "left", masks: "gt"}'},
    ),
}


@pytest.mark.parametrize("layout", FOUND)
def test_init_finds_the_pattern(tmp_path: Path, layout: str) -> None:
    files, splits = FOUND[layout]
    for images, masks in files.values():
        for name in [name.format(number) for name in images + masks for number in range(1, 12)]:
            save(tmp_path / name, [[0, 1]])
    found = find_pairs(tmp_path)
    assert {split: place_text(place, tmp_path) for split, place in found.items()} == splits
    loaded = load_dataset(init(tmp_path)).splits
    sizes = {split: 11 * len(images) for split, (images, _) in files.items()}
    assert {split: len(samples) for split, samples in loaded.items()} == sizes


def test_several_files_could_be_the_masks(tmp_path: Path) -> None:
    for number in range(3):
        for name in ("images/{}.tif", "1st_manual/{}_manual1.gif", "mask/{}_mask.gif"):
            save(tmp_path / name.format(number), [[0, 1]])
    with pytest.raises(InputError) as caught:
        init(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: several files could be the images and masks of 'train'. Write one of these "
        f"under `splits:` in a dataset.yaml:\n"
        f'  - train: {{images: "images", masks: "1st_manual/{{stem}}_manual1"}}\n'
        f'  - train: {{images: "images", masks: "mask/{{stem}}_mask"}}'
    )


def test_where_nothing_pairs_the_message_names_suffixes(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.png", PIXEL)
    save(tmp_path / "masks" / "b.png", PIXEL)
    message = fails(tmp_path, f"{THREE}splits: {{train: {{images: images, masks: masks}}}}\n")
    assert "no names are equal: a.png and b.png. Where they differ at an end, write" in message
    (tmp_path / "dataset.yaml").unlink()
    (tmp_path / "masks" / "b.png").rename(tmp_path / "b.png")
    (tmp_path / "masks").rmdir()
    with pytest.raises(InputError, match=r'patterns such as `masks: "labels/\{stem\}_gt\.png"`'):
        init(tmp_path)
