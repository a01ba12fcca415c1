"""`zoo pick`: which model and recipe suit a data set best within a time budget."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.bench.engines import EngineSettings, LocalEngine
from zoo.bench.job import RUN, drop_weights, forget_failure, read_failure, write_failure
from zoo.bench.pick.halving import (
    KEPT,
    Candidate,
    Configuration,
    HalvingSchedule,
    TrialCost,
    choices,
    common_size,
    final_seconds,
    grid,
    is_late,
    named,
    schedule,
    survivors,
    within_latency,
)
from zoo.bench.pick.state import Asked, SearchState, Store, Trial, open_state
from zoo.bench.pick.trial import RESULT, TRIAL_ORDER, TrialOrder
from zoo.bench.speed.measure import SpeedSetting, checked, measure
from zoo.common.console import info, progress_bar
from zoo.common.errors import InputError, RunError, join_problems
from zoo.common.files import read_json, write_json, write_text
from zoo.creation.create import DEFAULT
from zoo.data.load import load_dataset
from zoo.data.split import RUN as RUN_FILE
from zoo.data.split import with_val
from zoo.leaderboard.render import escape, table_lines
from zoo.registry.load import load_registry
from zoo.registry.overrides import ENCODER_ARGS, apply_overrides, model_options, parse_overrides
from zoo.registry.recipe import Recipe
from zoo.registry.resolve import resolve
from zoo.training.budget import duration
from zoo.training.finetune import run as train
from zoo.training.plan import AUTO, SCRATCH, RunRequest, parse_budget, refuse_epochs_given
from zoo.training.run_folder import RESULT as RUN_RESULT

MOST_TRIALS = 27
POLL_SECONDS = 0.1
LATENCY_ROUNDS = 3
WORKER = "zoo.bench.pick.trial"
COSTS, TRIALS, DATABASE = "costs", "trials", "trials.sqlite3"
"""Folders and a file of a search."""


@dataclass(frozen=True)
class Picked:
    """The best configuration, the mIoU in [0, 1] on val of its fine-tuned model, and its run."""

    configuration: Configuration
    miou: float
    run: Path
    tried: list[Trial]


def pick(asked: Asked, out: Path, *, worker: str = WORKER) -> Picked:
    """Search for the model and recipe values that suit the data, and fine-tune the best.

    Everything is chosen on the val split. The same call with the same `out` resumes a search that
    was stopped or killed. Raises InputError for bad input and a budget that is too small before
    anything is trained, RunError where every trial failed.
    """
    parse_budget(asked.budget)
    refuse_epochs_given(parse_overrides(asked.overrides))
    if asked.encoder_weights not in (None, DEFAULT):
        raise InputError(
            f"--encoder-weights is {asked.encoder_weights!r}; for several models it is default or "
            "none. An overlay file (--registry) can set an encoder's weights file."
        )
    if asked.max_latency_ms is None and asked.size is not None:
        raise InputError("--size only goes with --max-latency-ms; give both or neither.")
    if asked.max_latency_ms is not None and asked.max_latency_ms <= 0:
        raise InputError(f"--max-latency-ms must be above 0, not {asked.max_latency_ms}.")
    if asked.max_latency_ms is not None and (options := model_options(asked.overrides)):
        raise InputError(
            f"--max-latency-ms measures models as they are, not with model.{next(iter(options))}. "
            "Leave out one of them."
        )
    models = named(asked.models, asked.registry_path)
    for model in models:
        apply_overrides(_recipe(asked, model), asked.overrides)
        options = model_options(asked.overrides)
        resolve(model, asked.registry_path, options.get(ENCODER_ARGS)).check(options)
    dataset, _ = with_val(load_dataset(asked.data))  # as each run will divide it
    for split in ("train", "val"):
        dataset.samples(split)
    setting = None
    if asked.max_latency_ms is not None:  # the first model is the reference of the others
        size = asked.size or common_size(dataset)
        setting = SpeedSetting(
            size=size, batches=(1,), rounds=LATENCY_ROUNDS, reference=next(iter(models))
        )
        setting = checked(list(models), setting)

    search = Search(open_state(out, asked), out, worker)
    search.choose_candidates(models, setting)
    search.plan()
    best = search.run()
    return search.finish(best)


@dataclass(frozen=True)
class _Done:
    """The end of a process: its result, or None and the reason."""

    result: dict[str, Any] | None
    seconds: float
    reason: str = ""


class Search:
    """One search in its folder: candidates, what their trials cost, the rungs, the run."""

    def __init__(self, state: SearchState, out: Path, worker: str):
        self._state, self._asked, self._out = state, state.asked, out
        self._store = Store(out / DATABASE, state.asked.seed)
        self._engine = LocalEngine(EngineSettings(1, worker=worker))
        self._options = choices(self._asked.overrides, self._asked.encoder_weights is not None)

    def choose_candidates(self, models: dict[str, str], setting: SpeedSetting | None) -> None:
        """Say which models are tried, by their latency on this machine where that is limited."""
        state, limit = self._state, self._asked.max_latency_ms
        if state.candidates is None:
            began = time.monotonic()
            if limit is None or setting is None:
                state.candidates = [Candidate(model, True, why) for model, why in models.items()]
            else:
                state.candidates = within_latency(models, limit, setting, measure)
            state.spent_s["latency"] = time.monotonic() - began
            state.write(self._out)
        for one in state.candidates:
            info(f"{'try ' if one.kept else 'skip'} {one.model}: {one.reason}")
        if not any(candidate.kept for candidate in state.candidates):
            raise InputError(
                f"No model reaches {limit:g} ms on this machine. Raise --max-latency-ms, lower "
                "--size or choose faster --models."
            )

    def plan(self) -> None:
        """Measure what trials cost and say how many there will be, and of which models.

        Raises RunError where no candidate can be trained.
        """
        state = self._state
        if state.schedule is None:
            costs, failed = {}, {}
            kept = [one.model for one in state.candidates or [] if one.kept]
            with progress_bar() as bar:
                for model in bar.track(kept, description="measuring"):
                    done = self._do(self._out / COSTS / model, Configuration(model), None)
                    state.spent_s[model] = done.seconds
                    state.write(self._out)
                    if done.result is None:
                        failed[model] = f"it cannot be trained: {done.reason}"
                    else:
                        costs[model] = TrialCost(**done.result)
            if not costs:
                reasons = [f"{model}: {reason}" for model, reason in failed.items()]
                raise RunError(join_problems("No model can be trained:", reasons))
            variants = len(grid([""], self._options))
            budget = parse_budget(self._asked.budget)
            left = budget - sum(state.spent_s.values())
            found = schedule(costs, left, budget, variants, MOST_TRIALS)
            state.schedule = HalvingSchedule(found.rungs, found.models, failed | found.left_out)
            state.write(self._out)
        for model, reason in state.schedule.left_out.items():
            info(f"skip {model}: {reason}")
        rungs = state.schedule.rungs
        parts = [f"{rung.trials} trials of {duration(rung.seconds)}" for rung in rungs]
        info(f"{', then '.join(parts)}; about one in {KEPT} advances, and the best is fine-tuned.")

    def run(self) -> Configuration:
        """The rungs one after the other; returns the best configuration of the last.

        Raises RunError where every trial of a rung failed.
        """
        plan = self._state.schedule
        assert plan is not None
        options = {"model": tuple(plan.models), **self._options}
        everything = grid(plan.models, self._options)
        going = [Configuration(model) for model in plan.models]
        with progress_bar() as bar:
            for rung, planned in enumerate(plan.rungs):
                count = min(planned.trials, len(going)) if rung else planned.trials
                task = bar.add_task(f"rung {rung + 1} of {len(plan.rungs)}", total=count)
                self._store.queue(rung, going)
                while len(done := self._store.trials(rung)) < count:
                    if is_late(planned, [trial.seconds for trial in done]):
                        info(
                            f"Rung {rung + 1} ends after {len(done)} of {planned.trials} trials: "
                            "they take longer than estimated."
                        )
                        break
                    bar.update(task, completed=len(done))
                    number, configuration = self._store.next(rung, options, everything)
                    steps = self._cost(configuration.model).steps(planned.seconds)
                    folder = self._out / TRIALS / f"rung{rung + 1}-{number}"
                    ended = self._do(folder, configuration, steps)
                    miou = None if ended.result is None else float(ended.result["miou"])
                    self._store.tell(rung, number, miou, steps, ended.seconds, ended.reason)
                    drop_weights(folder)

                later = plan.rungs[rung + 1 :]
                by_number = {trial.number: trial for trial in done}
                scores = {number: trial.miou for number, trial in by_number.items()}
                best = survivors(scores, later[0].trials if later else 1)
                if not best:
                    reasons = {trial.configuration.model: trial.reason for trial in done}
                    lines = [f"{model}: {reason}" for model, reason in reasons.items()]
                    raise RunError(join_problems("Every trial failed:", lines))
                going = [by_number[number].configuration for number in best]
                bar.update(task, completed=count)
        return going[0]

    def finish(self, best: Configuration) -> Picked:
        """Fine-tune the best in what is left of the budget, and write down what was tried."""
        state, asked, run = self._state, self._asked, self._out / RUN
        assert state.schedule is not None
        tried = [self._store.trials(rung) for rung in range(len(state.schedule.rungs))]
        trials = [trial for rung in tried for trial in rung]
        if state.final is None:
            spent = sum(state.spent_s.values()) + sum(trial.seconds for trial in trials)
            left = final_seconds(parse_budget(asked.budget), spent, self._cost(best.model))
            state.final = f"{left:.0f}s"
            state.write(self._out)
        write_tried(self._out, state, tried, best)
        if not (run / RUN_RESULT).is_file():
            resume = (run / RUN_FILE).is_file()
            if not resume:
                shutil.rmtree(run, ignore_errors=True)
            request = RunRequest(
                best.model, asked.data, recipe=AUTO, out=run,
                overrides=tuple(self._overrides(best)), encoder_weights=asked.encoder_weights,
                registry=asked.registry_path, resume=resume, budget=state.final,
            )  # fmt: skip
            try:
                train(request)
            except InputError:  # the machine is slower than it was: another call measures again
                state.final = None
                state.write(self._out)
                raise
        return Picked(best, float(read_json(run / RUN_RESULT)["best_miou"]), run, trials)

    def _cost(self, model: str) -> TrialCost:
        return TrialCost(**read_json(self._out / COSTS / model / RESULT)["result"])

    def _overrides(self, configuration: Configuration) -> list[str]:
        given = self._asked.overrides
        recipe = apply_overrides(_recipe(self._asked, configuration.model), given)
        seed = [] if "seed" in parse_overrides(given) else [f"seed={self._asked.seed}"]
        return [*given, *seed, *configuration.overrides(recipe)]

    def _do(self, folder: Path, configuration: Configuration, steps: int | None) -> _Done:
        """Run a process in `folder` and return how it ended; one that is done is not repeated."""
        if (folder / RESULT).is_file():
            return _Done(**read_json(folder / RESULT))
        asked = self._asked
        order = TrialOrder(
            configuration.model, asked.data, self._overrides(configuration),
            asked.encoder_weights, asked.registry, steps, time.time(),
        )  # fmt: skip
        forget_failure(folder)
        write_json(folder / TRIAL_ORDER, asdict(order))
        task = self._engine.start(folder, 0)
        try:
            while (code := task.poll()) is None:
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            task.interrupt()
            task.wait()
            raise
        finally:
            task.kill()
        if code == 0:
            return _Done(**read_json(folder / RESULT))
        if read_failure(folder) is None:
            write_failure(folder, code, task.ending())
        reason = " ".join((read_failure(folder) or {})["reason"].split())
        return _Done(None, time.time() - order.began, reason)


def _recipe(asked: Asked, model: str) -> Recipe:
    """The recipe of the registry from which `auto` starts for this model."""
    registry = asked.registry_path
    usual = SCRATCH if asked.encoder_weights is None else resolve(model, registry).recipe
    return load_registry(registry).recipe(usual)


MARKDOWN, JSON = "tried.md", "tried.json"
NONE = "\u2013"


def write_tried(
    out: Path, state: SearchState, tried: Sequence[Sequence[Trial]], best: Configuration
) -> None:
    """Write what was tried into the folder `out`, as a table and as JSON.

    Best first: by the last rung reached, then by the mIoU on val there.
    """
    latency = {one.model: one.latency_ms for one in state.candidates or []}
    reached: dict[Configuration, list[Trial]] = {}
    for rung in tried:
        for trial in rung:
            reached.setdefault(trial.configuration, []).append(trial)

    def rank(configuration: Configuration) -> tuple[bool, int, float]:
        trials = reached[configuration]
        finished = sum(trial.miou is not None for trial in trials)
        return configuration != best, -finished, -(trials[-1].miou or -1.0)

    rows: list[dict[str, Any]] = []
    for number, configuration in enumerate(sorted(reached, key=rank), 1):
        trials = reached[configuration]
        end = "fine-tuned" if configuration == best else f"stopped after rung {len(trials)}"
        if trials[-1].miou is None:
            end = f"failed: {trials[-1].reason}"
        rows.append(
            {
                "rank": number,
                **configuration.as_params(),
                "latency_ms": latency.get(configuration.model),
                "miou": [trial.miou for trial in trials],
                "steps": [trial.steps for trial in trials],
                "seconds": round(sum(trial.seconds for trial in trials), 1),
                "end": end,
            }
        )
    write_json(out / JSON, rows)
    left = ("model", "rate", "loss", "unfreezing", "end")
    escaped = [list(map(escape, cells(row, len(tried)))) for row in rows]
    lines = table_lines(columns(len(tried)), escaped, left)
    note = "Chosen on the val split by short runs: the scores only rank, they are not results."
    write_text(out / MARKDOWN, "\n".join(["# What was tried", "", note, "", *lines, ""]))


def columns(rungs: int) -> list[str]:
    """The heads of the table."""
    scores = [f"rung {number + 1}: val mIoU % (steps)" for number in range(rungs)]
    return ["rank", "model", "rate", "loss", "unfreezing", "latency ms", *scores, "seconds", "end"]


def cells(row: dict[str, Any], rungs: int) -> list[str]:
    """One row of the table as plain text."""
    pairs = list(zip(row["miou"], row["steps"], strict=True))
    scores = ["failed" if miou is None else f"{100 * miou:.1f} ({steps})" for miou, steps in pairs]
    scores += [NONE] * (rungs - len(scores))
    latency = NONE if row["latency_ms"] is None else f"{row['latency_ms']:.1f}"
    choices = [row[name] for name in ("model", "rate", "loss", "unfreezing")]
    return [str(row["rank"]), *choices, latency, *scores, f"{row['seconds']:.0f}", row["end"]]
