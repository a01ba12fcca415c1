"""What a run needs to resume exactly where it was, in one file that is replaced atomically."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import tempfile
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

from zoo.common.errors import InputError, RunError, shortened
from zoo.training.engine.features import map_tensors
from zoo.training.engine.sharding import gathered

NAME = "checkpoint.pt"
PARTS = ("model", "ema", "optimizer", "scaler", "plateau", "random", "progress")
"""What a checkpoint holds."""


YOUNGER = {"best_val_loss"}
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
    """Load what `weights_and_optimizer` gave, also into another number of processes."""
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
    content = {**state, "progress": dataclasses.asdict(progress)}
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=run, prefix=f".{NAME}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(run / NAME)
    except (OSError, RuntimeError) as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise RunError(
            f"Cannot write the checkpoint to {run}: {error}. "
            "The previous checkpoint is intact; free some space and continue with --resume."
        ) from error


def load_checkpoint(run: Path) -> tuple[dict[str, Any], Progress]:
    """Read the checkpoint of a run; only tensors and plain values are loaded.

    Raises InputError where there is none, it cannot be read, or another version wrote it.
    """
    path = run / NAME
    if not path.is_file():
        raise InputError(f"{run} holds no checkpoint to resume from.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is not a readable checkpoint: {error}.") from error

    # an older or a newer version may have stored other parts
    parts = content if isinstance(content, dict) else {}
    known = {field.name for field in dataclasses.fields(Progress)}
    progress = parts.get("progress")
    told = set(progress) if isinstance(progress, dict) else set()
    missing = [part for part in PARTS if part not in parts]
    missing += [
        f"progress.{name}" for name in sorted(known - told - YOUNGER) if "progress" in parts
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
    return content, Progress(**content.pop("progress"))


def random_state() -> dict[str, list[Tensor]]:
    """The state of torch's random generators in this process, on the CPU and on each GPU."""
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": [torch.get_rng_state()], "cuda": gpus}


def set_random_state(state: dict[str, list[Tensor]]) -> None:
    """Continue the random numbers from where `random_state` was called."""
    torch.set_rng_state(state["cpu"][0])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
