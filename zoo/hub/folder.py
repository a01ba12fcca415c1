"""The folder that a model is saved in: model.safetensors, config.json, README.md.

Fine-tuning writes it as `best/`, a Hub repository holds it and every MODEL path takes it. The top
level of config.json is what `smp.from_pretrained` needs; everything else is under `_zoo`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.common.console import info
from zoo.common.errors import InputError, join_problems, type_words
from zoo.common.files import OutputFolder, json_text, list_written, new_folder
from zoo.hub.card import Extras, card
from zoo.hub.config import SCHEMA, WITHOUT_ENCODER, Described, EncoderOnHub, read_config
from zoo.hub.decoder_only import fetch_left_out, with_left_out
from zoo.models.spec import ModelSpec, palette_for
from zoo.registry.weights import non_commercial
from zoo.remote.address import snapshot_origin

if TYPE_CHECKING:
    import torch

    from zoo.models.segmentation import SegmentationModel

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
SEEN = ("dataset", "data_hash", "chosen_on")
"""What a folder says of the data that its weights learned from and were chosen by."""
NOT_SMP = "zoo"
"""The class that config.json names where SMP has none, so that SMP refuses to load it."""


@dataclasses.dataclass(frozen=True)
class ModelFolder(Described):
    """What config.json says. `training` and `metrics` are None for a model that was not trained."""

    path: Path = Path()


def save(model: SegmentationModel, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write `model` to the model folder `folder`, which `zoo.create` loads.

    The folder says of training what `known_training` gives. What this wrote there before is
    replaced as a whole. Raises InputError for a model that could not be loaded again and, unless
    `overwrite` is set, where the folder holds anything else; RunError where it cannot be written.
    """
    from zoo.models.segmentation import SegmentationModel

    if not isinstance(model, SegmentationModel):
        raise InputError(
            "The model should be what zoo.create returned, not a wrapper or a part of it, got "
            f"{type_words(model)}."
        )
    if not isinstance(folder, str | Path) or not str(folder) or "\0" in str(folder):
        raise InputError(f"folder should be a path, got {type_words(folder)}.")
    check_unchanged(
        model,
        model.spec.name,
        "zoo.create would build others; save model.state_dict() with torch.save instead",
    )
    save_folder(model, Path(folder), training=known_training(model), overwrite=overwrite)


def known_training(model: SegmentationModel) -> dict[str, Any] | None:
    """What is known of the training of `model`: all of it while it has the weights of its folder.

    Of weights that were changed since, only the data that they learned from and were chosen by.
    """
    from zoo.models.build import checksum

    known = model.provenance
    if not known or model.loaded is None or checksum(model.net.state_dict()) == model.loaded:
        return known
    return {key: known[key] for key in SEEN if key in known} or None


def check_unchanged(model: SegmentationModel, name: str, consequence: str) -> SegmentationModel:
    """The model of its description, on the meta device.

    Raises InputError unless the layers of `model` are the same, which else has `consequence`, and
    its weights are there and finite. `name` stands for it in messages.
    """
    from zoo.models.build import check_keys, check_values, kinds_of_layers

    state = model.net.state_dict()
    if any(tensor.is_meta for tensor in state.values()):
        raise InputError(
            f"{name} has no weights: it is on the meta device. Load its weights first."
        )
    blank = build_on_meta(model.spec)
    wanted, found = kinds_of_layers(blank.net), kinds_of_layers(model.net)
    changed = [
        f"{f'net.{place}'.rstrip('.')} is {found.get(place, 'missing')}, zoo.create makes "
        f"{wanted.get(place, 'nothing there')}"
        for place in dict.fromkeys([*wanted, *found])
        if found.get(place) != wanted.get(place)
    ]
    header = f"Layers of {name} were changed; {consequence}:"
    if changed:
        raise InputError(join_problems(header, changed, 5))
    try:
        check_keys(blank.net, state)
    except InputError as error:
        raise InputError(f"{header}\n{error}") from error
    check_values(state, name, blank.net)
    return blank


def save_folder(
    model: SegmentationModel,
    path: Path,
    *,
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Write `model` to the folder `path`, replacing a model that was saved there as a whole.

    `training` says how it was trained (recipe, data, steps), `metrics` what was measured on which
    split. Raises InputError where the folder holds anything else, or files that were changed since,
    unless `overwrite` is set (the folder then gets no manifest), and RunError where it cannot be
    written.
    """
    OutputFolder(path, [WEIGHTS, CONFIG, CARD], overwrite=overwrite, replaced=True)
    with new_folder(path, replace=True) as folder:
        write_weights(model, folder / WEIGHTS)
        config = make_config(model.spec, training, metrics)
        (folder / CONFIG).write_text(json_text(config))
        required = model.spec.license if non_commercial(model.spec.license) else None
        extras = Extras(license=required)
        (folder / CARD).write_text(card(model.spec, training, metrics, extras), encoding="utf-8")
        if not overwrite:
            list_written(folder)


def write_weights(
    model: SegmentationModel, path: Path, left_out: Collection[str] = frozenset()
) -> None:
    """Write the tensors of a model, but those named in `left_out`, as safetensors."""
    from safetensors.torch import save_file

    from zoo.models.build import tied_names

    again = {name for group in tied_names(model.net) for name in group[1:]}  # once, as SMP reads it
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.net.state_dict().items()}
    kept = {name: t.contiguous() for name, t in state.items() if name not in again | {*left_out}}
    save_file(kept, path, metadata={"format": "pt"})


def make_config(
    spec: ModelSpec,
    training: dict[str, Any] | None,
    metrics: dict[str, Any] | None,
    encoder: EncoderOnHub | None = None,
) -> dict[str, Any]:
    """The content of config.json; `encoder` is where the encoder lies if the folder has none."""
    from zoo.models.build import in_smp, replaces_norm, smp_config
    from zoo.registry.decoders import DECODERS

    theirs: dict[str, Any] = {"_model_class": NOT_SMP}
    if encoder is None and in_smp(spec) and spec.norm == "batch" and not replaces_norm(spec):
        theirs = {"_model_class": DECODERS[spec.decoder].smp, **smp_config(spec)}
    return {
        **theirs,
        "_zoo": {
            "schema": SCHEMA if encoder is None else WITHOUT_ENCODER,
            "spec": spec.model_dump(mode="json"),
            "training": training,
            "metrics": metrics,
            **({} if encoder is None else {"encoder_on_hub": encoder.model_dump()}),
        },
    }


def is_model_folder(path: Path) -> bool:
    """True where `path` holds a config.json and the weights beside it."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def folder_of_run(path: Path) -> Path:
    """The model folder in the run `path`, its best/; any other folder is itself."""
    best = path / "best"
    return best if is_model_folder(best) else path


def read_folder(path: Path, registry: Path | None = None) -> ModelFolder:
    """Read the description of the model in `path`. Raises InputError with every problem.

    `registry` is an overlay that may name the classes of a repository that SMP wrote.
    """
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise InputError(
                f"{path} is not a model folder: it holds no {name}. "
                "Give a run folder, or the folder best/ in it."
            )
    described = read_config(path / CONFIG, registry)
    return ModelFolder(**vars(described), path=path)


def load_folder(
    path: Path, classes: list[str] | None = None, registry: Path | None = None
) -> SegmentationModel:
    """Load the model in `path`, in evaluation mode; `registry` as in `read_folder`.

    `classes`: names of other classes; the layers that score the classes then start at random, the
    rest is loaded. An encoder that the folder leaves out comes from the Hub or its cache. Raises
    InputError where the weights do not fit the description or hold NaN, and for an encoder that
    cannot be had or is another one; RunError where the Hub fails.
    """
    from zoo.models.build import read_weights

    described, commit = read_folder(path, registry), snapshot_origin(path)
    state, left_out = read_weights(path / WEIGHTS), described.encoder_on_hub
    encoder = None if left_out is None else fetch_left_out(left_out, path)
    origin = None if commit is None else {"pulled_from": commit}
    return restored(described, state, path, classes, encoder, origin)


def restored(
    described: Described,
    state: dict[str, torch.Tensor],
    source: Path | str,
    classes: list[str] | None = None,
    encoder: Path | None = None,
    origin: dict[str, Any] | None = None,
) -> SegmentationModel:
    """The model of a description and its weights `state`, which messages call `source`.

    `classes` as in `load_folder`; `encoder` is the file with the encoder where `state` leaves it
    out; `origin` is what the model's provenance says beside its training.
    """
    from zoo.models.build import build, check_keys, check_values, checksum, with_tied_names

    spec, origin = described.spec, origin or {}
    if classes is None or classes == spec.classes:
        model = build(spec, encoder)
        check_values(state, source, model.net)
        load_state(model, state, described)
        model.provenance = (described.training or {}) | origin or None
        model.loaded = checksum(model.net.state_dict())
        return model.eval()
    info(
        f"{source}: the segmentation head is replaced ({len(spec.classes)} -> "
        f"{len(classes)} classes) and starts from random weights."
    )
    model = build(with_classes(spec, classes), encoder)
    fresh = model.net.state_dict()
    check_values(state, source, model.net)
    state = with_left_out(model.net, state, described)
    if described.foreign:
        old = build(spec)
        load_state(old, state, described)
        state = old.net.state_dict()
    merged = with_tied_names(model.net, state) | {name: fresh[name] for name in class_tensors(spec)}
    check_keys(model.net, merged)
    model.net.load_state_dict(merged)
    if origin:
        model.provenance = origin | {"class_scores": "random"}
    return model.eval()


def load_state(
    model: SegmentationModel, state: dict[str, torch.Tensor], described: Described
) -> None:
    """Load `state` into `model` strictly. Raises InputError where it does not fit.

    An encoder that the folder leaves out is in `model` already.
    """
    from zoo.hub.smp import load_smp_state
    from zoo.models.build import check_keys, with_tied_names

    if described.foreign:
        load_smp_state(model.net, state)
        return
    complete = with_tied_names(model.net, with_left_out(model.net, state, described))
    check_keys(model.net, complete)
    model.net.load_state_dict(complete)


def check_shapes(described: Described, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise InputError unless tensors of these names and shapes fit the description.

    Nothing of the model's size is allocated: it is built on the `meta` device.
    """
    import torch

    try:
        with torch.device("meta"):
            state = {name: torch.empty(shape) for name, shape in shapes.items()}
    except (RuntimeError, TypeError) as error:
        raise InputError("The weights hold a tensor whose shape is too large.") from error
    load_state(build_on_meta(described.spec), state, described)


def build_on_meta(spec: ModelSpec) -> SegmentationModel:
    """The model of `spec`, without memory for its weights."""
    from zoo.models.build import build
    from zoo.models.meta import without_memory

    with without_memory():
        model = build(spec)
    return model.to("meta")  # SMP creates some layers on the CPU, whatever the device


def with_classes(spec: ModelSpec, classes: list[str]) -> ModelSpec:
    """`spec` for other classes, in the default colours."""
    changed = spec.model_dump() | {"classes": classes, "palette": palette_for(classes, None)}
    return ModelSpec.model_validate(changed)


def class_tensors(spec: ModelSpec) -> list[str]:
    """The names of the tensors that score the classes: those that grow with their number."""
    count = len(spec.classes)
    sizes = [
        {name: tensor.shape for name, tensor in build_on_meta(other).net.state_dict().items()}
        for other in (spec, with_classes(spec, [f"class_{i}" for i in range(count % 255 + 1)]))
    ]
    return [name for name, shape in sizes[0].items() if sizes[1][name] != shape]
