"""dataset.yaml: what it may say, and every message for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.data_folders import write_split

from zoo.common.errors import InputError
from zoo.data.dataset import IGNORE
from zoo.data.description.dataset_yaml import DatasetFile, read_dataset_file
from zoo.data.load import load_dataset


def problems(tmp_path: Path, text: str) -> str:
    file = tmp_path / "dataset.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_dataset_file(file)
    assert str(file) in str(caught.value)
    return str(caught.value)


def with_classes(tmp_path: Path, extra: str, classes: str = "[a, b, c]") -> str:
    return problems(tmp_path, f"version: 1\nclasses: {classes}\n{extra}")


def id_map(**content: object) -> dict[int, int]:
    return DatasetFile.model_validate({"version": 1, **content}).id_map()


def test_colours(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(1, 1)])
    (tmp_path / "dataset.yaml").write_text(
        "version: 1\nclasses: [a, {name: b, colour: [1, 2, 3]}, {name: c}]\n"
    )
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ["a", "b", "c"]
    assert dataset.palette == [(0, 0, 0), (1, 2, 3), (0, 128, 0)]


def test_id_maps() -> None:
    abc = ["a", "b", "c"]
    assert id_map(classes=abc) == {0: 0, 1: 1, 2: 2, 255: IGNORE}
    assert id_map(classes=abc, ignore=9) == {0: 0, 1: 1, 2: 2, 9: IGNORE}
    assert id_map(classes=abc, ignore=[9, 255]) == {0: 0, 1: 1, 2: 2, 9: IGNORE, 255: IGNORE}
    assert id_map(classes=abc, ignore=[]) == {0: 0, 1: 1, 2: 2}
    assert id_map(classes=abc, mapping={7: 0, 8: 0, 300: 2}) == {7: 0, 8: 0, 300: 2, 255: IGNORE}
    assert id_map(classes=abc, mapping={0: 0, 255: 1}) == {0: 0, 255: 1}


def test_with_two_classes_255_must_be_declared() -> None:
    assert id_map(classes=["a", "b"]) == {0: 0, 1: 1}
    assert id_map(classes=["a", "b"], ignore=255) == {0: 0, 1: 1, 255: IGNORE}
    assert id_map(classes=["a", "b"], mapping={0: 0, 255: 1}) == {0: 0, 255: 1}


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = (
        "version: 2\nclasses: [a, a, {name: b, color: [1, 2, 3]}]\nroot: 3\nignored: 255\n"
        "splits: {train: {image: x}, val: /data}\n"
    )
    message = problems(tmp_path, text)
    assert "has problems:" in message
    assert "version: Input should be 1 (given: '2')" in message
    assert "root: read as " in message
    assert "ignored: Unknown key 'ignored'. Did you mean ignore" in message
    assert "classes.2.color: Unknown key 'color'. Did you mean colour?" in message
    assert "splits.train.images: missing" in message
    assert "splits.train.image: Unknown key 'image'. Did you mean images?" in message
    assert "splits.val: '/data' must lie below `root`" in message


def test_missing_keys(tmp_path: Path) -> None:
    message = problems(tmp_path, "name: x\n")
    assert "version: missing" in message
    assert "classes: missing" in message


@pytest.mark.parametrize("text", ["", "- a\n", "word\n"])
def test_not_a_mapping(tmp_path: Path, text: str) -> None:
    assert "at least `version` and `classes`" in problems(tmp_path, text)


def test_yaml_fault_names_the_file(tmp_path: Path) -> None:
    assert "not valid YAML" in problems(tmp_path, "classes: [a\n")


def test_class_names(tmp_path: Path) -> None:
    assert "given more than once: b" in with_classes(tmp_path, "", "[a, b, b]")
    assert "1 given; 2 to 255 are allowed, background counts" in with_classes(tmp_path, "", "[a]")
    many = str([f"c{index}" for index in range(256)])
    assert "256 given; 2 to 255" in with_classes(tmp_path, "", many)
    assert "classes.1.name: ' b' must be printable" in with_classes(tmp_path, "", "[a, ' b']")
    assert "classes.1" in with_classes(tmp_path, "", "[a, 1]")


def test_255_classes_are_allowed() -> None:
    ids = id_map(classes=[f"c{index}" for index in range(255)])
    assert ids == {**{index: index for index in range(255)}, 255: IGNORE}


def test_colour_range(tmp_path: Path) -> None:
    message = with_classes(tmp_path, "", "[a, {name: b, colour: [0, 0, 256]}]")
    assert "classes.1.colour.2: Input should be less than or equal to 255" in message
    assert "classes.1.colour" in with_classes(tmp_path, "", "[a, {name: b, colour: [0, 0]}]")


def test_mapping_range(tmp_path: Path) -> None:
    message = with_classes(tmp_path, "mapping: {4: 3, 5: -1, 6: 2}\n")
    assert "mapping: maps to no class: 4: 3, 5: -1. Train ids go from 0 to 2" in message
    assert "list ids without a class under `ignore`" in message
    assert "the key 65536 of mapping" in with_classes(tmp_path, "mapping: {65536: 0}\n")


def test_ignore_of_a_class(tmp_path: Path) -> None:
    message = with_classes(tmp_path, "ignore: 0\n")
    assert "ignore: also the id of a class: 0. Without `mapping` class number i" in message
    assert "also the id of a class: 7" in with_classes(tmp_path, "ignore: [7]\nmapping: {7: 0}\n")


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "C:/x", "'..\\x'", "''"])
def test_a_folder_of_a_split_lies_below_the_root(tmp_path: Path, path: str) -> None:
    for split in (f"{{images: {path}, masks: m}}", f"{{images: i, masks: {path}}}", path):
        assert "must lie below `root`" in with_classes(tmp_path, f"splits: {{train: {split}}}\n")


def test_empty_splits(tmp_path: Path) -> None:
    message = with_classes(tmp_path, "splits: {}\n")
    assert "splits: is empty; leave it out to look for train, val and test" in message


def test_root_must_be_a_folder(tmp_path: Path) -> None:
    assert "root 'gone' is not a folder (looked at" in with_classes(tmp_path, "root: gone\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "classes: [0, 1]",
            "classes.0: read as 0, which is not text; a class should be a name",
        ),
        ("classes: [0, 1]", 'If it is a name, write it in quotes: "0"'),
        ("classes: [a, null]", "classes.1: nothing; a class should be a name, or"),
        ("classes: [a, ~]", 'If it is a name, write it in quotes: "null"'),
        ("classes: [a, true]", "classes.1: read as true, which is not text"),
        ("classes: {0: a}", "classes: should be a list (given: \"{0: 'a'}\")"),
        (
            "classes: [a, b]\nmapping: {010: 1}",
            "the key '010' of mapping: should be a whole",
        ),
        ("classes: [a, b]\nmapping: {1:30: 1}", "the key '1:30' of mapping: should be a whole num"),
        ("classes: [a, b]\nsplits: {train: }", "splits.train: a split should be a folder, a list"),
        ("classes: [a, b]\nname: 2024", "name: read as 2024, which is not text"),
    ],
)
def test_values_of_another_type(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(tmp_path, f"version: 1\n{text}\n")


def test_words_that_older_yaml_takes_for_something_else(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(1, 1)])
    names = ["yes", "no", "on", "off", "2020-01-01", "010", "1_0", "1:30"]
    (tmp_path / "dataset.yaml").write_text(f"version: 1\nclasses: [{', '.join(names)}]\n")
    assert load_dataset(tmp_path).classes == names
