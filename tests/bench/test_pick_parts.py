"""The parts of a search: halving, configurations, candidates, short runs; worked out by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.record_examples import speed_record

from zoo.bench.pick.halving import (
    DEFAULTS,
    Candidate,
    Configuration,
    Rung,
    TrialCost,
    choices,
    common_size,
    final_seconds,
    grid,
    is_late,
    least_final_s,
    named,
    rungs_of,
    schedule,
    survivors,
    within_latency,
)
from zoo.bench.pick.state import Store
from zoo.bench.pick.trial import TrialOrder, part, shortened_plan, work
from zoo.bench.speed.measure import SpeedOutcome, SpeedSetting
from zoo.common.errors import InputError, RunError
from zoo.common.files import read_json
from zoo.data.load import load_dataset
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides
from zoo.registry.resolve import resolve
from zoo.training.auto import resolve_auto
from zoo.training.budget import Cost
from zoo.training.plan import RunRequest, make_plan

CHEAP = TrialCost(start_s=10, step_s=0.5, validation_s=5, final_s=100)  # shortest trial: 30 s


def test_rungs_share_the_time_equally() -> None:
    assert rungs_of(1800, 9) == [Rung(9, 100), Rung(3, 300)]
    assert rungs_of(1800, 10) == [Rung(10, 60), Rung(4, 150), Rung(2, 300)]
    assert rungs_of(600, 3) == [Rung(3, 200)]
    assert rungs_of(600, 2) == [Rung(2, 300)]


def test_the_budget_holds_as_many_trials_as_fit() -> None:
    # half of 1080 s for trials: 9 in two rungs have 30 s each, which is the shortest trial; ten in
    # three rungs would have 18 s
    found = schedule({"a": CHEAP, "b": CHEAP}, 1080, 1200, variants=9, most=27)
    assert found.rungs == [Rung(9, 30), Rung(3, 90)]
    assert (found.models, found.left_out) == (["a", "b"], {})
    assert CHEAP.least_s == 30
    assert CHEAP.steps(30) == 30
    assert CHEAP.steps(90) == 150
    assert CHEAP.steps(1) == 30
    assert schedule({"a": CHEAP}, 10**6, 10**6, variants=4, most=27).rungs[0].trials == 4
    assert schedule({"a": CHEAP}, 10**6, 10**6, variants=99, most=27).rungs[0].trials == 27


def test_models_that_do_not_fit_are_left_out_with_the_reason() -> None:
    slow = TrialCost(start_s=10, step_s=10, validation_s=5, final_s=100)  # shortest: 315 s
    long = TrialCost(start_s=10, step_s=0.5, validation_s=5, final_s=541)
    found = schedule({"a": CHEAP, "b": slow, "c": long}, 1080, 1200, variants=9, most=27)
    assert found.models == ["a"]
    assert found.left_out == {
        "b": "its shortest trial takes 6m here, and a trial has 30s",
        "c": "fine-tuning it takes 10m or more here, and 9m are left for that",
    }
    few = schedule(dict.fromkeys("abcd", CHEAP), 240, 300, variants=9, most=27)
    assert few.rungs == [Rung(3, 40)]
    assert few.models == ["a", "b", "c"]
    assert few.left_out == {"d": "the budget is enough for 3 trials, taken by the models before it"}


def test_more_models_come_before_more_trials() -> None:
    slower = TrialCost(start_s=10, step_s=1, validation_s=5, final_s=100)  # shortest trial: 45 s
    # six trials in two rungs have 45 s each, seven would have 39 s
    found = schedule({"a": CHEAP, "b": slower}, 1080, 1200, variants=9, most=27)
    assert found.rungs == [Rung(6, 45), Rung(2, 135)]
    assert (found.models, found.left_out) == (["a", "b"], {})


def test_fine_tuning_has_what_is_left_but_never_less_than_it_needs() -> None:
    assert final_seconds(1200, 500, CHEAP) == 700
    assert final_seconds(1200, 1000, CHEAP) == 300  # a quarter of the budget
    assert final_seconds(400, 390, CHEAP) == pytest.approx(110)  # 100 s and a tenth


def test_a_rung_that_takes_too_long_ends_early() -> None:
    assert not is_late(Rung(9, 10), [50, 62.5])  # 112.5 s: a quarter more than 90 s
    assert is_late(Rung(9, 10), [50, 62.6])
    assert not is_late(Rung(9, 10), [1000])  # at least two trials


def test_a_budget_that_is_too_little_names_the_least() -> None:
    # two trials of 30 s are half of 120 s; fine-tuning takes 100 s, so 200 s: more, and 60 are gone
    with pytest.raises(InputError, match=r"of 90s is too short .* after 60s of .* --budget 5m,"):
        schedule({"a": CHEAP}, 30, 90, variants=9, most=27)
    assert schedule({"a": CHEAP}, 240, 300, variants=9, most=27).rungs
    with pytest.raises(InputError, match="With one configuration of one model there is nothing"):
        schedule({"a": CHEAP}, 10**6, 10**6, variants=1, most=27)


def test_the_best_go_on_and_failures_never_do() -> None:
    scores = {0: 0.2, 1: None, 2: 0.5, 3: 0.5, 4: 0.1}
    assert survivors(scores, 3) == [2, 3, 0]
    assert survivors({0: None, 1: 0.0}, 2) == [1]
    assert survivors({0: None}, 1) == []


def test_the_least_final_run_keeps_the_reserve() -> None:
    # 10 + 20 s of epochs, 2 checkpoints of 1 s and one validation of 6 s are 38 s of 95 %
    cost = Cost(epochs_s=(10, 20), validation_s=6, save_s=1)
    assert least_final_s(cost, 2, measuring_s=7) == pytest.approx(7 + 38 / 0.95)


def test_choices_become_overrides() -> None:
    recipe = load_registry().recipe("cnn")
    assert Configuration("m").overrides(recipe) == []
    texts = Configuration("m", "x 1/3", "ce+lovasz", "head only").overrides(recipe)
    assert texts == [
        "optimizer.lr=0.000667",
        "loss={ce: 1.0, lovasz: 1.0}",
        "stages.head.unfreeze=0.0",
        "stages.all.unfreeze=0.0",
    ]
    changed = apply_overrides(recipe, texts)
    assert changed.loss == {"ce": 1.0, "lovasz": 1.0}
    assert [stage.unfreeze for stage in changed.stages] == [0.0, 0.0]
    for configuration in grid(["m"], choices([], pretrained=True)):
        for name in ("cnn", "transformer"):
            apply_overrides(recipe, configuration.overrides(load_registry().recipe(name)))


def test_what_the_user_sets_is_not_searched() -> None:
    assert [len(values) for values in choices([], pretrained=True).values()] == [3, 3, 3]
    assert [len(values) for values in choices([], pretrained=False).values()] == [3, 3, 1]
    given = ["optimizer.lr=0.1", "stages.all.unfreeze=0.5", "crop=64"]
    assert [len(values) for values in choices(given, pretrained=True).values()] == [1, 3, 1]
    found = grid(["a", "b"], choices(given, pretrained=True))
    assert len(set(found)) == len(found) == 6
    assert found[:2] == [Configuration("a"), Configuration("b")]


def test_the_models_tried_by_default_exist() -> None:
    assert named([], None) == DEFAULTS
    for model in DEFAULTS:
        resolved = resolve(model)
        assert resolved.supported, model
        assert resolved.hub_id is not None, model


def test_models_are_named_or_matched() -> None:
    found = named(["fpn-test_resnet", "unet-test_res*", "fpn-*test_resnet"], None)
    assert found == {"fpn-test_resnet": "named", "unet-test_resnet": "matches unet-test_res*"}
    with pytest.raises(InputError) as caught:
        named(["unet-nothing", "what-*", "unet-*"], None)
    text = str(caught.value)
    assert "--models cannot be used:" in text
    assert "Unknown encoder 'nothing'." in text
    assert "no model matches 'what-*'" in text
    assert "models match; the limit is 40" in text


def test_the_latency_decides_and_is_said() -> None:
    def measure(names: Sequence[str], setting: SpeedSetting) -> Iterator[SpeedOutcome]:
        assert setting.size == (64, 96)
        yield SpeedOutcome("a", speed_record(latency_ms={"p50": 30.0, "p95": 31.0}))
        yield SpeedOutcome("b", speed_record(latency_ms={"p50": 30.1, "p95": 31.0}))
        yield SpeedOutcome("c", None, "no memory")

    models = {"a": "small", "b": "named", "c": "named"}
    assert within_latency(models, 30, SpeedSetting(size=(64, 96)), measure) == [
        Candidate("a", True, "small; 30.0 ms at 64x96 of at most 30 ms", 30.0),
        Candidate("b", False, "30.1 ms at 64x96 is more than 30 ms", 30.1),
        Candidate("c", False, "its latency cannot be measured: no memory"),
    ]


def test_the_size_is_that_of_most_images(scenes: Path) -> None:
    assert common_size(load_dataset(scenes)) == (64, 80)


def auto_plan(scenes: Path, out: Path, *overrides: str) -> Any:
    request = RunRequest(
        "unet-test_resnet", scenes, recipe="auto", out=out, encoder_weights=None,
        overrides=("batch_size=4", "crop=64", *overrides),
    )  # fmt: skip
    return resolve_auto(make_plan(request))


@pytest.mark.parametrize(
    ("steps", "epochs", "images"),
    [
        (1, [1, 1], 4),  # never less than a batch in each stage
        (3, [1, 1], 6),  # 12 images in two epochs
        (6, [1, 2], 8),  # 24 images are three epochs of all eight
        (20, [3, 7], 8),
    ],
)
def test_a_short_run_has_all_stages(
    scenes: Path, tmp_path: Path, steps: int, epochs: list[int], images: int
) -> None:
    stages = "stages=[{name: a, epochs: 30}, {name: b, epochs: 70}]"
    short = shortened_plan(auto_plan(scenes, tmp_path, stages), steps)
    assert [stage.epochs for stage in short.recipe.stages] == epochs
    assert len(short.dataset.samples("train")) == images
    assert short.recipe.validate_every == sum(epochs)


def test_small_data_sets_are_repeated(scenes: Path) -> None:
    found = part(load_dataset(scenes), 11)
    assert len(found.samples("train")) == 11
    assert len({sample.name for sample in found.samples("train")}) == 8
    assert len(found.samples("val")) == 2


def test_a_process_measures_and_trains(scenes: Path, tmp_path: Path) -> None:
    values = {
        "model": "unet-test_resnet", "data": str(scenes), "encoder_weights": None,
        "overrides": ["batch_size=4", "crop=64", "precision=fp32"], "registry": None,
    }  # fmt: skip
    began = time.time()
    work(tmp_path / "cost", TrialOrder(**values, steps=None, began=began))
    answer = read_json(tmp_path / "cost" / "result.json")
    cost = TrialCost(**answer["result"])
    assert 0 < cost.start_s < answer["seconds"] < time.time() - began
    assert 0 < 30 * cost.step_s < cost.least_s
    assert cost.final_s > cost.step_s
    work(tmp_path / "trial", TrialOrder(**values, steps=4, began=began))
    [miou] = read_json(tmp_path / "trial" / "result.json")["result"].values()
    assert 0 < miou < 1
    log = (tmp_path / "trial" / "run" / "log.jsonl").read_text()
    assert log.count('"event": "epoch"') == 1
    assert log.count('"event": "step"') == 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    pytest.importorskip("optuna")
    return Store(tmp_path / "trials.sqlite3", seed=0)


CHOICES = choices(["loss={ce: 1.0}"], pretrained=False)
OPTIONS = {"model": ("a", "b"), **CHOICES}


def test_queued_trials_come_first_and_none_comes_twice(store: Store, tmp_path: Path) -> None:
    everything = grid(["a", "b"], CHOICES)
    seen = []
    for turn in range(6):
        store.queue(0, [Configuration("b"), Configuration("a")])
        number, found = store.next(0, OPTIONS, everything)
        assert store.next(0, OPTIONS, everything) == (number, found)  # as after a kill
        store.tell(0, number, 0.1 * turn if turn else None, 30, 1.5, "" if turn else "NaN")
        seen.append(found)
    assert seen[:2] == [Configuration("b"), Configuration("a")]
    assert set(seen) == set(everything)
    trials = Store(tmp_path / "trials.sqlite3", seed=0).trials(0)
    assert [trial.configuration for trial in trials] == seen
    assert (trials[0].miou, trials[0].reason) == (None, "NaN")
    assert (trials[1].miou, trials[1].steps, trials[1].seconds) == (0.1, 30, 1.5)
    assert store.trials(1) == []


def test_suggestions_follow_the_seed(store: Store, tmp_path: Path) -> None:
    everything = grid(["a", "b"], CHOICES)
    first = [store.next(0, OPTIONS, everything)]
    same = Store(tmp_path / "same.sqlite3", seed=0)
    assert [same.next(0, OPTIONS, everything)] == first


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "trials.sqlite3").write_text("this is no database, however long it may be" * 99)
    with pytest.raises(RunError, match=r"Cannot use .*trials.sqlite3: "):
        Store(tmp_path / "trials.sqlite3", seed=0)
