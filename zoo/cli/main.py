"""The command line: one verb, one call of the public functions.

Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 a run failed, 2 bad input, 130
interrupted. Heavy imports happen inside the verb that needs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.bench import bench_app, pick_command
from zoo.cli.data import data_app, doctor_command
from zoo.cli.hub import import_command, pull_command, push_command, registry_app
from zoo.cli.models import leaderboard_app, list_command
from zoo.common.console import first_process, print_table, show
from zoo.common.errors import InputError, ZooError, join_problems

if TYPE_CHECKING:
    from zoo.evaluation.evaluate import Evaluation
    from zoo.training.plan import Plan
    from zoo.training.stage_plan import StagePlan

app = typer.Typer(
    name="zoo",
    help="Semantic segmentation models on timm backbones: create, fine-tune, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
check_app = typer.Typer(help="Check what ships with zoo.", no_args_is_help=True)
app.add_typer(leaderboard_app, name="leaderboard")
app.add_typer(check_app, name="check")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(registry_app, name="registry")
app.command("list")(list_command)
app.command("doctor")(doctor_command)
app.command("pick")(pick_command)
app.command("push")(push_command)
app.command("pull")(pull_command)
app.command("import")(import_command)

RegistryOption = Annotated[
    Path | None, typer.Option("--registry", help="An overlay file; default: $ZOO_REGISTRY.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataOption = Annotated[
    str, typer.Option("--data", help="A folder, a dataset.yaml, or FORMAT:PATH (camvid:PATH).")
]
PrecisionOption = Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")]


@app.command("show")
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
        _print(
            json.dumps(
                [{"key": k, "value": v, "origin": o} for k, v, o in rows], indent=2, default=str
            )
        )
    else:
        print_table(["key", "value", "from"], [[k, _plain(v), o] for k, v, o in rows])


@app.command("finetune")
def finetune_command(
    model: Annotated[str, typer.Argument(help="A name, or the folder of a model to go on from.")],
    data: DataOption,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe values: key=value.", metavar="[KEY=VALUE]...")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe of the registry, or auto: chosen from the data.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="With --recipe auto: the time to take, such as 90s, 10m, 1h.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    encoder_weights: Annotated[
        str, typer.Option(help="default (the tag's own), none (random), or a .safetensors file.")
    ] = "default",
    new_head: Annotated[
        bool, typer.Option("--new-head", help="Allow other classes than the trained model has.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track", help="Follow the run in tensorboard, trackio or wandb; repeatable."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what learns at which rate, and stop.")
    ] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Look for a learning rate in 100 steps, and stop.")
    ] = False,
    stage: Annotated[
        str | None, typer.Option(help="With --find-lr: the stage that says what learns.")
    ] = None,
    registry: RegistryOption = None,
) -> None:
    """Fine-tune MODEL on the train split of DATA; the best model by val mIoU is kept."""
    from zoo.training.choose import settled
    from zoo.training.finetune import finetune
    from zoo.training.plan import make_plan

    weights = None if encoder_weights == "none" else encoder_weights
    chosen: dict[str, Any] = {
        "recipe": recipe,
        "out": out,
        "overrides": overrides or [],
        "encoder_weights": weights,
        "registry": registry,
        "budget": budget,
    }
    if stage is not None and not find_lr:
        raise InputError("--stage is for --find-lr alone; one stage is changed by stages.NAME.KEY.")
    if find_lr:
        _find_lr(model, data, stage=stage, new_head=new_head, **chosen)
        return
    if dry_run:
        _print_plan(settled(make_plan(model, data, **chosen), resume=resume))
        return
    result = finetune(model, data, new_head=new_head, resume=resume, track=track or [], **chosen)
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
    from zoo.evaluation.evaluate import evaluate

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
    from zoo.inference.predictor import predict

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
    from zoo.training.report import report

    _print(str(report(run, out)))


@app.command("quickstart")
def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("quickstart"),
) -> None:
    """Fine-tune unet-resnet18 on embedded scenes and show the result, in about two minutes."""
    from zoo.training.quickstart import quickstart

    _print(quickstart(out))


@check_app.command("registry")
def check_registry_command(
    sample: Annotated[
        int, typer.Option(help="How many nets to build anew; 0 builds all (minutes).")
    ] = 20,
) -> None:
    """Check registry.yaml, the table of timm's models and the leaderboard's counts."""
    from zoo.checks.encoder_table import check_registry
    from zoo.checks.figures import count_problems, score_problems

    some = sample or None
    problems = [*check_registry(some), *score_problems(), *count_problems(some)]
    if problems:
        raise InputError(join_problems("The registry has problems:", problems))
    _print("registry.yaml, the table of timm's models and the leaderboard's counts are in order")


def _find_lr(model: str, data: str, **chosen: Any) -> None:
    from zoo.training.find_lr import find_lr

    found = find_lr(model, data, **chosen)
    _print(json.dumps({key: value for key, value in vars(found).items() if key != "points"}))


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
            raise InputError(
                join_problems(
                    "The table of decoders and encoders does not hold here; "
                    "`zoo check encoders --write` makes it anew:",
                    wrong,
                )
            )
        for line in coverage.summary(coverage.listed(module, decoder)):
            _print(line)
        _print("the table of decoders and encoders holds")
        return
    rows = coverage.run_all(coverage.wanted(module, decoder))
    for line in coverage.summary(rows):
        _print(line)
    if any(row.problem for row in rows):
        raise typer.Exit(1)


def _print_plan(plan: Plan) -> None:
    from zoo.training.choose import explained
    from zoo.training.stage_plan import stage_plans

    sizes = ", ".join(f"{s} {len(plan.dataset.samples(s))}" for s in plan.dataset.splits)
    _print(f"{plan.model} on {plan.dataset.name} ({sizes}), recipe {plan.recipe_name}\n")
    rows = [
        [
            stage.name,
            str(stage.epochs),
            _layers(stage),
            f"{stage.learning_params_m:.2f}",
            f"{stage.decoder_lr:.2g}",
            "frozen" if stage.encoder_lr_top is None else f"{stage.encoder_lr_top:.2g}",
            "frozen" if stage.encoder_lr_bottom is None else f"{stage.encoder_lr_bottom:.2g}",
            stage.schedule,
        ]
        for stage in stage_plans(plan)
    ]
    columns = ["stage", "epochs", "encoder layers", "learning M", "decoder lr"]
    print_table([*columns, "encoder lr, top", "bottom", "schedule"], rows)
    if choices := explained(plan):
        _print("")
        chosen = [[c.key, _plain(c.value), c.reason, c.evidence] for c in choices]
        print_table(["chosen", "value", "reason", "evidence"], chosen)


def _layers(stage: StagePlan) -> str:
    """How many of the encoder's layers learn, with the first epoch's number where it differs."""
    last, at_first = stage.learning_layers, stage.learning_layers_at_first
    return f"{last if last == at_first else f'{at_first} to {last}'} of {stage.encoder_layers}"


def _print_metrics(found: Evaluation) -> None:
    show(found.confusion.table())
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


def _print(text: str) -> None:
    if first_process():
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
        if error.shared and not first_process():
            return error.exit_code
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(f"{error.filename or 'A file'}: {error.strerror or error}.", 1)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"zoo: {message}\n")
    return code
