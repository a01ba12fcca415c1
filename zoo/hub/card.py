"""README.md of a model folder: a header for machines, a generated part, a person's own words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from zoo.common.errors import InputError, printable
from zoo.common.files import parse_yaml
from zoo.hub.licences import licence_fields
from zoo.records.metrics import METRICS
from zoo.registry.licences import non_commercial

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.models.spec import ModelSpec
    from zoo.records.record import Record

BEGIN = "<!-- Written by zoo; what stands between these two marks is replaced. -->"
END = "<!-- End of what zoo wrote. -->"
SPECIAL = "\\`*_{}[]<>()#+!|~"
HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Extras:
    """What a card holds beyond the model itself.

    `repo` is where the model lies on the Hub, `records` are results on other splits, `picture` the
    name of an image beside the card.
    """

    repo: str | None = None
    licence: str | None = None
    data_licence: str | None = None
    records: tuple[Record, ...] = ()
    picture: str | None = None


def escape(text: object) -> str:
    """`text` on one line with every character that Markdown or HTML would act on neutralised."""
    line = printable(" ".join(str(text).split()))
    return "".join(f"\\{c}" if c in SPECIAL else c for c in line).replace("&", "&amp;")


def card(
    spec: ModelSpec,
    training: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    extras: Extras | None = None,
) -> str:
    """The card of a model as Markdown with its YAML header."""
    extras = extras or Extras()
    sections = [
        _what(spec, extras),
        *_results(training, metrics, extras),
        _leaderboard(spec.name),
        _training(training),
        _use(extras),
        _limits(spec, training),
    ]
    body = "\n\n".join(section for section in sections if section)
    return _document(header(spec, metrics, extras), f"{BEGIN}\n\n{body}\n\n{END}\n")


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


def header(spec: ModelSpec, metrics: Mapping[str, Any] | None, extras: Extras) -> dict[str, Any]:
    """The metadata of a card, results as the Hub's `model-index`."""
    from zoo.registry import encoders as timm_table

    encoder, _, tag = spec.encoder.partition(".")
    row = timm_table.weights().get((encoder, tag))
    hub_id = row.hub_id if row and spec.encoder_weights == tag else None
    if spec.encoder_weights and spec.encoder_weights.startswith("hf-hub:"):
        hub_id = spec.encoder_weights.removeprefix("hf-hub:")
    known = {str(metrics["dataset"])} if metrics and "dataset" in metrics else set()
    known |= {record.dataset for record in extras.records}
    datasets = sorted(name for name in known if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name))
    fields = {
        "library_name": "segmentation-zoo",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", spec.decoder, encoder],
        "base_model": hub_id,
        "datasets": datasets,
        **licence_fields(extras.licence),
        "metrics": ["mean_iou"] if metrics or extras.records else [],
        **_index(spec, metrics, extras),
    }
    return {key: value for key, value in fields.items() if value}


def _index(spec: ModelSpec, metrics: Mapping[str, Any] | None, extras: Extras) -> dict[str, Any]:
    from huggingface_hub import ModelCardData

    entries = [
        entry
        for data, split, protocol, found in _measured(metrics, extras)
        for entry in _entries(data, split, protocol, found)
    ]
    if not entries:
        return {}
    written = ModelCardData(model_name=spec.name, eval_results=entries).to_dict()
    return {"model-index": written["model-index"]}


def _measured(
    metrics: Mapping[str, Any] | None, extras: Extras
) -> Iterator[tuple[str, str, int, Mapping[str, Any]]]:
    """Data set, split, protocol and metrics of everything that was measured."""
    from zoo.records.record import PROTOCOL

    for record in extras.records:
        yield record.dataset, record.split, record.protocol, record.metrics.model_dump()
    if metrics and "miou" in metrics:
        yield str(metrics.get("dataset")), str(metrics.get("split")), PROTOCOL, metrics


def _entries(data: str, split: str, protocol: int, found: Mapping[str, Any]) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    values = []
    for metric in METRICS:
        value = found.get(metric.key)
        named = value if isinstance(value, Mapping) else {"": value}
        if metric.hub is not None:
            values += [(metric.hub, f"{metric.title} {n}".strip(), v) for n, v in named.items()]
    for kind, name, value in values:
        if value is not None:
            yield EvalResult(
                task_type="image-segmentation",
                task_name="semantic segmentation",
                dataset_type=re.sub(r"[^\w.-]+", "-", data),
                dataset_name=data,
                dataset_split=split,
                metric_type=kind,
                metric_name=name,
                metric_value=round(float(value), 6),
                metric_args={"protocol": protocol},
            )


def _what(spec: ModelSpec, extras: Extras) -> str:
    rows = [
        ("decoder", spec.decoder),
        ("encoder", spec.encoder),
        ("encoder weights", spec.encoder_weights or "random"),
        ("encoder licence", spec.licence or "not stated"),
        ("data licence", extras.data_licence or "not stated"),
        ("classes", f"{len(spec.classes)}: {', '.join(spec.classes)}"),
        ("ignored id", spec.ignore_index),
        ("input", f"{spec.in_chans} channels, pixels / 255, mean {spec.mean}, std {spec.std}"),
    ]
    if steps := spec.input_steps():
        rows.append(("input size", f"{steps}; plain SMP leaves this to you"))
    if spec.img_size is not None:
        rows.append(("windows", f"{spec.img_size} x {spec.img_size} pixels"))
    text = f"# {escape(spec.name)}\n\n{_table(rows)}"
    return f"{text}\n\n![What the model sees]({extras.picture})" if extras.picture else text


def _results(
    training: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None, extras: Extras
) -> Iterator[str]:
    measured = list(_measured(metrics, extras))
    for data, split, protocol, found in measured:
        chosen = split == (training or {}).get("chosen_on", "val") and found is metrics
        note = " This split chose the best epoch, so the score is too good." if chosen else ""
        per_class = found.get("iou_per_class") or {}
        lines = [f"| {escape(name)} | {_percent(value)} |" for name, value in per_class.items()]
        yield "\n".join(
            [
                f"## Results on {escape(data)}, {escape(split)}",
                "",
                f"mIoU {_percent(found['miou'])}, one confusion matrix over all pixels at the "
                f"images' own size (protocol {protocol}).{note}",
                "",
                "| class | IoU |",
                "|---|---|",
                *lines,
            ]
        )


def _leaderboard(name: str) -> str:
    """What the leaderboard that ships says of the architecture, not of these weights."""
    from zoo.leaderboard.lookup import measured_rows

    lines = [f"- {escape(text)}" for _, text in measured_rows(name)]
    if not lines:
        return ""
    head = "## On the leaderboard\n\nMeasured of this architecture, not of these weights:\n\n"
    return head + "\n".join(lines)


def _training(training: Mapping[str, Any] | None) -> str:
    if not training:
        return ""
    keys = ("dataset", "recipe", "recipe_hash", "seed", "steps", "train_seconds", "precision")
    rows = [(key, training[key]) for key in keys if key in training]
    overrides = training.get("overrides") or {}
    rows += [(f"override {key}", value) for key, value in sorted(overrides.items())]
    return f"## Training\n\n{_table(rows)}"


def _use(extras: Extras) -> str:
    place = f"hf-hub:{extras.repo}" if extras.repo else "path/to/this/folder"
    return (
        f'## Use\n\n```python\nimport zoo\n\nmodel = zoo.create("{place}")\n'
        'zoo.predict(model, "image.png", out="predictions")\n```'
    )


def _limits(spec: ModelSpec, training: Mapping[str, Any] | None) -> str:
    lines = [f"It tells {len(spec.classes)} classes apart and gives each pixel one of them."]
    if training and training.get("class_scores") != "random":
        data = escape(training.get("dataset", "its data"))
        lines.append(f"Images unlike those of {data} were not measured.")
    else:
        lines.append("It was not trained: the scores of its classes are random.")
    if non_commercial(spec.licence):
        lines.append(f"The encoder's terms ({escape(spec.licence)}) forbid commercial use.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(rows: list[tuple[str, Any]]) -> str:
    lines = [f"| {escape(key)} | {escape(value)} |" for key, value in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
