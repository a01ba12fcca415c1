"""Errors that a person reads: what was given, what is allowed, what to do next."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class ZooError(Exception):
    """Base of every error that zoo raises on purpose.

    `exit_code` is what the command line returns: 2 for bad input, 1 for a run that failed. `shared`
    is True where all processes of a run raise the same error and only the first prints it.
    """

    exit_code = 1
    shared = False

    def __init__(self, message: str):
        if not message.strip():
            raise ValueError("an error needs a message")
        super().__init__(message)


class InputError(ZooError, ValueError):
    """The user's input cannot be used: a name, a value, a file or a folder."""

    exit_code = 2


class RunError(ZooError, RuntimeError):
    """The input was fine, the run failed: NaN loss, disk full, no answer from the Hub."""

    exit_code = 1


def join_problems(header: str, problems: Iterable[str], limit: int | None = None) -> str:
    """One message that holds all problems of a file, one a line; cut at `limit` of them."""
    shown = list(problems)
    if limit is not None and len(shown) > limit:
        shown[limit:] = [f"... and {len(shown) - limit} more"]
    return "\n".join([header, *(f"  - {problem}" for problem in shown)])


def indented(error: InputError) -> str:
    """The message of an error as one entry of a list of problems."""
    return str(error).replace("\n", "\n  ")


def shortened(values: Iterable[object], limit: int = 20) -> str:
    """A comma-separated list cut at `limit` entries; says how many were left out."""
    items = [str(value) for value in values]
    rest = len(items) - limit
    return ", ".join(items[:limit]) + (f" ... and {rest} more" if rest > 0 else "")


def number_of(count: int, what: str) -> str:
    """A number of things in words: `1 epoch`, `2 epochs`; `what` is one of them."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def printable(text: object, by: str = "?") -> str:
    """`text` on one line, every character that a terminal would act on replaced by `by`."""
    plain = str(text)
    return plain if plain.isprintable() else "".join(c if c.isprintable() else by for c in plain)


def printable_lines(text: str) -> str:
    """`text` as `printable`, but line ends stay."""
    return "\n".join(printable(line, "\ufffd") for line in text.split("\n"))


def escaped(text: object) -> str:
    """`text` on one line, with `\\n`, `\\t` and the like for what is not printable."""
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)


def nearest(given: str, allowed: Iterable[str], count: int = 3) -> list[str]:
    """At most `count` entries of `allowed` that look most like `given`, best first."""
    return difflib.get_close_matches(given, list(allowed), n=count, cutoff=0.5)


def brief(value: object, limit: int = 60) -> str:
    """`value` as Python writes it, cut at `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def unknown(what: str, given: str, allowed: Iterable[str]) -> str:
    """The sentence for an unknown name: the name, the nearest ones, the list cut at twenty."""
    allowed = list(allowed)
    close = nearest(given[:100], allowed)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"Unknown {what} {brief(given, 100)}.{hint} Available: {shortened(allowed)}."


def type_words(value: object) -> str:
    """What a value of a wrong type is, in a few words: plain values as they are, others by type."""
    kind = type(value)
    if kind.__module__ == "builtins":
        shown = repr(value)
        return f"{shown if len(shown) <= 60 else f'{shown[:57]}...'} ({kind.__qualname__})"
    return f"a value of the type {kind.__module__}.{kind.__qualname__}"


def extra(module: str, extra_name: str, where: str) -> Any:
    """Import `module`. Raises InputError that names `where` it is needed and how to install it."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{where} needs the package {package}, which is not installed. "
            f"Install it with `pip install 'segmentation-zoo[{extra_name}]'`."
        ) from error


def renamed(old: str, given: T | None, new: str, value: T | None) -> T | None:
    """The value of an argument that was renamed from `old` to `new`; FutureWarning for the old."""
    if given is None:
        return value
    warnings.warn(f"{old}= is called {new}= now. Use {new}=.", FutureWarning, stacklevel=3)
    return given if value is None else value
