"""An old PyTorch checkpoint as a model folder: read without running it, fitted strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.console import info
from zoo.common.errors import InputError, join_problems, printable, shortened
from zoo.common.files import sha256
from zoo.creation.weight_sets import KINDS, name_prefix, read_weights_of_kind
from zoo.hub.config import Described, parse_config
from zoo.hub.folder import load_state, save_folder
from zoo.models.spec import ModelSpec, class_names, model_spec, palette_for
from zoo.registry.decoders import DECODERS
from zoo.registry.resolve import resolve

if TYPE_CHECKING:
    import torch

COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Imported:
    """What was made of a checkpoint.

    `prefix` was taken off the names; `left_out` are tensors that are not part of the network, such
    as those of a loss; `filled` are counters that old checkpoints lack and that were set to 0.
    `weights` says which were taken, "raw" or "ema".
    """

    folder: Path
    prefix: str
    left_out: list[str]
    filled: list[str]
    weights: str = "raw"


def import_checkpoint(
    path: str | Path,
    model: str,
    classes: int | list[str],
    out: str | Path,
    *,
    in_chans: int = 3,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    checkpoint_weights: str | None = None,
    registry: Path | None = None,
) -> Imported:
    """Write the model folder `out` from a checkpoint of `model`.

    `model` is a name such as `unet-resnet18`, or `unet-smp:resnet18` for an encoder that is
    segmentation-models-pytorch's own. Only tensors are read (`weights_only`), nothing is executed.
    `mean` and `std` are those of the training; by default the encoder's. `checkpoint_weights` is
    "raw" or "ema" (an exponential moving average of the weights); by default the EMA is taken where
    the file holds both, and an info line says so. Raises InputError where the file holds anything
    else or not that kind, or where a tensor of the network is missing or misshapen.
    """
    from zoo.models.build import build, check_values

    path, folder = Path(path), Path(out)
    if folder.exists():
        raise InputError(f"{folder} exists already; give another --out.")
    kind, sets = read_weights_of_kind(path, checkpoint_weights)
    state = sets[kind].tensors

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

    prefix, inner = _without_prefix(state)
    net = build(spec)
    wanted = net.net.state_dict()
    borrowed: dict[str, torch.Tensor] = {}
    for other in sets.values():  # an average may lack buffers, such as those of BatchNorm
        theirs = _without_prefix(other.tensors)[1]
        buffers = {name for name, _ in net.net.named_buffers() if name not in inner}
        borrowed |= {name: theirs[name] for name in buffers if name in theirs}
    inner |= borrowed
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
        if len(sets) > 1:
            (rest,) = sets.keys() - {kind}
            lines.append(
                f"these are its {KINDS[kind]} weights ({sets[kind].place}); it holds "
                f"{KINDS[rest]} weights too: --checkpoint-weights {rest}"
            )
        raise InputError(
            join_problems(f"{path} does not fit {spec.name} (it holds {held}):", lines)
        ) from error
    training = {"imported_from": f"{path.name} sha256:{sha256(path)}"}
    if len(sets) > 1:
        training["checkpoint_weights"] = kind
        if checkpoint_weights is None:
            places = " and ".join(f"{KINDS[one]} weights ({sets[one].place})" for one in KINDS)
            info(
                f"{printable(path.name)} holds {printable(places)}; the EMA is imported. For the "
                'others give --checkpoint-weights raw (checkpoint_weights="raw").'
            )
    save_folder(net, folder, training=training)
    return Imported(folder, prefix, sorted(left_out), filled, kind)


def _without_prefix(state: dict[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """What training put before the names, and the tensors that have it, under the rest."""
    prefix = name_prefix(state)
    inner = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    return prefix, inner
