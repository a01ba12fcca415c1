"""An old PyTorch checkpoint as a model folder: read without running it, fitted strictly."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.errors import InputError, join_problems, printable, shortened
from zoo.common.files import sha256
from zoo.hub.config import Described, parse_config
from zoo.hub.folder import load_state, save_folder
from zoo.models.spec import ModelSpec, class_names, model_spec, palette_for
from zoo.registry.decoders import DECODERS
from zoo.registry.resolve import resolve

if TYPE_CHECKING:
    import torch

HOLDERS = ("state_dict", "model_state_dict", "model", "net", "ema", "module")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Imported:
    """What was made of a checkpoint.

    `prefix` was taken off the names; `left_out` are tensors that are not part of the network, such
    as those of a loss; `filled` are counters that old checkpoints lack and that were set to 0.
    """

    folder: Path
    prefix: str
    left_out: list[str]
    filled: list[str]


def import_checkpoint(
    path: str | Path,
    model: str,
    classes: int | list[str],
    out: str | Path,
    *,
    in_chans: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    registry: Path | None = None,
) -> Imported:
    """Write the model folder `out` from a checkpoint of `model`.

    `model` is a name such as `unet-resnet18`, or `unet-smp:resnet18` for an encoder that is
    segmentation-models-pytorch's own. Only tensors are read (`weights_only`), nothing is executed.
    `mean` and `std` are those of the training; by default the encoder's. Raises InputError where
    the file holds anything else, or where a tensor of the network is missing or misshapen.
    """
    from zoo.models.build import build, check_values

    path, folder = Path(path), Path(out)
    if folder.exists():
        raise InputError(f"{folder} exists already; give another --out.")
    state = _read(path)

    # the description, and whether SMP's own names of tensors may be meant
    changes: dict[str, Any] = {"mean": mean, "std": std}
    changes = {key: value for key, value in changes.items() if value is not None}
    decoder, _, encoder = model.partition("-")
    if encoder.startswith("smp:"):
        row, names = DECODERS.get(decoder), class_names(classes)
        config = {
            "_model_class": None if row is None else row.smp,
            "encoder_name": encoder.removeprefix("smp:"),
            "in_channels": in_chans,
            "classes": len(names),
        }
        spec, foreign = parse_config(config, model).spec, True
        changes |= {"classes": names, "palette": palette_for(names, None)}
    else:
        resolved = resolve(model, registry)
        resolved.check({})
        spec = model_spec(resolved, classes, in_chans=in_chans)
        foreign = resolved.smp_loadable
    try:
        spec = ModelSpec.model_validate(spec.model_dump() | changes)
    except ValueError as error:
        raise InputError(f"mean and std need {spec.in_chans} values each, std above 0.") from error

    # training puts `module.`, `model.`, `_orig_mod.` and the like before the names
    found = [re.match(r"((?:\w+\.)*?)encoder\.", name) for name in state]
    prefix = min((match[1] for match in found if match), key=len, default="")
    inner = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    net = build(spec)
    wanted = net.net.state_dict()
    filled = [n for n in wanted if n.endswith(COUNTER) and n not in inner and not foreign]
    inner |= {name: wanted[name] for name in filled}
    tops = {name.partition(".")[0] for name in wanted}
    strangers = [name for name in inner if name.partition(".")[0] not in tops]
    left_out = [name for name in state if not name.startswith(prefix)]
    left_out += [prefix + name for name in strangers]
    kept = {name: tensor for name, tensor in inner.items() if name not in strangers}
    check_values(kept, path, net.net)
    try:
        load_state(net, kept, Described(spec, foreign=foreign))
    except InputError as error:
        lines = [line.strip(" -") for line in str(error).splitlines()[1:]]
        held = shortened(sorted(kept), 3)
        raise InputError(
            join_problems(f"{path} does not fit {spec.name} (it holds {held}):", lines)
        ) from error
    save_folder(net, folder, training={"imported_from": f"{path.name} sha256:{sha256(path)}"})
    return Imported(folder, prefix, sorted(left_out), filled)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name. Raises InputError for anything else."""
    import torch

    if path.suffix == ".safetensors":
        from zoo.models.build import read_weights

        return read_weights(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise InputError(
            f"{path} holds more than tensors{what}, which could run code when it is loaded; it was "
            "not. Where you trust its origin, load it in its own project and save "
            "only model.state_dict()."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = printable(error).strip()[:200] or type(error).__name__
        raise InputError(f"{path} is not a PyTorch checkpoint ({reason}).") from error
    found = _tensors(content)
    if found is None:
        raise InputError(
            f"{path} holds no weights by name; expected are tensors at the top, or under one of "
            f"{', '.join(HOLDERS)}."
        )
    return found


def _tensors(content: Any) -> dict[str, torch.Tensor] | None:
    import torch

    if not isinstance(content, Mapping):
        return None
    tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if tensors and len(tensors) == len(content):
        return tensors
    holders = (_tensors(content[key]) for key in HOLDERS if key in content)
    return next((found for found in holders if found), None)
