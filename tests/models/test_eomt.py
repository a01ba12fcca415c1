"""Queries inside a plain transformer: against timm itself and numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.hub.folder import load_folder, save_folder
from zoo.models.heads.eomt import EomtDecoder, query_encoder, windows
from zoo.models.layers import encoder_layers, learning_names, unfreeze
from zoo.models.mask_transformer import (
    MaskTransformer,
    attention_mask,
    joined,
    masked_fraction,
)
from zoo.models.outputs import LEAST_SCORE, MaskOutputs, Queries, pixel_logits
from zoo.models.regularise import add_dropout
from zoo.models.segmentation import SegmentationModel
from zoo.registry.recipe import Stage
from zoo.registry.resolve import list_models, resolve
from zoo.training.engine.features import check_encoder

VIT, DINOV3, MIXED = (
    "test_vit",
    "vit_tiny_patch16_dinov3_qkvb",
    "vit_small_patch16_rope_mixed_224",
)


def model_of(encoder: str = VIT, **options: int) -> SegmentationModel:
    torch.manual_seed(0)
    options = {"queries": 5, "blocks": 2} | options
    return create(f"eomt-{encoder}", classes=3, encoder_weights=None, **options)


@pytest.mark.parametrize("name", [VIT, DINOV3, MIXED])
def test_patches_that_see_no_query_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    size = {} if name == DINOV3 else {"img_size": 64}
    whole = timm.create_model(name, num_classes=0, **size).eval()
    encoder = query_encoder(name, 2, 5, in_chans=3, **size).eval()
    decoder = EomtDecoder(encoder, 5, 2)
    encoder.model.load_state_dict(whole.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        (level,) = encoder(images)
        tokens = torch.cat([torch.randn(2, 5, encoder.width), joined(level)], dim=1)
        seen = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
        seen[..., 5:, :5] = False
        for block, angles in decoder.passes(encoder, (4, 4)):
            tokens = encoder.run(block, tokens, angles, seen)
        expected = whole.forward_features(images)
        assert torch.allclose(encoder.model.norm(tokens)[:, 5:], expected, atol=1e-4)


def test_the_predictions_lie_on_quarters_of_the_input_and_one_comes_before_each_block() -> None:
    model = model_of().train()
    outputs = model.training_outputs(torch.randn(2, 3, 50, 64))
    assert isinstance(outputs, MaskOutputs)
    assert (outputs.size, outputs.crop) == ((64, 64), (50, 64))
    assert len(outputs.predictions) == 3
    for found in outputs.predictions:
        assert found.classes.shape == (2, 5, 4)
        assert found.masks.shape == (2, 5, 16, 16)


def test_the_number_of_blocks_follows_the_depth() -> None:
    name = "vit_tiny_patch16_224"
    with torch.device("meta"):
        assert query_encoder(name, None, 5).after == [8]
        assert query_encoder(name, 4, 5).after == [7]
        assert query_encoder("vit_large_patch16_224", None, 5).after == [19]


def test_pixels_get_the_sum_over_queries_of_class_times_mask() -> None:
    # two queries, two classes and "no object"
    classes = torch.tensor([[[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]]).log()
    masks = torch.logit(torch.tensor([0.9, 0.4])).view(1, 2, 1, 1)
    other = Queries(torch.zeros(1, 2, 3), torch.zeros(1, 2, 1, 1))
    logits = pixel_logits(MaskOutputs((other, Queries(classes, masks)), (4, 4), (3, 2)))
    assert logits.shape == (1, 2, 3, 2)
    # 0.2 x 0.9 + 0.5 x 0.4 and 0.7 x 0.9 + 0.25 x 0.4
    expected = [math.log(0.38 + LEAST_SCORE), math.log(0.73 + LEAST_SCORE)]
    assert logits[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(logits, logits[..., :1, :1].expand_as(logits))


def test_forward_is_the_last_prediction_without_masked_attention() -> None:
    model = model_of().eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        outputs = model.training_outputs(images)
        assert isinstance(outputs, MaskOutputs)
        assert torch.equal(model(images), pixel_logits(outputs))
        model.train()
        masked = model.training_outputs(images)
        assert isinstance(masked, MaskOutputs)
        model.on_step(1.0)
        free = model.training_outputs(images)
    assert isinstance(free, MaskOutputs)
    assert torch.equal(free.predictions[-1].masks, outputs.predictions[-1].masks)
    assert torch.equal(masked.predictions[0].masks, outputs.predictions[0].masks)
    assert not torch.equal(masked.predictions[-1].masks, outputs.predictions[-1].masks)


def test_masks_are_given_up_block_after_block() -> None:
    # four blocks: six parts of which block 0 has the second and block 3 the fifth
    first, _, _, last = windows(4)
    assert [masked_fraction(p, first) for p in (0.0, 1 / 6, 2 / 6, 1.0)] == [1.0, 1.0, 0.0, 0.0]
    assert [masked_fraction(p, last) for p in (0.0, 4 / 6, 1.0)] == [1.0, 1.0, 0.0]
    assert masked_fraction(0.25, first) == pytest.approx(0.5**0.9)


def test_a_query_sees_the_patches_of_its_mask_and_everything_else_is_seen_by_all() -> None:
    masks = torch.full((1, 2, 2, 2), -1.0)
    masks[0, 0, 0, 1] = 1.0  # the second query is nowhere
    seen = attention_mask(masks, 1.0, (2, 2), length=7)  # two queries, one prefix, four patches
    assert seen.shape == (1, 1, 7, 7)
    assert seen[0, 0, 0].tolist() == [True, True, True, False, True, False, False]
    assert seen[0, 0, 1].tolist() == [True, True, True, False, False, False, False]
    assert seen[0, 0, 2:].all()
    assert attention_mask(masks, 0.0, (2, 2), length=7).all()
    torch.manual_seed(0)
    many = attention_mask(torch.full((4, 500, 1, 1), -1.0), 0.3, (1, 1), length=501)
    assert float(many[:, 0, :500, -1].float().mean()) == pytest.approx(0.7, abs=0.05)


def test_crops_above_the_built_size_train() -> None:
    model = model_of("test_vit3").train()  # made for 160 x 160
    images = torch.randn(2, 3, 203, 231)
    outputs = model.training_outputs(images)
    assert outputs.crop == (203, 231)
    assert outputs.predictions[-1].masks.shape[-2:] == (52, 60)  # 13 x 15 patches, doubled twice
    sum(one.masks.square().mean() + one.classes.square().mean() for one in outputs.predictions
        ).backward()  # fmt: skip
    assert all(p.grad is not None for p in model.net.encoder.parameters())
    position = model.net.encoder.model.pos_embed
    assert bool(position.grad.abs().sum(-1).gt(0).all())

    # the features of such a crop can be stored
    model.eval()
    check_encoder(model, 203)
    with torch.no_grad():
        direct = model.training_outputs(images)
        stored = model.training_outputs(images, model.encode(images))
        assert torch.equal(direct.predictions[-1].masks, stored.predictions[-1].masks)
        assert torch.equal(pixel_logits(direct), model(images))


def test_images_that_need_windows_do_not_train() -> None:
    model = model_of().train()
    model.spec = model.spec.model_copy(update={"img_size": 64})
    assert model(torch.randn(1, 3, 64, 100)).shape == (1, 3, 64, 100)
    with pytest.raises(InputError, match=r"64 x 64 pixels at most, got 64 x 100. Set crop to 64"):
        model.training_outputs(torch.randn(1, 3, 64, 100))


def test_a_saved_model_gives_the_same_logits_and_takes_other_classes(tmp_path: Path) -> None:
    model = model_of().eval()
    save_folder(model, tmp_path / "model")
    loaded = load_folder(tmp_path / "model").eval()
    images = torch.randn(1, 3, 60, 70)
    with torch.no_grad():
        assert torch.equal(model(images), loaded(images))
    other = load_folder(tmp_path / "model", ["a", "b"]).eval()
    with torch.no_grad():
        assert other(images).shape == (1, 2, 60, 70)
    changed = {
        name
        for name, tensor in other.net.state_dict().items()
        if tensor.shape != model.net.state_dict()[name].shape
    }
    assert changed == {"segmentation_head.classes.weight", "segmentation_head.classes.bias"}


def test_the_transformer_keeps_timms_names_and_layers(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = timm.create_model(VIT).state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    model = create(f"eomt-{VIT}", classes=3, encoder_weights=tmp_path / "vit.safetensors")
    loaded = model.net.encoder.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    listed = [name for layer in encoder_layers(model) for name in layer]
    assert sorted(listed) == sorted(
        n for n, _ in model.named_parameters() if n.startswith("net.encoder.")
    )
    assert len(encoder_layers(model)) >= 6
    unfreeze(model, 0.0)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "net.decoder.queries" in learning
    assert not any(name.startswith("net.encoder.") for name in learning)
    head = learning_names(model, Stage(name="head", epochs=1, learn="head"))
    assert head == {n for n in learning if n.startswith("net.segmentation_head.")}


def test_dropout_acts_before_the_classes() -> None:
    model = model_of()
    add_dropout(model, 0.5)
    layer = model.net.segmentation_head.classes
    tokens = torch.ones(1, 5, layer.in_features)
    model.train()
    assert not torch.equal(layer(tokens), layer(tokens))
    model.eval()
    expected = functional.linear(tokens, layer.weight, layer.bias)
    assert torch.equal(layer(tokens), expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (f"eomt-{VIT}", {"queries": 0}, "queries: should be greater than or equal to 1, got 0"),
        (f"eomt-{VIT}", {"blocks": 6}, "blocks is 6; allowed are 1 to 5, as test_vit.* has 6"),
        (f"eomt-{VIT}", {"layers": 2}, "has no option layers.* It has blocks, queries"),
        (
            "eomt-test_resnet",
            {},
            "eomt needs module vision_transformer or deit or eva, has resnet.*`zoo list --decoder",
        ),
    ],
)
def test_what_cannot_be_built(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create(name, classes=2, encoder_weights=None, **options)


def test_blocks_that_take_no_mask_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="the blocks of cait_xxs24_224 take no queries; a plain"),
        torch.device("meta"),
    ):
        query_encoder("cait_xxs24_224", None, 5)


def test_only_encoders_that_it_takes_are_listed_and_its_recipe_is_its_own() -> None:
    assert resolve(f"eomt-{VIT}").recipe == "eomt"
    assert resolve(f"linear-{VIT}").recipe == "transformer"
    assert resolve("eomt-resnet18").origins["supported"] == "decoder table: eomt.takes"
    assert list_models(decoder="eomt", encoder="resnet*18") == []
    assert list_models(decoder="eomt", encoder=VIT) == [f"eomt-{VIT}"]


def test_parallel_blocks_are_left_out() -> None:
    resolved = resolve("eomt-vit_small_patch16_18x2_224")
    assert not resolved.supported
    assert resolved.reason is not None
    assert resolved.reason.startswith("eomt needs an encoder that is not left out (name *_18x2_*, ")
    assert len(list_models(decoder="eomt")) == 237
    assert list_models(decoder="eomt", encoder="*pwee_*") == []


@pytest.mark.slow
def test_every_encoder_that_is_listed_takes_queries() -> None:
    for name in list_models(decoder="eomt"):
        with torch.device("meta"):
            assert query_encoder(name.removeprefix("eomt-"), None, 5).after[0] >= 0


def test_a_model_is_told_how_far_training_is() -> None:
    model = model_of()
    model.on_step(0.5)
    assert isinstance(model.net, MaskTransformer)
    assert model.net.progress == 0.5
    create("unet-test_resnet", classes=2, encoder_weights=None).on_step(0.5)
