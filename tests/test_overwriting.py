"""No command overwrites a file that it did not write itself, and no output is read as an input."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.bench.runner import orders
from zoo.bench.suite import read_suite
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.common.files import MANIFEST, OutputFolder, new_folder, write_text
from zoo.creation.create import create
from zoo.data.scenes import write_scenes
from zoo.hub.folder import save_folder
from zoo.inference.predictor import BrokenImagesError

MODEL = "unet-test_resnet"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    save_folder(create(MODEL, classes=8, encoder_weights=None), folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "data", train=2, val=3, test=2, size=(64, 80))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def said(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """What a command prints that ends with `code`."""
    assert run([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.out if code == 0 else printed.err


def test_predict_leaves_the_masks_of_a_data_set_alone(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(data)
    asked = ("predict", model, data / "val" / "images", "--out", data / "val")
    message = said(capsys, 2, *asked)
    assert f"{data / 'val'} holds files that would be lost or mixed up" in message
    assert "masks/val_0000.png was not written by zoo" in message
    assert "images/val_0002.png was not written by zoo" in message
    assert "--overwrite, in Python overwrite=True" in message
    assert contents(data) == before
    message = said(
        capsys, 2, "predict", model, "--split", "val", "--data", data, "--out", data / "val",
        "--overwrite",
    )  # fmt: skip
    assert "masks/val_0000.png is an input of this command" in message
    assert contents(data) == before


def test_predict_runs_again_over_its_own_files_but_not_over_edited_ones(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "seen"
    asked = ("predict", model, data / "val" / "images", "--out", out)
    first = said(capsys, 0, *asked)
    before = contents(out)
    assert len(before) == 10  # three masks, three overlays, three JSON files, the manifest
    assert said(capsys, 0, *asked) == first
    assert contents(out) == before
    edited = out / "masks" / "val_0001.png"
    Image.fromarray(np.zeros((64, 80), np.uint8)).save(edited)
    message = said(capsys, 2, *asked)
    assert "masks/val_0001.png was changed since" in message
    assert "val_0000" not in message
    said(capsys, 0, *asked, "--overwrite")
    assert contents(out) == before
    (out / "notes.txt").write_text("mine")
    assert "notes.txt was not written by zoo" in said(capsys, 2, *asked)


def test_a_refusal_names_ten_files_and_counts_the_rest(tmp_path: Path) -> None:
    for number in range(13):
        (tmp_path / f"{number:02d}.txt").write_text("")
    with pytest.raises(InputError) as caught:
        OutputFolder(tmp_path, ["a.png"])
    lines = str(caught.value).splitlines()
    assert lines[1] == "  - 00.txt was not written by zoo"
    assert lines[10:12] == ["  - 09.txt was not written by zoo", "  - ... and 3 more"]
    OutputFolder(tmp_path, ["a.png"], shared=True)
    OutputFolder(tmp_path, ["00.txt"], overwrite=True)
    with pytest.raises(InputError, match=r"00\.txt was not written by zoo"):
        OutputFolder(tmp_path, ["00.txt"], shared=True)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_an_input_is_never_a_target(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    source, out = tmp_path / "a.png", tmp_path / "out"
    source.write_bytes(b"image")
    out.mkdir()
    link(source, out / "b.png")
    for name in ("b.png", "../out/b.png"):
        with pytest.raises(InputError, match=r"b\.png (is an input|would be written outside)"):
            OutputFolder(out, [name], inputs=[source], overwrite=True)
    assert source.read_bytes() == b"image"


def test_links_do_not_lead_out_of_an_output_folder(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").symlink_to(tmp_path / "truth")
    with pytest.raises(InputError, match="masks is a folder elsewhere, by a link"):
        OutputFolder(tmp_path / "out", ["masks/a.png"])


def test_a_kill_between_the_manifest_and_the_file_allows_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    OutputFolder(out, ["a"]).write("a", b"first")
    stopped = OutputFolder(out, ["a", "b"])
    for name in ("a", "b"):  # as if killed before the rename: the entry is there, the file is not
        before = (out / name).read_bytes() if (out / name).exists() else None
        stopped.write(name, b"second")
        (out / name).unlink()
        if before is not None:
            (out / name).write_bytes(before)
    OutputFolder(out, ["a", "b"])  # `a` is still what was written first
    (out / "b").write_bytes(b"of somebody else")
    with pytest.raises(InputError, match="b was changed since"):
        OutputFolder(out, ["a", "b"])
    (out / "b").unlink()
    with (out / MANIFEST).open("ab") as stream:
        stream.write(b'{"file": "c", "sha')  # a torn line
    OutputFolder(out, ["c"]).write("c", b"third")
    OutputFolder(out, ["a", "c"])
    entries = [json.loads(line) for line in (out / MANIFEST).read_bytes().splitlines()
               if line.endswith(b"}")]  # fmt: skip
    assert [entry["file"] for entry in entries] == ["a", "a", "b", "c"]
    assert all(len(entry["sha256"]) == 64 for entry in entries)


def test_threads_write_into_one_folder(tmp_path: Path) -> None:
    out = OutputFolder(tmp_path, [])
    names = [f"masks/{number}.png" for number in range(200)]
    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: out.write(name, name.encode()), names))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    listed = [json.loads(line)["file"] for line in (tmp_path / MANIFEST).read_text().splitlines()]
    assert sorted(listed) == sorted(names)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in names} == {0o640}
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        f"{n}.png" for n in range(200)
    }


def test_what_is_no_folder_or_no_file_is_never_replaced(model: Path, tmp_path: Path) -> None:
    net, file, pipe = zoo.create(model), tmp_path / "notes.txt", tmp_path / "pipe"
    file.write_text("mine")
    os.mkfifo(pipe)
    for path in (file, pipe):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=f"{path} is not a folder; give another place"):
                save_folder(net, path, overwrite=overwrite)
    with pytest.raises(InputError, match=f"{pipe} is a named pipe, not a file"):
        write_text(pipe, "text")
    assert pipe.is_fifo()
    assert file.read_text() == "mine"
    link, away = tmp_path / "link", tmp_path / "away"
    away.mkdir()
    link.symlink_to(away)
    save_folder(net, link)
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "away", "link", "notes.txt", "pipe"
    ]  # fmt: skip
    assert zoo.create(away).spec == net.spec


def test_a_new_folder_replaces_nothing_unasked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"photo")
    with pytest.raises(InputError, match="is not an empty folder"), new_folder(tmp_path / "mine"):
        pass
    net = zoo.create(model)
    with pytest.raises(InputError, match=r"photo\.jpg would be removed"):
        save_folder(net, tmp_path / "mine")
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    save_folder(net, copy)  # saved by zoo, so it may be saved again
    (copy / ".git").mkdir()
    (copy / ".git" / "HEAD").write_text("main")
    with pytest.raises(InputError, match=r"\.git/HEAD would be removed"):
        save_folder(net, copy)
    shutil.rmtree(copy / ".git")
    (copy / "README.md").write_text("My model")
    with pytest.raises(InputError, match=r"README\.md was changed since"):
        save_folder(net, copy)
    assert (copy / "README.md").read_text() == "My model"
    save_folder(net, copy, overwrite=True)


def single_files(data: Path, tmp_path: Path) -> dict[str, tuple[list[object], Path]]:
    """Commands that write one file, and the file."""
    results = tmp_path / "results"
    results.mkdir()
    return {
        "show": (
            ["data", "show", data, "--out", tmp_path / "a.png", "crop=32"],
            tmp_path / "a.png",
        ),
        "doctor": (["doctor", data, "--out", tmp_path], tmp_path / "report.html"),
        "init": (["data", "init", data], data / "dataset.yaml"),
        "split": (["data", "split", data, "--out", tmp_path / "parts"], tmp_path / "parts"),
    }


@pytest.mark.parametrize("verb", ["show", "doctor", "init", "split"])
def test_single_files_of_somebody_else_stay(
    verb: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, file = single_files(data, tmp_path)[verb]
    file.write_bytes(b"mine")
    message = said(capsys, 2, *arguments)
    assert file.name in message
    assert file.read_bytes() == b"mine"
    if verb in ("show", "doctor"):
        file.unlink()
        for _ in range(2):
            said(capsys, 0, *arguments)
        file.write_bytes(b"edited")
        assert f"{file.name} was changed since" in said(capsys, 2, *arguments)
        said(capsys, 0, *arguments, "--overwrite")
        assert len(file.read_bytes()) > 1000


def test_an_image_of_the_data_is_no_place_for_a_figure(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(data)
    out = data / "train" / "images" / "train_0000.png"
    message = said(capsys, 2, "data", "show", data, "crop=32", "--out", out, "--overwrite")
    assert "train_0000.png is an input of this command" in message
    assert contents(data) == before
    message = said(capsys, 2, "data", "show", data, "--out", ".")
    assert ". is a folder; give the name of a file in it" in message


def test_a_leaderboard_replaces_only_leaderboards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results").mkdir()
    asked = ("leaderboard", "build", "--results", tmp_path / "results", "--out", tmp_path)
    said(capsys, 0, *asked)
    said(capsys, 0, *asked)
    (tmp_path / "leaderboard.csv").write_text("rank,team\n1,mine\n")
    message = said(capsys, 2, *asked)
    assert "leaderboard.csv was not written by `zoo leaderboard build`" in message
    assert (tmp_path / "leaderboard.csv").read_text() == "rank,team\n1,mine\n"


def test_broken_images_are_named_at_the_end_and_the_others_are_done(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = data / "val" / "images"
    (images / "val_0001.png").write_bytes((images / "val_0001.png").read_bytes()[:300])
    shutil.copy(images / "val_0000.png", images / "._val_0000.png")
    os.mkfifo(images / "pipe.png")
    (images / "gone.png").symlink_to("nowhere.png")
    out = tmp_path / "seen"
    assert run(["predict", str(model), str(images), "--out", str(out)]) == 1
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == [
        str(out / "masks" / "val_0000.png"),
        str(out / "masks" / "val_0002.png"),
    ]
    assert "1 of 3 images cannot be predicted, the others are done" in printed.err
    assert "val_0001.png cannot be decoded" in printed.err
    assert "Left out, not files" in printed.err
    found = zoo.predict(model, images)
    assert [next(found).image.stem for _ in range(2)] == ["val_0000", "val_0002"]
    with pytest.raises(BrokenImagesError, match=r"1 of 3 images cannot be predicted"):
        next(found)
    with pytest.raises(InputError, match=r"1 of 1 images cannot be predicted:\n"):
        list(zoo.predict(model, images / "val_0001.png"))
    with pytest.raises(InputError, match="is a pipe, a socket or a device, not an image"):
        zoo.predict(model, images / "pipe.png")


def test_outputs_are_never_inputs(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = data / "val" / "images"
    asked = ("predict", model, images, "--out", images / "seen")
    for _ in range(3):
        assert len(said(capsys, 0, *asked).splitlines()) == 3
    other = ("predict", model, images, "--out", images / "other")
    assert len(said(capsys, 0, *other).splitlines()) == 3
    pattern = ("predict", model, f"{images}/**/*.png", "--out", data / "third")
    assert len(said(capsys, 0, *pattern).splitlines()) == 3
    assert len(said(capsys, 0, "predict", model, images / "seen" / "masks", "--out",
                    data / "again").splitlines()) == 3  # fmt: skip


def test_one_file_by_two_paths_is_one_file(
    model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data)
    image = Path("val/images/val_0000.png")
    found = zoo.predict(model, [image, image.absolute(), "val/../val/images/val_0000.png"])
    assert [one.image for one in found] == [image]
    Path("val_0000.png").write_bytes(image.read_bytes())
    with pytest.raises(InputError, match=r"would both be written as val_0000\. Rename one"):
        zoo.predict(model, [image, "val_0000.png"])


def test_strange_names_stay_on_one_line(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = data / "val" / "images" / "val_0000.png"
    for name in ("two\nlines", "a\ttab", "x" * 249):
        shutil.copy(image, tmp_path / f"{name}.png")
    lines = said(capsys, 0, "predict", model, f"{tmp_path}/*.png", "--out", tmp_path / "o")
    masks, overlays = zip(*(line.split("\t") for line in lines.splitlines()), strict=True)
    assert [Path(mask).name[:15] for mask in masks] == ["a\\ttab.png", "two\\nlines.png", "x" * 15]
    assert len(overlays) == 3
    assert (tmp_path / "o" / "masks" / "two\nlines.png").is_file()
    for arguments in (
        ("predict", model, "x" * 5000, "--out", tmp_path / "p"),
        ("predict", model, image, "--out", tmp_path / ("y" * 300)),
        ("eval", "z" * 5000, "--data", data),
        ("data", "show", data, "--out", tmp_path / ("y" * 300 + ".png"), "crop=32"),
    ):
        assert "File name too long" in said(capsys, 2, *arguments)


def test_predict_a_split(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "run" / "best")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"data": {"source": str(data)}}))
    for trained in (tmp_path / "run", tmp_path / "run" / "best"):
        lines = said(capsys, 0, "predict", trained, "--split", "val", "--out", tmp_path / "seen")
        names = [Path(line.split("\t")[0]).name for line in lines.splitlines()]
        assert names == ["val_0000.png", "val_0001.png", "val_0002.png"]
    found = zoo.predict(model, split="test", data=data)
    assert [one.image.stem for one in found] == ["test_0000", "test_0001"]
    for arguments, message in {
        ("--split", "dev"): "Unknown split 'dev'. Available: train, val, test",
        ("--split", "val", data / "val"): "either images or a split (--split), not both",
        ("--data", data): "goes with split= (--split)",
        (): "Nothing to predict",
    }.items():
        asked = ("predict", tmp_path / "run", *arguments, "--out", tmp_path / "no")
        assert message in said(capsys, 2, *asked)
    asked = ("predict", model, "--split", "val", "--out", tmp_path / "no")
    assert "needs a run folder, which knows its data" in said(capsys, 2, *asked)
    data.rename(tmp_path / "moved")
    asked = ("predict", tmp_path / "run", "--split", "val", "--out", tmp_path / "no")
    assert "--data (data=) says where it is now" in said(capsys, 2, *asked)
    said(capsys, 0, *asked, "--data", tmp_path / "moved")


def test_a_pipe_is_not_waited_for(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pipe.json", "pipe.yaml", "pipe.png"):
        os.mkfifo(tmp_path / name)
    results = tmp_path / "results"
    results.mkdir()
    os.mkfifo(results / "pipe.json")
    (results / "._record.json").write_bytes(b"\x00\x05\x16\x07")
    said(capsys, 0, "leaderboard", "build", "--results", results, "--out", tmp_path)
    for arguments in (
        ("data", "show", tmp_path / "pipe.yaml", "--out", tmp_path / "a.png"),
        ("list", "--registry", tmp_path / "pipe.yaml"),
        ("push", model, "org/name", "--dry-run", "--record", tmp_path / "pipe.json"),
        ("push", model, "org/name", "--dry-run", "--picture", tmp_path / "pipe.png"),
    ):
        message = said(capsys, 2, *arguments)
        assert "pipe" in message
        assert "not a file" in message or "neither a folder nor" in message


def test_a_suite_does_not_work_in_folders_of_somebody_else(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "tiny.yaml"
    suite.write_text(
        "version: 1\ntitle: Tiny\nvariants: {base: {encoder_weights: none}}\n"
        f"blocks: [{{title: One, models: [{MODEL}], data: [scenes], variants: [base]}}]\n"
    )
    asked = ("bench", "run", suite, "--data", f"scenes={data}", "--out", tmp_path / "work",
             "--results", tmp_path / "results")  # fmt: skip
    (job,) = orders(read_suite(suite), [f"scenes={data}"], tmp_path / "results")
    mine = tmp_path / "work" / job.job.folder / "run" / "photo.jpg"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"photo")
    assert "holds files but no job.json, so it is not a job folder" in said(capsys, 2, *asked)
    assert mine.read_bytes() == b"photo"
