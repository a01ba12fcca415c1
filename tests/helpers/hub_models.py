"""Tiny models and their repositories for the tests of push and pull."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import zoo
from zoo.hub.folder import save_folder

if TYPE_CHECKING:
    from helpers.hub_server import LoopbackHub
    from zoo.models.segmentation import SegmentationModel

REPO = "org/tiny"
METRICS: dict[str, Any] = {
    "dataset": "scenes",
    "split": "val",
    "miou": 0.5,
    "pixel_accuracy": 0.75,
    "iou_per_class": {"road": 0.25, "a | b": 0.75},
}
SMALL_DPT: dict[str, Any] = {
    "decoder_intermediate_channels": [16, 16, 16, 16],
    "decoder_fusion_channels": 16,
}


def tiny(name: str = "unet-test_resnet", **options: Any) -> SegmentationModel:
    """A model with random weights, the same in every call."""
    torch.manual_seed(5)
    small = SMALL_DPT if name.startswith("dpt-") else {}
    options = {"classes": ["road", "a | b"], "encoder_weights": None} | small | options
    return zoo.create(name, **options).eval()


def write_tiny(folder: Path, model: SegmentationModel | None = None) -> Path:
    """The folder of a tiny trained model."""
    training = {"dataset": "scenes", "recipe": "cnn", "seed": 0, "steps": 7, "chosen_on": "val"}
    save_folder(model or tiny(), folder, training=training, metrics=METRICS)
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a model folder by name, as a push sends them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}


def add_tiny(hub: LoopbackHub, folder: Path, repo: str = REPO, **settings: Any) -> str:
    """Put a tiny model on the loopback Hub; returns the commit."""
    return hub.add_repo(repo, files_of(write_tiny(folder)), **settings)


def same_output(one: SegmentationModel, other: SegmentationModel, side: int = 64) -> bool:
    """Whether two models give the same logits, bit for bit."""
    images = torch.rand(1, one.spec.in_chans, side, side + 6)
    with torch.no_grad():
        return torch.equal(one.eval()(images), other.eval()(images))
