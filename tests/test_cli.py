"""The command line: what it prints, where, and with which exit code."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli.main import run
from zoo.data.scenes import write_scenes
from zoo.training.finetune import finetune

MODEL = "unet-test_resnet"
SHORT = ["crop=64", "batch_size=4", "precision=fp32", "stages=[{name: all, epochs: 1}]"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(folder, train=4, val=2, test=2, size=(64, 80))


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    finetune(MODEL, scenes, out=out, overrides=SHORT, encoder_weights=None)
    return out


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    """Run a command that must fail with `code`, one message and nothing on stdout."""
    assert run([str(argument) for argument in arguments]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    return " ".join(printed.err.split())


def prints(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must work and return its stdout."""
    code = run([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert prints(capsys, "--version") == f"zoo {zoo.__version__}\n"


def test_list_prints_names_only(capsys: pytest.CaptureFixture[str]) -> None:
    names = prints(capsys, "list", "unet-resnet1*").splitlines()
    assert names[0] == "unet-resnet10t"
    assert "unet-resnet18" in names
    assert names.index("unet-resnet18") < names.index("unet-resnet101")
    assert json.loads(prints(capsys, "list", "unet-resnet18", "--json")) == ["unet-resnet18"]


def test_list_by_decoder_and_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    out = prints(capsys, "list", "--decoder", "fpn", "--encoder", "vgg16*")
    assert out.splitlines() == ["fpn-vgg16", "fpn-vgg16_bn"]


def test_show_says_where_values_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(prints(capsys, "show", "unet-resnet18", "--json"))
    origins = {row["key"]: row["origin"] for row in rows}
    assert "registry.yaml" in origins["recipe"]
    assert "resnet18" in prints(capsys, "show", "unet-resnet18")


def test_show_reads_what_a_trained_model_says(
    capsys: pytest.CaptureFixture[str], trained: Path, tmp_path: Path
) -> None:
    rows = {row["key"]: row for row in json.loads(prints(capsys, "show", trained, "--json"))}
    config = json.loads((trained / "best" / "config.json").read_text())["_zoo"]
    assert rows["classes"] == {
        "key": "classes", "value": config["spec"]["classes"], "origin": "config.json",
    }  # fmt: skip
    assert rows["training.recipe_hash"]["value"] == config["training"]["recipe_hash"]
    assert run(["show", str(tmp_path)]) == 2
    assert "is not a model folder: it holds no config.json" in capsys.readouterr().err


def test_finetune_eval_predict_report(
    capsys: pytest.CaptureFixture[str], scenes: Path, trained: Path, tmp_path: Path
) -> None:
    table = prints(capsys, "eval", trained, "--data", scenes)
    assert "mIoU" in table
    assert "pavement" in table
    metrics = json.loads(prints(capsys, "eval", trained, "--data", scenes, "--json"))
    assert 0 <= metrics["miou"] <= 1
    assert len(metrics["iou_per_class"]) == 8
    lines = prints(
        capsys, "predict", trained, scenes / "test" / "images", "--out", tmp_path / "seen"
    ).splitlines()
    assert len(lines) == 2
    mask, picture = (Path(part) for part in lines[0].split("\t"))
    assert np.asarray(Image.open(mask)).shape == (64, 80)
    assert np.asarray(Image.open(mask)).max() < 8
    assert Image.open(picture).width >= 80
    page = Path(prints(capsys, "report", trained, "--out", tmp_path / "page.html").strip())
    assert "<svg" in page.read_text()


def test_eval_writes_a_record_that_the_leaderboard_shows(
    capsys: pytest.CaptureFixture[str], scenes: Path, trained: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    prints(capsys, "eval", trained, "--data", scenes, "--out", results)
    assert len(list(results.glob("*.json"))) == len(list(results.glob("*.images.npz"))) == 1
    build = ["leaderboard", "build", "--results", results, "--out", tmp_path]
    written = prints(capsys, *build).splitlines()
    suffixes = [Path(line).name.removeprefix("leaderboard") for line in written]
    assert suffixes == [".md", ".csv", ".json", ".html"]
    table = (tmp_path / "leaderboard.csv").read_text().splitlines()
    (row,) = csv.DictReader(table[1:])
    assert float(row["miou_images95"]) > 0  # the counts per image were read
    assert MODEL in (tmp_path / "leaderboard.md").read_text()
    prints(capsys, *build, "--check")
    (tmp_path / "leaderboard.md").write_text("edited")
    assert "differs from the records" in fails(capsys, 2, *build, "--check")


def test_a_record_of_the_choosing_split_is_refused(
    capsys: pytest.CaptureFixture[str], scenes: Path, trained: Path, tmp_path: Path
) -> None:
    assert "mIoU" in prints(capsys, "eval", trained, "--data", scenes, "--split", "val")
    out = ["--split", "val", "--out", tmp_path / "results"]
    assert "chose the best epoch" in fails(capsys, 2, "eval", trained, "--data", scenes, *out)
    assert not (tmp_path / "results").exists()


def test_dry_run_prints_the_stages_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = prints(capsys, "finetune", "unet-resnet18", "--data", scenes, "--dry-run")
    head = next(line.split() for line in out.splitlines() if line.startswith("head"))
    assert head[2:5] == ["0", "of", "9"]
    assert "frozen" in head
    assert list(tmp_path.iterdir()) == []


def test_help_of_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    out = prints(capsys, "--help")
    for verb in ("list", "show", "finetune", "eval", "predict", "report", "quickstart"):
        assert verb in out
        assert prints(capsys, verb, "--help")


def test_python_m_zoo() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "list", "unet-resnet18"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "unet-resnet18\n")
    assert done.stderr == "1 model\n"


def test_an_unwritable_place_is_one_message(
    capsys: pytest.CaptureFixture[str], scenes: Path, trained: Path, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    image = scenes / "test" / "images"
    message = fails(capsys, 2, "predict", trained, image, "--out", blocked / "x")
    assert message == f"zoo: {blocked} is not a folder; give another place for the output."
    message = fails(
        capsys, 1, "finetune", MODEL, "--data", scenes, "--encoder-weights", "none",
        "--out", blocked / "run", *SHORT,
    )  # fmt: skip
    assert "Cannot write" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "unett-resnet18"], "Did you mean unet"),
        (["show", "unet-resnet181"], "Did you mean resnet18"),
        (["show", "unetresnet18"], "A name is <decoder>-<encoder>"),
        (["list", "--decoder", "pspnett"], "Did you mean pspnet"),
        (["list", "--registry", "gone.yaml"], "gone.yaml"),
        (["eval", "nowhere/run", "--data", "x"], "There is no folder nowhere/run"),
        (
            ["eval", MODEL, "--data", "x"],
            "names an architecture, whose segmentation head is",
        ),
        (["predict", "nowhere/run", "a.png", "--out", "o"], "There is no folder nowhere/run"),
        (["report", "."], "run"),
        (["finetune", MODEL, "--data", "nowhere"], "nowhere does not exist"),
        (["finetune", MODEL, "--data", "camvid:nowhere"], "nowhere"),
        (["finetune", MODEL, "--data", "imagenet:x"], "imagenet"),
        (["eval"], "Missing argument"),
        (["frobnicate"], "No such command"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, 2, *arguments)
    assert list(tmp_path.iterdir()) == []


def copy_with_fault(scenes: Path, place: Path, fault: str) -> Path:
    """The data set with one mask or image of train replaced by something broken."""
    data = write_scenes(place / "data", train=4, val=2, test=2, size=(64, 80))
    mask = data / "train" / "masks" / "train_0002.png"
    image = data / "train" / "images" / "train_0002.png"
    if fault == "id":
        Image.fromarray(np.full((64, 80), 77, np.uint8)).save(mask)
    elif fault == "rgb":
        Image.fromarray(np.zeros((64, 80, 3), np.uint8)).save(mask)
    elif fault == "size":
        Image.fromarray(np.zeros((64, 81), np.uint8)).save(mask)
    elif fault == "truncated":
        image.write_bytes(image.read_bytes()[:2000])
    elif fault == "unpaired":
        mask.unlink()
    elif fault == "empty":
        for file in (data / "train" / "images").iterdir():
            file.unlink()
    return data


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("id", "77"),
        ("rgb", "RGB"),
        ("size", "81"),
        ("truncated", "train_0002.png"),
        ("unpaired", "train_0002"),
        ("empty", "images"),
    ],
)
def test_faults_in_the_data_stop_a_run_before_it_starts(
    fault: str, message: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = copy_with_fault(scenes, tmp_path, fault)
    out = tmp_path / "run"
    printed = fails(
        capsys, 2, "finetune", MODEL, "--data", data, "--encoder-weights", "none", "--out", out,
        *SHORT,
    )  # fmt: skip
    assert message in printed
    assert fault == "empty" or "train_0002" in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batchsize=3", "batch_size"),
        ("batch_size=many", "batch_size"),
        ("stages.hed.epochs=3", "stages.hed"),
        ("loss={dise: 1}", "dice"),
        ("crop=100", "crop"),
        ("nonsense", "key=value"),
    ],
)
def test_wrong_overrides(
    override: str, message: str, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune", MODEL, "--data", scenes, "--encoder-weights", "none", override]
    assert message in fails(capsys, 2, *arguments)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_broken_model_folder(
    name: str, trained: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (trained / "best").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    assert name in fails(capsys, 2, "eval", folder, "--data", scenes)
    (folder / name).unlink()
    assert f"holds no {name}" in fails(capsys, 2, "eval", folder, "--data", scenes)


def test_images_of_four_16_bit_channels_from_training_to_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (tmp_path / "data" / split / part).mkdir(parents=True)
        for index in range(2):
            pixels = generator.integers(0, 4096, (64, 64, 4), dtype=np.uint16)
            np.save(tmp_path / "data" / split / "images" / f"{index}.npy", pixels)
            mask = Image.fromarray((pixels[:, :, 3] > 2047).astype(np.uint8))
            mask.save(tmp_path / "data" / split / "masks" / f"{index}.png")
    (tmp_path / "data" / "dataset.yaml").write_text(
        "version: 1\nclasses: [low, high]\nchannels: 4\nrange: [0, 4095]\nignore: 255\n"
    )
    run = tmp_path / "run"
    overrides = ["crop=64", "batch_size=2", "precision=fp32", "stages=[{name: all, epochs: 1}]"]
    finetune(MODEL, tmp_path / "data", out=run, overrides=overrides, encoder_weights=None)
    image = tmp_path / "data" / "val" / "images" / "0.npy"
    prints(capsys, "predict", run, image, "--out", tmp_path / "seen")
    assert np.asarray(Image.open(tmp_path / "seen" / "masks" / "0.png")).shape == (64, 64)
    other = tmp_path / "data" / "dataset.yaml"
    other.write_text(other.read_text().replace("4095", "65535"))
    message = fails(capsys, 2, "eval", run, "--data", tmp_path / "data", "--split", "val")
    assert "range (0.0, 4095.0)" in message
    assert "(0.0, 65535.0)" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "no/run", "--data", "DATA"], "There is no folder no/run."),
        (["eval", "unet-resnet18", "--data", "DATA"], "unet-resnet18 names an architecture"),
        (["eval", ".", "--data", "no/data"], "no/data does not exist."),
        (["eval", ".", "--data", "DATA", "--split", "tset"], "Unknown split 'tset'."),
        (["eval", ".", "--data", "DATA", "--precision", "fp31"], "Unknown precision 'fp31'."),
        (["predict", "no/run", "x.png", "--out", "o"], "There is no folder no/run."),
        (["predict", ".", "no.png", "--out", "o"], "no.png is not an image"),
    ],
)
def test_a_typo_is_said_before_torch_is_imported(
    scenes: Path, arguments: list[str], message: str
) -> None:
    words = [str(scenes) if word == "DATA" else word for word in arguments]
    code = (
        "import sys; from zoo.cli.main import run; code = run(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
