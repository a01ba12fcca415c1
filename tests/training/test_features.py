"""Training on stored features gives what training on the images gives."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import zoo
from zoo.common.errors import InputError
from zoo.data.load import load_dataset
from zoo.data.loading.loader import TrainLoader
from zoo.models.layers import train_mode, unfreeze
from zoo.models.outputs import Outputs, full_size
from zoo.models.segmentation import SegmentationModel, normalise
from zoo.registry.recipe import Recipe
from zoo.training.engine import features
from zoo.training.engine.checkpoint import load_checkpoint
from zoo.training.engine.features import (
    FeatureBatch,
    FeatureCache,
    Layout,
    TrainingNet,
    check_encoder,
    tensors_in,
    used_features,
)
from zoo.training.engine.step import Step
from zoo.training.finetune import finetune
from zoo.training.plan import check_feature_views

HEAD = {"name": "head", "epochs": 4, "unfreeze": 0.0}


def recipe(**changes: Any) -> Recipe:
    values = {
        "optimizer": {"lr": 1e-3},
        "batch_size": 3,
        "crop": 64,
        "feature_views": 2,
        "augment": {"preset": "light"},
        "stages": [HEAD],
    }
    return Recipe.model_validate(values | changes)


def model_of(name: str = "unet-test_resnet") -> SegmentationModel:
    torch.manual_seed(0)
    return zoo.create(name, classes=8, encoder_weights=None)


def loader_of(scenes: Path, asked: Recipe, **more: Any) -> TrainLoader:
    return TrainLoader(
        load_dataset(scenes), "train", crop=asked.crop, batch_size=asked.batch_size,
        augment=asked.augment, seed=asked.seed, **more,
    )  # fmt: skip


def cache_of(model: SegmentationModel, loader: TrainLoader, asked: Recipe) -> FeatureCache:
    unfreeze(model, 0.0)
    train_mode(model)
    return FeatureCache(model, loader, asked, precision="fp32", device="cpu")


def assert_equal(left: FeatureBatch, right: FeatureBatch) -> None:
    pairs = zip(tensors_in(left.features), tensors_in(right.features), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def losses(model: SegmentationModel, batches: Any) -> list[float]:
    """A plain training loop over features or images."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    found = []
    for images, masks in batches:
        if isinstance(images, torch.Tensor):
            images = normalise(images, model.spec, "cpu")  # noqa: PLW2901
        outputs = TrainingNet(model)(images)
        logits = full_size(outputs) if isinstance(outputs, Outputs) else outputs
        loss = cross_entropy(logits, masks.long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def plain(scenes: Path, asked: Recipe, views: list[int], name: str = "unet-test_resnet") -> Any:
    """The loop over images, epoch e with the order of e and the changes of epoch `views[e]`."""
    model, loader = model_of(name), loader_of(scenes, asked)
    unfreeze(model, 0.0)
    train_mode(model)
    batches = [
        batch
        for epoch, view in enumerate(views)
        for batch in loader.read([(view, numbers) for _, numbers in loader.keys(epoch)])
    ]
    return losses(model, batches), model


def cached(scenes: Path, asked: Recipe, epochs: int, name: str = "unet-test_resnet") -> Any:
    model, loader = model_of(name), loader_of(scenes, asked)
    cache = cache_of(model, loader, asked)
    batches = (batch for epoch in range(epochs) for batch in cache.epoch(epoch))
    return losses(model, batches), model


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room that does not depend on the machine."""
    monkeypatch.setattr(features, "default_cache_gib", lambda: 1.0)


def count_encodings(model: SegmentationModel) -> list[int]:
    """Images that went through the encoder, one entry a call; replayed features do not count."""
    seen: list[int] = []
    real: Callable[[Tensor], Any] = model.net.encoder.forward

    def forward(images: Tensor) -> Any:
        seen.append(len(images))
        return real(images)

    model.net.encoder.forward = forward
    return seen


@pytest.mark.parametrize(
    "name", ["unet-test_resnet", "deeplabv3plus-test_resnet", "segformer-test_resnet"]
)
def test_the_loss_and_the_weights_are_those_of_training_on_the_images(
    scenes: Path, name: str
) -> None:
    asked = recipe()
    with_images, expected = plain(scenes, asked, [0, 1, 0, 1], name)
    with_features, model = cached(scenes, asked, 4, name)
    assert with_features == pytest.approx(with_images, rel=1e-4)
    assert with_images[0] > with_images[-1]
    for key, tensor in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-3, atol=1e-5)


def test_the_first_epochs_are_those_of_an_ordinary_run(scenes: Path) -> None:
    asked = recipe(feature_views=3, batch_size=16)  # larger than the split: it is repeated
    model, loader = model_of(), loader_of(scenes, asked)
    unfreeze(model, 0.0)
    train_mode(model)
    ordinary = losses(model, (batch for epoch in range(3) for batch in loader.epoch(epoch)))
    assert cached(scenes, asked, 3)[0] == pytest.approx(ordinary, rel=1e-4)


def test_each_view_is_encoded_once(scenes: Path) -> None:
    asked = recipe()
    model, loader = model_of(), loader_of(scenes, asked)
    cache = cache_of(model, loader, asked)
    seen = count_encodings(model)
    assert cache.image_bytes == 0
    for epoch in range(6):
        losses(model, cache.epoch(epoch))
    # three of the first view to learn the layout; then twice eight images in batches of three
    assert seen == [3] + 2 * [3, 3, 2]
    # the mask, and float32 maps of 32, 16, 8, 4 and 2 pixels a side; the image itself is left out
    assert cache.image_bytes == 64**2 + 4 * (
        32 * 32**2 + 32 * 16**2 + 48 * 8**2 + 192 * 4**2 + 96 * 4
    )


def test_a_resumed_epoch_has_the_same_bits(scenes: Path) -> None:
    asked = recipe()
    whole = cache_of(model_of(), loader_of(scenes, asked), asked)
    list(whole.epoch(0))
    expected = list(whole.epoch(5))
    resumed = cache_of(model_of(), loader_of(scenes, asked), asked)
    found = list(resumed.epoch(5, first_step=1))
    assert len(found) == len(expected) - 1 == 1
    for (left, masks), (right, wanted) in zip(found, expected[1:], strict=True):
        assert isinstance(left, FeatureBatch)
        assert isinstance(right, FeatureBatch)
        assert torch.equal(masks, wanted)
        assert_equal(left, right)


@pytest.mark.long
def test_workers_give_the_same_features(scenes: Path) -> None:
    asked = recipe()
    model = model_of()
    alone, helped = (
        list(cache_of(model, loader_of(scenes, asked, workers=workers), asked).epoch(1))
        for workers in (0, 1)
    )
    assert len(alone) == len(helped) == 2
    for (left, masks), (right, wanted) in zip(alone, helped, strict=True):
        assert torch.equal(masks, wanted)
        assert_equal(left, right)


def test_nothing_is_stored_while_the_encoder_learns(scenes: Path) -> None:
    asked = recipe()
    model, loader = model_of(), loader_of(scenes, asked)
    cache = cache_of(model, loader, asked)
    before = list(cache.epoch(0))
    unfreeze(model, 1.0)
    train_mode(model)
    for (images, masks), (expected, wanted) in zip(
        cache.epoch(3), loader.epoch(3), strict=True
    ):  # epoch 3, not view 1
        assert torch.equal(images, expected)
        assert torch.equal(masks, wanted)
    losses(model, cache.epoch(3))
    unfreeze(model, 0.0)
    train_mode(model)
    after = list(cache.epoch(0))
    assert torch.equal(before[0][1], after[0][1])
    old, new = (tensors_in(batches[0][0].features)[-1] for batches in (before, after))
    assert not torch.equal(old, new)  # encoded again


def test_on_disk_as_in_memory(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = recipe()
    in_memory, _ = cached(scenes, asked, 4)
    assert "2 views of 8 images take" in capsys.readouterr().err
    monkeypatch.setattr(features, "default_cache_gib", lambda: 0.0)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("ZOO_CACHE_GIB", "1")
    assert cached(scenes, asked, 4)[0] == in_memory
    said = " ".join(capsys.readouterr().err.split())
    assert f"0 views stay in memory and 2 on disk in {tmp_path / 'features'}." in said
    assert list((tmp_path / "features").iterdir()) == []  # the files have no name


def test_without_room_every_epoch_encodes_and_the_losses_stay(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe()
    expected, _ = plain(scenes, asked, [0, 1, 0])
    monkeypatch.setattr(features, "default_cache_gib", lambda: 0.0)
    monkeypatch.setenv("ZOO_CACHE_GIB", "0")
    assert cached(scenes, asked, 3)[0] == expected
    said = capsys.readouterr().err
    assert "The other 2 are encoded in every epoch; set feature_views lower" in said
    assert said.count("every epoch") == 1


def test_a_full_disk_costs_a_remark(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = recipe()
    expected, _ = plain(scenes, asked, [0, 1, 0, 1])
    real = tempfile.TemporaryFile

    class Full:
        def __init__(self, **options: Any):
            self._file = real(**options)

        def write(self, content: Any) -> None:
            if self._file.tell() > 0:
                raise OSError(28, "No space left on device")
            self._file.write(content)

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    monkeypatch.setattr(features, "default_cache_gib", lambda: 0.0)
    monkeypatch.setenv("ZOO_CACHE_GIB", "1")
    assert cached(scenes, asked, 4)[0] == expected
    said = capsys.readouterr().err
    assert said.count("No space left on device. The run continues and encodes") == 1


def test_a_bad_budget_is_named(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_CACHE_GIB", "much")
    with pytest.raises(InputError, match="ZOO_CACHE_GIB is 'much'"):
        cached(scenes, recipe(), 1)


def test_a_stop_is_taken_while_a_view_is_encoded(scenes: Path) -> None:
    asked = recipe()
    calls = []

    def stop() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    model, loader = model_of(), loader_of(scenes, asked)
    cache = FeatureCache(
        model, loader, asked, precision="fp32", device="cpu", after_batch=stop, verbose=False
    )
    unfreeze(model, 0.0)
    with pytest.raises(KeyboardInterrupt):
        list(cache.epoch(0))
    assert calls == [1]


def test_features_of_any_kind_come_back_as_they_were() -> None:
    images = torch.zeros(3, 3, 4, 4)
    masks = torch.arange(3 * 16, dtype=torch.uint8).view(3, 4, 4)
    last = torch.rand(3, 5, 2, 2).to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    tokens = torch.rand(3, 7, 6)
    left_out = torch.rand(3, 3, 4, 4)
    given = ([left_out, last], [tokens, None])
    layout = Layout.of(given, [False, True, True], images, masks)
    assert layout.row_bytes == 5 * 2 * 2 * 2 + 7 * 6 * 4 + 16
    rows = layout.pack(given, masks)
    assert rows.shape == (3, layout.row_bytes)
    batch, labels = layout.batch(rows, [2, 0])
    assert len(batch) == 2
    assert torch.equal(labels, masks[[2, 0]])
    ([unused, first], [second, nothing]) = batch.features
    assert torch.equal(first, last[[2, 0]])
    assert first.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(second, tokens[[2, 0]])
    assert nothing is None
    assert unused.shape == (2, 3, 4, 4)
    assert unused.untyped_storage().nbytes() == 4
    part = batch[1:]
    assert len(part) == 1
    assert torch.equal(part.features[1][0], tokens[[0]])


@pytest.mark.parametrize(
    "name", ["unet-test_resnet", "dpt-test_vit", "linear-test_vit", "eomt-test_vit", "pmt-test_vit"]
)
def test_features_take_the_place_of_images(name: str) -> None:
    model = model_of(name).eval()
    net = TrainingNet(model)
    images = torch.rand(2, 3, 70, 96)
    with torch.no_grad():
        given = model.encode(images)
        masks = torch.zeros(2, 70, 96, dtype=torch.uint8)
        layout = Layout.of(given, used_features(model, given, (3, 70, 96)), images, masks)
        batch, _ = layout.batch(layout.pack(given, masks), [0, 1])
        found, expected = tensors_in(net(batch)), tensors_in(net(images))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_what_a_decoder_does_not_read_is_not_stored() -> None:
    for name, expected in (
        ("unet-test_resnet", [False, True, True, True, True, True]),
        ("deeplabv3plus-test_resnet", [False, False, True, False, False, True]),
    ):
        model = model_of(name).train()
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        given = model.net.encoder(torch.rand(2, 3, 64, 64))
        state = torch.get_rng_state()
        before |= {key: tensor.clone() for key, tensor in model.state_dict().items()}
        assert used_features(model, given, (3, 64, 64)) == expected
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
        assert all(module.training for module in model.modules())
        assert all(parameter.grad is None for parameter in model.parameters())


def test_a_recipe_that_cannot_store_features_says_all_reasons() -> None:
    asked = recipe(
        augment={"preset": "strong"},
        oversample="rare",
        stages=[{"name": "all", "epochs": 1}],
    )
    with pytest.raises(InputError) as caught:
        check_feature_views(asked)
    message = str(caught.value)
    assert message.startswith("feature_views cannot be used here:\n")
    assert "set both to 0" in message
    assert "oversample" in message
    assert "give one of them unfreeze=0" in message


@pytest.mark.parametrize(
    "stage",
    [
        {"unfreeze": 0.0},
        {"learn": "decoder"},
        {"learn": "head"},
        {"unfreeze_from": 0.0, "epochs": 2},
    ],
)
def test_stages_that_may_freeze_the_encoder(stage: dict[str, Any]) -> None:
    check_feature_views(recipe(stages=[{"name": "a", "epochs": 1, **stage}]))


def test_a_pattern_that_learns_is_no_frozen_encoder() -> None:
    stage = {"name": "a", "epochs": 1, "unfreeze": 0.0, "unfreeze_names": ["layer4*"]}
    with pytest.raises(InputError, match="the encoder learns in every stage"):
        check_feature_views(recipe(stages=[stage]))
    check_feature_views(recipe(stages=[stage], feature_views=None))


def test_a_model_that_cannot_store_features_says_so() -> None:
    model = model_of()
    check_encoder(model, 96)
    model.spec = model.spec.model_copy(update={"img_size": 64})
    check_encoder(model, 64)
    with pytest.raises(InputError, match=r"several windows of 64.*Set crop to 64 or less"):
        check_encoder(model, 96)
    model.net = torch.nn.Identity()
    with pytest.raises(InputError, match="has no encoder apart from its decoder"):
        check_encoder(model, 64)


def run(data: Path, out: Path, *more: str, resume: bool = False) -> list[float]:
    """A run of two frozen epochs, one that learns and another frozen one; the losses of its log."""
    overrides = [
        "crop=64", "batch_size=4", "precision=fp32", "ema=0.9", "checkpoint_minutes=1e-9",
        "stages=[{name: head, epochs: 2, unfreeze: 0.0}, {name: all, epochs: 1}, "
        "{name: last, epochs: 1, unfreeze: 0.0}]",
    ]  # fmt: skip
    finetune(
        "unet-test_resnet", data, recipe="scratch", out=out, overrides=[*overrides, *more],
        encoder_weights=None, resume=resume,
    )  # fmt: skip
    lines = (out / "log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if entry["event"] == "step"]


@pytest.mark.long
def test_a_run_with_as_many_views_as_epochs_is_the_ordinary_one(
    scenes: Path, tmp_path: Path
) -> None:
    ordinary = run(scenes, tmp_path / "a", "micro_batch=3")
    assert len(ordinary) == 8
    found = run(scenes, tmp_path / "b", "micro_batch=3", "feature_views=4")
    assert found == pytest.approx(ordinary, rel=1e-4)


@pytest.mark.long
def test_a_run_that_broke_off_ends_with_the_same_bits(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(scenes, tmp_path / "whole", "feature_views=1")
    calls = []
    real = Step.__call__

    def broken(self: Step, *given: Any) -> float:
        calls.append(1)
        if len(calls) in (2, 8):  # in the first epoch and, when that was repeated, in the last
            raise ZeroDivisionError
        return real(self, *given)

    with monkeypatch.context() as changed:
        changed.setattr(Step, "__call__", broken)
        for resume in (False, True):
            with pytest.raises(ZeroDivisionError):
                run(scenes, tmp_path / "broken", "feature_views=1", resume=resume)
    assert run(scenes, tmp_path / "broken", "feature_views=1", resume=True) == whole
    left, right = (load_checkpoint(tmp_path / name)[0] for name in ("whole", "broken"))
    for part in ("model", "ema"):
        assert all(torch.equal(left[part][key], right[part][key]) for key in left[part])


def test_a_recipe_that_cannot_store_features_writes_nothing(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="copy_paste"):
        run(scenes, tmp_path / "run", "feature_views=2", "augment.copy_paste=0.5")
    assert not (tmp_path / "run").exists()
