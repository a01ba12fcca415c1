"""README.md of a model folder: a header for machines, a generated part, a person's own words.

The generated part is the template `card.md`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zoo.common.console import info
from zoo.common.errors import InputError, printable
from zoo.common.files import parse_yaml
from zoo.common.html import render
from zoo.hub.config import EncoderOnHub
from zoo.models.spec import ModelSpec
from zoo.records.metrics import METRICS
from zoo.records.record import PROTOCOL, Record
from zoo.registry import encoders as timm_table
from zoo.registry.weights import OPEN, non_commercial
from zoo.remote.address import PREFIX, is_address

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN = "<!-- Written by zoo; what stands between these two marks is replaced. -->"
END = "<!-- End of what zoo wrote. -->"
SPECIAL = "\\`*_{}[]<>()#+!|~"
HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.MULTILINE | re.DOTALL)
TRAINING_KEYS = ("dataset", "recipe", "recipe_hash", "seed", "steps", "train_seconds", "precision")

ON_THE_HUB = OPEN | {
    "afl-3.0", "agpl-3.0", "bsd", "bsd-2-clause", "cc", "cc-by-2.0", "cc-by-nc-2.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "gemma", "gpl", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "mpl-2.0",
    "openrail", "unlicense",
}  # fmt: skip
"""Licenses that the Hub knows by name; a card calls every other one `other`, with its name."""


@dataclass(frozen=True)
class Extras:
    """What a card holds beyond the model itself.

    `repo` is where the model lies on the Hub, `records` are results on other splits, `picture` the
    name of an image beside the card, `encoder_on_hub` where an encoder lies that is left out.
    """

    repo: str | None = None
    license: str | None = None
    data_license: str | None = None
    records: tuple[Record, ...] = ()
    picture: str | None = None
    encoder_on_hub: EncoderOnHub | None = None


@dataclass(frozen=True)
class _Result:
    """Metrics of one split; `chose_epoch` where the best epoch was chosen on it."""

    data: str
    split: str
    protocol: int
    values: Mapping[str, Any]
    precision: str | None
    chose_epoch: bool = False


def card(
    spec: ModelSpec,
    training: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    extras: Extras | None = None,
) -> str:
    """The card of a model as Markdown with its YAML header."""
    from zoo.leaderboard.lookup import measured_rows

    extras, training = extras or Extras(), training or {}
    measured = [
        _Result(r.dataset, r.split, r.protocol, r.metrics.model_dump(), r.precision)
        for r in extras.records
    ]
    if metrics and "miou" in metrics:
        split = str(metrics.get("split"))
        chose_epoch = split == training.get("chosen_on", "val")
        precision, data = metrics.get("precision"), str(metrics.get("dataset"))
        measured.append(_Result(data, split, PROTOCOL, metrics, precision, chose_epoch))
    overrides = training.get("overrides") or {}
    body = render(
        "hub/card.md",
        md=escape,
        percent=lambda value: "-" if value is None else f"{100 * value:.1f} %",
        spec=spec,
        extras=extras,
        measured=measured,
        leaderboard=[text for _, text in measured_rows(spec.name)],
        training=training,
        training_rows=[
            *((key, training[key]) for key in TRAINING_KEYS if key in training),
            *((f"override {key}", value) for key, value in sorted(overrides.items())),
        ],
        place=f"hf-hub:{extras.repo}" if extras.repo else "path/to/this/folder",
        non_commercial=non_commercial(spec.license),
    )
    fields = _header(spec, metrics, extras, measured)
    return _document(fields, f"{BEGIN}\n\n{body.strip()}\n\n{END}\n")


def escape(text: object) -> str:
    """`text` on one line with every character that Markdown or HTML would act on neutralised."""
    line = printable(" ".join(str(text).split()))
    return "".join(f"\\{c}" if c in SPECIAL else c for c in line).replace("&", "&amp;")


def _header(
    spec: ModelSpec,
    metrics: Mapping[str, Any] | None,
    extras: Extras,
    measured: list[_Result],
) -> dict[str, Any]:
    """The metadata of a card, results as the Hub's `model-index`."""
    from huggingface_hub import ModelCardData

    encoder = spec.encoder.partition(".")[0]
    known = {str(metrics["dataset"])} if metrics and "dataset" in metrics else set()
    known |= {record.dataset for record in extras.records}
    datasets = sorted(name for name in known if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name))
    fields = {
        "library_name": "segmentation-zoo",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", spec.decoder, encoder],
        "base_model": encoder_repo(spec),
        "datasets": datasets,
        **license_fields(extras.license),
        "metrics": ["mean_iou"] if metrics or extras.records else [],
    }
    if entries := [entry for result in measured for entry in _eval_results(result)]:
        written = ModelCardData(model_name=spec.name, eval_results=entries).to_dict()
        fields["model-index"] = written["model-index"]
    return {key: value for key, value in fields.items() if value}


def encoder_repo(spec: ModelSpec) -> str | None:
    """The repository on the Hub that the encoder's pretrained weights came from, if any."""
    source = spec.encoder_weights or ""
    if is_address(source):
        return source.removeprefix(PREFIX)
    encoder, _, tag = spec.encoder.partition(".")
    row = timm_table.weights().get((encoder, tag))
    return row.hub_id if row and source == tag else None


def _eval_results(result: _Result) -> Iterator[EvalResult]:
    """The metrics of a split that the table of metrics shows on the Hub, in the Hub's own form."""
    from huggingface_hub import EvalResult

    for metric in METRICS:
        found = result.values.get(metric.key)
        for name, value in (found if isinstance(found, Mapping) else {"": found}).items():
            if metric.hub is None or value is None:
                continue
            yield EvalResult(
                task_type="image-segmentation",
                task_name="semantic segmentation",
                dataset_type=re.sub(r"[^\w.-]+", "-", result.data),
                dataset_name=result.data,
                dataset_split=result.split,
                metric_type=metric.hub,
                metric_name=f"{metric.title} {name}".strip(),
                metric_value=round(float(value), 6),
                metric_args={"protocol": result.protocol, "precision": result.precision}
                if result.precision
                else {"protocol": result.protocol},
            )


def merged(ours: str, existing: str | None) -> str:
    """`ours` with the text and the header fields that a person wrote into `existing`.

    A single value that stands there is kept, lists are united, results are ours. Raises InputError
    where the header there cannot be read.
    """
    if existing is None:
        return ours
    fields, body = _split(ours)
    kept, text = _split(existing)
    joined = dict(kept)
    for key, value in fields.items():
        present = kept.get(key)
        if key == "model-index" or present is None:
            joined[key] = value
        elif isinstance(value, list) and isinstance(present, list):
            joined[key] = present + [entry for entry in value if entry not in present]
    start, stop = text.find(BEGIN), text.rfind(END)
    if 0 <= start < stop:
        text = f"{text[:start]}{body.strip()}{text[stop + len(END) :]}"
    elif text.strip():
        text = f"{text.strip()}\n\n{body.strip()}\n"
    else:
        text = body
    return _document(joined, text)


def read_card(path: Path, place: str) -> str:
    """The text of README.md. Raises InputError, naming `place`, where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"README.md of {place} is not UTF-8 text, so the words in it cannot be kept. Save it "
            "as UTF-8 or delete it."
        ) from error


def fields_of(text: str) -> dict[str, Any]:
    """The header of a card. Raises InputError where it cannot be read."""
    return _split(text)[0]


def with_fields(text: str, changes: Mapping[str, Any]) -> str:
    """The card `text` with these fields in its header; None takes a field away."""
    fields, body = _split(text)
    joined = {**fields, **changes}
    return _document({key: value for key, value in joined.items() if value is not None}, body)


def _document(fields: Mapping[str, Any], body: str) -> str:
    dumped = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{dumped}---\n\n{body.strip()}\n"


def _split(text: str) -> tuple[dict[str, Any], str]:
    found = HEADER.match(text)
    if found is None:
        return {}, text
    fields = parse_yaml(found[1], "The header of README.md") or {}
    if not isinstance(fields, dict):
        raise InputError("The header of README.md has to be a mapping of keys to values.")
    return fields, text[found.end() :]


def model_license(given: str | None, encoder: str | None) -> str | None:
    """The license of a model: as given, or as the encoder's own terms require, else None.

    Raises InputError where the given license allows what the encoder's terms forbid.
    """
    if given is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,60}", given):
        raise InputError(
            f"{given!r} is not a license identifier; write it as the Hub does, such as mit, "
            "apache-2.0 or cc-by-nc-4.0."
        )
    if encoder is None or encoder in OPEN:
        return given
    if non_commercial(encoder) and given is not None and not non_commercial(given):
        raise InputError(
            f"The license {given} allows commercial use, which the terms of the pretrained encoder "
            f"({encoder}) forbid. Leave the license out or give {encoder}."
        )
    kind = "non-commercial" if non_commercial(encoder) else "its own"
    if encoder == "unknown":
        info("The license of the pretrained encoder is not known; look it up before you publish.")
        return given
    info(f"The pretrained encoder comes under {kind} terms ({encoder}); the card says so.")
    return given or encoder


def license_fields(license: str | None) -> dict[str, str]:
    """The license as fields of a card's header."""
    if license is None:
        return {}
    if license in ON_THE_HUB:
        return {"license": license}
    return {"license": "other", "license_name": license}
