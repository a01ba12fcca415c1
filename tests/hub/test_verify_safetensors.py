"""verify_safetensors says what a file is instead of tensors."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from zoo.common.errors import InputError
from zoo.hub.encoders import verify_safetensors

GOOD = save({"weight": np.arange(6, dtype=np.float32)})


def padded(header_bytes: int) -> bytes:
    """A sound file without tensor data whose header has `header_bytes` bytes."""
    header = b'{"weight":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    return header_bytes.to_bytes(8, "little") + header.ljust(header_bytes)


@pytest.mark.parametrize("header_bytes", [0x0280, 0x0380, 0x0480])
def test_a_length_that_looks_like_a_pickle_is_no_pickle(tmp_path: Path, header_bytes: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(padded(header_bytes))
    assert path.read_bytes()[0] == pickle.PROTO[0]
    verify_safetensors(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (GOOD[:4], "its header cannot be read"),
        (GOOD[:30], "its header cannot be read"),
        (GOOD[:-1], "its header cannot be read"),
        (GOOD + b"x", "its header cannot be read"),
        (b"<html>Not found</html>", "its header cannot be read"),
        (save({}), "it holds no tensors"),
        (pickle.dumps({"weight": 1}), "it is a pickle as torch.save writes it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer"),
    ],
)
def test_unusable_files(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        verify_safetensors(path)
    assert str(caught.value).startswith(f"{path} is not a usable safetensors file: {problem}")


def test_what_torch_saves_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match=r"it is a pickle .*weights_only=True.*save_file"):
        verify_safetensors(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        verify_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="it is not a file"):
        verify_safetensors(tmp_path)


def test_a_sound_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(GOOD)
    assert verify_safetensors(path) == {"weight": (6,)}


@pytest.mark.real_data
def test_a_real_encoder(shared_weights: Path) -> None:
    shapes = verify_safetensors(shared_weights / "mobilenetv2_100_imagenet.safetensors")
    assert shapes["conv_stem.weight"] == (32, 3, 3, 3)
