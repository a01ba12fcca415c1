"""Masks drawn from LabelMe's and COCO's JSON: hand-worked pixels, and every message."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_folders import fails, load, random_image, save
from PIL import Image

from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE, Dataset
from zoo.data.doctor import diagnose
from zoo.data.doctor.fix import repair
from zoo.data.formats import coco
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.pixels import polygons
from zoo.data.pixels.masks import read_mask, read_pair

ABC = "version: 1\nclasses: [ground, road, car]\nunlabelled: ground\n"
SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]
"""In COCO's reckoning the corners of pixels: rows 1 and 2, columns 1 and 2."""


# LabelMe


def shape(label: Any, points: Any, kind: Any = "polygon") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind}


def mask_shape(points: Any, inside: list[list[int]]) -> dict[str, Any]:
    """A shape of LabelMe's AI tools: a box, and a PNG of what it covers of it."""
    stream = io.BytesIO()
    Image.fromarray(255 * np.array(inside, dtype=np.uint8)).convert("1").save(stream, "PNG")
    return shape("car", points, "mask") | {"mask": base64.b64encode(stream.getvalue()).decode()}


def write_labelme(root: Path, shapes: Any, size: tuple[Any, Any] = (5, 6), name: str = "x") -> Path:
    height, width = (length if isinstance(length, int) and length else 5 for length in size)
    save(root / "a" / f"{name}.png", random_image(0, height, width))
    content = {"version": "5", "shapes": shapes, "imageHeight": size[0], "imageWidth": size[1]}
    file = root / "a" / f"{name}.json"
    file.write_text(json.dumps(content))
    return file


def labelme(root: Path, shapes: Any, extra: str = "", size: tuple[Any, Any] = (5, 6)) -> Dataset:
    write_labelme(root, shapes, size)
    return load(root, f"{ABC}{extra}splits: {{train: {{labelme: a}}}}\n")


def drawn(dataset: Dataset) -> list[list[int]]:
    rows: list[list[int]] = read_mask(dataset.splits["train"][0], dataset).tolist()
    return rows


def refused(dataset: Dataset) -> str:
    with pytest.raises(InputError) as caught:
        drawn(dataset)
    return str(caught.value)


def test_labelme_shapes(tmp_path: Path) -> None:
    shapes = [
        shape("road", [[0, 0], [5, 0], [5, 1], [0, 1]], None),
        shape("car", [[2, 3], [1, 1]], "rectangle"),
    ]
    dataset = labelme(tmp_path, shapes)
    assert dataset.decoder == "labelme"
    assert drawn(dataset) == [
        [1, 1, 1, 1, 1, 1],
        [1, 2, 2, 1, 1, 1],
        [0, 2, 2, 0, 0, 0],
        [0, 2, 2, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    image, mask = read_pair(dataset.splits["train"][0], dataset)
    assert image.shape == (5, 6, 3)
    assert scan_labels(dataset).splits["train"].pixels.tolist() == [14, 10, 6]
    assert mask.dtype == np.uint8


@pytest.mark.parametrize("last", [[3.2, 3.9], [4, 4]])
def test_labelme_mask(tmp_path: Path, last: list[float]) -> None:
    """The box ends at the last pixel, or in some versions behind it."""
    inside = [[1, 0], [1, 1], [0, 1]]
    shapes = [shape("road", [[0, 0], [5, 1]], "rectangle"), mask_shape([[2, 1], last], inside)]
    assert drawn(labelme(tmp_path, shapes)) == [
        [1, 1, 1, 1, 1, 1],
        [1, 1, 2, 1, 1, 1],
        [0, 0, 2, 2, 0, 0],
        [0, 0, 0, 2, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_labelme_mask_at_the_edges_of_the_image(tmp_path: Path) -> None:
    """A box that ends behind the last pixel of the image is cut off there."""
    dataset = labelme(tmp_path, [mask_shape([[4, 3], [6, 5]], [[1, 0], [0, 1]])])
    assert [row[4:] for row in drawn(dataset)] == [[0, 0], [0, 0], [0, 0], [2, 0], [0, 2]]


@pytest.mark.parametrize("kind", ["coco", "labelme"])
def test_outlines_on_a_photo_as_it_is_stored(tmp_path: Path, kind: str) -> None:
    """The EXIF tag turns the photo of 6x5 pixels upright, the outlines lie on the stored pixels."""
    square = [[1, 1], [2, 1], [2, 2], [1, 2]]
    if kind == "coco":
        dataset, photo = coco_set(tmp_path, [area(2, [SQUARE])]), tmp_path / "p" / "x.png"
    else:
        dataset, photo = labelme(tmp_path, [shape("car", square)]), tmp_path / "a" / "x.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    stored = random_image(0, 5, 6)
    Image.fromarray(stored).save(photo, exif=exif)
    with pytest.raises(InputError) as caught:
        read_pair(dataset.splits["train"][0], dataset)
    assert "is 5x6 after the rotation by its EXIF tag: the mask was drawn on the" in str(
        caught.value
    )
    assert "`zoo doctor DATA --fix NEWDIR` rotates such masks" in str(caught.value)
    diagnosis = diagnose(tmp_path, progress=False)
    assert "D205" in {one.code for one in diagnosis.findings}
    repair(diagnosis, tmp_path.parent / f"{tmp_path.name}_new")
    copy = load_dataset(tmp_path.parent / f"{tmp_path.name}_new")
    image, mask = read_pair(copy.splits["train"][0], copy)
    expected = np.zeros((5, 6), dtype=np.uint8)
    expected[1:3, 1:3] = 2
    assert np.array_equal(mask, np.rot90(expected, -1))
    assert np.array_equal(image, np.rot90(stored, -1))


def test_labelme_circle(tmp_path: Path) -> None:
    dataset = labelme(tmp_path, [shape("car", [[2, 2], [2, 3]], "circle")])
    assert drawn(dataset)[2] == [0, 2, 2, 2, 0, 0]
    assert [row[2] for row in drawn(dataset)] == [0, 2, 2, 2, 0]
    assert drawn(dataset)[0] == [0] * 6


def test_later_labelme_shapes_lie_on_top(tmp_path: Path) -> None:
    whole = [[0, 0], [5, 0], [5, 4], [0, 4]]
    assert drawn(labelme(tmp_path, [shape("car", whole), shape("road", whole)])) == [[1] * 6] * 5


def test_rectangle_of_four_corners(tmp_path: Path) -> None:
    corners = [[1, 1], [2, 1], [2, 2], [1, 2]]
    assert sum(map(sum, drawn(labelme(tmp_path, [shape("road", corners, "rectangle")])))) == 4


def test_labels_and_unlabelled(tmp_path: Path) -> None:
    shapes = [
        shape("truck", [[0, 0], [0, 0]], "rectangle"),
        shape("dog", [[1, 0], [1, 0]], "rectangle"),
    ]
    extra = "labels: {truck: car, '*': ignore}\n"
    assert drawn(labelme(tmp_path, shapes, extra))[0][:3] == [2, IGNORE, 0]
    dataset = load(
        tmp_path,
        "version: 1\nclasses: [road, car]\nunlabelled: ignore\n"
        "labels: {truck: car, dog: road}\nsplits: {train: {labelme: a}}\n",
    )
    assert drawn(dataset)[0][:3] == [1, 0, IGNORE]
    assert scan_labels(dataset).splits["train"].pixels.tolist() == [1, 1]


def test_labelme_labels_are_checked(tmp_path: Path) -> None:
    message = refused(labelme(tmp_path, [shape("truck", [[0, 0], [1, 1]], "rectangle")]))
    assert "has labels that are not classes: 'truck'. Classes: ground, road, car." in message
    assert "Under `labels:` in dataset.yaml" in message
    assert "not classes: None" in refused(labelme(tmp_path, [shape(None, [[0, 0]] * 3)]))


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ("none", "must hold a list of shapes under 'shapes'"),
        ([1], "must hold a list of shapes"),
        (
            [shape("car", [[0, 0]], "point")],
            "shape 0 is a 'point', which covers no area. Allowed: po",
        ),
        (
            [shape("car", [[0, 0]], ["polygon"])],
            "is a \"['polygon']\", which is not a known shape",
        ),
        ([shape("car", [[0, 0]], "cuboid")], "is a 'cuboid', which is not a known shape"),
        (
            [shape("car", []) | {"shape_type": ["line"]}],
            "is a \"['line']\", which is not a known shape",
        ),
        ([shape("car", []) | {"shape_type": {"a": 1}}], "which is not a known shape"),
        (
            [mask_shape([[0, 0], [3, 2]], [[1]])],
            "a mask of 1x1 pixels in a box of 4x3 at (0, 0)",
        ),
        ([mask_shape([[-1, 0], [0, 0]], [[1, 1]])], "in a box of 2x1 at (-1, 0) of the 6x5 image"),
        (
            [shape("car", [[0, 0], [1, 1]], "mask")],
            "no readable 'mask', a PNG in base64: it is",
        ),
        ([shape("car", [[0, 0], [1, 1]], "mask") | {"mask": "no!"}], "has no readable 'mask', a P"),
        (
            [shape("car", [[0, 0], [1, 1]], "mask") | {"mask": "iVBORw0KGgo="}],
            "has no readable 'mask', a PNG in base64: cannot identify image file",
        ),
        ([shape("car", [[0, 0], [1, 1]])], "shape 0 is a polygon with 2 points; it needs 3"),
        ([shape("car", [[0, 0]], "circle")], "is a circle with 1 points; it needs 2"),
        ([shape("car", None)], "must have a list of points [x, y], not None"),
        ([shape("car", [[0, "1"]])], "must have a list of points [x, y], not [0, '1']"),
        ([shape("car", [[0, 1, 2]])], "must have a list of points"),
        ([shape("car", [[0, True]])], "must have a list of points"),
        ([shape("car", [[0, float("nan")]])], "must have a list of points"),
        ([shape("car", [[0, 13]])], "has the point [0, 13], far outside of the 6x5 image"),
        ([shape("car", [[-7, 0]])], "far outside"),
        ([shape("car", [[10**400, 0]])], "far outside"),
    ],
)
def test_labelme_faults(tmp_path: Path, shapes: Any, expected: str) -> None:
    message = refused(labelme(tmp_path, shapes))
    assert expected in message
    assert "x.json" in message


@pytest.mark.parametrize("size", [(None, 5), (5, 0), (2.5, 5), ("5", 5)])
def test_labelme_size(tmp_path: Path, size: tuple[Any, Any]) -> None:
    assert "imageHeight and imageWidth as whole numbers" in refused(
        labelme(tmp_path, [], size=size)
    )


def test_labelme_sizes_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = labelme(tmp_path, [])
    save(tmp_path / "a" / "x.png", random_image(0, 4, 4))
    with pytest.raises(InputError, match=r"x\.json is 6x5 pixels, its image"):
        read_pair(dataset.splits["train"][0], dataset)
    file = tmp_path / "a" / "x.json"
    file.write_text('{"shapes": [], "imageHeight": 1000000, "imageWidth": 1000000}')
    assert "has 1000000 megapixels; the limit is 200" in refused(dataset)
    monkeypatch.setattr(polygons, "MAX_SHAPES", 1)
    file.write_text('{"shapes": [{}, {}], "imageHeight": 1, "imageWidth": 1}')
    assert "has 2 shapes; at most 1 are drawn" in refused(dataset)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "as JSON"),
        ("[]", "must hold a JSON object, not list"),
        ("[" * 100_000, "as JSON: maximum recursion depth"),
        ('{"a": ' + "1" * 5000 + "}", "as JSON: Exceeds the limit"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, expected: str) -> None:
    dataset = labelme(tmp_path, [])
    (tmp_path / "a" / "x.json").write_text(text)
    assert expected in refused(dataset)


def test_annotation_files_that_are_gone_or_huge(tmp_path: Path) -> None:
    dataset = labelme(tmp_path, [])
    file = tmp_path / "a" / "x.json"
    with pytest.raises(InputError, match="has 0 MB; at most 0 are read"):
        polygons.read_shapes(file, 5)
    file.unlink()
    assert "x.json cannot be read: No such file" in refused(dataset)


def test_labelme_folders(tmp_path: Path) -> None:
    write_labelme(tmp_path, [])
    save(tmp_path / "a" / "y.jpg", [[0]])
    text = f"{ABC}splits: {{train: {{labelme: a}}, val: {{labelme: b}}}}\n"
    message = fails(tmp_path, text)
    assert "1 of 2 images in" in message
    assert "have no mask of the same name" in message
    assert f"{tmp_path / 'b'} is missing" in message


def test_labelme_files_in_a_list(tmp_path: Path) -> None:
    write_labelme(tmp_path, [shape("car", [[0, 0], [5, 4]], "rectangle")])
    (tmp_path / "l.csv").write_text("image,mask\na/x.png,a/x.json\n")
    dataset = load(tmp_path, f"{ABC}splits: {{train: l.csv}}\n")
    assert drawn(dataset) == [[2] * 6] * 5


def test_contradictions_with_shapes(tmp_path: Path) -> None:
    write_labelme(tmp_path, [])
    save(tmp_path / "i" / "x.png", [[0]])
    save(tmp_path / "m" / "x.png", [[0]])
    splits = "splits: {train: {labelme: a}, val: {images: i, masks: m}}\n"
    message = fails(
        tmp_path, f"version: 1\nclasses: [a, b]\nmapping: {{0: 0}}\nignore: 9\n{splits}"
    )
    assert "all masks must be of one kind, here are ids and labelme" in message
    assert "mapping: not with masks that are drawn from shapes" in message
    assert "ignore: not with masks that are drawn" in message
    assert "unlabelled: missing. Write the class of pixels that lie in no shape" in message
    assert "`unlabelled: a`, or `unlabelled: ignore`" in message
    splits = "splits: {train: {labelme: a}}\n"
    message = fails(
        tmp_path, f"version: 1\nclasses: [a, b]\nunlabelled: c\nlabels: {{x: d}}\n{splits}"
    )
    assert "unlabelled: Unknown class 'c'" in message
    assert "labels: Unknown class 'd'. Available: a, b, ignore." in message
    splits = "splits: {val: {images: i, masks: m}}\n"
    message = fails(
        tmp_path, f"version: 1\nclasses: [a, b]\nunlabelled: a\nlabels: {{x: a}}\n{splits}"
    )
    assert "labels: only for masks that are drawn from shapes" in message
    assert "unlabelled: only for masks that are drawn from shapes" in message


def test_unknown_keys_of_entries(tmp_path: Path) -> None:
    splits = (
        "{a: {labelme: x, image: y}, b: {coco: {images: x, annotation: y}}, c: {coco: {}, d: 1}}"
    )
    message = fails(tmp_path, f"{ABC}splits: {splits}\n")
    assert "splits.a.image: Unknown key 'image'. Available: labelme." in message
    assert (
        "splits.b.coco.annotation: Unknown key 'annotation'. Did you mean annotations?" in message
    )
    assert "splits.b.coco.annotations: missing" in message
    assert "splits.c.d: Unknown key 'd'" in message


# COCO


def coco_content(annotations: list[dict[str, Any]]) -> dict[str, Any]:
    for number, row in enumerate(annotations):
        row.setdefault("id", number)
        row.setdefault("image_id", 7)
    return {
        "images": [{"id": 7, "file_name": "x.png", "height": 5, "width": 6}],
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "car"}],
        "annotations": annotations,
    }


def coco_set(
    root: Path, annotations: list[dict[str, Any]] | dict[str, Any], extra: str = ""
) -> Dataset:
    save(root / "p" / "x.png", random_image(0, 5, 6))
    content = coco_content(annotations) if isinstance(annotations, list) else annotations
    (root / "a.json").write_text(json.dumps(content))
    return load(
        root, f"{ABC}{extra}splits: {{train: {{coco: {{images: p, annotations: a.json}}}}}}\n"
    )


def area(category: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return {"category_id": category, "segmentation": segmentation, **more}


def test_coco_polygons_smaller_on_top(tmp_path: Path) -> None:
    whole = [0, 0, 6, 0, 6, 5, 0, 5]
    dataset = coco_set(tmp_path, [area(2, [SQUARE]), area(1, [whole])])
    assert dataset.decoder == "coco"
    expected = np.ones((5, 6), dtype=int)
    expected[1:3, 1:3] = 2
    assert drawn(dataset) == expected.tolist()
    assert scan_labels(dataset).splits["train"].pixels.tolist() == [0, 26, 4]


def test_coco_run_lengths(tmp_path: Path) -> None:
    counts = [6, 2, 3, 2, 17]  # down the columns of 5: rows 1 and 2 of columns 1 and 2
    dataset = coco_set(tmp_path, [area(1, {"size": [5, 6], "counts": counts})])
    expected = np.zeros((5, 6), dtype=int)
    expected[1:3, 1:3] = 1
    assert drawn(dataset) == expected.tolist()


def test_coco_packed_run_lengths_agree_with_the_library(tmp_path: Path) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    for seed in range(5):
        inside = np.random.default_rng(seed).random((5, 6)) < 0.4
        packed = mask_tools.encode(np.asfortranarray(inside.astype(np.uint8)))
        text = packed["counts"].decode()
        dataset = coco_set(tmp_path, [area(1, {"size": [5, 6], "counts": text})])
        assert drawn(dataset) == inside.astype(int).tolist()


def test_coco_long_packed_run_lengths() -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    inside = np.random.default_rng(0).random((300, 400)) < 0.01
    text = mask_tools.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
    area = {"size": [300, 400], "counts": text}
    assert np.array_equal(polygons._run_lengths(area, (300, 400), "here"), inside)


def test_crowds_are_ignored_where_no_object_lies(tmp_path: Path) -> None:
    crowd = area(1, {"size": [5, 6], "counts": [0, 10, 20]}, iscrowd=1)
    dataset = coco_set(tmp_path, [area(2, [SQUARE]), crowd])
    expected = np.zeros((5, 6), dtype=int)
    expected[:, :2] = IGNORE
    expected[1:3, 1:3] = 2
    assert drawn(dataset) == expected.tolist()


def test_outlines_of_two_points_cover_nothing(tmp_path: Path) -> None:
    assert drawn(coco_set(tmp_path, [area(1, [[0, 0, 3, 3]])])) == [[0] * 6] * 5


def test_coco_is_split_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coco_set(tmp_path, [area(1, [SQUARE])])
    monkeypatch.setattr(coco, "_split_by_image", lambda *_: pytest.fail("read again"))
    assert load_dataset(tmp_path).splits["train"][0].name == "x"


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    assert drawn(coco_set(tmp_path, [area(1, [SQUARE])]))[1][1] == 1
    assert drawn(coco_set(tmp_path, [area(2, [SQUARE]), area(2, [SQUARE])]))[1][1] == 2


def test_coco_message_for_large_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(coco, "LARGE_BYTES", 1)
    coco_set(tmp_path, [])
    assert "into one file per image; this happens once" in capsys.readouterr().err


def test_coco_categories_are_checked_before_training(tmp_path: Path) -> None:
    content = coco_content([area(1, [SQUARE])])
    content["categories"][0]["name"] = "street"
    with pytest.raises(InputError, match="labels that are not classes: 'street'"):
        coco_set(tmp_path, content)
    assert drawn(coco_set(tmp_path, content, "labels: {street: road}\n"))[1][1] == 1
    assert drawn(coco_set(tmp_path, content, "labels: {'*': ignore}\n"))[1][1] == IGNORE


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        (None, "annotation 0 has no outline (segmentation: None), perhaps only a box"),
        ([], "has no outline (segmentation: [])"),
        ([[1, 2, 3]], "must have outlines [x, y, x, y, ...] of numbers"),
        (["abc"], "must have outlines"),
        ([[1, 2, 3, "4", 5, 6]], "must have a list of points"),
        ([[1, 2, 3, 1e9, 5, 6]], "far outside of the 6x5 image"),
        ({"size": [5, 6], "counts": [1, 1]}, "run lengths that do not fill its image of 6x5"),
        ({"size": [6, 5], "counts": [30]}, "run lengths that do not fill"),
        ({"size": [5, 6], "counts": [-1, 31]}, "run lengths that do not fill"),
        ({"size": [5, 6], "counts": "!"}, "run lengths that cannot be decoded"),
        ({"size": [5, 6], "counts": "o" * 40}, "run lengths that cannot be decoded"),
        ({"size": [5, 6], "counts": "1"}, "run lengths that do not fill"),
        ({"size": [5, 6]}, "run lengths that do not fill"),
    ],
)
def test_coco_faults_of_one_object(tmp_path: Path, segmentation: Any, expected: str) -> None:
    assert expected in refused(coco_set(tmp_path, [area(1, segmentation)]))


def test_coco_faults_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco, "SHOWN", 20)
    rows = [{"id": 3, "image_id": 8, "category_id": 1}, {"id": 4, "image_id": 7, "category_id": 9}]
    content = {
        "images": [
            {"id": 7, "file_name": "x.png"}, {"id": 7, "file_name": "y.png"},
            {"id": 5, "file_name": "../x.png"}, {"file_name": "z.png"},
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}, {"name": 4}],
        "annotations": rows,
    }  # fmt: skip
    with pytest.raises(InputError) as caught:
        coco_set(tmp_path, content)
    message = str(caught.value)
    assert "a.json is not a COCO annotation file:" in message
    assert "the image 7 (y.png) is listed twice" in message
    assert "the file_name '../x.png' must lie below the folder of images" in message
    assert "an image without id or file_name: {'file_name': 'z.png'}" in message
    assert "the category 1 is listed twice" in message
    assert "a category without id or name: {'name': 4}" in message
    assert "annotation 3: image 8 or category 1 is not listed" in message
    assert "annotation 4: image 7 or category 9 is not listed" in message


def test_coco_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'images' must be a list of objects"):
        coco_set(tmp_path, {"images": 3, "annotations": [], "categories": []})
    with pytest.raises(InputError, match="'images' is empty"):
        coco_set(tmp_path, {"images": [], "annotations": [], "categories": []})
    many = {"images": [{}] * 9, "annotations": [], "categories": []}
    with pytest.raises(InputError, match="and so on"):
        coco_set(tmp_path, many)


def test_coco_images_that_are_not_there(tmp_path: Path) -> None:
    content = coco_content([])
    content["images"].append({"id": 8, "file_name": "gone.png", "height": 1, "width": 1})
    with pytest.raises(InputError, match=r"1 of 2 images that .*a\.json lists are not in .*: gone"):
        coco_set(tmp_path, content)


def test_coco_file_that_is_not_there(tmp_path: Path) -> None:
    message = fails(tmp_path, f"{ABC}splits: {{a: {{coco: {{images: p, annotations: b.json}}}}}}\n")
    assert "b.json cannot be read: No such file" in message
    message = fails(
        tmp_path, f"{ABC}splits: {{a: {{coco: {{images: p, annotations: ../b.json}}}}}}\n"
    )
    assert "must lie below `root`" in message


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = coco_set(tmp_path, [area(1, [SQUARE])])
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    assert "pip install 'segmentation-zoo[formats]'" in refused(dataset)


def test_hostile_json_never_escapes_as_another_error(tmp_path: Path) -> None:
    values: list[Any] = [None, 0, -1, "x", [], {}, [[]], [None], 1e308, True, [1] * 6]
    refused: Counter[str] = Counter()
    for key in ("id", "image_id", "category_id", "segmentation", "iscrowd"):
        for value in values:
            content = coco_content([area(1, [SQUARE])])
            content["annotations"][0][key] = value
            try:
                drawn(coco_set(tmp_path, content))
            except InputError:
                refused[f"annotation {key}"] += 1
    for key in ("id", "file_name", "height", "width"):
        for value in values:
            content = coco_content([area(1, [SQUARE])])
            content["images"][0][key] = value
            try:
                drawn(coco_set(tmp_path, content))
            except InputError:
                refused[f"image {key}"] += 1
    read = {"annotation image_id", "annotation category_id", "annotation segmentation"}
    assert refused.keys() >= read | {"image id", "image file_name", "image height", "image width"}
