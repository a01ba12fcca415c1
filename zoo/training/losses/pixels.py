"""Losses that are means over pixels: cross-entropy, focal, hard pixels, borders."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zoo.registry.recipe import LossOptions
from zoo.training.losses.targets import near_border, total, valid_pixels
from zoo.training.losses.terms import Batch, PixelLoss, Settings, Strip, Sums, nll_maps, quotient


def _ce_maps(strip: Strip) -> Sums:
    maps, settings = nll_maps(strip), strip.settings
    smoothing = settings.options.label_smoothing
    if smoothing and settings.sigmoid:
        moved = smoothing * (strip.truth - 0.5) * strip.logits * strip.valid
        maps["spread"] = strip.weighted_mean(moved)
    elif smoothing:
        log_p, weights = strip.log_p, settings.class_weights
        if weights is not None:
            log_p = log_p * weights.to(log_p.dtype).view(-1, 1, 1)
        maps["spread"] = -log_p.sum(dim=1) * strip.valid
    return maps


def _ce_sums(batch: Batch) -> Sums:
    values, smoothing = batch.weighted_nll, batch.settings.options.label_smoothing
    if smoothing and batch.settings.sigmoid:
        values = values + batch.maps["spread"]
    elif smoothing:
        values = (1 - smoothing) * values + smoothing / batch.classes * batch.maps["spread"]
    return {"ce": total(values)}


def _focal_maps(strip: Strip) -> Sums:
    if not strip.settings.sigmoid:
        return {"nll": strip.nll}
    focal = focal_of(strip.entropy, strip.truth, strip.settings.options)
    return {"focal": strip.weighted_mean(focal)}


def _focal_sums(batch: Batch) -> Sums:
    if batch.settings.sigmoid:
        return {"focal": total(batch.maps["focal"])}
    values = focal_of(batch.maps["nll"], batch.target > 0, batch.settings.options)
    return {"focal": total(batch.weights * values)}


def focal_of(nll: Tensor, foreground: Tensor, options: LossOptions) -> Tensor:
    """alpha_t (1 - p)^gamma (-log p), where `nll` is -log p of the truth.

    alpha_t is `focal_alpha` for `foreground` and 1 - `focal_alpha` elsewhere, or 1 without it.
    """
    missing = -torch.expm1(-nll)
    # below gamma 1 the slope of the power is infinite at 0
    value = missing.clamp(min=1e-12).pow(options.focal_gamma) * nll
    if options.focal_alpha is None:
        return value
    alpha = options.focal_alpha
    return value * torch.where(foreground.bool(), alpha, 1 - alpha)


def _ohem_maps(strip: Strip) -> Sums:
    return nll_maps(strip) | {"nll": strip.nll}


def _ohem_sums(batch: Batch) -> Sums:
    nll = batch.maps["nll"].detach()
    kept = hard_pixels(nll, valid_pixels(batch.target), batch.settings.options)
    return {"ohem": total(batch.weighted_nll * kept), "ohem.weight": total(batch.weights * kept)}


def hard_pixels(nll: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """Bool B x H x W: valid pixels whose truth has a probability below `ohem_threshold`.

    Of every image at least the fraction `ohem_min_kept` of its valid pixels is kept, hardest first;
    pixels as hard as the last of them are kept too.
    """
    kept = valid & (nll > -math.log(options.ohem_threshold))
    for image, values in enumerate(nll):
        counted = values[valid[image]]
        needed = math.ceil(options.ohem_min_kept * len(counted))
        if int(kept[image].sum()) < needed:
            limit = counted.kthvalue(len(counted) - needed + 1).values
            kept[image] = valid[image] & (values >= limit)
    return kept


def _border_factors(target: Tensor, settings: Settings) -> Tensor:
    """`boundary_factor` within `boundary_width` pixels of a border, else 1: B x H x W."""
    near = near_border(target, settings.options.boundary_width)
    return torch.where(near, settings.options.boundary_factor, 1.0)


def _boundary_sums(batch: Batch) -> Sums:
    factors = _border_factors(batch.target, batch.settings)
    return {"boundary": total(factors * batch.weighted_nll)}


def _boundary_target_sums(target: Tensor, weights: Tensor, settings: Settings) -> Sums:
    return {"boundary.weight": total(_border_factors(target, settings) * weights)}


LOSSES = {
    "ce": PixelLoss(
        _ce_maps, _ce_sums, quotient("ce"),
        lambda _, weights, __: {"ce.weight": total(weights)},
    ),
    "focal": PixelLoss(
        _focal_maps, _focal_sums, quotient("focal"),
        lambda _, weights, __: {"focal.weight": total(weights)},
    ),
    "ohem": PixelLoss(_ohem_maps, _ohem_sums, quotient("ohem")),
    "boundary": PixelLoss(nll_maps, _boundary_sums, quotient("boundary"), _boundary_target_sums),
}  # fmt: skip
