"""Arguments of timm's builder from the user: what is taken, what it makes of the model, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from zoo.checks.encoder_table import PROBES, argument_rows
from zoo.common.errors import InputError
from zoo.creation.create import create
from zoo.hub.folder import save_folder
from zoo.models.mask_transformer import MaskTransformer
from zoo.models.meta import sketched
from zoo.models.network import encoder_levels
from zoo.registry.encoder_args import INSTEAD, EncoderArguments, accepted, built_with
from zoo.registry.encoders import ENCODER_ARGS, encoders
from zoo.registry.resolve import describe, resolve

VIT = "test_vit"
VIT_TAKES = (
    "act_layer, attn_drop_rate, drop_path_rate, init_values, no_embed_class, norm_layer, "
    "patch_size, pos_drop_rate, proj_drop_rate, qk_norm, reg_tokens"
)
PLAIN = (
    "beit, deepseek_vit, deit, eva, naflexvit, qwen3_vit, tnt, vision_transformer, "
    "vision_transformer_relpos, vision_transformer_sam"
)


FAST = ("beit", "eva", "vision_transformer")
SMALL_DPT = {"decoder_fusion_channels": 16, "decoder_intermediate_channels": (16, 16, 16, 16)}


def images(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's test_vit, patches of 16 pixels, in a file."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("vit") / "test_vit.safetensors"
    save_file(timm.create_model(VIT).state_dict(), file)
    return file


# --- what the arguments make of the model ---


@pytest.mark.parametrize(
    ("name", "patch", "loadable"),
    [
        ("linear-test_vit", 32, False),
        ("unet-test_vit", 32, False),
        ("eomt-test_vit", 32, False),
        ("dpt-test_vit", 32, True),
        ("dpt-test_vit", 20, False),  # SMP's class takes strides of 8, 16 and 32 only
    ],
)
def test_another_patch_is_in_the_description_and_loads_again_to_equal_outputs(
    name: str, patch: int, loadable: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    args = {"patch_size": np.int64(patch), "drop_path_rate": 0.1}
    options = SMALL_DPT if name.startswith("dpt") else {}
    model = create(name, classes=3, encoder_weights=None, encoder_args=args, **options).eval()
    spec = model.spec
    assert spec.encoder_args.items() >= {"patch_size": patch, "drop_path_rate": 0.1}.items()
    assert spec.size_multiple == (32 if loadable else patch)
    assert spec.smp_loadable is loadable
    vit = next(m for m in model.modules() if isinstance(m, timm.models.VisionTransformer))
    assert vit.patch_embed.patch_size == (patch, patch)
    given = images(65, 90)
    with torch.no_grad():
        expected = model(given)
        assert expected.shape == (1, 3, 65, 90)
        save_folder(model, tmp_path / "model")
        again = create(tmp_path / "model").eval()
        assert again.spec == spec
        assert torch.equal(again(given), expected)
        if loadable:
            plain = smp.from_pretrained(tmp_path / "model").eval()
            whole = images(64, 96)
            assert torch.equal(plain(whole), model.net(whole))


@pytest.mark.parametrize("decoder", ["eomt", "pmt"])
def test_patches_of_32_double_once_more_and_quarter_the_tokens(decoder: str) -> None:
    shapes = {}
    for patch in (16, 32):
        model = create(
            f"{decoder}-test_vit", classes=3, encoder_weights=None,
            encoder_args={"patch_size": patch}, queries=5, blocks=2,
        ).eval()  # fmt: skip
        net = model.net
        assert isinstance(net, MaskTransformer)
        with torch.no_grad():
            patches = net.encoder(images(160, 160))[-1][0]
            masks = net.decoder.upscale(patches)
            assert model(images(97, 130)).shape == (1, 3, 97, 130)
        shapes[patch] = len(net.decoder.upscale), patches.shape[2:], masks.shape[2:]
    assert shapes == {16: (2, (10, 10), (40, 40)), 32: (3, (5, 5), (40, 40))}


def test_pretrained_patches_are_resampled_by_timm(vit_file: Path) -> None:
    model = create(
        "eomt-test_vit", classes=3, encoder_weights=vit_file, encoder_args={"patch_size": 32}
    )
    overlay = {"file": str(vit_file)}
    reference = timm.create_model(
        VIT, pretrained=True, pretrained_cfg_overlay=overlay, patch_size=32, num_classes=0
    )
    net: Any = model.net
    mine, theirs = net.encoder.model.patch_embed, reference.patch_embed
    assert mine.proj.weight.shape == (64, 3, 32, 32)
    assert torch.equal(mine.proj.weight, theirs.proj.weight)


@pytest.mark.parametrize(
    "args",
    [{"reg_tokens": 4}, {"no_embed_class": True}],
    ids=str,
)
def test_arguments_that_contradict_the_pretrained_weights_are_named(
    args: dict[str, Any], vit_file: Path
) -> None:
    with pytest.raises(InputError) as error:
        create(
            "linear-test_vit", encoder_weights=vit_file,
            encoder_args={"drop_path_rate": 0.1, "patch_size": 32, **args},
        )  # fmt: skip
    assert str(error.value) == (
        f"The pretrained weights of {VIT}.r160_in1k do not fit encoder_args {args}: the net has "
        "other parameters then. Leave that out, or start from random weights with "
        "encoder_weights=None (on the command line: --encoder-weights none)."
    )


def test_drop_path_reaches_timm_in_smp_classes_and_in_the_adapter() -> None:
    for name in ("unet-test_resnet", "fcn-test_resnet"):
        model = create(name, encoder_weights=None, encoder_args={"drop_path_rate": 0.2})
        rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
        assert max(rates) == pytest.approx(0.2)


# --- the row of the table ---


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(module, marks=[] if module in FAST else [pytest.mark.long])
        for module, takes in accepted().items()
        if "patch_size" in takes
    ],
)
def test_the_row_of_another_patch_is_what_timm_builds(module: str) -> None:
    rows = (row for row in encoders().values() if row.module == module)
    row = built_with(min(rows, key=lambda row: float(row.params_m)), {"patch_size": 32})
    assert {*row.reductions.split("/")} == {"32"}
    assert not any(int(side) % 32 for side in row.input_size.split("/")[1:])
    levels, plain = encoder_levels(row.name, patch_size=32)
    assert plain
    assert levels[-1].stride == 32
    assert levels[-1].channels == row.channels_at(32)


def test_the_row_counts_registers() -> None:
    row = built_with(encoders()[VIT], {"reg_tokens": 4})
    with sketched():
        assert timm.create_model(VIT, reg_tokens=4).num_prefix_tokens == 5
    assert row.prefix_tokens == "5"


def test_the_table_of_arguments_is_what_timm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROBES.keys() | {"patch_size"} == EncoderArguments.model_fields.keys()
    assert EncoderArguments.model_fields.keys() <= ENCODER_ARGS
    assert {row.module for row in encoders().values()} == accepted().keys()
    assert not EncoderArguments.model_fields.keys() & INSTEAD.keys()
    names = ("test_vit", "test_resnet", "test_efficientnet", "twins_svt_small")
    some = {name: encoders()[name] for name in names}
    monkeypatch.setattr("zoo.checks.encoder_table.table.encoders", lambda: some)
    assert dict(argument_rows()) == {
        row.module: "/".join(accepted()[row.module]) for row in some.values()
    }


# --- what is not taken ---


@pytest.mark.parametrize(
    ("name", "args", "line"),
    [
        (
            "linear-test_vit",
            {"patchsize": 32},
            f"patchsize: test_vit does not take it. Did you mean patch_size? It takes: {VIT_TAKES}",
        ),
        (
            "linear-test_vit",
            {"num_classes": 3},
            "num_classes: leave it out; it belongs to the classifier, which a segmentation model "
            "does not have",
        ),
        (
            "linear-test_vit",
            {"checkpoint_path": "/etc/passwd"},
            "checkpoint_path: leave it out; say which weights with encoder_weights=",
        ),
        (
            "linear-test_vit",
            {"depth": 3},
            "depth: leave it out; it makes another architecture; choose an encoder that is built "
            "so (`zoo list`)",
        ),
        (
            "linear-test_vit",
            {"patch_drop_rate": 0.5},
            "patch_drop_rate: leave it out; it leaves out patches, and every pixel needs its own",
        ),
        ("linear-test_vit", {"patch_size": 32.5}, "patch_size: should be a whole number, got 32.5"),
        (
            "linear-test_vit",
            {"patch_size": [16, 32]},
            "patch_size: should be a whole number, got [16, 32]",
        ),
        (
            "linear-test_vit",
            {"patch_size": 640},
            "patch_size: should be less than or equal to 64, got 640",
        ),
        ("linear-test_vit", {"drop_path_rate": 1}, "drop_path_rate: should be less than 1, got 1"),
        ("linear-test_vit", {"qk_norm": 1}, "qk_norm: should be true or false, got 1"),
        (
            "unet-swin_tiny_patch4_window7_224",
            {"patch_size": 8},
            f"patch_size: only plain transformers can be built with other patches (timm's modules "
            f"{PLAIN}), and swin_tiny_patch4_window7_224 is of swin_transformer",
        ),
        (
            "unet-test_resnet",
            {"reg_tokens": 4},
            "reg_tokens: test_resnet does not take it. It takes: act_layer, drop_block_rate, "
            "drop_path_rate, norm_layer",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_each(name: str, args: dict[str, Any], line: str) -> None:
    encoder = name.partition("-")[2]
    with pytest.raises(InputError) as error:
        create(name, encoder_weights=None, encoder_args=args)
    assert str(error.value) == f"These arguments of {encoder} cannot be used:\n  - {line}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"encoder_args": ["patch_size"]},
            'encoder_args should be a mapping of arguments of timm, such as {"drop_path_rate": '
            "0.1}, got list.",
        ),
        (
            {"encoder_args": {"img_size": 64}, "img_size": 64},
            "img_size is given twice, also in encoder_args. Leave out one of them.",
        ),
        (
            {"patch_size": 32},
            "patch_size: for arguments of the encoder write encoder_args={'patch_size': 32}.",
        ),
        (
            {"encoder_args": {"act_layer": "gilu"}},
            "linear-test_vit cannot be built with encoder_args {'act_layer': 'gilu'}: timm knows "
            "no 'gilu' (KeyError). Change or leave out one of them.",
        ),
    ],
)
def test_other_mistakes_have_one_message(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        create("linear-test_vit", encoder_weights=None, **arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("encoder", "args"),
    [
        ("gcvit_xxtiny", {"window_size": 4}),
        ("deit_tiny_distilled_patch16_224", {"no_embed_class": True}),
    ],
)
def test_an_encoder_that_is_built_but_cannot_run_is_refused(
    encoder: str, args: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as error:
        create(f"linear-{encoder}", encoder_weights=None, encoder_args=args)
    text = str(error.value)
    assert text.startswith(f"linear-{encoder} cannot be built with encoder_args {args}: shape '")
    assert text.endswith("(RuntimeError). Change or leave out one of them.")


def test_a_trained_model_takes_no_arguments(tmp_path: Path) -> None:
    save_folder(create("unet-test_resnet", encoder_weights=None), tmp_path / "model")
    with pytest.raises(InputError, match=r"is a trained model; only classes= can be changed\."):
        create(tmp_path / "model", encoder_args={"drop_path_rate": 0.1})


# --- overlays ---


def test_an_overlay_gives_arguments_in_rules_and_models(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "encoders:\n  - where: {name: test_vit}\n    args: {patch_size: 32}\n"
        "models:\n  linear-coarse: {encoder: test_vit2, encoder_args: {patch_size: 32}}\n"
    )
    for name in ("linear-test_vit", "linear-coarse"):
        spec = create(name, encoder_weights=None, registry=overlay).spec
        assert spec.encoder_args["patch_size"] == 32
        assert spec.size_multiple == 32
    args = {"patch_size": 8}
    found = resolve("linear-test_vit", overlay, args)
    assert found.encoder_args == args
    assert found.origins["encoder_args.patch_size"] == "given"
    shown = {key: (value, origin) for key, value, origin in describe("linear-coarse", overlay)}
    assert shown["reductions"] == ("32/32/32", "timm table")
    assert shown["encoder_args.patch_size"] == (32, f"overlay {overlay}: models.linear-coarse")
    assert shown["encoder_args"] == (VIT_TAKES.split(", "), "timm table")


def test_wrong_arguments_in_an_overlay_are_named_with_their_place(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    swin = "swin_tiny_patch4_window7_224"
    content: dict[str, Any] = {"models": {"unet-mine": {"encoder": swin}}}
    content["models"]["unet-mine"]["encoder_args"] = {"patch_size": 8, "drop_path": 0.1}
    overlay.write_text(json.dumps(content))
    with pytest.raises(InputError) as error:
        resolve("unet-mine", overlay)
    assert "  - models.unet-mine.encoder_args: patch_size: only plain" in str(error.value)
    assert "drop_path: swin_tiny_patch4_window7_224 does not take it. Did you" in str(error.value)
    overlay.write_text(
        json.dumps({"encoders": [{"where": {"name": swin}, "args": {"patch_size": 8}}]})
    )
    with pytest.raises(InputError, match="is not supported: patch_size: only plain transformers"):
        create(f"unet-{swin}", encoder_weights=None, registry=overlay)
