"""Every kind of file that zoo reads, mutated: a command works or refuses it with one message.

Run with `make fuzz`; `EXAMPLES=1000 make fuzz` tries more of each kind.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.data_folders import random_image, random_mask, save
from helpers.record_examples import counted, speed_record
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from fuzz.mutations import JUNK, mutations
from zoo.bench.suite import read_suite
from zoo.cli.main import run
from zoo.common.errors import ZooError
from zoo.creation.create import create
from zoo.data.inspect.scan import scan_labels
from zoo.data.load import load_dataset
from zoo.data.scenes import write_scenes
from zoo.hub.config import EncoderOnHub
from zoo.hub.folder import make_config, save_folder
from zoo.leaderboard.build import write as write_leaderboard
from zoo.records.image_counts import write_with_counts
from zoo.records.speed import write_speed_record
from zoo.registry.decoders import DECODERS, defaults
from zoo.registry.encoders import ENCODER_ARGS
from zoo.registry.recipe import Recipe
from zoo.training.finetune import finetune

pytestmark = pytest.mark.fuzz
EXAMPLES = int(os.environ.get("EXAMPLES", "100"))
SECONDS = 20
MODEL = "unet-test_resnet"
SETTINGS = ["crop=32", "batch_size=2", "precision=fp32", "stages=[{name: all, epochs: 1}]"]
CLASSES = "version: 1\nclasses: [background, road, car]\n"


@dataclass(frozen=True)
class Kind:
    """A kind of file: how to make a folder with one, which file, and the commands that read it.

    `FOLDER` in a command is the folder with the mutated file, `OUT` a new path.
    """

    make: Callable[[Path], object]
    file: str
    commands: tuple[str, ...]
    must_work: bool = False
    """For a cache: whatever is in the file, the command succeeds."""


def data(folder: Path) -> None:
    """Two splits with two small pairs each, and a dataset.yaml with every simple key."""
    for number, split in enumerate(["train", "train", "val"]):
        save(folder / split / "images" / f"{number}.png", random_image(number, 32, 40))
        save(folder / split / "masks" / f"{number}.png", random_mask(number, 32, 40))
    (folder / "dataset.yaml").write_text(
        "version: 1\n"
        "name: small\n"
        "classes: [background, {name: road, colour: [128, 64, 128]}, car]\n"
        "mapping: {0: 0, 1: 1, 2: 2}\n"
        "ignore: [255]\n"
        "group: '([0-9]+)'\n"
        "channels: 3\n"
        "splits:\n"
        "  train: {images: train/images, masks: train/masks}\n"
        "  val: val\n"
    )


def as_format(suffix: str, side: str, pixels: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        data(folder)
        (folder / "train" / side / "0.png").unlink()
        if suffix == ".npy":
            (folder / "dataset.yaml").write_text(CLASSES + "range: [0, 255]\n")
            np.save(folder / "train" / side / "0.npy", pixels)
        else:
            Image.fromarray(pixels).save(folder / "train" / side / f"0{suffix}")

    return make


def lists(folder: Path) -> None:
    data(folder)
    (folder / "train.csv").write_text(
        "image,mask\ntrain/images/0.png,train/masks/0.png\ntrain/images/1.png,train/masks/1.png\n"
    )
    (folder / "dataset.yaml").write_text(f"{CLASSES}splits: {{train: train.csv, val: val}}\n")


def labelme(folder: Path) -> None:
    save(folder / "photos" / "x.png", random_image(0, 20, 30))
    corners = [[2.0, 2.0], [20.0, 3.0], [10.0, 15.0]]
    shapes = [
        {"label": "road", "points": corners, "shape_type": "polygon"},
        {"label": "car", "points": corners[:2], "shape_type": "rectangle"},
    ]
    content = {"version": "5.4", "shapes": shapes, "imageHeight": 20, "imageWidth": 30}
    (folder / "photos" / "x.json").write_text(json.dumps(content))
    (folder / "dataset.yaml").write_text(
        f"{CLASSES}unlabelled: background\nsplits: {{train: {{labelme: photos}}}}\n"
    )


def coco(folder: Path) -> None:
    save(folder / "photos" / "x.png", random_image(0, 5, 6))
    outline = {"category_id": 1, "image_id": 7, "iscrowd": 0, "area": 4.0}
    counts = {"size": [5, 6], "counts": [6, 2, 3, 2, 17]}
    content = {
        "images": [{"id": 7, "file_name": "x.png", "height": 5, "width": 6}],
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "car"}],
        "annotations": [
            outline | {"id": 1, "segmentation": [[1, 1, 4, 1, 4, 4]]},
            outline | {"id": 2, "category_id": 2, "segmentation": counts},
        ],
    }
    (folder / "a.json").write_text(json.dumps(content))
    (folder / "dataset.yaml").write_text(
        f"{CLASSES}unlabelled: background\n"
        "splits: {train: {coco: {images: photos, annotations: a.json}}}\n"
    )


def overlay(folder: Path) -> None:
    data(folder)
    (folder / "own.yaml").write_text(
        "version: 1\n"
        "encoders:\n"
        "  - where: {name: test_resnet}\n"
        "    mean: [0.5, 0.5, 0.5]\n"
        "    std: [0.5, 0.5, 0.5]\n"
        "    license: apache-2.0\n"
        "recipes:\n"
        "  own:\n"
        "    crop: 64\n"
        "    batch_size: 4\n"
        "    loss: {ce: 1.0, dice: 0.5}\n"
        "    optimizer: {lr: 0.001, weight_decay: 0.01}\n"
        "    augment: {flip: 0.5, scale: [0.5, 2.0]}\n"
        "    stages: [{name: all, epochs: 1}]\n"
        "models:\n"
        "  unet-test_resnet-own: {encoder: test_resnet, recipe: own}\n"
    )


def suite(folder: Path) -> None:
    (folder / "suite.yaml").write_text(
        "version: 1\n"
        "title: Tiny\n"
        "seeds: [0, 1]\n"
        "recipe: scratch\n"
        "common: [crop=64, 'stages=[{name: all, epochs: 2}]']\n"
        "variants:\n"
        "  base: {encoder_weights: none}\n"
        "  short: {encoder_weights: none, set: [ema=null]}\n"
        "blocks:\n"
        "  - {title: All, models: [unet-test_resnet], data: [scenes], variants: [base, short]}\n"
    )
    read_suite(folder / "suite.yaml")


def trained(folder: Path) -> None:
    """A finished run of a few steps on scenes, which lie beside it."""
    scenes = write_scenes(folder / "scenes", train=4, val=2, test=2, size=(64, 80))
    finetune(MODEL, scenes, out=folder / "run", overrides=SETTINGS, encoder_weights=None)


def without_encoder(folder: Path) -> None:
    """A model folder whose config.json says that the encoder lies on the Hub."""
    model = create(MODEL, classes=2, encoder_weights=None)
    save_folder(model, folder / "model")
    spec = model.spec.model_copy(update={"encoder_revision": "0" * 40})
    found = EncoderOnHub(
        repo="org/encoder", revision="0" * 40, file="model.safetensors", sha256="0" * 64,
        tensors_sha256="0" * 64, timm="1.0.31",
    )  # fmt: skip
    config = make_config(spec, None, None, found)
    (folder / "model" / "config.json").write_text(json.dumps(config))


def interrupted(folder: Path) -> None:
    """A run that was stopped between its last checkpoint and its result."""
    trained(folder)
    (folder / "run" / "result.json").unlink()


def records(folder: Path) -> None:
    ours, counts = counted(
        [[30, 10, 0], [5, 55, 0], [0, 0, 9]], [[50, 0, 0], [25, 25, 0], [1, 1, 1]]
    )
    write_with_counts(ours, folder / "results", counts)
    write_speed_record(speed_record(), folder / "speed")
    write_leaderboard(folder / "results", folder, folder / "speed")


def state_dict(folder: Path) -> None:
    trained(folder)
    from zoo.creation.create import create

    torch.save(create(folder / "run").net.state_dict(), folder / "weights.pt")


SHORT = " ".join(map(shlex.quote, SETTINGS))
FINETUNE = f"finetune {MODEL} --data FOLDER --out OUT --encoder-weights none {SHORT}"


def facts(folder: Path) -> None:
    """A data set whose masks and images have been looked at, and what was found, in a cache."""
    data(folder)
    scan_labels(load_dataset(folder))


READ_DATA = ("doctor FOLDER", f"{FINETUNE} --dry-run")
TRAIN = ("doctor FOLDER", FINETUNE)
RUN_COMMANDS = ("report FOLDER/run --out OUT", "eval FOLDER/run --data FOLDER/scenes --split val")
RESUME = FINETUNE.replace("FOLDER", "FOLDER/scenes").replace("OUT", "FOLDER/run") + " --resume"
BOARD = "leaderboard build --results FOLDER/results --speed FOLDER/speed --out OUT"
OVERLAID = (
    "show unet-test_resnet-own --registry FOLDER/own.yaml",
    "list unet-test* --registry FOLDER/own.yaml",
    "finetune unet-test_resnet-own --data FOLDER --out OUT --registry FOLDER/own.yaml "
    "--encoder-weights none --dry-run",
)
IMAGE, MASK = random_image(7, 32, 40), random_mask(7, 32, 40)


def images(side: str, suffix: str, pixels: np.ndarray[Any, Any]) -> Kind:
    return Kind(as_format(suffix, side, pixels), f"train/{side}/0{suffix}", TRAIN)


KINDS: dict[str, Kind] = {
    "dataset.yaml": Kind(data, "dataset.yaml", READ_DATA),
    "list.csv": Kind(lists, "train.csv", READ_DATA),
    "labelme": Kind(
        labelme, "photos/x.json", ("doctor FOLDER", "data init FOLDER --out OUT/dataset.yaml")
    ),
    "coco": Kind(coco, "a.json", ("doctor FOLDER", "data init FOLDER --out OUT/dataset.yaml")),
    "overlay": Kind(overlay, "own.yaml", OVERLAID),
    "suite": Kind(suite, "suite.yaml", ("bench status FOLDER/suite.yaml --results FOLDER/none",)),
    "record": Kind(records, "results/*.json", (BOARD,)),
    "counts": Kind(records, "results/*.npz", (BOARD,)),
    "speed": Kind(records, "speed/*.json", (BOARD,)),
    "config.json": Kind(trained, "run/best/config.json", (*RUN_COMMANDS, "show FOLDER/run")),
    "encoder_on_hub": Kind(without_encoder, "model/config.json", ("show FOLDER/model",)),
    "weights": Kind(trained, "run/best/model.safetensors", RUN_COMMANDS[1:]),
    "run.json": Kind(interrupted, "run/run.json", (*RUN_COMMANDS[1:], RESUME)),
    "result.json": Kind(trained, "run/result.json", RUN_COMMANDS),
    "log": Kind(interrupted, "run/log.jsonl", (RESUME,)),
    "checkpoint": Kind(interrupted, "run/checkpoint.pt", (RESUME,)),
    "import": Kind(
        state_dict,
        "weights.pt",
        ("import FOLDER/weights.pt --model unet-test_resnet --classes 8 --out OUT",),
    ),
    "facts": Kind(
        facts, "cache/scan/*.sqlite", (f"{FINETUNE} class_weights=median",), must_work=True
    ),
    "scenes.json": Kind(trained, "scenes/scenes.json", (RUN_COMMANDS[1],)),
    **{f"image{kind}": images("images", kind, IMAGE) for kind in (".png", ".jpg", ".tif", ".npy")},
    **{f"mask{kind}": images("masks", kind, MASK) for kind in (".png", ".tif", ".bmp", ".gif")},
}


@cache
def example(make: Callable[[Path], object], folder: Path) -> Path:
    """What `make` writes into `folder`, moved away to be copied back for every mutation."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make(folder)
    return folder.rename(folder.with_name(f"{make.__name__}-{id(make)}"))


@contextmanager
def time_limit() -> Iterator[None]:
    """TimeoutError after SECONDS."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_work_or_are_refused_with_one_message(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = KINDS[name]
    base = tmp_path_factory.getbasetemp()
    folder, out = base / "mutated", base / "out"
    monkeypatch.setenv("ZOO_CACHE", str(folder / "cache"))
    valid = example(kind.make, folder)
    [file] = sorted(valid.glob(kind.file))[:1]
    codes: dict[int, int] = {}
    faults: dict[str, str] = {}

    def use(command: str, content: bytes | None = None) -> tuple[int, str]:
        """The exit code of a command on a copy of the valid folder, and what it printed."""
        for path in (folder, out):
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        shutil.copytree(valid, folder)
        if content is not None:
            (folder / file.relative_to(valid)).write_bytes(content)
        words = command.replace("FOLDER", str(folder)).replace("OUT", str(out))
        printed = io.StringIO()
        with time_limit(), redirect_stdout(printed), redirect_stderr(printed):
            return run(shlex.split(words)), printed.getvalue()

    for command in kind.commands:
        code, said = use(command)
        assert code == 0, f"{command} on a valid file: {said}"

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(file.read_bytes(), file.suffix), st.sampled_from(kind.commands))
    def one(content: bytes, command: str) -> None:
        try:
            code, said = use(command, content)
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {last.filename}:{last.lineno}"
            faults.setdefault(place, f"{command}\n{content[:2000]!r}\n{error!r:.500}")
            return
        codes[code] = codes.get(code, 0) + 1
        allowed = (0,) if kind.must_work else (0, 1, 2)
        if code not in allowed or "Traceback" in said or (code and not said.strip()):
            faults.setdefault(f"{command}: {code}", f"{content[:2000]!r}\n{said[-2000:]}")

    one()
    sys.stdout.write(f"{name}: exit codes {codes}\n")
    assert not faults, "\n\n".join(f"{place}\n{fault}" for place, fault in faults.items())


KEYS = sorted(Recipe.model_fields)


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    data(folder)
    return folder


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(KEYS), st.one_of(JUNK.map(json.dumps), st.text(max_size=20)))
def test_recipe_values_of_the_command_line_work_or_are_refused(
    small_data: Path, key: str, value: str
) -> None:
    words = ["finetune", MODEL, "--data", str(small_data), "--out", str(small_data / "run")]
    printed = io.StringIO()
    with time_limit(), redirect_stdout(printed), redirect_stderr(printed):
        code = run([*words, "--encoder-weights", "none", "--dry-run", f"{key}={value}"])
    assert code in (0, 2)
    assert printed.getvalue().strip()


ARGUMENTS = (
    "model", "classes", "in_chans", "img_size", "palette",
    "encoder_weights", "weights", "license", "registry",
    *sorted({name for decoder in DECODERS for name in defaults(decoder)} | ENCODER_ARGS),
)  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(set(DECODERS) - {"dpt", "eomt", "pmt"})),
    st.sampled_from(ARGUMENTS),
    st.one_of(JUNK, JUNK.map(np.array), st.frozensets(st.integers()), st.binary(max_size=4)),
)
def test_arguments_of_create_work_or_are_refused(decoder: str, name: str, value: Any) -> None:
    given: dict[str, Any] = {"model": f"{decoder}-test_resnet", "encoder_weights": None}
    with time_limit(), suppress(ZooError):
        create(**given | {name: value})
