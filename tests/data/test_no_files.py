"""Pipes, sockets, devices and links that lead nowhere among the files: named, never waited for."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.data_folders import THREE, save, write_split

from zoo.common.errors import InputError
from zoo.common.files import read_json
from zoo.data.description.init import init
from zoo.data.doctor import diagnose
from zoo.data.formats.pairs import list_files
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.pixels.images import image_size, read_pixels
from zoo.data.pixels.masks import read_ids


def _socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)  # the system allows 107 characters


def _link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name(".pipe"))
    path.symlink_to(".pipe")


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, "is a named pipe, not a file"),
    "link to a pipe": (_link_to_pipe, "is a named pipe, not a file"),
    "socket": (_socket, "is a socket, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "link to itself": (
        lambda path: path.symlink_to(path.name),
        "cannot be read: Too many levels of",
    ),
    "link to nothing": (lambda path: path.symlink_to("gone"), "does not exist"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["images", "masks"])
def test_whatever_is_no_file(
    tmp_path: Path, kind: str, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = KINDS[kind]
    write_split(tmp_path, "train", [(2, 2)] * 3)
    (tmp_path / "dataset.yaml").write_text(THREE)
    bad = tmp_path / "train" / side / "train_1.png"
    bad.unlink()
    make(bad)
    for read in (read_pixels, image_size, read_ids):
        with pytest.raises(InputError, match=f"train_1.png {message}"):
            read(bad)
    with pytest.raises(InputError, match=r"train_1\.png"):
        scan_labels(load_dataset(tmp_path))
    found = {finding.code: list(finding.files) for finding in diagnose(tmp_path).findings}
    assert found["D201" if side == "images" else "D301"] == [f"train/{side}/train_1.png"]
    if side == "masks":
        init(tmp_path, force=True)
        assert f"1 of 3 masks cannot be read, the first: {bad} {message}" in capsys.readouterr().err


def test_descriptions_lists_and_annotations_that_are_pipes(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [(2, 2)])
    os.mkfifo(tmp_path / "pipe.json")
    os.mkfifo(tmp_path / "list.csv")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match=r"pipe\.json is a named pipe, not a file\."):
        read_json(tmp_path / "pipe.json")
    for entry, name in (
        ("list.csv", "list.csv"),
        ("{images: train/images, masks: train/masks, list: list.csv}", "list.csv"),
        ("{coco: {images: train/images, annotations: pipe.json}}", "pipe.json"),
    ):
        (tmp_path / "dataset.yaml").write_text(f"{THREE}splits: {{train: {entry}}}\n")
        with pytest.raises(InputError, match=f"{name} is a named pipe, not a file"):
            load_dataset(tmp_path)
    with pytest.raises(InputError, match=r"pipe\.yaml"):
        load_dataset(tmp_path / "pipe.yaml")
    (tmp_path / "dataset.yaml").unlink()
    os.mkfifo(tmp_path / "dataset.yaml")
    with pytest.raises(InputError, match="dataset"):
        load_dataset(tmp_path)


def test_links_in_circles_and_out_of_the_folder(tmp_path: Path) -> None:
    save(tmp_path / "data" / "a" / "x.png", [[0]])
    save(tmp_path / "outside" / "y.png", [[0]])
    (tmp_path / "data" / "a" / "again").symlink_to("..")
    (tmp_path / "data" / "b").symlink_to("a")
    (tmp_path / "data" / "up").symlink_to("../..")
    (tmp_path / "data" / "all").symlink_to("/")
    (tmp_path / "data" / "far").symlink_to("../outside")
    assert list_files(tmp_path / "data") == ["a/x.png", "far/y.png"]
