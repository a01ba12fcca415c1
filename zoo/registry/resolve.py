"""From a model's name to everything that is known about it, each value with its origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zoo.common.errors import InputError, join_problems, renamed, unknown
from zoo.common.files import natural_key
from zoo.registry import encoders as timm_table
from zoo.registry import weights as trained
from zoo.registry.decoders import Decoder, check_options, defaults, output_stride
from zoo.registry.encoder_args import (
    EncoderArguments,
    accepted,
    built_with,
    check_encoder_args,
    encoder_problems,
)
from zoo.registry.encoders import ENCODER_ARGS, Encoder, known_problem, matches
from zoo.registry.load import (
    OURS,
    CuratedModel,
    Name,
    Registry,
    Rule,
    TrainedWeights,
    current_name,
    load_registry,
    name_problems,
    registry_file,
    split_name,
)
from zoo.registry.weights import OPEN, fits_license, non_commercial

TABLE = "timm table"
COVERAGE = "coverage table"
DEFAULTS = "the decoder's default"
GIVEN = "given"

FACTS = ("kind", "reductions", "channels", "dilates", "resizes", "params_m")
"""Columns of the encoder table that `zoo show` prints."""


class OutputStride(NamedTuple):
    """The output `stride` in pixels that a decoder asks for, and what brings the encoder to it.

    `timm` dilates the net itself; `zoo` removes strides of its convolutions and poolings and
    dilates what follows; `resampled` leaves the net as it is and resamples its levels; `nothing` is
    needed where no level is coarser.
    """

    stride: int
    by: Literal["timm", "zoo", "resampled", "nothing"]

    @property
    def encoder_args(self) -> dict[str, Any]:
        """What timm's builder is told."""
        return {"output_stride": self.stride} if self.by == "timm" else {}

    @property
    def dilated(self) -> Literal[8, 16] | None:
        """The output stride that zoo dilates the built net to."""
        if self.by != "zoo":
            return None
        return 8 if self.stride == 8 else 16

    def __str__(self) -> str:
        return {
            "timm": f"timm dilates the encoder to output stride {self.stride}",
            "zoo": f"zoo dilates the encoder's convolutions and poolings to output stride "
            f"{self.stride}",
            "resampled": f"none: the map of stride {self.stride} is resampled from the encoder's "
            "levels",
            "nothing": f"none needed: no level is coarser than stride {self.stride}",
        }[self.by]


def encoder_output_stride(
    decoder: str, options: Mapping[str, Any], encoder: Encoder
) -> OutputStride | None:
    """How `decoder` with these options gets its output stride; None where it asks for none."""
    stride = output_stride(decoder, options)
    if stride is None:
        return None
    if max(int(level) for level in encoder.reductions.split("/")) <= stride:
        return OutputStride(stride, "nothing")
    if str(stride) in encoder.dilates.split("/"):
        return OutputStride(stride, "timm")
    by_zoo = str(stride) in encoder.dilatable.split("/")
    return OutputStride(stride, "zoo" if by_zoo else "resampled")


@dataclass
class Resolved:
    """Everything the registry says about a model.

    `args` go to the decoder's SMP class, `encoder_args` to timm. `weights_file` is a local file,
    `hub_id` the repository of the encoder's pretrained weights; both None means there are none.
    `mean` and `std` apply to pixels in [0, 1]. `license` is that of the encoder's weights, or of
    the trained weights that the name stands for (`default` is their key in `trained`); None where
    it is not known. `adapted` says why the pair is joined by zoo's adapter and not by SMP's own
    class, None where it is. `dilation` says how the encoder comes to the output stride that the
    decoder asks for. `reason` says why a pair is not supported. `row` is the encoder's row
    of the table, changed to what `encoder_args` make of it; None for an `smp:` encoder. `origins`
    maps each value, `args.KEY` included, to where it came from.
    """

    name: str
    decoder: str
    encoder: str
    tag: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    encoder_args: dict[str, Any] = field(default_factory=dict)
    weights_file: Path | None = None
    hub_id: str | None = None
    mean: list[float] = field(default_factory=list)
    std: list[float] = field(default_factory=list)
    license: str | None = None
    recipe: str = ""
    trained: dict[str, TrainedWeights] = field(default_factory=dict)
    default: str | None = None
    adapted: str | None = None
    dilation: OutputStride | None = None
    supported: bool = True
    reason: str | None = None
    smp_loadable: bool = True
    row: Encoder | None = None
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def timm_name(self) -> str:
        """The encoder with its tag, as timm writes it."""
        return f"{self.encoder}.{self.tag}" if self.tag else self.encoder

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise InputError where the pair is not supported or does not take `options`.

        `encoder_args` among them are left out: `resolve` has checked those.
        """
        options = {name: value for name, value in options.items() if name != "encoder_args"}
        own = EncoderArguments.model_fields.keys() & options.keys()
        if moved := sorted(own if not self.smp_loadable else own & {"patch_size"}):
            raise InputError(
                f"{', '.join(moved)}: for arguments of the encoder write "
                f"encoder_args={ {name: options[name] for name in moved} }."
            )
        if not self.supported:
            raise InputError(
                f"{self.name} is not supported: {self.reason}. "
                f"`zoo list --decoder {self.decoder}` lists the encoders that fit."
            )
        check_options(
            self.decoder,
            self.args | dict(options),
            adapted=self.adapted is not None,
            beside=ENCODER_ARGS if self.smp_loadable else (),
        )

    def adapter_dilation(self, options: Mapping[str, Any]) -> OutputStride | None:
        """How the adapter brings the encoder to what the decoder with these options asks for.

        None where it asks for no output stride, and where SMP's own class sees to it.
        """
        if self.adapted is None or self.row is None:
            return None
        return encoder_output_stride(self.decoder, self.args | dict(options), self.row)

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set a value and remember where it came from; a mapping is merged key by key."""
        if isinstance(value, dict):
            setattr(self, key, getattr(self, key) | value)
            self.origins.update({f"{key}.{part}": origin for part in value})
        else:
            setattr(self, key, value)
            self.origins[key] = origin


def resolve(
    name: str, overlay: Path | None = None, encoder_args: Mapping[str, Any] | None = None
) -> Resolved:
    """Everything known about a model, whether or not the pair is supported.

    Later wins: the timm table, the decoder's row, the first matching encoder rule, the decoder's
    recipe, the curated row, the overlay's first matching rule, the given `encoder_args` for timm's
    builder. A rule with a weights file does not apply to a name with a tag, which asks for timm's
    weights. Raises InputError for an unknown name, and for arguments that the encoder does not
    take.
    """
    registry = load_registry(overlay)
    name = current_name(name, registry)
    parts = _parse(name, registry)
    model = Resolved(name=name, decoder=parts.decoder, encoder=parts.encoder, tag=parts.tag)
    encoder = model.row = timm_table.encoders().get(parts.encoder)
    given: dict[str, Any] = {}
    if encoder_args is not None:
        if encoder is None:
            raise InputError(
                f"{name} has an encoder of SMP's own, which takes no encoder_args. Leave them out."
            )
        given = check_encoder_args(encoder, encoder_args)
        encoder = model.row = built_with(encoder, given)
    decoder = registry.decoders[model.decoder]
    place = registry.origin(f"decoders.{model.decoder}")

    # what the table of timm says about the encoder and its weights
    if encoder is not None:
        tag = model.tag or encoder.tags.partition("/")[0] or None
        source = timm_table.weights()[model.encoder, tag] if tag else encoder
        model.put("tag", tag, TABLE)
        model.put("hub_id", getattr(source, "hub_id", None) or None, TABLE)
        model.put("mean", timm_table.numbers(source.mean), TABLE)
        model.put("std", timm_table.numbers(source.std), TABLE)
        model.put("license", source.license or None, TABLE)
        model.origins |= dict.fromkeys((*FACTS, "image_size"), TABLE)

    # the decoder's row, and the first of its cases that matches the encoder
    model.put("args", decoder.args, place)
    model.put("encoder_args", decoder.encoder_args, place)
    for index, case in enumerate(decoder.cases):
        if encoder is not None and matches(case.where, encoder):
            model.put("args", case.args, f"{place}.cases[{index}]")
            model.put("encoder_args", case.encoder_args, f"{place}.cases[{index}]")
            break

    # the encoder rules, over which the decoder's own recipe takes precedence
    _put_first_match(model, registry.rules, OURS, registry_file().parent)
    if decoder.recipe is not None:
        model.put("recipe", decoder.recipe, place)

    # the curated row; with default weights the encoder's own play no part
    if (row := registry.models.get(model.name)) is not None:
        origin = registry.origin(f"models.{model.name}")
        model.put("tag", model.tag, origin)
        model.put("args", row.args, origin)
        model.put("encoder_args", row.encoder_args, origin)
        model.put("trained", row.weights, origin)
        if row.default is not None:
            for key, value in (("default", row.default), ("tag", None), ("hub_id", None)):
                model.put(key, value, origin)
        _put_given(model, row, origin)

    if registry.overlay is not None:
        file = registry.overlay
        _put_first_match(model, registry.overlay_rules, f"overlay {file}", file.parent)
    model.put("encoder_args", given, GIVEN)
    if model.row is not None:
        row_of_table = timm_table.encoders()[parts.encoder]
        model.row = built_with(row_of_table, model.encoder_args)
    _put_support(model, decoder, place)
    model.origins |= dict.fromkeys(("name", "decoder", "encoder"), "name")
    return model


def describe(name: str, overlay: Path | None = None) -> list[tuple[str, Any, str]]:
    """(key, value, origin) of everything that the registry says of a model, in a fixed order.

    Raises InputError for an unknown name.
    """
    model = resolve(name, overlay)
    registry = load_registry(overlay)
    values: dict[str, Any] = {"name": model.name, "decoder": model.decoder}
    values |= {"encoder": model.encoder, "tag": model.tag}
    for section in ("args", "encoder_args"):
        values |= {f"{section}.{key}": value for key, value in getattr(model, section).items()}
    for key, value in defaults(model.decoder, adapted=model.adapted is not None).items():
        if key not in model.args:
            values[f"options.{key}"] = value
            model.origins[f"options.{key}"] = DEFAULTS
    for key in ("weights_file", "hub_id", "mean", "std", "license", "recipe"):
        values[key] = getattr(model, key)
    values["evidence"] = registry.recipe(model.recipe).evidence
    origins = model.origins | {"evidence": registry.origin(f"recipes.{model.recipe}")}
    values["default"] = model.default
    if non_commercial(model.license):
        values["commercial_use"], origins["commercial_use"] = "forbidden", origins["license"]
    for key, value in trained.shown(model.trained):
        values[key] = value
        origins[key] = registry.origin(f"models.{model.name}")
    if model.row is not None:
        for key in FACTS:
            values[key] = getattr(model.row, key)
        values["encoder_args"] = accepted()[model.row.module]
        origins["encoder_args"] = TABLE
        values["image_size"] = model.row.sizes()
    values["encoder_path"] = f"adapter: {model.adapted}" if model.adapted else "SMP's own"
    values["dilation"] = model.dilation and str(model.dilation)
    values["supported"] = "yes" if model.supported else f"no: {model.reason}"
    values["smp_loadable"] = "yes" if model.smp_loadable else "no"
    return [(key, value, origins[key]) for key, value in values.items() if key in origins]


def adapted(name: str, decoder: Decoder, encoder: Encoder) -> str | None:
    """Why SMP cannot join this encoder and this decoder, or None where it can."""
    if decoder.needs is None:
        return f"{name} is a custom head of zoo"
    lacking = decoder.needs.lacking(encoder)
    return lacking and f"SMP's {name} needs {lacking} in {encoder.name}"


def list_models(
    pattern: str = "*",
    *,
    decoder: str | None = None,
    encoder: str | None = None,
    license: str | None = None,
    overlay: Path | None = None,
    licence: str | None = None,
) -> list[str]:
    """The supported names that match the pattern (* and ?), numbers in them sorted as numbers.

    `decoder` and `encoder` are patterns too. A pattern with a dot is matched against the names
    with tags. `license` is a pattern of the pretrained or trained weights' license, or `open`: see
    docs/registry.md. Raises InputError for a decoder or encoder that nothing matches, and for a
    license that none of the names' weights come under. `licence` is the old spelling of `license`.
    """
    license = renamed("licence", licence, "license", license)
    registry = load_registry(overlay)
    rows = timm_table.encoders()
    curated = [_parse(name, registry) for name in registry.models]
    known = {*rows, *(parts.encoder for parts in curated)}
    decoders = _chosen("decoder", decoder, registry.decoders)
    encoders = set(_chosen("encoder", encoder, known))
    names = []
    for key in decoders:
        for row in rows.values():
            if row.name not in encoders:
                continue
            spelled = [f"{key}-{row.name}"]
            if "." in pattern:
                spelled = [f"{key}-{row.name}.{tag}" for tag in row.tags.split("/") if tag]
            fitting = [name for name in spelled if fnmatchcase(name, pattern)]
            if (
                fitting
                and known_problem(row.module, key) is None
                and registry.decoders[key].refuses(row) is None
            ):
                names += fitting
    names += [
        name
        for name, parts in zip(registry.models, curated, strict=True)
        if parts.decoder in decoders and parts.encoder in encoders and fnmatchcase(name, pattern)
    ]
    chosen = sorted(set(names), key=natural_key)
    return chosen if license is None else under_license(license, chosen, overlay)


def under_license(license: str, names: list[str], overlay: Path | None) -> list[str]:
    """Those of `names` whose weights come under a license, which no decoder changes.

    Raises InputError, with the licenses that there are, where none does.
    """
    curated = load_registry(overlay).models
    keys = {name: name if name in curated else name.partition("-")[2] for name in names}
    one_each = {key: name for name, key in keys.items()}
    licenses = {key: resolve(name, overlay).license for key, name in one_each.items()}
    chosen = [name for name, key in keys.items() if fits_license(license, licenses[key])]
    if names and not chosen:
        counts = Counter(terms or "not known" for terms in licenses.values()).most_common()
        raise InputError(
            f"None of the {len(names)} models has weights licensed under {license!r}. "
            f"Their licenses: {', '.join(terms for terms, _ in counts)}. "
            f"Patterns with * and ? are taken, and `open`, which means {', '.join(sorted(OPEN))}."
        )
    return chosen


def _chosen(what: str, pattern: str | None, names: Iterable[str]) -> list[str]:
    found = [name for name in names if pattern is None or fnmatchcase(name, pattern)]
    if not found:
        raise InputError(unknown(what, str(pattern), names))
    return found


def _parse(name: str, registry: Registry) -> Name:
    """The parts of a name, checked; a curated model's row gives its encoder and tag."""
    if name in registry.models:
        encoder, _, tag = registry.models[name].encoder.partition(".")
        return Name(name.partition("-")[0], encoder, tag or None)
    if wrong := name_problems(name):
        raise InputError(join_problems(f"There is no model {name!r}:", wrong))
    return split_name(name)


def _put_first_match(model: Resolved, rules: list[Rule], source: str, folder: Path) -> None:
    if model.row is None:
        return
    asks_for_tag = split_name(model.name).tag is not None
    for index, rule in enumerate(rules):
        if (rule.weights and asks_for_tag) or not matches(rule.where, model.row):
            continue
        origin = f"{source}: encoders[{index}]"
        model.put("encoder_args", rule.args, origin)
        if rule.weights is not None:
            for key in ("tag", "hub_id", "license"):
                model.put(key, None, origin)
            model.put("weights_file", folder / rule.weights, origin)
        _put_given(model, rule, origin)
        return


def _put_support(model: Resolved, decoder: Decoder, place: str) -> None:
    """How the decoder meets the encoder, and whether that is known to fail."""
    origin, needs = COVERAGE, f"{place}.needs"
    if model.row is not None:
        model.adapted = adapted(model.decoder, decoder, model.row)
        model.reason = known_problem(model.row.module, model.decoder)
        if (lacking := decoder.refuses(model.row)) is not None:
            model.reason, origin = f"{model.decoder} needs {lacking}", f"{place}.takes"
        if (patch := model.encoder_args.get("patch_size")) is not None:
            for wrong in encoder_problems(model.row, {"patch_size": patch}):
                model.reason, origin = wrong, model.origins["encoder_args.patch_size"]
        if (way := encoder_output_stride(model.decoder, model.args, model.row)) is not None:
            model.put("dilation", way, TABLE)
    elif decoder.needs is None:
        model.reason, origin = f"{model.decoder} only takes timm encoders", needs
    model.supported = model.reason is None
    model.smp_loadable = model.supported and model.adapted is None
    model.origins |= {"supported": origin, "smp_loadable": needs, "encoder_path": needs}


def _put_given(model: Resolved, row: Rule | CuratedModel, origin: str) -> None:
    """The values that rules and curated rows share, where the row gives them."""
    for key in ("recipe", "mean", "std", "license"):
        if (value := getattr(row, key)) is not None:
            model.put(key, value, origin)
