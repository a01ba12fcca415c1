"""The verbs that train: `zoo finetune`, `report` and `quickstart`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli import DATA_HELP, DataOption, OverridesArgument, OverwriteOption, RegistryOption, plain
from zoo.common.console import print_line, print_table
from zoo.common.errors import InputError

if TYPE_CHECKING:
    from zoo.training.plan import Plan


def finetune_command(
    model: Annotated[str, typer.Argument(help="A name, or the folder of a model to start from.")],
    data: DataOption,
    overrides: OverridesArgument = None,
    recipe: Annotated[
        str | None, typer.Option(help="A recipe of the registry, or auto: chosen from the data.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="With --recipe auto: time budget, such as 90s, 10m, 1h.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder.")] = None,
    encoder_weights: Annotated[
        str,
        typer.Option(
            help="default (the tag's own), none (random), a .safetensors file or hf-hub:ORG/REPO."
        ),
    ] = "default",
    new_head: Annotated[
        bool,
        typer.Option("--new-head", help="Allow classes other than those of the trained model."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,
    track: Annotated[
        list[str] | None,
        typer.Option("--track", help="Log the run to tensorboard, trackio or wandb; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which layers train at which rate, and exit.")
    ] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Search for a learning rate in 100 steps, and exit.")
    ] = False,
    stage: Annotated[
        str | None, typer.Option(help="With --find-lr: the stage whose trainable layers are used.")
    ] = None,
    overwrite: OverwriteOption = False,
    registry: RegistryOption = None,
) -> None:
    """Fine-tune MODEL on the train split of DATA; the best model by val mIoU is kept."""
    from zoo.training.plan import RunRequest, make_plan
    from zoo.training.run_folder import check_out, check_trackers

    if stage is not None and not find_lr:
        raise InputError(
            "--stage only goes with --find-lr; to change one stage, set stages.NAME.KEY."
        )
    if overwrite and not find_lr:
        raise InputError("--overwrite only goes with --find-lr; a run is never overwritten.")
    request = RunRequest(
        model=model, data=data, recipe=recipe, out=out, overrides=tuple(overrides or ()),
        encoder_weights=None if encoder_weights == "none" else encoder_weights, new_head=new_head,
        registry=registry, resume=resume, track=tuple(track or ()), budget=budget,
    )  # fmt: skip
    check_trackers(request.track)
    plan = None
    if os.environ.get("WORLD_SIZE", "1") == "1":  # what is wrong is said before torch is loaded
        plan = make_plan(request)
        if find_lr:
            plan.stage(stage)
        else:
            check_out(plan.out, resume)
    if find_lr:
        from zoo.training.find_lr import find_lr_for

        found = vars(find_lr_for(request, stage=stage, overwrite=overwrite))
        print_line(json.dumps({key: value for key, value in found.items() if key != "points"}))
    elif dry_run:
        _print_plan(plan or make_plan(request))
    else:
        from zoo.training.finetune import run

        print_line(json.dumps(vars(run(request, plan))))


def _print_plan(plan: Plan) -> None:
    from zoo.runtime.processes import Ranks, default_device
    from zoo.training.auto import explained, resolve_auto
    from zoo.training.plan import warn_of_few_steps
    from zoo.training.start import make_trainer, prepare, stage_plans

    warn_of_few_steps(plan)
    plan, ranks = resolve_auto(plan), Ranks(device=default_device())
    start = prepare(plan, ranks, dry_run=True)
    stages = stage_plans(plan, start.net)
    make_trainer(plan, start, ranks)  # what training would refuse, a dry run refuses too
    sizes = ", ".join(f"{s} {len(plan.dataset.samples(s))}" for s in plan.dataset.splits)
    print_line(f"{plan.model} on {plan.dataset.name} ({sizes}), recipe {plan.recipe_name}\n")
    rows = []
    for stage in stages:
        last, first = stage.learning_layers, stage.learning_layers_at_first
        layers = str(last) if last == first else f"{first} to {last}"
        rows.append(
            [
                stage.name,
                str(stage.epochs),
                f"{layers} of {stage.encoder_layers}",
                f"{stage.learning_params_m:.2f}",
                f"{stage.decoder_lr:.2g}",
                "frozen" if stage.encoder_lr_top is None else f"{stage.encoder_lr_top:.2g}",
                "frozen" if stage.encoder_lr_bottom is None else f"{stage.encoder_lr_bottom:.2g}",
                stage.schedule,
            ]
        )
    columns = ["stage", "epochs", "encoder layers", "learning M", "decoder lr"]
    print_table([*columns, "encoder lr, top", "bottom", "schedule"], rows)
    if choices := explained(plan):
        print_line("")
        chosen = [[c.key, plain(c.value), c.reason, c.evidence] for c in choices]
        print_table(["chosen", "value", "reason", "evidence"], chosen)


def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; default RUN/report.html.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Evaluate the best model on this split, and show the scores.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help=f"Default: the run's data. {DATA_HELP}")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a self-contained HTML page about a run: curves, scores, images."""
    from zoo.training.report import report

    print_line(str(report(run, out, overwrite, split=split, data=data)))


def quickstart_command(
    out: Annotated[Path, typer.Option(help="Folder for everything it makes.")] = Path("quickstart"),
) -> None:
    """Fine-tune unet-resnet18 on generated scenes and show the result, in a few minutes."""
    from zoo.training.quickstart import quickstart

    print_line(quickstart(out))
