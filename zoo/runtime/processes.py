"""The processes of one run: what they decide, count and fail at together."""

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
    """Ctrl-C, taken where all processes of a run can stop and a checkpoint can be written."""


class Ranks:
    """This process (`rank`) among the `world` processes of a run, and its `device`.

    `splits` says that the launcher asked for weights that are split over the processes (FSDP).
    Every method but `first` has to be called by all processes in the same order. With one process
    none of them does anything.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        splits: bool = False,
    ):
        self.rank, self.world, self.device = rank, world, torch.device(device)
        self.splits = splits and world > 1

    @property
    def first(self) -> bool:
        """True in the process that writes files and speaks."""
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
    def together(self) -> Iterator[None]:
        """What fails in the block in one process is raised in all of them, so that none waits."""
        if self.world == 1:
            yield
            return
        failure = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        self._settle(failure)

    @contextlib.contextmanager
    def first_then_rest(self) -> Iterator[None]:
        """Run the block in the first process and then in the others, who find what it stored.

        What fails in one process is raised in all; where the first one fails, no other begins.
        """
        if self.world == 1:
            yield
            return
        if not self.first:
            self._settle(None)
        failure = None
        try:
            yield
        except (Exception, KeyboardInterrupt) as error:
            failure = error
        if self.first:
            self._settle(failure)
            failure = None
        self._settle(failure)

    def _settle(self, failure: BaseException | None) -> None:
        """Raise the failure of the lowest rank that has one, in every process."""
        if not self.any(failure is not None):
            return
        told = self.gather(None if failure is None else _described(failure))
        number, (kind, message) = next((i, f) for i, f in enumerate(told) if f is not None)
        if kind == "interrupted":
            raise failure if isinstance(failure, KeyboardInterrupt) else Interrupted
        if failure is not None and not isinstance(failure, ZooError):
            raise failure
        source = "" if number == 0 else f"In process {number} of {self.world}: "
        error = (InputError if kind == "input" else RunError)(source + message)
        error.shared = True
        raise error from failure


def _described(failure: BaseException) -> tuple[str, str]:
    if isinstance(failure, KeyboardInterrupt):
        return "interrupted", ""
    if isinstance(failure, ZooError):
        return ("input" if isinstance(failure, InputError) else "run"), str(failure)
    return "run", f"{type(failure).__name__}: {failure}"


def in_all_processes(message: str) -> RunError:
    """The error of a run that fails alike in every process; the first one alone prints it."""
    error = RunError(message)
    error.shared = True
    return error


def start_ranks() -> Ranks:
    """Join the processes that torchrun or `accelerate launch` started; alone without a launcher.

    FSDP is noted in `Ranks.splits`. Raises InputError for DeepSpeed, Megatron-LM and for weights
    that FSDP is to keep on the CPU.
    """
    from accelerate import PartialState

    wanted = int(os.environ.get("WORLD_SIZE", "1"))
    on_cpu = wanted > 1 and not torch.accelerator.is_available()
    _refuse_other_engines()
    state = PartialState(cpu=True) if on_cpu else PartialState()
    if state.num_processes != wanted:
        raise InputError(
            f"The launcher started {wanted} processes, but {state.num_processes} found each other. "
            "Start them with torchrun or `accelerate launch`."
        )
    if state.num_processes > 1:
        atexit.unregister(_leave)
        atexit.register(_leave)
    splits = _chosen("ACCELERATE_USE_FSDP")
    return Ranks(state.process_index, state.num_processes, state.device, splits)


def _leave() -> None:
    """End gloo's threads, which may otherwise abort the end of the interpreter.

    They live as long as the last DDP model that holds the group, and such a model is part of a
    cycle: it has to be collected.
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        gc.collect()


OTHER_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def _chosen(key: str) -> bool:
    return os.environ.get(key, "false").lower() == "true"


def _refuse_other_engines() -> None:
    chosen = [name for key, name in OTHER_ENGINES.items() if _chosen(key)]
    if chosen:
        raise InputError(
            f"{' and '.join(chosen)} would train with an engine of its own. Take it out of the "
            "launcher's configuration; to split the weights over the processes use --use_fsdp, for "
            "less memory also micro_batch, activation_checkpointing=true or precision=bf16."
        )
    if _chosen("ACCELERATE_USE_FSDP") and _chosen("FSDP_OFFLOAD_PARAMS"):
        raise InputError(
            "FSDP keeps its parts of the weights on the GPU here. Set fsdp_offload_params to false "
            "in the launcher's configuration."
        )
