"""The weights in a checkpoint, whoever wrote it: raw ones, their moving average (EMA), or both.

Only tensors are read; nothing in the file is executed.
"""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.common.errors import InputError, printable, unknown

if TYPE_CHECKING:
    import torch

KINDS = {"raw": "raw", "ema": "EMA"}
"""The kinds of weights, and how messages call them."""
HOLDERS = ("state_dict", "model_state_dict", "model", "net", "module")
AVERAGES = ("shadow", "shadow_params")
"""Keys of averaged weights inside an EMA's own dictionary."""
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
DEEPEST = 8
"""How many dictionaries deep weights are looked for; one may hold itself."""
EMA_KEY = re.compile(r"(?:^|_)ema(?:_|$)", re.IGNORECASE)
EMA_NAME = re.compile(
    r"(?P<before>(?:\w+\.)*?)(?:(?:model_ema|ema_model|ema)[._]|\w+_ema\.)(?P<name>.+)"
)
PLAIN: list[Any] = [
    argparse.Namespace,
    *((PurePath, f"{module}.{kind}Path") for module in ("pathlib", "pathlib._local")
      for kind in ("Posix", "Windows")),
    *((np.float64(0).__reduce__()[0], f"numpy.{module}.multiarray.scalar")
      for module in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(code)) for code in "?bhilqBHILQefd"),
]  # fmt: skip
"""What scripts store beside the weights and torch does not read by itself: arguments, paths and
NumPy's numbers. Reading them runs no code."""


@dataclass(frozen=True)
class WeightSet:
    """Tensors by name, and where in the file they lie, in words."""

    place: str
    tensors: dict[str, torch.Tensor]


def read_weights_of_kind(path: Path, wanted: str | None) -> tuple[str, dict[str, WeightSet]]:
    """The chosen kind of weights, "raw" or "ema", and all sets of a checkpoint by kind.

    Without `wanted` the EMA is chosen where there is one. Raises InputError for a file that holds
    anything but weights, and where it lacks the wanted kind.
    """
    if wanted is not None and wanted not in KINDS:
        raise InputError(unknown("kind of checkpoint weights", str(wanted), KINDS))
    sets = _weight_sets(_content(path), None if wanted == "raw" else path)
    if not sets:
        raise InputError(
            f"{path} holds no weights by name; expected are tensors at the top, or under one of "
            f"{', '.join(HOLDERS)}, or under a key with `ema` in it."
        )
    if wanted is not None and wanted not in sets:
        (there, found), *_ = sets.items()
        raise InputError(
            f"{path} holds no {KINDS[wanted]} weights, only {KINDS[there]} weights "
            f"({found.place}). Leave --checkpoint-weights (checkpoint_weights=) out, or give "
            f"{there}."
        )
    return wanted or ("ema" if "ema" in sets else "raw"), sets


def name_prefix(names: Mapping[str, Any]) -> str:
    """What training put before the names of a network: `module.`, `model.`, `_orig_mod.` ..."""
    found = [re.match(r"((?:\w+\.)*?)encoder\.", name) for name in names]
    return min((match[1] for match in found if match), key=len, default="")


def _content(path: Path) -> Any:
    """What a checkpoint holds. Raises InputError where it holds more than plain values."""
    import torch

    if path.suffix == ".safetensors":
        from zoo.models.build import read_weights

        return read_weights(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise InputError(
            f"{path} holds more than tensors{what}, which could run code when it is loaded; it was "
            "not. Where you trust its origin, load it in its own project and save "
            "only model.state_dict()."
        ) from error
    except Exception as error:  # a damaged pickle raises whatever it leads to
        reason = printable(error).strip()[:200] or type(error).__name__
        raise InputError(f"{path} is not a PyTorch checkpoint ({reason}).") from error


def _weight_sets(content: Any, path: Path | None, depth: int = DEEPEST) -> dict[str, WeightSet]:
    """The sets of weights in `content` by kind; `path` as in `_averaged`."""
    if not isinstance(content, Mapping) or depth == 0:
        return {}
    tensors = _tensors(content)
    if tensors and len(tensors) == len(content):
        return _split_by_name(tensors)

    sets: dict[str, WeightSet] = {}
    for key in HOLDERS:
        if inner := _weight_sets(content.get(key), path, depth - 1):
            sets = {kind: replace(one, place=_below(key, one)) for kind, one in inner.items()}
            break
    if "current_model_state" in content and "averaging_state" in content:
        # Lightning's WeightAveraging stores the average as the model's own state
        raw = WeightSet("current_model_state", _tensors(content["current_model_state"]))
        return {"ema": sets["raw"], "raw": raw} if "raw" in sets else {"raw": raw}
    callbacks = content.get("callbacks")
    states = callbacks.items() if isinstance(callbacks, Mapping) else ()
    for before, holder in (("", content), *((f"callbacks.{name}.", one) for name, one in states)):
        average = _average(holder, sets.get("raw"), path)
        if average is None:
            continue
        sets["ema"] = replace(average, place=f"{before}{average.place}")
        if average.place == "ema_state_dict" and _by_mmengine(content) and "raw" in sets:
            # MMEngine exchanges the two before it saves
            raw, average = sets["ema"], sets["raw"]
            sets = {"raw": raw, "ema": average}
        break
    return sets


def _split_by_name(tensors: dict[str, torch.Tensor]) -> dict[str, WeightSet]:
    """The sets of one dictionary, where a prefix of the names (`ema_`, `model_ema.`) parts them.

    The rest of such a name is that of a raw tensor, perhaps with its dots replaced or left out.
    """
    if "n_averaged" in tensors:  # torch's AveragedModel
        return {"ema": WeightSet("n_averaged and averaged tensors", tensors)}
    matched = {name: found for name in tensors if (found := EMA_NAME.fullmatch(name))}
    raw = {name: tensor for name, tensor in tensors.items() if name not in matched}
    prefix = name_prefix(raw)
    own_names = {_letters(name): name.removeprefix(prefix) for name in raw}
    own_names |= {_letters(name.removeprefix(prefix)): name.removeprefix(prefix) for name in raw}
    alone = not any("encoder." in name for name in raw)
    average, before = {}, ""
    for name, found in matched.items():
        inner = found["name"].removeprefix("module.")
        own = inner if alone else own_names.get(_letters(inner))
        if own is None:
            raw[name] = tensors[name]
        else:
            average[own] = tensors[name]
            before = before or name.removesuffix(found["name"])
    if not average:
        return {"raw": WeightSet("tensors by name", tensors)}
    sets = {"ema": WeightSet(f"{before}*", average)}
    return (
        sets
        if alone
        else {"raw": WeightSet(f"{prefix}*" if prefix else "names without it", raw), **sets}
    )


def _average(holder: Any, raw: WeightSet | None, path: Path | None) -> WeightSet | None:
    """The averaged weights under a key of `holder` that has `ema` in it, or None.

    Tensors without an encoder beside raw weights with one are numbers of the EMA, such as a decay.
    """
    if not isinstance(holder, Mapping):
        return None
    whole = raw is not None and any("encoder" in name for name in raw.tensors)
    for key in holder:
        if not EMA_KEY.search(str(key)):
            continue
        tensors = _averaged(holder[key], raw, path)
        if tensors and (not whole or any("encoder" in name for name in tensors)):
            return WeightSet(str(key), tensors)
    return None


def _averaged(
    value: Any, raw: WeightSet | None, path: Path | None, depth: int = DEEPEST
) -> dict[str, torch.Tensor]:
    """The tensors of an EMA: by name, under a key of its own, or as a list in the raw's order.

    Raises InputError, which names the file `path`, for a list that does not match; without `path`
    the list is skipped.
    """
    import torch

    if isinstance(value, list | tuple) and value and isinstance(value[0], torch.Tensor):
        ours = {} if raw is None else raw.tensors
        names = [name for name in ours if name.rpartition(".")[2] not in BUFFERS]
        if [ours[name].shape for name in names] != [getattr(one, "shape", ()) for one in value]:
            if path is None:
                return {}
            raise InputError(
                f"{path} holds EMA weights without names, {len(value)} tensors that do not match "
                f"the {len(names)} parameters of its raw weights. Give --checkpoint-weights raw "
                '(checkpoint_weights="raw"), or save the averaged model by name.'
            )
        return dict(zip(names, value, strict=True))
    if not isinstance(value, Mapping) or depth == 0:
        return {}
    inside = [key for key in value if key in (*HOLDERS, *AVERAGES) or EMA_KEY.search(str(key))]
    found = (_averaged(value[key], raw, path, depth - 1) for key in inside)
    return next((one for one in found if one), _tensors(value))


def _tensors(values: Any) -> dict[str, torch.Tensor]:
    import torch

    pairs = values.items() if isinstance(values, Mapping) else ()
    return {str(name): value for name, value in pairs if isinstance(value, torch.Tensor)}


def _below(key: str, found: WeightSet) -> str:
    return key if found.place == "tensors by name" else f"{key}.{found.place}"


def _by_mmengine(content: Mapping[Any, Any]) -> bool:
    meta = content.get("meta")
    return "message_hub" in content or (isinstance(meta, Mapping) and "mmengine_version" in meta)


def _letters(name: str) -> str:
    """A tensor's name without dots and underscores, which buffers cannot have or EMAs replace."""
    return re.sub(r"[._]", "", name)
