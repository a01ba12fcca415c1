"""A small record whose numbers were worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoo.records.image_counts import counts_hash
from zoo.records.record import Record, metrics_from_confusion, parse_record
from zoo.records.speed import SpeedRecord, parse_speed_record

CLASSES = ["road", "car", "sky"]
CONFUSION = [[8, 2, 0], [1, 9, 0], [0, 0, 0]]


def fields(**changes: Any) -> dict[str, Any]:
    """The fields of a valid record; the metrics follow from the confusion matrix."""
    values: dict[str, Any] = {
        "schema": 1,
        "model": "unet-resnet18",
        "encoder_init": "pretrained",
        "encoder_weights": "a1_in1k",
        "dataset": "camvid",
        "data_hash": "0123456789abcdef",
        "split": "test",
        "chosen_on": "val",
        "classes": CLASSES,
        "ignore": 255,
        "protocol": 1,
        "size": [360, 480],
        "tta": "none",
        "images": 233,
        "recipe": "cnn",
        "recipe_hash": "fedcba9876543210",
        "overrides": {},
        "seed": 0,
        "steps": 540,
        "train_seconds": 600.0,
        "eval_seconds": 20.0,
        "confusion": CONFUSION,
        "params_m": 14.33,
        "gmacs": None,
        "precision": "bf16",
        "device": "one CPU",
        "env": {"zoo": "0.1.0", "torch": "2.15.0"},
        "commit": "",
        "date": "2025-03-31T12:00:00Z",
        **changes,
    }
    if "metrics" not in changes:
        metrics = metrics_from_confusion(values["confusion"], values["classes"])
        values["metrics"] = metrics.model_dump()
    return values


def record(**changes: Any) -> Record:
    """A valid record with some fields changed."""
    return parse_record(fields(**changes), "the example")


def confusion_with(hits: int) -> list[list[int]]:
    """Two hundred pixels, half road and half car; `hits` of each half are right.

    The IoU of both classes, and so the mIoU, is hits / (200 - hits).
    """
    return [[hits, 100 - hits, 0], [100 - hits, hits, 0], [0, 0, 0]]


def counted(*images: list[list[int]], **changes: Any) -> tuple[Record, NDArray[np.int64]]:
    """A record over images with these confusion matrices, and the counts of each image."""
    matrices = np.array(images)
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    wrong = [matrices.sum(axis=1) - hits, matrices.sum(axis=2) - hits]
    counts = np.stack([hits, *wrong], axis=2)
    confusion = matrices.sum(axis=0).tolist()
    bound = {"images": len(images), "confusion": confusion, "image_counts": counts_hash(counts)}
    return record(**bound, **changes), counts


def speed_fields(**changes: Any) -> dict[str, Any]:
    """The fields of a valid speed record."""
    return {
        "schema": 1,
        "kind": "speed",
        "model": "unet-resnet18",
        "params_m": 14.33,
        "gmacs": 21.5,
        "size": [360, 480],
        "batch": 1,
        "latency_ms": {"p50": 40.0, "p95": 44.5},
        "throughput": {"1": 25.0, "4": 30.5},
        "peak_mb": 310.2,
        "build_s": 0.4,
        "precision": "fp32",
        "memory_format": "channels_last",
        "threads": 2,
        "device": "cpu",
        "machine": "AMD EPYC 9R14, 2 threads",
        "reference": {"model": "unet-mobilenetv2_100", "ratio": 1.25},
        "env": {"zoo": "0.1.0", "torch": "2.15.0"},
        "commit": "",
        "date": "2025-03-31T12:00:00Z",
        **changes,
    }


def speed_record(**changes: Any) -> SpeedRecord:
    """A valid speed record with some fields changed."""
    return parse_speed_record(speed_fields(**changes), "the example")
