"""What a resumed run may change, and what it says where it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_runs import SETTINGS, logged, without_batch_norm

from zoo.common.errors import InputError
from zoo.training.engine import trainer
from zoo.training.engine.checkpoint import (
    Progress,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from zoo.training.finetune import finetune
from zoo.training.plan import CHECKPOINT

STOP = 3


class Killed(BaseException):
    """Stands for a kill: nothing is cleaned up or saved."""


@pytest.fixture(scope="module")
def model(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_batch_norm(scenes, tmp_path_factory.mktemp("start") / "model")


def run(model: Path, scenes: Path, out: Path, *more: str, **options: Any) -> Any:
    overrides = [*SETTINGS, *more]
    return finetune(model, scenes, recipe="scratch", out=out, overrides=overrides, **options)


@pytest.fixture
def killed(model: Path, scenes: Path, tmp_path: Path) -> Path:
    """A run that was killed in its third step, after the checkpoint of the first epoch."""
    real = trainer.Trainer._update

    def update(self: Any, *batch: Any) -> float:
        if self.progress.step == STOP - 1:
            raise Killed
        return real(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_update", update)
        with pytest.raises(Killed):
            run(model, scenes, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.long
def test_a_resumed_run_may_take_fewer_images_at_a_time(
    killed: Path, model: Path, scenes: Path, tmp_path: Path
) -> None:
    run(model, scenes, tmp_path / "straight")
    run(model, scenes, killed, "micro_batch=2", "checkpoint_minutes=1", resume=True)
    assert load_checkpoint(killed)[1].micro_batch == 2
    wanted = logged(tmp_path / "straight", "step", "loss")
    assert logged(killed, "step", "loss") == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("clip_norm=1.0", "recipe.clip_norm: the run has null, now it is 1.0"),
        ("crop=32", "recipe.crop: the run has 64, now it is 32"),
        ("classes", "data.classes: the run has "),
        ("image", "data.hash.train: the run has "),
    ],
)
def test_a_resume_with_something_else_names_the_field_and_what_is_free(
    change: str, field: str, killed: Path, model: Path, scenes: Path, tmp_path: Path
) -> None:
    data, overrides = scenes, [o for o in SETTINGS if not change.startswith(o.split("=")[0])]
    if "=" in change:
        overrides.append(change)
    else:
        data = changed_data(scenes, tmp_path / "other", change)
    with pytest.raises(InputError) as caught:
        finetune(
            model, data, recipe="scratch", out=killed, overrides=overrides, resume=True,
            new_head=True,
        )  # fmt: skip
    text = str(caught.value)
    assert field in text
    assert "only workers, checkpoint_minutes, micro_batch" in text
    assert "or give another --out" in text


def changed_data(scenes: Path, other: Path, change: str) -> Path:
    import shutil

    from PIL import Image

    shutil.copytree(scenes, other)
    if change == "classes":
        text = (other / "dataset.yaml").read_text()
        (other / "dataset.yaml").write_text(text.replace("name: sky", "name: heaven"))
    else:
        first = next((other / "train" / "images").iterdir())
        with Image.open(first) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(first)
    return other


def test_random_numbers_go_on() -> None:
    before = random_state()
    first = torch.rand(3)
    set_random_state(before)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("scaler", "it holds no scaler"),
        ("progress.micro_batch", "it holds no progress.micro_batch"),
        ("progress", "it holds no progress."),
        ("all", "it holds no model, ema, optimizer, scaler, plateau, random, progress"),
        ("newer", "it holds progress.rounds, which this version does not know"),
    ],
)
def test_a_checkpoint_of_another_version_names_what_it_lacks(
    lacking: str, said: str, tmp_path: Path
) -> None:
    parts = dict.fromkeys(("model", "ema", "optimizer", "scaler", "plateau", "random"), None)
    save_checkpoint(tmp_path, parts, Progress(step=3))
    assert load_checkpoint(tmp_path)[1].step == 3
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    part, _, name = lacking.partition(".")
    if name:
        del content[part][name]
    elif lacking == "newer":
        content["progress"]["rounds"] = 1
    elif lacking == "all":
        content = [1, 2]
    else:
        del content[part]
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="was written by another version of zoo") as caught:
        load_checkpoint(tmp_path)
    assert said in str(caught.value)
    assert "start a new run with another --out" in str(caught.value)
