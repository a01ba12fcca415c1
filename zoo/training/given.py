"""A model object as the start of a run: a copy of its weights, checked against its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.common.errors import InputError, join_problems
from zoo.hub.config import Described
from zoo.hub.folder import build_on_meta, restored, save_folder

if TYPE_CHECKING:
    import torch

    from zoo.models.segmentation import SegmentationModel


@dataclass(frozen=True, eq=False)
class GivenModel:
    """What a run takes of the model object that it was given; see `take`.

    `state` are the weights; `training` of the description says which by their digest.
    """

    described: Described
    state: dict[str, torch.Tensor]

    def __str__(self) -> str:
        return f"the given {self.described.spec.name}"


def is_model(value: object) -> bool:
    """Whether `value` is a model that `zoo.create` made."""
    from zoo.models.segmentation import SegmentationModel

    return isinstance(value, SegmentationModel)


def take(model: SegmentationModel) -> GivenModel:
    """A copy of the weights of `model`, in fp32 on the CPU; the object is only read.

    Raises InputError for weights that are NaN, infinite or on the meta device, and where layers
    were changed since `zoo.create`: a run builds the network from the description again.
    """
    from zoo.models.build import check_keys, check_values, weights_id

    spec, state = model.spec, model.net.state_dict()
    name = f"the given {spec.name}"
    if any(tensor.is_meta for tensor in state.values()):
        raise InputError(
            f"{name} has no weights: it is on the meta device. Load its weights first."
        )
    blank = build_on_meta(spec).net
    wanted = {place: type(layer).__qualname__ for place, layer in blank.named_modules()}
    found = {place: type(layer).__qualname__ for place, layer in model.net.named_modules()}
    changed = [
        f"{f'net.{place}'.rstrip('.')} is {found.get(place, 'missing')}, zoo.create makes "
        f"{wanted.get(place, 'nothing there')}"
        for place in dict.fromkeys([*wanted, *found])
        if found.get(place) != wanted.get(place)
    ]
    header = f"Layers of {name} were changed; a run can only take over its weights:"
    if changed:
        raise InputError(join_problems(header, changed, 5))
    try:
        check_keys(blank, state)
    except InputError as error:
        raise InputError(f"{header}\n{error}") from error
    check_values(state, name, blank)
    kinds = {place: tensor.dtype for place, tensor in blank.state_dict().items()}
    state = {
        place: tensor.detach().to("cpu", kinds[place], copy=True) for place, tensor in state.items()
    }
    training = {"encoder_init": weights_id(state)}
    return GivenModel(Described(spec, training), state)


def keep(given: GivenModel, folder: Path) -> None:
    """Write the weights as a model folder, from which the run can be resumed without the object."""
    model = restored(given.described, given.state, str(given))
    save_folder(model, folder, training=given.described.training)
