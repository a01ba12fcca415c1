"""The verbs about the Hub: push, pull, import, registry update."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.common.errors import InputError

if TYPE_CHECKING:
    from zoo.hub.push import Pushed

registry_app = typer.Typer(help="Registries of trained models.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Register = Annotated[
    Path | None, typer.Option("--register", help="An overlay file to write the rows into.")
]


def push_command(
    model: Annotated[str, typer.Argument(help="A run folder or a model folder.")],
    repo: Annotated[str, typer.Argument(help="ORG/NAME on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="For a new repository.")] = False,
    branch: Annotated[str, typer.Option(help="Made where it is missing.")] = "main",
    tag: Annotated[str | None, typer.Option(help="A name for the commit.")] = None,
    pull_request: Annotated[
        bool, typer.Option("--pull-request", help="Propose the commit, leave main alone.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="The commit message.")] = None,
    licence: Annotated[
        str | None, typer.Option(help="The model's licence, such as apache-2.0; none by default.")
    ] = None,
    data_licence: Annotated[str | None, typer.Option(help="The training data's licence.")] = None,
    picture: Annotated[Path | None, typer.Option(help="A PNG or JPEG for the card.")] = None,
    record: Annotated[
        list[Path] | None, typer.Option(help="A result file of this model for the card.")
    ] = None,
    eval_results: Annotated[
        str | None, typer.Option(help="A benchmark on the Hub that is to show the result.")
    ] = None,
    register: Register = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the card, send nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Push MODEL to REPO on the Hugging Face Hub in one commit, and print its registry row."""
    from zoo.hub.push import push

    done = push(
        model,
        repo,
        private=private,
        branch=branch,
        tag=tag,
        pull_request=pull_request,
        message=message,
        licence=licence,
        data_licence=data_licence,
        picture=picture,
        records=record or [],
        eval_results=eval_results,
        register_in=register,
        dry_run=dry_run,
    )
    _show(done, dry_run, as_json)


def pull_command(
    model: Annotated[str, typer.Argument(help="hf-hub:ORG/REPO[@REVISION], or a trained name.")],
    out: Annotated[
        Path | None, typer.Option(help="Copy the model's files to this new folder.")
    ] = None,
) -> None:
    """Bring a model from the Hub into the cache; prints its folder."""
    from zoo.common.console import info
    from zoo.creation.locate import pull
    from zoo.remote.address import snapshot_origin

    if out is not None and out.exists():
        raise InputError(f"{out} exists already; give another --out.")
    folder = pull(model)
    info(f"Pulled {snapshot_origin(folder)}")
    _print(str(folder if out is None else _copied(folder, out)))


def import_command(
    file: Annotated[Path, typer.Argument(help="A checkpoint: .pth, .pt, .ckpt, .safetensors.")],
    model: Annotated[str, typer.Option(help="Its name, such as unet-resnet18 or unet-smp:mit_b0.")],
    classes: Annotated[str, typer.Option(help="Their number, or names separated by commas.")],
    out: Annotated[Path, typer.Option(help="The new model folder.")],
    in_chans: Annotated[int, typer.Option(help="Input channels.")] = 3,
    mean: Annotated[
        str | None, typer.Option(help="Mean of the training's pixels in [0, 1], by commas.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation of the same.")] = None,
) -> None:
    """Make a model folder of an old PyTorch checkpoint; nothing in the file is executed."""
    from zoo.common.console import info
    from zoo.common.errors import printable, shortened
    from zoo.creation.import_checkpoint import import_checkpoint

    names = [name.strip() for name in classes.split(",")]
    number = int(classes) if classes.isdecimal() else None
    made = import_checkpoint(
        file,
        model,
        names if number is None else number,
        out,
        in_chans=in_chans,
        mean=_numbers(mean, "--mean"),
        std=_numbers(std, "--std"),
    )
    if mean is None or std is None:
        info("A checkpoint holds no normalisation; that of the encoder is taken.")
    if made.prefix:
        info(f"Taken off the names: {printable(made.prefix)}")
    if made.left_out:
        left_out = shortened(map(printable, made.left_out), 8)
        info(f"Not part of the network, left out: {left_out}")
    if made.filled:
        info(f"Counters that the file lacks were set to 0: {len(made.filled)}")
    _print(str(made.folder))


@registry_app.command("update")
def update_command(
    repos: Annotated[list[str] | None, typer.Argument(help="ORG/REPO[@REVISION] ...")] = None,
    organisation: Annotated[
        str | None, typer.Option("--org", help="All models of an organisation.")
    ] = None,
    register: Register = None,
) -> None:
    """Propose registry rows from the cards of repositories on the Hub."""
    from zoo.hub import row
    from zoo.hub.catalogue import proposed_rows

    if not repos and organisation is None:
        raise InputError("Name repositories (ORG/REPO) or an organisation (--org ORG).")
    rows = proposed_rows(repos or [], organisation)
    _print(row.rows_text(rows).rstrip())
    if register is not None:
        row.register(register, rows)


def _show(done: Pushed, dry_run: bool, as_json: bool) -> None:
    if as_json:
        fields: dict[str, Any] = {**vars(done), "row": None if done.row is None else vars(done.row)}
        _print(json.dumps(fields, indent=2))
        return
    if dry_run:
        for name, size in sorted(done.files.items()):
            state = "changed" if name in done.changed else "as it is there"
            _print(f"{name}\t{size} bytes\t{state}")
        _print(f"\n{done.card}")
        return
    _print(done.pull_request or f"hf-hub:{done.repo}@{done.revision}")
    if done.row is not None:
        _print(f"\n{done.row.text().rstrip()}")


def _copied(folder: Path, out: Path) -> Path:
    """A copy of the model's files as the new folder `out`."""
    import shutil

    from zoo.common.files import new_folder

    with new_folder(out) as made:
        for path in folder.iterdir():
            if path.is_file():
                shutil.copyfile(path, made / path.name)
    return out


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} is {text!r}; write numbers separated by commas.") from error


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
