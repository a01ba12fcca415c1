"""Windows cover every pixel once, cut windows give what the whole image gives, blended a mean."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from zoo.common.errors import InputError
from zoo.inference.networks import TorchNetwork
from zoo.inference.tiling import Windows, plan_windows, predict_ids, predict_tiles
from zoo.models.segmentation import SegmentationModel
from zoo.models.spec import ModelSpec, class_names, palette_for


def spec_of(classes: int = 3, **options: Any) -> ModelSpec:
    names = class_names(classes)
    return ModelSpec(
        name="unet-x", decoder="unet", encoder="x", classes=names,
        palette=palette_for(names, None), mean=[0.0] * 3, std=[1.0] * 3, **options,
    )  # fmt: skip


def brightness(images: torch.Tensor, factor: float) -> torch.Tensor:
    """Logits that a pixel alone decides."""
    return images.float() / 255 - 0.5


def noise(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("blend", ["cut", "gaussian"])
@pytest.mark.parametrize("size", [(97, 131), (1, 1), (1, 200), (64, 300), (65, 64), (33, 7)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("fixed", [False, True])
def test_tiles_cover_every_pixel_once_and_give_its_logits(
    blend: str, size: tuple[int, int], overlap: float, fixed: bool
) -> None:
    spec, images = spec_of(), noise(2, 3, *size)
    given = {"size": (64, 64)} if fixed else {"window": 64}
    windows = plan_windows(spec, *size, blend=blend, overlap=overlap, **given)
    assert (windows.window is None) == (max(size) <= 64)
    found = torch.zeros(2, 3, *size)
    seen = torch.zeros(size, dtype=torch.int)
    shapes = set()

    def network(images: torch.Tensor, factor: float) -> torch.Tensor:
        shapes.add(tuple(images.shape[-2:]))
        return brightness(images, factor)

    for tile in predict_tiles(network, spec, images, windows):
        part = (..., tile.rows, tile.columns)
        found[part] += tile.full_scores()
        seen[part] += 1
        assert torch.equal(tile.ids(), images[part].argmax(1).to(torch.uint8)) or blend != "cut"
    assert (seen == 1).all()
    assert (found - brightness(images, 1)).abs().max() < 1e-5
    if fixed:
        assert shapes == {(min(64, size[0]), min(64, size[1]))}


def test_windows_overlap_as_asked_and_begin_at_multiples() -> None:
    spec, places = spec_of(), []
    images = torch.arange(500).repeat(40, 1).expand(1, 3, 40, 500)

    def network(images: torch.Tensor, factor: float) -> torch.Tensor:
        places.append((int(images[0, 0, 0, 0]), int(images[0, 0, 0, -1]) + 1))
        return images.float()

    list(predict_tiles(network, spec, images, Windows(160, 0.25, "cut")))
    # 160 less a quarter is 120; 96 is the next multiple of 32 below
    assert places == [(0, 160), (96, 256), (192, 352), (288, 448), (384, 500)]
    places.clear()
    list(predict_tiles(network, spec, images, Windows(160, 0.25, "gaussian")))
    assert places == [(0, 160), (113, 273), (227, 387), (340, 500)]


def test_blended_logits_are_the_weighted_mean_of_the_windows() -> None:
    spec, counter = spec_of(1), iter([1.0, 5.0])

    def network(images: torch.Tensor, factor: float) -> torch.Tensor:
        return torch.full((1, 1, *images.shape[-2:]), next(counter))

    tiles = list(predict_tiles(network, spec, noise(1, 3, 64, 96), Windows(64, 0.5, "gaussian")))
    found = torch.cat([tile.full_scores() for tile in tiles], dim=-1)[0, 0]
    x = torch.arange(96)
    first = torch.exp(-0.5 * ((x - 31.5) / 8) ** 2) * (x < 64)  # sigma is 64 / 8
    second = torch.exp(-0.5 * ((x - 63.5) / 8) ** 2) * (x >= 32)
    wanted = (1.0 * first + 5.0 * second) / (first + second)
    assert torch.allclose(found, wanted.expand(64, 96), atol=1e-5)
    assert found[0, 48].item() == pytest.approx(3.125, abs=0.2)


@pytest.mark.parametrize(
    ("options", "size", "wanted"),
    [
        ({}, (2048, 2048), Windows(None, 0.25, "cut")),
        ({}, (2048, 2049), Windows(1536, 0.25, "cut")),
        ({"input_scale": 0.5}, (4096, 4096), Windows(None, 0.25, "cut")),
        ({"input_scale": 2.0}, (1024, 1025), Windows(1536, 0.25, "cut")),
        ({"input_side": 512}, (20000, 20000), Windows(None, 0.25, "cut")),
        ({"img_size": 224}, (224, 200), Windows(None, 0.25, "gaussian", True)),
        ({"img_size": 224}, (225, 200), Windows(224, 0.25, "gaussian", True)),
        ({"img_size": (96, 128)}, (97, 90), Windows((96, 128), 0.25, "gaussian", True)),
        (
            {"encoder_args": {"dynamic_img_size": True}},
            (2048, 2049),
            Windows(1024, 0.25, "gaussian"),
        ),
    ],
)
def test_the_default_comes_from_the_spec_and_the_size(
    options: dict[str, Any], size: tuple[int, int], wanted: Windows
) -> None:
    assert plan_windows(spec_of(**options), *size) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 16}, "A window of 16 pixels is too small for unet-x"),
        ({"window": "wide"}, "window (--window) is auto, none, or the side of a window in pixels"),
        ({"window": -1}, "not -1."),
        ({"window": 2.5}, "not 2.5."),
        ({"overlap": 0.95}, "overlap (--overlap) is a fraction of the window from 0 to 0.9"),
        ({"overlap": float("nan")}, "not nan."),
        ({"blend": "mean"}, "Unknown blend 'mean'"),
        ({"size": (64, 96), "window": 128}, "unet-x takes images of 64x96 pixels only"),
        ({"size": (64, 64), "window": None}, "leave the window at auto, not None."),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        plan_windows(spec_of(), 10, 10, **options)


def test_a_source_is_read_window_by_window() -> None:
    images = noise(1, 3, 150, 170)

    class Source:
        height, width = 150, 170

        def read(self, rows: slice, columns: slice) -> np.ndarray:
            assert rows.stop - rows.start <= 64
            assert columns.stop - columns.start <= 64
            return images[0, :, rows, columns].permute(1, 2, 0).numpy()

    found = torch.zeros(1, 150, 170, dtype=torch.uint8)
    for tile in predict_tiles(brightness, spec_of(), Source(), Windows(64, 0.25, "cut")):
        found[..., tile.rows, tile.columns] = tile.ids()
    assert torch.equal(found, images.argmax(1).to(torch.uint8))


def test_networks_of_a_fixed_size_are_blended_in_scoring_too() -> None:
    class Middle(nn.Module):
        """Its logits depend on where in the window a pixel lies."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            ramp = torch.linspace(-1, 1, images.shape[-1]).expand(*images[:, :1].shape)
            return torch.cat([ramp, -ramp, ramp * 0], dim=1)

    model = SegmentationModel(Middle(), spec_of(img_size=64)).eval()
    images = noise(1, 3, 64, 96)
    ids = predict_ids(model, images)[0, 0]
    # of two windows, 0 to 63 and 32 to 95, the nearer one decides
    assert ids.tolist() == [1] * 32 + [0] * 16 + [1] * 16 + [0] * 32


@pytest.mark.long
@pytest.mark.parametrize("name", ["unet-test_resnet", "linknet-test_resnet"])
def test_cut_windows_give_the_ids_of_the_whole_image(name: str) -> None:
    torch.manual_seed(0)
    model = zoo.create(name, classes=5, encoder_weights=None).eval()
    network = TorchNetwork(model)
    coarse = torch.rand(1, 3, 128, 192)
    images = nn.functional.interpolate(coarse, (2048, 3072), mode="bicubic").clamp(0, 1)
    images = (images * 200 + torch.rand(1, 3, 2048, 3072) * 55).to(torch.uint8)
    (whole,) = predict_tiles(network, model.spec, images, Windows(None))
    ids, probabilities = whole.ids(), whole.probabilities()
    assert ids.unique().numel() >= 3
    windows = plan_windows(model.spec, 2048, 3072)
    assert windows == Windows(1536, 0.25, "cut")
    for tile in predict_tiles(network, model.spec, images, windows):
        part = (..., tile.rows, tile.columns)
        assert (tile.probabilities() - probabilities[part]).abs().max() < 1e-5
        assert (tile.ids() != ids[part]).sum() <= 2  # sums in another order may tie
