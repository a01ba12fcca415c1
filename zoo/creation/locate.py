"""Where the trained model lies that a user asks for: a folder, a run, a repository, a name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.common.console import info
from zoo.common.errors import InputError, unknown
from zoo.common.files import read_json
from zoo.registry.load import load_registry
from zoo.registry.weights import Named, check_license, default_weights, non_commercial
from zoo.remote.address import is_address, parse_address

EXPORTED = (".onnx", ".xml", ".pt2")
"""How the files of models end that `zoo export` writes."""


def model_folder(
    model: str | Path, registry: Path | None = None, *, names: bool = True
) -> Path | None:
    """The model folder that MODEL names; None for an architecture's name.

    A folder is itself, a run its best/, a repository on the Hub what was pulled into the cache, and
    so is a name that stands for trained weights, unless `names` is False. `registry` is an overlay
    file. Raises InputError for a path where no folder is, RunError where the Hub fails.
    """
    if names and (named := named_weights(model, registry)) is not None:
        return pulled(named, registry)
    if is_address(model):
        from zoo.hub.pull import pull_model

        return pull_model(parse_address(str(model)), registry)
    path = Path(model)
    if path.is_dir():
        from zoo.hub.folder import CONFIG, WEIGHTS, folder_of_run
        from zoo.remote.files import check_snapshot

        folder = folder_of_run(path)
        check_snapshot(folder, (CONFIG, WEIGHTS))
        return folder
    if isinstance(model, Path) or "/" in str(model) or str(model).startswith("."):
        raise InputError(
            f"There is no folder {model}. Give a name, a model folder, a run folder or "
            "hf-hub:ORG/REPO."
        )
    return None


def is_exported(model: str | Path) -> bool:
    """Whether this is the path of a file that `zoo export` writes, by its ending."""
    return Path(model).suffix in EXPORTED and not is_address(model) and not Path(model).is_dir()


def check_trained(model: str | Path, *, exported: bool = False) -> None:
    """Raise InputError where `model` cannot name a trained model; torch is not imported for it.

    Folders, repositories and names that stand for trained weights pass, with `exported` also files
    of `zoo export`; they are read later.
    """
    if is_exported(model):
        if exported:
            return
        raise InputError(
            f"{model} is an exported file, which this does not take. Give the model that it was "
            "exported from: its run folder or model folder."
        )
    if Path(model).is_dir() or is_address(model) or named_weights(model) is not None:
        return
    if model_folder(model, names=False) is None:
        raise InputError(
            f"{model} names an architecture, whose segmentation head is untrained. Give the folder "
            f"of a trained model, or train one: zoo finetune {model} --data DATA."
        )


def pull(model: str) -> Path:
    """Bring a model, or the weights of an encoder, into the Hub's cache; returns its folder there.

    `model`: `hf-hub:ORG/REPO[@REVISION]`, or a name that stands for trained weights. What is in the
    cache is compared with the Hub where it could not be verified before. An encoder that the model
    leaves out is brought too. Raises InputError for a model that cannot be used, RunError where the
    Hub fails.
    """
    from zoo.hub.config import TimmConfigError
    from zoo.hub.decoder_only import fetch_left_out
    from zoo.hub.encoders import fetch_encoder
    from zoo.hub.folder import CONFIG, read_folder
    from zoo.hub.pull import pull_model

    named = named_weights(model)
    try:
        folder = pull_model(parse_address(model)) if named is None else pulled(named)
    except TimmConfigError:
        address = parse_address(model)
        repo, revision = address.repo, address.revision
        return fetch_encoder(repo, "", repo, revision=revision, with_config=True).path.parent
    ours = "_zoo" in read_json(folder / CONFIG)
    if ours and (encoder := read_folder(folder).encoder_on_hub) is not None:
        fetch_left_out(encoder, folder)
        info(f"Pulled its frozen encoder {encoder}")
    return folder


def named_weights(model: str | Path, registry: Path | None = None) -> Named | None:
    """The trained weights that MODEL stands for by its name; None for anything else."""
    if is_address(model) or Path(model).is_dir():
        return None
    return default_weights(str(model), registry)


def weights_by_key(name: str, key: str, registry: Path | None = None) -> Named:
    """The trained weights that the registry names `key` for a model. Raises InputError."""
    from zoo.registry.resolve import resolve

    resolved = resolve(name, registry)
    if key not in resolved.trained:
        text = (
            unknown(f"weights of {name}", key, resolved.trained)
            if resolved.trained
            else (f"The registry names no trained weights of {name}.")
        )
        raise InputError(f"{text} A folder or hf-hub:ORG/REPO works too.")
    row = load_registry(registry).models[resolved.name]
    return Named(resolved.name, row, resolved.trained[key])


def check_named(named: Named, changed: bool, license: str | None) -> None:
    """Raise InputError for arguments that these weights do not allow, before any request."""
    if changed:
        raise InputError(
            f"{named.name} is a trained model here; only classes= can be changed. Its architecture "
            "takes other arguments: give encoder_weights=None for random weights."
        )
    if license is not None and named.model.license is not None:
        check_license(license, named.model.license, named.name)


def pulled(named: Named, registry: Path | None = None) -> Path:
    """The folder of weights in the Hub's cache; says what a user of them should know."""
    from zoo.hub.pull import pull_model

    folder = pull_model(parse_address(named.weights.address), registry)
    if named.weights.revision is None:
        address = f"{named.weights.address}@{folder.name}"
        info(f"The registry pins no commit of {named.name}; using {address}")
    if non_commercial(named.model.license):
        info(f"The weights of {named.name} are {named.model.license}: no commercial use.")
    return folder


def described(folder: Path, registry: Path | None = None) -> list[tuple[str, Any, str]]:
    """(key, value, file) of everything that a model folder says about itself; no torch.

    The keys of how the weights came about begin with `training.`, those of what was measured with
    `metrics.`. Raises InputError for a folder that is not a model folder.
    """
    from zoo.hub.folder import CONFIG, read_folder

    found = read_folder(folder, registry)
    values = found.spec.model_dump(mode="json")
    if found.encoder_on_hub is not None:  # the network is SMP's own, but not all of its weights
        values |= {"smp_loadable": False, "encoder_on_hub": str(found.encoder_on_hub)}
    for section, given in (("training", found.training), ("metrics", found.metrics)):
        values |= {f"{section}.{key}": value for key, value in (given or {}).items()}
    return [(key, value, CONFIG) for key, value in values.items()]
