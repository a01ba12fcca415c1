"""PSPNet as in its paper: dilation, pooling, auxiliary head, options; the older variant of SMP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.hub.folder import load_folder, save_folder
from zoo.models.heads.pspnet import PyramidPooling, convolution, scoring
from zoo.models.outputs import Outputs, full_size
from zoo.models.pyramid import Source
from zoo.models.segmentation import SegmentationModel
from zoo.training.engine.features import used_features
from zoo.training.losses import Objective


def model_of(encoder: str = "test_resnet", **options: Any) -> SegmentationModel:
    torch.manual_seed(0)
    options = {"channels": 8, "classes": 3, **options}
    return create(f"pspnet-{encoder}", encoder_weights=None, **options)


def bilinear(features: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(features, size, mode="bilinear", align_corners=False)


def test_the_whole_encoder_is_dilated_to_stride_8() -> None:
    model = model_of().eval()
    assert model.spec.encoder_args == {"output_stride": 8}
    net = timm.create_model("test_resnet", features_only=True, output_stride=8).eval()
    net.load_state_dict(model.net.encoder.model.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        deepest = net(images)[-1]
        (pooled,) = model.net.decoder.pyramid(model.net.encoder(images))
    assert deepest.shape == (1, 96, 8, 12)
    assert torch.equal(pooled, deepest)


def test_the_layers_are_those_of_the_paper() -> None:
    net = model_of(channels=512).net
    # four projections of 96 channels to 24, 192 channels to 512, 3 classes
    decoder = 4 * (96 * 24 + 2 * 24) + (192 * 512 * 9 + 2 * 512)
    assert sum(p.numel() for p in net.decoder.parameters()) == decoder
    assert sum(p.numel() for p in net.segmentation_head.parameters()) == 512 * 3 + 3
    # the stage before the last has 192 channels
    side = 192 * 256 * 9 + 2 * 256 + 256 * 3 + 3
    assert sum(p.numel() for p in net.auxiliary_head.parameters()) == side
    pools = [branch[0].output_size for branch in net.decoder.pooling.branches]
    assert pools == [1, 2, 3, 6]


@pytest.mark.parametrize(("pooling", "quadrants"), [("average", Tensor.mean), ("max", Tensor.amax)])
def test_pooling_against_quadrants_written_out(pooling: str, quadrants: Any) -> None:
    torch.manual_seed(1)
    module = PyramidPooling(2, (1, 2), pooling, "batch").eval()
    features = torch.randn(1, 2, 4, 6)
    whole = quadrants(features, dim=(2, 3))
    parts = [
        [quadrants(features[:, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3], dim=(2, 3))
         for column in range(2)]
        for row in range(2)
    ]  # fmt: skip
    squares = torch.stack([torch.stack(row, -1) for row in parts], -2)
    expected = [features]
    for branch, pooled in zip(module.branches, (whole[..., None, None], squares), strict=True):
        projected = torch.einsum("oc,bchw->bohw", branch[1].weight[:, :, 0, 0], pooled)
        expected.append(bilinear(torch.relu(projected / (1 + 1e-5) ** 0.5), (4, 6)))
    with torch.no_grad():
        assert torch.allclose(module(features), torch.cat(expected, 1), atol=1e-6)
    assert module.channels == 4


def test_the_auxiliary_loss_counts_0_4() -> None:
    model = model_of().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d | nn.BatchNorm2d):
            module.eval()
    images, target = torch.randn(2, 3, 60, 75), torch.randint(0, 3, (2, 60, 75))
    outputs = model.training_outputs(images)
    assert isinstance(outputs, Outputs)
    (side,) = outputs.auxiliary
    features = model.net.encoder(model.padded(images))
    assert torch.allclose(side.logits, model.net.auxiliary_head.layers(features[-2]), atol=1e-5)
    main, second = (bilinear(x, (64, 96))[..., :60, :75] for x in (outputs.logits, side.logits))
    assert torch.allclose(model(images), main, atol=1e-5)
    assert torch.equal(full_size(outputs), main)
    loss = Objective({"ce": 1.0})(outputs, target)
    expected = functional.cross_entropy(main, target)
    expected = expected + 0.4 * functional.cross_entropy(second, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_without_an_auxiliary_head() -> None:
    model = model_of(auxiliary=0)
    assert model.net.auxiliary_head is None
    outputs = model.training_outputs(torch.randn(2, 3, 64, 64))
    assert isinstance(outputs, Outputs)
    assert outputs.auxiliary == ()
    outputs.logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_plain_transformer_has_no_stage_before_its_last() -> None:
    model = model_of("test_vit")
    assert model.net.auxiliary_head is None
    assert model.net.decoder.pyramid.sources == [Source(8, (0,))]
    with pytest.raises(InputError, match="only one stage, so set auxiliary to 0"):
        model_of("test_vit", auxiliary=0.4)


def test_where_nothing_dilates_deep_levels_are_merged() -> None:
    model = model_of("hrnet_w18_small").eval()
    assert model.spec.encoder_args == {}
    strides = [level.stride for level in model.net.encoder.levels]
    assert strides == [8, 16, 32]
    assert model.net.decoder.pyramid.sources == [Source(8, (0, 1, 2))]
    outputs = model.training_outputs(torch.randn(1, 3, 64, 64))
    assert isinstance(outputs, Outputs)
    assert outputs.logits.shape == (1, 3, 8, 8)
    assert outputs.auxiliary[0].logits.shape == (1, 3, 4, 4)


def test_windows_of_a_fixed_size_keep_the_auxiliary_logits() -> None:
    model = model_of().eval()
    model.spec = model.spec.model_copy(update={"img_size": 64})
    images = torch.randn(1, 3, 64, 128)
    outputs = model.training_outputs(images)
    assert isinstance(outputs, Outputs)
    halves = [model.net.encoder(images[..., at : at + 64]) for at in (0, 64)]
    sides = [bilinear(model.net.auxiliary_head(half), (64, 64)) for half in halves]
    assert torch.allclose(outputs.auxiliary[0].logits, torch.cat(sides, -1), atol=1e-5)
    assert torch.allclose(full_size(outputs), model(images), atol=1e-5)
    assert outputs.auxiliary[0].factor == 0.4


def test_stored_features_hold_what_the_auxiliary_head_reads() -> None:
    model = model_of()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        features = model.net.encoder.eval()(images)
    assert used_features(model, features, (3, 64, 64)) == [False, True, True]


def test_other_classes_renew_both_scoring_layers(tmp_path: Path) -> None:
    model = model_of().eval()
    save_folder(model, tmp_path / "m")
    images = torch.randn(1, 3, 40, 50)
    same, other = load_folder(tmp_path / "m").eval(), load_folder(tmp_path / "m", list("abcde"))
    with torch.no_grad():
        assert torch.equal(same(images), model(images))
    assert other.net.auxiliary_head.layers[-1].out_channels == 5
    assert torch.equal(
        other.net.auxiliary_head.layers[0][0].weight, model.net.auxiliary_head.layers[0][0].weight
    )


OPTIONS: list[dict[str, Any]] = [
    {"kernels": [3, 5], "rates": [1, 2], "pooling": "max", "upsampling": "nearest"},
    {"kernels": [7], "separable": True, "norm": "group", "upsampling": "transposed"},
    {"bins": [1, 4], "norm": "layer", "dropout": 0.0, "upsampling": "shuffle"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_options_train_and_travel(options: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(**options).train()
    images = torch.randn(1, 3, 50, 67)
    outputs = model.training_outputs(images)
    assert isinstance(outputs, Outputs)
    loss = Objective({"ce": 1.0})(outputs, torch.zeros(1, 50, 67, dtype=torch.long))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    if options.get("norm"):
        parts = (model.net.decoder, model.net.auxiliary_head)
        assert not any(isinstance(m, nn.BatchNorm2d) for part in parts for m in part.modules())
    save_folder(model.eval(), tmp_path / "m")
    with torch.no_grad():
        logits = model(images)
        assert logits.shape == (1, 3, 50, 67)
        assert torch.equal(load_folder(tmp_path / "m").eval()(images), logits)


def test_parallel_kernels_share_the_channels() -> None:
    layers = convolution(6, 12, kernels=(3, 5), rates=(1, 4))
    branches = layers[0].branches
    found = [(b.kernel_size[0], b.dilation[0], b.out_channels) for b in branches]
    assert found == [(3, 1, 3), (3, 4, 3), (5, 1, 3), (5, 4, 3)]
    features = torch.randn(1, 6, 9, 10)
    stacked = torch.cat([branch(features) for branch in branches], 1)
    assert torch.equal(layers[0](features), stacked)
    assert stacked.shape == (1, 12, 9, 10)


def test_a_separable_kernel_is_a_product() -> None:
    depthwise, pointwise = convolution(4, 6, kernels=(5,), rates=(2,), separable=True)[0]
    kernel = pointwise.weight[:, :, 0, 0, None, None] * depthwise.weight[:, 0][None]
    features = torch.randn(2, 4, 12, 11)
    expected = functional.conv2d(features, kernel, padding=4, dilation=2)
    assert torch.allclose(pointwise(depthwise(features)), expected, atol=1e-5)


def test_layer_norm_looks_at_one_pixel_alone() -> None:
    layers = convolution(3, 5, norm="layer")
    values = torch.randn(2, 5, 4, 4)
    expected = functional.layer_norm(values.permute(0, 2, 3, 1), (5,), eps=layers[1].eps)
    assert torch.allclose(layers[1](values), expected.permute(0, 3, 1, 2), atol=1e-6)


def test_enlargements() -> None:
    features = torch.randn(1, 2, 5, 6)
    small = scoring(2, 3, "bilinear", 8)(features)
    assert small.shape == (1, 3, 5, 6)
    for kind in ("nearest", "transposed", "shuffle"):
        assert scoring(2, 3, kind, 8)(features).shape == (1, 3, 40, 48)
    nearest = scoring(2, 3, "nearest", 4)
    repeated = nearest[0](features).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(nearest(features), repeated)
    learned = scoring(2, 3, "transposed", 2)  # starts as bilinear interpolation
    inside = bilinear(learned[0](features), (10, 12))[..., 1:-1, 1:-1]
    assert torch.allclose(learned(features)[..., 1:-1, 1:-1], inside, atol=1e-6)
    dense = scoring(2, 3, "shuffle", 2)
    scores = dense[0](features)
    assert torch.equal(dense(features)[0, 1, 3, 4], scores[0, 4 * 1 + 2 * 1 + 0, 1, 2])


def test_a_folder_from_when_smps_psp_net_was_called_pspnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create("pspnet_lite-test_resnet", classes=3, encoder_weights=None).eval()
    save_folder(model, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    assert config["_model_class"] == "PSPNet"
    config["_zoo"]["spec"] |= {"decoder": "pspnet", "name": "pspnet-test_resnet"}
    file.write_text(json.dumps(config))
    loaded = load_folder(tmp_path / "m").eval()
    assert (loaded.spec.decoder, loaded.spec.name) == ("pspnet_lite", "pspnet_lite-test_resnet")
    images = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@pytest.mark.parametrize("norm", ["groupnorm", "layernorm"])
@pytest.mark.parametrize("name", ["unet-test_resnet", "upernet-test_vit"])
def test_norms_that_smps_own_decoders_cannot_build(name: str, norm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"decoder_use_norm": norm}
    model = create(name, classes=3, encoder_weights=None, **options)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.net.decoder.modules())
    images = torch.randn(1, 3, 64, 64)
    model.train()(images).square().mean().backward()
    save_folder(model.eval(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["_model_class"] not in ("Unet", "UPerNet")
    with torch.no_grad():
        assert torch.equal(load_folder(tmp_path / "m").eval()(images), model(images))
