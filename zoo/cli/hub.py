"""The verbs about the Hub: push, pull, import, registry update."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli import JsonOption
from zoo.common.console import info, print_line
from zoo.common.errors import InputError, printable, shortened

registry_app = typer.Typer(help="Registries of trained models.", no_args_is_help=True)

Register = Annotated[
    Path | None, typer.Option("--register", help="An overlay registry to add the rows to.")
]


def push_command(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    repo: Annotated[str, typer.Argument(help="ORG/NAME on the Hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.")
    ] = False,
    branch: Annotated[str, typer.Option(help="Created if missing.")] = "main",
    tag: Annotated[str | None, typer.Option(help="Tag the commit.")] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Open a pull request; main does not change.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="The commit message.")] = None,
    license: Annotated[
        str | None,
        typer.Option("--license", "--licence", help="License of the model, such as apache-2.0."),
    ] = None,
    data_license: Annotated[
        str | None,
        typer.Option("--data-license", "--data-licence", help="License of the training data."),
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="A PNG or JPEG image for the card.")] = None,
    record: Annotated[
        list[Path] | None, typer.Option(help="A result file of this model for the card.")
    ] = None,
    eval_results: Annotated[
        str | None, typer.Option(help="A benchmark on the Hub to report the result to.")
    ] = None,
    register: Register = None,
    decoder_only: Annotated[
        bool, typer.Option("--decoder-only", help="Leave out a frozen encoder from the Hub.")
    ] = False,
    space: Annotated[
        bool, typer.Option("--space", help="Also publish the page of `zoo demo` as a Space.")
    ] = False,
    space_repo: Annotated[
        str | None, typer.Option(help="With --space: ORG/NAME of the Space, by default REPO.")
    ] = None,
    handler: Annotated[
        bool, typer.Option("--handler", help="Add the handler.py of inference endpoints.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files and card, upload nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Push MODEL to REPO on the Hugging Face Hub in one commit; prints its registry row."""
    from zoo.hub.push import push

    done = push(
        model, repo, private=private, branch=branch, tag=tag, pull_request=pull_request,
        message=message, license=license, data_license=data_license, picture=picture,
        records=record or [], eval_results=eval_results, register_in=register,
        decoder_only=decoder_only, space=space, space_repo=space_repo, handler=handler,
        dry_run=dry_run,
    )  # fmt: skip
    if as_json:
        fields: dict[str, Any] = {**vars(done), "row": None if done.row is None else vars(done.row)}
        print_line(json.dumps(fields, indent=2))
    elif dry_run:
        for name, size in sorted(done.files.items()):
            state = "changed" if name in done.changed else "unchanged"
            print_line(f"{name}\t{size} bytes\t{state}")
        print_line(f"\n{done.card}")
    else:
        print_line(done.pull_request or f"hf-hub:{done.repo}@{done.revision}")
        if done.space is not None:
            print_line(done.space)
        if done.row is not None:
            print_line(f"\n{done.row.text().rstrip()}")


def pull_command(
    model: Annotated[str, typer.Argument(help="hf-hub:ORG/REPO[@REVISION], or a trained name.")],
    out: Annotated[
        Path | None, typer.Option(help="Copy the model's files to this new folder.")
    ] = None,
) -> None:
    """Download a model from the Hub into the cache; prints its folder."""
    from zoo.common.files import new_folder
    from zoo.creation.locate import pull
    from zoo.remote.address import snapshot_origin

    if out is not None and out.exists():
        raise InputError(f"{out} exists already; give another --out.")
    folder = pull(model)
    info(f"Pulled {snapshot_origin(folder)}")
    if out is not None:
        with new_folder(out) as made:
            for path in folder.iterdir():
                if path.is_file():
                    shutil.copyfile(path, made / path.name)
    print_line(str(out or folder))


def import_command(
    file: Annotated[Path, typer.Argument(help="A checkpoint: .pth, .pt, .ckpt, .safetensors.")],
    model: Annotated[str, typer.Option(help="Its name, such as unet-resnet18 or unet-smp:mit_b0.")],
    classes: Annotated[
        str, typer.Option(help="Number of classes, or their names, comma-separated.")
    ],
    out: Annotated[Path, typer.Option(help="The new model folder.")],
    in_chans: Annotated[int, typer.Option(help="Input channels.")] = 3,
    mean: Annotated[
        str | None, typer.Option(help="Mean of the pixels in training, in [0, 1], comma-separated.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(help="Their standard deviation, comma-separated.")
    ] = None,
    checkpoint_weights: Annotated[
        str | None,
        typer.Option(metavar="raw|ema", help="Which of two sets of weights; by default the EMA."),
    ] = None,
) -> None:
    """Convert an old PyTorch checkpoint to a model folder; nothing in the file is executed."""
    from zoo.creation.import_checkpoint import import_checkpoint

    names = [name.strip() for name in classes.split(",")]
    number = int(classes) if classes.isdecimal() else None
    made = import_checkpoint(
        file, model, names if number is None else number, out, in_chans=in_chans,
        mean=_numbers(mean, "--mean"), std=_numbers(std, "--std"),
        checkpoint_weights=checkpoint_weights,
    )  # fmt: skip
    if mean is None or std is None:
        info("A checkpoint holds no mean and std; using those of the encoder.")
    if made.prefix:
        info(f"Removed from the tensor names: {printable(made.prefix)}")
    if made.left_out:
        left_out = shortened(map(printable, made.left_out), 8)
        info(f"Skipped, not part of the network: {left_out}")
    if made.filled:
        info(f"Counters missing from the file, set to 0: {len(made.filled)}")
    print_line(str(made.folder))


@registry_app.command("update")
def update_command(
    repos: Annotated[list[str] | None, typer.Argument(help="ORG/REPO[@REVISION] ...")] = None,
    organisation: Annotated[
        str | None, typer.Option("--org", help="All zoo models of an organisation.")
    ] = None,
    overlay: Register = None,
) -> None:
    """Propose registry rows from the model cards of repositories on the Hub."""
    from zoo.hub.row import proposed_rows, register, rows_text

    if not repos and organisation is None:
        raise InputError("Name repositories (ORG/REPO) or an organisation (--org ORG).")
    rows = proposed_rows(repos or [], organisation)
    print_line(rows_text(rows).rstrip())
    if overlay is not None:
        register(overlay, rows)


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} must be numbers separated by commas, not {text!r}.") from error
