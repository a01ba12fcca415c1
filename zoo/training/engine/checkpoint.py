"""What a run needs to resume exactly where it was, in one file that is replaced atomically."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from zoo.common.errors import InputError, RunError, join_problems, shortened
from zoo.common.files import sha256, sync
from zoo.data.split import RUN
from zoo.training.engine.features import map_tensors
from zoo.training.engine.sharding import gathered
from zoo.training.plan import CHECKPOINT

PARTS = ("model", "ema", "optimizer", "scaler", "plateau", "random", "progress")
"""What a checkpoint holds; one that is written now also has `run`, the digest of run.json."""
FOLDER = 0x10
"""The bit of an entry in a zip archive for which torch reads nothing in its place."""
NEW_RUN = "Start a new run with another --out; the best model so far is in best/ of the run folder."


ADDED_LATER = {"best_val_loss"}
"""Fields of `Progress` that older checkpoints do not have; their defaults are right for these."""


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    `epoch` is the current epoch (from 0, counted over all stages), `step_in_epoch` its optimizer
    steps so far and `loss_sum` the sum of their losses, `step` the steps of the run; `seconds` of
    training and evaluation so far; `micro_batch` may have been lowered to fit into memory.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    step: int = 0
    best_miou: float = -1.0
    best_epoch: int = -1
    epochs_without_gain: int = 0
    best_val_loss: float = math.inf
    seconds: float = 0.0
    log_bytes: int = 0
    micro_batch: int | None = None


def weights_and_optimizer(
    model: nn.Module, ema: nn.Module | None, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """State dicts of whole tensors; under FSDP all processes take part and the first gets them.

    torch's own `get_optimizer_state_dict` is not used: it drops the state of frozen parameters and
    takes a step with an optimizer that has no state yet.
    """
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        "model": get_model_state_dict(model, options=whole),
        "ema": None if ema is None else get_model_state_dict(ema, options=whole),
        "optimizer": map_tensors(gathered, optimizer.state_dict()),
    }


def restore_weights_and_optimizer(
    state: dict[str, Any],
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> None:
    """Load what `weights_and_optimizer` gave, also into another number of processes.

    Raises InputError naming everything that does not fit the model and the optimizer, and values
    that are not finite; nothing is loaded then.
    """
    problems = list(_misfits(state, model, ema, optimizer))
    if problems:
        header = f"{CHECKPOINT} does not fit this run; nothing of it was loaded. {NEW_RUN}"
        raise InputError(join_problems(header, problems, 10))
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=whole)
    if ema is not None:
        set_model_state_dict(ema, state["ema"], options=whole)

    def shard(value: Any, parameter: Tensor) -> Any:
        """This process's shard of a tensor of the shape of `parameter`; others as they are."""
        if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
            return value
        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(value, mesh, placements, src_data_rank=None)

    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shards = {
        number: {key: shard(value, parameters[number]) for key, value in kept.items()}
        for number, kept in state["optimizer"]["state"].items()
    }
    optimizer.load_state_dict(state["optimizer"] | {"state": shards})


def save_checkpoint(run: Path, state: dict[str, Any], progress: Progress) -> None:
    """Write `state` and `progress` to the run folder; the previous file stays whole until the end.

    Raises RunError where the disk is full or the folder cannot be written.
    """
    digest = sha256(run / RUN) if (run / RUN).is_file() else None
    content = {**state, "progress": dataclasses.asdict(progress), "run": digest}
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=run, prefix=f".{CHECKPOINT}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(run / CHECKPOINT)
        sync(run)
    except (OSError, RuntimeError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"Cannot write the checkpoint to {run}: {error}. "
            "The previous checkpoint is intact; free some space and continue with --resume."
        ) from error


def load_checkpoint(run: Path) -> tuple[dict[str, Any], Progress]:
    """Read the checkpoint of a run; only tensors and plain values are loaded.

    The checksums that torch stores with every tensor are compared first. Raises InputError where
    there is no checkpoint, it is damaged, or another version or another run wrote it.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        raise InputError(f"{run} holds no checkpoint to resume from.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries, spoiled = archive.infolist(), archive.testzip()
        if spoiled is not None or any(entry.external_attr & FOLDER for entry in entries):
            raise zipfile.BadZipFile("a checksum differs")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile and torch raise nearly anything on a spoiled file
        cause = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise InputError(f"{path} is damaged or not a checkpoint ({cause}). {NEW_RUN}") from error

    # an older or a newer version may have stored other parts
    parts = content if isinstance(content, dict) else {}
    known = {field.name for field in dataclasses.fields(Progress)}
    progress = parts.get("progress")
    told = set(progress) if isinstance(progress, dict) else set()
    missing = [part for part in PARTS if part not in parts]
    missing += [
        f"progress.{name}" for name in sorted(known - told - ADDED_LATER) if "progress" in parts
    ]
    unknown = [f"progress.{name}" for name in sorted(told - known)]
    problems = [f"it holds no {shortened(missing)}"] if missing else []
    problems += [f"it holds {shortened(unknown)}, which this version does not know"] * bool(unknown)
    if problems:
        raise InputError(
            f"{path} was written by another version of zoo: {'; '.join(problems)}. Continue with "
            "the version that started the run (run.json: env.zoo), or start a new run with another "
            f"--out; the best model so far is in {run / 'best'}."
        )
    digest = content.pop("run", None)
    if digest is not None and (run / RUN).is_file() and digest != sha256(run / RUN):
        raise InputError(
            f"{path} belongs to another run than {run / RUN}. Copy run folders as a whole. "
            f"{NEW_RUN}"
        )
    progress = content.pop("progress")
    if wrong := [name for name, value in progress.items() if not _sound(name, value)]:
        values = (f"progress.{name} is {progress[name]!r}" for name in wrong)
        raise InputError(f"{path} is damaged: {shortened(values, 5)[:500]}. {NEW_RUN}")
    return content, Progress(**progress)


def _sound(name: str, value: Any) -> bool:
    """True if `value` is one that the field `name` of `Progress` can have."""
    if name == "micro_batch":
        return value is None or (type(value) is int and value > 0)
    least = getattr(Progress, name)  # whole numbers only grow
    if isinstance(least, int):
        return type(value) is int and value >= least
    return isinstance(value, int | float) and not math.isnan(value)


def _misfits(
    state: dict[str, Any],
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: torch.optim.Optimizer,
) -> Iterator[str]:
    """What in `state` has another name, shape or type than the run's own, or is not finite."""
    for part, own in {"model": model, "ema": ema}.items():
        found = state[part]
        if own is None or not isinstance(found, dict):
            if found is not None:
                yield f"{part} is {'there' if own is None else f'a {type(found).__name__}'}"
            elif own is not None:
                yield f"{part} is missing"
            continue
        wanted, learned = own.state_dict(), dict(own.named_parameters())
        yield from (f"{part} lacks {name}" for name in wanted.keys() - found.keys())
        yield from (f"{part} has an unknown {name!r}" for name in found.keys() - wanted.keys())
        for name in wanted.keys() & found.keys():
            value, like = found[name], wanted[name]
            if not isinstance(value, Tensor):
                yield f"{part}.{name} is a {type(value).__name__}"
            elif (value.shape, value.dtype) != (like.shape, like.dtype):
                yield (f"{part}.{name} is {_described(value)}, the run needs {_described(like)}")
            elif not _finite(value, infinite=name not in learned):
                yield f"{part}.{name} holds NaN or infinity"

    plateau = {"share": 1.0, "best": 0.0, "without_gain": 0}
    scaler = torch.amp.GradScaler("cpu").state_dict()
    for part, like in {"scaler": scaler, "plateau": plateau}.items():
        if state[part] is not None and not _alike(state[part], like):
            yield f"{part} is not what a run stores there"
    if not _alike(state["random"], [random_state() | {"cuda": []}]):
        yield "random is not the state of random generators"

    found = state["optimizer"]
    found = found if isinstance(found, dict) else {}
    groups, kept = found.get("param_groups"), found.get("state")
    own_groups = optimizer.state_dict()["param_groups"]
    grouped = isinstance(groups, list) and all(isinstance(group, dict) for group in groups)
    if not isinstance(groups, list) or not grouped or not isinstance(kept, dict):
        yield "optimizer is not the state of an optimizer"
        return
    if [g.get("params") for g in groups] != [g["params"] for g in own_groups]:
        yield "optimizer.param_groups are those of other parameters"
        return
    for group, own_group in zip(groups, own_groups, strict=True):
        for key, like in own_group.items():
            value, number = group.get(key, like), isinstance(like, int | float)
            if number and not (isinstance(value, int | float) and math.isfinite(value)):
                yield f"optimizer.param_groups: {key} is {value!r}"[:200]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, values in kept.items():
        if not isinstance(values, dict) or number not in range(len(parameters)):
            yield f"optimizer.state has an unknown entry {number!r}"[:200]
            continue
        shape = parameters[number].shape
        for key, value in values.items():
            fits = not isinstance(value, Tensor) or not value.ndim or value.shape == shape
            if str(key).startswith("exp_avg_sq_"):  # Adafactor's means along sides of a parameter
                fits = fits or {1, *shape}.issuperset(value.shape)
            if not fits:
                yield f"optimizer.state.{number}.{key} is {_described(value)}, not {[*shape]}"
            elif isinstance(value, Tensor) and not _finite(value):
                yield f"optimizer.state.{number}.{key} holds NaN"
            elif not isinstance(value, Tensor | int | float | None):
                yield f"optimizer.state.{number}.{key} is a {type(value).__name__}"


def _alike(value: Any, like: Any) -> bool:
    """True if `value` is built as `like`, whose lists stand for lists of any length above 0."""
    if isinstance(like, dict):
        known = isinstance(value, dict) and value.keys() == like.keys()
        return known and all(_alike(value[key], like[key]) for key in like)
    if isinstance(like, list):
        listed = isinstance(value, list) and bool(value or not like)
        return listed and all(not like or _alike(item, like[0]) for item in value)
    if isinstance(like, Tensor):
        same = isinstance(value, Tensor) and value.shape == like.shape
        return same and value.dtype == like.dtype
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and not math.isnan(value)


def _described(tensor: Tensor) -> str:
    return f"{[*tensor.shape]} of {str(tensor.dtype).removeprefix('torch.')}"


def _finite(tensor: Tensor, infinite: bool = True) -> bool:
    """False if the tensor holds NaN, or infinity where that is not allowed."""
    if not tensor.is_floating_point():
        return True
    return not bool(tensor.isnan().any() if infinite else (~tensor.isfinite()).any())


def random_state() -> dict[str, list[Tensor]]:
    """The state of torch's random generators in this process, on the CPU and on each GPU."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": [torch.get_rng_state()], "cuda": gpus}


def set_random_state(state: dict[str, list[Tensor]]) -> None:
    """Continue the random numbers from where `random_state` was called."""
    torch.set_rng_state(state["cpu"][0])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
