"""Groups, rates and schedules: numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.creation.create import create
from zoo.registry.recipe import Optimizer, Schedule, Stage
from zoo.training.engine.optim import make_optimizer, parameter_groups, rate_scale, start_stage

MODEL = "unet-resnet18"


def stage(**changes: object) -> Stage:
    values = {"name": "all", "epochs": 2, "encoder_lr_scale": 0.2, "layer_decay": 0.5}
    return Stage.model_validate({**values, **changes})


def optimizer(rate: float = 0.01) -> torch.optim.Optimizer:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(2, 2))], "below_top": depth}
        for depth in (None, 0, 3)
    ]
    return torch.optim.AdamW(groups, lr=rate)


@pytest.mark.parametrize(("below_top", "share"), [(None, 1.0), (0, 0.2), (1, 0.1), (3, 0.025)])
def test_rate_of_a_layer(below_top: int | None, share: float) -> None:
    assert rate_scale(below_top, stage()) == pytest.approx(share)


def test_every_parameter_is_in_one_group() -> None:
    model = create(MODEL, classes=2, encoder_weights=None)
    groups = parameter_groups(model, 0.05)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    shapes = dict(model.named_parameters())
    for group in groups:
        for name in group["names"]:
            assert group["weight_decay"] == (0.05 if shapes[name].ndim > 1 else 0.0), name
            assert (group["below_top"] is None) == (not name.startswith("net.encoder."))
    # resnet18: a stem and eight blocks, so the stem lies eight below the top
    stem = next(g for g in groups if "net.encoder.model.conv1.weight" in g["names"])
    assert stem["below_top"] == 8


def test_parameters_that_timm_spares_have_no_decay() -> None:
    model = create("dpt-vit_tiny_patch16_224", classes=2, encoder_weights=None)
    spared = {n for g in parameter_groups(model, 0.1) if not g["weight_decay"] for n in g["names"]}
    assert {"net.encoder.model.pos_embed", "net.encoder.model.cls_token"} <= spared


def rates(schedule: dict, epochs: int = 2, steps_per_epoch: int = 5) -> list[list[float]]:
    """The rates of decoder, top layer and fourth layer at every step."""
    sgd = optimizer()
    plan = stage(epochs=epochs, schedule=Schedule.model_validate(schedule))
    scheduler = start_stage(sgd, plan, 0.01, steps_per_epoch)
    found = []
    for step in range(epochs * steps_per_epoch):
        if scheduler is not None:
            scheduler.step_update(step)
        found.append([group["lr"] for group in sgd.param_groups])
    return found


def test_constant() -> None:
    assert rates({"kind": "constant"})[0] == pytest.approx([0.01, 0.002, 0.00025])
    assert rates({"kind": "constant"})[-1] == pytest.approx([0.01, 0.002, 0.00025])


def test_warm_up_then_constant() -> None:
    decoder = [step[0] for step in rates({"kind": "constant", "warmup": 0.3})]
    # three steps of warm-up: a quarter, a half and three quarters of the peak
    assert decoder == pytest.approx([0.0025, 0.005, 0.0075] + [0.01] * 7)


def test_warm_up_keeps_the_ratio_between_the_groups() -> None:
    for decoder, top, fourth in rates({"kind": "cosine", "warmup": 0.3}):
        assert (top / decoder, fourth / decoder) == pytest.approx((0.2, 0.025))


def test_cosine_ends_near_a_thousandth_of_the_peak() -> None:
    decoder = [step[0] for step in rates({"kind": "cosine"})]
    low = 1e-5
    by_hand = [low + (0.01 - low) * (1 + math.cos(math.pi * t / 10)) / 2 for t in range(10)]
    assert decoder == pytest.approx(by_hand)


def test_poly() -> None:
    decoder = [step[0] for step in rates({"kind": "poly", "power": 2.0})]
    assert decoder == pytest.approx([1e-5 + (0.01 - 1e-5) * (1 - t / 10) ** 2 for t in range(10)])


def test_step() -> None:
    decoder = [step[0] for step in rates({"kind": "step", "step_epochs": 1, "gamma": 0.1})]
    assert decoder == pytest.approx([0.01] * 5 + [0.001] * 5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_stage_replaces_the_rates_of_the_one_before(name: str) -> None:
    model = create("unet-test_resnet", classes=2, encoder_weights=None)
    made = make_optimizer(model, Optimizer(name=name, lr=0.1))
    start_stage(made, stage(), 0.1, 5)
    start_stage(made, stage(encoder_lr_scale=1.0, layer_decay=1.0), 0.3, 5)
    assert {round(group["lr"], 9) for group in made.param_groups} == {0.3}
