"""The state of a search: `pick.json` in its folder, and its trials in an Optuna database."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.bench.pick.halving import Candidate, Configuration, HalvingSchedule, Rung
from zoo.common.errors import InputError, RunError, extra, join_problems
from zoo.common.files import read_json, write_json

FILE = "pick.json"


@dataclass(frozen=True)
class Asked:
    """What the user asked for; a search resumes only where this is the same."""

    data: str
    budget: str
    max_latency_ms: float | None = None
    size: tuple[int, int] | None = None
    models: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    encoder_weights: str | None = "default"
    registry: str | None = None
    seed: int = 0

    @property
    def registry_path(self) -> Path | None:
        """The overlay file."""
        return None if self.registry is None else Path(self.registry)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}


@dataclass
class SearchState:
    """What is known so far; None for the rest.

    `spent_s` are the seconds of measuring by what was measured; `final` is the budget of the run at
    the end, as --budget writes it.
    """

    asked: Asked
    candidates: list[Candidate] | None = None
    schedule: HalvingSchedule | None = None
    spent_s: dict[str, float] = field(default_factory=dict)
    final: str | None = None

    def write(self, out: Path) -> None:
        """Write the state into the folder `out`."""
        write_json(out / FILE, {"schema": 1, **asdict(self)})


def open_state(out: Path, asked: Asked) -> SearchState:
    """The state of the search in `out`, a new one where there is none.

    Before the first trial the budget may change. Raises InputError where `out` holds anything else,
    or a search for which something else was asked.
    """
    if not (out / FILE).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not an empty folder. Give another --out.")
        state = SearchState(asked)
        state.write(out)
        return state
    before, now = read_json(out / FILE), asked.as_json()
    free = {"budget"} if before["schedule"] is None else set()  # no trial has used it yet
    differences = [
        f"{key.replace('_', '-')}: it has {before['asked'].get(key)!r}, asked is {now[key]!r}"
        for key in now
        if before["asked"].get(key) != now[key] and key not in free
    ]
    if differences:
        header = f"{out} holds another search. Ask for the same again, or give another --out:"
        raise InputError(join_problems(header, differences))
    state = SearchState(asked, spent_s=before["spent_s"], final=before["final"])
    if before["candidates"] is not None:
        state.candidates = [Candidate(**one) for one in before["candidates"]]
    if before["schedule"] is not None:
        rungs = [Rung(**rung) for rung in before["schedule"]["rungs"]]
        state.schedule = HalvingSchedule(**before["schedule"] | {"rungs": rungs})
    return state


REPEATS = 5
"""How often the sampler may suggest what was tried before."""


@dataclass(frozen=True)
class Trial:
    """A trial that has ended: its mIoU on val in [0, 1] (None: it failed, `reason` says why)."""

    number: int
    configuration: Configuration
    miou: float | None
    steps: int
    seconds: float
    reason: str = ""


class Store:
    """The trials in the file `path`; `seed` decides what is suggested.

    Raises InputError where Optuna is not installed, RunError where the file cannot be used.
    """

    def __init__(self, path: Path, seed: int):
        self._optuna = extra("optuna", "pick", "zoo pick")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._seed = seed
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage = self._optuna.storages.RDBStorage(f"sqlite:///{path}")
        except Exception as error:  # SQLAlchemy's, which comes with Optuna
            raise RunError(f"Cannot use {path}: {str(error).splitlines()[0]}") from error

    def trials(self, rung: int) -> list[Trial]:
        """The trials of a rung that have ended, by number."""
        ended = (self._state("COMPLETE"), self._state("FAIL"))
        return [
            Trial(
                trial.number,
                Configuration(**trial.params),
                trial.value,
                int(trial.user_attrs["steps"]),
                float(trial.user_attrs["seconds"]),
                str(trial.user_attrs.get("reason", "")),
            )
            for trial in self._study(rung).get_trials(deepcopy=False)
            if trial.state in ended and "steps" in trial.user_attrs
        ]

    def next(
        self, rung: int, options: Mapping[str, Sequence[str]], everything: Sequence[Configuration]
    ) -> tuple[int, Configuration]:
        """The trial to run: one in progress, a queued one, or one that is suggested.

        `options` are the values of each choice; `everything` is taken in order where the sampler
        only repeats itself.
        """
        study = self._study(rung)
        for running in study.get_trials(deepcopy=False, states=(self._state("RUNNING"),)):
            if running.params.keys() == options.keys():
                return running.number, Configuration(**running.params)
            study.tell(running.number, state=self._state("FAIL"))  # killed before it was chosen
        tried = {trial.configuration for trial in self.trials(rung)}
        space = {
            name: self._optuna.distributions.CategoricalDistribution(list(values))
            for name, values in options.items()
        }
        for _ in range(REPEATS):
            trial = study.ask(space)
            if (found := Configuration(**trial.params)) not in tried:
                return trial.number, found
            study.tell(trial, state=self._state("FAIL"))
        self.queue(rung, [next(one for one in everything if one not in tried)])
        trial = study.ask(space)
        return trial.number, Configuration(**trial.params)

    def queue(self, rung: int, configurations: Sequence[Configuration]) -> None:
        """Queue the next trials of a rung; those that it has already are skipped."""
        study = self._study(rung)
        for configuration in configurations:
            study.enqueue_trial(configuration.as_params(), skip_if_exists=True)

    def tell(
        self, rung: int, number: int, miou: float | None, steps: int, seconds: float, reason: str
    ) -> None:
        """Store the outcome of a trial."""
        study = self._study(rung)
        study_id = self._storage.get_study_id_from_name(study.study_name)
        trial = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        for name, value in (("steps", steps), ("seconds", seconds), ("reason", reason)):
            self._storage.set_trial_user_attr(trial, name, value)
        study.tell(number, miou, state=self._state("FAIL") if miou is None else None)

    def _study(self, rung: int) -> Any:
        study = self._optuna.create_study(
            study_name=f"rung {rung + 1}",
            storage=self._storage,
            direction="maximize",
            load_if_exists=True,
        )
        trials = len(study.get_trials(deepcopy=False))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parts of the sampler are marked as experimental
            study.sampler = self._optuna.samplers.TPESampler(
                seed=self._seed + trials, n_startup_trials=4
            )
        return study

    def _state(self, name: str) -> Any:
        return self._optuna.trial.TrialState[name]
