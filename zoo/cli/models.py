"""The verbs about models: `zoo list`, `show`, `leaderboard` and `check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import JsonOption, RegistryOption, plain
from zoo.common.console import info, print_line, print_table
from zoo.common.errors import InputError, join_problems, number_of

check_app = typer.Typer(help="Check what ships with zoo.", no_args_is_help=True)
leaderboard_app = typer.Typer(help="Tables of measured results.", no_args_is_help=True)


def list_command(
    pattern: Annotated[str, typer.Argument(help="A shell pattern such as 'unet-*'.")] = "*",
    decoder: Annotated[str | None, typer.Option(help="Only this decoder.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Only encoders of this pattern.")] = None,
    license: Annotated[
        str | None,
        typer.Option(
            "--license", "--licence", help="Only weights under this license (a pattern), or open."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Only models measured on this data set.")] = None,
    min_miou: Annotated[
        float | None, typer.Option(help="With --data: at least this mIoU, from 0 to 1.")
    ] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="At most this median latency on one machine.")
    ] = None,
    machine: Annotated[
        str | None, typer.Option(help="A part of the machine's name; default: this one.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(help="rank, params, gmacs, latency or pareto.")
    ] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """List model names that match PATTERN, one per line, or their measured results."""
    from zoo.registry.resolve import list_models, under_license

    names = list_models(
        pattern, decoder=decoder, encoder=encoder, license=license, overlay=registry
    )
    if all(asked is None for asked in (data, min_miou, max_latency_ms, machine, sort)):
        print_line(json.dumps(names, indent=2) if as_json else "\n".join(names))
        info(number_of(len(names), "model"))
        return

    from zoo.leaderboard.lookup import Wanted, find

    found = find(Wanted(pattern, decoder, encoder, data, min_miou, max_latency_ms, machine, sort))
    if license is not None:
        kept = under_license(license, [row.model for row in found], registry)
        found = [row for row in found if row.model in kept]
    if as_json:
        print_line(json.dumps([row.as_json() for row in found], indent=2))
    else:
        table = None
        width = max((len(row.model) for row in found), default=0)
        for row in found:  # a star marks the Pareto front
            if row.table != table:
                print_line(f"# {row.table}")
                table = row.table
            parts = [f"{row.model:{width}s}", "*" if row.on_front else " "]
            if row.miou is not None:
                interval = "" if row.interval is None else f" \u00b1 {100 * row.interval:.2f}"
                parts.append(f"mIoU {100 * row.miou:.2f}{interval} %")
            parts.append(f"{row.params_m:.2f} M parameters")
            if row.gmacs is not None:
                parts.append(f"{row.gmacs:.2f} GMACs")
            if row.setup is not None:
                timed = "not timed" if row.latency_ms is None else f"{row.latency_ms:.1f} ms"
                parts.append(f"{timed} on {row.setup}")
            print_line("  ".join(parts))
    info(f"{len(found)} rows")


def show_command(
    name: Annotated[str, typer.Argument(help="A name, a run or model folder, or hf-hub:ORG/REPO.")],
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every value of a model and where it comes from."""
    from zoo.creation.locate import described, model_folder
    from zoo.leaderboard.lookup import show as show_model

    folder = model_folder(name, registry, names=False)
    rows = show_model(name, registry) if folder is None else described(folder, registry)
    if as_json:
        values = [{"key": key, "value": value, "origin": origin} for key, value, origin in rows]
        print_line(json.dumps(values, indent=2, default=str))
    else:
        print_table(["key", "value", "from"], [[k, plain(v), o] for k, v, o in rows])


@leaderboard_app.command("build")
def leaderboard_build(
    results: Annotated[Path, typer.Option(help="Folder with records.")] = Path(
        "benchmarks/results"
    ),
    out: Annotated[Path, typer.Option(help="Folder for leaderboard.md, .csv, .json, .html.")] = (
        Path("benchmarks")
    ),
    speed: Annotated[
        Path, typer.Option(help="Folder with speed records; it need not exist.")
    ] = Path("benchmarks/speed/models"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where the files would change.")
    ] = False,
) -> None:
    """Render the leaderboard from records."""
    from zoo.leaderboard import build

    if check:
        build.check(results, out, speed)
    else:
        for path in build.write(results, out, speed):
            print_line(str(path))


@check_app.command("registry")
def check_registry_command(
    sample: Annotated[
        int, typer.Option(help="How many models to rebuild; 0 rebuilds all (minutes).")
    ] = 20,
) -> None:
    """Check registry.yaml, the table of timm's models and the leaderboard's counts."""
    from zoo.checks.encoder_table import check_registry
    from zoo.checks.figures import count_problems, score_problems

    some = sample or None
    problems = [*check_registry(some), *score_problems(), *count_problems(some)]
    if problems:
        raise InputError(join_problems("The registry has problems:", problems))
    print_line(
        "registry.yaml, the table of timm's models and the leaderboard's counts are in order"
    )


@check_app.command("encoders")
def check_encoders_command(
    module: Annotated[str, typer.Option(help="Pattern of timm's modules.")] = "*",
    decoder: Annotated[str, typer.Option(help="Pattern of decoders.")] = "*",
    write: Annotated[
        bool, typer.Option("--write", help="Run what the table lacks and write it; hours for all.")
    ] = False,
    sample: Annotated[int, typer.Option(help="How many pairs of the table to run again.")] = 5,
) -> None:
    """Check which decoders work on which of timm's encoders, against the table that ships."""
    from zoo.checks import coverage

    if not write:
        if wrong := coverage.differences(sample, module=module, decoder=decoder):
            header = (
                "The table of decoders and encoders does not match this installation; "
                "run `zoo check encoders --write`:"
            )
            raise InputError(join_problems(header, wrong))
        for line in coverage.summary(coverage.listed(module, decoder)):
            print_line(line)
        print_line("the table of decoders and encoders is up to date")
        return
    rows = coverage.run_all(coverage.wanted(module, decoder))
    for line in coverage.summary(rows):
        print_line(line)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


@check_app.command("exports")
def check_exports_command(
    only: Annotated[str, typer.Option(help="Pattern of pairs, DECODER-ENCODER.")] = "*",
    write: Annotated[
        bool,
        typer.Option("--write", help="Export what the table lacks and write it; half an hour."),
    ] = False,
    sample: Annotated[int, typer.Option(help="How many pairs of the table to export again.")] = 3,
) -> None:
    """Check which decoders can be exported on which encoders, against the table that ships."""
    from zoo.checks import exports

    if write:
        lines = exports.summary(exports.run_all(exports.wanted(only)))
    else:
        lines = [*exports.check(sample, only), "the table of exports is up to date"]
    print_line("\n".join(lines))


@check_app.command("docs")
def check_docs_command(
    write: Annotated[bool, typer.Option("--write", help="Rewrite the tables.")] = False,
) -> None:
    """Check that the generated tables in docs/ follow from the code."""
    from zoo.checks.reference import check_docs

    changed = [str(path) for path in check_docs(write=write)]
    if changed and not write:
        header = "These pages differ from the code; run `zoo check docs --write`:"
        raise InputError(join_problems(header, changed))
    print_line("\n".join(changed) or "the generated tables in docs/ follow from the code")
