"""The public verbs as functions; the command line calls exactly these.

Nothing heavy is imported before a verb needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.data.spec import load_dataset
from zoo.errors import InputError
from zoo.registry.registry import list_models, show

if TYPE_CHECKING:
    from zoo.creation import create
    from zoo.evaluation.predict import Prediction
    from zoo.evaluation.record import Evaluation
    from zoo.hub.push import push
    from zoo.models.segmentation import SegmentationModel
    from zoo.training.find_lr import find_lr
    from zoo.training.finetune import finetune

__all__ = [
    "create",
    "evaluate",
    "find_lr",
    "finetune",
    "list_models",
    "load_dataset",
    "predict",
    "pull",
    "push",
    "show",
]


def evaluate(
    model: str | Path | SegmentationModel,
    data: str | Path,
    *,
    split: str = "test",
    precision: str = "auto",
    out: str | Path | None = None,
) -> Evaluation:
    """Score `model` once on one split, at the images' own resolution.

    `model`: a run folder, a model folder or a model. Returns `.metrics` (mIoU, pixel accuracy and
    per class IoU, Dice, TPR, TNR, FPR, all in [0, 1]) and `.confusion`; writes the record into the
    folder `out` if given.
    """
    from zoo.evaluation.record import evaluate as measure

    return measure(loaded(model), data, split=split, precision=precision, out=out)


def predict(
    model: str | Path | SegmentationModel,
    inputs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    precision: str = "auto",
) -> list[Prediction]:
    """Segment images: `inputs` is a file, a folder, a glob or a list of these.

    Writes index masks and overlays below `out` if given. Each result holds the mask as uint8
    H x W with class ids.
    """
    from accelerate import PartialState

    from zoo.evaluation.evaluate import resolve_precision
    from zoo.evaluation.predict import predict_images

    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    if not given:
        raise InputError("Nothing to predict: give at least one image, folder or pattern.")
    device = PartialState().device
    return list(
        predict_images(
            loaded(model),
            given,
            None if out is None else Path(out),
            precision=resolve_precision(precision, device),
            device=device,
        )
    )


def pull(model: str) -> Path:
    """Bring a model into the Hub's cache; returns its folder there.

    `model`: `hf-hub:ORG/REPO[@REVISION]`, or a name that stands for trained weights. Raises
    InputError for a model that cannot be used, RunError where the Hub fails.
    """
    from zoo.hub.pull import pull as fetch
    from zoo.remote.address import parse_address
    from zoo.trained import named_weights, pulled

    if (named := named_weights(model)) is not None:
        return pulled(named)
    return fetch(parse_address(model))


def loaded(model: str | Path | SegmentationModel) -> SegmentationModel:
    """A trained model from its folder; a model is handed on."""
    if not isinstance(model, str | Path):
        return model
    from zoo.creation import create
    from zoo.trained import model_folder

    folder = model_folder(model)
    if folder is None:
        raise InputError(
            f"{model} is a name, and a name has random class scores. Give the folder of a trained "
            f"model, or train one: zoo finetune {model} --data DATA."
        )
    return create(folder)


def __getattr__(name: str) -> Any:
    """`create`, `finetune` and `push` from their homes, which import much."""
    homes = {
        "create": "zoo.creation",
        "find_lr": "zoo.training.find_lr",
        "finetune": "zoo.training.finetune",
        "push": "zoo.hub.push",
    }
    if name not in homes:
        raise AttributeError(f"module 'zoo.api' has no attribute {name!r}")
    return getattr(importlib.import_module(homes[name]), name)
