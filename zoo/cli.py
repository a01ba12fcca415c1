"""The command line: one verb, one call of the public functions.

Data goes to stdout, remarks to stderr. Exit codes: 0 done, 1 a run failed, 2 bad input, 130
interrupted. Heavy imports happen inside the verb that needs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli_data import data_app, doctor_command
from zoo.errors import InputError, ZooError, join_problems

if TYPE_CHECKING:
    from zoo.evaluation.record import Evaluation
    from zoo.training.finetune import Plan

app = typer.Typer(
    name="zoo",
    help="Semantic segmentation models on timm backbones: create, fine-tune, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
leaderboard_app = typer.Typer(help="Tables of measured results.", no_args_is_help=True)
check_app = typer.Typer(help="Check what ships with zoo.", no_args_is_help=True)
app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(check_app, name="check")
app.add_typer(data_app, name="data")
app.command("doctor")(doctor_command)

RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="An overlay file; default: $ZOO_REGISTRY.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[
    str, typer.Option("--data", help="A folder, a dataset.yaml, or FORMAT:PATH (camvid:PATH).")
]
PrecisionOption = Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")]


@app.command("list")
def list_command(
    pattern: Annotated[str, typer.Argument(help="A shell pattern such as 'unet-*'.")] = "*",
    decoder: Annotated[str | None, typer.Option(help="Only this decoder.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Only encoders of this pattern.")] = None,
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """List model names that match PATTERN, one a line."""
    from zoo.console import remark
    from zoo.registry.registry import list_models

    names = list_models(pattern, decoder=decoder, encoder=encoder, overlay=registry)
    _print(json.dumps(names, indent=2) if as_json else "\n".join(names))
    remark(f"{len(names)} models")


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="A model name such as unet-resnet18.")],
    registry: RegistryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every value of a model and where it comes from."""
    from zoo.registry.registry import show

    rows = show(name, registry)
    if as_json:
        _print(
            json.dumps(
                [{"key": k, "value": v, "origin": o} for k, v, o in rows], indent=2, default=str
            )
        )
    else:
        _table(["key", "value", "from"], [[k, _plain(v), o] for k, v, o in rows])


@app.command("finetune")
def finetune_command(
    model: Annotated[str, typer.Argument(help="A name, or the folder of a model to go on from.")],
    data: DataOption,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe values: key=value.", metavar="[KEY=VALUE]...")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="A recipe of the registry.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    encoder_weights: Annotated[
        str, typer.Option(help="default (the tag's own), none (random), or a .safetensors file.")
    ] = "default",
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Allow other classes than the trained model has.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what learns at which rate, and stop.")
    ] = False,
    registry: RegistryOption = None,
) -> None:
    """Fine-tune MODEL on the train split of DATA; the best model by val mIoU is kept."""
    from zoo.training.finetune import finetune, make_plan

    weights = None if encoder_weights == "none" else encoder_weights
    chosen: dict[str, Any] = {
        "recipe": recipe,
        "out": out,
        "overrides": overrides or [],
        "encoder_weights": weights,
        "registry": registry,
    }
    if dry_run:
        _print_plan(make_plan(model, data, **chosen))
        return
    result = finetune(model, data, new_head=new_head, resume=resume, **chosen)
    _print(json.dumps(result.__dict__))


@app.command("eval")
def eval_command(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    data: DataOption,
    split: Annotated[str, typer.Option(help="The split to score.")] = "test",
    out: Annotated[Path | None, typer.Option(help="Folder to write the record into.")] = None,
    precision: PrecisionOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score MODEL once on a split of DATA, at the images' own resolution."""
    from zoo.api import evaluate

    found = evaluate(model, data, split=split, precision=precision, out=out)
    if as_json:
        _print(json.dumps(found.metrics, indent=2))
    else:
        _print_metrics(found)


@app.command("predict")
def predict_command(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders or patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for masks/ and overlays/.")],
    precision: PrecisionOption = "auto",
) -> None:
    """Segment images: index masks and coloured overlays with a legend."""
    from zoo.api import predict

    for prediction in predict(model, inputs, out=out, precision=precision):
        _print(f"{prediction.mask_file}\t{prediction.overlay_file}")


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; default RUN/report.html.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run: curves, scores, pictures."""
    from zoo.reports import report

    _print(str(report(run, out)))


@app.command("quickstart")
def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("quickstart"),
) -> None:
    """Fine-tune unet-resnet18 on embedded scenes and show the result, in about two minutes."""
    from zoo.quickstart import quickstart

    _print(quickstart(out))


@leaderboard_app.command("build")
def leaderboard_build(
    results: Annotated[Path, typer.Option(help="Folder with records.")] = Path(
        "benchmarks/results"
    ),
    out: Annotated[Path, typer.Option(help="Folder for leaderboard.md and .csv.")] = Path(
        "benchmarks"
    ),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where the files would change.")
    ] = False,
) -> None:
    """Render the leaderboard from records."""
    from zoo.leaderboard import render

    if check:
        render.check(results, out)
    else:
        for path in render.write(results, out):
            _print(str(path))


@check_app.command("registry")
def check_registry_command(
    sample: Annotated[
        int, typer.Option(help="How many encoders to build anew; 0 builds all (minutes).")
    ] = 20,
) -> None:
    """Check registry.yaml and the table of timm's models against the installed timm."""
    from zoo.models.timm_table import check_registry

    problems = check_registry(sample)
    if problems:
        raise InputError(join_problems("The registry has problems:", problems))
    _print("registry.yaml and the table of timm's models are in order")


def _print_plan(plan: Plan) -> None:
    from zoo.training.finetune import stage_plans

    sizes = ", ".join(f"{s} {len(plan.dataset.samples(s))}" for s in plan.dataset.splits)
    _print(f"{plan.model} on {plan.dataset.name} ({sizes}), recipe {plan.recipe_name}\n")
    rows = [
        [
            stage.name,
            str(stage.epochs),
            f"{stage.learning_layers} of {stage.encoder_layers}",
            f"{stage.learning_params_m:.2f}",
            f"{stage.decoder_lr:.2g}",
            "frozen" if stage.encoder_lr_top is None else f"{stage.encoder_lr_top:.2g}",
            "frozen" if stage.encoder_lr_bottom is None else f"{stage.encoder_lr_bottom:.2g}",
            stage.schedule,
        ]
        for stage in stage_plans(plan)
    ]
    columns = ["stage", "epochs", "encoder layers", "learning M", "decoder lr"]
    _table([*columns, "encoder lr, top", "bottom", "schedule"], rows)


def _print_metrics(found: Evaluation) -> None:
    _show(found.confusion.table())
    _print(
        f"mIoU {100 * found.confusion.miou:.2f} %, pixel accuracy "
        f"{100 * found.confusion.pixel_accuracy:.2f} % on "
        f"{len(found.dataset.samples(found.split))} images of {found.dataset.name}, "
        f"split {found.split}"
    )


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _table(columns: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _show(table)


def _show(table: object) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code and prints one clear message for every error."""
    try:
        app(arguments, prog_name="zoo")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except ZooError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(f"{error.filename or 'A file'}: {error.strerror or error}.", 1)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"zoo: {message}\n")
    return code
