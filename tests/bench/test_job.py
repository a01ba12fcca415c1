"""The process of one job: training, going on, scoring, writing the record, tidying up."""

from __future__ import annotations

import fcntl
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from zoo.bench import job as job_module
from zoo.bench.job import RUN, Order, read_failure, read_order, write_order
from zoo.bench.runner import SuiteOutcome, orders, run_suite
from zoo.bench.suite import matching, read_suite
from zoo.common.errors import InputError, RunError
from zoo.common.files import read_json
from zoo.records.record import read_records
from zoo.training.plan import RunRequest


@pytest.fixture
def order(suite_file: Path, scenes: Path, tmp_path: Path) -> Order:
    return orders(read_suite(suite_file), [f"scenes={scenes}"], tmp_path / "results")[3]


@pytest.fixture
def no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `main` run in the process of the test, whose stdin is nobody's pipe."""
    monkeypatch.setattr(job_module, "_die_with_parent", lambda: None)


def test_orders_survive_their_file(order: Order, tmp_path: Path) -> None:
    write_order(tmp_path, order)
    assert read_order(tmp_path) == order


def test_a_job_writes_its_record_and_leaves_no_weights(order: Order, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    job_module.work(folder, order)
    [record] = read_records(order.results)
    assert matching([order.job], [record]) == {order.job: [record]}
    assert (record.seed, record.split, record.encoder_init) == (1, "test", "random")
    assert record.overrides == {
        "crop": 64,
        "batch_size": 4,
        "precision": "fp32",
        "stages": [{"name": "all", "epochs": 1}],
        "ema": None,
    }
    assert record.chosen_on == "val"
    assert record.chosen_miou == read_json(folder / RUN / "result.json")["best_miou"]
    assert (folder / RUN / "log.jsonl").is_file()
    assert not (folder / RUN / "checkpoint.pt").exists()
    assert not (folder / RUN / "best").exists()
    assert job_module.is_done(order)


def test_a_stopped_run_goes_on(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = tmp_path / RUN, []

    def finetune(request: RunRequest) -> None:
        calls.append((request.resume, sorted(path.name for path in run.glob("*"))))

    monkeypatch.setattr("zoo.training.finetune.run", finetune)
    job_module.train(run, order)
    run.mkdir()
    (run / "half-written").touch()  # a kill before there was a run: it starts anew
    job_module.train(run, order)
    run.mkdir()
    (run / "run.json").touch()
    job_module.train(run, order)
    (run / "result.json").touch()  # finished, but its model is gone
    job_module.train(run, order)
    assert calls == [(False, []), (False, []), (True, ["run.json"]), (False, [])]
    (run / "best").mkdir(parents=True)
    (run / "result.json").touch()  # finished: nothing is left to train
    job_module.train(run, order)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (InputError("wrong data"), 2, "wrong data"),
        (RunError("NaN"), 1, "NaN"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
    ],
)
@pytest.mark.usefixtures("no_parent")
def test_the_reason_of_a_failure_is_noted(
    order: Order,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    code: int,
    reason: str,
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(job_module, "train", fail)
    write_order(tmp_path, order)
    assert job_module.main(tmp_path) == code
    assert read_failure(tmp_path) == {"exit_code": code, "reason": reason, "log": []}


@pytest.mark.usefixtures("no_parent")
def test_an_interrupted_job_has_not_failed(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "train", interrupt)
    write_order(tmp_path, order)
    assert job_module.main(tmp_path) == 130
    assert read_failure(tmp_path) is None


def test_a_job_is_interrupted_though_its_parent_blocks() -> None:
    code = (
        "import os, signal\nfrom zoo.bench.job import restore_sigint\n"
        "try:\n    restore_sigint()\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert done.stdout == b"interrupted\n"


@pytest.mark.usefixtures("no_parent")
def test_two_processes_do_not_work_in_one_folder(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = threading.Event()

    def do(*arguments: object) -> None:
        trained.set()

    monkeypatch.setattr(job_module, "work", do)
    write_order(tmp_path, order)
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=job_module.main, args=(tmp_path,))
        second.start()
        assert not trained.wait(0.3)
    second.join(10)
    assert trained.is_set()


@pytest.mark.long
def test_a_killed_suite_goes_on_and_ends_with_the_same_record(
    suite_file: Path, scenes: Path, tmp_path: Path
) -> None:
    """One job, killed with the process that started it once it has trained an epoch of many."""
    text = suite_file.read_text().replace("[base, short]", "[base]")
    lines = text.replace("epochs: 2", "epochs: 12").splitlines()
    kept = [line for line in lines if not line.startswith(("  short:", "seeds:"))]
    suite_file.write_text("\n".join(kept))
    done = orders(read_suite(suite_file), [f"scenes={scenes}"], tmp_path / "never")[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the jobs below: the order of sums depends on the threads
    job_module.work(tmp_path / "never-job", done)
    torch.set_num_threads(threads)
    words = ["bench", "run", suite_file, "--data", f"scenes={scenes}", "--threads", "1"]
    words += ["--out", tmp_path / "work", "--results", tmp_path / "results"]
    command = [sys.executable, "-m", "zoo", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((tmp_path / "work").glob("*/run/checkpoint.pt")):
        threading.Event().wait(0.01)
    process.kill()
    assert process.wait() == -9
    folders = (tmp_path / "work", tmp_path / "results")
    went_on = run_suite(suite_file, [f"scenes={scenes}"], *folders, threads=1)
    assert went_on == SuiteOutcome(done=1, failed=0)
    [expected], [found] = read_records(tmp_path / "never"), read_records(tmp_path / "results")
    for field in ("confusion", "chosen_miou", "steps", "recipe_hash", "overrides", "commit"):
        assert getattr(found, field) == getattr(expected, field), field
    log = next((tmp_path / "work").glob("*/job.log")).read_text()
    assert re.search(r"Resumed at epoch ([2-9]|1[0-2]), step \d+\.", log)
