"""New blocks on the tokens of a plain transformer: against timm and numbers worked out by hand."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.data.scenes import CLASSES, scene
from zoo.hub.folder import load_folder, save_folder
from zoo.models.build import build, params_m
from zoo.models.heads.pmt import PmtDecoder, levels_after, windows
from zoo.models.layers import train_mode, unfreeze
from zoo.models.mask_transformer import (
    MaskTransformer,
    TokenEncoder,
    masked_fraction,
    plain_transformer,
)
from zoo.models.meta import without_memory
from zoo.models.outputs import MaskOutputs, pixel_logits
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.models.spec import model_spec
from zoo.registry.decoders import DECODERS
from zoo.registry.encoders import encoders
from zoo.registry.load import load_registry
from zoo.registry.resolve import list_models, resolve
from zoo.training.losses import Objective

VIT, DINOV3, EVA, MIXED = (
    "test_vit",
    "vit_tiny_patch16_dinov3_qkvb",
    "eva02_tiny_patch14_224",
    "vit_small_patch16_rope_mixed_224",
)
SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2}


def model_of(encoder: str = VIT, **options: Any) -> SegmentationModel:
    torch.manual_seed(0)
    options = {"queries": 5, "blocks": 2} | options
    return create(f"pmt-{encoder}", classes=3, encoder_weights=None, **options)


def network_of(name: str, **arguments: Any) -> MaskTransformer:
    """Two levels of a small transformer, three blocks, four queries."""
    torch.manual_seed(0)
    encoder = TokenEncoder(plain_transformer(name, **arguments), [0, 1], norm=True)
    return MaskTransformer(encoder, PmtDecoder(encoder, 4, 3, 1.0), 2)


def test_windows_are_those_of_the_paper() -> None:
    # six blocks on ADE20K: 16 epochs of 1262 steps
    steps = [(int(start * 20192), int(end * 20192)) for start, end in windows(6)]
    assert steps[0] == (0, 3000)
    assert steps[1] == (5384, 8749)
    assert steps[5] == (13461, 16826)
    starts = [start for start, _ in windows(6)[1:]]
    assert np.diff(starts) == pytest.approx(0.1)
    # four blocks: from the second on those of the encoder-only transformer
    assert [window[0] for window in windows(4)[1:]] == pytest.approx([2 / 6, 3 / 6, 4 / 6])
    assert [window[1] for window in windows(4)[1:]] == pytest.approx([3 / 6, 4 / 6, 5 / 6])
    assert windows(1) == windows(6)[:1]
    assert [masked_fraction(5 / 12, window) for window in windows(4)[2:]] == [1.0, 1.0]
    assert masked_fraction(5 / 12, windows(4)[1]) == pytest.approx(0.5**0.9)


def test_levels_are_spaced_evenly_and_end_with_the_last_block() -> None:
    assert levels_after(24, 4) == [5, 11, 17, 23]
    assert levels_after(12, 3) == [3, 7, 11]
    assert levels_after(6, 4) == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("name", "arguments", "prefixes"),
    [
        (VIT, {"class_token": False, "global_pool": "avg", "fc_norm": False}, 0),
        (VIT, {}, 1),
        (VIT, {"reg_tokens": 4}, 5),
        (DINOV3, SMALL, 5),
        (EVA, {"img_size": 56, **SMALL}, 1),
        (MIXED, {"img_size": 64, **SMALL}, 1),
    ],
)
def test_tokens_of_every_kind_of_transformer(
    name: str, arguments: dict[str, Any], prefixes: int
) -> None:
    net = network_of(name, **arguments)
    encoder, decoder = net.encoder, net.decoder
    side = 56 if name == EVA else 64
    images = torch.randn(2, 3, side, side)
    encoder.after = levels_after(len(encoder.model.blocks), 2)
    net.eval()
    with torch.no_grad():
        features = encoder(images)
        first, (patches, *prefix) = features
        assert torch.equal(net(images), pixel_logits(net.training_outputs(images, features)))
        # the last level is what timm's classifier would see, patches behind the prefix tokens
        last = torch.cat([*prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        assert torch.equal(last, encoder.model.forward_features(images))
    assert [part.shape for part in first] == [part.shape for part in (patches, *prefix)]
    assert sum(part.shape[1] for part in prefix) == prefixes
    assert decoder.tokens(features).shape == (2, prefixes + 16, encoder.width)

    # positions of patches only: the encoder's own where it has some
    block, angles = decoder.passes(encoder, (4, 4))[0]
    assert block.attn.num_prefix_tokens == 4 + prefixes
    own = getattr(encoder.model, "rope", None)
    assert (decoder.rope is None) == (own is not None)
    expected = (decoder.rope or own).get_embed(shape=(4, 4))
    assert torch.equal(angles, expected[-1] if name == MIXED else expected)
    assert angles.shape[-2:] == (16, 2 * encoder.width // block.attn.num_heads)


@pytest.mark.parametrize(("name", "patch"), [("vit_tiny_patch16_224", 16), (EVA, 14), (MIXED, 16)])
def test_another_grid_at_each_forward(name: str, patch: int) -> None:
    net = network_of(name, dynamic_img_size=True, **SMALL).eval()
    with torch.no_grad():
        for height, width in ((2, 5), (4, 3)):
            images = torch.randn(1, 3, height * patch, width * patch)
            (prediction,) = net.training_outputs(images).predictions[-1:]
            cells = 4 if patch == 16 else 2  # of each patch, along each side
            assert prediction.masks.shape == (1, 4, height * cells, width * cells)
            assert net(images).shape == (1, 2, *images.shape[-2:])


def test_a_level_adds_its_normalised_tokens_and_their_mlp_times_a_scale() -> None:
    net = network_of(VIT).train()
    lateral = net.decoder.levels[0]
    tokens = torch.randn(2, 5, 64) * 3 + 1
    with torch.no_grad():
        lateral.scale.copy_(torch.arange(64.0))
        flat = tokens.flatten(0, 1)
        normalised = (tokens - flat.mean(0)) / (flat.var(0, unbiased=False) + 1e-5).sqrt()
        down, _, up = lateral.mlp
        assert down.weight.shape == (32, 64)
        mlp = up(functional.gelu(down(normalised)))
        expected = torch.arange(64.0) * (normalised + mlp)
        torch.testing.assert_close(lateral(tokens), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_the_predictions_lie_on_quarters_of_the_input_and_one_comes_before_each_block(
    size: tuple[int, int],
) -> None:
    model = model_of().train()
    outputs = model.training_outputs(torch.randn(2, 3, *size))
    assert isinstance(outputs, MaskOutputs)
    height, width = outputs.size
    assert outputs.crop == size
    assert len(outputs.predictions) == 3
    for found in outputs.predictions:
        assert found.classes.shape == (2, 5, 4)
        assert found.masks.shape == (2, 5, height // 4, width // 4)
    assert model.eval()(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_blocks_as_wide_as_the_options_say() -> None:
    def count(**options: Any) -> int:
        with without_memory():
            net = model_of("vit_base_patch16_224", **options).net
        return sum(parameter.numel() for parameter in net.decoder.blocks.parameters())

    # attention 4 (C^2 + C), MLP 2 C r C + r C + C, two norms 4 C, two layer scales 2 C
    width = 768
    block = 4 * (width**2 + width) + 2 * width**2 + 2 * width + 6 * width
    assert count() == 2 * block
    assert count(blocks=1, mlp_ratio=4.0) == block + 3 * (2 * width**2 + width)


@pytest.mark.long
def test_the_large_dinov3_takes_it() -> None:
    spec = model_spec(resolve("pmt-vit_large_patch16_dinov3"), 150)
    spec = spec.model_copy(update={"decoder_args": {"blocks": 6}})
    with without_memory():
        net = build(spec).net
        assert net(torch.empty(1, 3, 512, 512)).shape == (1, 150, 512, 512)
    assert net.encoder.after == [5, 11, 17, 23]
    # blocks, levels, queries, upscaling, norm and head, added up by hand
    expected = 37_822_464 + 4_212_736 + 102_400 + 8_413_184 + 2_048 + 3_303_575
    assert params_m(net) - params_m(net.encoder) == pytest.approx(expected / 1e6)


def scenes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = [scene(index, "train", 0, (64, 64)) for index in range(count)]
    images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
    return torch.from_numpy(images.copy()), torch.from_numpy(np.stack([m for _, m in drawn]))


def test_four_images_are_learned_on_stored_features_of_a_frozen_encoder() -> None:
    torch.manual_seed(0)
    model = create(
        f"pmt-{VIT}", classes=CLASSES, encoder_weights=None, queries=8, blocks=1, levels=3
    )
    unfreeze(model, 0.0)
    train_mode(model)
    before = {name: tensor.clone() for name, tensor in model.net.encoder.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    objective = Objective({"query_class": 2.0, "query_mask": 5.0, "query_dice": 5.0})
    pixels, masks = scenes(4)
    images = normalise(pixels, model.spec, "cpu")
    features = model.encode(images)
    losses = []
    for step in range(40):
        model.on_step(step / 40)
        loss = objective(model.training_outputs(images, features), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    with torch.no_grad():
        predicted = model.eval()(images).argmax(dim=1)
    assert (predicted == masks)[masks != 255].float().mean() > 0.9
    after = model.net.encoder.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_frozen_encoder_is_in_evaluation_mode_and_an_unfrozen_one_learns() -> None:
    model = model_of(DINOV3)
    unfreeze(model, 0.0)
    train_mode(model)
    assert not any(module.training for module in model.net.encoder.modules())
    assert all(module.training for module in model.net.decoder.modules())
    unfreeze(model, 1.0)
    train_mode(model)
    outputs = model.training_outputs(torch.randn(2, 3, 64, 64))
    assert isinstance(outputs, MaskOutputs)
    pixel_logits(outputs).square().mean().backward()
    assert model.net.encoder.model.patch_embed.proj.weight.grad.any()


def test_a_saved_model_gives_the_same_logits_and_takes_other_classes(tmp_path: Path) -> None:
    model = model_of(levels=2, mlp_ratio=0.5).eval()
    save_folder(model, tmp_path / "model")
    loaded = load_folder(tmp_path / "model").eval()
    images = torch.randn(1, 3, 60, 70)
    with torch.no_grad():
        assert torch.equal(model(images), loaded(images))
        other = load_folder(tmp_path / "model", ["a", "b"]).eval()
        assert other(images).shape == (1, 2, 60, 70)


@pytest.mark.long
def test_a_trace_takes_other_sizes() -> None:
    model, images = model_of().eval(), torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, images)
        for size in ((64, 64), (50, 103)):
            other = torch.randn(1, 3, *size)
            torch.testing.assert_close(traced(other), model(other))


@pytest.mark.long
@pytest.mark.parametrize("name", [VIT, DINOV3])
def test_exported(name: str) -> None:
    model, images = model_of(name).eval(), torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (images,))
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(images), model(images))
    torch.export.export(model.train(), (images[:1],))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (VIT, {"levels": 7}, "levels is 7; allowed are 1 to 6, as test_vit.* has 6 blocks"),
        (VIT, {"blocks": 0}, "blocks: should be greater than or equal to 1, got 0"),
        (VIT, {"mlp_ratio": 0.1}, "mlp_ratio: should be greater than or equal to 0.25, got 0.1"),
        (VIT, {"layers": 2}, "no option layers.* It has blocks, levels, mlp_ratio, queries"),
        ("test_resnet", {}, "pmt needs module vision_transformer or deit or eva, has resnet"),
    ],
)
def test_what_cannot_be_built(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(f"pmt-{name}", classes=2, encoder_weights=None, **options)


def test_other_networks_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="test_resnet is not a plain transformer of timm's modu"):
        plain_transformer("test_resnet")


def test_its_recipe_trains_the_decoder_only_and_parallel_blocks_are_taken() -> None:
    assert resolve(f"pmt-{VIT}").recipe == "pmt"
    recipe = load_registry().recipe("pmt")
    assert [stage.unfreeze for stage in recipe.stages] == [0.0]
    assert list_models(decoder="pmt", encoder="*_18x2_*") != []
    assert sum(DECODERS["pmt"].refuses(row) is None for row in encoders().values()) == 244
    parallel = model_spec(resolve("pmt-vit_small_patch16_18x2_224"), 2)
    with without_memory():
        assert build(parallel).net.encoder.after == [3, 8, 12, 17]


@pytest.mark.slow
def test_every_encoder_that_is_listed_can_be_built() -> None:
    for name in list_models(decoder="pmt"):
        spec = model_spec(resolve(name), 2)
        with without_memory():
            assert len(build(spec).net.encoder.after) == 4
