"""Predictor: what can be given, what comes back in which order, and what is left when it fails."""

from __future__ import annotations

import errno
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import StdConv2d
from torch import nn

import zoo
from zoo.cli.main import run
from zoo.common.errors import InputError, RunError
from zoo.inference.inputs import find_images
from zoo.inference.networks import TorchNetwork, fold_batch_norm
from zoo.inference.predictor import BrokenImagesError
from zoo.models.segmentation import SegmentationModel
from zoo.registry.decoders import DECODERS

MODEL = "unet-test_resnet"


@pytest.fixture(scope="module")
def model() -> SegmentationModel:
    torch.manual_seed(0)
    made = zoo.create(MODEL, classes=3, encoder_weights=None)
    return scattered(made)


def scattered(model: SegmentationModel) -> SegmentationModel:
    """The model with BatchNorm statistics that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
            module.running_var.mul_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


@pytest.fixture(scope="module")
def predictor(model: SegmentationModel) -> zoo.Predictor:
    return zoo.Predictor(model, precision="fp32")


def photo(height: int = 40, width: int = 56, channels: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def turned(path: Path) -> tuple[Any, Any]:
    """A JPEG whose EXIF orientation asks for a quarter turn, and its pixels after it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo()).save(path, exif=exif)
    with Image.open(path) as stored:
        return path, np.rot90(np.asarray(stored), 3)


def palette(path: Path) -> tuple[Any, Any]:
    image = Image.fromarray(photo()).quantize(8)
    image.save(path)
    return path, np.asarray(image.convert("RGB"))


def with_alpha(path: Path) -> tuple[Any, Any]:
    Image.fromarray(photo(channels=4)).save(path)
    return path, photo(channels=4)[:, :, :3]


def cmyk(path: Path) -> tuple[Any, Any]:
    Image.fromarray(photo(channels=4), "CMYK").save(path)
    with Image.open(path) as stored:
        return path, np.asarray(stored.convert("RGB"))


def gray(path: Path) -> tuple[Any, Any]:
    Image.fromarray(photo()[:, :, 0]).save(path)
    return path, photo()[:, :, :1].repeat(3, axis=2)


@pytest.mark.parametrize(
    ("make", "suffix"),
    [(turned, ".jpg"), (palette, ".png"), (with_alpha, ".png"), (cmyk, ".tif"), (cmyk, ".jpg"),
     (gray, ".png")],
)  # fmt: skip
def test_files_and_pillows_images_are_converted_alike(
    predictor: zoo.Predictor,
    tmp_path: Path,
    make: Callable[[Path], tuple[Any, Any]],
    suffix: str,
) -> None:
    path, pixels = make(tmp_path / f"image{suffix}")
    expected = predictor(pixels).mask
    assert expected.shape == pixels.shape[:2]
    assert len(np.unique(expected)) > 1
    assert (predictor(path).mask == expected).all()
    with Image.open(path) as opened:
        assert (predictor(opened).mask == expected).all()


def test_arrays_and_tensors_are_read_as_the_files_that_hold_them(
    predictor: zoo.Predictor, tmp_path: Path
) -> None:
    pixels = photo()
    expected = predictor(pixels).mask
    for given in (
        torch.from_numpy(pixels).permute(2, 0, 1),
        pixels[None],
        [torch.from_numpy(pixels).permute(2, 0, 1)],
        Image.fromarray(pixels),
        (one for one in [pixels]),
    ):
        (found,) = predictor.stream(given)
        assert (found.mask == expected).all()
        assert found.image == "image 0"
    wide = pixels.astype(np.uint16) * 257
    np.save(tmp_path / "wide.npy", wide)
    assert (predictor(wide).mask == expected).all()
    assert (predictor(tmp_path / "wide.npy").mask == expected).all()
    one = predictor(photo(1, 1)).mask
    assert one.shape == (1, 1)
    assert (predictor(photo()[:, :, 0]).mask == predictor(photo()[:, :, :1]).mask).all()
    batch = torch.from_numpy(np.stack([photo(seed=seed) for seed in range(3)]))
    found = [one.mask for one in predictor.stream(batch.permute(0, 3, 1, 2))]
    assert (np.stack(found) == [predictor(photo(seed=seed)).mask for seed in range(3)]).all()


def test_a_range_of_values_is_that_of_the_model() -> None:
    model = zoo.create(MODEL, classes=3, encoder_weights=None)
    model.spec = model.spec.model_copy(update={"value_range": (-1.0, 1.0)})
    ranged = zoo.Predictor(model, precision="fp32")
    plain = zoo.Predictor(model, precision="fp32")
    plain.spec = model.spec.model_copy(update={"value_range": None})
    values = photo().astype(np.float32) / 127.5 - 1
    assert (ranged(values).mask == plain(photo()).mask).all()


def save_animation(path: Path) -> None:
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def save_array(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array)


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "corrupt.jpg": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 no JPEG"), "corrupt.jpg"),
    "empty.png": (lambda path: path.write_bytes(b""), "is not an image in a known format"),
    "animated.gif": (save_animation, "holds 2 frames (GIF)"),
    "five.npy": (save_array(photo(channels=5)), f"five.npy has 5 channels, {MODEL} takes 3."),
    "float.npy": (save_array(np.zeros((4, 4, 3), np.float32)), "has floating-point pixels"),
    "text.png": (lambda path: path.write_text("<html>"), "is not an image in a known format"),
}
BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "float": (np.zeros((4, 4, 3)), "image 0 has floating-point pixels"),
    "signed": (np.zeros((4, 4, 3), np.int16), "image 0 has signed 16-bit pixels"),
    "channels": (photo(channels=2), f"image 0 has 2 channels, {MODEL} takes 3."),
    "planes first": ([np.zeros((3, 40, 56), np.uint8)], "image 0 has 56 channels"),
    "nothing": (np.zeros((0, 4, 3), np.uint8), "image 0 holds an array of shape (0, 4, 3)"),
    "tensor": (torch.zeros(3, 8, 8), "(images * 255).round().to(torch.uint8)"),
    "object": ([{"a": 1}], "image 0 is {'a': 1} (dict)"),
    "number": (3, "got 3 (int)"),
    "both": (["a.png", photo()], "Give files or images in memory, not both"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_and_the_others_are_done(
    predictor: zoo.Predictor, tmp_path: Path, name: str
) -> None:
    make, said = BAD_FILES[name]
    make(tmp_path / name)
    for good in ("a.png", "z.png"):
        Image.fromarray(photo()).save(tmp_path / good)
    found = predictor.stream([tmp_path], out=tmp_path / "out")
    assert [Path(next(found).image).name for _ in range(2)] == ["a.png", "z.png"]
    with pytest.raises(BrokenImagesError) as caught:
        next(found)
    assert "1 of 3 images cannot be predicted, the others are done" in str(caught.value)
    assert said in str(caught.value)
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["a.png", "z.png"]
    with pytest.raises(InputError, match="1 of 1 images cannot be predicted"):
        list(predictor.stream(tmp_path / name))


class NanForWhite(TorchNetwork):
    """A network whose first score of the first class is `value` where an image is all white."""

    value = float("nan")

    def __call__(self, images: torch.Tensor, factor: float) -> torch.Tensor:
        logits = super().__call__(images, factor)
        logits[(images == 255).flatten(1).all(1), 0, 0, 0] = self.value
        return logits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_without_finite_scores_is_broken_and_the_others_are_done(
    model: SegmentationModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    monkeypatch.setenv("ZOO_MAX_MEGAPIXELS", "0.01")
    spoilt = zoo.Predictor(model, precision="fp32", window=64)
    spoilt.network = NanForWhite(model)
    spoilt.network.value = value
    given = {"a.png": photo(), "b.png": np.full_like(photo(), 255), "c.png": photo(seed=1)}
    given["d.tif"] = np.full((120, 120, 3), 255, np.uint8)  # beyond the limit
    for name, pixels in given.items():
        Image.fromarray(pixels).save(tmp_path / name)
    found = spoilt.stream(tmp_path, out=tmp_path / "out")
    assert [Path(next(found).image).name for _ in range(2)] == ["a.png", "c.png"]
    with pytest.raises(BrokenImagesError) as caught:
        next(found)
    said = (
        "The network gives NaN or infinite scores in fp32. Its weights are unfit for such an "
        "image: use another checkpoint, or train again at a lower learning rate."
    )
    assert str(caught.value) == "\n".join(
        [
            "2 of 4 images cannot be predicted, the others are done:",
            f"  - {tmp_path / 'b.png'}: {said}",
            f"  - {tmp_path / 'd.tif'}: {said}",
        ]
    )
    written = {path.stem for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert written == {"a", "c", ".zoo-files"}
    for tta in ("none", "flip"):
        alone = zoo.Predictor(model, precision="bf16", tta=tta)
        alone.network = NanForWhite(model, precision="bf16")
        with pytest.raises(
            InputError, match=r"scores in bf16\. Use --precision fp32 \(precision=\)"
        ):
            alone(given["b.png"], confidence=True)


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_refused(predictor: zoo.Predictor, name: str) -> None:
    given, said = BAD_ARRAYS[name]
    with pytest.raises(InputError) as caught:
        list(predictor.stream(given))
    assert said in str(caught.value)


def test_bad_models_and_options(model: SegmentationModel, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(InputError, match=r"model\.onnx has no model\.json beside it"):
        zoo.Predictor(tmp_path / "model.onnx")
    for given, said in (
        (tmp_path / "notes.txt", "There is no folder"),
        (tmp_path, "is not a model folder"),
        (3, "A model should be a name, a folder or what zoo.create returned"),
    ):
        with pytest.raises(InputError, match=said):
            zoo.Predictor(given)  # type: ignore[arg-type]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"backend": "tensorrt"}, "Unknown backend 'tensorrt'"),
        ({"compile": True, "device": "cpu"}, "is for GPUs: on CPUs it took three minutes"),
        ({"batch_size": 0}, "batch_size should be a number of images"),
        ({"window": "huge"}, "is auto, none, or the side of a window"),
        ({"tta": "mirror"}, "is none, flip, or flip and scales"),
    ]
    for options, said in wrong:
        with pytest.raises(InputError, match=said):
            zoo.Predictor(model, **options)


def test_results_come_in_order_whatever_is_batched(model: SegmentationModel) -> None:
    sizes = [(40, 56)] * 5 + [(48, 40), (40, 56), (48, 40)] + [(33, 35)] * 4
    images = [photo(*size, seed=number) for number, size in enumerate(sizes)]
    single = [one.mask for one in zoo.Predictor(model, batch_size=1).stream(images)]
    for batch_size in (3, None):
        found = list(zoo.Predictor(model, batch_size=batch_size).stream(iter(images)))
        assert [one.image for one in found] == [f"image {number}" for number in range(12)]
        equal = [(a.mask == b).mean() for a, b in zip(found, single, strict=True)]
        assert min(equal) > 0.99  # sums of another batch may be rounded otherwise


def test_an_iterator_is_consumed_as_results_are_asked_for(model: SegmentationModel) -> None:
    taken = itertools.count()
    last = -1

    def images() -> Iterator[Any]:
        nonlocal last
        for last in taken:
            yield photo(16, 16, seed=last)

    found = zoo.Predictor(model, batch_size=2).stream(images())
    assert last == 0  # the first says whether files or images come
    for number in range(50):
        next(found)
        assert last < number + 12
    found.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("zoo-predict")]


def test_a_consumer_that_stops_leaves_whole_files_only(
    predictor: zoo.Predictor, tmp_path: Path
) -> None:
    images = [photo(seed=number) for number in range(30)]
    found = predictor.stream(images, out=tmp_path / "out")
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("zoo-predict")]
    for path in (tmp_path / "out").rglob("*.png"):
        with Image.open(path) as image:
            image.load()
    assert not list((tmp_path / "out").glob("*/.*"))
    list(predictor.stream(images[:2], out=tmp_path / "out"))  # its own files are replaced


def test_a_full_disk_is_one_error(
    predictor: zoo.Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        list(predictor.stream([photo(seed=n) for n in range(9)], out=tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == [".zoo-files.jsonl"]


def test_an_output_folder_that_cannot_be(
    model: SegmentationModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zoo.save(model, tmp_path / "model")
    (tmp_path / "file").write_text("mine")
    Image.fromarray(photo()).save(tmp_path / "a.png")
    asked = ["predict", str(tmp_path / "model"), str(tmp_path / "a.png")]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "masks").write_text("mine")
    for place, said in (("file", "file"), ("file/below", "file"), ("out", "out/masks")):
        assert run([*asked, "--out", str(tmp_path / place), "--overwrite"]) == 2
        assert (
            f"{tmp_path / said} is not a folder; give another place for" in capsys.readouterr().err
        )
        assert (tmp_path / said).read_text() == "mine"
    options = "--tta flip --no-fold --window 32 --overlap 0.5 --blend gaussian --batch-size 2"
    arguments = [*options.split(), "--precision", "fp32", "--backend", "torch"]
    assert run([*asked, "--out", str(tmp_path / "seen"), *arguments]) == 0
    assert run([*asked, "--out", str(tmp_path / "no"), "--compile"]) == 2
    assert "is for GPUs" in capsys.readouterr().err


def test_the_model_stays_as_it_is_and_its_weights_are_shared() -> None:
    model = zoo.create(MODEL, classes=3, encoder_weights=None).train()

    def state() -> list[Any]:
        return [(p.data_ptr(), p.dtype, p.requires_grad) for p in model.parameters()]

    before = state()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for precision in ("fp32", "bf16"):
        found = zoo.Predictor(model, precision=precision, device="cpu")
        assert found.settings == {
            "backend": "torch", "precision": precision, "folded": True, "window": "auto",
            "overlap": 0.25, "blend": "cut", "tta": "none",
        }  # fmt: skip
        found(photo())
    assert state() == before
    assert model.training
    assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("decoder", ["unet", "fpn", "segformer", "deeplabv3plus"])
def test_folding_changes_rounding_only(decoder: str) -> None:
    torch.manual_seed(0)
    model = scattered(zoo.create(f"{decoder}-test_resnet", classes=4, encoder_weights=None))
    plain, folded = TorchNetwork(model), TorchNetwork(model, fold=True)
    assert folded.folded
    kinds = {type(module) for module in folded.model.modules()}
    assert nn.BatchNorm2d not in kinds
    images = torch.from_numpy(photo(96, 64)).permute(2, 0, 1)[None]
    expected = plain(images, 1.0)
    assert torch.allclose(
        folded(images, 1.0), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
    )


class Branching(nn.Module):
    """A convolution whose output goes to a BatchNorm and past it."""

    def __init__(self, convolution: type[nn.Conv2d] = nn.Conv2d, past: bool = False):
        super().__init__()
        self.first, self.norm = convolution(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.past = past

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Four logits per pixel."""
        found = self.first(images)
        normed: torch.Tensor = self.norm(found)
        return normed + found if self.past else normed


@pytest.mark.parametrize(
    ("net", "folds"),
    [(Branching(), True), (Branching(past=True), False), (Branching(StdConv2d), False)],
)
def test_only_what_is_proven_is_folded(
    model: SegmentationModel, net: nn.Module, folds: bool
) -> None:
    other = scattered(SegmentationModel(net, model.spec)).eval()
    images = torch.randn(2, 3, 32, 32)
    expected = other(images, 1.0)
    assert fold_batch_norm(other) == folds
    assert torch.allclose(other(images, 1.0), expected, atol=1e-5)
    assert isinstance(net.norm, nn.Identity) == folds


@pytest.mark.long
@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_fast_settings_give_the_classes_of_fp32(decoder: str) -> None:
    torch.manual_seed(0)
    encoder = "test_vit" if decoder in ("dpt", "eomt", "linear", "pmt") else "test_resnet"
    model = scattered(zoo.create(f"{decoder}-{encoder}", classes=4, encoder_weights=None))
    images = torch.from_numpy(photo(128, 160)).permute(2, 0, 1)[None]
    expected = TorchNetwork(model)(images, 1.0).argmax(dim=1)
    for options in ({"fold": True}, {"fold": True, "precision": "bf16"}):
        found = TorchNetwork(model, **options)(images, 1.0).argmax(dim=1)  # type: ignore[arg-type]
        assert (found == expected).double().mean() > 0.97


def test_the_settings_of_one_image_are_those_that_were_used(model: SegmentationModel) -> None:
    predictor = zoo.Predictor(model, window=64, precision="fp32")
    whole = dict.fromkeys(("window", "overlap", "blend"))
    assert predictor.settings_at(48, 80) == predictor.settings | (
        {"window": 64, "overlap": 0.25, "blend": "cut"}
    )
    assert predictor.settings_at(48, 64).items() >= whole.items()
    image = np.zeros((40, 50, 3), np.uint8)
    batch = list(predictor.stream([image, image]))
    assert [one.mask.base is None for one in batch] == [True, True]


def test_patterns_end_where_links_lead_back(tmp_path: Path) -> None:
    """With two links to a folder around them there are 2**40 ways to the same image."""
    inner = tmp_path / "photos" / "inner"
    inner.mkdir(parents=True)
    for name in ("a.png", "inner/b.png", ".hidden.png", "inner/.c.png", "notes.txt"):
        (tmp_path / "photos" / name).write_bytes(b"")
    for name in ("first", "second"):
        (inner / name).symlink_to(tmp_path / "photos")

    def names(pattern: str) -> list[str]:
        return [name.as_posix() for _, name in find_images([f"{tmp_path}/photos/{pattern}"])]

    assert names("**/*.png") == names("**/**.png") == [*names("[ai]*"), "b"] == ["a", "b"]
    assert names("*/first/*.png") == ["a"]
    assert names("") == ["a", "inner/b"]


def test_inputs_that_cannot_be_told_apart_or_are_empty(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "x/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    first, second, inner = tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "x" / "a.png"
    said = f"{first} and {second} would both be written as a. Rename one, or predict them into"
    with pytest.raises(InputError, match=re.escape(said)):
        find_images([tmp_path])
    with pytest.raises(InputError, match="Rename one, give their common folder, or predict"):
        find_images([second, inner])
    with pytest.raises(InputError, match="An image, folder or pattern is empty text"):
        find_images([""])
