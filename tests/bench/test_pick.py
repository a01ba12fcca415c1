"""`zoo pick`: a whole search with processes that only pretend, kills, messages, one real search."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from zoo.bench.pick import search
from zoo.bench.pick.halving import Configuration
from zoo.bench.pick.state import Asked
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.common.files import read_json, write_json
from zoo.training.plan import RunRequest

MODELS = ("unet-test_resnet", "fpn-test_resnet", "linknet-test_resnet", "manet-test_resnet")
pytest.importorskip("optuna")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Trials that only pretend, and what the run at the end was asked for."""
    found: list[dict[str, Any]] = []

    def train(request: RunRequest) -> None:
        options = vars(request)
        found.append(options)
        if len(found) == 1:
            raise InputError("the machine is slower by now")
        write_json(options["out"] / "run.json", {})
        if len(found) == 2:
            raise KeyboardInterrupt
        write_json(options["out"] / "result.json", {"best_miou": 0.875})

    monkeypatch.setattr("zoo.bench.pick.search.train", train)
    return found


def asked(scenes: Path, **changes: Any) -> Asked:
    values = {"data": str(scenes), "budget": "216s", "models": MODELS, "encoder_weights": None}
    return Asked(**values | {"overrides": ("crop=64", "batch_size=4")} | changes)


@pytest.mark.long
def test_a_search_halves_and_goes_on_where_it_was_stopped(
    scenes: Path, tmp_path: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The shortest trial takes 6 s: of about 107 s for trials, 8 in two rungs have 6.7 s each."""
    out = tmp_path / "search"
    real, tells = search.Store.tell, []

    def stop_after_the_fourth(self: Any, *arguments: Any) -> None:
        real(self, *arguments)
        tells.append(arguments)
        if len(tells) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(search.Store, "tell", stop_after_the_fourth)
    ends = (KeyboardInterrupt, InputError, KeyboardInterrupt)  # in a rung, then in the last run
    for end in ends:
        with pytest.raises(end):
            search.pick(asked(scenes), out, worker="helpers.fake_trial")
    picked = search.pick(asked(scenes), out, worker="helpers.fake_trial")
    said = " ".join(capsys.readouterr().err.split())
    assert "try unet-test_resnet: named" in said
    assert "skip manet-test_resnet: it cannot be trained: no such weights" in said
    rungs = read_json(out / "pick.json")["schedule"]["rungs"]
    first, second = (rung["trials"] for rung in rungs)
    assert f"{first} trials of 7s, then {second} trials of " in said
    lines = (out / "started").read_text().splitlines()
    assert len(lines) == len({line.split()[0] for line in lines}) == 4 + first + second
    tried = json.loads((out / "tried.json").read_text())
    assert len(tried) == first
    assert [row["rank"] for row in tried] == list(range(1, first + 1))
    assert sum(len(row["miou"]) == 2 for row in tried) == second
    best = tried[0]
    assert best["model"] == "fpn-test_resnet"
    assert best["end"] == "fine-tuned"
    assert best["miou"][1] == max(row["miou"][1] for row in tried if len(row["miou"]) == 2)
    failed = [row for row in tried if row["model"] == "linknet-test_resnet"]
    assert failed
    assert {row["end"] for row in failed} == {"failed: The process ended with exit code 9."}
    assert picked.configuration == Configuration(
        *(best[name] for name in ("model", "rate", "loss", "unfreezing"))
    )
    assert (picked.miou, picked.run) == (0.875, out / "run")
    refused, went, again = calls
    assert refused == went
    assert went | {"resume": True} == again
    assert not went["resume"]
    assert went["recipe"] == "auto"
    assert went["overrides"][:3] == ("crop=64", "batch_size=4", "seed=0")
    left = float(went["budget"].removesuffix("s"))
    assert 100 < left < 216 - sum(row["seconds"] for row in tried) + 1
    table = (out / "tried.md").read_text()
    assert table.startswith("# What was tried\n\nChosen on the val split by short runs")
    assert table.count("| fpn-test\\_resnet |") + table.count("| fpn-test_resnet |") > 0


def test_every_trial_may_fail(scenes: Path, tmp_path: Path, calls: list[dict[str, Any]]) -> None:
    only = asked(scenes, models=("linknet-test_resnet",), budget="100s")
    with pytest.raises(RunError, match=r"Every trial failed:\n  - linknet-test_resnet: The proc"):
        search.pick(only, tmp_path / "a", worker="helpers.fake_trial")
    with pytest.raises(RunError, match=r"No model can be trained:\n  - manet-.*: no such weights"):
        search.pick(asked(scenes, models=MODELS[3:]), tmp_path / "b", worker="helpers.fake_trial")
    assert calls == []


def test_another_search_in_the_folder_is_named(
    scenes: Path, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    out = tmp_path / "search"
    with pytest.raises(InputError, match=r"A budget of 30s is too short to compare two trials"):
        search.pick(asked(scenes, budget="30s"), out, worker="helpers.fake_trial")
    before = (out / "pick.json").read_bytes()
    with pytest.raises(InputError) as caught:
        search.pick(asked(scenes, budget="1h", seed=1), out, worker="helpers.fake_trial")
    assert f"{out} holds another search. Ask for the same again" in str(caught.value)
    assert "budget" not in str(caught.value)  # no trial has used it yet
    assert "- seed: it has 0, asked is 1" in str(caught.value)
    assert (out / "pick.json").read_bytes() == before
    with pytest.raises(InputError, match="the machine is slower by now"):
        search.pick(asked(scenes, budget="150s"), out, worker="helpers.fake_trial")
    lines = (out / "started").read_text().splitlines()
    assert sum(line.endswith(" None") for line in lines) == 4 + 1  # only what had failed, again
    with pytest.raises(InputError, match=r"- budget: it has '150s', asked is '1h'"):
        search.pick(asked(scenes, budget="1h"), out, worker="helpers.fake_trial")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(InputError, match=r"full is not an empty folder\. Give another --out"):
        search.pick(asked(scenes), tmp_path / "full", worker="helpers.fake_trial")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "soon"], "Invalid budget 'soon'"),
        (["--max-latency-ms", "0"], "--max-latency-ms must be above 0, not 0.0."),
        (["--models", "unet-nothing"], "Unknown encoder 'nothing'."),
        (["--size", "tall"], "Invalid size 'tall'."),
        (["--size", "64"], "--size only goes with --max-latency-ms; give both or neither."),
        (
            ["--size", "8", "--max-latency-ms", "9"],
            "each side must have 32 to 16384 pixels, not 8x8",
        ),
        (["--encoder-weights", "x.safetensors"], "for several models it is default or none."),
        (["stages.all.epochs=3"], "A budget chooses the epochs and validate_every"),
        (["crop=33"], "crop"),
        (["--data", "no/such"], "no/such does not exist."),
        (["model.decoder_chanels=[8]"], "has no option decoder_chanels"),
        (
            ["model.decoder_channels=[16, 16, 8, 8, 8]", "--max-latency-ms", "9"],
            "measures models as they are, not with model.decoder_channels",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    usual = ["pick", "--data", str(scenes), "--budget", "1h", "--out", str(tmp_path / "search")]
    assert run([*usual, "--encoder-weights", "none", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "search").exists()


def test_no_model_within_the_latency(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("FAKE_SPEED_LOG", str(tmp_path / "log"))
    real = search.measure
    monkeypatch.setattr(search, "measure", lambda *given: real(*given, module="helpers.fake_speed"))
    one = asked(scenes, models=MODELS[:2], max_latency_ms=5.0)
    with pytest.raises(InputError, match=r"No model reaches 5 ms on this machine. Raise --max"):
        search.pick(one, tmp_path / "search", worker="helpers.fake_trial")
    said = capsys.readouterr().err
    assert "skip unet-test_resnet: 20.0 ms at 64x80 is more than 5 ms" in said
    two = asked(scenes, models=MODELS[:2], max_latency_ms=25.0, size=(96, 64), budget="100s")
    with pytest.raises(InputError, match="the machine is slower by now"):
        search.pick(two, tmp_path / "other", worker="helpers.fake_trial")
    assert calls[0]["model"] == "unet-test_resnet"
    assert json.loads((tmp_path / "other" / "tried.json").read_text())[0]["latency_ms"] == 20.0


def test_without_optuna_the_extra_is_named(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"zoo pick needs the package optuna.*\[pick\]"):
        search.pick(asked(scenes), tmp_path / "search")


@pytest.mark.slow
def test_a_real_search_is_killed_and_goes_on(scenes: Path, tmp_path: Path) -> None:
    """Two tiny nets, killed while they are measured and in the first rung."""
    out = tmp_path / "search"
    words = ["pick", "--data", scenes, "--budget", "5m", "--out", out, "--encoder-weights", "none"]
    words += ["--models", MODELS[0], "--models", MODELS[1], "crop=64", "batch_size=4"]
    command = [sys.executable, "-m", "zoo", *map(str, words)]
    for part in ("costs/*/result.json", "trials/*/result.json"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(out.glob(part)):
            time.sleep(0.1)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "fine-tuned" in done.stdout
    assert "mIoU on val after fine-tuning" in " ".join(done.stderr.split())
    assert (out / "run" / "best" / "model.safetensors").is_file()
    assert read_json(out / "run" / "run.json")["recipe_name"] == "auto"
    tried = json.loads((out / "tried.json").read_text())
    assert all(0 < row["miou"][0] < 1 for row in tried)
    assert not list(out.glob("trials/*/run/best"))
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.stdout == done.stdout
