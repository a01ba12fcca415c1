"""Run folders after power cuts, kills and damage: what is repaired, what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engine_runs import largest_difference, logged, plan_for
from helpers.training_settings import MODEL
from torch import Tensor

from zoo.common.errors import InputError
from zoo.registry.recipe import Recipe
from zoo.runtime.environment import versions
from zoo.runtime.processes import Interrupted, Ranks
from zoo.training.charts import read_log, write_curves
from zoo.training.engine.checkpoint import (
    Progress,
    load_checkpoint,
    random_state,
    save_checkpoint,
)
from zoo.training.engine.features import map_tensors
from zoo.training.engine.trainer import Trainer
from zoo.training.finetune import finetune
from zoo.training.plan import CHECKPOINT
from zoo.training.run_folder import LOCK, LOG, RunLog, check_out, only_run, open_run
from zoo.training.start import make_trainer, prepare

STAGES = "stages=[{name: all, epochs: 2}]"
SETTINGS = ["crop=64", "batch_size=4", "precision=fp32", "workers=0", "ema=0.9", STAGES]


def run(data: Path, out: Path, *more: str, **options: Any) -> Any:
    changed = {override.partition("=")[0] for override in more}
    kept = [override for override in SETTINGS if override.partition("=")[0] not in changed]
    return finetune(
        MODEL, data, recipe="scratch", encoder_weights=None, out=out,
        overrides=[*kept, *more], **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    run(scenes, out)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def trainer(scenes: Path, finished: Path) -> Trainer:
    plan = plan_for(
        MODEL, scenes, recipe="scratch", encoder_weights=None, out=finished, overrides=SETTINGS
    )
    return make_trainer(plan, prepare(plan, Ranks()), Ranks())


RECIPE = Recipe.model_validate(
    {
        "optimizer": {"lr": 0.1}, "batch_size": 4, "crop": 64,
        "stages": [{"name": "all", "epochs": 1}],
    }
)  # fmt: skip


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_loses_nothing(
    signum: signal.Signals, scenes: Path, finished: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, out = Trainer._update, tmp_path / "run"

    def update(self: Trainer, *batch: Any) -> float:
        if self.progress.step == 2:
            os.kill(os.getpid(), signum)
        return real(self, *batch)

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update)
        with pytest.raises(Interrupted):
            run(scenes, out)
    assert signal.getsignal(signum) is before
    assert load_checkpoint(out)[1].step == 3
    run(scenes, out, resume=True)
    assert logged(out, "step", "loss") == logged(finished, "step", "loss")
    for part in ("model", "ema"):
        assert largest_difference(out, finished, part) == 0.0


def test_a_second_signal_stops_at_once(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def update(self: Trainer, *_: Any) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the step goes on")

    monkeypatch.setattr(Trainer, "_update", update)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(scenes, tmp_path / "run")
    assert not isinstance(caught.value, Interrupted)
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_run_in_a_thread_leaves_signals_alone(scenes: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(run, scenes, tmp_path / "run", "workers=1").result()
    assert result.steps == 4
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


LINES = [
    json.dumps({"event": "step", "step": step, "epoch": 1, "loss": 1.0 / step}) + "\n"
    for step in (1, 2)
]


def test_zeros_in_a_log_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A kept part of a line, zeros up to where the log had been, and a later line behind them."""
    (tmp_path / LOG).write_text(LINES[0] + LINES[1][:9] + "\0" * 50 + LINES[1] + "\0" * 9)
    assert [event["step"] for event in read_log(tmp_path / LOG)] == [1, 2]
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("has lost lines, as after a power cut; what is left of it is used.")


@pytest.mark.parametrize("tail", [b"", b"\0" * 500, b'{"event": "step", "step": 9, "epoch": 1}\n'])
def test_a_log_that_is_shorter_than_the_checkpoint_says(
    tail: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every length: whole lines up to the checkpoint's step stay, the rest is told."""
    whole = "".join(LINES).encode()
    progress = Progress(step=2, log_bytes=len(whole))
    for length in range(len(whole)):
        (tmp_path / LOG).write_bytes(whole[:length] + tail)
        RunLog(tmp_path, progress, RECIPE, (), write=True).close()
        left = (tmp_path / LOG).read_text()
        # a line whose last byte, the line feed, is missing is whole unless something follows it
        count = sum(length >= len("".join(LINES[: n + 1])) - (not tail) for n in range(2))
        assert left == "".join(LINES[:count]), length
        assert len(read_log(tmp_path / LOG)) == count
        said = " ".join(capsys.readouterr().err.split())
        assert f"{2 - count} of 2 steps are lost to the log" in said
    (tmp_path / LOG).write_bytes(whole + tail)
    RunLog(tmp_path, progress, RECIPE, (), write=True).close()
    assert (tmp_path / LOG).read_bytes() == whole
    assert capsys.readouterr().err == ""


def test_a_run_whose_log_lost_lines_is_finished_and_reported(
    finished: Path, copied: Path, scenes: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("zoo.training.finetune.write_curves", write_curves)
    for name in ("result.json", "curves.svg", "curves.png"):
        (copied / name).unlink()
    content = (copied / LOG).read_bytes()
    (copied / LOG).write_bytes(content[:300])  # the power went before the rest was on the disk
    run(scenes, copied, resume=True)
    said = " ".join(capsys.readouterr().err.split())
    kept = content[:300].count(b"\n")
    assert f"{LOG} is damaged, as after a power cut" in said
    assert f"{4 - kept} of 4 steps are lost to the log and the curves" in said
    assert (copied / LOG).read_bytes() == content[: content[:300].rindex(b"\n") + 1]
    assert (copied / "curves.png").is_file()
    assert json.loads((copied / "result.json").read_text())["steps"] == 4


def test_a_kill_before_the_curves_is_repaired(
    copied: Path, scenes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zoo.training.finetune.write_curves", write_curves)
    before = {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()}
    (copied / "curves.png").rename(copied / ".curves.png.half")
    result = run(scenes, copied, resume=True)
    assert dataclasses.asdict(result) == json.loads(before["result.json"])
    assert "was finished but for its curves" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in copied.iterdir() if path.is_file()} == before
    with pytest.raises(InputError, match="is finished; start another run with another --out"):
        run(scenes, copied, resume=True)


def test_a_kill_while_run_json_was_written_leaves_a_folder_for_a_new_run(tmp_path: Path) -> None:
    (tmp_path / ".run.json.half").write_text("{")
    (tmp_path / LOCK).touch()
    check_out(tmp_path, resume=False)
    open_run(tmp_path, {"schema": 1}, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", LOCK]


HOLDS = """
import sys, time
from filelock import FileLock

with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_folder_has_one_run_at_a_time(
    resume: bool, tmp_path: Path, copied: Path, scenes: Path
) -> None:
    out = copied if resume else tmp_path / "new"
    (copied / "result.json").unlink()
    out.mkdir(exist_ok=True)
    words = [sys.executable, "-c", HOLDS, str(out / LOCK)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError) as caught:
            run(scenes, out, resume=resume)
        assert str(caught.value) == (
            f"Another run is still writing to {out}. Wait until it has ended or stop it, or give "
            "another --out."
        )
        other.kill()
    with only_run(out, resume), pytest.raises(InputError, match="Another run"):
        only_run(out, resume).__enter__()  # in the same process
    with only_run(out, resume):
        pass


def test_other_versions_are_told(
    copied: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "result.json").unlink()
    content = json.loads((copied / "run.json").read_text())
    content["env"] |= {"torch": "2.6.0", "timm": "1.0.20"}
    (copied / "run.json").write_text(json.dumps(content))
    saved = torch.load(copied / CHECKPOINT, weights_only=True)
    torch.save(saved | {"run": None}, copied / CHECKPOINT)  # a checkpoint of before that was stored
    run(scenes, copied, resume=True)
    now = versions()
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f'The run began with torch "2.6.0", now {now["torch"]}; timm "1.0.20", now {now["timm"]}. '
        "It continues, but not necessarily with the same bits as a run that was never stopped."
    ) in said


Change = Callable[[dict[str, Any]], Any]


def first(values: dict[str, Any]) -> str:
    """The name of a parameter that is a matrix."""
    return next(name for name, value in values.items() if value.ndim == 4)


def setting(part: str, value: Callable[[torch.Tensor], Any]) -> Change:
    """A checkpoint in which one tensor of `part` is another."""

    def change(content: dict[str, Any]) -> None:
        name = first(content[part])
        content[part][name] = value(content[part][name])

    return change


def dropping(part: str) -> Change:
    return lambda content: content[part].pop(first(content[part]))


def position(**values: Any) -> Change:
    return lambda content: content["progress"].update(values)


def in_optimizer(value: Callable[[torch.Tensor], Any]) -> Change:
    def change(content: dict[str, Any]) -> None:
        state = content["optimizer"]["state"]
        number = next(iter(state))
        state[number]["exp_avg"] = value(state[number]["exp_avg"])

    return change


CHANGES: dict[str, tuple[Change, str]] = {
    "a missing weight": (dropping("model"), "model lacks "),
    "a missing average": (dropping("ema"), "ema lacks "),
    "no average": (lambda c: c.update(ema=None), "ema is missing"),
    "an unknown weight": (lambda c: c["model"].update(x=torch.ones(1)), "model has an unknown 'x'"),
    "a list of weights": (lambda c: c.update(model=[1]), "model is a list"),
    "another shape": (setting("model", lambda t: t[:1]), ", the run needs ["),
    "another type": (setting("model", lambda t: t.int()), " of int32, the run needs ["),
    "a number for a weight": (setting("ema", lambda _: 3), " is a int"),
    "NaN": (setting("model", lambda t: t * float("nan")), " holds NaN or infinity"),
    "infinity": (setting("ema", lambda t: t / 0), " holds NaN or infinity"),
    "NaN in the optimizer": (in_optimizer(lambda t: t * float("nan")), "exp_avg holds NaN"),
    "a shape in the optimizer": (in_optimizer(lambda t: t[:1, :1]), "optimizer.state.0.exp_avg is"),
    "a word in the optimizer": (in_optimizer(lambda _: "x"), "optimizer.state.0.exp_avg is a str"),
    "no optimizer": (lambda c: c.update(optimizer=3), "is not the state of an optimizer"),
    "other parameters": (
        lambda c: c["optimizer"]["param_groups"].pop(), "are those of other parameters"
    ),
    "a rate": (
        lambda c: c["optimizer"]["param_groups"][0].update(lr="fast"), "lr is 'fast'"
    ),
    "random numbers": (lambda c: c.update(random=[{"cpu": []}]), "random is not the state"),
    "plateau": (lambda c: c.update(plateau={"share": "x"}), "plateau is not what a run stores"),
    "scaler": (lambda c: c.update(scaler={}), "scaler is not what a run stores"),
    "a step": (position(step=3), "it is at step 3, 0 steps into epoch 3, of a run of 4 steps"),
    "a step of a longer run": (position(step=6, epoch=3), "it is at step 6"),
    "a word for a step": (position(step="2"), "progress.step is '2'"),
    "a loss": (position(loss_sum=float("nan")), "progress.loss_sum is nan"),
    "another run": (lambda c: c.update(run="0" * 64), "belongs to another run than"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused(
    change: str, finished: Path, copied: Path, trainer: Trainer
) -> None:
    alter, said = CHANGES[change]
    content = torch.load(finished / CHECKPOINT, weights_only=True)
    alter(content)
    torch.save(content, copied / CHECKPOINT)
    trainer.run = copied
    with pytest.raises(InputError) as caught:
        trainer.fit(resume=True)
    assert said in str(caught.value)
    assert "Start a new run with another --out" in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "short", "long", "pickle", "text", "folder"])
def test_a_file_that_is_no_checkpoint_is_refused(kind: str, copied: Path) -> None:
    path = copied / CHECKPOINT
    content = path.read_bytes()
    path.unlink()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(
            {
                "empty": b"", "short": content[:-1], "long": content[1:] + b"\0" * 70_000,
                "pickle": pickle.dumps([1]), "text": b"not a checkpoint",
            }[kind]
        )  # fmt: skip
    with pytest.raises(InputError, match=r"is damaged or not a checkpoint|holds no checkpoint"):
        load_checkpoint(copied)


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """Bits that nobody reads, as those of the dates in the archive, may change."""
    weights = {"w": torch.linspace(0, 1, 100), "count": torch.tensor(3)}
    parts = {"model": weights, "ema": None, "optimizer": {"lr": 0.1}, "scaler": None}
    save_checkpoint(tmp_path, parts | {"plateau": None, "random": [random_state()]}, Progress())
    path = tmp_path / CHECKPOINT
    content, wanted = (
        bytearray(path.read_bytes()),
        map_tensors(Tensor.tolist, load_checkpoint(tmp_path)[0]),
    )
    refused = 0
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    places = [*range(0, directory, 29), *range(directory, len(content), 3)]
    for place in places:
        content[place] ^= 1 << place // 3 % 8
        path.write_bytes(content)
        try:
            assert map_tensors(Tensor.tolist, load_checkpoint(tmp_path)[0]) == wanted, place
        except InputError:
            refused += 1
        content[place] ^= 1 << place // 3 % 8
    assert refused > 0.6 * len(places)
