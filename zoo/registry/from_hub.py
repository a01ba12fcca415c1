"""An overlay registry that lies on the Hub: pinned, and without anything local or unsafe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.errors import InputError
from zoo.registry.arguments import ENCODER_ARGS, decoder_args, wrong_arguments
from zoo.remote.address import hub_timeout, parse_address

if TYPE_CHECKING:
    from zoo.registry.rows import RegistryFile

FILE = "registry.yaml"
MAX_BYTES = 1_000_000
CHOSEN = frozenset({"encoder_output_indices"})
"""Options that a person chooses for one encoder, and no row for all of them."""
WAYS = ("from a file at hand: point ZOO_REGISTRY at it",)


def fetch_overlay(text: str) -> Path:
    """`registry.yaml` of `hf-hub:ORG/REPO@COMMIT`, in the Hub's cache.

    A commit that is cached needs no request. Raises InputError unless the commit is given in full.
    """
    address = parse_address(text)
    if not address.pinned:
        raise InputError(
            f"The registry {text} is not pinned, so it could change at any time. Give the full "
            f"commit: hf-hub:{address.repo}@<40 hexadecimal digits>."
        )
    from zoo.remote.client import Task, list_files
    from zoo.remote.files import cached_file, download

    task = Task(f"fetch the registry {address.repo}", address, WAYS)
    if (cached := cached_file(task, FILE, str(address.revision))) is not None:
        return cached
    timeout = hub_timeout()
    listing = list_files(task, timeout)
    listed = listing.files.get(FILE)
    if listed is None or listed.size > MAX_BYTES:
        raise InputError(f"{address.repo} holds no {FILE} of at most {MAX_BYTES} bytes.")
    return download(task, listing, FILE, timeout)


def unsafe_parts(file: RegistryFile) -> Iterator[str]:
    """What a registry from the Hub must not hold: local paths, arguments that reach further."""
    for index, rule in enumerate(file.encoders):
        if rule.weights is not None:
            yield f"encoders[{index}].weights: a registry from the Hub may not name local files"
        yield from wrong_arguments(rule.args, ENCODER_ARGS, f"encoders[{index}].args")
    for name, decoder in file.decoders.items():
        place = f"decoders.{name}"
        yield from wrong_arguments(decoder.encoder_args, ENCODER_ARGS, f"{place}.encoder_args")
        yield from _decoder(name, decoder.args, f"{place}.args")
        for index, case in enumerate(decoder.cases):
            here = f"{place}.cases[{index}]"
            yield from _decoder(name, case.args, f"{here}.args")
            yield from wrong_arguments(case.encoder_args, ENCODER_ARGS, f"{here}.encoder_args")
    for name, model in file.models.items():
        yield from _decoder(name.partition("-")[0], model.args, f"models.{name}.args")
        for key, weights in model.weights.items():
            if weights.revision is None:
                yield f"models.{name}.weights.{key}.revision: is missing; a commit has to be pinned"


def _decoder(decoder: str, arguments: dict[str, Any], place: str) -> Iterator[str]:
    return wrong_arguments(arguments, decoder_args(decoder) - CHOSEN, place)
