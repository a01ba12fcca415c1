"""The folder that a model travels in: model.safetensors, config.json, README.md.

The same folder is what fine-tuning leaves as `best/`, what a Hub repository holds and what every
MODEL path reads. The top level of config.json holds what plain `smp.from_pretrained` needs, all of
ours stands under `_zoo`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from zoo.errors import InputError, join_problems
from zoo.files import new_folder, read_json
from zoo.hub.card import card
from zoo.models.spec import ModelSpec, palette_for

if TYPE_CHECKING:
    from zoo.models.segmentation import SegmentationModel

SCHEMA = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
HEAD = "segmentation_head."


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """What config.json says. `training` and `metrics` are None for a model that was not trained."""

    path: Path
    spec: ModelSpec
    training: dict[str, Any] | None
    metrics: dict[str, Any] | None


def save_folder(
    model: SegmentationModel,
    path: Path,
    *,
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Write `model` to the folder `path`, replacing what is there as a whole.

    `training` says how the weights came about (recipe, data, steps), `metrics` what was measured on
    which split. Raises RunError where the folder cannot be written.
    """
    from safetensors.torch import save_file

    state = {name: tensor.detach().cpu().clone() for name, tensor in model.net.state_dict().items()}
    with new_folder(path) as folder:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            folder / WEIGHTS,
            metadata={"format": "pt"},
        )
        config = make_config(model.spec, training, metrics)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n")
        (folder / CARD).write_text(card(model.spec, training, metrics), encoding="utf-8")


def make_config(
    spec: ModelSpec, training: dict[str, Any] | None, metrics: dict[str, Any] | None
) -> dict[str, Any]:
    """The content of config.json."""
    from zoo.models.build import smp_config
    from zoo.models.decoders import DECODERS

    return {
        "_model_class": DECODERS[spec.decoder].smp_class,
        **smp_config(spec),
        "_zoo": {
            "schema": SCHEMA,
            "spec": spec.model_dump(mode="json"),
            "training": training,
            "metrics": metrics,
        },
    }


def is_model_folder(path: Path) -> bool:
    """True where `path` holds a config.json and the weights beside it."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def read_folder(path: Path) -> ModelFolder:
    """Read the description of the model in `path`. Raises InputError with every problem."""
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise InputError(
                f"{path} is not a model folder: it holds no {name}. "
                "Give the folder that fine-tuning left as best/, or its run folder."
            )
    config = read_json(path / CONFIG)
    ours = config.get("_zoo") if isinstance(config, dict) else None
    if not isinstance(ours, dict):
        raise InputError(f"{path / CONFIG} has no `_zoo` section; it was not written by zoo.")
    schema = ours.get("schema")
    if schema != SCHEMA:
        raise InputError(
            f"{path / CONFIG} has schema {schema!r}, this version reads {SCHEMA}. "
            "Upgrade segmentation-zoo to read newer models."
        )
    try:
        spec = ModelSpec.model_validate_json(json.dumps(ours.get("spec")))
    except ValidationError as error:
        problems = [f"_zoo.spec.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise InputError(join_problems(f"{path / CONFIG} has problems:", problems)) from error
    return ModelFolder(path, spec, ours.get("training"), ours.get("metrics"))


def load_folder(path: Path, classes: list[str] | None = None) -> SegmentationModel:
    """Load the model in `path`.

    `classes`: names of other classes; the layer that scores the classes then starts at random and
    everything else is loaded. Raises InputError where the weights do not fit the description.
    """
    from zoo.models.build import build, build_with_weights, check_keys, read_weights

    described = read_folder(path)
    spec = described.spec
    state = read_weights(path / WEIGHTS)
    if classes is None or classes == spec.classes:
        model = build_with_weights(spec, state)
        model.provenance = described.training
        return model
    changed = spec.model_dump() | {"classes": classes, "palette": palette_for(classes, None)}
    model = build(ModelSpec.model_validate(changed))
    fresh = model.net.state_dict()
    merged = state | {name: fresh[name] for name in fresh if name.startswith(HEAD)}
    check_keys(model.net, merged)
    model.net.load_state_dict(merged)
    return model
