"""The verbs about data: `zoo data init`, `show`, `split` and `zoo doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli import (
    BackgroundOption,
    DataArgument,
    JsonOption,
    OverwriteOption,
    RegistryOption,
)
from zoo.common.errors import InputError

data_app = typer.Typer(help="Describe, look at and divide data.", no_args_is_help=True)


@data_app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="The folder with images and masks.")],
    out: Annotated[Path | None, typer.Option(help="The file; default FOLDER/dataset.yaml.")] = None,
    force: Annotated[
        bool, typer.Option("--force", "--overwrite", help="Overwrite an existing file.")
    ] = False,
) -> None:
    """Write a dataset.yaml for FOLDER by looking at its files."""
    from zoo.data.description.init import init

    sys.stdout.write(f"{init(folder, out=out, force=force)}\n")


@data_app.command("show")
def show_command(
    data: DataArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Recipe values: key=value, such as augment.preset=medium.",
            metavar="[KEY=VALUE]...",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("data.png"),
    split: Annotated[str, typer.Option(help="The split to show.")] = "train",
    recipe: Annotated[str, typer.Option(help="The recipe whose augment is shown.")] = "cnn",
    count: Annotated[int, typer.Option(help="How many crops; three of each image.")] = 12,
    background: BackgroundOption = "auto",
    overwrite: OverwriteOption = False,
    registry: RegistryOption = None,
) -> None:
    """Write a figure of images of DATA beside the augmented crops that training sees."""
    from zoo.data.show import show
    from zoo.registry.load import load_registry
    from zoo.registry.overrides import MODEL, apply_overrides, model_options

    if options := model_options(overrides or []):
        raise InputError(
            "The figure shows what the recipe does to images; leave out "
            f"{MODEL}.{next(iter(options))}."
        )
    chosen = apply_overrides(load_registry(registry).recipe(recipe), overrides or [])
    path = show(
        data, out, split=split, augment=chosen.augment, crop=chosen.crop, seed=chosen.seed,
        count=count, background=background, overwrite=overwrite,
    )  # fmt: skip
    sys.stdout.write(f"{path}\n")


@data_app.command("split")
def split_command(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="A new folder for the lists and dataset.yaml.")],
    ratio: Annotated[str, typer.Option(help="Fractions of train, val and any others.")] = "0.7:0.3",
    names: Annotated[str | None, typer.Option(help="Names of the parts: train,val,test.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random split.")] = 0,
    stratify: Annotated[bool, typer.Option(help="Spread the images of each class evenly.")] = True,
    group: Annotated[
        str | None,
        typer.Option(help="Keep groups together: folder, similarity, none, or a pattern."),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number of folds for cross-validation.")] = None,
    keep: Annotated[str, typer.Option(help="Splits that stay as they are, such as test.")] = "",
) -> None:
    """Divide DATA into parts by writing lists; no file is moved or copied."""
    from zoo.data.split import split

    chosen = None if names is None else names.split(",")
    for path in split(
        data, ratios=ratio, names=chosen, seed=seed, stratify=stratify, group=group, folds=folds,
        keep=[name for name in keep.split(",") if name], out=out,
    ):  # fmt: skip
        sys.stdout.write(f"{path}\n")


def doctor_command(
    data: DataArgument,
    out: Annotated[Path | None, typer.Option(help="A folder for report.html.")] = None,
    as_json: JsonOption = False,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="A new folder for a corrected copy.")
    ] = None,
    overwrite: OverwriteOption = False,
    model: Annotated[
        str | None,
        typer.Option(help="A trained model that did not learn from the labels: which it disputes."),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="With --model: a split to compare; repeatable. Default: all but train."),
    ] = None,
    top: Annotated[int, typer.Option(help="With --model: how many images to show.")] = 12,
) -> None:
    """Look at every image and mask of DATA and report what is wrong; exit code 2 at an error."""
    from zoo.creation.locate import check_trained
    from zoo.data.doctor import doctor

    labels = None
    if model is not None:
        check_trained(model)
        from zoo.evaluation.label_issues import LabelCheck

        labels = LabelCheck(model, data, split or (), top)
    elif split:
        raise InputError("--split goes with --model: the doctor itself looks at every split.")
    code = doctor(data, out, as_json, fix, overwrite, labels)
    if code:
        raise typer.Exit(code)
