"""An encoder's weights for the tests of fetch_encoder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from zoo.common.errors import ZooError
from zoo.hub.encoders import EncoderFile, fetch_encoder

REPO = "timm/resnet18.a1_in1k"
INFO = f"/api/models/{REPO}"
WEIGHTS = save({"conv1.weight": np.arange(10_000, dtype=np.float32)})
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
CDN = f"/cdn/{REPO}/{DIGEST}"
SILENCE_S = 0.4
WAYS = ("encoder_weights=None", 'encoder_weights="FILE.safetensors"', "HF_HOME", "ZOO_REGISTRY")


def fetch(**settings: Any) -> EncoderFile:
    return fetch_encoder("resnet18", "a1_in1k", REPO, **{"timeout": SILENCE_S, **settings})


def failure(kind: type[ZooError], **settings: Any) -> str:
    """The message of the error; no partial file may be left in the cache."""
    with pytest.raises(kind) as caught:
        fetch(**settings)
    cache = Path(constants.HF_HUB_CACHE)
    assert [file.name for file in cache.rglob("*") if file.name.endswith(".incomplete")] == []
    return str(caught.value)


def blobs() -> list[str]:
    return [file.name for file in Path(constants.HF_HUB_CACHE).glob("*/blobs/*")]
