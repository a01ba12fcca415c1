"""The verbs that measure: `zoo bench run`, `status`, `table` and `speed`, and `zoo pick`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zoo.bench.speed.setting import Setting
    from zoo.records.speed import SpeedRecord

bench_app = typer.Typer(help="Run suites of measurements; time models.", no_args_is_help=True)

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
    engine: Annotated[
        str, typer.Option(help="local, or ray: a cluster, by RAY_ADDRESS.")
    ] = "local",
    registry: Registry = None,
) -> None:
    """Run what is missing of SUITE; stop it any time and go on with the same command."""
    from zoo.bench.runner import run_suite
    from zoo.common.console import info
    from zoo.common.errors import RunError

    outcome = run_suite(
        suite, data or [], out, results, jobs=jobs, threads=threads, retry=retry, registry=registry,
        engine=engine,
    )  # fmt: skip
    if outcome.failed:
        raise RunError(
            f"{outcome.failed} of {outcome.failed + outcome.done} jobs failed. `zoo bench status "
            f"{suite} --results {results} --out {out}` says why; --retry repeats them."
        )
    info(f"All {outcome.done} jobs are done; their records are in {results}.")


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
    from zoo.common.console import info

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
    info(summary(states))


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


@bench_app.command("speed")
def speed_command(
    names: Annotated[list[str], typer.Argument(help="Model names.", metavar="NAME...")],
    size: Annotated[str, typer.Option(help="Pixels: 512, or HEIGHTxWIDTH.")] = "512",
    batches: Annotated[
        str, typer.Option(help="Batch sizes; the latency is that of the smallest.")
    ] = "1,4,16",
    precision: Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")] = "auto",
    memory_format: Annotated[
        str, typer.Option(help="channels_last or contiguous.")
    ] = "channels_last",
    threads: Annotated[int | None, typer.Option(help="CPU threads; default: torch's.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Turns of each model with the reference.")] = 10,
    reference: Annotated[
        str, typer.Option(help="The model that takes turns with each.")
    ] = "unet-resnet18",
    out: Annotated[Path | None, typer.Option(help="Folder to write the records into.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as JSON.")] = False,
) -> None:
    """Time models on this machine: latency, throughput, memory, building, against a reference."""
    from zoo.bench.speed import table
    from zoo.bench.speed.setting import Setting, checked, parse_batches, parse_size
    from zoo.common.console import info, print_table
    from zoo.common.errors import RunError, join_problems
    from zoo.records.speed import speed_record_text

    setting = Setting(
        size=parse_size(size), batches=parse_batches(batches), precision=precision,
        memory_format=memory_format, threads=threads, device=device, rounds=rounds,
        reference=reference,
    )  # fmt: skip
    records, failed = _measured(names, checked(names, setting), out)
    if as_json:
        fields = [json.loads(speed_record_text(record)) for record in records]
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
    elif records:
        print_table(table.COLUMNS, map(table.row, records))
        info(table.heading(records))
    if failed:
        raise RunError(join_problems("These models were not measured:", failed))


def _measured(
    names: list[str], setting: Setting, out: Path | None
) -> tuple[list[SpeedRecord], list[str]]:
    """The records, written into `out` one by one, and what failed and why."""
    from zoo.bench.speed import measure
    from zoo.common.console import info
    from zoo.records.speed import write_speed_record

    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    records, failed = [], []
    for outcome in measure.measure(list(dict.fromkeys(names)), setting):
        if outcome.record is None:
            failed.append(f"{outcome.model}: {outcome.reason}")
            continue
        records.append(outcome.record)
        if out is not None:
            info(f"{outcome.model}: {write_speed_record(outcome.record, out)}")
    return records, failed


def pick_command(
    data: Annotated[
        str, typer.Option("--data", help="A folder, a dataset.yaml, or FORMAT:PATH (camvid:PATH).")
    ],
    budget: Annotated[str, typer.Option(help="The time to take, such as 30m or 1h.")],
    out: Annotated[Path, typer.Option(help="The folder of the search; give it again to go on.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe values: key=value.", metavar="[KEY=VALUE]...")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", help="A name or a pattern; repeatable.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="The latency of one image on this machine, at most.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Pixels for the latency; default: those of most images.")
    ] = None,
    encoder_weights: Annotated[
        str, typer.Option(help="default (the tag's own) or none (random).")
    ] = "default",
    seed: Annotated[int, typer.Option(help="Of the suggestions and of training.")] = 0,
    registry: Registry = None,
) -> None:
    """Find the model and recipe that suit DATA best in a given time, and fine-tune it."""
    from zoo.bench.pick import report, search
    from zoo.bench.pick.state import Asked
    from zoo.bench.speed.setting import parse_size
    from zoo.common.console import info, print_table

    asked = Asked(
        data=data, budget=budget, max_latency_ms=max_latency_ms,
        size=None if size is None else parse_size(size), models=tuple(models or ()),
        overrides=tuple(overrides or ()), seed=seed,
        encoder_weights=None if encoder_weights == "none" else encoder_weights,
        registry=None if registry is None else str(registry),
    )  # fmt: skip
    picked = search.pick(asked, out)
    rows = json.loads((out / report.JSON).read_text(encoding="utf-8"))
    rungs = max(len(row["miou"]) for row in rows)
    print_table(report.columns(rungs), (report.cells(row, rungs) for row in rows))
    info(
        f"{picked.configuration.model} has {100 * picked.miou:.2f} % mIoU on val after "
        f"fine-tuning. The run is {picked.run}, what was tried {out / report.MARKDOWN}; "
        f"`zoo eval {picked.run} --data {data}` scores it on the test split."
    )
