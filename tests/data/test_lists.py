"""Splits as lists, groups, channels, ranges and colour masks: what they mean, and every message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from helpers.data_folders import THREE, fails, load, random_image, sample, save, write_split

from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE, Dataset, pack, unpack
from zoo.data.formats import pairs as lists
from zoo.data.inspect.scan import data_hash, scan_labels
from zoo.data.load import load_dataset
from zoo.data.pixels.images import image_size, read_image, read_pixels
from zoo.data.pixels.masks import count_ids, read_mask, read_pair

ABC = "version: 1\nclasses: [a, b, c]\n"
COLOURED = (
    "version: 1\ncolours: true\nclasses:\n"
    "  - {name: sky, colour: [0, 0, 255]}\n  - {name: road, colour: [255, 0, 0]}\n"
    "ignore_colours: [[0, 0, 0]]\n"
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Four pairs, p/0 to p/3 with masks m/0 to m/3."""
    for number in range(4):
        save(tmp_path / "p" / f"{number}.png", random_image(number, 2, 3))
        save(tmp_path / "m" / f"{number}.png", [[number % 3] * 3] * 2)
    return tmp_path


def write(root: Path, name: str, text: str) -> str:
    (root / name).write_text(text)
    return name


def test_csv_of_pairs(files: Path) -> None:
    rows = "id,image,mask\n1,p/3.png,m/3.png\n\n2, p/1.png ,m/1.png\n".replace(" ", "")
    name = write(files, "train.csv", rows)
    dataset = load(files, f"{ABC}splits: {{train: {name}}}\n")
    assert [s.name for s in dataset.splits["train"]] == ["p/1", "p/3"]
    assert dataset.splits["train"][1].mask == files / "m" / "3.png"
    assert read_mask(dataset.splits["train"][0], dataset).tolist() == [[1] * 3] * 2


def test_csv_with_a_byte_order_mark_and_quotes(files: Path) -> None:
    save(files / "p" / "a, b.png", [[1]])
    (files / "l.csv").write_bytes('\ufeffimage,mask\n"p/a, b.png",m/0.png\n'.encode())
    assert load(files, f"{ABC}splits: {{train: l.csv}}\n").splits["train"][0].name == "p/a, b"


def test_csv_of_images_alone(files: Path) -> None:
    write(files, "t.csv", "image\np/0.png\n")
    assert load(files, f"{ABC}splits: {{test: t.csv}}\n").splits["test"][0].mask is None


def test_text_of_pairs_and_of_images(files: Path) -> None:
    write(files, "a.txt", "# comment\np/2.png m/2.png\n\np/0.png\tm/0.png\n")
    write(files, "b.txt", "p/1.png\n")
    dataset = load(files, f"{ABC}splits: {{train: a.txt, test: b.txt}}\n")
    assert [s.mask and s.mask.name for s in dataset.splits["train"]] == ["0.png", "2.png"]
    assert dataset.splits["test"][0].mask is None


def test_names_that_choose_from_folders(files: Path) -> None:
    write(files, "names.txt", "3\n1.png\n")
    entry = "{images: p, masks: m, list: names.txt}"
    dataset = load(files, f"{ABC}splits: {{train: {entry}}}\n")
    assert [(s.name, s.mask and s.mask.name) for s in dataset.splits["train"]] == [
        ("1", "1.png"),
        ("3", "3.png"),
    ]


def test_lists_lie_beside_the_description_and_rows_below_the_root(files: Path) -> None:
    place = files / "elsewhere" / "lists"
    place.mkdir(parents=True)
    write(place, "a.csv", "image,mask\np/0.png,m/0.png\n")
    (files / "elsewhere" / "x.yaml").write_text(f"{ABC}root: ..\nsplits: {{train: lists/a.csv}}\n")
    assert len(load_dataset(files / "elsewhere" / "x.yaml").splits["train"]) == 1


def test_all_faults_of_a_list_at_once(files: Path) -> None:
    write(files, "p/x.doc", "")
    rows = [
        "image,mask",
        "p/gone.png,m/0.png",
        "../p/0.png,/m/0.png",
        "p/x.doc,m/1.png",
        ",m/2.png",
    ]
    write(files, "a.csv", "\n".join(rows) + "\np/0.png,m/0.png\np/0.png,m/0.png\n")
    write(files, "b.csv", "picture,mask\n")
    write(files, "c.txt", "p/0.png m/0.png extra\n")
    write(files, "d.txt", "p/0.png m/0.png\np/1.png\n")
    write(files, "e.txt", "\n")
    message = fails(
        files, f"{ABC}splits: {{a: a.csv, b: b.csv, c: c.txt, d: d.txt, e: e.txt, f: g.csv}}"
    )
    assert f"a.csv: line 2: the image 'p/gone.png' does not exist (looked for {files}" in message
    assert "a.csv: line 3: the image '../p/0.png' must lie below the root" in message
    assert "a.csv: line 3: the mask '/m/0.png' must lie below the root" in message
    assert "a.csv: line 4: the image 'p/x.doc' Unknown extension '.doc'" in message
    assert "a.csv: line 5: the image '' must lie below the root" in message
    assert "a.csv: listed more than once: p/0" in message
    assert "needs the column 'image' in its first line" in message
    assert "found: picture, mask" in message
    assert "Line 1 of a list has 3 words" in message
    assert "d.txt: lines without a mask: 2; give all masks or none" in message
    assert "e.txt: the list is empty" in message
    assert f"Cannot read the list {files / 'g.csv'}: No such file" in message


def test_many_faults_are_cut(files: Path) -> None:
    write(files, "a.txt", "".join(f"gone{number}.png\n" for number in range(15)))
    message = fails(files, f"{ABC}splits: {{a: a.txt}}\n")
    assert message.count("does not exist") == 10
    assert "... and 5 more" in message


def test_broken_and_huge_lists(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(files, "q.csv", 'image,mask\n"p/0.png,m/0.png\n')
    assert "q.csv" in fails(files, f"{ABC}splits: {{a: q.csv}}\n")
    (files / "n.csv").write_bytes(b"image\n\xff\xfe\n")
    assert "Cannot read the list" in fails(files, f"{ABC}splits: {{a: n.csv}}\n")
    monkeypatch.setattr(lists, "MAX_LIST_BYTES", 10)
    assert "is larger than 10 bytes; refused" in fails(files, f"{ABC}splits: {{a: q.csv}}\n")


@pytest.mark.parametrize("entry", ["../a.csv", "/a.csv", "{images: p, masks: m, list: ../a.txt}"])
def test_a_list_may_not_lie_above(files: Path, entry: str) -> None:
    assert "must lie below `root`" in fails(files, f"{ABC}splits: {{a: {entry}}}\n")


def test_list_of_another_kind(files: Path) -> None:
    message = fails(files, f"{ABC}splits: {{a: {{images: p, list: names.xml}}}}\n")
    assert (
        "splits.a.list: 'names.xml' must be a .csv, .txt, .lst, .yaml, .yml, .json file" in message
    )


def test_names_without_files(files: Path) -> None:
    write(files, "names.txt", "1\n7\n1\n")
    message = fails(files, f"{ABC}splits: {{a: {{images: p, masks: m, list: names.txt}}}}\n")
    assert "names.txt lists 1 names twice: 1" in message
    assert f"1 of 3 names have no image in {files / 'p'}: 7" in message
    message = fails(files, f"{ABC}splits: {{a: {{images: p, masks: m, list: no.txt}}}}\n")
    assert "Cannot read the list" in message


# Groups


def test_groups(files: Path) -> None:
    for name in ("v1_01", "v1_02", "v2_01"):
        save(files / "train" / "images" / "x" / f"{name}.png", [[0]])
        save(files / "train" / "masks" / "x" / f"{name}.png", [[0]])
    dataset = load(files, f"{ABC}group: '/(v[0-9]+)_'\n")
    samples = dataset.splits["train"]
    assert dataset.groups_of(samples) == ["v1", "v1", "v2"]
    dataset = load(files, f"{ABC}group: folder\n")
    assert dataset.groups_of(samples) == ["x", "x", "x"]
    assert load(files, ABC).groups_of(samples[:1]) == ["x/v1_01"]


def test_group_rules_that_cannot_work(files: Path) -> None:
    write_split(files, "train", [(1, 1)])
    assert "group: '(a' is not a valid regular expression" in fails(files, f"{ABC}group: (a\n")
    for rule in ("abc", "(a)" + "a" * 300, "'((((a?){50}){50}){50}){50}'"):
        message = fails(files, f"{ABC}group: {rule}\n")
        assert "must be `folder`, or a regular expression of at most 200" in message
    message = fails(files, f"{ABC}group: '(v[0-9]+)_'\n")
    assert "finds no group in 1 of 1 names: train_0" in message
    assert "finds no group" in fails(files, f"{ABC}group: 'train|(v)'\n")


def test_a_group_rule_that_would_search_for_ever(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.data.dataset.GROUP_SECONDS", 0.2)
    name = f"{'a' * 60}!"
    for side in ("images", "masks"):
        save(files / "train" / side / f"{name}.png", [[0]])
    message = fails(files, f"{ABC}group: '((?:a|b|ab|ba|aa)*)$(?<=x)'\n")
    assert f"takes too long on the name '{name}'. Write it without repeats inside" in message


# Colour masks


def coloured(root: Path, pixels: object, **options: object) -> Dataset:
    save(root / "train" / "images" / "x.png", random_image(0, 1, 3))
    save(root / "train" / "masks" / "x.png", pixels, **options)  # type: ignore[arg-type]
    return load(root, COLOURED)


def test_colour_masks(tmp_path: Path) -> None:
    dataset = coloured(tmp_path, [[[0, 0, 255], [0, 0, 0], [255, 0, 0]]])
    assert dataset.decoder == "colours"
    assert read_mask(dataset.splits["train"][0], dataset).tolist() == [[0, IGNORE, 1]]
    scan = scan_labels(dataset).splits["train"]
    assert (scan.pixels.tolist(), scan.ignored) == ([1, 1], 1)
    assert scan_labels(dataset).splits["train"].pixels.tolist() == [1, 1]


def test_colours_of_a_palette_and_with_alpha(tmp_path: Path) -> None:
    from PIL import Image

    dataset = coloured(tmp_path, [[[0, 0, 255, 255], [255, 0, 0, 0], [0, 0, 0, 9]]])
    assert read_mask(dataset.splits["train"][0], dataset).tolist() == [[0, 1, IGNORE]]
    palette = Image.fromarray(np.array([[1, 0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "train" / "masks" / "x.png")
    assert read_mask(dataset.splits["train"][0], dataset).tolist() == [[0, 1, 0]]


def test_packing() -> None:
    assert pack((1, 2, 3)) == 66051
    assert unpack(66051) == (1, 2, 3)
    assert count_ids(np.array([[66051, 5, 66051]], dtype=np.uint32)) == {5: 1, 66051: 2}


def test_unknown_colours(tmp_path: Path) -> None:
    dataset = coloured(tmp_path, [[[0, 0, 254], [0, 0, 254], [9, 9, 9]]])
    with pytest.raises(InputError) as caught:
        read_mask(dataset.splits["train"][0], dataset)
    message = str(caught.value)
    assert (
        "holds 2 colours that are not classes: (0, 0, 254) (2 pixels), (9, 9, 9) (1 pixels)"
        in message
    )
    assert "many rare colours along edges mean that the mask was resized" in message
    with pytest.raises(InputError, match="2 colours that are not classes"):
        scan_labels(dataset)


def test_colour_masks_of_16_bits(tmp_path: Path) -> None:
    dataset = coloured(tmp_path, np.array([[1, 2, 3]], dtype=np.uint16))
    with pytest.raises(InputError, match="8 bits per channel, so it holds no class colours"):
        read_mask(dataset.splits["train"][0], dataset)


def test_contradictions_with_colours(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(1, 1)])
    message = fails(
        tmp_path,
        "version: 1\ncolours: true\nmapping: {0: 0}\nignore: 255\nignore_colours: [[1, 1, 1]]\n"
        "classes: [a, {name: b, colour: [1, 1, 1]}]\n",
    )
    assert "mapping: not with `colours: true`" in message
    assert "ignore: not with `colours: true`" in message
    assert "with `colours: true` every class needs one: a" in message
    assert "colours: given more than once: (1, 1, 1)" in message
    assert "ignore_colours: only with `colours: true`" in fails(
        tmp_path, f"{THREE}ignore_colours: [[1, 1, 1]]\n"
    )


def test_the_meaning_of_a_file_is_part_of_what_is_remembered(tmp_path: Path) -> None:
    from PIL import Image

    save(tmp_path / "train" / "images" / "x.png", random_image(0, 1, 2))
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), mode="P")
    palette.putpalette([255, 0, 0, 255, 0, 0])
    (tmp_path / "train" / "masks").mkdir()
    palette.save(tmp_path / "train" / "masks" / "x.png")
    ids = load(tmp_path, "version: 1\nclasses: [a, b]\n")
    assert scan_labels(ids).splits["train"].pixels.tolist() == [1, 1]
    colours = load(tmp_path, COLOURED)
    assert scan_labels(colours).splits["train"].pixels.tolist() == [0, 2]
    assert data_hash(ids, "train") != data_hash(colours, "train")


# Channels and ranges


def arrays(
    root: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], extra: str
) -> Dataset:
    (root / "train" / "images").mkdir(parents=True, exist_ok=True)
    np.save(root / "train" / "images" / "x.npy", array)
    save(root / "train" / "masks" / "x.png", [[0, 1]])
    return load(root, f"{ABC}{extra}")


def test_npy_with_more_channels(tmp_path: Path) -> None:
    pixels = np.arange(10, dtype=np.uint8).reshape(1, 2, 5)
    dataset = arrays(tmp_path, pixels, "channels: 5\n")
    image, mask = read_pair(dataset.splits["train"][0], dataset)
    assert np.array_equal(image, pixels)
    assert mask.tolist() == [[0, 1]]
    assert image_size(dataset.splits["train"][0].image) == (1, 2)
    assert scan_labels(dataset).splits["train"].sizes == {(1, 2): 1}
    assert len(data_hash(dataset, "train")) == 16


def test_npy_needs_channels_or_a_range(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no image, only 1 x \.npy"):
        arrays(tmp_path, np.zeros((1, 2, 3), dtype=np.uint8), "")


def test_range(tmp_path: Path) -> None:
    values = np.array([[[-0.5], [0.0], [0.5], [1.0], [2.0], [3.0]]], dtype=np.float32)
    np.save(tmp_path / "x.npy", values)
    read = read_pixels(tmp_path / "x.npy", 1, (0.0, 2.0))
    assert read[0, :, 0].tolist() == [0, 0, 64, 128, 255, 255]
    wide = save(tmp_path / "w.png", np.array([[0, 2048, 4095, 9999]], dtype=np.uint16))
    assert read_pixels(wide, 1, (0.0, 4095.0))[0, :, 0].tolist() == [0, 128, 255, 255]
    narrow = save(tmp_path / "n.png", [[0, 100, 200]])
    assert read_pixels(narrow, 3, (0.0, 200.0))[0, :, 2].tolist() == [0, 128, 255]


def test_16_bits_without_a_range(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[[0, 257, 65535]]], dtype=np.uint16))
    assert read_pixels(tmp_path / "x.npy").tolist() == [[[0, 1, 255]]]


def test_ranges_that_cannot_work(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(1, 1)])
    assert "range: [low, high] with low below high" in fails(tmp_path, f"{ABC}range: [5, 5]\n")
    assert "range" in fails(tmp_path, f"{ABC}range: [0, .inf]\n")
    assert "range" in fails(tmp_path, f"{ABC}range: [0]\n")
    assert "channels: Input should be greater" in fails(tmp_path, f"{ABC}channels: 0\n")
    assert "channels: Input should be less" in fails(tmp_path, f"{ABC}channels: 257\n")


def message_of(
    path: Path, channels: int = 3, value_range: tuple[float, float] | None = None
) -> str:
    with pytest.raises(InputError) as caught:
        read_pixels(path, channels, value_range)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_arrays_that_are_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, 2, 2, 2)))
    assert "an array of shape (2, 2, 2, 2) and type float64; an image is height" in message_of(path)
    np.save(path, np.array([["a"]]))
    assert "type <U1" in message_of(path)
    np.save(path, np.zeros((1, 2, 3)))
    message = message_of(path)
    assert "has floating-point pixels" in message
    assert "`range: [low, high]` in dataset.yaml" in message
    np.save(path, np.zeros((1, 2, 3), dtype=np.int16))
    assert "has signed 16-bit pixels" in message_of(path)
    np.save(path, np.full((1, 2, 3), np.nan))
    assert "has NaN pixels" in message_of(path, 3, (0.0, 1.0))
    np.save(path, np.zeros((4, 8, 9), dtype=np.uint8))
    assert "has 9 channels, the data set 4" in message_of(path, 4)
    assert "Its first axis has that length" in message_of(path, 4)
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "0.00003")
    assert "megapixels; the limit is" in message_of(path, 9)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    assert "cannot be decoded" in message_of(path)
    path.write_bytes(b"\x93NUMPY")
    assert "cannot be decoded" in message_of(path)
    assert "does not exist" in message_of(tmp_path / "gone.npy")


def test_images_with_other_channels(tmp_path: Path) -> None:
    gray = save(tmp_path / "g.png", [[7]])
    alpha = save(tmp_path / "a.png", [[[1, 2, 3, 4]]])
    assert read_pixels(gray, 1).tolist() == [[[7]]]
    assert read_pixels(alpha, 4).tolist() == [[[1, 2, 3, 4]]]
    assert "has 1 channels (L), the data set 4" in message_of(gray, 4)
    assert "has 1 channels (L), the data set 7" in message_of(gray, 7)
    wide = save(tmp_path / "w.png", np.array([[1]], dtype=np.uint16))
    assert "has 1 channels, the data set 4" in message_of(wide, 4)


def test_16_bit_colour_png_with_a_range(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content)
        )  # fmt: skip

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(">HHH", 1, 2, 3)))
    path = tmp_path / "x.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b""))
    assert read_pixels(path).shape == (1, 1, 3)
    assert "several channels of 16 bits, which cannot be read exactly from PNG" in message_of(
        path, 3, (0.0, 4095.0)
    )


def test_multi_channel_tiff(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint16).reshape(3, 2, 4) * 2000
    last, first = tmp_path / "last.tif", tmp_path / "first.tif"
    tifffile.imwrite(last, pixels, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(
        first, np.moveaxis(pixels, 2, 0), photometric="minisblack", planarconfig="separate"
    )
    expected = np.round(pixels / 46000 * 255)
    for path in (last, first):
        assert np.array_equal(read_pixels(path, 4, (0.0, 46000.0)), expected)
        assert image_size(path) == (3, 2)
    assert "has 4 channels, the data set 5" in message_of(last, 5)
    cube = tmp_path / "cube.tif"
    tifffile.imwrite(
        cube, np.zeros((2, 3, 4, 5), np.uint8), photometric="minisblack", metadata={"axes": "TZYX"}
    )
    assert "a TIFF with the axes" in message_of(cube, 5)


def test_an_image_without_a_data_set_is_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", [[5]])
    assert read_image(path).tolist() == [[[5, 5, 5]]]
    dataset = Dataset("d", tmp_path, ["a", "b"], [(0, 0, 0)] * 2, {}, channels=1)
    assert read_image(path, dataset).tolist() == [[[5]]]
    with pytest.raises(InputError, match="has no mask"):
        read_mask(sample(path, None), dataset)


# Lists of names

OFFICIAL = {
    "names.txt": "a\nc 1 1\n# comment\n",
    "files.txt": "a.png\nc.png\n",
    "paths.txt": "/some/where/pictures/a.png /some/where/labels/a.png\npictures/c\n",
    "masks.txt": "a_gt.png\nc_gt\n",
    "plain.csv": "a\nc.png\n",
    "columns.csv": "id,size\na,3\nc,4\n",
    "splits.csv": "split,image\ntraining,a\nval,b\ntrain,c\n",
    "splits.yaml": "train: [a, c.png]\nvalidation: [b]\n",
    "flat.yaml": "- a\n- pictures/c.png\n",
    "splits.json": '{"Training": [{"image": "./pictures/a.png", "label": "x"}, {"image": "c"}]}',
    "flat.json": '["a", "c"]',
}


def official(root: Path) -> Path:
    for name in ("a", "b", "c", "001"):
        save(root / "pictures" / f"{name}.png", [[0]])
        save(root / "labels" / f"{name}_gt.png", [[0]])
    return root


def listed(name: str) -> str:
    entry = f'{{images: pictures, masks: "labels/{{stem}}_gt", list: {name}}}'
    return f"{ABC}splits: {{train: {entry}}}\n"


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_lists_as_they_are(tmp_path: Path, name: str) -> None:
    (official(tmp_path) / name).write_text(OFFICIAL[name])
    samples = load(tmp_path, listed(name)).splits["train"]
    assert [sample.name for sample in samples] == ["a", "c"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "split,image\nval,b\n", "has no rows of the split 'train', only of: val"),
        ("x.yaml", "val: [b]\n", "has no list of the split 'train', only: val"),
        ("x.yaml", "train: b\n", "must hold a list of names, or a list for each split"),
        ("x.json", "[1, null]", "2 of 2 entries of train are not names: 1, None"),
        ("x.json", "{", "Cannot read"),
        ("x.txt", "# nothing\n", "names no image"),
        ("x.txt", "elsewhere/a.png\n", "1 of 1 names have no image in"),
        ("x.txt", "a\na.png\n", "lists 1 names twice: a"),
    ],
)
def test_official_lists_that_cannot_be_used(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (official(tmp_path) / name).write_text(text)
    assert message in fails(tmp_path, listed(name))


def test_names_of_digits_stay_text(tmp_path: Path) -> None:
    (official(tmp_path) / "x.yaml").write_text("train: [001]\n")
    assert [s.name for s in load(tmp_path, listed("x.yaml")).splits["train"]] == ["001"]
