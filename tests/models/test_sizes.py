"""How models take images of every size: what the description says, and what the network sees."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import zoo
from zoo.common.errors import InputError
from zoo.hub.folder import save_folder
from zoo.models.build import build, build_with_weights, gmacs
from zoo.models.spec import ModelSpec, model_spec
from zoo.registry.resolve import resolve


def test_given_encoder_arguments_take_precedence_over_the_registry() -> None:
    resolved = resolve("dpt-test_vit3")
    given = {"num_classes": 5, "drop_path_rate": 0.1}
    assert resolved.encoder_args == {"num_classes": 0}
    assert model_spec(resolved, 2, encoder_args=given).encoder_args.items() >= given.items()


@pytest.mark.parametrize("decoder", ["linear", "unet", "dpt", "pspnet", "eomt"])
def test_a_dynamic_encoder_sees_the_whole_image(decoder: str) -> None:
    resolved = resolve(f"{decoder}-test_vit3")
    spec = model_spec(resolved, 3)
    assert (spec.img_size, spec.window) == (None, None)
    assert spec.encoder_args["dynamic_img_size"] is True
    assert "img_size" not in spec.encoder_args
    model = build(spec).eval()

    # what it gives for its native size is what the same weights give as older folders describe them
    built = {name: value for name, value in spec.encoder_args.items() if name == "num_classes"}
    built["img_size"] = 160
    older = spec.model_copy(update={"img_size": 160, "encoder_args": built})
    fixed = build_with_weights(older, model.net.state_dict()).eval()
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(model(images), fixed(images))

        # other sizes enter the network once, padded to whole patches
        seen: list[tuple[int, ...]] = []
        model.net.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape)))
        for height, width in [(219, 301), (83, 210), (33, 41)]:
            assert model(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)
    multiple = spec.size_multiple
    assert multiple == (32 if decoder == "dpt" else 16)
    sizes = {32: [(224, 320), (96, 224), (64, 64)], 16: [(224, 304), (96, 224), (48, 48)]}[multiple]
    least = spec.size_minimum
    assert seen == [(1, 3, max(height, least), max(width, least)) for height, width in sizes]


def test_a_folder_without_dynamic_sizes_keeps_its_windows(tmp_path: Path) -> None:
    spec = model_spec(resolve("linear-test_vit3"), 2, encoder_args={"dynamic_img_size": False})
    older = spec.model_copy(update={"encoder_args": {"img_size": 160}})
    assert (spec.img_size, spec.encoder_args.pop("dynamic_img_size")) == (160, False)
    assert spec == older
    model = build(older).eval()
    save_folder(model, tmp_path)
    loaded = zoo.create(tmp_path).eval()
    assert loaded.spec.encoder_args == {"img_size": 160}
    images = torch.randn(1, 3, 96, 256)
    with torch.inference_mode():
        parts = [model.net(pad(images)[..., left : left + 160]) for left in (0, 96)]
        expected = torch.zeros(1, 2, 160, 256)
        expected[..., :160] += parts[0]
        expected[..., 96:] += parts[1]
        expected[..., 96:160] /= 2
        torch.testing.assert_close(loaded(images), expected[..., :96, :], atol=1e-5, rtol=0)


def pad(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(images, [0, 0, 0, 64], mode="replicate")


@pytest.mark.parametrize("encoder", ["test_vit_relpos", "test_vit3"])
def test_windows_of_a_rectangle(encoder: str) -> None:
    fixed = {"dynamic_img_size": False} if encoder == "test_vit3" else None
    spec = model_spec(resolve(f"linear-{encoder}"), 2, img_size=(64, 96), encoder_args=fixed)
    assert spec.img_size == spec.window == (64, 96)
    assert spec.encoder_args["img_size"] == [64, 96]
    stored = ModelSpec.model_validate_json(spec.model_dump_json())
    assert stored == spec
    model = build(stored).eval()
    images = torch.randn(1, 3, 64, 150)
    with torch.inference_mode():
        left, right = (model.net(images[..., start : start + 96]) for start in (0, 54))
        found = model(images)
        torch.testing.assert_close(found[..., :54], left[..., :54])
        torch.testing.assert_close(found[..., 54:96], (left[..., 54:] + right[..., :42]) / 2)
        torch.testing.assert_close(found[..., 96:], right[..., 42:])
        small = model(images[..., :40, :50])
        padded = torch.nn.functional.pad(images[..., :40, :50], [0, 46, 0, 24], mode="replicate")
        torch.testing.assert_close(small, model.net(padded)[..., :40, :50])
        assert gmacs(stored, 64, 150) == 2 * gmacs(stored, 64, 96)


def test_sizes_that_are_refused() -> None:
    dynamic, square, fixed = (
        resolve(f"linear-{name}") for name in ("test_vit3", "convit_tiny", "efficientformer_l1")
    )
    assert model_spec(dynamic, 2, img_size=(64, 96)).encoder_args == {
        "img_size": [64, 96], "dynamic_img_size": True,
    }  # fmt: skip
    for resolved, given, message in [
        (square, {"img_size": (64, 96)}, "convit_tiny is built for squares only"),
        (fixed, {"img_size": 64}, "takes 224 x 224 pixels only"),
        (dynamic, {"img_size": (64, 96, 3)}, r"img_size is \(64, 96, 3\); give one side in pixels"),
        (dynamic, {"img_size": (64, "96")}, "img_size should be height and width in pixels, a who"),
    ]:
        with pytest.raises(InputError, match=message):
            model_spec(resolved, 2, **given)


@pytest.mark.parametrize("decoder", ["unet", "dpt", "eomt"])
def test_a_trace_of_a_dynamic_encoder_takes_other_sizes(decoder: str) -> None:
    model = build(model_spec(resolve(f"{decoder}-test_vit3"), 2)).eval()
    with torch.inference_mode():
        traced = torch.jit.trace(model, torch.randn(1, 3, 203, 231), check_trace=False)
        images = torch.randn(1, 3, 160, 256)
        torch.testing.assert_close(traced(images), model(images))
