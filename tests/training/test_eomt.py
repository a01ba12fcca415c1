"""Training with mask queries: accumulation, resume, and what it learns against a linear head."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers.engine_runs import logged
from safetensors.torch import save_file

from zoo.cli.main import run
from zoo.creation.create import create
from zoo.data.scenes import CLASSES, scene, write_scenes
from zoo.evaluation.counts import Confusion
from zoo.hub.folder import load_folder
from zoo.models.mask_transformer import MaskTransformer
from zoo.models.segmentation import normalise
from zoo.training.engine import trainer
from zoo.training.losses import Objective

PAPER = {"query_class": 2.0, "query_mask": 5.0, "query_dice": 5.0}
STEPS, BATCH = 150, 8


@pytest.fixture
def small_scenes(tmp_path: Path) -> Path:
    """Eight images to train on, four steps of two epochs."""
    return write_scenes(tmp_path / "scenes", train=8, val=2, test=1, size=(64, 64))


def scenes(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = [scene(index, split, 0, (64, 64)) for index in range(count)]
    images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.copy()), torch.from_numpy(np.stack([m for _, m in drawn]))


def learned_miou(name: str, loss: dict[str, float], seed: int) -> float:
    """Validation mIoU after the same steps on the same batches."""
    torch.manual_seed(seed)
    options = {"queries": 24, "blocks": 3} if name.startswith("eomt") else {}
    model = create(name, classes=CLASSES, encoder_weights=None, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
    objective = Objective(loss)
    images, masks = scenes("train", 32)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for step in range(STEPS):
        chosen = torch.randint(0, len(images), (BATCH,), generator=order)
        model.on_step(step / STEPS)
        inputs = normalise(images[chosen], model.spec, "cpu")
        objective(model.training_outputs(inputs), masks[chosen]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    images, masks = scenes("val", 16)
    confusion = Confusion(len(CLASSES))
    with torch.no_grad():
        predicted = model.eval()(normalise(images, model.spec, "cpu")).argmax(dim=1)
    confusion.add(masks, predicted)
    return confusion.miou


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_it_learns_scenes_better_than_a_linear_head_in_the_same_steps(seed: int) -> None:
    queries = learned_miou("eomt-test_vit", PAPER, seed)
    linear = learned_miou("linear-test_vit", {"ce": 1.0}, seed)
    assert queries > linear + 0.02


def arguments(data: Path, out: Path) -> list[str]:
    """Two epochs of two steps, images of a batch in two parts."""
    return [
        "finetune", "eomt-test_vit", "--data", str(data), "--encoder-weights", "none",
        "--recipe", "eomt", "--out", str(out), "crop=64", "batch_size=4", "micro_batch=2",
        "workers=0", "precision=fp32", "stages=[{name: all, epochs: 2}]",
    ]  # fmt: skip


def test_a_run_gives_up_masked_attention_and_keeps_a_model_that_scores_pixels(
    small_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(MaskTransformer, "on_step", lambda _, progress: seen.append(progress))
    assert run(arguments(small_scenes, tmp_path / "run")) == 0
    assert seen == [0.0, 0.25, 0.5, 0.75]
    model = load_folder(tmp_path / "run" / "best").eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 80)).shape == (1, len(CLASSES), 64, 80)


def test_a_resumed_run_draws_and_learns_as_one_that_never_stopped(
    small_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert run(arguments(small_scenes, straight)) == 0
    real = trainer.Trainer._update

    def update(self: trainer.Trainer, *batch: torch.Tensor) -> float:
        if self.progress.step == 2:
            raise KeyboardInterrupt
        return real(self, *batch)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "_update", update)
        run(arguments(small_scenes, stopped))
    assert len(logged(stopped, "step", "loss")) == 2
    assert run([*arguments(small_scenes, stopped), "--resume"]) == 0
    assert logged(stopped, "step", "loss") == logged(straight, "step", "loss")
    assert len(logged(straight, "step", "loss")) == 4


@pytest.mark.parametrize(
    ("more", "frozen"),
    [
        (["stages.decoder.epochs=2"], True),
        (["stages.decoder.epochs=2", "feature_views=2"], True),
        (["stages.decoder.epochs=1", "stages.decoder.unfreeze=1.0"], False),
    ],
)
def test_the_recipe_of_pmt_leaves_every_bit_of_the_encoder_unless_asked(
    small_scenes: Path, tmp_path: Path, more: list[str], frozen: bool
) -> None:
    state = timm.create_model("test_vit").state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    asked = [
        "finetune", "pmt-test_vit", "--data", str(small_scenes), "--out", str(tmp_path / "run"),
        "--encoder-weights", str(tmp_path / "vit.safetensors"), "crop=64", "batch_size=4",
        "workers=0", "precision=fp32", *more,
    ]  # fmt: skip
    assert run(asked) == 0
    encoder = load_folder(tmp_path / "run" / "best").net.encoder.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.items()) is frozen
