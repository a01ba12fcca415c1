"""What a search has found out so far, in the file `pick.json` of its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zoo.bench.pick.candidates import Candidate
from zoo.bench.pick.halving import Rung, Schedule
from zoo.common.errors import InputError, join_problems
from zoo.common.files import read_json, write_json

FILE = "pick.json"


@dataclass(frozen=True)
class Asked:
    """What the user asked for; a search goes on only where this is the same."""

    data: str
    budget: str
    max_latency_ms: float | None = None
    size: tuple[int, int] | None = None
    models: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    encoder_weights: str | None = "default"
    registry: str | None = None
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}


@dataclass
class State:
    """What is known: None where it is not known yet.

    `spent_s` are the seconds of measuring by what was measured; `final` is the budget of the run at
    the end, as --budget writes it.
    """

    asked: Asked
    candidates: list[Candidate] | None = None
    schedule: Schedule | None = None
    spent_s: dict[str, float] = field(default_factory=dict)
    final: str | None = None

    def write(self, out: Path) -> None:
        """Write the state into the folder `out`."""
        write_json(
            out / FILE,
            {
                "schema": 1,
                "asked": self.asked.as_json(),
                "candidates": _listed(self.candidates),
                "schedule": None if self.schedule is None else asdict(self.schedule),
                "spent_s": self.spent_s,
                "final": self.final,
            },
        )


def _listed(candidates: list[Candidate] | None) -> list[dict[str, Any]] | None:
    return None if candidates is None else [asdict(one) for one in candidates]


def open_state(out: Path, asked: Asked) -> State:
    """The state of the search in `out`, a new one where there is none.

    Before the first trial the budget may change. Raises InputError where `out` holds anything else,
    or a search for which something else was asked.
    """
    if not (out / FILE).is_file():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not an empty folder. Give another --out.")
        state = State(asked)
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
    candidates, schedule = before["candidates"], before["schedule"]
    return State(
        asked=asked,
        candidates=None if candidates is None else [Candidate(**one) for one in candidates],
        schedule=None
        if schedule is None
        else Schedule(**schedule | {"rungs": [Rung(**rung) for rung in schedule["rungs"]]}),
        spent_s=before["spent_s"],
        final=before["final"],
    )
