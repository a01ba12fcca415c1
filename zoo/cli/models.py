"""The verbs that list models and build the leaderboard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from zoo.leaderboard.lookup import Found

leaderboard_app = typer.Typer(help="Tables of measured results.", no_args_is_help=True)


def list_command(
    pattern: Annotated[str, typer.Argument(help="A shell pattern such as 'unet-*'.")] = "*",
    decoder: Annotated[str | None, typer.Option(help="Only this decoder.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Only encoders of this pattern.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="Only weights under this licence (a pattern), or open.")
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
    registry: Annotated[
        Path | None, typer.Option("--registry", help="An overlay file; default: $ZOO_REGISTRY.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List model names that match PATTERN, one a line; or what was measured of them."""
    from zoo.common.console import info
    from zoo.leaderboard.lookup import Wanted, find
    from zoo.registry.resolve import list_models, under_licence

    names = list_models(
        pattern, decoder=decoder, encoder=encoder, licence=licence, overlay=registry
    )
    wanted = Wanted(pattern, decoder, encoder, data, min_miou, max_latency_ms, machine, sort)
    if wanted.measured:
        found = find(wanted)
        if licence is not None:
            kept = under_licence(licence, [row.model for row in found], registry)
            found = [row for row in found if row.model in kept]
        rows = json.dumps([row.as_json() for row in found], indent=2) if as_json else _lines(found)
        sys.stdout.write(rows + "\n" if rows else "")
        info(f"{len(found)} rows")
        return
    sys.stdout.write((json.dumps(names, indent=2) if as_json else "\n".join(names)) + "\n")
    info(f"{len(names)} models")


def _lines(found: list[Found]) -> str:
    """Rows with the model first, then what was measured; a star marks the Pareto front."""
    lines, table = [], None
    width = max((len(row.model) for row in found), default=0)
    for row in found:
        if row.table != table:
            lines.append(f"# {row.table}")
            table = row.table
        parts = [f"{row.model:{width}s}", " " if not row.on_front else "*"]
        if row.miou is not None:
            interval = "" if row.interval is None else f" \u00b1 {100 * row.interval:.2f}"
            parts.append(f"mIoU {100 * row.miou:.2f}{interval} %")
        parts.append(f"{row.params_m:.2f} M parameters")
        if row.gmacs is not None:
            parts.append(f"{row.gmacs:.2f} GMACs")
        if row.setup is not None:
            timed = "not timed" if row.latency_ms is None else f"{row.latency_ms:.1f} ms"
            parts.append(f"{timed} on {row.setup}")
        lines.append("  ".join(parts))
    return "\n".join(lines)


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
            sys.stdout.write(f"{path}\n")
