"""The loss of a recipe: named losses, each times its factor, as sums that add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from zoo.common.errors import InputError, join_problems, unknown
from zoo.models.outputs import MaskOutputs, Outputs, pixel_logits
from zoo.registry.recipe import LossOptions
from zoo.training.losses.dense import Wanted
from zoo.training.losses.finish import FINISH
from zoo.training.losses.queries import (
    QUERY_LOSSES,
    Matching,
    query_sums,
    query_target_sums,
    solver,
)
from zoo.training.losses.strips import Sums
from zoo.training.losses.targets import IGNORE, pixel_weights
from zoo.training.losses.terms import FROM_TARGET, output_sums, target_sums

ACTIVATIONS = ("softmax", "sigmoid")


class Objective(nn.Module):
    """The sum of named losses, each times its factor: `{"ce": 1.0, "dice": 1.0}`.

    docs/losses.md has the formulas. `options` are the settings of the single losses,
    `class_weights` one factor a class for ce, focal, ohem and boundary. `activation` is "softmax",
    where one class holds at a pixel, or "sigmoid", where every class is judged by itself. Raises
    InputError for a name that is no loss, or for none at all.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        factors: Mapping[Any, float],
        options: LossOptions | None = None,
        class_weights: torch.Tensor | None = None,
        activation: str = "softmax",
    ):
        super().__init__()
        _check_names(factors, activation)
        self.factors: dict[str, float] = dict(factors)
        self._of_pixels = frozenset(self.factors).difference(QUERY_LOSSES)
        self._of_queries = frozenset(self.factors) - self._of_pixels
        if self._of_queries:
            solver()  # a package that is missing is said before anything is trained
        self.options = LossOptions() if options is None else options
        self.sigmoid = activation == "sigmoid"
        self.register_buffer("class_weights", class_weights)

    def forward(
        self, output: torch.Tensor | Outputs | MaskOutputs, target: torch.Tensor
    ) -> torch.Tensor:
        """Scalar float32 loss of one batch, of what `sums` takes."""
        return self.finish(self.sums(output, target))

    def sums(self, output: torch.Tensor | Outputs | MaskOutputs, target: torch.Tensor) -> Sums:
        """Named numerators and denominators, which add up over images and processes.

        `output`: logits, float B x K x H x W, or a model's `Outputs` or `MaskOutputs`, whose last
        prediction's `pixel_logits` the losses of pixels judge. `target`: integer
        B x H x W, ids in [0, K); with sigmoids also B x K x H x W of 0 and 1; 255 is ignored in
        both. Raises InputError where they do not fit each other or the losses.
        """
        if isinstance(output, MaskOutputs):
            return self._sums_of_masks(output, target)
        if self._of_queries:
            raise InputError(
                f"{', '.join(sorted(self._of_queries))} judge mask queries, which this model does "
                "not have. Take a model of the decoder eomt or another loss."
            )
        if isinstance(output, torch.Tensor):
            height, width = output.shape[-2:]
            output = Outputs(output, size=(height, width), crop=(height, width))
        self._check_shapes(output, target)
        return self._sums_of_pixels(output, target)

    def _sums_of_pixels(self, output: Outputs, target: torch.Tensor) -> Sums:
        wanted = self._wanted()
        with torch.autocast(target.device.type, enabled=False):
            weights = pixel_weights(target, wanted.weights, self.sigmoid)
            sums = output_sums(output, target, weights, wanted)
            sums |= target_sums(target, weights, wanted)
            for index, side in enumerate(output.auxiliary):
                smaller = output._replace(logits=side.logits)
                own = output_sums(smaller, target, weights, wanted)
                sums |= {_side_name(index, name): value for name, value in own.items()}
                images = sums[next(iter(sums))].new_tensor(len(target))
                sums[_side_name(index, "images")] = images
                sums[_side_name(index, "factors")] = images * side.factor
        return sums

    def _sums_of_masks(self, output: MaskOutputs, target: torch.Tensor) -> Sums:
        classes = output.predictions[-1].classes
        no_logits = classes.new_empty(len(classes), classes.shape[-1] - 1, 0, 0)
        self._check_shapes(Outputs(no_logits, output.size, output.crop), target)
        sums: Sums = {}
        if self._of_queries:
            matching = Matching(self.factors, self.options.no_object_weight, self.class_weights)
            with torch.autocast(target.device.type, enabled=False):
                sums = query_sums(output, target, matching)
                sums |= query_target_sums(target, self.class_weights)
        if not self._of_pixels:
            return sums
        plain = Outputs(pixel_logits(output), output.crop, output.crop)
        return sums | self._sums_of_pixels(plain, target)

    def finish(self, sums: Sums) -> torch.Tensor:
        """The scalar float32 loss that totals of `sums` amount to.

        It is 0, with gradients of 0, where nothing was judged. Exact gradients of a batch in parts:
        for each part the gradient of `finish(totals - own.detach() + own)`, name by name, added up.
        """
        return self.value(sums).float()

    def value(self, sums: Sums) -> torch.Tensor:
        """`finish` in the number type of the sums."""
        value = self._value_of_one(sums)
        for index in range(sum(name.endswith("/factors") for name in sums)):
            prefix = _side_name(index, "")
            own = {k.removeprefix(prefix): v for k, v in sums.items() if k.startswith(prefix)}
            value = value + own["factors"] / own["images"] * self._value_of_one(sums | own)
        return value

    def normalisers(self, target: torch.Tensor) -> Sums | None:
        """Those sums that follow from the target alone, or None where they do not suffice.

        Where they do, the gradient of `finish(own | totals of the normalisers)` of each part of a
        batch adds up to that of the whole; so no first pass over the parts is needed.
        """
        if self._of_pixels - FROM_TARGET:
            return None
        weights = pixel_weights(target, self.class_weights, self.sigmoid)
        sums = target_sums(target, weights, self._wanted())
        return sums | (query_target_sums(target, self.class_weights) if self._of_queries else {})

    def _value_of_one(self, sums: Sums) -> torch.Tensor:
        parts = [f * FINISH[name](sums, name, self.options) for name, f in self.factors.items()]
        return torch.stack(parts).sum()

    def _wanted(self) -> Wanted:
        return Wanted(self._of_pixels, self.options, self.sigmoid, self.class_weights)

    def _check_shapes(self, output: Outputs, target: torch.Tensor) -> None:
        classes, problems = output.logits.shape[1], []
        index_mask = (len(output.logits), *output.crop)
        allowed = [index_mask, (len(output.logits), classes, *output.crop)]
        if tuple(target.shape) not in allowed[: 1 + self.sigmoid]:
            shapes = " or ".join(str(shape) for shape in allowed[: 1 + self.sigmoid])
            problems.append(f"the target has shape {tuple(target.shape)}, it should be {shapes}")
        if classes == 1 and not self.sigmoid:
            problems.append(
                "one class is certain under a softmax; use activation: sigmoid or two classes"
            )
        if classes > IGNORE:
            problems.append(f"there are {classes} classes, at most {IGNORE} have ids of their own")
        if self.class_weights is not None and len(self.class_weights) != classes:
            problems.append(
                f"there are {len(self.class_weights)} class weights for {classes} classes"
            )
        if problems:
            raise InputError(join_problems("The loss cannot be computed:", problems))


def _check_names(factors: Iterable[str], activation: str) -> None:
    problems = [unknown("loss", name, FINISH) for name in factors if name not in FINISH]
    if not list(factors):
        problems.append(f"there is no loss; available: {', '.join(FINISH)}")
    if activation == "sigmoid" and set(factors).intersection(QUERY_LOSSES):
        problems.append(
            "query losses judge every mask by itself already: leave activation at softmax"
        )
    if activation not in ACTIVATIONS:
        problems.append(unknown("activation", activation, ACTIVATIONS))
    if problems:
        raise InputError(join_problems("The loss cannot be used:", problems))


def _side_name(index: int, name: str) -> str:
    """The name of a sum that belongs to the auxiliary output at `index`."""
    return f"auxiliary {index}/{name}"
