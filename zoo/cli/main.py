"""The command line: every verb, exit codes, and one clear message for every error.

Data goes to stdout, messages to stderr. Exit codes: 0 done, 1 a run failed, 2 bad input, 130
interrupted. Heavy imports happen inside the verb that needs them.
"""

from __future__ import annotations

import errno
import io
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from zoo.cli.bench import bench_app, pick_command
from zoo.cli.data import data_app, doctor_command
from zoo.cli.demo import demo_command
from zoo.cli.hub import import_command, pull_command, push_command, registry_app
from zoo.cli.models import check_app, leaderboard_app, list_command, show_command
from zoo.cli.train import finetune_command, quickstart_command, report_command
from zoo.cli.use import eval_command, export_command, predict_command
from zoo.common.console import first_process, print_line
from zoo.common.errors import InputError, ZooError, printable_lines
from zoo.runtime.environment import versions

app = typer.Typer(
    name="zoo",
    help="Semantic segmentation models on timm backbones: create, fine-tune, evaluate, compare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
VERBS: dict[str, Callable[..., None]] = {
    "list": list_command,
    "show": show_command,
    "doctor": doctor_command,
    "finetune": finetune_command,
    "report": report_command,
    "eval": eval_command,
    "predict": predict_command,
    "export": export_command,
    "demo": demo_command,
    "pick": pick_command,
    "push": push_command,
    "pull": pull_command,
    "import": import_command,
    "quickstart": quickstart_command,
}
GROUPS = {
    "data": data_app,
    "bench": bench_app,
    "leaderboard": leaderboard_app,
    "registry": registry_app,
    "check": check_app,
}


def _print_version(asked: bool) -> None:
    if asked:
        print_line(f"zoo {versions()['zoo']}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    del version


for name, verb in VERBS.items():
    app.command(name)(verb)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; SIGTERM interrupts it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be text of the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
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
        code = InputError.exit_code if error.errno == errno.ENAMETOOLONG else 1
        return _fail(f"{error.filename or 'A file'}: {error.strerror or error}.", code)
    return 0


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"zoo: {printable_lines(message)}\n")
    return code
