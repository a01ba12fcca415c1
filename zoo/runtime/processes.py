"""The processes of one run: starting them, combining their results, sharing their errors."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from zoo.common.errors import InputError, RunError, ZooError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, raised where all processes of a run can stop and write a checkpoint."""


class Ranks:
    """This process (`rank`) among the `world` processes of a run, and its `device`.

    `sharded` is true where the weights are to be sharded over the processes (FSDP). All processes
    must call the methods in the same order; with one process they do nothing.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        sharded: bool = False,
    ):
        self.rank, self.world, self.device = rank, world, torch.device(device)
        self.sharded = sharded and world > 1

    @property
    def first(self) -> bool:
        """True in the process that writes files and prints."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """True everywhere where `flag` is true in at least one process."""
        if self.world == 1:
            return flag
        found = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return bool(found)

    def total(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors added up over the processes; all have the same names and shapes."""
        if self.world == 1:
            return sums
        totals = {name: sums[name].detach().clone() for name in sorted(sums)}
        for value in totals.values():
            distributed.all_reduce(value)
        return totals

    def add_up(self, counts: NDArray[np.int64]) -> None:
        """Put the sums over all processes into `counts`, as integers."""
        if self.world > 1:
            total = torch.from_numpy(counts).to(self.device)
            distributed.all_reduce(total)
            counts[...] = total.cpu().numpy()

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.world > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)
                tensor.div_(self.world)

    def gather(self, value: T) -> list[T]:
        """What each process gave, in the order of the processes."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    @contextlib.contextmanager
    def raise_on_all_ranks(self) -> Iterator[None]:
        """Raise an error of one process in all of them, so that none waits for it."""
        if self.world == 1:
            yield
            return
        failure = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        self._raise_first(failure)

    @contextlib.contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the block in the first process, then in the others, which find what it cached.

        An error of one process is raised in all; if the first one fails, no other starts.
        """
        if self.world == 1:
            yield
            return
        if not self.first:
            self._raise_first(None)
        failure = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        if self.first:
            self._raise_first(failure)
            failure = None
        self._raise_first(failure)

    def _raise_first(self, failure: BaseException | None) -> None:
        """Raise the error of the lowest rank that has one, in every process."""
        if not self.any(failure is not None):
            return
        described = None
        if isinstance(failure, KeyboardInterrupt):
            described = "interrupted", ""
        elif isinstance(failure, ZooError):
            described = "input" if isinstance(failure, InputError) else "run", str(failure)
        elif failure is not None:
            described = "run", f"{type(failure).__name__}: {failure}"
        failures = self.gather(described)
        rank, (kind, message) = next((i, f) for i, f in enumerate(failures) if f is not None)
        if kind == "interrupted":
            raise failure if isinstance(failure, KeyboardInterrupt) else Interrupted
        if failure is not None and not isinstance(failure, ZooError):
            raise failure
        source = "" if rank == 0 else f"In process {rank} of {self.world}: "
        error = (InputError if kind == "input" else RunError)(source + message)
        error.shared = True
        raise error from failure


def in_all_processes(message: str) -> RunError:
    """An error that every process raises and only the first one prints."""
    error = RunError(message)
    error.shared = True
    return error


def default_device() -> torch.device:
    """The accelerator of this process (one per process of a run), or the CPU without one."""
    accelerator = torch.accelerator.current_accelerator()
    on_cpu = _flag("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if accelerator is None or on_cpu:
        return torch.device("cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return torch.device(accelerator.type)
    device = torch.device(accelerator.type, int(os.environ.get("LOCAL_RANK", "0")))
    torch.get_device_module(device).set_device(device)
    return device


def start_ranks() -> Ranks:
    """Join the processes that torchrun or `accelerate launch` started; one process without them.

    The weights are sharded where `ZOO_FSDP` is true or `accelerate launch --use_fsdp` asks for it.
    Raises InputError for DeepSpeed, Megatron-LM, CPU offload, and an incomplete environment.
    """
    chosen = [name for key, name in OTHER_ENGINES.items() if _flag(key)]
    if chosen:
        verb = "is" if len(chosen) == 1 else "are"
        raise InputError(
            f"{' and '.join(chosen)} {verb} not supported. Remove it from the launcher's "
            "configuration; to shard the weights use --use_fsdp, to save memory also "
            "micro_batch, activation_checkpointing=true or precision=bf16."
        )
    if _flag(FSDP) and _flag("FSDP_OFFLOAD_PARAMS"):
        raise InputError(
            "CPU offload is not supported with FSDP. Set fsdp_offload_params to false in "
            "the launcher's configuration."
        )
    device, world = default_device(), int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(device=device)
    if not distributed.is_initialized():
        missing = [key for key in RENDEZVOUS if key not in os.environ]
        if missing:
            raise InputError(
                f"WORLD_SIZE is {world}, but {' and '.join(missing)} are not set, so the processes "
                "cannot find each other. Start them with torchrun or `accelerate launch`."
            )
        distributed.init_process_group("gloo" if device.type == "cpu" else None)
    atexit.unregister(_leave)
    atexit.register(_leave)
    return Ranks(distributed.get_rank(), world, device, sharded=_flag(FSDP) or _flag("ZOO_FSDP"))


RENDEZVOUS = ("RANK", "MASTER_ADDR", "MASTER_PORT")
FSDP = "ACCELERATE_USE_FSDP"
OTHER_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What `accelerate launch` sets for the engines that its configuration asks for."""


def _flag(key: str) -> bool:
    return os.environ.get(key, "").lower() in ("1", "true", "yes")


def _leave() -> None:
    """End gloo's threads, which may otherwise abort the end of the interpreter.

    They live as long as the last DDP model that holds the group. Such a model is part of a
    reference cycle, so it has to be collected.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()
