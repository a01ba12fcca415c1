"""From a spec and a weights file to a module: nothing is half loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from zoo.common.errors import InputError
from zoo.models.build import build, build_with_weights, read_weights
from zoo.models.spec import ModelSpec, class_names, palette_for


def spec(encoder: str, decoder: str = "unet", in_chans: int = 3, **args: object) -> ModelSpec:
    names = class_names(2)
    return ModelSpec(
        name=f"{decoder}-{encoder}",
        decoder=decoder,
        encoder=encoder,
        classes=names,
        palette=palette_for(names, None),
        in_chans=in_chans,
        mean=[0.5] * in_chans,
        std=[0.5] * in_chans,
        encoder_args=dict(args),
    )


def encoder_file(encoder: str, folder: Path, drop: str | None = None) -> Path:
    torch.manual_seed(1)
    state = timm.create_model(encoder).state_dict()
    if drop is not None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(drop)}
    path = folder / "encoder.safetensors"
    save_file(state, path)
    return path


@pytest.mark.parametrize("encoder", ["resnet18", "test_efficientnet", "test_convnext"])
def test_the_encoder_holds_the_tensors_of_the_file(encoder: str, tmp_path: Path) -> None:
    file = encoder_file(encoder, tmp_path)
    torch.manual_seed(2)
    net = build(spec(encoder), file).net
    given = {name.replace(".", "_"): tensor for name, tensor in read_weights(file).items()}
    loaded = net.encoder.model.state_dict()
    assert len(loaded) > 20
    for name, tensor in loaded.items():
        assert torch.equal(tensor, given[name.replace(".", "_")]), name
    assert net.config["encoder_weights"] is None


def test_four_input_channels_from_three(tmp_path: Path) -> None:
    file = encoder_file("resnet18", tmp_path)
    net = build(spec("resnet18", in_chans=4), file).net
    stored = read_weights(file)["conv1.weight"]
    # timm repeats the channels cyclically and rescales by 3 / 4
    expected = torch.cat([stored, stored[:, :1]], dim=1) * 0.75
    assert torch.allclose(net.encoder.model.conv1.weight, expected)


def test_a_file_without_some_of_the_encoder_is_refused(tmp_path: Path) -> None:
    file = encoder_file("resnet18", tmp_path, drop="layer3.0.conv1")
    with pytest.raises(
        InputError, match=r"does not hold .* 1 tensors are missing.*layer3\.0\.conv1"
    ):
        build(spec("resnet18"), file)


def test_a_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        build(spec("resnet18"), encoder_file("test_convnext", tmp_path))


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x80\x04pickle" * 30])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors file"):
        build(spec("resnet18"), file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Weights file .*gone.* does not exist"):
        build(spec("resnet18"), tmp_path / "gone.safetensors")


def test_a_pair_that_smp_cannot_build_says_why() -> None:
    with pytest.raises(InputError, match=r"deeplabv3-vgg11 cannot be built.*zoo list --decoder"):
        build(spec("vgg11", "deeplabv3"))


def test_weights_must_fit_by_name_and_shape() -> None:
    state = build(spec("test_resnet")).net.state_dict()
    head = "segmentation_head.0.weight"
    with pytest.raises(InputError, match=f"1 tensors are missing: {head}"):
        build_with_weights(spec("test_resnet"), {n: t for n, t in state.items() if n != head})
    with pytest.raises(InputError, match="1 tensors are not part of the model: extra"):
        build_with_weights(spec("test_resnet"), {**state, "extra": torch.zeros(1)})
    with pytest.raises(InputError, match=rf"{head} has shape \(3, 16, 3, 3\), the model needs"):
        build_with_weights(spec("test_resnet"), {**state, head: torch.zeros(3, 16, 3, 3)})


def test_a_timm_without_the_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "is_model", lambda name: name != "resnet18")
    monkeypatch.setattr(timm, "list_models", lambda: ["resnet10t", "resnet34", "vgg11"])
    monkeypatch.setattr(timm, "__version__", "0.9.2")
    message = (
        r"installed timm 0\.9\.2 has no encoder resnet18; timm 1\.0\.31, .*"
        r"pip install 'timm==1\.0\.31', or take resnet10t or resnet34\."
    )
    with pytest.raises(InputError, match=message):
        build(spec("resnet18"))
    assert build(spec("test_resnet")).spec.encoder == "test_resnet"
