"""The recipe `auto`: each rule by hand, budgets by arithmetic, and short runs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.engine_runs import plan_for

from zoo.cli.main import run as command
from zoo.common.errors import InputError, RunError
from zoo.creation.create import create
from zoo.data.inspect.scan import SplitScan
from zoo.data.load import load_dataset
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides
from zoo.registry.recipe import Recipe, recipe_dict
from zoo.training import auto, budget
from zoo.training.auto import Facts, choose, facts_of, resolve_auto, stored
from zoo.training.budget import Cost, duration, epochs_within, spread
from zoo.training.engine.trainer import Trainer
from zoo.training.finetune import finetune
from zoo.training.plan import parse_budget

CAMVID = Facts(
    base="cnn", kind="cnn", pretrained=True, any_size=True, images=367, side=360,
    class_fractions=(0.32, 0.2, 0.003), image_fractions=(1.0, 0.9, 0.3),
)  # fmt: skip


BASE = Recipe.model_validate(
    {
        "loss": {"ce": 1.0, "dice": 1.0},
        "class_weights": "log",
        "optimizer": {"lr": 0.002},
        "batch_size": 8,
        "crop": 256,
        "ema": 0.99,
        "evidence": "a.json",
        "stages": [
            {"name": "head", "epochs": 1, "unfreeze": 0.0},
            {"name": "all", "epochs": 11},
        ],
    }
)


def chosen(facts: Facts = CAMVID, *overrides: str, **options: Any) -> dict[str, Any]:
    found = choose(facts, BASE, overrides, **options)
    return {choice.key: choice.value for choice in found.choices}


def changed(**facts: Any) -> Facts:
    return dataclasses.replace(CAMVID, **facts)


def test_the_choices_for_a_set_like_camvid() -> None:
    # 367 // 8 = 45 steps; 1500 / 45 = 33.3, so 34 epochs, of which 34 / 12 = 2.8 for the head
    assert chosen() == {
        "recipe": "cnn",
        "crop": 256,
        "class_weights": "none",
        "oversample": "none",
        "stages.head.epochs": 3,
        "stages.all.epochs": 31,
        "validate_every": 1,
        "ema": 0.99,
    }


def test_a_chosen_recipe_is_the_base_with_the_choices_and_names_no_record() -> None:
    found = choose(CAMVID, BASE, [])
    assert found.recipe.evidence == "none"
    assert [stage.epochs for stage in found.recipe.stages] == [3, 31]
    left = {"stages", "evidence", "class_weights"}
    assert found.recipe.model_dump(exclude=left) == BASE.model_dump(exclude=left)
    assert all(choice.reason for choice in found.choices)
    measured = [choice.key for choice in found.choices if choice.evidence != "none"]
    assert measured == ["class_weights"]


@pytest.mark.parametrize(
    ("side", "any_size", "crop"),
    [(360, True, 256), (255, True, 224), (20, True, 32), (1023, True, 256), (1024, True, 512),
     (64, False, 256)],
)  # fmt: skip
def test_the_crop_follows_the_images(side: int, any_size: bool, crop: int) -> None:
    assert chosen(changed(side=side, any_size=any_size))["crop"] == crop


@pytest.mark.parametrize(
    ("shares", "rule"),
    [((0.8, 0.2), "none"), ((5 / 6, 1 / 6), "log"), ((1.0,), "none"), ((), "none")],
)
def test_class_weights_are_for_uneven_classes_that_no_loss_balances(
    shares: tuple[float, ...], rule: str
) -> None:
    def weights(loss: dict[str, float]) -> Any:
        base = BASE.model_copy(update={"loss": loss})
        found = choose(changed(class_fractions=shares), base, [])
        return next(choice.value for choice in found.choices if choice.key == "class_weights")

    assert weights({"ce": 1.0}) == rule
    assert weights({"ce": 1.0, "lovasz": 0.5}) == "none"


def test_rare_classes_are_drawn_more_often() -> None:
    assert chosen(changed(image_fractions=(1.0, 0.1)))["oversample"] == "none"
    assert chosen(changed(image_fractions=(1.0, 0.09)))["oversample"] == "rare"


@pytest.mark.parametrize(
    ("images", "epochs", "every", "ema"),
    [
        (16, 300, 8, 0.99),  # 2 steps an epoch would need 750 epochs
        (129, 94, 3, 0.99),  # 16 steps: 1500 / 16 = 93.75; 94 / 40 = 2.35
        (20000, 12, 1, 0.999),  # 2500 steps an epoch, 30,000 in all
        (3, 300, 8, 0.99),  # fewer images than a batch: one step an epoch
    ],
)
def test_the_length_follows_the_number_of_images(
    images: int, epochs: int, every: int, ema: float
) -> None:
    found = chosen(changed(images=images))
    assert found["stages.head.epochs"] + found["stages.all.epochs"] == epochs
    assert found["validate_every"] == every
    assert found["ema"] == ema


def test_random_weights_start_from_the_base_scratch() -> None:
    found = choose(changed(base="scratch", pretrained=False), load_registry().recipe("scratch"), [])
    assert found.choices[0].value == "scratch"
    assert "random encoder weights" in found.choices[0].reason
    assert [stage.epochs for stage in found.recipe.stages] == [34]


def test_overrides_are_not_chosen_but_counted_with() -> None:
    found = chosen(CAMVID, "crop=64", "batch_size=36", "stages.head.epochs=4")
    assert "crop" not in found
    assert "stages.head.epochs" not in found
    # 367 // 36 = 10 steps an epoch: 150 epochs, four of them given
    assert found["stages.all.epochs"] == 146
    whole = chosen(CAMVID, "stages=[{name: all, epochs: 200}]", "ema=null")
    assert "stages.all.epochs" not in whole
    assert "ema" not in whole
    assert whole["validate_every"] == 5


def test_facts_of_a_scan() -> None:
    scan = SplitScan(
        pixels=np.array([60, 0, 40]), images=np.array([3, 0, 1]), ignored=7,
        sizes={(10, 20): 1, (50, 30): 2},
    )  # fmt: skip
    found = facts_of(scan, base="cnn", kind="cnn", pretrained=True, any_size=True)
    assert (found.images, found.side) == (3, 30)
    assert found.class_fractions == pytest.approx((0.6, 0.4))
    assert found.image_fractions == pytest.approx((1.0, 1 / 3))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h", 3600), ("1.5h", 5400)]
)
def test_budgets_are_times(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "0s", "-5m", "1d", "1e3s", "", "nan", "10 minutes"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"Invalid budget .* a number above 0 .* 90s, 10m, 1h"):
        parse_budget(text)


def test_durations_round_up_to_what_a_budget_can_say() -> None:
    assert [duration(s) for s in (0.2, 90, 121, 600, 7201)] == ["1s", "90s", "3m", "10m", "2.1h"]
    assert all(parse_budget(duration(s)) >= s for s in (1, 119.5, 121, 7199, 7201, 86400))


@pytest.mark.parametrize(
    ("total", "proportion", "parts"),
    [(34, [1, 11], [3, 31]), (2, [1, 11], [1, 1]), (1, [1, 11], [1, 1]), (5, [3], [5]),
     (7, [1, 1, 2], [2, 2, 3]), (4, [], [])],
)  # fmt: skip
def test_epochs_are_spread_in_proportion(
    total: int, proportion: list[int], parts: list[int]
) -> None:
    assert spread(total, proportion) == parts


def test_a_budget_holds_its_epochs_and_validations() -> None:
    cost = Cost(epochs_s=(5.0, 10.0), validation_s=10.0, save_s=1.0, spent_s=20.0)
    # room: (220 - 20) x 0.95 = 190 s; validations may take 19 s of it, so one.
    # 16 epochs: 1 x 5 + 15 x 10 + 16 x 1 + 10 = 181; another makes 192
    found = epochs_within(220, cost, [1, 11], 100, 40)
    assert found.epochs == [1, 15]
    assert found.validate_every == 16
    assert cost.seconds([1, 15], 16) == 181
    assert cost.seconds([1, 16], 17) == 192


def test_validations_take_a_tenth_of_the_budget() -> None:
    cost = Cost(epochs_s=(10.0,), validation_s=4.0, save_s=0.0)
    # room 950 s, 95 s for validations: 23 of them; 86 epochs with one every fourth: 22
    found = epochs_within(1000, cost, [1], 1000, 40)
    assert found.validate_every == 4
    assert found.epochs == [86]
    assert 860 + 22 * 4 <= 950 < 870 + 22 * 4


def test_a_large_budget_ends_at_four_times_the_usual_epochs() -> None:
    cheap = Cost(epochs_s=(0.001, 0.001), validation_s=0.001, save_s=0.0)
    found = chosen(CAMVID, budget_s=3600.0, measure=lambda _: cheap)
    assert found["stages.head.epochs"] + found["stages.all.epochs"] == 4 * 34
    assert found["validate_every"] == 4


def test_a_budget_below_one_epoch_names_the_least_that_will_do() -> None:
    cost = Cost(epochs_s=(30.0, 60.0), validation_s=5.0, save_s=1.0, spent_s=10.0)
    # 30 + 60 + 2 + 5 = 97 s; 97 / 0.95 + 10 = 112.1
    with pytest.raises(InputError, match=r"budget of 60s is too short.*take 97s.*--budget 113s"):
        epochs_within(60, cost, [1, 11], 100, 40)
    assert epochs_within(113, cost, [1, 11], 100, 40).epochs == [1, 1]


@pytest.mark.parametrize(
    "override", ["stages=[{name: all, epochs: 1}]", "stages.all.epochs=3", "validate_every=2"]
)
def test_a_budget_and_given_epochs_exclude_each_other(override: str) -> None:
    with pytest.raises(InputError, match=r"budget chooses the epochs.*Remove the budget or"):
        chosen(CAMVID, override, budget_s=60.0, measure=lambda _: Cost((1.0, 1.0), 1.0, 0.0))


def test_what_is_measured_is_the_recipe_with_choices_and_overrides() -> None:
    seen: list[Recipe] = []

    def measure(recipe: Recipe) -> Cost:
        seen.append(recipe)
        return Cost((1.0, 1.0), 1.0, 0.0)

    chosen(changed(side=100), "batch_size=4", budget_s=60.0, measure=measure)
    assert [(recipe.crop, recipe.batch_size) for recipe in seen] == [(96, 4)]


def test_a_choice_is_kept_in_a_file() -> None:
    found = choose(CAMVID, BASE, ["crop=64"])
    again = stored(json.loads(json.dumps(found.described("10m"))))
    assert again == found


class Timed:
    """A trainer by hand: the first step takes 9 s, later ones 0.5 s (stage a) or 0.75 s (stage b)
    for each image.
    """

    ema, optimizer, device = None, None, "cpu"

    def __init__(self, clock: list[float], precision: str):
        self.clock, self.precision, self.objective = clock, precision, None
        self.model = create("unet-test_resnet", classes=4, encoder_weights=None)
        self.step, self.steps = self, []

    def start_stage(self, stage: Any, _: int) -> None:
        self.stage = stage.name

    def __call__(self, images: Any, _: Any) -> None:
        assert images.shape[1:] == (3, 64, 64)
        self.clock[0] += {"a": 0.5, "b": 0.75}[self.stage] * len(images) if self.steps else 9.0
        self.steps.append(f"{self.stage}{len(images)}")


def measured(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, limit_s: float, precision: str
) -> tuple[Cost, Timed, list[tuple[int, str]], float]:
    """Cost, trainer, scored images with their precision, and seconds that measuring took."""
    clock = [100.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    stages = "stages=[{name: a, epochs: 5, unfreeze: 0.0}, {name: b, epochs: 7}]"
    recipe = apply_overrides(
        load_registry().recipe("scratch"), [stages, "crop=64", "batch_size=4", "validate_every=3"]
    )
    trainer = Timed(clock, precision)
    scored: list[tuple[int, str]] = []

    def score(_: Any, loader: Any, precision: str, **options: Any) -> None:
        assert (options["on_logits"] is None) == (precision != trainer.precision)
        scored.append((loader.images, precision))
        clock[0] += {"fp32": 1.5, "bf16": 0.5}[precision] * loader.images

    def save(*_: Any) -> None:
        clock[0] += 0.25

    monkeypatch.setattr(budget, "score", score)
    monkeypatch.setattr(budget, "SplitLoss", lambda _: SimpleNamespace(add=max))
    monkeypatch.setattr(budget, "weights_and_optimizer", lambda *_: {})
    monkeypatch.setattr(budget, "save_folder", lambda *_: None)
    monkeypatch.setattr(budget, "save_checkpoint", save)
    cost = budget.measure_cost(load_dataset(scenes), recipe, lambda *_: trainer, limit_s)  # type: ignore[arg-type, return-value]
    return cost, trainer, scored, clock[0] - 100.0


@pytest.mark.parametrize(
    ("limit_s", "precision", "counts", "images"),
    [
        (math.inf, "fp32", (5, 5), 4),
        (math.inf, "bf16", (5, 5), 4),
        # 9 + 1.5 s warm up; a third of 29.5 s: three steps of b, since a fourth would end at 22.5;
        # half of the 20.5 s left: five steps of a; 10.5 s for scoring
        (40.0, "fp32", (3, 5), 4),
        # a third of 9.5 s: one step of b, until 13.5; half of 6.5 s: one of a; half of 4.5 s for
        # three images in bf16
        (20.0, "bf16", (1, 1), 3),
    ],
)
def test_the_cost_follows_from_the_clock(
    limit_s: float, precision: str, counts: tuple[int, int], images: int, scenes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    cost, trainer, scored, took_s = measured(scenes, monkeypatch, limit_s, precision)
    # stage b learns more, so that it comes first
    assert trainer.steps == ["b2", "b2"] + ["b4"] * counts[0] + ["a4"] * counts[1]
    # 8 images make 2 steps of 4; 4 validation images; 0.25 s for a checkpoint
    each = {"fp32": 1.5, "bf16": 0.5}[precision]
    final_s = 0.0 if precision == "fp32" else 4 * 1.5
    expected = Cost(epochs_s=(4.0, 6.0), validation_s=4 * each, save_s=0.25, final_s=final_s)
    assert cost == expected
    assert cost.caveat == ""
    assert max(count for count, _ in scored) == images
    assert took_s <= limit_s


def test_measuring_stops_where_the_next_step_would_pass_the_limit(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, trainer, scored, took_s = measured(scenes, monkeypatch, 13.0, "fp32")
    # 10.5 s warm up; a step of four images should take 3 s, one of 64 x 80 pixels 0.9 s
    assert (trainer.steps, scored, took_s) == (["b2", "b2"], [(1, "fp32")], 12.25)
    assert cost.epochs_s == (6.0, 6.0)
    assert cost.validation_s == 6.0
    assert cost.estimated == ("the stage b", "the stage a")


def test_measuring_takes_at_most_one_step_more_than_its_limit_and_says_so(
    scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost, trainer, scored, took_s = measured(scenes, monkeypatch, 6.0, "bf16")
    assert (trainer.steps, scored, took_s) == (["b2"], [], 9.0)
    # two images in 9 s are 18 s a step and 36 s an epoch
    assert cost.epochs_s == (36.0, 36.0)
    # half of 18 s for 4 x 64 x 64 pixels, an image has 64 x 80; fp32 takes twice as long
    each = 9.0 * (64 * 80) / (4 * 64 * 64)
    assert cost.validation_s == pytest.approx(4 * each)
    assert cost.final_s == pytest.approx(8 * each)
    bytes_ = 4 * sum(p.numel() for p in trainer.model.parameters())
    assert cost.save_s == pytest.approx(5 * bytes_ / 1e8)
    said = (
        "(a rough estimate: measuring ended at a tenth of the budget, before it reached the stage "
        "b, the stage a, validations, the last score, checkpoints)"
    )
    cost = dataclasses.replace(cost, spent_s=took_s)
    assert (
        f"expected with validations {said}, after 9s"
        in epochs_within(600, cost, [5, 7], 10, 40).reason
    )
    with pytest.raises(InputError, match=re.escape(f"on this machine {said}, after 9s")):
        epochs_within(60, cost, [5, 7], 10, 40)


TINY = ("batch_size=4", "precision=fp32", "crop=64")


def tiny(data: Path, out: Path, *more: str, **options: Any) -> Any:
    options = {"recipe": "auto", "encoder_weights": None, "out": out} | options
    return finetune("unet-test_resnet", data, overrides=[*TINY, *more], **options)


@pytest.fixture
def cost_of_two_epochs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Cost]]:
    """Costs that a measurement finds, in place of a clock's; it is an error to run out of them."""
    costs = [Cost(epochs_s=(20.0,), validation_s=5.0, save_s=1.0)]
    monkeypatch.setattr(auto, "measure_cost", lambda *_: costs.pop())
    yield costs
    assert costs == []


@pytest.fixture
def stopped(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cost_of_two_epochs: list[Cost],
) -> Path:
    """A run with a budget of one minute that ended before its first step."""

    def stop(*_: Any, **__: Any) -> None:
        raise RunError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", stop)
        with pytest.raises(RunError, match="stopped"):
            tiny(scenes, tmp_path / "run", budget="1m")
    return tmp_path / "run"


def test_a_run_keeps_what_it_chose_and_a_resumed_one_does_not_choose_again(
    scenes: Path, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = json.loads((stopped / "run.json").read_text())
    assert kept["recipe_name"] == "auto"
    # 0.95 x 60 = 57 s: two epochs take 2 x 21 + 5 = 47, three 68
    assert kept["recipe"]["stages"][0]["epochs"] == 2
    assert kept["recipe"]["validate_every"] == 2
    assert kept["auto"]["budget"] == "1m"
    capsys.readouterr()
    result = tiny(scenes, stopped, budget="1m", resume=True)
    assert (result.epochs, result.steps) == (2, 4)
    said = " ".join(capsys.readouterr().err.split())
    assert "auto: stages.all.epochs=2: 47s expected with validations" in said
    assert "Measuring" not in said
    assert json.loads((stopped / "run.json").read_text()) == kept


def test_the_overrides_of_a_run_give_what_it_chose_again(scenes: Path, stopped: Path) -> None:
    kept = json.loads((stopped / "run.json").read_text())
    stated = kept["overrides"]
    assert {"crop", "batch_size", "class_weights", "ema", "stages.all.epochs"} <= stated.keys()
    assert (stated["crop"], stated["stages.all.epochs"]) == (64, 2)  # given and chosen
    texts = [f"{key}={json.dumps(value)}" for key, value in stated.items()]
    plan = plan_for(
        "unet-test_resnet", scenes, recipe="auto", overrides=texts, encoder_weights=None
    )
    assert recipe_dict(resolve_auto(plan).recipe) == kept["recipe"]


@pytest.mark.parametrize(
    ("more", "options", "named"),
    [
        ((), {"budget": "2m"}, r'auto\.budget: the run has "1m", now it is "2m"'),
        (("ema=0.5",), {"budget": "1m"}, r"recipe\.ema: the run has 0\.99, now it is 0\.5"),
        ((), {"recipe": "scratch"}, r'recipe_name: the run has "auto", now it is "scratch"'),
    ],
)
def test_a_resume_with_something_else_names_it(
    scenes: Path, stopped: Path, more: tuple[str, ...], options: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=rf"(?s)cannot be resumed.*{named}"):
        tiny(scenes, stopped, *more, resume=True, **options)


def test_a_run_with_a_named_recipe_is_not_resumed_with_auto(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"recipe_name": "cnn"}')
    with pytest.raises(InputError, match=r"with the recipe cnn.* Continue with --recipe cnn"):
        tiny(scenes, tmp_path, resume=True)


@pytest.mark.parametrize("recipe", [None, "scratch"])
def test_a_budget_is_for_auto_alone(scenes: Path, recipe: str | None) -> None:
    with pytest.raises(InputError, match=r"only the recipe auto leaves open\. Add --recipe auto"):
        plan_for("unet-test_resnet", scenes, recipe=recipe, budget="1m", encoder_weights=None)


def test_a_budget_is_not_measured_in_several_processes(scenes: Path) -> None:
    plan = plan_for("unet-test_resnet", scenes, recipe="auto", budget="1m", encoder_weights=None)
    with pytest.raises(InputError, match="measured in one process"):
        resolve_auto(plan, processes=2)


@pytest.mark.usefixtures("cost_of_two_epochs")
def test_a_budget_that_is_too_small_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"budget of 20s is too short.*Give at least --budget \d"):
        tiny(scenes, tmp_path / "run", budget="20s")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_measures_and_shows_each_value_with_its_reason(
    scenes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["finetune", "unet-test_resnet", "--data", str(scenes), "--encoder-weights", "none"]
    assert command([*arguments, "--recipe", "auto", "--budget", "1m", "--dry-run", *TINY]) == 0
    shown = capsys.readouterr().out
    rows = {
        line.split()[0]: line.split()[1] for line in shown.splitlines() if len(line.split()) > 1
    }
    assert rows["recipe"] == "scratch"
    assert rows["class_weights"] == "none"
    assert 1 <= int(rows["stages.all.epochs"]) <= 1200
    assert "the budget is 60s" in " ".join(shown.split())
    assert list(tmp_path.iterdir()) == []


def test_every_rule_is_documented_with_its_evidence() -> None:
    page = (Path(__file__).parents[2] / "docs" / "auto.md").read_text()
    found = choose(CAMVID, BASE, [])
    for choice in found.choices:
        key = "stages.NAME.epochs" if choice.key.startswith("stages.") else choice.key
        row = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |"))
        cell = {"none": "none", "docs/study.md": "[the study](study.md)"}[choice.evidence]
        assert row.endswith(f"| {cell} |"), row
