"""The verbs that measure: `zoo bench run`, `status`, `table` and `speed`, and `zoo pick`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import DataOption, JsonOption, OverridesArgument, RegistryOption
from zoo.common.console import info, print_table
from zoo.common.errors import RunError, join_problems

bench_app = typer.Typer(help="Run suites of measurements; time models.", no_args_is_help=True)

Suite = Annotated[Path, typer.Argument(help="A suite file, as in benchmarks/suites.")]
Results = Annotated[Path, typer.Option(help="The folder of records.")]
RESULTS = Path("benchmarks/results")


@bench_app.command("run")
def run_command(
    suite: Suite,
    out: Annotated[Path, typer.Option(help="The folder for the runs; can be deleted afterwards.")],
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
    registry: RegistryOption = None,
) -> None:
    """Run what SUITE is missing; stop it at any time and resume with the same command."""
    from zoo.bench.runner import run_suite

    outcome = run_suite(
        suite, data or [], out, results, jobs=jobs, threads=threads, retry=retry, registry=registry,
        engine=engine,
    )  # fmt: skip
    if outcome.failed:
        raise RunError(
            f"{outcome.failed} of {outcome.failed + outcome.done} jobs failed. `zoo bench status "
            f"{suite} --results {results} --out {out}` shows why; --retry repeats them."
        )
    info(f"All {outcome.done} jobs are done; their records are in {results}.")


@bench_app.command("status")
def status_command(
    suite: Suite,
    results: Results = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="The folder for runs, to see what failed or is in progress.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of every job of SUITE whether it is done, has failed, is in progress or missing."""
    from zoo.bench.table import suite_states, summary

    states = suite_states(suite, results, out, registry)
    if as_json:
        rows = [
            {
                "job": str(state.job),
                "state": state.state,
                "minutes": None if state.minutes is None else round(state.minutes, 1),
                "note": state.note,
            }
            for state in states
        ]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        for state in states:
            note = " ".join(state.note.split())
            sys.stdout.write(f"{state.state:12s}{state.job}  {note}".rstrip() + "\n")
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
    registry: RegistryOption = None,
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
    rounds: Annotated[
        int, typer.Option(help="Number of alternating rounds of model and reference.")
    ] = 10,
    reference: Annotated[
        str, typer.Option(help="Reference model to compare with.")
    ] = "unet-resnet18",
    out: Annotated[Path | None, typer.Option(help="Folder to write the records into.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Time models on this machine: latency, throughput, memory, building, against a reference."""
    from zoo.bench.speed import measure
    from zoo.records.speed import speed_record_text

    setting = measure.SpeedSetting(
        size=measure.parse_size(size), batches=measure.parse_batches(batches), precision=precision,
        memory_format=memory_format, threads=threads, device=device, rounds=rounds,
        reference=reference,
    )  # fmt: skip
    records, failed = measure.measure_all(names, setting, out)
    if as_json:
        fields = [json.loads(speed_record_text(record)) for record in records]
        sys.stdout.write(json.dumps(fields, indent=2) + "\n")
    elif records:
        print_table(measure.SPEED_COLUMNS, map(measure.speed_row, records))
        info(measure.speed_heading(records))
    if failed:
        raise RunError(join_problems("These models could not be measured:", failed))


def pick_command(
    data: DataOption,
    budget: Annotated[str, typer.Option(help="Time budget, such as 30m or 1h.")],
    out: Annotated[Path, typer.Option(help="The folder of the search; give it again to resume.")],
    overrides: OverridesArgument = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", help="A name or a pattern; repeatable.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Maximum latency of one image on this machine.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Image size for the latency; default: the most common one.")
    ] = None,
    encoder_weights: Annotated[
        str, typer.Option(help="default (the tag's own) or none (random).")
    ] = "default",
    seed: Annotated[int, typer.Option(help="Seed of the suggestions and of training.")] = 0,
    registry: RegistryOption = None,
) -> None:
    """Find the model and recipe that suit DATA best in a given time, and fine-tune it."""
    from zoo.bench.pick import search
    from zoo.bench.pick.state import Asked
    from zoo.bench.speed.measure import parse_size

    asked = Asked(
        data=data, budget=budget, max_latency_ms=max_latency_ms,
        size=None if size is None else parse_size(size), models=tuple(models or ()),
        overrides=tuple(overrides or ()), seed=seed,
        encoder_weights=None if encoder_weights == "none" else encoder_weights,
        registry=None if registry is None else str(registry),
    )  # fmt: skip
    picked = search.pick(asked, out)
    rows = json.loads((out / search.JSON).read_text(encoding="utf-8"))
    rungs = max(len(row["miou"]) for row in rows)
    print_table(search.columns(rungs), (search.cells(row, rungs) for row in rows))
    info(
        f"{picked.configuration.model} has {100 * picked.miou:.2f} % mIoU on val after "
        f"fine-tuning. The run is {picked.run}, what was tried {out / search.MARKDOWN}; "
        f"`zoo eval {picked.run} --data {data}` scores it on the test split."
    )
