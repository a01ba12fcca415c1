"""config.json of a model folder, read strictly whoever wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zoo.common.errors import InputError, brief, join_problems, unknown
from zoo.common.files import read_json, write_json
from zoo.hub.smp import native_encoders, spec_from_smp
from zoo.models.spec import ModelSpec
from zoo.records.metrics import METRICS
from zoo.registry import encoders as timm_table
from zoo.registry.decoders import DECODERS, allowed_options
from zoo.registry.encoders import ENCODER_ARGS, MAX_SIDE, wrong_arguments
from zoo.registry.weights import Named, weights_in
from zoo.remote.address import PREFIX, snapshot_origin

SCHEMA = 1
WITHOUT_ENCODER = 2
"""The schema of a folder whose encoder lies elsewhere; versions that cannot fetch it refuse it."""
MAX_CONFIG_BYTES = 1_000_000
SHA256 = r"^[0-9a-f]{64}$"


class TimmConfigError(InputError):
    """A config.json that timm wrote, beside the weights of an encoder."""


class EncoderOnHub(BaseModel):
    """The file on the Hub with the encoder that a folder leaves out.

    It is `file` of the repository `repo` at the commit `revision`, with the digest `sha256`.
    `tensors_sha256` is the digest of the encoder's tensors once timm, in the version `timm`, has
    built it from the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", max_length=96)
    revision: str = Field(pattern=r"^[0-9a-f]{40}$")
    file: str = Field(pattern=r"^\w[\w.-]*\.safetensors$", max_length=96)
    sha256: str = Field(pattern=SHA256)
    tensors_sha256: str = Field(pattern=SHA256)
    timm: str = Field(pattern=r"^\d[\w.+-]*$", max_length=40)

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


class ZooSection(BaseModel):
    """The `_zoo` section of config.json.

    `spec` describes the model, `training` how it was trained, `metrics` what was measured on which
    split; both are null for a model that was not trained. `encoder_on_hub` says where the encoder
    lies if the folder leaves it out; `schema` is 2 then, else 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    schema_version: int = Field(alias="schema", ge=SCHEMA, le=WITHOUT_ENCODER)
    spec: ModelSpec
    training: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    encoder_on_hub: EncoderOnHub | None = None

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        if (self.encoder_on_hub is None) != (self.schema_version == SCHEMA):
            raise ValueError(
                f"encoder_on_hub goes with schema {WITHOUT_ENCODER}, and with no other schema"
            )
        if self.encoder_on_hub and self.encoder_on_hub.revision != self.spec.encoder_revision:
            raise ValueError("encoder_on_hub.revision should be spec.encoder_revision")
        return self

    @model_validator(mode="after")
    def _can_be_shown(self) -> Self:
        if not isinstance((self.training or {}).get("overrides") or {}, dict):
            raise ValueError("training.overrides should be a mapping of keys to values")
        for key in ("dataset", "split"):
            if not isinstance(text := (self.metrics or {}).get(key, ""), str):
                raise ValueError(f"metrics.{key} should be text, got {brief(text)}")
        for metric in METRICS:
            found = (self.metrics or {}).get(metric.key)
            numbers = [found]
            if metric.per_class and isinstance(found, dict):
                numbers = list(found.values())
            if not all(n is None or (type(n) in (int, float) and 0 <= n <= 1) for n in numbers):
                kind = "fractions by class" if metric.per_class else "a fraction"
                raise ValueError(f"metrics.{metric.key} should be {kind}, got {brief(found)}")
        return self


@dataclass(frozen=True)
class Described:
    """What config.json says; `foreign` where segmentation-models-pytorch (SMP) wrote it.

    `encoder_on_hub` is None unless the folder leaves its encoder out.
    """

    spec: ModelSpec
    training: dict[str, Any] | None = None
    metrics: dict[str, Any] | None = None
    foreign: bool = False
    encoder_on_hub: EncoderOnHub | None = None


def json_schema() -> dict[str, Any]:
    """The JSON schema of `_zoo`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"_zoo, version {WITHOUT_ENCODER}",
        **{k: v for k, v in ZooSection.model_json_schema(by_alias=True).items() if k != "title"},
    }


def write_json_schema(path: Path) -> None:
    """Write the JSON schema of `_zoo`."""
    write_json(path, json_schema())


def read_config(path: Path, registry: Path | None = None) -> Described:
    """Read config.json. Raises InputError with every problem of the file.

    Where SMP wrote it and it lies in the Hub's cache, the registry (or the overlay `registry`) may
    have a row for its repository, which names the classes.
    """
    config, origin = read_json(path, MAX_CONFIG_BYTES), snapshot_origin(path.parent)
    if not isinstance(config, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(config).__name__}.")
    named = weights_in(origin.partition("@")[0], registry) if origin else None
    described = parse_config(config, str(path), named)
    if named is None or origin is None or not described.foreign:
        return described
    source = {
        "encoder_weights": f"{PREFIX}{named.weights.hub}",
        "encoder_revision": origin.partition("@")[2],
    }
    return replace(described, spec=described.spec.model_copy(update=source))


def parse_config(config: dict[str, Any], source: str, named: Named | None = None) -> Described:
    """The description in `config`; `source` names it in messages. Raises InputError.

    `named` is the registry's row for it, with what SMP does not store.
    """
    ours = config.get("_zoo")
    if ours is None and "_model_class" in config:
        described = Described(spec_from_smp(config, source, named), foreign=True)
    else:
        described = _parse_ours(ours, source, "architecture" in config)
        spec = described.spec
        if spec.decoder == "pspnet" and config.get("_model_class") == "PSPNet":
            # SMP's PSPNet is pspnet_lite now; older folders call it pspnet
            name = f"pspnet_lite-{spec.name.removeprefix('pspnet-')}"
            spec = spec.model_copy(update={"decoder": "pspnet_lite", "name": name})
            described = replace(described, spec=spec)
    check_spec(described.spec, source)
    return described


def _parse_ours(ours: Any, source: str, from_timm: bool) -> Described:
    if not isinstance(ours, dict):
        raise (TimmConfigError if from_timm else InputError)(
            f"{source} has no `_zoo` section; it was not written by zoo, and not by "
            "segmentation-models-pytorch either. To use the weights of a timm encoder, call "
            'zoo.create(NAME, encoder_weights="hf-hub:ORG/REPO").'
        )
    version = ours.get("schema")
    if type(version) is not int or not SCHEMA <= version <= WITHOUT_ENCODER:
        newer = type(version) is int and version > SCHEMA
        step = (
            "Upgrade segmentation-zoo to read newer models"
            if newer
            else "The file is damaged: save or download the model again"
        )
        reads = f"{SCHEMA} and {WITHOUT_ENCODER}"
        raise InputError(f"{source} has schema {version!r}, this version reads {reads}. {step}.")
    try:
        section = ZooSection.model_validate_json(json.dumps(ours, allow_nan=False))
    except (ValidationError, ValueError, RecursionError) as error:
        found = error.errors() if isinstance(error, ValidationError) else []
        lines = [f"_zoo.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in found] or [str(error)]
        raise InputError(join_problems(f"{source} has problems:", lines)) from error
    return Described(
        section.spec, section.training, section.metrics, encoder_on_hub=section.encoder_on_hub
    )


def check_spec(spec: ModelSpec, source: str) -> None:
    """Raise InputError for a description with unknown parts or hostile arguments."""
    if problems := list(_spec_problems(spec)):
        raise InputError(join_problems(f"{source} has problems:", problems))


def _spec_problems(spec: ModelSpec) -> Iterator[str]:
    encoder, dot, tag = spec.encoder.partition(".")
    if spec.encoder.startswith("smp:"):
        if (name := spec.encoder.removeprefix("smp:")) not in native_encoders():
            yield f"spec.encoder: {unknown('encoder', name, native_encoders())}"
    elif encoder not in timm_table.encoders() or (dot and not re.fullmatch(r"\w+", tag)):
        known = list(timm_table.encoders())
        text = unknown("encoder", spec.encoder, known)
        yield f"spec.encoder: {text} A newer timm may have it: upgrade segmentation-zoo."
    if spec.decoder not in DECODERS:
        yield f"spec.decoder: {unknown('decoder', spec.decoder, DECODERS)}"
        return
    allowed = allowed_options(spec.decoder) | ENCODER_ARGS
    yield from wrong_arguments(spec.decoder_args, allowed, "spec.decoder_args")
    yield from wrong_arguments(spec.encoder_args, ENCODER_ARGS, "spec.encoder_args")
    if max(spec.window or (0, 0)) > MAX_SIDE:
        yield f"spec.img_size: {spec.img_size} is above {MAX_SIDE}"
    for key in ("size_multiple", "size_minimum", "in_chans", "input_side"):
        if (getattr(spec, key) or 0) > MAX_SIDE:
            yield f"spec.{key}: {getattr(spec, key)} is above {MAX_SIDE}"
