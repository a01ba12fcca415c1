"""A model object as the start of a run: a copy of its weights, checked against its description."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.hub.config import Described
from zoo.hub.folder import SEEN, check_unchanged, known_training, restored, save_folder

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
    from zoo.models.build import weights_id

    name = f"the given {model.spec.name}"
    blank = check_unchanged(model, name, "a run can only take over its weights").net
    kinds = {place: tensor.dtype for place, tensor in blank.state_dict().items()}
    state = {
        place: tensor.detach().to("cpu", kinds[place], copy=True)
        for place, tensor in model.net.state_dict().items()
    }
    known = known_training(model) or {}
    kept = {key: known[key] for key in SEEN if key in known}
    return GivenModel(Described(model.spec, kept | {"encoder_init": weights_id(state)}), state)


def keep(given: GivenModel, folder: Path) -> None:
    """Write the weights as a model folder, from which the run can be resumed without the object."""
    model = restored(given.described, given.state, str(given))
    save_folder(model, folder, training=given.described.training)
