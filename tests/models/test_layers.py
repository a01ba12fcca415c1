"""Freezing: nothing of a frozen layer moves, in any encoder family."""

from __future__ import annotations

import re
import warnings
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from zoo.common.errors import InputError
from zoo.models.build import build
from zoo.models.layers import (
    encoder_layers,
    learning_layers,
    learning_names,
    set_learning,
    spared_from_decay,
    stage_fraction,
    train_mode,
    unfreeze,
)
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec, class_names, palette_for
from zoo.registry.encoders import Encoder, encoders
from zoo.registry.recipe import Stage

FAMILIES = [
    *("resnet18", "densenet121", "efficientnet_b0", "convnext_atto"),
    pytest.param("vgg11_bn", marks=pytest.mark.long),
]
SWIN = "swin_tiny_patch4_window7_224"


def make(encoder: str, decoder: str = "unet", **encoder_args: object) -> SegmentationModel:
    names = class_names(3)
    return build(
        ModelSpec(
            name=f"{decoder}-{encoder}",
            decoder=decoder,
            encoder=encoder,
            classes=names,
            palette=palette_for(names, None),
            mean=[0.5] * 3,
            std=[0.5] * 3,
            encoder_args=dict(encoder_args),
        )
    )


def train_some_steps(model: SegmentationModel, size: int = 64, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(steps):
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(step))
        loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("encoder", [*FAMILIES, "pvt_v2_b0"])
def test_a_frozen_encoder_does_not_move_and_repeats_itself(encoder: str) -> None:
    args = {"drop_path_rate": 0.5} if encoder in {"convnext_atto", "pvt_v2_b0"} else {}
    model = make(encoder, **args)
    unfreeze(model, 0.0)
    train_mode(model)
    before_encoder, before_decoder = snapshot(model.net.encoder), snapshot(model.net.decoder)
    train_some_steps(model)
    after = model.net.encoder.state_dict()
    assert all(torch.equal(before_encoder[name], after[name]) for name in before_encoder)
    moved = model.net.decoder.state_dict()
    assert any(not torch.equal(before_decoder[name], moved[name]) for name in before_decoder)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first, second = model.net.encoder(images), model.net.encoder(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("encoder", FAMILIES)
def test_half_of_the_layers_learn_and_the_other_half_stays(encoder: str) -> None:
    model = make(encoder)
    layers = encoder_layers(model)
    unfreeze(model, 0.5)
    train_mode(model)
    frozen = {n for layer in layers[: len(layers) - round(len(layers) / 2)] for n in layer}
    before = snapshot(model)
    train_some_steps(model)
    after = model.state_dict()
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    learning = {n for layer in layers for n in layer} - frozen
    assert all(not torch.equal(before[name], after[name]) for name in learning)
    for name, buffer in model.named_buffers():
        module = name.rsplit(".", 1)[0]
        if f"{module}.weight" in frozen:
            assert torch.equal(before[name], buffer), name
        elif f"{module}.weight" in learning and name.endswith("running_mean"):
            assert not torch.equal(before[name], buffer), name


def test_stochastic_depth_is_off_in_frozen_layers_and_on_again_afterwards() -> None:
    model = make("convnext_atto", drop_path_rate=0.9)
    unfreeze(model, 0.0)
    train_mode(model)
    drops = [m for m in model.modules() if type(m).__name__ == "DropPath"]
    assert drops
    assert not any(module.training for module in drops)
    unfreeze(model, 1.0)
    train_mode(model)
    assert all(module.training for module in drops)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_decoder_dropout_stays_on_while_the_encoder_is_frozen() -> None:
    model = make("resnet18", "fpn")
    unfreeze(model, 0.0)
    train_mode(model)
    dropouts = [m for m in model.net.decoder.modules() if isinstance(m, nn.Dropout2d)]
    assert dropouts
    assert all(module.training for module in dropouts)


def test_a_module_without_parameters_follows_the_layer_behind_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2), nn.Dropout())
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    train_mode(model)
    assert [module.training for module in model] == [False, True, True, True]
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    model.append(nn.Linear(2, 2))
    train_mode(model)
    assert [module.training for module in model] == [False, False, False, True, True]


def test_layers_of_resnet18_from_the_stem_to_the_top() -> None:
    layers = encoder_layers(make("resnet18"))
    # a stem and two blocks in each of four stages
    assert len(layers) == 9
    assert layers[0] == [
        f"net.encoder.model.{n}" for n in ("conv1.weight", "bn1.weight", "bn1.bias")
    ]
    assert all("layer4.1." in name for name in layers[-1])


@pytest.mark.parametrize("encoder", [*FAMILIES, SWIN])
def test_every_encoder_parameter_is_in_exactly_one_layer(encoder: str) -> None:
    model = make(encoder)
    listed = [name for layer in encoder_layers(model) for name in layer]
    wanted = [n for n, _ in model.named_parameters() if n.startswith("net.encoder.")]
    assert sorted(listed) == sorted(wanted)


@pytest.mark.parametrize(
    ("count", "fraction", "learning"),
    [(9, 0.0, 0), (9, 1.0, 9), (9, 0.5, 4), (9, 0.01, 1), (10, 0.25, 2)],
)
def test_fraction_to_layers(count: int, fraction: float, learning: int) -> None:
    assert learning_layers(count, fraction) == learning


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match=r"unfreeze is the fraction .* in \[0, 1\]"):
        unfreeze(make("resnet18"), fraction)


def stage(**changes: object) -> Stage:
    return Stage.model_validate({"name": "some", "epochs": 4, **changes})


def encoder_part(names: set[str]) -> set[str]:
    """The names of timm's own parameters among `names`, as timm's net has them."""
    prefix = "net.encoder.model."
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def test_learn_decoder_and_head() -> None:
    model = make("test_resnet")
    everything = {name for name, _ in model.named_parameters()}
    decoder = {name for name in everything if not name.startswith("net.encoder.")}
    assert learning_names(model, stage(learn="decoder")) == decoder
    head = {"net.segmentation_head.0.weight", "net.segmentation_head.0.bias"}
    assert learning_names(model, stage(learn="head")) == head
    assert learning_names(model, stage()) == everything
    assert learning_names(model, stage(unfreeze=0.0)) == decoder


def test_only_the_head_moves_where_only_the_head_learns() -> None:
    model = make("test_resnet")
    assert set_learning(model, stage(learn="head"))
    assert not set_learning(model, stage(learn="head"))
    train_mode(model)
    before = snapshot(model)
    train_some_steps(model)
    moved = {name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()}
    assert moved == {"net.segmentation_head.0.weight", "net.segmentation_head.0.bias"}


def test_a_net_without_a_scoring_layer_has_no_head_to_learn() -> None:
    model = make("test_resnet")
    model.net.segmentation_head = nn.Identity()
    with pytest.raises(InputError, match="no separate segmentation head"):
        learning_names(model, stage(learn="head"))


@pytest.mark.parametrize(
    ("patterns", "learning"),
    [
        (["layer4.1.conv2"], {"layer4.1.conv2.weight"}),
        (["conv1"], {"conv1.weight"}),
        (["conv1", "bn?"], {"conv1.weight", "bn1.weight", "bn1.bias"}),
        (["layer4.?.bn2.bias"], {"layer4.0.bn2.bias", "layer4.1.bn2.bias"}),
    ],
)
def test_patterns_of_names(patterns: list[str], learning: set[str]) -> None:
    model = make("resnet18")
    names = learning_names(model, stage(unfreeze_names=patterns))
    assert encoder_part(names) == learning
    assert "net.segmentation_head.0.weight" in names


def test_patterns_use_timms_names_where_the_extractor_has_others() -> None:
    model = make("convnext_atto")
    own = {name for name in encoder_part({n for n, _ in model.named_parameters()}) if "3" in name}
    assert any(name.startswith("stages_3.") for name in own)
    names = encoder_part(learning_names(model, stage(unfreeze_names=["stages.3"])))
    assert names == {name for name in own if name.startswith("stages_3.")}


def test_patterns_that_match_nothing_are_all_named_with_near_ones() -> None:
    with pytest.raises(InputError) as caught:
        learning_names(make("resnet18"), stage(unfreeze_names=["layer5", "layer4", "blocks.3"]))
    lines = str(caught.value).splitlines()
    assert lines[0] == "stages.some.unfreeze_names does not fit the encoder resnet18:"
    assert lines[1].startswith("  - 'layer5' matches nothing. Did you mean layer")
    assert lines[2].startswith("  - 'blocks.3' matches nothing.")
    assert lines[1].endswith("Its modules: conv1, bn1, layer1, layer2, layer3, layer4")
    assert len(lines) == 3


def test_the_fraction_grows_epoch_by_epoch() -> None:
    growing = stage(epochs=5, unfreeze_from=0.0, unfreeze=1.0)
    assert [stage_fraction(growing, epoch) for epoch in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    model = make("resnet18")
    layers = encoder_layers(model)
    counts = []
    for epoch in range(5):
        names = learning_names(model, growing, epoch)
        learning = [set(layer) <= names for layer in layers]
        assert learning == sorted(learning)  # from the top
        counts.append(sum(learning))
    assert counts == [0, 2, 4, 7, 9]  # shares of nine layers, rounded


def test_frozen_statistics_stay_while_scale_and_shift_learn() -> None:
    model = make("test_resnet")
    unfreeze(model, 1.0)
    train_mode(model, frozen_statistics=True)
    before = snapshot(model)
    train_some_steps(model)
    after = model.state_dict()
    statistics = [name for name in before if "running" in name or "num_batches" in name]
    assert len(statistics) > 20
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    scales = [name.replace("running_mean", "weight") for name in statistics if "mean" in name]
    assert all(not torch.equal(before[name], after[name]) for name in scales)


def test_timms_list_without_decay_reaches_nets_that_are_wrapped() -> None:
    names = encoder_part(spared_from_decay(make(SWIN)))
    tables = [n for n, _ in make(SWIN).named_parameters() if "relative_position_bias_table" in n]
    assert len(names) == len(tables) == 12
    assert spared_from_decay(make("resnet18")) == set()


def test_wrappers_and_names_that_look_like_them() -> None:
    # tresnet's own modules are called body.conv1 and so on: a stem and 3 + 4 + 11 + 3 blocks;
    # xception's are put into a `body`: a stem, twelve blocks and the last two convolutions
    for encoder, count in (("tresnet_m", 22), ("legacy_xception", 14)):
        model = Wrapped(encoder)
        assert len(encoder_layers(model)) == count


@pytest.mark.parametrize(
    ("encoder", "stem", "second", "last", "count"),
    [
        # stem; the blocks of each stage, its downsampling with its first one
        ("repvit_m0_9", {"stem"}, "stages_0.blocks.0.", "stages_3.blocks.1.", 1 + 2 + 2 + 14 + 2),
        ("hgnetv2_b0", {"stem"}, "stages_0.blocks.0.", "stages_3.blocks.0.", 1 + 1 + 1 + 2 + 1),
        # a layer is a stage
        ("mvitv2_tiny", {"patch_embed"}, "stages.0.blocks.0.", "stages.3.blocks.1.", 1 + 4),
        # the normalisation before the first block belongs to the stem
        (
            "vit_base_patch16_clip_224",
            {"cls_token", "pos_embed", "patch_embed", "norm_pre"},
            "blocks.0.", "blocks.11.", 1 + 12,
        ),
    ],
)  # fmt: skip
def test_order_of_layers_that_timm_has_mended(
    encoder: str, stem: set[str], second: str, last: str, count: int
) -> None:
    layers = [[unwrapped(name) for name in layer] for layer in encoder_layers(Wrapped(encoder))]
    assert {name.partition(".")[0] for name in layers[0]} == stem
    assert any(name.startswith(second) for name in layers[1])
    assert any(name.startswith(last) for name in layers[-1])
    assert len(layers) == count


def test_layers_of_a_net_that_timm_does_not_number() -> None:
    layers = [set(layer) for layer in encoder_layers(Wrapped("poolformerv2_s12"))]
    prefix = "net.encoder.model."
    starts = ["stem.", "stages_0.blocks.0.", "stages_0.blocks.1.", "stages_1.downsample."]
    for layer, start in zip(layers, starts, strict=False):
        assert all(name.startswith(prefix + start) for name in layer)
    # a stem, two + two + six + two blocks, and a downsampling before three of the stages
    assert len(layers) == 1 + 12 + 3


class Wrapped(nn.Module):
    """An encoder of timm under the names that a model has it by."""

    def __init__(self, encoder: str):
        super().__init__()
        self.spec = SimpleNamespace(encoder=encoder, name=encoder)
        self.net = nn.Module()
        self.net.encoder = nn.Module()
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.net.encoder.model = timm.create_model(encoder, features_only=True)


def smallest_of_each_module() -> list[str]:
    found: dict[str, Encoder] = {}
    for row in encoders().values():
        if row.module not in found or size(row) < size(found[row.module]):
            found[row.module] = row
    return sorted(row.name for row in found.values())


def size(row: Encoder) -> tuple[float, str]:
    return float(row.params_m), row.name


def unwrapped(name: str) -> str:
    """The name without what wraps timm's net; one of the net's own parameters has no dot."""
    return re.sub(r"^net\.encoder\.model\.(model\.|body\.)?", "", name)


def check_partition(encoder: str) -> None:
    """Every parameter in one layer, the stem first; what is frozen is still in every layer."""
    model = Wrapped(encoder)
    wanted = [name for name, _ in model.named_parameters()]
    layers = encoder_layers(model)
    assert sorted(name for layer in layers for name in layer) == sorted(wanted)
    assert len(layers) > 2
    assert next(name for name in wanted if "." in unwrapped(name)) in layers[0]
    unfreeze(model, 0.5)
    train_mode(model)
    for module in model.net.encoder.modules():
        states = {parameter.requires_grad for parameter in module.parameters()}
        if len(states) == 1:
            inside = {child.training for child in module.modules()}
            assert inside == states, type(module).__name__
    for share, training in ((0.0, False), (1.0, True)):
        unfreeze(model, share)
        train_mode(model)
        inner = list(model.net.encoder.model.modules())[1:]
        assert {module.training for module in inner} == {training}


@pytest.mark.parametrize(
    "encoder",
    [
        "test_vit",
        "test_efficientnet",
        "test_byobnet",
        "levit_128s",
        "mobilevitv2_050",
        "xcit_nano_12_p16_224",
    ],
)
def test_partition_of_some_architectures(encoder: str) -> None:
    check_partition(encoder)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", smallest_of_each_module())
def test_partition_of_every_module_of_timm(encoder: str) -> None:
    check_partition(encoder)


def test_an_encoder_of_smps_own_is_ordered_as_an_image_meets_it() -> None:
    model = make("smp:mit_b0", "segformer")
    layers = [
        [name.removeprefix("net.encoder.") for name in layer] for layer in encoder_layers(model)
    ]
    assert sorted(name for layer in layers for name in layer) == sorted(
        name.removeprefix("net.encoder.")
        for name, _ in model.named_parameters()
        if name.startswith("net.encoder.")
    )
    assert len(layers) == 9  # the stem and two blocks in each of four stages
    assert {name.partition(".")[0] for name in layers[0]} == {"patch_embed1"}
    assert {name.partition(".")[0] for name in layers[2]} == {"block1", "norm1", "patch_embed2"}
    assert {name.partition(".")[0] for name in layers[8]} == {"block4", "norm4"}
    unfreeze(model, 2 / 9)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "net.encoder.block4.0.norm1.weight" in learning
    assert "net.encoder.patch_embed4.proj.weight" not in learning
    assert "net.segmentation_head.0.weight" in learning
    assert spared_from_decay(model) <= {name for name, _ in model.named_parameters()}
    stage = Stage(name="all", epochs=1, unfreeze=1.0, unfreeze_names=["block3"])
    assert "net.encoder.block3.1.norm2.bias" in learning_names(model, stage)
