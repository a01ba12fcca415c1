"""The encoder-only mask transformer, arXiv 2503.19108: queries inside a plain transformer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from zoo.models.mask_transformer import (
    Level,
    MaskTransformer,
    TokenEncoder,
    joined,
    plain_transformer,
    upscaling,
    without_unused,
)
from zoo.models.spec import ModelSpec

SMALL = 12
"""Encoders of up to so many blocks take queries before the last three, others before four."""


class EomtDecoder(nn.Module):
    """Queries that pass through the last `blocks` blocks of the encoder itself."""

    def __init__(self, encoder: TokenEncoder, queries: int, blocks: int):
        super().__init__()
        bare = isinstance(encoder.model.norm, nn.Identity)
        self.queries = nn.Parameter(torch.randn(queries, encoder.width))
        self.norm = nn.LayerNorm(encoder.width) if bare else nn.Identity()
        self.upscale = upscaling(encoder.width, encoder.patch)
        self.windows = windows(blocks)

    def tokens(self, features: list[Level]) -> Tensor:
        """The encoder's own tokens."""
        return joined(features[-1])

    def passes(
        self, encoder: TokenEncoder, grid: tuple[int, int]
    ) -> list[tuple[nn.Module, Tensor | None]]:
        """The encoder's last blocks."""
        blocks = encoder.model.blocks
        numbers = range(encoder.after[-1] + 1, len(blocks))
        return [(blocks[number], encoder.angles(grid, number)) for number in numbers]


def windows(blocks: int) -> list[tuple[float, float]]:
    """When the masked attention of each block is given up, in fractions of training.

    Training is divided into `blocks` + 2 equal parts, of which the first and the last change
    nothing.
    """
    parts = blocks + 2
    return [(part / parts, (part + 1) / parts) for part in range(1, blocks + 1)]


def query_encoder(name: str, blocks: int | None, queries: int, **arguments: Any) -> TokenEncoder:
    """A timm transformer whose last `blocks` blocks take queries as well.

    Raises ValueError where its blocks cannot be run one by one with an attention mask, or where it
    has too few.
    """
    model = plain_transformer(name, **arguments)
    own = model.blocks[-1]
    if "attn_mask" not in inspect.signature(own.forward).parameters or not hasattr(own, "attn"):
        raise ValueError(
            f"the blocks of {name} take no queries; a plain transformer of timm's modules "
            "vision_transformer, deit or eva is needed"
        )
    depth = len(model.blocks)
    count = (3 if depth <= SMALL else 4) if blocks is None else blocks
    if not 1 <= count < depth:
        raise ValueError(
            f"blocks is {count}; allowed are 1 to {depth - 1}, as {name} has {depth} blocks"
        )
    first = depth - count
    for block in model.blocks[first:]:
        if hasattr(block.attn, "num_prefix_tokens"):  # rotary embeddings leave these out
            block.attn.num_prefix_tokens += queries
    return TokenEncoder(model, [first - 1], norm=False)


def network(
    spec: ModelSpec,
    pretrained: dict[str, Any],
    *,
    queries: int,
    blocks: int | None,
) -> MaskTransformer:
    """The network of `spec`: `queries` queries enter before the last `blocks` blocks.

    `pretrained` are arguments of timm's builder. Raises ValueError where the encoder has too few
    blocks, or such as cannot take queries.
    """

    def make(**more: Any) -> MaskTransformer:
        encoder = query_encoder(
            spec.encoder, blocks, queries, in_chans=spec.in_chans, **spec.encoder_args, **more
        )
        count = len(encoder.model.blocks) - 1 - encoder.after[-1]
        return MaskTransformer(encoder, EomtDecoder(encoder, queries, count), len(spec.classes))

    return without_unused(make, spec, pretrained)
