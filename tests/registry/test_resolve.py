"""Names, what they resolve to, and the order in which the layers win."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from zoo.common.errors import InputError
from zoo.common.files import natural_key
from zoo.leaderboard.lookup import show
from zoo.registry import resolve as registry_resolve
from zoo.registry.load import split_name
from zoo.registry.resolve import list_models, resolve

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def test_a_name_is_split_at_the_first_hyphen() -> None:
    assert split_name("unet-resnet18") == ("unet", "resnet18", None)
    model = resolve("deeplabv3plus-resnet18.a1_in1k")
    assert (model.decoder, model.encoder, model.tag) == ("deeplabv3plus", "resnet18", "a1_in1k")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "'' is not a model name. .*for example unet-resnet18"),
        ("unet", "'unet' is not a model name.*: add an encoder, for example unet-resnet18"),
        ("resnet18", "'resnet18' is not a model name.*: add a decoder, for example unet-resnet18"),
        ("foo", "'foo' is not a model name.*, for example unet-resnet18"),
        ("unnet-resnet18", "Unknown decoder 'unnet'. Did you mean unet"),
        ("Unet-ResNet18", "Unknown encoder 'ResNet18'. Did you mean resnet18"),
        ("unet-", "Unknown encoder ''. `zoo list` shows what there is"),
        ("unet-tu-resnet18", "Unknown encoder 'tu-resnet18'. Did you mean resnet18 or"),
        ("unet-zzzzzzzz", "Unknown encoder 'zzzzzzzz'. `zoo list` shows"),
        ("unet-resnet18.a9_in1k", "Unknown tag of resnet18 'a9_in1k'. Did you mean .*a1_in1k"),
        ("unet-resnet18.", "Unknown tag of resnet18 ''"),
        ("unet-botnet50ts_256.x", "botnet50ts_256 has no pretrained weights, so leave out the tag"),
        (
            "unet-smp:mit_b0",
            "'smp:mit_b0' can only be used through a curated model",
        ),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(name)


def test_everything_wrong_with_a_name_is_said_at_once() -> None:
    with pytest.raises(InputError) as caught:
        resolve("unnet-resnet81")
    assert len(str(caught.value).splitlines()) == 3


def test_the_default_weights_come_from_the_table() -> None:
    model = resolve("unet-resnet18")
    assert (model.encoder, model.tag, model.timm_name) == (
        "resnet18",
        "a1_in1k",
        "resnet18.a1_in1k",
    )
    assert model.hub_id == "timm/resnet18.a1_in1k"
    assert (model.mean, model.std) == IMAGENET
    assert model.license == "apache-2.0"
    assert model.recipe == "cnn"
    assert model.weights_file is None
    assert model.supported
    assert model.smp_loadable
    assert model.origins["hub_id"] == "timm table"
    assert model.origins["recipe"] == "registry.yaml: encoders[1]"


def test_a_tag_brings_its_own_statistics_and_license() -> None:
    half = resolve("unet-mobilenetv3_large_100.miil_in21k")
    assert (half.mean, half.std) == ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    assert resolve("unet-resnet18.fb_swsl_ig1b_ft_in1k").license == "cc-by-nc-4.0"


def test_an_architecture_without_weights_has_no_tag() -> None:
    model = resolve("unet-botnet50ts_256")
    assert (model.tag, model.hub_id, model.timm_name) == (None, None, "botnet50ts_256")
    assert len(model.mean) == 3


def test_transformers_get_the_recipe_for_transformers() -> None:
    assert resolve("unet-swin_tiny_patch4_window7_224").recipe == "transformer"
    assert resolve("unet-convnext_tiny").recipe == "cnn"
    assert resolve("unet-coatnet_0_rw_224").recipe == "cnn"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "unet-vit_tiny_patch16_224",
            "unet needs reductions 2/4/8/16/32 or 4/8/16/32 or 1/2/4/8/16/32, has 16/16/16 in "
            "vit_tiny_patch16_224",
        ),
        ("unet-nest_tiny", "has 4/8/16 in nest_tiny"),
        ("fpn-inception_v3", "fpn needs inexact_sizes none or 2, has 2/4/8/16/32 in inception_v3"),
        ("deeplabv3-densenet121", "deeplabv3 needs dilates 8*, has none in densenet121"),
        (
            "pspnet_lite-rexnet_100",
            "pspnet_lite needs a multiple of 4 channels at stride 8, has 61 in rexnet_100",
        ),
        ("dpt-resnet18", "dpt needs reductions 8/8* or 16/16* or 32/32*, has 2/4/8/16/32"),
        (
            "dpt-vitamin_large_336",
            "dpt needs input sides of a multiple of 32, has [336, 336] in vitamin_large_336",
        ),
        ("dpt-cait_xxs24_224", "dpt needs blocks [4-9] or [1-9]?, has 0 in cait_xxs24_224"),
    ],
)
def test_a_pair_that_smp_cannot_join_goes_through_the_adapter(name: str, reason: str) -> None:
    model = resolve(name)
    assert model.supported
    assert not model.smp_loadable
    assert reason in str(model.adapted)
    assert list_models(name) == [name]
    shown = {key: value for key, value, _ in show(name)}
    assert shown["encoder_path"] == f"adapter: {model.adapted}"
    assert (shown["supported"], shown["smp_loadable"]) == ("yes", "no")


@pytest.mark.parametrize("decoder", ["linear", "fcn"])
def test_heads_of_zoos_own_take_every_encoder_of_timm(decoder: str) -> None:
    for encoder in ("resnet18", "vit_small_patch14_dinov2", "vit_small_patch16_dinov3"):
        model = resolve(f"{decoder}-{encoder}")
        assert (model.supported, model.smp_loadable) == (True, False)
        assert model.adapted == f"{decoder} is a custom head of zoo"


def test_a_head_of_zoos_own_does_not_take_an_encoder_of_smp(overlay: Path) -> None:
    overlay.write_text(
        """
models:
  linear-mit_b0:
    encoder: "smp:mit_b0"
    recipe: transformer
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
"""
    )
    model = resolve("linear-mit_b0", overlay)
    assert (model.supported, model.reason) == (False, "linear only takes timm encoders")


def test_a_pair_that_failed_when_it_was_run_is_not_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = {("nest", "unet"): "ValueError: broken"}
    monkeypatch.setattr(registry_resolve, "known_problem", lambda *pair: table.get(pair))
    model = resolve("unet-nest_small")
    assert (model.supported, model.smp_loadable) == (False, False)
    assert model.reason == "ValueError: broken"
    assert model.origins["supported"] == "coverage table"
    assert list_models(decoder="unet", encoder="nest_small") == []
    assert list_models(decoder="fpn", encoder="nest_small") == ["fpn-nest_small"]
    shown = {key: value for key, value, _ in show("unet-nest_small")}
    assert shown["supported"] == "no: ValueError: broken"


def test_dpt_reads_no_prefix_token_where_there_is_none() -> None:
    assert resolve("dpt-vit_tiny_patch16_224").args == {}
    assert resolve("dpt-vit_tiny_patch16_224").encoder_args == {"num_classes": 0}
    without = resolve("dpt-samvit_base_patch16")
    assert without.args == {"decoder_readout": "ignore"}
    assert without.origins["args.decoder_readout"] == "decoder table: dpt.cases[0]"


def test_an_overlay_gives_local_weights(overlay: Path) -> None:
    (overlay.parent / "mine.safetensors").write_bytes(b"")
    overlay.write_text(
        """
encoders:
  - where: {name: "mobilenetv2_*"}
    weights: mine.safetensors
    args: {pad_type: same}
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
    license: apache-2.0
"""
    )
    model = resolve("unet-mobilenetv2_100", overlay)
    assert model.weights_file == overlay.parent / "mine.safetensors"
    assert (model.tag, model.hub_id) == (None, None)
    assert model.encoder_args == {"pad_type": "same"}
    assert (model.mean, model.std) == ([0.5] * 3, [0.5] * 3)
    assert model.license == "apache-2.0"
    assert model.recipe == "cnn"
    assert model.origins["encoder_args.pad_type"] == f"overlay {overlay}: encoders[0]"
    assert model.origins["recipe"] == "registry.yaml: encoders[1]"


def test_a_tag_asks_for_timms_weights_and_not_for_a_local_file(overlay: Path) -> None:
    (overlay.parent / "mine.safetensors").write_bytes(b"")
    overlay.write_text(
        "encoders: [{where: {}, weights: mine.safetensors, args: {pad_type: same},"
        " mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}]"
    )
    model = resolve("unet-mobilenetv2_100.ra_in1k", overlay)
    assert (model.weights_file, model.hub_id) == (None, "timm/mobilenetv2_100.ra_in1k")
    assert model.encoder_args == {}
    assert model.mean == IMAGENET[0]


def test_local_weights_do_not_inherit_a_license(overlay: Path) -> None:
    (overlay.parent / "mine.safetensors").write_bytes(b"")
    overlay.write_text(
        "encoders: [{where: {}, weights: mine.safetensors,"
        " mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}]"
    )
    assert resolve("unet-resnet18", overlay).license is None


def test_later_layers_win_key_by_key(overlay: Path) -> None:
    overlay.write_text(
        """
decoders:
  unet: {title: T, paper: "1505.04597", args: {decoder_interpolation: nearest, aux_params: null},
         needs: {}}
encoders:
  - {where: {name: resnet34}, recipe: scratch}
  - {where: {}, mean: [0.1, 0.1, 0.1]}
models:
  unet-resnet18: {encoder: resnet18.tv_in1k, recipe: quickstart, mean: [0.2, 0.2, 0.2],
                  args: {decoder_interpolation: bilinear}}
"""
    )
    model = resolve("unet-resnet18", overlay)
    assert model.timm_name == "resnet18.tv_in1k"
    assert model.args == {"decoder_interpolation": "bilinear", "aux_params": None}
    assert model.mean == [0.1, 0.1, 0.1]
    assert model.std == IMAGENET[1]
    assert model.recipe == "quickstart"
    assert {key: model.origins[key] for key in ("mean", "std", "recipe", "args.aux_params")} == {
        "mean": f"overlay {overlay}: encoders[1]",
        "std": "timm table",
        "recipe": f"overlay {overlay}: models.unet-resnet18",
        "args.aux_params": f"overlay {overlay}: decoders.unet",
    }
    assert resolve("unet-resnet34", overlay).recipe == "scratch"


def test_an_encoder_of_smp_comes_through_a_curated_row_alone(overlay: Path) -> None:
    overlay.write_text(
        """
models:
  segformer-mit_b0:
    encoder: smp:mit_b0
    recipe: transformer
    mean: [0.485, 0.456, 0.406]
    std: [0.229, 0.224, 0.225]
    weights: {camvid: {hub: org/repo, revision: 0123456789012345678901234567890123456789}}
""".replace("0123456789012345678901234567890123456789", "'" + "0123456789" * 4 + "'")
    )
    model = resolve("segformer-mit_b0", overlay)
    assert (model.decoder, model.encoder, model.tag) == ("segformer", "smp:mit_b0", None)
    assert (model.row, model.supported) == (None, True)
    assert model.trained["camvid"].hub == "org/repo"
    assert "segformer-mit_b0" in list_models("segformer-mit*", overlay=overlay)
    assert list_models("*-smp:*", overlay=overlay) == []
    rows = {key: value for key, value, _ in show("segformer-mit_b0", overlay)}
    assert rows["trained.camvid"] == f"org/repo@{'0123456789' * 4}"


def test_a_renamed_model_warns_and_works(overlay: Path) -> None:
    overlay.write_text("renamed: {unet-old: unet-resnet18}")
    with pytest.warns(FutureWarning, match="unet-old is called unet-resnet18 now"):
        assert resolve("unet-old", overlay).name == "unet-resnet18"


def test_show_gives_every_value_with_its_origin() -> None:
    rows = show("dpt-samvit_base_patch16")
    assert rows[0] == ("name", "dpt-samvit_base_patch16", "name")
    found = {key: (value, origin) for key, value, origin in rows}
    assert found["args.decoder_readout"] == ("ignore", "decoder table: dpt.cases[0]")
    assert found["encoder_args.num_classes"] == (0, "decoder table: dpt")
    assert found["recipe"] == ("transformer", "registry.yaml: encoders[0]")
    assert found["evidence"] == ("none", "registry.yaml: recipes.transformer")
    assert found["supported"] == ("yes", "coverage table")
    assert found["encoder_path"] == ("SMP's own", "decoder table: dpt.needs")
    assert found["smp_loadable"][0] == "yes"
    assert all(origin for _, _, origin in rows)
    assert {k: v for k, v, _ in show("pspnet_lite-rexnet_100")}["encoder_path"] == (
        "adapter: SMP's pspnet_lite needs a multiple of 4 channels at stride 8, has 61 in "
        "rexnet_100"
    )


def test_names_are_listed_in_natural_order() -> None:
    assert list_models("unet-resnet[0-9]*[0-9]") == [
        "unet-resnet18",
        "unet-resnet26",
        "unet-resnet34",
        "unet-resnet50",
        "unet-resnet101",
        "unet-resnet152",
        "unet-resnet200",
    ]
    assert sorted(["a10b2", "a9b10", "a9b9", "ab", "9"], key=natural_key) == [
        "9",
        "a9b9",
        "a9b10",
        "a10b2",
        "ab",
    ]


def test_lists_are_filtered_by_decoder_and_encoder() -> None:
    assert list_models(decoder="deeplab*", encoder="resnet18") == [
        "deeplabv3-resnet18",
        "deeplabv3plus-resnet18",
    ]
    assert list_models("*-resnet34", decoder="unet") == ["unet-resnet34"]
    assert list_models("nothing-*") == []


def test_a_pattern_with_a_dot_lists_tags() -> None:
    assert list_models("fpn-resnet34.*_in1k") == [
        "fpn-resnet34.a1_in1k",
        "fpn-resnet34.a2_in1k",
        "fpn-resnet34.a3_in1k",
        "fpn-resnet34.bt_in1k",
        "fpn-resnet34.gluon_in1k",
        "fpn-resnet34.ra4_e3600_r224_in1k",
        "fpn-resnet34.tv_in1k",
    ]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"decoder": "unnet"}, "Unknown decoder 'unnet'. Did you mean unet"),
        ({"encoder": "resnet81"}, "Unknown encoder 'resnet81'. Did you mean resnet18"),
    ],
)
def test_a_filter_that_nothing_matches_is_an_error(what: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_models(**what)


def test_the_registry_imports_neither_torch_nor_timm() -> None:
    code = (
        "import sys, zoo.registry.resolve as r; r.list_models(); r.resolve('unet-resnet18');"
        "print([m for m in ('torch', 'timm', 'torchvision', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
