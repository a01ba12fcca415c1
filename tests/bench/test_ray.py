"""Jobs on Ray: their resources, what happens to those that end, and a real cluster (slow)."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

import pytest

from zoo.bench.engines import EngineSettings, RayEngine, run_job
from zoo.bench.job import Order, read_failure
from zoo.bench.runner import Queue, SuiteOutcome, orders, run_suite
from zoo.bench.suite import read_suite
from zoo.cli.main import run
from zoo.common.errors import InputError
from zoo.records.record import read_records


class RayError(Exception):
    """What ray.get raises for a task that was lost."""


class FakeRay(types.ModuleType):
    """As much of Ray as the engine uses; tasks run in two threads."""

    def __init__(self, *machines: dict[str, float]):
        super().__init__("ray")
        self.machines, self.asked, self.lose = machines, [], False
        self.open = 0
        self.exceptions = types.SimpleNamespace(RayError=RayError)
        self._pool = ThreadPoolExecutor(2)

    def init(self, **_: Any) -> None:
        self.open += 1

    def shutdown(self) -> None:
        self.open -= 1

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": machine} for machine in self.machines] + [
            {"Alive": False, "Resources": {"CPU": 99.0}}
        ]

    def remote(self, function: Callable[..., Any]) -> Any:
        def options(**resources: Any) -> Any:
            self.asked.append(resources)
            return types.SimpleNamespace(remote=lambda *a: self._pool.submit(function, *a))

        return types.SimpleNamespace(options=options)

    def wait(self, references: list[Future[Any]], timeout: float | None = None) -> Any:
        done, left = wait_for(references, timeout)
        return list(done), list(left)

    def get(self, reference: Future[Any]) -> Any:
        if self.lose:
            raise RayError("the machine\nis gone")
        return reference.result()

    def cancel(self, reference: Future[Any], **_: Any) -> None:
        reference.cancel()


def fake(monkeypatch: pytest.MonkeyPatch, *machines: dict[str, float]) -> FakeRay:
    ray = FakeRay(*machines)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray


@pytest.fixture
def wanted(
    suite_file: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Order]:
    """Four jobs, done by processes that only pretend."""
    return orders(read_suite(suite_file), [f"scenes={scenes}"], tmp_path / "results")


def run_queue(wanted: list[Order], out: Path, settings: EngineSettings) -> SuiteOutcome:
    engine = RayEngine(settings)
    outcome = Queue(wanted, out, engine).run()
    engine.close()
    return outcome


def test_jobs_are_given_to_ray_with_their_resources(
    wanted: list[Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = fake(monkeypatch, {"CPU": 4.0})
    monkeypatch.setenv("ZOO_CACHE", "kept")
    settings = EngineSettings(0, threads=2, worker="helpers.fake_job")
    assert run_queue(wanted, tmp_path / "work", settings) == SuiteOutcome(done=4, failed=0)
    assert ray.asked == [{"num_cpus": 2, "num_gpus": 0, "max_retries": 0}] * 4
    assert ray.open == 0
    assert len(read_records(tmp_path / "results")) == 4
    notes = "".join(path.read_text() for path in tmp_path.glob("work/*/notes"))
    assert notes.count('"OMP_NUM_THREADS": "2"') == 8


@pytest.mark.parametrize(
    ("machines", "threads", "slots", "gpus"),
    [
        ([{"CPU": 4.0}, {"CPU": 3.0}], 2, 3, 0),  # 2 jobs and 1
        ([{"CPU": 4.0}, {"CPU": 3.0}], None, 7, 0),
        ([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 4.0}, {"CPU": 9.0}], 1, 3, 1),  # 2 + 1
    ],
)
def test_as_many_jobs_run_as_the_cluster_holds(
    monkeypatch: pytest.MonkeyPatch,
    machines: list[dict[str, float]],
    threads: int | None,
    slots: int,
    gpus: int,
) -> None:
    ray = fake(monkeypatch, *machines)
    engine = RayEngine(EngineSettings(0, threads))
    assert engine.settings.slots == slots
    assert RayEngine(EngineSettings(1, threads)).settings.slots == 1
    engine.start(Path("nowhere"), 0)
    assert ray.asked == [{"num_cpus": threads or 1, "num_gpus": gpus, "max_retries": 0}]


def test_a_job_that_no_machine_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake(monkeypatch, {"CPU": 2.0}, {"CPU": 1.0})
    with pytest.raises(InputError, match=r"needs 3 CPUs, and no machine .* more than 2\. Give fe"):
        RayEngine(EngineSettings(0, threads=3))
    assert ray.open == 0


def test_a_lost_worker_is_a_failure_with_its_reason(
    wanted: list[Order], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray, out = fake(monkeypatch, {"CPU": 2.0}), tmp_path / "work"
    ray.lose = True
    assert run_queue(wanted[:1], out, EngineSettings(0, worker="helpers.fake_job")) == SuiteOutcome(
        0, failed=1
    )
    failure = read_failure(out / wanted[0].job.folder)
    assert failure is not None
    assert failure["reason"] == "Its Ray worker ended: the machine is gone"


def test_a_machine_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    code, reason = run_job("work/job", str(tmp_path), "zoo.bench.job", {})
    assert code == 1
    assert f"cannot see {tmp_path / 'work/job'}. Give --out, --results and --data" in reason


def test_without_ray_the_extra_is_named(
    suite_file: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["bench", "run", str(suite_file), "--data", f"scenes={scenes}", "--engine", "ray"]
    words += ["--out", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert run(words) == 2
    said = capsys.readouterr().err
    assert "--engine ray needs the package ray, which is not installed" in said
    assert "segmentation-zoo[ray]" in said


def contents(results: Path) -> list[dict[str, Any]]:
    """The records without times and dates."""
    changing = {"train_seconds", "eval_seconds", "date", "record_hash", "device"}
    found = [record.model_dump(exclude=changing) for record in read_records(results)]
    return sorted(found, key=lambda fields: (fields["seed"], fields["recipe_hash"]))


@pytest.mark.slow
def test_a_local_cluster_of_two_workers_gives_the_same_records(
    suite_file: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite is stopped once on the way; two jobs run at a time."""
    ray = pytest.importorskip("ray")
    text = suite_file.read_text().replace("epochs: 2}", "epochs: 12}")
    suite_file.write_text(text.replace("epochs: 1}", "epochs: 8}"))
    data = [f"scenes={scenes}"]
    local = run_suite(suite_file, data, tmp_path / "a", tmp_path / "local", threads=1, jobs=2)
    assert local == SuiteOutcome(done=4, failed=0)
    out, results = tmp_path / "b", tmp_path / "ray"
    fill = Queue._fill

    def press(queue: Queue) -> None:
        fill(queue)
        if list(out.glob("*/run/log.jsonl")):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Queue, "_fill", press)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        with pytest.raises(KeyboardInterrupt):
            run_suite(suite_file, data, out, results, threads=1, engine="ray")
    assert not list(out.glob("*/failed.json"))
    assert len(list(out.glob("*/job.log"))) == 2
    assert not results.exists()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    went_on = run_suite(suite_file, data, out, results, threads=1, engine="ray")
    assert went_on == SuiteOutcome(done=4, failed=0)
    assert contents(results) == contents(tmp_path / "local")
