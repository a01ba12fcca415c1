"""A very small data set, a suite about it, and records that fit the suite's jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.data.scenes import write_scenes

SUITE = """
version: 1
title: Tiny
seeds: [0, 1]
recipe: scratch
common: [crop=64, batch_size=4, precision=fp32, "stages=[{name: all, epochs: 2}]"]
variants:
  base: {encoder_weights: none}
  short: {encoder_weights: none, set: ["stages=[{name: all, epochs: 1}]", ema=null]}
blocks:
  - {title: Long or short, models: [unet-test_resnet], data: [scenes], variants: [base, short]}
"""


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training scenes of 64 x 80 pixels, two for validation and two for test."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return write_scenes(folder, train=8, val=2, test=2, size=(64, 80))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the caches out of the user's home."""
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    """A suite of four short jobs on the scenes."""
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    return path
