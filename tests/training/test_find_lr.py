"""The range test: rates read off a curve by hand, and real tests that leave the model alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.training_settings import MODEL

from zoo.cli.main import run as zoo
from zoo.common.errors import InputError, RunError
from zoo.common.files import sha256
from zoo.data.scenes import write_scenes
from zoo.training.engine.step import Step
from zoo.training.find_lr import Finding, Point, chart, find_lr, find_lr_for, suggest
from zoo.training.finetune import finetune
from zoo.training.plan import RunRequest

SHORT = ["crop=64", "batch_size=4", "precision=fp32", "workers=0"]


def points(losses: list[float]) -> list[Point]:
    """One point a quarter of a decade, from 1e-4 on."""
    return [Point(10 ** (-4 + n / 4), loss, loss) for n, loss in enumerate(losses)]


def found(data: Path, out: Path, *more: str, **options: Any) -> Finding:
    options = {"steps": 12, "encoder_weights": None, "recipe": "scratch", "out": out} | options
    return find_lr(options.pop("model", MODEL), data, overrides=[*SHORT, *more], **options)


def test_rates_are_read_off_the_smoothed_curve() -> None:
    # the lowest loss stands at 1e-4 x 10^(8/4) = 1e-2; the steepest fall is around 1e-4 x 10^(5/4)
    finding = suggest(points([5, 5, 5, 4.9, 4.6, 3.8, 3.0, 2.8, 2.7, 3, 4, 9]), "all", "diverged")
    assert finding.tenth_of_minimum == finding.suggestion == pytest.approx(1e-3)
    assert finding.steepest == pytest.approx(10**-2.75)
    assert (finding.stage, finding.ended) == ("all", "diverged")


def test_a_loss_that_only_rises_suggests_a_tenth_of_the_lowest_rate() -> None:
    finding = suggest(points([float(n) for n in range(12)]), "all", "done")
    assert (finding.suggestion, finding.steepest) == (pytest.approx(1e-5), pytest.approx(1e-4))


def test_too_few_points_say_nothing() -> None:
    with pytest.raises(RunError, match=r"diverged after 9 steps, at a rate of 0\.01: too few"):
        suggest(points([1.0] * 9), "all", "not finite")
    with pytest.raises(RunError, match="after 0 steps, at a rate of 1e-06"):
        suggest([], "all", "not finite")


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    finetune(
        MODEL, scenes, recipe="scratch", encoder_weights=None, out=out,
        overrides=[*SHORT, "stages=[{name: all, epochs: 1}]"],
    )  # fmt: skip
    return out


def test_the_model_is_left_alone_and_the_files_are_whole(
    trained: Path, scenes: Path, tmp_path: Path
) -> None:
    before = {path: sha256(path) for path in sorted(trained.rglob("*")) if path.is_file()}
    finding = found(scenes, tmp_path / "lr", model=trained, encoder_weights="default")
    after = {path: sha256(path) for path in sorted(trained.rglob("*")) if path.is_file()}
    assert after == before
    assert sorted(path.name for path in (tmp_path / "lr").iterdir()) == [
        ".zoo-files.jsonl", "lr_finder.json", "lr_finder.png", "lr_finder.svg",
    ]  # fmt: skip
    stored = json.loads((tmp_path / "lr" / "lr_finder.json").read_text())
    assert stored["suggestion"] == finding.suggestion
    assert stored["stage"] == "all"
    rates = [point["rate"] for point in stored["points"]]
    # twelve rates from 1e-6 to 1 in equal steps of their logarithm
    assert rates == pytest.approx([10 ** (-6 + 6 * n / 11) for n in range(12)][: len(rates)])
    average = 0.0
    for number, point in enumerate(stored["points"], 1):
        average = 0.9 * average + 0.1 * point["loss"]
        assert point["smoothed"] == pytest.approx(average / (1 - 0.9**number))


def test_the_same_test_twice_gives_the_same_curve(scenes: Path, tmp_path: Path) -> None:
    one, other = found(scenes, tmp_path / "a"), found(scenes, tmp_path / "b")
    assert one == other
    assert one.points[0].loss != one.points[-1].loss


def test_only_what_the_stage_lets_learn_moves(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning: list[set[str]] = []
    rates: list[set[float]] = []
    call = Step.__call__

    def watching(self: Step, *batch: Any) -> float:
        learning.append({n for n, p in self.model.named_parameters() if p.requires_grad})
        rates.append({round(group["lr"], 12) for group in self.optimizer.param_groups})
        return call(self, *batch)

    monkeypatch.setattr(Step, "__call__", watching)
    stages = "stages=[{name: head, epochs: 1, learn: head}, {name: all, epochs: 1}]"
    found(scenes, tmp_path / "lr", stages, stage="head")
    head = {"net.segmentation_head.0.weight", "net.segmentation_head.0.bias"}
    assert all(names == head for names in learning)
    # the decoder's rate and a tenth of it in the encoder
    assert rates[0] == {1e-6, 1e-7}


def test_nan_ends_the_test(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0 - 0.1 * n for n in range(11)] + [math.nan])
    monkeypatch.setattr(Step, "__call__", lambda *_: next(losses))
    finding = found(scenes, tmp_path / "lr", steps=50)
    assert (finding.ended, len(finding.points)) == ("not finite", 11)
    assert json.loads((tmp_path / "lr" / "lr_finder.json").read_text())["ended"] == "not finite"


def test_a_diverging_loss_ends_the_test(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0] * 12 + [100.0] * 38)
    monkeypatch.setattr(Step, "__call__", lambda *_: next(losses))
    finding = found(scenes, tmp_path / "lr", steps=50)
    # one loss of 100 with weight 0.1 lifts the average from 1 to more than 3
    assert (finding.ended, len(finding.points)) == ("diverged", 13)


def test_nan_from_the_start_writes_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Step, "__call__", lambda *_: math.nan)
    with pytest.raises(RunError, match="too few to suggest a rate"):
        found(scenes, tmp_path / "lr")
    assert not (tmp_path / "lr").exists()


def test_bad_input(trained: Path, scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown stage 'al'\. Did you mean all\?"):
        found(scenes, tmp_path / "lr", stage="al")
    with pytest.raises(InputError, match="is a run folder, which the learning-rate test"):
        found(scenes, trained)
    with pytest.raises(InputError, match="steps is 5; a curve needs at least 10"):
        found(scenes, tmp_path / "lr", steps=5)
    assert not (tmp_path / "lr").exists()


def test_the_chart_shows_both_lines_and_both_rates() -> None:
    finding = suggest(points([5, 5, 5, 4.9, 4.6, 3.8, 3.0, 2.8, 2.7, 3, 4, 900]), "all", "done")
    drawn = chart(finding).to_dict()
    lines, rules = (layer["data"]["values"] for layer in drawn["layer"])
    assert len(lines) == 24
    assert {row["series"]: row["rate"] for row in rules} == {
        "tenth of the minimum": pytest.approx(1e-3), "steepest": pytest.approx(10**-2.75),
    }  # fmt: skip
    low, high = drawn["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < 2.7
    assert 5 < high < 10  # a loss that diverges does not stretch the axis


@pytest.mark.long
def test_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_scenes(tmp_path / "small", train=4, val=2, test=2, size=(64, 80))
    command = ["finetune", MODEL, "--data", str(data), "--encoder-weights", "none", *SHORT]
    monkeypatch.setattr("zoo.training.find_lr.find_lr_for", few_steps)
    assert zoo([*command, "--find-lr"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert sorted(printed) == ["ended", "stage", "steepest", "suggestion", "tenth_of_minimum"]
    assert (tmp_path / "runs" / "unet-test_resnet-scenes-lr" / "lr_finder.png").exists()
    assert zoo([*command, "--stage", "all"]) == 2
    assert "--stage only goes with --find-lr" in capsys.readouterr().err


REAL = find_lr_for


def few_steps(request: RunRequest, stage: str | None, overwrite: bool) -> Finding:
    return REAL(request, stage=stage, steps=12, overwrite=overwrite)
