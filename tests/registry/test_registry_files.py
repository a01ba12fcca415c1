"""Loading registry files: the real one, overlays, and everything that is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zoo.common.errors import InputError, RunError
from zoo.registry import load
from zoo.registry.load import load_registry, registry_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def refused(path: Path, text: str) -> list[str]:
    """The problems that are reported for an overlay with this text."""
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_registry(path)
    header, *lines = str(caught.value).splitlines()
    assert header == f"{path} has problems:"
    return [line.removeprefix("  - ") for line in lines]


def test_the_real_registry_has_the_decoders_and_four_recipes() -> None:
    registry = load_registry()
    assert list(registry.decoders) == [
        "unet",
        "unetplusplus",
        "manet",
        "linknet",
        "fpn",
        "pspnet",
        "pspnet_lite",
        "pan",
        "deeplabv3",
        "deeplabv3plus",
        "upernet",
        "segformer",
        "dpt",
        "linear",
        "fcn",
        "eomt",
        "pmt",
    ]
    assert {"cnn", "transformer", "scratch", "quickstart"} <= registry.recipes.keys()
    assert registry.overlay is None
    assert registry.origin("decoders.unet") == "decoder table: unet"


def test_the_registry_beside_the_package_is_found() -> None:
    assert registry_file() == ROOT / "registry.yaml"


def test_the_registry_inside_the_package_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(load, "PACKAGE", tmp_path / "zoo")
    with pytest.raises(RunError, match="missing from this installation of zoo"):
        registry_file()
    (tmp_path / "registry.yaml").write_text("")
    assert registry_file() == tmp_path / "registry.yaml"
    (tmp_path / "zoo" / "registry.yaml").write_text("")
    assert registry_file() == tmp_path / "zoo" / "registry.yaml"


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(InputError, match=r"Unknown recipe 'cmn'\. Did you mean cnn\?"):
        load_registry().recipe("cmn")


def test_an_empty_overlay_changes_nothing(overlay: Path) -> None:
    overlay.write_text("")
    assert load_registry(overlay).decoders == load_registry().decoders


def test_an_overlay_replaces_rows_and_adds_new_ones(overlay: Path) -> None:
    overlay.write_text(
        """
decoders:
  unet: {title: Mine, paper: "1505.04597", args: {decoder_channels: [64, 32, 16, 8, 4]}, needs: {}}
recipes:
  short: {optimizer: {lr: 0.01}, batch_size: 2, crop: 64, stages: [{name: all, epochs: 1}]}
models:
  unet-mine: {encoder: resnet18.a1_in1k, recipe: short}
renamed: {unet-old: unet-mine}
"""
    )
    registry = load_registry(overlay)
    assert registry.decoders["unet"].args == {"decoder_channels": [64, 32, 16, 8, 4]}
    assert list(registry.decoders) == list(load_registry().decoders)
    assert registry.recipe("short").crop == 64
    assert registry.recipe("cnn") == load_registry().recipe("cnn")
    assert registry.origin("decoders.unet") == f"overlay {overlay}: decoders.unet"
    assert registry.origin("decoders.fpn") == "decoder table: fpn"


def test_the_environment_names_an_overlay(overlay: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay.write_text("renamed: {unet-old: unet-resnet18}")
    monkeypatch.setenv("ZOO_REGISTRY", str(overlay))
    assert load_registry().overlay == overlay
    monkeypatch.setenv("ZOO_REGISTRY", "")
    assert load_registry().overlay is None


def test_a_changed_overlay_is_read_again_and_an_unchanged_one_is_not(overlay: Path) -> None:
    overlay.write_text("renamed: {unet-old: unet-resnet18}")
    first = load_registry(overlay)
    assert load_registry(overlay) is first
    overlay.write_text("renamed: {unet-old: unet-resnet34}")
    os.utime(overlay, ns=(1, 1))
    assert load_registry(overlay).renamed == {"unet-old": "unet-resnet34"}


def test_a_missing_overlay_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.yaml: No such file.*--registry or the variable"):
        load_registry(tmp_path / "no.yaml")


def test_a_folder_is_no_overlay(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, not a file"):
        load_registry(tmp_path)


def test_broken_yaml_and_double_keys_are_refused(overlay: Path) -> None:
    overlay.write_text("models: [")
    with pytest.raises(InputError, match="is not valid YAML"):
        load_registry(overlay)
    assert refused(overlay, "renamed: {}\nrenamed: {}") == [
        "line 2: the key 'renamed' appears twice"
    ]


@pytest.mark.parametrize("text", ["[1]", "text"])
def test_something_else_than_a_mapping_is_refused(overlay: Path, text: str) -> None:
    assert refused(overlay, text)[0].startswith("top: should be a mapping of keys to values")


STATISTICS = "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2", "version: should be 1, got 2"),
        ("modles: {}", "modles: there is no key 'modles'; allowed: models, "),
        ("encoders: {}", "encoders: should be a list, got {}"),
        ("encoders: [{recipe: cnn}]", "encoders[0].where: is missing"),
        (
            "encoders: [{where: {knd: cnn}}]",
            "encoders[0].where.knd: there is no key 'knd'; allowed: kind, name, module",
        ),
        (
            "encoders: [{where: {blocks: 4}}]",
            "encoders[0].where.blocks[0]: should be text, in quotes where it looks like a number",
        ),
        ("encoders: [{where: {kind: []}}]", "encoders[0].where.kind: has too few entries, got []"),
        (
            "encoders: [{where: {}, recipe: cmn}]",
            "encoders[0].recipe: Unknown recipe 'cmn'. Did you mean cnn?",
        ),
        (
            "encoders: [{where: {}, weights: a.safetensors}]",
            "encoders[0]: weights needs mean and std beside it, as the file was trained with",
        ),
        (
            "encoders: [{where: {}, mean: [123.7, 0.5, 0.5]}]",
            "encoders[0].mean[0]: should be less than or equal to 1, got 123.7",
        ),
        ("encoders: [{where: {}, mean: [0.5]}]", "encoders[0].mean: has too few entries"),
        ("encoders: [{where: {}, std: [0, 1, 1]}]", "encoders[0].std[0]: should be greater than 0"),
        (
            "decoders: {unt: {title: T, paper: '1505.04597', needs: {}}}",
            "decoders.unt: Unknown decoder 'unt'. Did you mean unet",
        ),
        (
            "decoders: {unet: {title: T, paper: 1505.04597, needs: {}}}",
            "decoders.unet.paper: should be text, in quotes where it looks like a number",
        ),
        (
            "decoders: {unet: {title: T, paper: U-Net, needs: {}}}",
            "decoders.unet.paper: should be an arXiv id or doi:10.NUMBER/NAME, got 'U-Net'",
        ),
        (
            "decoders: {unet: {title: T, paper: '1505.04597', needs: {strides: 3}}}",
            "decoders.unet.needs.strides: there is no key 'strides'; allowed: where,",
        ),
        (
            "decoders: {unet: {title: T, paper: '1505.04597', "
            "needs: {channels_divisible: {stride: 8, by: 0}}}}",
            "decoders.unet.needs.channels_divisible.by: should be greater than or equal to 1",
        ),
        (
            "decoders: {unet: {title: T, paper: '1505.04597', needs: {input_multiple: 0}}}",
            "decoders.unet.needs.input_multiple: should be greater than or equal to 1, got 0",
        ),
        (
            "recipes: {r: {optimizer: {lr: 1}, batch_size: 1, crop: 32, "
            "stages: [{name: a, epochs: 1}, {name: b, epochs: 1, unfreeze: 2}]}}",
            "recipes.r.stages[1].unfreeze: should be less than or equal to 1, got 2",
        ),
        ("models: {unet-x: {}}", "models.unet-x.encoder: is missing"),
        (
            "models: {x: {encoder: resnet18}}",
            "models.x: the name must start with a decoder and a hyphen: unet, unetplusplus",
        ),
        (
            "models: {unet-x: {encoder: resnet81}}",
            "models.unet-x: Unknown encoder 'resnet81'. Did you mean resnet18",
        ),
        (
            "models: {unet-x: {encoder: resnet18.a9_in1k}}",
            "models.unet-x: Unknown tag of resnet18 'a9_in1k'. Did you mean",
        ),
        (
            "decoders: {unet: {title: U, paper: '1505.04597', recipe: cmn}}",
            "decoders.unet.recipe: Unknown recipe 'cmn'. Did you mean cnn?",
        ),
        (
            "models: {unet-x: {encoder: resnet18, recipe: cmn}}",
            "models.unet-x.recipe: Unknown recipe 'cmn'.",
        ),
        (
            "models: {unet-x: {encoder: 'smp:mit_b0', recipe: cnn}}",
            "models.unet-x: an smp: encoder needs recipe, mean and std; timm's table has none",
        ),
        (
            "models: {unet-x: {encoder: resnet18, weights: {camvid: {hub: x, revision: %s}}}}"
            % ("a" * 40),
            "models.unet-x.weights.camvid.hub: should be ORG/REPO, got 'x'",
        ),
        (
            "models: {unet-x: {encoder: resnet18, weights: {camvid: {hub: o/r, revision: main}}}}",
            "models.unet-x.weights.camvid.revision: should be a commit of 40 hexadecimal digits",
        ),
        (
            "models: {unet-x: {encoder: resnet18, default: b, weights: {a: {hub: o/r}}}}",
            "models.unet-x: Unknown default weights 'b'. Available: a.",
        ),
        (
            "models: {unet-x: {encoder: resnet18, weights: {a: {hub: o/r, classes: ade}}}}",
            "models.unet-x.weights.a.classes: Unknown list of classes 'ade'. Did you mean ade20k?",
        ),
        (
            "models: {unet-x: {encoder: resnet18, weights: {a: {hub: o/r, classes: [b, b]}}}}",
            "models.unet-x.weights.a.classes: class names must differ from each other",
        ),
        (
            "models: {unet-x: {encoder: resnet18, weights: {a: {hub: o/r, classes: 7}}}}",
            "models.unet-x.weights.a.classes: should be a mapping of keys to values, got 7",
        ),
        (
            "models: {unet-x: {encoder: resnet18, weights: {a: {hub: o/r, classes: {b: [0, 0]}}}}}",
            "models.unet-x.weights.a.classes.b[2]: is missing",
        ),
        ("renamed: {unet-old: unet-resnet81}", "renamed.unet-old: Unknown encoder 'resnet81'."),
        ("renamed: {unet-old: resnet18}", "renamed.unet-old: 'resnet18' is not a model name."),
        (
            "renamed: {unet-resnet34: unet-resnet18}",
            "renamed.unet-resnet34: this name is still in use",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(overlay: Path, text: str, message: str) -> None:
    (found,) = refused(overlay, text)
    assert found.startswith(message)


def test_a_missing_weights_file_is_named(overlay: Path) -> None:
    (found,) = refused(
        overlay, f"encoders: [{{where: {{}}, weights: no.safetensors, {STATISTICS}}}]"
    )
    assert found == f"encoders[0].weights: there is no file {overlay.parent / 'no.safetensors'}"


def test_all_problems_of_a_file_are_reported_at_once(overlay: Path) -> None:
    found = refused(
        overlay, "version: 3\nfoo: 1\nrenamed: []\nencoders: [{where: {kind: 3}, recipe: 4}]"
    )
    assert [line.split(":")[0] for line in found] == [
        "version",
        "encoders[0].where.kind[0]",
        "encoders[0].recipe",
        "renamed",
        "foo",
    ]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("[]", "encoders: the last rule must match everything"),
        ("[{where: {kind: cnn}, recipe: a}]", "encoders: the last rule must match everything"),
        ("[{where: {}}]", "encoders: the last rule must match everything"),
    ],
)
def test_the_registry_itself_must_be_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str, message: str
) -> None:
    monkeypatch.setattr(load, "PACKAGE", tmp_path)
    (tmp_path / "registry.yaml").write_text(
        f"encoders: {rules}\n"
        "recipes: {a: {optimizer: {lr: 1}, batch_size: 1, crop: 32, "
        "stages: [{name: a, epochs: 1}]}}\n"
    )
    with pytest.raises(InputError) as caught:
        load_registry()
    assert message in str(caught.value)
