"""One step of training: parts of a batch, number formats, memory."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_runs import SETTINGS, largest_difference, logged, without_batch_norm
from torch import Tensor, nn

from zoo.common.errors import InputError, RunError
from zoo.creation.create import create
from zoo.models.layers import train_mode
from zoo.models.norms import single_values_recomputed
from zoo.models.regularise import apply_recipe
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.registry.recipe import Recipe
from zoo.runtime.processes import Ranks, start_ranks
from zoo.training.engine.checkpoint import load_checkpoint
from zoo.training.engine.features import TrainingNet
from zoo.training.engine.placement import checkpoint_activations
from zoo.training.engine.step import Step, out_of_memory
from zoo.training.finetune import check_batch_size, finetune
from zoo.training.losses import Objective

CLASSES = 3
LACK = "[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory"


def recipe(**values: Any) -> Recipe:
    stages = [{"name": "all", "epochs": 1}]
    start = {"optimizer": {"lr": 0.1}, "batch_size": 5, "crop": 32, "stages": stages}
    return Recipe.model_validate(start | values)


@functools.cache
def _built(name: str) -> SegmentationModel:
    torch.manual_seed(0)
    return create(name, classes=CLASSES, encoder_weights=None).train()


def net(name: str = "fpn-test_convnext", dropout: float = 0.0) -> SegmentationModel:
    """A model in training mode, always the same; the default has no BatchNorm."""
    model = copy.deepcopy(_built(name))
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = dropout
    return model


def batch(count: int = 5) -> tuple[Tensor, Tensor]:
    """Images and masks; the ignored share of a mask differs from image to image."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    masks = torch.randint(0, CLASSES, (count, 32, 32), generator=generator, dtype=torch.uint8)
    for index in range(count):
        masks[index, : 6 * index] = 255
    return images, masks


def step(model: SegmentationModel, objective: Objective, precision: str = "fp32", **values: Any):  # type: ignore[no-untyped-def]
    """A step whose update is minus the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    made = Step(model, objective, optimizer, Ranks(), recipe(**values), precision)
    made.prepare()
    return made


def updates(model: SegmentationModel, **values: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and update of every weight in one step; `loss` and other keys of a recipe."""
    asked = recipe(**values)
    weights = torch.tensor([0.5, 1.0, 2.0])
    objective = Objective(asked.loss, asked.loss_options, weights, asked.activation)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    value = step(model, objective, **values)(*batch())
    return value, {name: (p.detach() - before[name]) for name, p in model.named_parameters()}


LOSSES = [
    {"ce": 1.0}, {"focal": 1.0}, {"ohem": 1.0}, {"boundary": 1.0}, {"lovasz": 1.0},
    {"dice": 1.0}, {"jaccard": 1.0}, {"tversky": 1.0}, {"ce": 0.7, "dice": 1.3},
]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "activation"),
    [*((loss, "softmax") for loss in LOSSES), (LOSSES[-1], "sigmoid"), ({"ohem": 1.0}, "sigmoid")],
)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(
    loss: dict[str, float], activation: str
) -> None:
    whole, gradient = updates(net(), loss=loss, activation=activation)
    scale = max(float(g.abs().max()) for g in gradient.values())
    assert scale > 1e-4
    value, parts = updates(net(), loss=loss, activation=activation, micro_batch=2)  # 2 + 2 + 1
    assert value == pytest.approx(whole, rel=1e-5)
    worst = max(float((parts[name] - gradient[name]).abs().max()) for name in parts)
    assert worst < 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_parts_give_the_whole_where_batch_norm_does_not_learn(norm: str) -> None:
    """And not where it does, since each part then has statistics of its own."""

    def model(batch_norm: str) -> SegmentationModel:
        made = net("unet-test_resnet")
        apply_recipe(made, recipe(batch_norm=batch_norm))
        train_mode(made, frozen_statistics=batch_norm == "frozen")
        return made

    def worst(batch_norm: str) -> float:
        whole, parts = (
            updates(model(batch_norm), loss={"ce": 1.0, "dice": 1.0}, micro_batch=size)[1]
            for size in (None, 3)
        )
        scale = max(float(change.abs().max()) for change in whole.values())
        return max(float((parts[name] - whole[name]).abs().max()) for name in whole) / scale

    assert worst(norm) < 1e-4
    assert worst("train") > 1e-2


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_clipping_bounds_the_norm_of_the_whole_update(micro_batch: int | None) -> None:
    free = updates(net(), micro_batch=micro_batch)[1]
    clipped = updates(net(), micro_batch=micro_batch, clip_norm=0.01)[1]
    loose = updates(net(), micro_batch=micro_batch, clip_norm=1e6)[1]
    norm = math.sqrt(sum(float(change.square().sum()) for change in free.values()))
    assert norm > 0.02
    for name, change in free.items():
        assert torch.allclose(clipped[name], change * 0.01 / norm, atol=1e-7), name
        assert torch.allclose(loose[name], change, atol=1e-7), name


def test_the_mean_of_the_parts_would_be_wrong() -> None:
    """Parts with few judged pixels would count too much; the test above sees that."""
    model, objective = net(), Objective({"ce": 1.0})
    images, masks = batch()
    inputs = normalise(images, model.spec, "cpu")
    with torch.no_grad():
        whole = objective(model(inputs), masks)
        parts = [objective(model(inputs[i : i + 1]), masks[i : i + 1]) for i in range(5)]
    assert abs(float(torch.stack(parts).mean() - whole)) > 1e-4


@pytest.mark.parametrize("loss", [{"ce": 1.0}, {"dice": 1.0}])
def test_both_passes_over_the_parts_drop_the_same_units(loss: dict[str, float]) -> None:
    model, reference = net(dropout=0.5), net(dropout=0.5)
    images, masks = batch()
    torch.manual_seed(7)
    logits = torch.cat(
        [reference(normalise(images[i : i + 2], model.spec, "cpu")) for i in (0, 2, 4)]
    )
    wanted = Objective(loss)(logits, masks)
    wanted.backward()
    torch.manual_seed(7)
    value = step(model, Objective(loss), micro_batch=2)(images, masks)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-5)
    for (name, moved), (_, start) in zip(
        model.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert start.grad is not None
        assert torch.allclose(start.detach() - start.grad, moved, atol=1e-5), name


@pytest.mark.parametrize("loss", [{"ce": 1.0}, {"dice": 1.0}])
def test_running_statistics_move_once_a_part(loss: dict[str, float]) -> None:
    model = net("unet-test_resnet")
    step(model, Objective(loss), micro_batch=2)(*batch(6))
    counts = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counts) > 5
    assert {int(count) for count in counts} == {3}


def test_a_loss_that_is_not_finite_leaves_the_weights() -> None:
    for micro_batch in (None, 2):
        model = net()
        with torch.no_grad():
            next(model.net.segmentation_head.parameters()).fill_(float("nan"))
        before = [p.detach().clone() for p in model.parameters()]
        value = step(model, Objective({"ce": 1.0}), micro_batch=micro_batch)(*batch())
        assert math.isnan(value)
        assert all(
            torch.equal(a, b.detach()) or a.isnan().any()
            for a, b in zip(before, model.parameters(), strict=True)
        )


def test_batch_norm_with_one_value_says_what_to_set() -> None:
    made = step(net("unet-test_resnet"), Objective({"ce": 1.0}), micro_batch=1)
    with pytest.raises(RunError, match=r"single value per channel with 1 image.*batch_norm=frozen"):
        made(*batch())


def too_large(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Forward passes of more than `most` images fail at their end; returns what was tried."""
    tried: list[int] = []
    real = TrainingNet.forward

    def forward(self: TrainingNet, images: Tensor) -> Any:
        tried.append(len(images))
        outputs = real(self, images)
        if len(images) > most:
            raise RuntimeError(LACK)
        return outputs

    monkeypatch.setattr(TrainingNet, "forward", forward)
    return tried


@pytest.mark.long
def test_a_batch_that_does_not_fit_is_halved(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BatchNorm learns here: what the failed attempts moved must be moved back."""
    start = {"recipe": "scratch", "encoder_weights": None}
    changes = ["loss={ce: 1.0, dice: 1.0}", "micro_batch=1"]
    finetune(
        "fpn-test_resnet", scenes, out=tmp_path / "small", overrides=[*SETTINGS, *changes], **start
    )
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        tried = too_large(patch, 1)
        finetune(
            "fpn-test_resnet", scenes, out=tmp_path / "run",
            overrides=[*SETTINGS, changes[0]], **start,
        )  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert tried[:3] == [4, 2, 1]
    assert tried.count(4) == 1
    assert "4 images at a time do not fit into memory; continuing with micro_batch=2" in said
    assert "2 images at a time do not fit into memory; continuing with micro_batch=1" in said
    assert logged(tmp_path / "run", "step", "loss") == logged(tmp_path / "small", "step", "loss")
    for part in ("model", "ema"):
        assert largest_difference(tmp_path / "run", tmp_path / "small", part) == 0.0
    assert load_checkpoint(tmp_path / "run")[1].micro_batch == 1


def test_an_image_that_does_not_fit_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    made = step(net(), Objective({"ce": 1.0}))
    tried = too_large(monkeypatch, 0)
    with pytest.raises(RunError, match=r"single image does not fit into memory\. Lower crop"):
        made(*batch())
    assert tried == [5, 2, 1]


def test_a_gpu_without_room_is_a_lack_of_memory_too() -> None:
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: TrainingNet, images: Tensor) -> Any:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    made = step(net(), Objective({"ce": 1.0}))
    monkeypatch.setattr(TrainingNet, "forward", forward)
    with pytest.raises(RuntimeError, match="must match the size"):
        made(*batch())


def test_half_precision_logits_reach_the_loss_as_they_are() -> None:
    seen = []

    class Looks(Objective):
        def sums(self, output: Any, target: Tensor) -> Any:
            seen.append(getattr(output, "logits", output).dtype)
            return super().sums(output, target)

    step(net(), Looks({"ce": 1.0}), precision="bf16")(*batch())
    assert seen == [torch.bfloat16]


def test_recomputed_activations_change_nothing() -> None:
    """Neither the gradient nor BatchNorm's statistics, which a second forward would move again."""
    plain, lean = net("unet-test_resnet"), net("unet-test_resnet")
    checkpoint_activations(lean)
    asked = {"loss": {"ce": 1.0, "dice": 1.0}}
    first, second = updates(plain, **asked), updates(lean, **asked, activation_checkpointing=True)
    assert first[0] == second[0]
    assert all(torch.allclose(first[1][key], second[1][key], atol=1e-7) for key in first[1])
    for (key, a), (_, b) in zip(plain.named_buffers(), lean.named_buffers(), strict=True):
        assert torch.equal(a, b), key


def test_a_gate_on_one_pooled_value_is_recomputed_as_it_was_computed() -> None:
    model = create("linear-skresnet18", classes=3, encoder_weights=None).train()
    checkpoint_activations(model)
    with single_values_recomputed(model):
        model(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    gate = model.net.encoder.model.layer1[0].conv1.attn.bn
    assert gate.num_batches_tracked == 0
    assert not gate.running_mean.any()


def test_recomputing_really_happens() -> None:
    calls = []
    model = net("unet-test_resnet")
    checkpoint_activations(model)
    layer = next(m for n, m in model.net.encoder.named_modules() if n.endswith("layer3"))
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    updates(model, activation_checkpointing=True)
    assert len(calls) == 2


def test_an_encoder_that_cannot_recompute_says_so() -> None:
    model = net("unet-test_resnet")
    model.net.encoder = nn.Identity()
    with pytest.raises(InputError, match=r"test_resnet\S* cannot recompute its activations"):
        checkpoint_activations(model)


def test_a_batch_that_processes_cannot_share() -> None:
    check_batch_size(recipe(batch_size=6), 3)
    with pytest.raises(InputError, match=r"batch_size is 8, which 3 .* Set batch_size=6"):
        check_batch_size(recipe(batch_size=8), 3)
    with pytest.raises(InputError, match="Set batch_size=4 "):
        check_batch_size(recipe(batch_size=3), 4)


@pytest.mark.parametrize(
    ("key", "name"),
    [("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")],
)
def test_other_engines_are_refused(key: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(key, "true")
    with pytest.raises(InputError, match=f"{name} is not supported"):
        start_ranks()


def test_processes_that_do_not_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="WORLD_SIZE is 3, but MASTER_ADDR and MASTER_PORT"):
        start_ranks()


def test_a_plan_with_modules_that_do_not_exist_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp32_modules has problems"):
        finetune(
            without_batch_norm(scenes, tmp_path / "model"), scenes, out=tmp_path / "run",
            recipe="scratch", overrides=[*SETTINGS, "fp32_modules=[nothing]"],
        )  # fmt: skip
    assert not (tmp_path / "run").exists()
