"""What a run is asked to do: refused before torch is imported, and by a dry run as by the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.training_settings import MODEL

import zoo
from zoo.cli.main import run as command
from zoo.common.errors import InputError
from zoo.registry.recipe import Recipe
from zoo.training.plan import Plan, RunRequest


@pytest.mark.parametrize("call", [zoo.finetune, zoo.find_lr])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"batch_size": 4}, r'overrides=\["batch_size=4"\]'),
        ({"lr": 0.1}, r'overrides=\["optimizer.lr=0.1"\]'),
        ({"flip": 0.1}, r'overrides=\["augment.flip=0.1"\]'),
        (
            {"decoder_channels": [8, 4]},
            r'an option of the model: overrides=\["model.decoder_channels=\[8, 4\]"\]',
        ),
        (
            {"encoder_args": {"patch_size": 32}},
            r'no argument encoder_args; write overrides=\["model.encoder_args.KEY=VALUE"\]',
        ),
        ({"recipes": "cnn"}, "there is no argument recipes; did you mean recipe"),
        ({"model": object()}, "model should be a name, .* got <object object"),
        ({"data": np.zeros(3)}, "data should be .* got a value of the type numpy.ndarray"),
        ({"overrides": "crop=32"}, r"overrides should be a list .*, got 'crop=32' \(str\)"),
        ({"overrides": {"crop": 32}}, r"overrides should be a list .*, got {'crop': 32} \(dict\)"),
        ({"overrides": [("crop", 32)]}, "overrides should be a list such as"),
        ({"recipe": {"crop": 32}}, "recipe should be the name of a recipe"),
        ({"budget": 60}, r'budget should be a text, such as "10m", got 60 \(int\)'),
        ({"out": 3}, r"out should be a folder, got 3 \(int\)"),
        ({"encoder_weights": True}, r'encoder_weights should be "default", .* got True \(bool\)'),
    ],
)
def test_arguments_of_other_types_and_names(call: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(**{"model": MODEL, "data": "nothing", **given})


@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["run", "dry run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--encoder-weights", "imagenet"],
            "encoder_weights='imagenet' does not say which weights",
        ),
        (["--encoder-weights", "no.safetensors"], "no.safetensors does not exist"),
        (["--encoder-weights", "none", "precision=fp16"], "fp16 needs a GPU"),
        (
            ["--encoder-weights", "none", "class_weights=[1, 2]"],
            "has 2 values, scenes has 8 classes",
        ),
        (["--encoder-weights", "none", "loss={query_class: 1}"], "unet does not have"),
        (["--encoder-weights", "none", "fp32_modules=[nothing]"], "nothing"),
        (
            ["--encoder-weights", "none", "model.decoder_chanels=[8]"],
            "unet has no option decoder_chanels. Did you mean decoder_channels",
        ),
        (
            ["--encoder-weights", "none", "model.decoder_channels=[8]"],
            "decoder_channels: should be",
        ),
        (
            ["--encoder-weights", "none", "model.encoder_args.patch_size=8"],
            "patch_size: only plain transformers can be built with other patches",
        ),
        (["--encoder-weights", "none", "model.encoder_args=8"], "encoder_args should be a mapping"),
        (["--encoder-weights", "none", "--track", "tensorbord"], "Did you mean tensorboard"),
        (["--encoder-weights", "none", "--resume"], "has no run to resume"),
        (
            ["--encoder-weights", "none", "stages=[{name: a, epochs: 1, unfreeze_names: [no]}]"],
            "no",
        ),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    how: list[str], arguments: list[str], message: str, scenes: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = ["finetune", MODEL, "--data", str(scenes), "--out", str(tmp_path / "run"), *arguments]
    assert command([*given, "crop=64", *how]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("encoder", "crop", "side"),
    [("test_vit_relpos", 100, 112), ("test_vit_relpos", 96, 96), ("test_resnet", 100, None)],
)
def test_the_encoder_is_built_for_whole_patches(encoder: str, crop: int, side: int | None) -> None:
    recipe = Recipe.model_construct(crop=crop)
    plan = Plan(
        request=RunRequest(model="", data=""), model=f"linear-{encoder}", folder=None,
        dataset=None, recipe=recipe, recipe_name="", usual="", overrides={}, out=Path(),
    )  # fmt: skip
    assert plan.img_size == side
