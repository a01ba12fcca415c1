"""The encoder-only mask transformer, arXiv 2503.19108: queries inside a plain transformer."""

from __future__ import annotations

import inspect
import math
from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from zoo.models.meta import keep_as_buffers, unused_parameters
from zoo.models.outputs import MaskOutputs, Queries, pixel_logits
from zoo.models.spec import ModelSpec

SMALL = 12
"""Encoders of up to so many blocks take queries before the last three, others before four."""

ANNEALING_POWER = 0.9
TRACED = 256


class TokenEncoder(nn.Module):
    """A plain timm transformer, run up to its last `blocks` blocks, which take queries as well.

    Raises ValueError where its blocks cannot be run one by one with an attention mask.
    """

    def __init__(self, name: str, blocks: int | None, queries: int, **arguments: Any):
        super().__init__()
        model: Any = timm.create_model(name, num_classes=0, **arguments)
        own: Any = getattr(model, "blocks", None)
        taken = inspect.signature(own[-1].forward).parameters if own else {}
        fits = "attn_mask" in taken and hasattr(own[-1], "attn") and hasattr(model, "norm")
        if not fits:
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
        model.prune_intermediate_layers([depth - 1], prune_norm=False)
        self.model = model
        self.width: int = model.num_features
        self.first = depth - count
        for block in model.blocks[self.first :]:
            if hasattr(block.attn, "num_prefix_tokens"):  # rotary embeddings leave these out
                block.attn.num_prefix_tokens += queries

    def forward(self, images: Tensor) -> list[Tensor]:
        """The images, patch tokens B x C x h x w and prefix tokens B x P x C if there are any."""
        has_prefix = self.model.num_prefix_tokens > 0
        (found,) = self.model.forward_intermediates(
            images,
            indices=[self.first - 1],
            stop_early=True,
            intermediates_only=True,
            **({"return_prefix_tokens": True} if has_prefix else {}),
        )
        return [images, *found] if has_prefix else [images, found]

    def block(self, index: int, tokens: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Any:
        """Block `index` of all on tokens B x T x C whose last are the patches of `grid`.

        `mask` is bool and broadcasts to B x heads x T x T, true where a token may look.
        """
        given: dict[str, Any] = {} if mask is None else {"attn_mask": mask}
        rope = getattr(self.model, "rope", None)
        if rope is not None:
            angles = rope.get_embed(shape=grid)
            given["rope"] = angles[index] if getattr(self.model, "rope_mixed", False) else angles
        block = self.model.blocks[index]
        if self.model.grad_checkpointing and self.training:
            return checkpoint(block, tokens, use_reentrant=False, **given)
        return block(tokens, **given)


class QueryDecoder(nn.Module):
    """The learned queries, and patch tokens upsampled to the grid of the masks."""

    def __init__(self, width: int, queries: int, patch: int, normalise: bool):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width))
        self.norm = nn.LayerNorm(width) if normalise else nn.Identity()
        doublings = max(0, int(math.log2(patch)) - 2)
        self.upscale = nn.Sequential(*(_Doubling(width) for _ in range(doublings)))

    def forward(self, patches: Tensor) -> Tensor:
        """Patch tokens B x C x h x w, doubled until a cell measures 4 to 7 pixels."""
        upsampled: Tensor = self.upscale(patches)
        return upsampled


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


class EomtNetwork(nn.Module):
    """A plain transformer that gives masks and their classes by queries among its tokens.

    `progress` in [0, 1] is how far training is; it decides how many queries still look at the
    patches of their own mask only. In evaluation mode all look everywhere.
    """

    def __init__(self, encoder: TokenEncoder, classes: int, queries: int):
        super().__init__()
        patch = max(encoder.model.patch_embed.patch_size)
        bare = isinstance(encoder.model.norm, nn.Identity)
        self.encoder = encoder
        self.decoder = QueryDecoder(encoder.width, queries, patch, normalise=bare)
        self.segmentation_head = MaskHead(encoder.width, classes)
        self.progress = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Logits B x classes x H x W for `images` B x in_chans x H x W, normalised floats."""
        size = (images.shape[-2], images.shape[-1])
        return pixel_logits(
            MaskOutputs(self._predictions(self.encoder(images), learning=False), size, size)
        )

    def training_outputs(self, images: Tensor, features: list[Tensor] | None = None) -> MaskOutputs:
        """The predictions before each of the last blocks and after them, for the losses.

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

    def _predictions(self, features: list[Tensor], learning: bool) -> tuple[Queries, ...]:
        _, patches, *prefix = features
        grid = (patches.shape[-2], patches.shape[-1])
        queries = self.decoder.queries.expand(len(patches), -1, -1)
        tokens = torch.cat([queries, *prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        found: list[Queries] = []
        first, depth = self.encoder.first, len(self.encoder.model.blocks)
        for index in range(first, depth):
            mask = None
            if learning:
                found.append(self._read(tokens, grid))
                fraction = masked_fraction(self.progress, index - first, depth - first)
                if self.training and fraction > 0:
                    mask = attention_mask(found[-1].masks, fraction, grid, tokens.shape[1])
            tokens = self.encoder.block(index, tokens, grid, mask)
        return (*found, self._read(tokens, grid))

    def _read(self, tokens: Tensor, grid: tuple[int, int]) -> Queries:
        """The prediction that lies in the tokens: queries first, patches last."""
        tokens = self.decoder.norm(self.encoder.model.norm(tokens))
        patches = tokens[:, -grid[0] * grid[1] :].transpose(1, 2).unflatten(2, grid)
        upsampled = self.decoder(patches.contiguous())
        classes, embeddings = self.segmentation_head(tokens[:, : len(self.decoder.queries)])
        return Queries(classes, torch.einsum("bnc,bchw->bnhw", embeddings, upsampled))


def masked_fraction(progress: float, block: int, blocks: int) -> float:
    """The fraction of queries that look only inside their masks, in `block` (from 0) of `blocks`.

    It falls from 1 to 0 as (1 - x)^0.9 block after block: training is divided into `blocks` + 2
    equal parts, of which the first and the last change nothing.
    """
    done = min(max(progress * (blocks + 2) - (block + 1), 0.0), 1.0)
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


def network(
    spec: ModelSpec,
    pretrained: dict[str, Any],
    *,
    queries: int,
    blocks: int | None,
) -> EomtNetwork:
    """The network of `spec`: `queries` queries enter before the last `blocks` blocks.

    `pretrained` are arguments of timm's builder. Raises ValueError where the encoder has too few
    blocks, or such as cannot take queries.
    """

    def make(**more: Any) -> EomtNetwork:
        encoder = TokenEncoder(
            spec.encoder, blocks, queries, in_chans=spec.in_chans, **spec.encoder_args, **more
        )
        return EomtNetwork(encoder, len(spec.classes), queries)

    net = make(**pretrained)
    side = spec.img_size or -(-TRACED // spec.size_multiple) * spec.size_multiple
    keep_as_buffers(net, unused_parameters(make, spec.in_chans, side))
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
