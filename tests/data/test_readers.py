"""Official layouts: generated trees of every format, the real samples, and the way back to ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.data_folders import save

from zoo.common.class_lists import ADE20K, COCO_THINGS, names
from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE, Dataset, pack
from zoo.data.formats.trees import TREES, Tree, _camvid_split
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.pixels.masks import read_mask, read_pair, read_source_ids, to_source_ids

GRAY = [[9, 9]]


def fails(data: str) -> str:
    with pytest.raises(InputError) as caught:
        load_dataset(data)
    return str(caught.value)


def cityscapes(root: Path, ending: str = "labelIds", ids: tuple[int, int] = (7, 33)) -> str:
    for split, city in (("train", "bonn"), ("val", "rome"), ("test", "bern")):
        name = f"{city}_000000_000001"
        save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", GRAY)
        for kind, pixels in ((ending, [list(ids)]), ("instanceIds", GRAY), ("color", GRAY)):
            save(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", pixels)
    return f"cityscapes:{root}"


def ade20k(root: Path) -> str:
    for split in ("training", "validation"):
        base = root / "ADEChallengeData2016"
        save(base / "images" / split / "ADE_1.jpg", GRAY)
        save(base / "annotations" / split / "ADE_1.png", [[0, 150]])
    return f"ade20k:{root}"


def camvid(root: Path) -> str:
    save(root / "train" / "0016E5_00390.png", GRAY)
    save(root / "trainannot" / "0016E5_00390.png", [[10, 11]])
    return f"camvid:{root}"


CAMVID32_FRAMES = {
    "0016E5_00390": "train",
    "0016E5_07959": "val",
    "0016E5_08159": "val",
    "0016E5_08160": "train",
    "0001TP_008520": "train",
    "0001TP_008550": "test",
    "0006R0_f00930": "train",
    "Seq05VD_f00000": "test",
}


def camvid32(root: Path) -> str:
    for name in CAMVID32_FRAMES:
        save(root / "701_StillsRaw_full" / f"{name}.png", GRAY)
        colours = [[[64, 128, 64], [0, 0, 0]]]
        save(root / "LabeledApproved_full" / f"{name}_L.png", colours)
    return f"camvid32:{root}"


def coco_stuff(root: Path) -> str:
    for split in ("train2017", "val2017"):
        save(root / "images" / split / "000000000001.jpg", GRAY)
        save(root / "stuffthingmaps" / split / "000000000001.png", [[12, 255]])
    return f"coco-stuff:{root}"


def voc2012(root: Path) -> str:
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("2007_1", "2007_2", "2007_3"):
        save(base / "JPEGImages" / f"{name}.jpg", GRAY)
        save(base / "SegmentationClass" / f"{name}.png", [[20, 255]])
    lists = {"train": "2007_1\n", "val": "2007_2\n", "trainval": "2007_1\n2007_2\n"}
    for name, text in lists.items():
        file = base / "ImageSets" / "Segmentation" / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return f"voc2012:{root}"


def voc2012_aug(root: Path) -> str:
    voc2012(root)
    base = root / "VOCdevkit" / "VOC2012"
    for name in ("2007_1", "2007_3"):
        save(base / "SegmentationClassAug" / f"{name}.png", [[20, 255]])
    (base / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("2007_3\n2007_1\n")
    return f"voc2012-aug:{root}"


def oxford_pets(root: Path) -> str:
    listed = [f"Cat_{number}" for number in range(1, 12)]
    for name in [*listed, "Dog_1"]:
        save(root / "images" / f"{name}.jpg", [[9, 9, 9]])
        save(root / "annotations" / "trimaps" / f"{name}.png", [[1, 2, 3]])
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"")
    rows = "".join(f"{name} 1 1 1\n" for name in listed)
    (root / "annotations" / "trainval.txt").write_text(f"#Image CLASS-ID SPECIES BREED ID\n{rows}")
    (root / "annotations" / "test.txt").write_text("Dog_1 2 2 1\n")
    return f"oxford-pets:{root}"


MAKERS: dict[str, tuple[Callable[[Path], str], int, dict[str, int], list[int]]] = {
    "ade20k": (ade20k, 150, {"train": 1, "val": 1}, [IGNORE, 149]),
    "camvid": (camvid, 11, {"train": 1}, [10, IGNORE]),
    "camvid32": (camvid32, 31, {"train": 4, "val": 2, "test": 2}, [0, IGNORE]),
    "cityscapes": (cityscapes, 19, {"train": 1, "val": 1, "test": 1}, [0, 18]),
    "coco-stuff": (coco_stuff, 171, {"train": 1, "val": 1}, [11, IGNORE]),
    "oxford-pets": (oxford_pets, 2, {"train": 9, "val": 2, "test": 1}, [1, 0, IGNORE]),
    "voc2012": (voc2012, 21, {"train": 1, "val": 1, "trainval": 2}, [20, IGNORE]),
    "voc2012-aug": (voc2012_aug, 21, {"train": 2, "val": 1}, [20, IGNORE]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_generated_tree(tmp_path: Path, name: str) -> None:
    maker, classes, counts, expected = MAKERS[name]
    dataset = load_dataset(maker(tmp_path))
    assert dataset.name == name
    assert len(dataset.classes) == len(set(dataset.classes)) == len(dataset.palette) == classes
    assert {split: len(samples) for split, samples in dataset.splits.items()} == counts
    image, mask = read_pair(dataset.splits["train"][0], dataset)
    assert image.shape == (*mask.shape, 3)
    assert mask.tolist() == [expected]


def test_every_tree_is_tested() -> None:
    assert set(MAKERS) == set(TREES)


@pytest.mark.parametrize("name", MAKERS)
def test_ids_to_train_ids_to_colours_and_back(tmp_path: Path, name: str) -> None:
    dataset = load_dataset(MAKERS[name][0](tmp_path))
    sources = [source for source, value in dataset.allowed_ids().items() if value != IGNORE]
    wanted = [dataset.allowed_ids()[source] for source in sources]
    assert sorted(wanted) == list(range(len(dataset.classes)))
    if dataset.decoder == "colours":
        colours = [[[value >> 16, (value >> 8) & 255, value & 255] for value in sources]]
        path = save(tmp_path / "all.png", colours)
    else:
        path = save(tmp_path / "all.png", [sources])
    train_ids = read_mask(path, dataset)
    assert train_ids.tolist() == [wanted]
    shown = [dataset.palette[value] for value in train_ids[0].tolist()]
    back = [dataset.palette.index(colour) for colour in shown]
    assert back == wanted
    stored = to_source_ids(np.array([back], dtype=np.uint8), dataset)
    assert stored.tolist() == [sources] == read_source_ids(path, dataset).tolist()


def test_way_back_takes_the_least_id_and_names_what_has_none() -> None:
    dataset = Dataset("d", Path(), ["a", "b"], [(0, 0, 0)] * 2, {}, {3: 1, 2: 1, 5: 0})
    mask = np.array([[1, 0]], dtype=np.uint8)
    assert to_source_ids(mask, dataset).tolist() == [[2, 5]]
    with pytest.raises(InputError, match="The masks of d have no id for 255"):
        to_source_ids(np.array([[255]], dtype=np.uint8), dataset)


def test_camvid32_has_the_splits_of_the_smaller_version(tmp_path: Path) -> None:
    dataset = load_dataset(camvid32(tmp_path))
    found = {sample.name: split for split in dataset.splits for sample in dataset.splits[split]}
    assert found == CAMVID32_FRAMES
    assert dataset.allowed_ids()[pack((128, 64, 128))] == dataset.classes.index("Road")
    assert set(dataset.groups_of(dataset.splits["val"])) == {"0016E5"}


def test_cityscapes_ids(tmp_path: Path) -> None:
    dataset = load_dataset(cityscapes(tmp_path))
    ids = dataset.allowed_ids()
    assert (ids[0], ids[7], ids[9], ids[11], ids[28], ids[29], ids[33]) == (
        *(IGNORE, 0, IGNORE, 2, 15, IGNORE, 18),
    )
    assert 34 not in ids
    assert dataset.splits["test"][0].mask is None
    assert dataset.groups_of(dataset.splits["val"][:1]) == ["rome"]


def test_cityscapes_with_train_ids_only(tmp_path: Path) -> None:
    dataset = load_dataset(cityscapes(tmp_path, "labelTrainIds", (18, 255)))
    assert read_mask(dataset.splits["val"][0], dataset).tolist() == [[18, IGNORE]]
    assert dataset.id_map is None


def test_cityscapes_without_masks(tmp_path: Path) -> None:
    message = fails(cityscapes(tmp_path, "polygons"))
    assert "holds no mask" in message
    assert "_gtFine_labelIds.png" in message


def test_coco_stuff_has_eleven_gaps(tmp_path: Path) -> None:
    dataset = load_dataset(coco_stuff(tmp_path))
    gaps = [source for source in range(182) if source not in dataset.allowed_ids()]
    assert gaps == [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
    assert dataset.classes[dataset.allowed_ids()[0]] == "person"
    assert dataset.classes[dataset.allowed_ids()[89]] == "toothbrush"
    assert dataset.classes[dataset.allowed_ids()[91]] == "banner"
    assert dataset.classes[-1] == "wood"
    assert "-" not in dataset.classes
    assert len(names(COCO_THINGS)) == 91


def test_pets_take_every_tenth_name_for_val(tmp_path: Path) -> None:
    dataset = load_dataset(oxford_pets(tmp_path))
    assert [sample.name for sample in dataset.splits["val"]] == ["Cat_1", "Cat_11"]


def test_voc_may_be_given_at_any_height(tmp_path: Path) -> None:
    voc2012(tmp_path)
    for place in (tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2012"):
        assert len(load_dataset(f"voc2012:{place}").splits["val"]) == 1


def test_voc_list_of_names_without_files(tmp_path: Path) -> None:
    data = voc2012(tmp_path)
    base = tmp_path / "VOCdevkit" / "VOC2012"
    (base / "ImageSets/Segmentation/val.txt").write_text("2007_2\n2007_2\ngone\n")
    (base / "ImageSets/Segmentation/train.txt").write_text("\n")
    message = fails(data)
    assert "val.txt lists 1 names twice: 2007_2" in message
    assert f"1 of 3 names have no image in {base / 'JPEGImages'}: gone" in message
    assert f"1 of 3 names have no mask in {base / 'SegmentationClass'}: gone" in message
    assert "train.txt names no image" in message


@pytest.mark.parametrize("name", [n for n in MAKERS if n != "camvid"])
def test_missing_trees(tmp_path: Path, name: str) -> None:
    assert f"has none of the folders of the {name} layout" in fails(f"{name}:{tmp_path}")
    gone = tmp_path / "gone"
    assert f"{gone} is not a folder with those of the {name} layout" in fails(f"{name}:{gone}")


def test_half_a_tree(tmp_path: Path) -> None:
    save(tmp_path / "images" / "val2017" / "1.jpg", GRAY)
    message = fails(f"coco-stuff:{tmp_path}")
    assert f"{tmp_path / 'stuffthingmaps/val2017'} is missing" in message


def test_names_of_ade20k_from_its_own_file(tmp_path: Path) -> None:
    data = ade20k(tmp_path)
    file = tmp_path / "ADEChallengeData2016" / "objectInfo150.txt"
    rows = [f"{number}\t0.1\t5\t5\tthing {number}, other" for number in range(1, 151)]
    file.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    assert load_dataset(data).classes[149] == "thing 150"
    file.write_text("\n".join(["Idx\tName", *rows[:-1]]))
    assert f"{file} must name 150 classes" in fails(data)
    file.write_text("Idx\tName\nfirst\twall\n")
    assert f"{file} cannot be read" in fails(data)
    file.write_bytes(b"\xff\xfe\n\xff")
    assert f"{file} cannot be read" in fails(data)


def test_a_missing_list_is_named_in_the_layout(tmp_path: Path) -> None:
    assert "JPEGImages + SegmentationClass + ImageSets/Segmentation/train.txt" in fails(
        f"voc2012:{tmp_path}"
    )
    assert isinstance(TREES["voc2012"], Tree)


REAL = {
    "cityscapes": ("cityscapes_small", {"val": 1}),
    "ade20k": ("ade20k", {"val": 3}),
    "coco-stuff": ("coco_stuff", {"train": 13, "val": 8}),
    "voc2012": ("voc2012", {"val": 4}),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_real_samples(shared_data: Path, name: str) -> None:
    folder, counts = REAL[name]
    dataset = load_dataset(f"{name}:{shared_data / 'layouts' / folder}")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == counts
    assert len(dataset.classes) == MAKERS[name][1]
    for scan in scan_labels(dataset).splits.values():
        assert scan.pixels.sum() > 0
        assert scan.ignored_fraction < 0.2


@pytest.mark.real_data
def test_real_cityscapes_ids_agree_with_the_official_train_ids(shared_data: Path) -> None:
    root = shared_data / "layouts" / "cityscapes_small"
    dataset = load_dataset(f"cityscapes:{root}")
    sample = dataset.splits["val"][0]
    assert sample.mask is not None
    official = sample.mask.with_name(sample.mask.name.replace("labelIds", "labelTrainIds"))
    found, published = read_mask(sample, dataset), read_source_ids(official)
    for value in np.unique(found):  # the sample's two masks were made smaller one by one
        assert np.bincount(published[found == value]).argmax() == value
    assert (found == published).mean() > 0.995


@pytest.mark.real_data
def test_real_names_of_ade20k_are_the_built_in_ones(shared_data: Path) -> None:
    dataset = load_dataset(f"ade20k:{shared_data / 'layouts' / 'ade20k'}")
    assert dataset.classes == names(ADE20K)


@pytest.mark.real_data
def test_real_camvid_splits_follow_the_rule_of_camvid32(shared_data: Path) -> None:
    dataset = load_dataset(f"camvid:{shared_data / 'camvid'}")
    for split, samples in dataset.splits.items():
        assert {_camvid_split(sample.name) for sample in samples} == {split}
