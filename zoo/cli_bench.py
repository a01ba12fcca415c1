"""The verbs about suites: `zoo bench run`, `status` and `table`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

bench_app = typer.Typer(help="Run suites of measurements.", no_args_is_help=True)

Suite = Annotated[Path, typer.Argument(help="A suite file, as in benchmarks/suites.")]
Results = Annotated[Path, typer.Option(help="The folder of records.")]
Registry = Annotated[
    Path | None, typer.Option("--registry", help="An overlay file; default: $ZOO_REGISTRY.")
]
RESULTS = Path("benchmarks/results")


@bench_app.command("run")
def run_command(
    suite: Suite,
    out: Annotated[Path, typer.Option(help="The folder for runs; they are short-lived.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DATA for each data set of the suite: camvid=camvid:PATH."),
    ] = None,
    results: Results = RESULTS,
    jobs: Annotated[
        int | None, typer.Option(help="Jobs at a time; default: one for each GPU, one without.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each job.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Repeat jobs that have failed.")] = False,
    registry: Registry = None,
) -> None:
    """Run what is missing of SUITE; stop it any time and go on with the same command."""
    from zoo.bench.runner import run_suite
    from zoo.console import remark
    from zoo.errors import RunError

    outcome = run_suite(
        suite, data or [], out, results, jobs=jobs, threads=threads, retry=retry, registry=registry
    )
    if outcome.failed:
        raise RunError(
            f"{outcome.failed} of {outcome.failed + outcome.done} jobs failed. `zoo bench status "
            f"{suite} --results {results} --out {out}` says why; --retry repeats them."
        )
    remark(f"All {outcome.done} jobs are done; their records are in {results}.")


@bench_app.command("status")
def status_command(
    suite: Suite,
    results: Results = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="The folder for runs, to see what failed or was begun.")
    ] = None,
    registry: Registry = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say of every job of SUITE whether it is done, has failed, was begun or is missing."""
    from zoo.bench.status import suite_states, summary
    from zoo.console import remark

    states = suite_states(suite, results, out, registry)
    rows = [
        {
            "job": str(state.job),
            "state": state.state,
            "minutes": None if state.minutes is None else round(state.minutes, 1),
            "note": state.note,
        }
        for state in states
    ]
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        for state in states:
            note = " ".join(state.note.split())
            sys.stdout.write(f"{state.state:8s}{state.job}  {note}".rstrip() + "\n")
    remark(summary(states))


@bench_app.command("table")
def table_command(
    suite: Suite,
    results: Results = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="A page to put the tables into; default: print them.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where the page would change.")
    ] = False,
    registry: Registry = None,
) -> None:
    """Render the tables of SUITE from its records: means, intervals, differences to the base."""
    from zoo.bench import table

    text = table.suite_text(suite, results, registry)
    if out is None:
        sys.stdout.write(text)
    elif check:
        table.check(out, suite.stem, text)
    else:
        table.write(out, suite.stem, text)
        sys.stdout.write(f"{out}\n")
