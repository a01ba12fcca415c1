"""Running suites: what is started, what is left alone, failures, Ctrl-C, kills."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoo.bench.engines import EngineSettings, LocalEngine
from zoo.bench.job import RUN, Order, read_failure
from zoo.bench.runner import Queue, SuiteOutcome, orders, run_suite
from zoo.bench.suite import read_suite
from zoo.bench.table import suite_states, summary
from zoo.common.errors import InputError, RunError
from zoo.records.record import read_records

OTHERS = """  refused: {encoder_weights: none, set: [ema=0.5]}
  dies: {encoder_weights: none, set: [ema=0.6]}
  waits: {encoder_weights: none, set: [ema=0.7]}
"""


@pytest.fixture
def make_orders(
    suite_file: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Order]]:
    """The jobs of the tiny suite with other variants, done by a process that only pretends."""

    def make(*variants: str) -> list[Order]:
        used = [line for line in OTHERS.splitlines() if line.split(":")[0].strip() in variants]
        text = suite_file.read_text().replace("[base, short]", f"[{', '.join(variants)}]")
        if "short" not in variants:
            text = "\n".join(line for line in text.splitlines() if "  short:" not in line)
        suite_file.write_text(text.replace("blocks:", "\n".join([*used, "blocks:"])))
        return orders(read_suite(suite_file), [f"scenes={scenes}"], tmp_path / "results")

    return make


def run_queue(wanted: list[Order], out: Path, retry: bool = False, **settings: Any) -> SuiteOutcome:
    engine = LocalEngine(EngineSettings(**({"slots": 2} | settings), worker="helpers.fake_job"))
    return Queue(wanted, out, engine).run(retry)


def notes(out: Path, what: str) -> list[dict[str, Any]]:
    lines = [line for file in out.glob("*/notes") for line in file.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    return sorted((note for note in found if note["what"] == what), key=lambda note: note["at"])


def test_what_is_missing_is_run_and_nothing_else(
    make_orders: Callable[..., list[Order]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, out = make_orders("base", "short"), tmp_path / "work"
    assert run_queue(wanted[:3], out) == SuiteOutcome(done=3, failed=0)
    said = " ".join(capsys.readouterr().err.split())
    assert "3 jobs: 0 done, 0 failed before, 3 to do, 2 at a time." in said
    assert re.search(
        r"\[3/3\] unet-test_resnet on scenes, base, seed 1: done in \d\.\d min\.", said
    )
    assert "about 0 min for the 2 left." in said
    assert run_queue(wanted, out) == SuiteOutcome(done=4, failed=0)
    assert len(notes(out, "ended")) == len(read_records(tmp_path / "results")) == 4


def test_jobs_run_side_by_side_with_their_threads_and_devices(
    make_orders: Callable[..., list[Order]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "work"
    monkeypatch.setenv("FAKE_TOGETHER", "2")  # no job ends before there were two
    run_queue(make_orders("base", "short"), out, threads=3, devices=("4", "7"))
    began, ended = notes(out, "began"), notes(out, "ended")
    assert began[1]["at"] < ended[0]["at"]
    assert began[2]["at"] > ended[0]["at"]
    assert {note["CUDA_VISIBLE_DEVICES"] for note in began} == {"4", "7"}
    assert {note["OMP_NUM_THREADS"] for note in began} == {"3"}


def test_a_failure_is_kept_to_its_job_and_repeated_on_demand(
    make_orders: Callable[..., list[Order]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, out = make_orders("base", "refused", "dies")[:3], tmp_path / "work"
    assert run_queue(wanted, out) == SuiteOutcome(done=1, failed=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "refused, seed 0: failed. There is no such thing: - here" in said
    assert "dies, seed 0: failed. The process was ended by SIGKILL." in said
    refused, dies = (out / order.job.folder for order in wanted[1:])
    assert read_failure(dies) == {
        "exit_code": -9,
        "reason": "The process was ended by SIGKILL.",
        "log": ["last words"],
    }
    assert run_queue(wanted, out) == SuiteOutcome(done=1, failed=2)
    assert len(notes(out, "began")) == 3
    assert "use --retry to repeat them" in capsys.readouterr().err
    for folder in (refused, dies):
        (folder / RUN).mkdir()
    assert run_queue(wanted, out, retry=True) == SuiteOutcome(done=1, failed=2)
    assert len(notes(out, "began")) == 5
    assert not (refused / RUN).exists()  # bad input: starts anew
    assert (dies / RUN).exists()  # goes on where it was


def test_the_status_says_what_became_of_each_job(
    make_orders: Callable[..., list[Order]], suite_file: Path, tmp_path: Path
) -> None:
    wanted, out = make_orders("base", "refused", "waits", "dies"), tmp_path / "work"
    run_queue(wanted[:2], out)
    begun = out / wanted[2].job.folder / RUN
    begun.mkdir(parents=True)
    (begun / "log.jsonl").write_text('{"event": "epoch", "epoch": 3}\n{"event": "ep')
    states = suite_states(suite_file, tmp_path / "results", out)
    assert [(state.state, state.note) for state in states[:4]] == [
        ("done", "mIoU 73.86 %"),  # (8 / 11 + 9 / 12) / 2, from the example record
        ("failed", "There is no such thing:\n  - here"),
        ("in progress", "3 epochs"),
        ("missing", ""),
    ]
    assert states[0].minutes == pytest.approx(620 / 60)
    assert summary(states) == (
        "8 jobs: 1 done, 1 failed, 1 in progress, 5 missing; a job took 10.3 min on average."
    )
    assert {state.state for state in suite_states(suite_file, tmp_path / "none")} == {"missing"}


def test_records_of_other_data_or_weights_do_not_count(
    make_orders: Callable[..., list[Order]], tmp_path: Path
) -> None:
    wanted, out = make_orders("base")[:1], tmp_path / "work"
    run_queue(wanted, out)
    other = [Order(**{**vars(wanted[0]), "data_hash": "0" * 16})]
    assert run_queue(other, out) == SuiteOutcome(done=1, failed=0)
    assert len(notes(out, "ended")) == 2


def test_ctrl_c_stops_the_jobs_and_leaves_no_failure(
    make_orders: Callable[..., list[Order]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted, out = make_orders("waits", "base")[:3], tmp_path / "work"
    sleep = time.sleep

    def press(seconds: float) -> None:
        sleep(seconds)
        if len(notes(out, "began")) == 2 and notes(out, "ended"):
            raise KeyboardInterrupt

    monkeypatch.setattr("zoo.bench.runner.time.sleep", press)
    with pytest.raises(KeyboardInterrupt):
        run_queue(wanted[:2], out)
    assert len(notes(out, "interrupted")) == 1
    assert read_failure(out / wanted[0].job.folder) is None
    assert "Stopping the running jobs; the same command" in capsys.readouterr().err


def test_all_that_is_wrong_with_the_data_is_said_before_anything_runs(
    suite_file: Path, scenes: Path, tmp_path: Path
) -> None:
    text = suite_file.read_text().replace("[scenes]", "[scenes, lake/fold_0, sea, sky]")
    suite_file.write_text(text.replace("unet-test_resnet]", "unet-test_resnet, unet-nothing]"))
    (tmp_path / "copy").symlink_to(scenes)
    given = ["scenes", f"sea={scenes}", f"sea={scenes}", "lake=no/such", "ocean=x"]
    with pytest.raises(InputError) as caught:
        run_suite(suite_file, given, tmp_path / "work", tmp_path / "results")
    text = str(caught.value)
    for part in (
        "Unknown encoder 'nothing'.",
        "--data 'scenes' should be NAME=DATA, such as camvid=camvid:PATH",
        "--data sea is given twice",
        "--data ocean: Unknown data set of the suite 'ocean'.",
        "there is no data for scenes; give --data scenes=DATA",
        "there is no data for sky; give --data sky=DATA",
        "--data lake/fold_0: no/such/fold_0 does not exist.",
        "--data sea: this data set has the name 'scenes', and so have its records.",
    ):
        assert part in text
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "results").exists()


def test_the_reported_split_must_be_there(suite_file: Path, scenes: Path, tmp_path: Path) -> None:
    suite_file.write_text(suite_file.read_text().replace("recipe:", "split: holdout\nrecipe:"))
    with pytest.raises(InputError, match=r"--data scenes: .*Unknown split 'holdout'"):
        run_suite(suite_file, [f"scenes={scenes}"], tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["jobs", "threads"])
def test_counts_below_one_are_refused(suite_file: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"--{name} must be at least 1, not 0"):
        run_suite(suite_file, [], tmp_path, tmp_path, **{name: 0})  # type: ignore[arg-type]


def test_an_unknown_engine_is_named(suite_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Unknown engine 'rai'. Did you mean ray\?"):
        run_suite(suite_file, [], tmp_path, tmp_path, engine="rai")


def test_the_verb_fails_where_a_job_did(
    suite_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from zoo.cli.bench import run_command
    from zoo.cli.main import run

    ended = {"result": SuiteOutcome(1, 2)}

    def ends(*arguments: object, **options: object) -> SuiteOutcome:
        return ended["result"]

    monkeypatch.setattr("zoo.bench.runner.run_suite", ends)
    with pytest.raises(RunError, match=r"2 of 3 jobs failed. `zoo bench status .* --out"):
        run_command(suite_file, tmp_path)
    ended["result"] = SuiteOutcome(3, 0)
    assert run(["bench", "run", str(suite_file), "--out", str(tmp_path)]) == 0


def command(suite: Path, scenes: Path, folder: Path) -> list[str]:
    words = ["bench", "run", suite, "--data", f"scenes={scenes}", "--jobs", "2", "--threads", "1"]
    words += ["--out", folder / "work", "--results", folder / "results"]
    return [sys.executable, "-m", "zoo", *map(str, words)]


def contents(results: Path) -> list[dict[str, Any]]:
    """The records without times and dates, in the order of their seeds and recipes."""
    found = [record.model_dump() for record in read_records(results)]
    for fields in found:
        for key in ("train_seconds", "eval_seconds", "date", "record_hash"):
            del fields[key]
    return sorted(found, key=lambda fields: (fields["seed"], fields["recipe_hash"]))


def steps_logged(out: Path) -> int:
    return sum(path.read_text().count("\n") for path in out.glob("*/run/log.jsonl"))


def kill_after(process: subprocess.Popen[bytes], out: Path, steps: int) -> bool:
    """SIGKILL the process when its jobs have logged some more; whether it was still there."""
    goal = steps_logged(out) + steps
    while process.poll() is None and steps_logged(out) < goal:
        time.sleep(0.01)
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_suite_killed_ten_times_ends_with_the_same_records(
    suite_file: Path, scenes: Path, tmp_path: Path
) -> None:
    suite_file.write_text(suite_file.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3]"))
    never, often = tmp_path / "never", tmp_path / "often"
    assert subprocess.run(command(suite_file, scenes, never), check=False).returncode == 0
    killed = 0
    for number in range(20):
        process = subprocess.Popen(command(suite_file, scenes, often), stderr=subprocess.DEVNULL)
        killed += kill_after(process, often / "work", steps=1 + number % 4)
        if killed == 10:
            break
    assert killed == 10
    assert subprocess.run(command(suite_file, scenes, often), check=False).returncode == 0
    assert contents(often / "results") == contents(never / "results")
    assert len(contents(often / "results")) == 8
    assert not list(often.glob("work/*/failed.json"))
    assert not list(often.glob("work/*/run/checkpoint.pt"))


def test_a_job_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    code = (
        "import sys, time\nfrom pathlib import Path\nimport zoo.bench.job as work\n"
        "work.read_order = lambda folder: print('began', flush=True) or time.sleep(60)\n"
        "sys.exit(work.main(Path(sys.argv[1])))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"began\n"
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(10) == 1
    assert not (folder / "failed.json").exists()


def test_a_failure_holds_the_last_words(
    make_orders: Callable[..., list[Order]], tmp_path: Path
) -> None:
    engine = LocalEngine(EngineSettings(1, worker="no_such_module"))
    Queue(make_orders("base")[:1], tmp_path / "w", engine).run()
    [failure] = (tmp_path / "w").glob("*/failed.json")
    found = json.loads(failure.read_text())
    assert found["reason"] == "The process ended with exit code 1."
    assert "No module named no_such_module" in found["log"][-1]
