"""zoo.create: names, arguments, weights from a file, from the Hub and from a folder."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save, save_file

import zoo
from zoo.common.errors import InputError, RunError
from zoo.creation.create import create
from zoo.hub.folder import load_folder, read_folder, save_folder
from zoo.registry import resolve as registry_resolve
from zoo.registry.decoders import DECODERS
from zoo.registry.encoders import encoders
from zoo.registry.resolve import list_models

if TYPE_CHECKING:
    from helpers.hub_server import LoopbackHub

TINY = "test_resnet"
TINY_REPO = "timm/test_resnet.r160_in1k"


@pytest.mark.parametrize(
    "name",
    ["unet-resnet18", "pspnet-densenet121", "deeplabv3plus-efficientnet_b0", "fpn-vgg16_bn"],
)
def test_any_size_in_the_same_size_out(name: str) -> None:
    model = create(name, classes=["road", "rest"], encoder_weights=None).eval()
    assert model.spec.classes == ["road", "rest"]
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 75, 101)).shape == (1, 2, 75, 101)


PYRAMID_DECODERS = sorted(set(DECODERS) - {"dpt", "eomt", "pmt"})


@pytest.mark.parametrize("decoder", PYRAMID_DECODERS)
def test_every_decoder_at_a_size_that_is_a_multiple_of_nothing(decoder: str) -> None:
    model = create(f"{decoder}-{TINY}", classes=3, encoder_weights=None).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 150, 203)).shape == (2, 3, 150, 203)


def test_dpt_on_a_plain_transformer() -> None:
    model = create("dpt-vit_tiny_patch16_224", classes=3, encoder_weights=None).eval()
    assert model.spec.img_size is None
    assert model.spec.encoder_args == {"num_classes": 0, "dynamic_img_size": True}
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 150, 230)).shape == (1, 3, 150, 230)


def test_a_fixed_size_encoder_is_built_for_img_size() -> None:
    model = create("unet-test_coatnet", classes=2, encoder_weights=None, img_size=(64, 96)).eval()
    assert model.spec.img_size == (64, 96)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 70, 64)).shape == (1, 2, 70, 64)


@pytest.fixture
def hub_with_encoder(loopback_hub: LoopbackHub) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    state = timm.create_model(TINY).state_dict()
    loopback_hub.add_repo(TINY_REPO, {"model.safetensors": save(state)})
    return state


def test_the_default_downloads_the_tags_own_weights(
    hub_with_encoder: dict[str, torch.Tensor], loopback_hub: LoopbackHub
) -> None:
    model = zoo.create(f"unet-{TINY}", classes=2)
    loaded = model.net.encoder.model.state_dict()
    assert all(torch.equal(loaded[name], hub_with_encoder[name]) for name in loaded)
    assert model.spec.encoder_weights == "r160_in1k"
    assert len(model.spec.encoder_revision) == 40
    requested = [request.path for request in loopback_hub.requests]
    assert requested
    assert not any(".bin" in path for path in requested)
    # SMP would store what it was built with: no download on loading, no local path
    assert model.net.config["encoder_weights"] is None
    assert "pretrained_cfg_overlay" not in model.net.config


def test_no_hub_is_an_error_that_names_the_ways_on(loopback_hub: LoopbackHub) -> None:
    loopback_hub.fault("*", status=503)
    with pytest.raises(RunError, match=r"encoder_weights=None"):
        zoo.create(f"unet-{TINY}", classes=2)


def test_weights_and_build_arguments_from_an_overlay_file(tmp_path: Path) -> None:
    torch.manual_seed(4)
    state = timm.create_model("test_efficientnet", pad_type="same").state_dict()
    save_file(state, tmp_path / "mine.safetensors")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        "version: 1\nencoders:\n"
        "  - where: {name: test_efficientnet}\n    weights: mine.safetensors\n"
        "    args: {pad_type: same}\n    mean: [0.1, 0.2, 0.3]\n    std: [0.4, 0.5, 0.6]\n"
    )
    model = zoo.create("unet-test_efficientnet", classes=2, registry=overlay)
    loaded = model.net.encoder.model.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in loaded)
    assert (model.spec.mean, model.spec.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert model.spec.encoder_args == {"pad_type": "same"}
    assert model.spec.encoder_weights.startswith("sha256:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 2}, "num_classes= is not an argument of zoo.create; use classes"),
        ({"in_channels": 1, "classes": 2}, "use in_chans"),
        ({"pretrained": True, "classes": 2}, "use encoder_weights"),
        ({"encoder_weights": "imagenet", "classes": 2}, "does not say which weights"),
        ({"encoder_weights": True, "classes": 2}, "does not say which weights"),
        (
            {"encoder_weights": "gone.safetensors", "classes": 2},
            "file gone.safetensors does not exist",
        ),
        ({"classes": 0}, "classes is 0; allowed are 1 to 255"),
        ({"classes": 256}, "classes is 256; allowed are 1 to 255"),
        ({"classes": 2, "in_chans": 0}, "whole number from 1 to 4096, got 0"),
        ({"classes": 2, "img_size": 64, "encoder_weights": None}, "any size; leave img_size out"),
        ({"classes": 2, "decoder_chanels": 3, "encoder_weights": None}, "decoder_chanels"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        create("unet-resnet18", **arguments)


NUMBER_OR_NAMES = "classes should be a number from 1 to 255 or a list of names, got "
CHANNELS = "in_chans should be a number of input channels, a whole number from 1 to 4096, got "
COLOUR = "a colour is (red, green, blue), whole numbers from 0 to 255, such as (255, 0, 0)."
SIDE = "img_size should be the side of a square in pixels, a whole number from 1 to 4096, got "
WIDTHS = "decoder_channels: should be a list of whole numbers from 1 to 65536, got "
THREE = np.array([0, 1, 2])
SWIN = "unet-swin_tiny_patch4_window7_224"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        # classes
        (TINY, {"classes": "3"}, f"{NUMBER_OR_NAMES}'3' (str). Write classes=3."),
        (TINY, {"classes": "road"}, f"{NUMBER_OR_NAMES}'road' (str). Write classes=['road']."),
        (TINY, {"classes": True}, f"{NUMBER_OR_NAMES}True (bool)."),
        (TINY, {"classes": np.True_}, f"{NUMBER_OR_NAMES}a value of the type numpy.bool."),
        (TINY, {"classes": torch.tensor(True)}, f"{NUMBER_OR_NAMES}a value of the type torch."),
        (TINY, {"classes": 3.0}, f"{NUMBER_OR_NAMES}3.0 (float). Write classes=3."),
        (TINY, {"classes": 2.5}, f"{NUMBER_OR_NAMES}2.5 (float)."),
        (TINY, {"classes": float("nan")}, f"{NUMBER_OR_NAMES}nan (float)."),
        (TINY, {"classes": {"a"}}, "Class ids follow the order of the names, so give a list."),
        (TINY, {"classes": {"a": 1}}, "Class ids follow the order of the names, so give a list."),
        (TINY, {"classes": b"a"}, f"{NUMBER_OR_NAMES}b'a' (bytes)."),
        (TINY, {"classes": object()}, f"{NUMBER_OR_NAMES}<object"),
        (TINY, {"classes": -1}, "classes is -1; allowed are 1 to 255."),
        (TINY, {"classes": 10**30}, "allowed are 1 to 255."),
        (TINY, {"classes": []}, "classes has 0 names; allowed are 1 to 255."),
        (TINY, {"classes": THREE},
         "classes lists 0, which is not a name. Give a list of texts, or"),
        (TINY, {"classes": ["a", None]}, "classes lists None, which is not a name."),
        (TINY, {"classes": ["a", "b", "a"]}, "classes has the same name twice: 'a'."),
        (TINY, {"classes": ["a", " "]}, "classes has an empty name."),
        (TINY, {"classes": ["\ud800"]}, r"classes has a name that is not valid Unicode: '\ud800'."),
        (TINY, {"classes": [str(i) for i in range(256)]}, "classes has 256 names; allowed are"),
        # input channels
        (TINY, {"in_chans": "4"}, f"{CHANNELS}'4' (str)."),
        (TINY, {"in_chans": True}, f"{CHANNELS}True (bool)."),
        (TINY, {"in_chans": 1.5}, f"{CHANNELS}1.5 (float)."),
        (TINY, {"in_chans": [3]}, f"{CHANNELS}[3] (list)."),
        (TINY, {"in_chans": 2**31}, f"{CHANNELS}2147483648 (int)."),
        # colours
        (TINY, {"palette": "red"}, "palette should be a list of colours (red, green, blue), one"),
        (TINY, {"palette": ["#000000", "#ff0000"]}, f"palette has '#000000'; {COLOUR}"),
        (TINY, {"palette": [(0, 0), (1, 1)]}, f"palette has [0, 0]; {COLOUR}"),
        (TINY, {"palette": [(0, 0, 256)] * 2}, f"palette has [0, 0, 256]; {COLOUR}"),
        (TINY, {"palette": [(0, 0, 0.5)] * 2}, f"palette has [0, 0, 0.5]; {COLOUR}"),
        (TINY, {"palette": [(0, 0, True)] * 2}, f"palette has [0, 0, True]; {COLOUR}"),
        (TINY, {"palette": [(0, 0, 0)] * 3}, "palette has 3 colours for 2 classes."),
        # the side of a fixed-size encoder
        ("unet-nest_tiny", {"img_size": (256, 512)}, "is built for squares only. Give one side"),
        (
            "linear-test_vit_relpos",
            {"img_size": (100, 64)},
            "img_size is 100 x 64; test_vit_relpos takes patches of 16 pixels, so both sides "
            "must be multiples of 16. Try 112 x 64.",
        ),
        (SWIN, {"img_size": 0}, f"{SIDE}0 (int)."),
        (SWIN, {"img_size": "224"}, f"{SIDE}'224' (str)."),
        (SWIN, {"img_size": True}, f"{SIDE}True (bool)."),
        (SWIN, {"img_size": 224.0}, f"{SIDE}224.0 (float)."),
        (SWIN, {"img_size": (True, True)}, f"{SIDE}True (bool)."),
        (TINY, {"img_size": "x"}, "takes images of any size; leave img_size out."),
        # names
        (None, {}, "model should be a name, such as unet-resnet18, a folder or hf-hub:ORG/REPO"),
        (7, {}, "or hf-hub:ORG/REPO, got 7 (int)"),
        ("", {}, "or hf-hub:ORG/REPO, got ''"),
        ("x" * 5000, {}, "a folder or hf-hub:ORG/REPO, got 'xxx"),
        (TINY, {"encoder_weights": 3}, '"default" or None, got 3 (int)'),
        (TINY, {"encoder_weights": THREE}, '"default" or None, got a value of the type numpy.nda'),
        (TINY, {"encoder_weights": ""}, "\"default\" or None, got ''"),
        (TINY, {"encoder_weights": "x" * 5000}, "hf-hub:ORG/REPO, \"default\" or None, got 'xxx"),
        (TINY, {"encoder_weights": np.False_}, "or None, got a value of the type numpy.bool"),
        (TINY, {"weights": 3}, "of trained weights, a folder or a repository, got 3 (int)"),
        (TINY, {"weights": "x\0"}, "a folder or a repository, got 'x"),
        (TINY, {"license": 3}, "such as mit, or open, got 3 (int)"),
        (TINY, {"registry": 3}, "registry should be an overlay file, got 3 (int)"),
        (TINY, {"registry": "gone.yaml"}, "gone.yaml"),
        # options of decoders
        (TINY, {"decoder_channels": "64"}, f"{WIDTHS}'64'"),
        (TINY, {"decoder_channels": 64}, f"{WIDTHS}64"),
        (TINY, {"decoder_channels": []}, f"{WIDTHS}[]"),
        (TINY, {"decoder_channels": {64}}, WIDTHS + "{64}"),
        (TINY, {"decoder_channels": (64, 32, 16, 8, 0)}, f"{WIDTHS}[64, 32, 16, 8, 0]"),
        (TINY, {"decoder_channels": [10**12] * 5}, f"{WIDTHS}[1000000000000, "),
        (TINY, {"decoder_channels": (8, 4)}, "decoder_channels: should be 5 numbers, as many as"),
        (TINY, {"encoder_depth": 2.5}, "encoder_depth: should be a whole number from 1"),
        (TINY, {"decoder_interpolation": "x"}, "should be one of nearest, nearest-exact"),
        (TINY, {"decoder_attention_type": 1}, "should be one of None, scse, got 1"),
        (TINY, {"decoder_use_norm": THREE}, "decoder_use_norm: should be one of True"),
        (TINY, {"drop_path_rate": {}}, "should be a plain value or a list of at most 32"),
        (f"fpn-{TINY}", {"decoder_dropout": 1}, "a fraction from 0 to below 1, got 1"),
        (f"fpn-{TINY}", {"decoder_dropout": "0"}, "from 0 to below 1, got '0'"),
        (f"pan-{TINY}", {"encoder_output_stride": []}, "should be 8, 16 or 32, got []"),
        (f"deeplabv3plus-{TINY}", {"decoder_aspp_separable": 1}, "should be true or false, got 1"),
        (f"pspnet-{TINY}", {"bins": "1"}, "bins: should be a list, got '1'"),
    ],
)  # fmt: skip
def test_arguments_of_a_wrong_kind_are_one_input_error(
    name: object, arguments: dict, message: str
) -> None:
    name = f"unet-{TINY}" if name == TINY else name
    with pytest.raises(InputError) as caught:
        create(name, **{"classes": 2, "encoder_weights": None} | arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", [int, np.uint8, np.int64, torch.tensor])
def test_whole_numbers_of_every_kind(kind: Callable[[int], Any]) -> None:
    model = create(f"unet-{TINY}", classes=kind(3), in_chans=kind(4), encoder_weights=None)
    assert model.spec.classes == ["class_0", "class_1", "class_2"]
    assert type(model.spec.in_chans) is int
    assert model.net.encoder.model.conv1[0].weight.shape[1] == model.spec.in_chans == 4


def test_lists_tuples_and_arrays_mean_the_same(tmp_path: Path) -> None:
    names, colours, widths = ["a", "b"], [[0, 0, 0], [9, 8, 7]], [16, 8, 8, 4, 4]
    specs = [
        create(
            f"unet-{TINY}", classes=kind(names), palette=kind(colours),
            decoder_channels=kind(widths), encoder_weights=None,
        ).spec
        for kind in (list, tuple, np.array)
    ]  # fmt: skip
    assert specs[0] == specs[1] == specs[2]
    assert specs[0].palette == [(0, 0, 0), (9, 8, 7)]
    assert specs[0].decoder_args == {"decoder_channels": widths}
    square = create(SWIN, classes=2, encoder_weights=None, img_size=(64, 64))
    assert square.spec.encoder_args == {"img_size": 64, "dynamic_img_size": True}


def test_two_classes_where_none_are_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create(f"unet-{TINY}", encoder_weights=None)
    assert model.spec.classes == ["background", "foreground"]
    assert model.spec.palette == [(0, 0, 0), (128, 0, 0)]
    assert capsys.readouterr().err == (
        "unet-test_resnet gets two classes, background and foreground; give classes=, a number or "
        "a list of names, for others.\n"
    )
    save_folder(create(f"unet-{TINY}", classes=3, encoder_weights=None), tmp_path / "model")
    assert len(create(tmp_path / "model").spec.classes) == 3
    for classes in ("road", {"a"}, 2.0):
        with pytest.raises(InputError, match="classes should be a number from 1 to 255"):
            create(tmp_path / "model", classes=classes)
    assert capsys.readouterr().err == ""


def test_weights_from_the_hub_for_an_encoder_without_any() -> None:
    encoder = next(
        name
        for name, row in encoders().items()
        if not row.tags and f"unet-{name}" in list_models(f"unet-{name}")
    )
    with pytest.raises(InputError, match=r"no pretrained weights .* encoder_weights=None"):
        create(f"unet-{encoder}", classes=2)


def test_a_pair_that_is_known_to_fail_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = "ValueError: broken"
    monkeypatch.setattr(registry_resolve, "known_problem", lambda *_: failed)
    with pytest.raises(InputError, match=r"not supported: .*broken.*zoo list --decoder deeplabv3"):
        create("deeplabv3-vgg16", classes=2, encoder_weights=None)


def test_a_folder_gives_back_the_same_model(tmp_path: Path) -> None:
    model = create(f"unet-{TINY}", classes=["a", "b"], encoder_weights=None).eval()
    save_folder(model, tmp_path / "model", training={"recipe": "cnn"}, metrics=None)
    again = create(tmp_path / "model").eval()
    assert again.spec == model.spec
    assert again.provenance == {"recipe": "cnn"}
    images = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        assert torch.equal(model(images), again(images))


def test_a_folder_without_a_model_says_so_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a model folder: it holds no config\.json"):
        zoo.create(tmp_path, encoder_weights=None)


def test_a_saved_model_is_loaded_again_in_evaluation_mode(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = zoo.create(f"unet-{TINY}", classes=["a", "b"], encoder_weights=None)
    assert model.training
    model(torch.rand(2, 3, 32, 32))  # statistics move
    zoo.save(model, str(folder))
    again = zoo.create(folder)
    assert again.spec == model.spec
    for loaded in (again, zoo.create(folder, classes=3)):
        assert not any(module.training for module in loaded.modules())
    ours, theirs = model.net.state_dict(), again.net.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    zoo.save(again, folder)  # what zoo wrote is replaced
    assert read_folder(folder).training is None
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt would be removed"):
        zoo.save(again, folder)
    zoo.save(again, folder, overwrite=True)
    assert not (folder / "notes.txt").exists()


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = zoo.create(f"unet-{TINY}", classes=2, encoder_weights=None)
    with pytest.raises(InputError, match=r"should be what zoo\.create returned, not a wra"):
        zoo.save(model.net, folder)
    file = tmp_path / "file"
    file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not a folder; give another place"):
            zoo.save(model, file, overwrite=overwrite)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert file.read_text() == "mine"
    for wrong in (None, 3, "", "a\0b"):
        with pytest.raises(InputError, match=r"folder should be a path, got"):
            zoo.save(model, wrong)
    with torch.no_grad():
        model.net.segmentation_head[0].bias[0] = float("nan")
    with pytest.raises(InputError, match="holds weights that are NaN or infinite: segmentation_"):
        zoo.save(model, folder)
    model.net.segmentation_head[0] = torch.nn.Conv2d(16, 5, 3, padding=1)
    with pytest.raises(InputError, match=r"zoo\.create would build others(.|\n)*has shape \(5,"):
        zoo.save(model, folder)
    model.net.segmentation_head[1] = torch.nn.Tanh()  # no weights, but other outputs
    with pytest.raises(InputError, match=r"net\.segmentation_head\.1 is Tanh, zoo\.create makes "):
        zoo.save(model, folder)
    with pytest.raises(InputError, match="has no weights: it is on the meta device"):
        zoo.save(model.to("meta"), folder)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["unet-resnet18", "dpt-test_vit", "segformer-test_convnext"])
def test_smp_reads_the_folder(name: str, tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    model = create(name, classes=3, encoder_weights=None).eval()
    save_folder(model, tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = smp.from_pretrained(str(tmp_path / "model")).eval()
    side = model.spec.img_size or 64
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        assert torch.equal(model.net(images), theirs(images))


def test_other_classes_only_when_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create(f"unet-{TINY}", classes=["a", "b"], encoder_weights=None)
    save_folder(model, tmp_path / "model")
    swapped = create(tmp_path / "model", classes=["x", "y", "z"])
    assert "2 -> 3 classes" in capsys.readouterr().err
    assert swapped.net.segmentation_head[0].weight.shape[0] == 3
    kept = [name for name in model.net.state_dict() if not name.startswith("segmentation_head")]
    ours, theirs = model.net.state_dict(), swapped.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in kept)
    same = create(tmp_path / "model", classes=2)
    assert same.spec.classes == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_a_folder_takes_no_other_arguments(tmp_path: Path) -> None:
    save_folder(create(f"unet-{TINY}", classes=2, encoder_weights=None), tmp_path / "model")
    for arguments in ({"in_chans": 4}, {"palette": [(0, 0, 0), (9, 9, 9)]}, {"bins": [1]}):
        with pytest.raises(InputError, match="only classes= can be changed"):
            create(tmp_path / "model", **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('"schema": 1', '"schema": 3'), "has schema 3, this version reads 1 and 2. Upgrade"),
        (('"schema": 1', '"schema": 2'), "encoder_on_hub goes with schema 2, and with no other"),
        (('"_zoo"', '"other"'), r"decoder_args\.other: no model folder may hold this argument"),
        (('"decoder": "unet"', '"decoder": 7'), r"_zoo\.spec\.decoder"),
        (('"ignore_index"', '"run_this"'), r"_zoo\.spec\.run_this"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save_folder(create(f"unet-{TINY}", classes=2, encoder_weights=None), folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace(*change))
    with pytest.raises(InputError, match=message):
        read_folder(folder)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_folder(create(f"unet-{TINY}", classes=2, encoder_weights=None), tmp_path / "a")
    save_folder(create("unet-test_convnext", classes=2, encoder_weights=None), tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes(
        (tmp_path / "b" / "model.safetensors").read_bytes()
    )
    with pytest.raises(InputError, match="The weights do not fit the model"):
        load_folder(tmp_path / "a")


def test_arguments_that_a_folder_could_not_hold_are_refused() -> None:
    with pytest.raises(InputError, match="unet has no option block_args"):
        create("unet-test_resnet", classes=2, encoder_weights=None, block_args={})


def test_the_old_spelling_of_license_still_works() -> None:
    from zoo.common.errors import renamed
    from zoo.registry.resolve import list_models

    with pytest.warns(FutureWarning, match="Use license="):
        old = list_models("*-ade20k", licence="open")
    assert old == list_models("*-ade20k", license="open") != []
    with (
        pytest.warns(FutureWarning, match="Use license="),
        pytest.raises(InputError, match="nvidia"),
    ):
        create("segformer-b0-ade20k", licence="open")
    assert renamed("licence", None, "license", "mit") == "mit"
