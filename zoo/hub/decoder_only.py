"""A model folder without its frozen encoder, which a file on the Hub holds bit for bit.

`model.safetensors` then holds the rest, and those tensors of the encoder that timm computes from
the file in place of copying them, such as position embeddings of another size: another machine may
round them differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.common.console import info
from zoo.common.errors import InputError, join_problems, printable, shortened
from zoo.hub.card import encoder_repo
from zoo.hub.config import Described, EncoderOnHub
from zoo.hub.encoders import WEIGHTS_FILE, verify_safetensors
from zoo.remote.address import Address, hub_timeout, problems, snapshot_origin
from zoo.remote.client import Task, list_files
from zoo.remote.files import download, holds, note_verified, snapshot

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zoo.models.segmentation import SegmentationModel

PREFIX = "encoder."
"""What the names of the encoder's tensors begin with in a network's state dict."""

STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
MAX_ENCODER_BYTES = 40_000_000_000
"""timm's largest encoder has 27 GB; a config.json of others may not name a larger file."""

WHOLE = "the whole model: push it without --decoder-only"
ELSEWHERE = (
    "the cache of a machine that has a connection: copy its HF_HOME folder and point HF_HOME at "
    "the copy",
    "the whole model: ask its owner to push it without --decoder-only",
)


def fetch_left_out(found: EncoderOnHub, folder: Path) -> Path:
    """The file with the encoder that `folder` leaves out, from the cache or the Hub.

    A cached file with the right SHA-256 needs no request. Raises InputError where the repository,
    the commit or the file is gone, closed to the user or another one, RunError where the Hub fails.
    """
    goal = f"fetch the frozen encoder of {snapshot_origin(folder) or folder} from {found.repo}"
    task = Task(goal, Address(found.repo, found.revision), ELSEWHERE)
    _check_address(task)
    cached = snapshot(task, found.revision) / found.file
    if holds(cached, found.sha256):
        return cached
    return _fetch(task, found.file, found.sha256)[0]


def with_left_out(
    net: nn.Module, state: dict[str, Tensor], described: Described
) -> dict[str, Tensor]:
    """`state`, the tensors of a folder, with those of the encoder that it leaves out.

    They are those of `net`, which was built from the file on the Hub. Raises InputError unless all
    tensors of the encoder are then, bit for bit, what they were.
    """
    found = described.encoder_on_hub
    if found is None:
        return state
    encoder = _encoder(net)
    complete = encoder | state
    if any(tensor.is_meta for tensor in encoder.values()):
        return complete
    if _digest({name: complete[name] for name in encoder}) != found.tensors_sha256:
        import timm

        raise InputError(
            f"The frozen encoder is not the one that the model was trained with: what timm "
            f"{timm.__version__} builds from {found.file} of {found} differs. Install timm "
            f"{found.timm}, which the model was pushed with, or ask its owner to push it without "
            "--decoder-only."
        )
    return complete


def leave_out(model: SegmentationModel) -> tuple[EncoderOnHub, set[str]]:
    """Where a model's encoder lies on the Hub, and the names of its tensors that lie there.

    The file is looked up at the commit that the model's spec records. Raises InputError unless
    building the spec from it gives every tensor of the encoder bit for bit, statistics of BatchNorm
    included; RunError where the Hub fails.
    """
    import timm

    from zoo.models.build import build, read_weights

    spec, state = model.spec, model.net.state_dict()
    goal = f"leave out the encoder of {spec.name}"
    repo, weights = encoder_repo(spec), spec.encoder_weights
    reason = None
    if weights is None:
        reason = "no pretrained weights are recorded for it: it began at random, or was imported"
    elif weights.startswith("sha256:"):
        reason = (
            "its weights came from a local file, which others do not have; create the model with "
            'encoder_weights="hf-hub:ORG/REPO"'
        )
    elif repo is None:
        reason = f"no repository on the Hub is known for its weights, {weights}"
    elif spec.encoder_revision is None:
        reason = f"the commit of {repo} that its weights came from was not recorded"
    if repo is None or spec.encoder_revision is None or reason is not None:
        raise InputError(join_problems(f"Cannot {goal}: {reason}. Try:", [WHOLE]))
    task = Task(goal, Address(repo, spec.encoder_revision), (WHOLE,))
    _check_address(task)
    path, digest = _fetch(task, WEIGHTS_FILE)
    try:
        built = _encoder(build(spec, path).net)
    except InputError as error:
        reason = f"{repo} does not hold it. {error}"
        raise InputError(join_problems(f"Cannot {goal}: {reason} Try:", [WHOLE])) from error

    # bit for bit the same, or not
    moved = [name for name, tensor in built.items() if _bits(tensor) != _bits(state[name])]
    if moved:
        statistics = all(name.endswith(STATISTICS) for name in moved)
        what = "statistics of BatchNorm, which moved in training: " if statistics else ""
        raise InputError(
            join_problems(
                f"Cannot {goal}: {len(moved)} of the {len(built)} tensors of its encoder are not "
                f"those of {task.address}: {what}{shortened(moved, 3)}. Try:",
                [
                    "a model whose encoder was frozen altogether, as stages with `learn: decoder` "
                    "or `unfreeze: 0.0` train it",
                    WHOLE,
                ],
            )
        )

    # what timm copies from the file is left out
    copied = {_bits(t.float() if t.is_floating_point() else t) for t in read_weights(path).values()}
    left_out = {name for name, tensor in built.items() if _bits(tensor) in copied}
    found = EncoderOnHub(
        repo=repo,
        revision=spec.encoder_revision,
        file=WEIGHTS_FILE,
        sha256=digest,
        tensors_sha256=_digest(built),
        timm=timm.__version__,
    )
    sizes = {name: tensor.nbytes / 1e6 for name, tensor in state.items()}
    saved = sum(sizes[name] for name in left_out)
    info(
        f"Left out: {len(left_out)} of the {len(built)} tensors of the frozen encoder, {saved:.1f} "
        f"of the model's {sum(sizes.values()):.1f} MB. They are in {found.file} of {task.address}."
    )
    return found, left_out


def _check_address(task: Task) -> None:
    if found := list(problems(task.address)):
        raise InputError(join_problems(f"Cannot {task.goal}:", found))


def _fetch(task: Task, name: str, wanted: str | None = None) -> tuple[Path, str]:
    """A weights file at a commit, verified, and its SHA-256, which should be `wanted`."""
    timeout = hub_timeout()
    listing = list_files(task, timeout)
    listed = listing.files.get(name)
    reason = None
    if listed is None:
        held = shortened(sorted(map(printable, listing.files)), 5)
        reason = f"it holds no {name} ({held or 'it is empty'})"
    elif wanted is not None and listed.digest != wanted:
        reason = f"{name} has the SHA-256 {listed.digest[:12]}... there, not {wanted[:12]}..."
    if listed is None or reason is not None:
        raise InputError(task.failure(f"{reason} at {listing.commit[:12]}"))
    path = download(task, listing, name, timeout, MAX_ENCODER_BYTES)
    verify_safetensors(path)
    note_verified(task, listing, [name])
    return path, listed.digest


def _encoder(net: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in net.state_dict().items() if name.startswith(PREFIX)}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors by name."""
    lines = (f"{name} {_bits(tensor)}\n" for name, tensor in sorted(tensors.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _bits(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's dtype, shape and bytes."""
    import torch

    held = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{held.dtype} {list(held.shape)}\n".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
