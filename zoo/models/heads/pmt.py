"""The plain mask transformer, arXiv 2603.25398: a mask decoder on a frozen encoder."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import RotaryEmbeddingCat
from timm.models.eva import EvaBlock
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

LAYER_SCALE = 0.1
"""What the layer scale of new blocks begins with."""

ROPE_BASE = 100.0
"""The base of a new rotary embedding's frequencies, in arXiv 2403.13298."""

FIRST_WINDOW = (0.0, 3000 / 20192)
"""When the masked attention of the first block is given up: 3000 steps of the paper's 20192."""


class PmtDecoder(nn.Module):
    """Tokens of several levels, added, and new blocks that queries pass through with them.

    The blocks have the encoder's width, number of heads and rotary embedding; where it has none,
    the axial one of arXiv 2403.13298.
    """

    def __init__(self, encoder: TokenEncoder, queries: int, blocks: int, mlp_ratio: float):
        super().__init__()
        model, width = encoder.model, encoder.width
        last = model.blocks[-1]
        heads = next(part.num_heads for part in last.modules() if hasattr(part, "num_heads"))
        own = getattr(model, "rope", None) is not None
        self.levels = nn.ModuleList(_Lateral(width) for _ in encoder.after)
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.rope = None
        if not own:
            self.rope = RotaryEmbeddingCat(width // heads, temperature=ROPE_BASE, in_pixels=False)
        self.blocks = nn.ModuleList(
            EvaBlock(
                width,
                heads,
                attn_type="rope",
                rotate_half=own and last.attn.rotate_half,
                num_prefix_tokens=queries + model.num_prefix_tokens,
                mlp_ratio=mlp_ratio,
                init_values=LAYER_SCALE,
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.upscale = upscaling(width, encoder.patch)
        self.windows = windows(blocks)

    def tokens(self, features: list[Level]) -> Tensor:
        """The sum of the levels' tokens, each normalised, changed and scaled by itself."""
        found = [
            lateral(joined(level)) for lateral, level in zip(self.levels, features, strict=True)
        ]
        return torch.stack(found).sum(dim=0)

    def passes(
        self, encoder: TokenEncoder, grid: tuple[int, int]
    ) -> list[tuple[nn.Module, Tensor | None]]:
        """The new blocks."""
        angles = self.rope.get_embed(shape=grid) if self.rope else encoder.angles(grid, -1)
        return [(block, angles) for block in self.blocks]


class _Lateral(nn.Module):
    """What one level adds: its normalised tokens and an MLP of them, times a scale per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width)
        )
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens B x T x C, statistics over all of them."""
        normalised = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        found: Tensor = self.scale * (normalised + self.mlp(normalised))
        return found


def windows(blocks: int) -> list[tuple[float, float]]:
    """When the masked attention of each block is given up, in fractions of training.

    Windows of a sixth begin at even distances from 1/6 to 4/6 of training, but the first block has
    its own at the beginning.
    """
    starts = [1 / 6 + index / (blocks - 1) / 2 for index in range(1, blocks)]
    return [FIRST_WINDOW, *((start, start + 1 / 6) for start in starts)]


def levels_after(depth: int, levels: int) -> list[int]:
    """The numbers of `levels` evenly spaced blocks of `depth`, the last one included."""
    return [depth * level // levels - 1 for level in range(1, levels + 1)]


def network(
    spec: ModelSpec,
    pretrained: dict[str, Any],
    *,
    queries: int,
    blocks: int,
    levels: int,
    mlp_ratio: float,
) -> MaskTransformer:
    """The network of `spec`: `blocks` new blocks on the tokens of `levels` blocks of the encoder.

    `pretrained` are arguments of timm's builder. Raises ValueError where the encoder has fewer
    blocks than levels or is no plain transformer.
    """

    def make(**more: Any) -> MaskTransformer:
        model = plain_transformer(spec.encoder, in_chans=spec.in_chans, **spec.encoder_args, **more)
        depth = len(model.blocks)
        if levels > depth:
            raise ValueError(
                f"levels is {levels}; allowed are 1 to {depth}, as {spec.encoder} has {depth} "
                "blocks"
            )
        encoder = TokenEncoder(model, levels_after(depth, levels), norm=True)
        decoder = PmtDecoder(encoder, queries, blocks, mlp_ratio)
        return MaskTransformer(encoder, decoder, len(spec.classes))

    return without_unused(make, spec, pretrained)
