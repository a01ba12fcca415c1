"""The loss of a recipe: named losses, each times its factor, as sums that add up over parts."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zoo.common.errors import InputError, join_problems, unknown
from zoo.models.outputs import MaskOutputs, Outputs, pixel_logits
from zoo.registry.losses import LOSSES
from zoo.registry.recipe import LossOptions
from zoo.training.losses.queries import Matching, query_sums, query_target_sums
from zoo.training.losses.targets import IGNORE, pixel_weights, plane_problems
from zoo.training.losses.terms import Batch, PixelLoss, Settings, Strip, Sums, in_strips

if TYPE_CHECKING:
    from zoo.runtime.processes import Ranks

ACTIVATIONS = ("softmax", "sigmoid")


class Objective(nn.Module):
    """The weighted sum of named losses: `{"ce": 1.0, "dice": 1.0}`.

    The names are those of `zoo.registry.losses`; docs/losses.md has the formulas. `options` are the
    settings of the single losses, `class_weights` one factor per class for ce, focal, ohem and
    boundary. `activation` is "softmax" if a pixel has one class, or "sigmoid" if every class is
    predicted by itself. Raises InputError for an unknown name, or for none at all.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        factors: Mapping[str, float],
        options: LossOptions | None = None,
        class_weights: Tensor | None = None,
        activation: str = "softmax",
    ):
        super().__init__()
        rows = [row for row in LOSSES.values() if row.name in factors]
        queries = [row.name for row in rows if row.reads == "queries"]
        problems = [unknown("loss", name, LOSSES) for name in factors if name not in LOSSES]
        if not factors:
            problems.append(f"there is no loss; available: {', '.join(LOSSES)}")
        if activation == "sigmoid" and queries:
            problems.append(
                "query losses already predict every mask by itself: leave activation at softmax"
            )
        if activation not in ACTIVATIONS:
            problems.append(unknown("activation", activation, ACTIVATIONS))
        if problems:
            raise InputError(join_problems("The loss cannot be used:", problems))
        computed = {
            row.name: import_module(f"zoo.training.losses.{row.file}").LOSSES[row.name]
            for row in rows
        }
        self.factors = dict(factors)
        self.options = LossOptions() if options is None else options
        self.sigmoid = activation == "sigmoid"
        self._queries = queries
        self._pixels: dict[str, PixelLoss] = {
            name: loss for name, loss in computed.items() if name not in queries
        }
        self._values = {
            name: loss.value if isinstance(loss, PixelLoss) else loss
            for name, loss in computed.items()
        }
        self.register_buffer("class_weights", class_weights)

    def forward(self, output: Tensor | Outputs | MaskOutputs, target: Tensor) -> Tensor:
        """Scalar float32 loss of one batch, of what `sums` takes."""
        return self.finish(self.sums(output, target))

    def sums(self, output: Tensor | Outputs | MaskOutputs, target: Tensor) -> Sums:
        """Named numerators and denominators, which add up over images and processes.

        `output`: logits, float B x K x H x W, or a model's `Outputs` or `MaskOutputs`, of which the
        losses on pixels read the last prediction's `pixel_logits`. `target`: integer
        B x H x W, ids in [0, K); with sigmoids also B x K x H x W of 0 and 1; 255 is ignored in
        both. For one class, K = 1, ids are 0 (background) and 1 (the class). Raises InputError if
        they do not fit each other or the losses; ids are not looked at.
        """
        if isinstance(output, MaskOutputs):
            classes = output.predictions[-1].classes
            no_logits = classes.new_empty(len(classes), classes.shape[-1] - 1, 0, 0)
            self._check_shapes(Outputs(no_logits, output.size, output.crop), target)
            sums: Sums = {}
            if self._queries:
                matching = Matching(self.factors, self.options.no_object_weight, self.class_weights)
                with torch.autocast(target.device.type, enabled=False):
                    sums = query_sums(output, target, matching)
                    sums |= query_target_sums(target, self.class_weights)
            if self._pixels:
                pixels = Outputs(pixel_logits(output), output.crop, output.crop)
                sums |= self._sums_of_pixels(pixels, target)
            return sums
        if self._queries:
            raise InputError(
                f"{', '.join(sorted(self._queries))} need mask queries, which this model does not "
                "have. Take a model of the decoder eomt or pmt, or another loss."
            )
        if isinstance(output, Tensor):
            height, width = output.shape[-2:]
            output = Outputs(output, size=(height, width), crop=(height, width))
        self._check_shapes(output, target)
        if output.logits.shape[1] == 1 and target.ndim == 3:
            target = target.unsqueeze(1)  # ids of background and class are the class's own plane
        return self._sums_of_pixels(output, target)

    def _sums_of_pixels(self, output: Outputs, target: Tensor) -> Sums:
        settings, losses = self._settings(), list(self._pixels.values())

        def maps(logits: Tensor, rows: Tensor) -> Sums:
            strip = Strip(logits, rows, settings)
            return {key: value for loss in losses for key, value in loss.maps(strip).items()}

        def sums_of(outputs: Outputs) -> Sums:
            found = in_strips(maps, outputs, target)
            batch = Batch(outputs, target, weights, found, settings)
            return {key: value for loss in losses for key, value in loss.sums(batch).items()}

        with torch.autocast(target.device.type, enabled=False):
            weights = pixel_weights(target, self.class_weights, self.sigmoid)
            sums = sums_of(output) | self._target_sums(target, weights)
            for index, auxiliary in enumerate(output.auxiliary):
                own = sums_of(output._replace(logits=auxiliary.logits))
                sums |= {_auxiliary_name(index, name): value for name, value in own.items()}
                images = sums[next(iter(sums))].new_tensor(len(target))
                sums[_auxiliary_name(index, "images")] = images
                sums[_auxiliary_name(index, "factors")] = images * auxiliary.factor
        return sums

    def _target_sums(self, target: Tensor, weights: Tensor) -> Sums:
        sums: Sums = {}
        for loss in self._pixels.values():
            if loss.target_sums is not None:
                sums |= loss.target_sums(target, weights, self._settings())
        return sums

    def finish(self, sums: Sums) -> Tensor:
        """The scalar float32 loss of the totals of `sums`.

        It is 0, with gradients of 0, if no pixel was valid. Exact gradients of a batch in parts:
        for each part the gradient of `finish(totals - own.detach() + own)`, name by name, added up.
        """
        return self.value(sums).float()

    def value(self, sums: Sums) -> Tensor:
        """`finish` in the number type of the sums."""
        value = self._own_value(sums)
        for index in range(sum(name.endswith("/factors") for name in sums)):
            prefix = _auxiliary_name(index, "")
            own = {k.removeprefix(prefix): v for k, v in sums.items() if k.startswith(prefix)}
            value = value + own["factors"] / own["images"] * self._own_value(sums | own)
        return value

    def normalisers(self, target: Tensor) -> Sums | None:
        """The sums that need only the target; None if the gradient of a part needs more totals.

        Otherwise the gradients of `finish(own | totals of the normalisers)` of the parts of a batch
        add up to that of the whole, so no first pass over the parts is needed.
        """
        if any(loss.target_sums is None for loss in self._pixels.values()):
            return None
        weights = pixel_weights(target, self.class_weights, self.sigmoid)
        sums = self._target_sums(target, weights)
        return sums | (query_target_sums(target, self.class_weights) if self._queries else {})

    def _own_value(self, sums: Sums) -> Tensor:
        parts = [f * self._values[name](sums, self.options) for name, f in self.factors.items()]
        return torch.stack(parts).sum()

    def _settings(self) -> Settings:
        return Settings(self.options, self.sigmoid, self.class_weights)

    def _check_shapes(self, output: Outputs, target: Tensor) -> None:
        classes, problems = output.logits.shape[1], []
        index_mask = (len(output.logits), *output.crop)
        allowed = [index_mask, (len(output.logits), classes, *output.crop)]
        if tuple(target.shape) not in allowed[: 1 + self.sigmoid]:
            shapes = " or ".join(str(shape) for shape in allowed[: 1 + self.sigmoid])
            problems.append(f"the target has shape {tuple(target.shape)}, it should be {shapes}")
        elif target.ndim == 4:
            problems += plane_problems(target)
        elif target.is_floating_point() or target.dtype == torch.bool:
            problems.append(f"an index mask holds integers, this target {target.dtype}")
        if classes == 1 and not self.sigmoid:
            problems.append(
                "a softmax over one class is always 1; use activation: sigmoid or two classes"
            )
        if classes > IGNORE:
            problems.append(f"there are {classes} classes, at most {IGNORE} have ids of their own")
        if self.class_weights is not None and len(self.class_weights) != classes:
            problems.append(
                f"there are {len(self.class_weights)} class weights for {classes} classes"
            )
        if problems:
            raise InputError(join_problems("The loss cannot be computed:", problems))


class SplitLoss:
    """The loss of an objective over a whole split: sums are added up, and finished once.

    So it depends on no batch size: `ce` is the mean over all valid pixels of the split, `dice` that
    of the sums over the split, `lovasz` the mean over images. Auxiliary heads do not count. Mask
    queries have no counterpart in sliding windows: of their recipes the losses on pixels count, or
    `ce` where there are none.
    """

    def __init__(self, objective: Objective):
        pixels = {
            name: factor
            for name, factor in objective.factors.items()
            if LOSSES[name].reads == "pixels"
        }
        activation = "sigmoid" if objective.sigmoid else "softmax"
        weights = objective.class_weights
        self._objective = Objective(pixels or {"ce": 1.0}, objective.options, weights, activation)
        self._sums: Sums = {}

    @torch.inference_mode()
    def add(self, outputs: Outputs, target: Tensor) -> None:
        """Add the sums of some images, as `Objective.sums` takes them."""
        for name, value in self._objective.sums(outputs, target).items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def value(self, ranks: Ranks) -> float:
        """The loss of everything that the processes have added."""
        gathered = ranks.gather({name: value.cpu() for name, value in self._sums.items()})
        found = [sums for sums in gathered if sums]  # there may be more processes than images
        totals = {name: torch.stack([sums[name] for sums in found]).sum(0) for name in found[0]}
        return float(self._objective.value(totals))


def _auxiliary_name(index: int, name: str) -> str:
    """The name of a sum that belongs to the auxiliary output at `index`."""
    return f"auxiliary {index}/{name}"
