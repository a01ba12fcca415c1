"""The leaderboard as data: what it holds, the version before, and choosing models by it."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.record_examples import confusion_with, record, speed_record

from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.hub.card import card
from zoo.leaderboard import board as board_module
from zoo.leaderboard import build as build_module
from zoo.leaderboard import lookup
from zoo.leaderboard.board import Board, board_text, change_lines, front, read_board
from zoo.leaderboard.build import build, check, facts, write
from zoo.leaderboard.lookup import Wanted, choose_setup, find, measured_rows
from zoo.models.spec import ModelSpec, palette_for
from zoo.records.record import write_record
from zoo.records.speed import write_speed_record
from zoo.runtime import environment

HERE = "AMD EPYC 9R14, 2 threads"
SETUP = f"{HERE}, 360 x 480, batch 1, fp32, channels_last"
GPU = "NVIDIA H200, 360 x 480, batch 1, fp32, channels_last"


def put(folder: Path, *changes: dict[str, Any]) -> None:
    for change in changes:
        write_record(record(**change), folder / "results")


def timing(folder: Path, model: str, p50: float, **changes: Any) -> None:
    latency = {"p50": p50, "p95": p50 + 5}
    write_speed_record(speed_record(model=model, latency_ms=latency, **changes), folder / "speed")


def made(folder: Path) -> Board:
    write(folder / "results", folder / "out", folder / "speed")
    check(folder / "results", folder / "out", folder / "speed")
    return read_board(folder / "out" / "leaderboard.json")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Board:
    """Three models on camvid at mIoU 3/7, 7/13, 2/3; the two better ones timed on two machines."""
    tmp_path = tmp_path_factory.mktemp("three")
    names = {"unet-resnet18": 60, "fpn-resnet18": 70, "unet-resnet50": 80}
    sizes = {"unet-resnet18": 14.33, "fpn-resnet18": 13.0, "unet-resnet50": 32.5}
    for name, hits in names.items():
        put(tmp_path, {"model": name, "confusion": confusion_with(hits), "params_m": sizes[name]})
    put(tmp_path, {"dataset": "drive", "model": "unet-resnet50"})
    timing(tmp_path, "fpn-resnet18", 30.0)
    timing(tmp_path, "unet-resnet50", 60.0)
    timing(tmp_path, "unet-resnet50", 3.0, machine="NVIDIA H200", device="cuda")
    return made(tmp_path)


def test_a_row_holds_what_was_measured_and_what_the_registry_knows(tmp_path: Path) -> None:
    put(tmp_path, {"encoder_weights": "a1_in1k"})
    found = made(tmp_path)
    (table,) = found.tables
    (row,) = table.rows
    assert (row.model, row.decoder, row.encoder) == ("unet-resnet18", "unet", "resnet18")
    assert (row.family, row.licence) == ("resnet", "apache-2.0")
    assert row.miou == 0.738636
    assert row.per_class("iou_per_class") == [0.727273, 0.75, None]
    assert (row.rank, row.best, row.worst, row.places) == (1, 1, 1, "1")
    assert (row.interval, row.images_interval, row.seeds) == (None, None, 1)
    assert found.environments == {"e1": {"torch": "2.15.0", "zoo": "0.1.0"}}
    assert [run.environment for run in row.runs] == ["e1"]
    assert found.previous is None
    assert found.newest == "2025-03-31T12:00:00Z"


def test_a_model_that_the_registry_lacks_keeps_its_name() -> None:
    assert facts("mine", "tag") == ("mine", "mine", "other", None)
    assert facts("net-that-is-mine", None) == ("net", "that-is-mine", "other", None)
    assert facts("unet-resnet18", None).license is None


def test_the_text_has_one_line_a_row(three: Board) -> None:
    text = board_text(three)
    assert json.loads(text)["version"] == three.version
    rows = [line for line in text.splitlines() if '"rank"' in line and '"encoder"' in line]
    assert len(rows) == 4


def test_the_latest_timing_of_a_setup_counts(tmp_path: Path) -> None:
    put(tmp_path, {})
    timing(tmp_path, "unet-resnet18", 30.0, date="2025-01-02T00:00:00Z")
    timing(tmp_path, "unet-resnet18", 20.0, date="2025-01-03T00:00:00Z")
    timing(tmp_path, "unet-resnet18", 10.0, date="2025-01-01T00:00:00Z")
    timing(tmp_path, "unet-resnet18", 70.0, batch=4)
    speeds = made(tmp_path).speeds
    assert [(s.setup, s.p50) for s in speeds] == [
        (SETUP, 20.0),
        (SETUP.replace("batch 1", "batch 4"), 70.0),
    ]
    assert speeds[0].images_per_second == 30.5


def test_a_version_is_compared_with_the_last_one_of_other_records(tmp_path: Path) -> None:
    put(tmp_path, {"model": "unet-a", "confusion": confusion_with(75)})
    put(tmp_path, {"model": "unet-b", "confusion": confusion_with(60)})
    first = made(tmp_path)
    assert first.previous is None
    assert made(tmp_path) == first
    put(tmp_path, {"model": "unet-c", "confusion": confusion_with(80)})
    put(tmp_path, {"model": "unet-b", "confusion": confusion_with(70), "seed": 1})
    second = made(tmp_path)
    assert second.previous is not None
    assert second.previous.version == first.version
    assert made(tmp_path) == second  # a rebuild of the same records changes nothing
    # b: the mean of 3/7 and 7/13 is 48.35 %; c: 2/3.
    assert change_lines(second) == [
        "new: unet-c on camvid, test, pretrained encoder, rank 1, mIoU 66.67 %",
        "changed: unet-a on camvid, test, pretrained encoder, rank 1 to 2",
        "changed: unet-b on camvid, test, pretrained encoder, mIoU 42.86 to 48.35 %, seeds 1 to 2, "
        "rank 2 to 3",
    ]
    for path in (tmp_path / "results").glob("*unet-c*"):
        path.unlink()
    assert change_lines(made(tmp_path)) == [
        "changed: unet-a on camvid, test, pretrained encoder, rank 2 to 1",
        "changed: unet-b on camvid, test, pretrained encoder, rank 3 to 2",
        "gone: unet-c on camvid, test, pretrained encoder",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Cannot read"),
        ("[]", "is not a leaderboard of schema 1. Restore it, or remove it and run"),
        ('{"schema": 2}', "is not a leaderboard of schema 1"),
        ('{"schema": 1, "generated": "x"}', "version: Field required"),
    ],
)
def test_a_damaged_version_before_is_not_passed_over(
    tmp_path: Path, text: str, message: str
) -> None:
    put(tmp_path, {})
    out = tmp_path / "out"
    out.mkdir()
    (out / "leaderboard.json").write_text(text)
    with pytest.raises(InputError) as caught:
        write(tmp_path / "results", out)
    assert message in str(caught.value)
    assert [path.name for path in out.iterdir()] == ["leaderboard.json"]


def test_a_full_disk_is_said_and_the_old_files_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, {})
    before = made(tmp_path)
    put(tmp_path, {"seed": 1})

    def full(path: Path, text: str) -> None:
        raise RunError(f"Cannot write {path}: No space left on device.")

    monkeypatch.setattr(build_module, "write_text", full)
    arguments = ["leaderboard", "build", "--results", str(tmp_path / "results")]
    assert run([*arguments, "--out", str(tmp_path / "out"), "--speed", "none"]) == 1
    assert "leaderboard.md: No space left on device." in capsys.readouterr().err
    assert read_board(tmp_path / "out" / "leaderboard.json") == before


def test_broken_speed_records_stop_the_build(tmp_path: Path) -> None:
    put(tmp_path, {})
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "bad.json").write_text("{")
    with pytest.raises(InputError, match=r"bad\.json"):
        build(tmp_path / "results", tmp_path / "out", tmp_path / "speed")


def test_the_front_keeps_what_nothing_beats() -> None:
    points = {"cheap": (1, 0.5), "same": (1, 0.5), "worse": (1, 0.4), "dear": (3, 0.7)}
    points |= {"beaten": (3, 0.6), "level": (4, 0.7), "middle": (2, 0.6)}
    assert front(points) == {"cheap", "same", "middle", "dear"}
    assert front({}) == set()


def test_the_board_that_ships_is_the_committed_one() -> None:
    root = Path(__file__).parents[2]
    assert board_module.shipped() == read_board(root / "benchmarks" / "leaderboard.json")


def test_an_installation_without_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "PACKAGE", tmp_path / "a" / "b")
    with pytest.raises(RunError, match=r"leaderboard\.json is missing .* Install zoo again"):
        board_module.shipped.__wrapped__()


def names(board: Board, **wanted: Any) -> list[str]:
    return [row.model for row in find(Wanted(**wanted), board)]


def test_models_are_found_by_score_and_pattern(three: Board) -> None:
    best_first = ["unet-resnet50", "fpn-resnet18", "unet-resnet18"]
    assert names(three, data="camvid") == best_first
    assert names(three, data="camvid", min_miou=0.5) == best_first[:2]
    assert names(three, data="camvid", min_miou=7 / 13 - 1e-6, decoder="fpn") == ["fpn-resnet18"]
    assert names(three, data="camvid", pattern="unet-*", encoder="resnet1*") == ["unet-resnet18"]
    assert names(three, data="drive") == ["unet-resnet50"]
    assert names(three, data="camvid", min_miou=0.9) == []


def test_models_are_found_by_latency_on_one_machine(three: Board) -> None:
    at_most = {"max_latency_ms": 50.0, "machine": "epyc"}
    assert names(three, **at_most) == ["fpn-resnet18"]
    assert names(three, data="camvid", **at_most) == ["fpn-resnet18"]
    gpu = find(Wanted(data="camvid", max_latency_ms=50.0, machine="h200"), three)
    assert [(row.model, row.latency_ms, row.setup) for row in gpu] == [("unet-resnet50", 3.0, GPU)]
    slow_last = names(three, data="camvid", sort="latency", machine="EPYC")
    assert slow_last == ["fpn-resnet18", "unet-resnet50", "unet-resnet18"]


def test_models_are_sorted_by_cost_or_front(three: Board) -> None:
    assert names(three, data="camvid", sort="params") == [
        "fpn-resnet18", "unet-resnet18", "unet-resnet50",
    ]  # fmt: skip
    by_size = find(Wanted(data="camvid", sort="pareto"), three)
    assert [(row.model, row.on_front) for row in by_size] == [
        ("unet-resnet50", True), ("fpn-resnet18", True), ("unet-resnet18", False),
    ]  # fmt: skip
    by_time = find(Wanted(data="camvid", sort="pareto", machine="H200"), three)
    assert [row.on_front for row in by_time] == [True, False, False]


def test_a_timing_belongs_to_rows_whose_network_sees_its_size(tmp_path: Path) -> None:
    put(tmp_path, {"confusion": confusion_with(60)})
    scaled = {"input_size": [450, 600], "recipe_hash": "ab" * 8}
    put(tmp_path, {**scaled, "confusion": confusion_with(80)})
    put(tmp_path, {"dataset": "nuclei", "size": None})
    timing(tmp_path, "unet-resnet18", 40.0)
    board = made(tmp_path)
    first, second = board.tables[0].rows
    assert (first.input_size, second.input_size) == ([450, 600], None)
    assert list(board.speed_in(SETUP)) == [second.id]
    (found,) = find(Wanted(data="camvid", sort="latency", machine="epyc"), board)
    assert (found.miou, found.latency_ms) == (first.miou, None)
    timing(tmp_path, "unet-resnet18", 70.0, size=[450, 600])
    board = made(tmp_path)
    assert [s.p50 for setup in board.setups for s in board.speed_in(setup).values()] == [40, 70]
    other = {"overrides": {"model.encoder_depth": 4}, "recipe_hash": "cd" * 8}
    put(tmp_path, {**other, "confusion": confusion_with(70)})  # nobody has timed that network
    board = made(tmp_path)
    assert len(board.tables[0].rows) == 3
    assert [s.p50 for setup in board.setups for s in board.speed_in(setup).values()] == [40, 70]


def test_augmented_and_quantised_rows_stand_apart_and_claim_no_latency(tmp_path: Path) -> None:
    changed: list[dict[str, Any]] = [
        {},
        {"tta": "flip,0.75,1.25"},
        {"backend": "openvino", "precision": "int8"},
        {"window": 256, "overlap": 0.5, "blend": "gaussian"},
    ]
    put(tmp_path, *({**change, "confusion": confusion_with(60)} for change in changed))
    timing(tmp_path, "unet-resnet18", 40.0)
    board = made(tmp_path)
    plain, *others = sorted(board.tables, key=lambda table: len(table.title))
    assert plain.title == "camvid, test, pretrained encoder"
    assert sorted(table.title.removeprefix(plain.title) for table in others) == [
        ", backend openvino, precision int8",
        ", test-time augmentation flip,0.75,1.25",
        ", window 256, overlap 0.5, blend gaussian",
    ]
    rows = [row for _, row in board.entries()]
    assert len({row.id for row in rows}) == 4
    assert list(board.speed_in(SETUP)) == [plain.rows[0].id]
    fast = find(Wanted(data="camvid", max_latency_ms=50, machine="epyc"), board)
    assert [found.table for found in fast] == [plain.title]
    page = (tmp_path / "out" / "leaderboard.md").read_text()
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        f"## {table.title}" for table in board.tables
    ]
    site = (tmp_path / "out" / "leaderboard.html").read_text()
    assert "--format openvino --int8 --calibrate DATA --out FILE.xml\nzoo eval FILE.xml" in site
    assert "--out RESULTS --backend openvino" in site
    with (tmp_path / "out" / "leaderboard.csv").open() as file:
        next(file)
        cells = [(row["tta"], row["inference"]) for row in csv.DictReader(file)]
    assert sorted(cells) == [
        ("flip,0.75,1.25", ""),
        ("none", ""),
        ("none", "backend=openvino precision=int8"),
        ("none", "window=256 overlap=0.5 blend=gaussian"),
    ]


def test_latency_is_of_this_machine_unless_another_is_named(
    three: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "cpu_name", lambda: "AMD EPYC 9R14")
    assert choose_setup(three, None) == SETUP
    monkeypatch.setattr(lookup, "cpu_name", lambda: "Z80")
    with pytest.raises(InputError) as caught:
        choose_setup(three, None)
    message = str(caught.value)
    assert message.startswith(
        "No model was timed on this machine (Z80). Give --machine with a part"
    )
    assert f"  - {SETUP}" in message
    assert f"  - {GPU}" in message
    with pytest.raises(InputError, match=r"Several setups match '360 x 480'\. Give --machine"):
        choose_setup(three, "360 x 480")


def test_the_name_of_this_machine_is_the_one_that_records_have() -> None:
    assert environment.device_name("cpu").startswith(f"{environment.cpu_name()}, ")


def test_the_commit_is_that_of_the_source_tree() -> None:
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "rev-parse", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("no git, or not a checkout")
    assert environment.commit().removesuffix("-dirty") == done.stdout.strip()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"data": "camvd"}, "Unknown data set 'camvd'. Did you mean camvid? Available: camvid"),
        ({"min_miou": 0.5}, "--min-miou needs a data set: add --data"),
        ({"sort": "pareto"}, "--sort pareto needs a data set: add --data"),
        (
            {"data": "camvid", "min_miou": 60.0},
            "--min-miou must be between 0 and 1, not 60; for example",
        ),
        (
            {"data": "camvid", "min_miou": float("nan")},
            "--min-miou must be between 0 and 1, not nan",
        ),
        ({"max_latency_ms": 0.0}, "--max-latency-ms must be above 0, not 0"),
        ({"max_latency_ms": float("nan")}, "--max-latency-ms must be above 0, not nan"),
        ({"data": "camvid", "sort": "speed"}, "Unknown order 'speed'."),
    ],
)
def test_filters_that_cannot_be_answered(
    three: Board, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        find(Wanted(**wanted), three)
    assert message in str(caught.value)


def test_without_any_timing_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    put(tmp_path, {})
    with pytest.raises(
        InputError, match=r"No model on the leaderboard was timed\. `zoo bench speed NAME"
    ):
        find(Wanted(max_latency_ms=5.0), made(tmp_path))


def test_what_was_measured_of_a_model(three: Board) -> None:
    assert dict(measured_rows("unet-resnet50", three)) == {
        "measured.1": "mIoU 66.67 % on camvid, test, pretrained encoder: rank 1 of 3, 1 seed, "
        "recipe cnn",
        "measured.2": "mIoU 73.86 % on drive, test, pretrained encoder: rank 1 of 1, 1 seed, "
        "recipe cnn",
        "latency.1": f"60.0 ms on {SETUP}",
        "latency.2": f"3.0 ms on {GPU}",
    }
    assert dict(measured_rows("unet-nothing", three)) == {}


def test_the_command_lists_what_was_measured(
    three: Board, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lookup, "shipped", lambda: three)
    words = ["list", "--data", "camvid", "--min-miou", "0.5", "--max-latency-ms", "50"]
    assert run([*words, "--machine", "epyc", "--sort", "pareto"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "# camvid, test, pretrained encoder\n"
        f"fpn-resnet18  *  mIoU 53.85 %  13.00 M parameters  30.0 ms on {SETUP}\n"
    )
    assert "1 rows" in printed.err
    assert run(["list", "--data", "camvid", "--json"]) == 0
    assert [row["model"] for row in json.loads(capsys.readouterr().out)] == [
        "unet-resnet50", "fpn-resnet18", "unet-resnet18",
    ]  # fmt: skip
    assert run(["list", "--data", "camvid", "--min-miou", "0.99"]) == 0
    assert capsys.readouterr().out == ""
    assert run(["list", "--data", "camvid", "--license", "cc-*"]) == 2
    assert "licensed under 'cc-*'. Their licenses: apache-2.0." in capsys.readouterr().err
    assert run(["list", "--data", "camvid", "--license", "apache*", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert run(["show", "unet-resnet50", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"key": "latency.2", "value": f"3.0 ms on {GPU}", "origin": "leaderboard"} in rows


def test_a_card_says_what_was_measured_of_the_architecture(
    three: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "shipped", lambda: three)

    def text(name: str) -> str:
        names = ["a", "b"]
        spec = ModelSpec(
            name=name, decoder="unet", encoder="resnet50", classes=names,
            palette=palette_for(names, None), mean=[0.0] * 3, std=[1.0] * 3,
        )  # fmt: skip
        return card(spec, None, None)

    assert (
        "## On the leaderboard\n\nMeasured for this architecture, not for these weights:\n\n"
        "- mIoU 66.67 % on camvid, test, pretrained encoder: rank 1 of 3, 1 seed, recipe cnn\n"
    ) in text("unet-resnet50")
    assert "leaderboard" not in text("unet-resnet34")
