"""The figures that ship: scores against records, counts against the models themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.record_examples import record

from zoo.checks.figures import count_problems, score_problems
from zoo.cli.main import run
from zoo.creation.create import create
from zoo.leaderboard.board import Board
from zoo.leaderboard.build import assemble
from zoo.leaderboard.rank import rank
from zoo.models.build import gmacs, params_m
from zoo.records.record import Record, write_record
from zoo.registry.load import CuratedModel

MODEL = "unet-resnet18"


def models(path: str | None, **changes: Any) -> dict[str, CuratedModel]:
    weights: dict[str, Any] = {
        "hub": "org/repo",
        "revision": "0" * 40,
        "metrics": {"miou": 0.7386, "pixel_accuracy": 0.85},
        "data": "camvid",
        "split": "test",
        "protocol": 1,
        "results": path,
        **changes,
    }
    row = {"encoder": "resnet18", "weights": {"camvid": weights}}
    return {MODEL: CuratedModel.model_validate(row)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_record(record(), tmp_path / "benchmarks")
    return tmp_path


def stated(root: Path, **changes: Any) -> str:
    (path,) = (root / "benchmarks").glob("*.json")
    return "\n".join(score_problems(models(f"benchmarks/{path.name}", **changes), root))


def test_scores_that_are_those_of_their_record(root: Path) -> None:
    assert stated(root) == ""  # the record says 0.738636... and 0.85
    assert stated(root, metrics={}, results=None) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"miou": 0.7387}}, "weights.camvid: metrics.miou: is 0.7387, 0.738636 in "),
        ({"metrics": {"iou": 0.5}}, "metrics.iou: benchmarks/camvid-test"),
        ({"metrics": {"iou_per_class": 0.5}}, "has no such figure"),
        ({"data": "drive"}, "data is 'drive', 'camvid' in benchmarks/camvid-test"),
        ({"split": "val"}, "split is 'val', 'test' in"),
        ({"protocol": 2}, "protocol is 2, 1 in"),
        ({"results": None}, "metrics need `results`, the record that they are from"),
        ({"results": "benchmarks/none.json"}, "Cannot read"),
    ],
)
def test_scores_that_are_not(root: Path, changes: dict[str, Any], message: str) -> None:
    found = stated(root, **changes)
    assert found.startswith(f"models.{MODEL}.weights.camvid: ")
    assert message in found


def test_scores_of_another_model(root: Path) -> None:
    (path,) = (root / "benchmarks").glob("*.json")
    other = {"fpn-resnet18": models(f"benchmarks/{path.name}")[MODEL]}
    (found,) = score_problems(other, root)
    assert "the model is 'fpn-resnet18', 'unet-resnet18' in benchmarks" in found


def test_an_installation_without_records_has_nothing_to_compare(tmp_path: Path) -> None:
    assert score_problems(models("benchmarks/none.json"), tmp_path) == []


def on_board(*records: Record) -> Board:
    named = {Path(f"{number}.json"): item for number, item in enumerate(records)}
    return assemble(rank(named), {}, (Path(), Path()), None)


def test_counts_are_made_again() -> None:
    net = create("unet-test_resnet", classes=3, encoder_weights=None)
    counts = {"params_m": params_m(net), "gmacs": gmacs(net.spec, 64, 96)}
    right = record(model="unet-test_resnet", size=[64, 96], **counts)
    assert count_problems(board=on_board(right)) == []
    wrong = {"params_m": counts["params_m"] + 0.001, "gmacs": 1.0}
    found = count_problems(board=on_board(right.model_copy(update=wrong)))
    assert len(found) == 2
    assert f"M parameters on the leaderboard, {counts['params_m']:.6f} counted" in found[0]
    assert "unet-test_resnet at 64 x 96: 1.0 GMACs on the leaderboard" in found[1]
    unsized = record(model="unet-test_resnet", size=None, params_m=counts["params_m"])
    assert count_problems(board=on_board(unsized)) == []


def test_a_net_built_for_its_crop_is_counted_so() -> None:
    """Its position embeddings are as many as the crop has patches."""
    net = create("linear-vit_tiny_patch16_224", classes=3, encoder_weights=None, img_size=96)
    usual = create("linear-vit_tiny_patch16_224", classes=3, encoder_weights=None)
    assert params_m(net) != params_m(usual)
    cropped = record(
        model="linear-vit_tiny_patch16_224",
        size=None,
        params_m=params_m(net),
        overrides={"crop": 96},
    )
    assert count_problems(board=on_board(cropped)) == []
    (found,) = count_problems(board=on_board(cropped.model_copy(update={"overrides": {}})))
    assert "M parameters on the leaderboard" in found


def test_a_model_that_cannot_be_built_is_named() -> None:
    (found,) = count_problems(board=on_board(record(model="unet-none")))
    assert found.startswith("unet-none is on the leaderboard and cannot be built: ")


def test_a_sample_is_counted() -> None:
    names = [f"unet-none{number}" for number in range(5)]
    everything = on_board(*(record(model=name) for name in names))
    assert len(count_problems(2, everything)) == 2
    assert len(count_problems(None, everything)) == 5
    assert len(count_problems(9, everything)) == 5


def test_what_ships_is_right() -> None:
    assert score_problems() == []
    assert count_problems(1) == []


def test_the_command_joins_all_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []
    monkeypatch.setattr(
        "zoo.checks.encoder_table.check_registry", lambda n: asked.append(n) or ["a"]
    )
    monkeypatch.setattr("zoo.checks.figures.score_problems", lambda: ["b"])
    monkeypatch.setattr("zoo.checks.figures.count_problems", lambda n: asked.append(n) or ["c"])
    assert run(["check", "registry", "--sample", "0"]) == 2
    assert asked == [None, None]
    assert "problems:\n  - a\n  - b\n  - c\n" in capsys.readouterr().err
