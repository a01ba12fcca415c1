"""Images and masks whose names differ: `{stem}` in dataset.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.data_folders import THREE, fails, load, save

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
