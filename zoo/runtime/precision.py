"""Which floating-point precision a computation runs in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from zoo.common.errors import InputError, unknown

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16", "auto")


def autocast(
    precision: str, device: torch.device | str
) -> contextlib.AbstractContextManager[object]:
    """torch.autocast for `precision`; nothing for fp32."""
    if precision == "fp32":
        return contextlib.nullcontext()
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(torch.device(device).type, dtype=dtype)


def check_precision(precision: str) -> None:
    """Raise InputError for a name that is not a precision."""
    if precision == "int8":
        raise InputError(
            "int8 is not a precision that a model is run in: `zoo export --int8` makes a file of "
            "int8, which is given in the place of the model. Use fp32, bf16, fp16 or auto."
        )
    if precision not in PRECISIONS:
        raise InputError(unknown("precision", str(precision), PRECISIONS))


def resolve_precision(precision: str, device: torch.device | str) -> str:
    """What `auto` means on `device`: bf16 where the hardware has it, else fp32.

    Raises InputError for another name, and for fp16 on a CPU, which would silently run in fp32.
    """
    check_precision(precision)
    import torch

    kind = torch.device(device).type
    if precision == "fp16" and kind == "cpu":
        raise InputError("precision fp16 needs a GPU. On a CPU use bf16, fp32 or auto.")
    if precision != "auto":
        return precision
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if kind == "cpu" and cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """True where this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX)."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
