"""Queries among the tokens of a plain transformer: what the heads `eomt` and `pmt` share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo.models.meta import keep_as_buffers, unused_parameters
from zoo.models.outputs import MaskOutputs, Queries, pixel_logits
from zoo.models.spec import ModelSpec

ANNEALING_POWER = 0.9

Level = tuple[Tensor, ...]
"""Patch tokens B x C x h x w after a block, and prefix tokens B x P x C if there are any."""


class TokenEncoder(nn.Module):
    """A plain timm transformer whose tokens are read after some of its blocks.

    `model` is a timm transformer (`plain_transformer`), `after` the numbers of these blocks. With
    `norm` their tokens pass the transformer's own last normalisation.
    """

    def __init__(self, model: Any, after: list[int], norm: bool):
        super().__init__()
        self.model = model
        self.after = after
        self.norm = norm
        self.width: int = model.num_features
        self.patch = max(model.patch_embed.patch_size)

    def forward(self, images: Tensor) -> list[Level]:
        """The tokens after each of the blocks, for `images` B x in_chans x H x W."""
        has_prefix = self.model.num_prefix_tokens > 0
        found = self.model.forward_intermediates(
            images,
            indices=self.after,
            norm=self.norm,
            stop_early=True,
            intermediates_only=True,
            **({"return_prefix_tokens": True} if has_prefix else {}),
        )
        return [tuple(level) if has_prefix else (level,) for level in found]

    def angles(self, grid: tuple[int, int], block: int) -> Tensor | None:
        """The rotary embedding of `grid` patches in a block of this number; None if it has none."""
        rope = getattr(self.model, "rope", None)
        if rope is None:
            return None
        angles: Tensor = rope.get_embed(shape=grid)
        return angles[block] if getattr(self.model, "rope_mixed", False) else angles

    def run(self, block: nn.Module, tokens: Tensor, angles: Tensor | None, mask: Any) -> Any:
        """`block` on tokens B x T x C; recomputed in the backward pass as the encoder's own are.

        `mask` is bool and broadcasts to B x heads x T x T, true where a token may look, or None.
        """
        given = {"attn_mask": mask, "rope": angles}
        given = {name: value for name, value in given.items() if value is not None}
        if self.model.grad_checkpointing and block.training:
            return checkpoint(block, tokens, use_reentrant=False, **given)
        return block(tokens, **given)


class QueryDecoder(Protocol):
    """What `MaskTransformer` asks of its decoder, a module.

    `queries` are N x C; `windows` say for each block between which two fractions of training its
    masked attention is given up.
    """

    queries: nn.Parameter
    windows: list[tuple[float, float]]

    @property
    def norm(self) -> nn.Module:
        """The last normalisation before predictions are read."""

    @property
    def upscale(self) -> nn.Module:
        """Patch tokens B x C x h x w, upsampled to the grid of the masks."""

    def tokens(self, features: list[Level]) -> Tensor:
        """The tokens B x T x C that stand behind the queries, patches last."""

    def passes(
        self, encoder: TokenEncoder, grid: tuple[int, int]
    ) -> list[tuple[nn.Module, Tensor | None]]:
        """The blocks that all tokens pass through, with the rotary embedding of `grid` patches."""


class MaskHead(nn.Module):
    """Classes and mask embeddings of queries B x N x C: B x N x (K + 1) and B x N x C."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.classes = nn.Linear(width, classes + 1)
        self.masks = nn.Sequential(
            nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, width),
        )  # fmt: skip

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the classes, "no object" last, and the embeddings."""
        return self.classes(queries), self.masks(queries)


class MaskTransformer(nn.Module):
    """A plain transformer that gives masks and their classes by queries among its tokens.

    `progress` in [0, 1] is how far training is; it decides how many queries still look at the
    patches of their own mask only. In evaluation mode all look everywhere.
    """

    def __init__(self, encoder: TokenEncoder, decoder: QueryDecoder, classes: int):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.segmentation_head = MaskHead(encoder.width, classes)
        self.progress = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Logits B x classes x H x W for `images` B x in_chans x H x W, normalised floats."""
        size = (images.shape[-2], images.shape[-1])
        return pixel_logits(
            MaskOutputs(self._predictions(self.encoder(images), learning=False), size, size)
        )

    def training_outputs(self, images: Tensor, features: list[Level] | None = None) -> MaskOutputs:
        """The predictions before each block that queries pass through and after the last one.

        `features` is what the encoder gives for `images`, where that is known already.
        """
        size = (images.shape[-2], images.shape[-1])
        given = self.encoder(images) if features is None else features
        return MaskOutputs(self._predictions(given, learning=True), size, size)

    def scoring_layers(self) -> list[nn.Module]:
        """The layer that scores the classes of the queries."""
        return [self.segmentation_head.classes]

    def on_step(self, progress: float) -> None:
        """Note how far training is, in [0, 1]."""
        self.progress = progress

    def _predictions(self, features: list[Level], learning: bool) -> tuple[Queries, ...]:
        patches = features[-1][0]
        grid = (patches.shape[-2], patches.shape[-1])
        queries = self.decoder.queries.expand(patches.shape[0], -1, -1)
        tokens = torch.cat([queries, self.decoder.tokens(features)], dim=1)
        found: list[Queries] = []
        passes = self.decoder.passes(self.encoder, grid)
        for (block, angles), window in zip(passes, self.decoder.windows, strict=True):
            mask = None
            if learning:
                found.append(self._read(tokens, grid))
                fraction = masked_fraction(self.progress, window)
                if self.training and fraction > 0:
                    mask = attention_mask(found[-1].masks, fraction, grid, tokens.shape[1])
            tokens = self.encoder.run(block, tokens, angles, mask)
        return (*found, self._read(tokens, grid))

    def _read(self, tokens: Tensor, grid: tuple[int, int]) -> Queries:
        """The prediction that lies in the tokens: queries first, patches last."""
        if not self.encoder.norm:
            tokens = self.encoder.model.norm(tokens)
        tokens = self.decoder.norm(tokens)
        patches = tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        upsampled = self.decoder.upscale(patches.contiguous())
        classes, embeddings = self.segmentation_head(tokens[:, : len(self.decoder.queries)])
        return Queries(classes, torch.einsum("bnc,bchw->bnhw", embeddings, upsampled))


def plain_transformer(name: str, **arguments: Any) -> Any:
    """The timm transformer `name` without its classifier. Raises ValueError for other networks."""
    model: Any = timm.create_model(name, num_classes=0, **arguments)
    if not all(hasattr(model, part) for part in ("blocks", "norm", "num_prefix_tokens")):
        raise ValueError(
            f"{name} is not a plain transformer of timm's modules vision_transformer, deit or eva"
        )
    model.prune_intermediate_layers([len(model.blocks) - 1], prune_norm=False)
    return model


def joined(level: Level) -> Tensor:
    """All tokens of a level in one sequence, B x T x C, the patches last."""
    patches, *prefix = level
    return torch.cat([*prefix, patches.flatten(2).transpose(1, 2)], dim=1)


def upscaling(width: int, patch: int) -> nn.Sequential:
    """Doubles patch tokens B x `width` x h x w until a cell measures 4 to 7 pixels."""
    doublings = max(0, int(math.log2(patch)) - 2)
    return nn.Sequential(*(_Doubling(width) for _ in range(doublings)))


def masked_fraction(progress: float, window: tuple[float, float]) -> float:
    """The fraction of queries that look only inside their masks when training is at `progress`.

    It falls from 1 at the beginning of the window to 0 at its end as (1 - x)^0.9.
    """
    start, end = window
    done = min(max((progress - start) / (end - start), 0.0), 1.0)
    return float((1 - done) ** ANNEALING_POWER)


def attention_mask(masks: Tensor, fraction: float, grid: tuple[int, int], length: int) -> Tensor:
    """Who may look at whom: bool B x 1 x length x length, for queries first and patches last.

    Of the queries the random `fraction` sees only the patches where its mask logit, from `masks`
    B x N x h x w, is above 0. Patches attend to all tokens, and all attend to queries and prefixes.
    """
    batch, count = masks.shape[:2]
    with torch.no_grad():
        inside = functional.interpolate(masks.float(), grid, mode="bilinear") > 0
        free = torch.rand(batch, count, 1, device=masks.device) >= fraction
        seen = torch.ones(batch, length, length, dtype=torch.bool, device=masks.device)
        seen[:, :count, -grid[0] * grid[1] :] = inside.flatten(2) | free
    return seen.unsqueeze(1)


def without_unused(
    make: Callable[..., MaskTransformer], spec: ModelSpec, pretrained: dict[str, Any]
) -> MaskTransformer:
    """`make(**pretrained)`, its parameters that get no gradient turned into buffers."""
    net = make(**pretrained)
    keep_as_buffers(net, unused_parameters(make, spec.in_chans, spec.example_size()))
    return net


class _Doubling(nn.Sequential):
    """Twice the height and width, with as many channels."""

    def __init__(self, width: int):
        super().__init__(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            LayerNorm2d(width),
        )
