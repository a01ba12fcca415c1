"""Every optimizer that a recipe can have: timm's own arguments, rates by layer, an exact resume."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import get_optimizer_info, list_optimizers

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.models.layers import set_learning
from zoo.registry.optimizers import (
    CHOICES,
    OPTIMIZER_ROWS,
    OPTIMIZERS,
    REFUSED_OPTIMIZERS,
    checked_argument,
    own_arguments,
)
from zoo.registry.recipe import Optimizer, Stage
from zoo.training.engine.checkpoint import (
    Progress,
    load_checkpoint,
    random_state,
    restore_weights_and_optimizer,
    save_checkpoint,
    set_random_state,
    weights_and_optimizer,
)
from zoo.training.engine.optim import check_optimizer, make_optimizer, start_stage

FAST = ("lamb", "adafactorbv", "nmuon")
"""Steps counted by group, factored state in bfloat16, and a second optimizer for some weights."""
RATE = 1e-3
HOW_NOT_WHAT = {
    "capturable", "deterministic", "differentiable", "foreach", "fused", "maximize",
    "momentum_dtype", "verbose",
}  # fmt: skip
BY_THE_RECIPE = {"lr", "momentum", "params", "self", "weight_decay"}
WITHOUT_EFFECT = {
    "adafactor": {"scale_parameter", "warmup_init"},  # of rates that it would choose itself
    "muon": {"algo", "adamw_lr"},  # said by the name; deprecated
}


def test_the_table_is_that_of_the_installed_timm() -> None:
    assert sorted({**OPTIMIZERS, **REFUSED_OPTIMIZERS}) == list_optimizers()
    for row in OPTIMIZER_ROWS:
        for name in row.names:
            info = get_optimizer_info(name)
            assert not isinstance(info.opt_class, str)
            assert not info.second_order
            defaults = {
                key: parameter.default
                for key, parameter in inspect.signature(info.opt_class).parameters.items()
            }
            rate = defaults["lr"]
            assert row.lr == (rate if isinstance(rate, int | float) else None), name
            assert row.momentum == info.has_momentum == ("momentum" in defaults), name
            first = next(iter(row.names))
            hidden = HOW_NOT_WHAT | BY_THE_RECIPE | WITHOUT_EFFECT.get(first, set())
            own = {key: value for key, value in defaults.items() if key not in hidden}
            own |= {k: v for k, v in (info.defaults or {}).items() if k not in hidden}
            assert own_arguments(name) == {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in own.items()
            }, name


def test_the_refused_ones_say_what_they_need() -> None:
    for name, reason in REFUSED_OPTIMIZERS.items():
        info = get_optimizer_info(name)
        package = info.opt_class.partition(".")[0] if isinstance(info.opt_class, str) else ""
        assert ("second-order" in reason) == info.second_order, name
        assert package in reason, name


STAGES = [
    Stage.model_validate(
        {"name": "head", "epochs": 1, "unfreeze": 0.0, "schedule": {"kind": "one_cycle"}}
    ),
    Stage.model_validate(
        {
            "name": "all", "epochs": 1, "encoder_lr_scale": 0.5, "layer_decay": 0.7,
            "schedule": {"kind": "cosine", "warmup": 0.2},
        }
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def net() -> Any:
    torch.manual_seed(0)
    return create("linear-test_vit", classes=2, encoder_weights=None)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def trained(net: Any, images: torch.Tensor, settings: Optimizer, run: Path | None) -> Any:
    """The weights after four steps of each stage; with `run` a new process takes over at each of
    three points: within the first stage, between the two and within the second.
    """
    model = copy.deepcopy(net)
    optimizer = make_optimizer(model, settings)
    torch.manual_seed(1)
    for number, stage in enumerate(STAGES):
        set_learning(model, stage)
        schedule = start_stage(optimizer, stage, settings.lr, 4)
        for step in range(4):
            if run is not None and (number, step) in ((0, 2), (1, 0), (1, 3)):
                state = weights_and_optimizer(model, None, optimizer)
                rest = {"scaler": None, "plateau": None, "random": [random_state()]}
                save_checkpoint(run, {**state, **rest}, Progress())
                model = copy.deepcopy(net)
                optimizer = make_optimizer(model, settings)
                torch.manual_seed(2)
                loaded, _ = load_checkpoint(run)
                restore_weights_and_optimizer(loaded, model, None, optimizer)
                set_learning(model, stage)
                schedule = start_stage(optimizer, stage, settings.lr, 4)
                set_random_state(loaded["random"][0])
            assert schedule is not None
            schedule.step_update(step)
            (model.net(images) - 0.3).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize(
    "name",
    [name if name in FAST else pytest.param(name, marks=pytest.mark.long) for name in OPTIMIZERS],
)
def test_a_resumed_run_is_bit_exact(
    name: str, net: Any, images: torch.Tensor, tmp_path: Path
) -> None:
    settings = Optimizer(name=name, lr=RATE)
    expected = trained(net, images, settings, None)
    found = trained(net, images, settings, tmp_path)
    for key, value in expected.items():
        assert value.isfinite().all(), key
        assert torch.equal(value, found[key]), key
    before = net.state_dict()
    moved = [key for key in expected if not torch.equal(expected[key], before[key])]
    assert len(moved) > len(before) / 2


MODULE: Any = torch.nn.Linear(1, 1)
"""Stands for a model whose parameters are `groups`."""


def test_a_checkpoint_with_factored_state_of_another_shape(net: Any) -> None:
    optimizer = make_optimizer(net, Optimizer(name="adafactorbv", lr=RATE))
    state = weights_and_optimizer(net, None, optimizer)
    state |= {"scaler": None, "plateau": None, "random": [random_state()]}
    number = next(i for i, p in enumerate(net.parameters()) if p.ndim == 2)
    state["optimizer"]["state"][number] = {"exp_avg_sq_r": torch.zeros(1, 7)}
    with pytest.raises(InputError) as caught:
        restore_weights_and_optimizer(state, net, None, optimizer)
    assert f"optimizer.state.{number}.exp_avg_sq_r is [1, 7] of float32, not [" in str(caught.value)


def groups() -> list[dict[str, Any]]:
    """The same weights at the decoder's rate, at a hundredth of it, and at none."""
    return [
        {
            "params": [torch.nn.Parameter(torch.linspace(-1, 1, 24).view(4, 6))],
            "below_top": below, "weight_decay": 0.0,
        }
        for below in (None, 0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_follows_the_rates_of_its_groups(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = groups()
    monkeypatch.setattr("zoo.training.engine.optim.parameter_groups", lambda *_: made)
    rates = {None: 1.0, 0: 0.01, 1: 0.0}
    monkeypatch.setattr("zoo.training.engine.optim.rate_scale", lambda below, _: rates[below])
    optimizer = make_optimizer(MODULE, Optimizer(name=name, lr=0.01))
    stage = Stage.model_validate({"name": "all", "epochs": 1})
    before = [group["params"][0].detach().clone() for group in made]
    start_stage(optimizer, stage, 0.01, 3)
    for _ in range(3):
        for group in made:
            group["params"][0].grad = torch.linspace(1, 2, 24).view(4, 6)
        optimizer.step()
    decoder, top, still = (
        float((group["params"][0].detach() - old).norm())
        for group, old in zip(made, before, strict=True)
    )
    assert decoder > 0
    assert top == pytest.approx(0.01 * decoder, rel=0.25)
    assert still == 0


@pytest.mark.parametrize("name", ["adamw", "lamb", "adan", "adagrad", "muon"])
def test_a_fresh_optimizer_takes_the_steps_of_a_new_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    monkeypatch.setattr("zoo.training.engine.optim.parameter_groups", lambda *_: groups())
    optimizer = make_optimizer(MODULE, Optimizer(name=name, lr=0.01))
    for _ in range(2):
        (parameter,) = optimizer.param_groups[0]["params"]
        before = torch.linspace(-1, 1, 24).view(4, 6)
        with torch.no_grad():
            parameter.copy_(before)
        for _ in range(2):
            parameter.grad = torch.linspace(1, 2, 24).view(4, 6)
            optimizer.step()
        steps.append(parameter.detach() - before)
        optimizer.load_state_dict(
            make_optimizer(MODULE, Optimizer(name=name, lr=0.01)).state_dict()
        )
    assert torch.equal(steps[0], steps[1])


def test_own_arguments_reach_the_optimizer() -> None:
    model = create("unet-test_resnet", classes=2, encoder_weights=None)
    settings = Optimizer(name="lamb", lr=0.1, betas=[0.8, 0.99], trust_clip=True)  # type: ignore[call-arg]
    made = make_optimizer(model, settings)
    assert type(made).__name__ == "Lamb"
    for group in made.param_groups:
        assert (group["betas"], group["trust_clip"]) == ((0.8, 0.99), True)
        assert (group["eps"], group["decoupled_decay"]) == (1e-6, False)


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_of_an_argument_builds(key: str) -> None:
    name = next(name for name in OPTIMIZERS if key in own_arguments(name))
    for value in CHOICES[key]:
        check_optimizer(Optimizer.model_validate({"name": name, "lr": 0.1, key: value}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "sgd", "momentum": 0.0},
            "optimizer: sgd refuses its arguments: Nesterov momentum requires a momentum and zero "
            "dampening.",
        ),
        ({"name": "adam", "eps": -1.0}, "optimizer: adam refuses its arguments: Invalid epsilon"),
    ],
)
def test_what_the_optimizer_itself_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_optimizer(Optimizer.model_validate({"lr": 0.1} | settings))
    assert str(caught.value).startswith(message)


def test_a_step_of_muon_cannot_last_for_ever() -> None:
    assert checked_argument("ns_steps", 100, 5) == 100
    with pytest.raises(ValueError, match="should be at most 100, got 1000000000"):
        checked_argument("ns_steps", 10**9, 5)
