"""Every schedule against numbers worked out by hand or torch's own, for groups of other rates."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR

from zoo.common.errors import InputError
from zoo.registry.recipe import Schedule, Stage
from zoo.training.engine.optim import Plateau, check_schedules, start_stage

PEAK = 0.01
STEPS = 5
KINDS: list[dict[str, Any]] = [
    {"kind": "constant", "warmup": 0.3},
    {"kind": "step", "step_epochs": 1, "warmup": 0.1},
    {"kind": "multistep", "milestones": [0.5, 0.8], "warmup": 0.2},
    {"kind": "poly", "warmup": 0.1},
    {"kind": "cosine", "warmup": 0.1},
    {"kind": "cosine_restarts", "gamma": 0.5, "warmup": 0.1},
    {"kind": "wsd", "decay": 0.4, "warmup": 0.1},
    {"kind": "one_cycle"},
    {"kind": "plateau", "patience": 1, "warmup": 0.1},
]


def stage(schedule: dict[str, Any], epochs: int = 4, **changes: Any) -> Stage:
    values = {"name": "all", "epochs": epochs, "encoder_lr_scale": 0.2, "layer_decay": 0.5}
    return Stage.model_validate({**values, **changes, "schedule": schedule})


def optimizer(name: str = "adamw") -> torch.optim.Optimizer:
    """Groups of the decoder, the top layer and the fourth layer from the top."""
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(2, 2))], "below_top": depth}
        for depth in (None, 0, 3)
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=PEAK, momentum=0.7)
    return torch.optim.AdamW(groups, lr=PEAK, betas=(0.8, 0.99))


def decoder_rates(schedule: dict[str, Any], epochs: int = 4) -> list[float]:
    made = optimizer()
    scheduler = start_stage(made, stage(schedule, epochs), PEAK, STEPS)
    assert scheduler is not None
    found = []
    for step in range(epochs * STEPS):
        scheduler.step_update(step)
        found.append(made.param_groups[0]["lr"])
    return found


def from_torch(kind: type, **options: Any) -> list[float]:
    """The rates of one of torch's schedulers over four epochs."""
    made = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = kind(made, **options)
    found = []
    for _ in range(4 * STEPS):
        found.append(made.param_groups[0]["lr"])
        made.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: s["kind"])
def test_every_group_keeps_its_share_of_the_rate(schedule: dict[str, Any]) -> None:
    made = optimizer()
    scheduler = start_stage(made, stage(schedule), PEAK, STEPS)
    assert scheduler is not None
    for step in range(4 * STEPS):
        scheduler.step_update(step)
        decoder, top, fourth = (group["lr"] for group in made.param_groups)
        assert (top / decoder, fourth / decoder) == pytest.approx((0.2, 0.025))


@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: s["kind"])
def test_a_schedule_is_a_function_of_the_step_and_its_state(schedule: dict[str, Any]) -> None:
    """Steps 12 to 19 are the same when everything before them happened in another process."""
    mious = [0.5, 0.4, 0.3, 0.2]

    def rates(scheduler: Any, made: torch.optim.Optimizer, first: int) -> list[Any]:
        found = []
        for step in range(first, 4 * STEPS):
            scheduler.step_update(step)
            found.append([(group["lr"], group["betas"]) for group in made.param_groups])
            if step % STEPS == STEPS - 1:
                scheduler.step(step // STEPS + 1, mious[step // STEPS])
        return found

    whole_optimizer, resumed_optimizer = optimizer(), optimizer()
    whole = start_stage(whole_optimizer, stage(schedule), PEAK, STEPS)
    resumed = start_stage(resumed_optimizer, stage(schedule), PEAK, STEPS)
    expected = rates(whole, whole_optimizer, 0)[12:]
    if isinstance(resumed, Plateau):
        before = start_stage(optimizer(), stage(schedule), PEAK, STEPS)
        assert before is not None
        before.step(1, 0.5)
        before.step(2, 0.4)
        resumed.load_state_dict(through_a_file(before.state_dict()))
    assert rates(resumed, resumed_optimizer, 12) == expected


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    loaded: dict[str, Any] = torch.load(stream, weights_only=True)
    return loaded


def test_multistep_is_torchs_with_milestones_as_shares_of_the_stage() -> None:
    found = decoder_rates({"kind": "multistep", "milestones": [0.5, 0.8], "gamma": 0.5})
    assert found == pytest.approx(from_torch(MultiStepLR, milestones=[10, 16], gamma=0.5))
    assert found == pytest.approx([0.01] * 10 + [0.005] * 6 + [0.0025] * 4)


def test_multistep_with_a_warm_up_keeps_its_milestones() -> None:
    found = decoder_rates({"kind": "multistep", "milestones": [0.5], "warmup": 0.2})
    # four of twenty steps of warm-up: one to four fifths of the peak
    assert found == pytest.approx([0.002, 0.004, 0.006, 0.008] + [0.01] * 6 + [0.001] * 10)


def test_step_counts_from_the_end_of_the_warm_up() -> None:
    found = decoder_rates({"kind": "step", "step_epochs": 1, "warmup": 0.1}, epochs=2)
    assert found == pytest.approx([0.005] + [0.01] * 5 + [0.001] * 4)


def test_cosine_is_torchs() -> None:
    expected = from_torch(CosineAnnealingLR, T_max=20, eta_min=1e-5)
    assert decoder_rates({"kind": "cosine"}) == pytest.approx(expected)


def test_cosine_restarts_begin_at_a_lower_peak() -> None:
    found = decoder_rates({"kind": "cosine_restarts", "cycles": 2, "gamma": 0.4})
    low = 1e-5
    by_hand = [
        low + (peak - low) * (1 + math.cos(math.pi * t / 10)) / 2
        for peak in (0.01, 0.004)
        for t in range(10)
    ]
    assert found == pytest.approx(by_hand)


def test_cosine_restarts_share_an_odd_number_of_steps() -> None:
    found = decoder_rates({"kind": "cosine_restarts", "cycles": 3, "gamma": 0.5})
    # seven, seven and six steps
    assert [found[t] for t in (0, 7, 14)] == pytest.approx([0.01, 0.005, 0.0025])
    assert found[6] < 0.001 > found[13]


@pytest.mark.parametrize(("warmup", "rising"), [(0.0, []), (0.1, [0.01 / 3, 0.02 / 3])])
def test_wsd_rises_stays_and_falls_as_one_minus_the_root(
    warmup: float, rising: list[float]
) -> None:
    found = decoder_rates({"kind": "wsd", "decay": 0.2, "warmup": warmup})
    # the last four of twenty steps begin at the peak; t is 0, 1, 2 and 3 quarters
    falling = [1e-5 + (0.01 - 1e-5) * (1 - math.sqrt(t / 4)) for t in range(4)]
    assert found == pytest.approx([*rising, *[0.01] * (16 - len(rising)), *falling])
    assert found[18] == pytest.approx(0.0029360, rel=1e-4)


@pytest.mark.parametrize("warmup", [0.0, 0.3, 0.5])
def test_one_cycle_is_torchs(warmup: float) -> None:
    expected = from_torch_one_cycle(warmup or 0.3)
    made = optimizer()
    scheduler = start_stage(made, stage({"kind": "one_cycle", "warmup": warmup}), PEAK, STEPS)
    assert scheduler is not None
    for step in range(20):
        scheduler.step_update(step)
        assert made.param_groups[0]["lr"] == pytest.approx(expected[step][0])
        assert made.param_groups[2]["lr"] == pytest.approx(0.025 * expected[step][0])
        assert made.param_groups[2]["betas"] == pytest.approx((expected[step][1], 0.99))
    assert expected[0] == pytest.approx((PEAK / 25, 0.95))
    assert expected[19] == pytest.approx((PEAK / 25e4, 0.95))


def from_torch_one_cycle(rise: float) -> list[tuple[float, float]]:
    made = torch.optim.AdamW([torch.zeros(1)], lr=PEAK)
    scheduler = OneCycleLR(made, max_lr=PEAK, total_steps=20, pct_start=rise)
    found = []
    for step in range(20):
        found.append((made.param_groups[0]["lr"], made.param_groups[0]["betas"][0]))
        if step < 19:
            made.step()
            scheduler.step()
    return found


@pytest.mark.parametrize(("name", "key", "own"), [("sgd", "momentum", 0.7), ("adamw", "betas", 0)])
def test_one_cycle_moves_momentum_and_the_next_stage_puts_it_back(
    name: str, key: str, own: float
) -> None:
    made = optimizer(name)
    scheduler = start_stage(made, stage({"kind": "one_cycle"}), PEAK, STEPS)
    assert scheduler is not None
    scheduler.step_update(5)  # the peak: 0.3 of 20 steps, counted from 0
    moved = made.param_groups[0][key]
    assert (moved if name == "sgd" else moved[0]) == pytest.approx(0.85)
    start_stage(made, stage({"kind": "constant"}), PEAK, STEPS)
    assert made.param_groups[0][key] == (own or (0.8, 0.99))


def plateau(patience: int = 2, warmup: float = 0.0) -> tuple[torch.optim.Optimizer, Any]:
    made = optimizer()
    settings = {"kind": "plateau", "patience": patience, "gamma": 0.5, "warmup": warmup}
    return made, start_stage(made, stage(settings, epochs=10), PEAK, STEPS)


def test_plateau_lowers_the_rate_after_two_validations_without_gain() -> None:
    made, scheduler = plateau()
    found = []
    mious = [0.3, 0.4, 0.4, 0.39, 0.41, 0.2, None, 0.2, 0.2, 0.2]
    for epoch, miou in enumerate(mious):
        scheduler.step_update(epoch * STEPS)
        found.append(made.param_groups[0]["lr"])
        scheduler.step(epoch + 1, miou)
    # equal is no gain; an epoch that is not validated does not count
    assert found == pytest.approx([0.01] * 4 + [0.005] * 4 + [0.0025] * 2)


def test_plateau_ignores_the_warm_up() -> None:
    made, scheduler = plateau(patience=1, warmup=0.2)
    found = []
    for epoch, miou in enumerate([0.9, 0.8, 0.1, 0.2, 0.1, 0.1]):
        scheduler.step_update(epoch * STEPS)
        found.append(made.param_groups[0]["lr"])
        scheduler.step(epoch + 1, miou)
    # ten steps of warm-up: steps 0 and 5 stand at one and six elevenths of the peak
    assert found == pytest.approx([0.01 / 11, 0.06 / 11, 0.01, 0.01, 0.01, 0.005])


@pytest.mark.parametrize(
    ("schedule", "epochs", "message"),
    [
        (
            {"warmup": 0.95},
            1,
            "the warm-up of 0.95 takes all of the stage's 5 steps (1 epoch of 5)",
        ),
        ({"kind": "cosine_restarts", "cycles": 3, "gamma": 0.5}, 1, "3 cycles need at least 6"),
        (
            {"kind": "wsd"},
            1,
            "wsd needs two steps to fall, a decay of 0.2 of the stage's 5 steps (1 epoch of 5) is "
            "fewer; raise decay or epochs",
        ),
        ({"kind": "one_cycle"}, 1, "one_cycle needs two steps to rise and two to fall"),
    ],
)
def test_a_schedule_longer_than_its_stage(
    schedule: dict[str, Any], epochs: int, message: str
) -> None:
    with pytest.raises(InputError, match="These schedules are longer than their stages:") as caught:
        check_schedules([stage(schedule, epochs), stage(KINDS[0])], STEPS)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_all_schedules_that_are_too_long_are_named_at_once() -> None:
    wrong = [
        stage({"warmup": 0.95}, 1, name="first"),
        stage({"kind": "one_cycle"}, 1, name="second"),
    ]
    with pytest.raises(InputError) as caught:
        check_schedules(wrong, STEPS)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        "  - stages.first.schedule",
        "  - stages.second.schedule",
    ]


@pytest.mark.parametrize("schedule", KINDS, ids=lambda s: s["kind"])
def test_schedules_that_fit(schedule: dict[str, Any]) -> None:
    check_schedules([stage(schedule)], STEPS)


def test_the_default_is_a_constant_rate() -> None:
    assert Schedule() == Schedule(kind="constant", warmup=0.0)
    assert start_stage(optimizer(), stage({}), PEAK, STEPS) is None
