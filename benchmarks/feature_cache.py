"""What storing a frozen encoder's features is worth: epochs with them and without.

Three candidates train the same decoder by the same recipe, in turns: from images, from stored
features, and from one batch of features that is in memory already, which bounds what storing can
gain, since only the decoder's own step is left. Medians over the rounds are compared.

    python benchmarks/feature_cache.py --out benchmarks/speed/feature_cache.json
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zoo.common.console import track
from zoo.common.files import write_json
from zoo.creation.create import create
from zoo.data.dataset import Dataset
from zoo.data.load import load_dataset
from zoo.data.loading.loader import TrainLoader
from zoo.data.scenes import write_scenes
from zoo.models.layers import train_mode
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides
from zoo.registry.resolve import resolve
from zoo.runtime.environment import stamp
from zoo.runtime.precision import resolve_precision
from zoo.training.engine.trainer import Trainer

MODELS = ["linear-vit_small_patch14_dinov2", "linear-vit_tiny_patch16_224", "unet-mobilenetv2_100"]
BATCH = 8
FROZEN = "stages=[{name: frozen, epochs: 99, unfreeze: 0.0}]"


def make_trainer(model: str, dataset: Dataset, crop: int, views: int | None, run: Path) -> Trainer:
    """A trainer in a stage whose encoder is frozen, of the recipe that the model has by itself."""
    asked = [FROZEN, f"crop={crop}", f"batch_size={BATCH}", f"feature_views={views or 'null'}"]
    recipe = load_registry().recipe(resolve(model).recipe)
    recipe = apply_overrides(recipe, [*asked, "augment.preset=light"])
    net = create(
        model, classes=dataset.classes, encoder_weights=None, img_size=img_size(model, crop)
    )
    loader = TrainLoader(
        dataset, "train", crop=crop, batch_size=BATCH, augment=recipe.augment, seed=0
    )
    none: Any = None
    trainer = Trainer(
        net, recipe, loader, none, run, class_weights=None,
        precision=resolve_precision("auto", "cpu"), training={}, dataset=dataset.name,
    )  # fmt: skip
    trainer.start_stage(recipe.stages[0], 0)
    train_mode(trainer.model)
    return trainer


def img_size(model: str, crop: int) -> int | None:
    """The crop for a transformer, which is built for a size."""
    return crop if "vit" in model else None


def epoch_of(trainer: Trainer) -> Callable[[], None]:
    """One epoch after the other, without validation."""

    def numbered() -> Iterator[None]:
        for epoch in range(10**6):
            for images, masks in trainer.batches.epoch(epoch):
                trainer.step(images, masks)
            yield

    epochs = numbered()
    return lambda: next(epochs)


def bound_of(trainer: Trainer) -> Callable[[], None]:
    """As many steps as an epoch has, all on one batch of features."""
    batch = next(iter(trainer.batches.epoch(0)))

    def epoch() -> None:
        for _ in range(trainer.train_loader.steps_per_epoch):
            trainer.step(*batch)

    return epoch


def measure(model: str, dataset: Dataset, crop: int, rounds: int, run: Path) -> dict[str, Any]:
    """Seconds an epoch of each candidate, and of the epoch that encodes the view."""
    images = make_trainer(model, dataset, crop, None, run)
    stored = make_trainer(model, dataset, crop, 1, run)
    candidates = {"images": epoch_of(images), "features": epoch_of(stored)}
    candidates["images"]()  # decodes the files
    began = time.perf_counter()
    candidates["features"]()
    first = time.perf_counter() - began
    candidates["bound"] = bound_of(make_trainer(model, dataset, crop, 1, run))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in track(range(rounds), model, rounds):
        for name, epoch in candidates.items():
            began = time.perf_counter()
            epoch()
            seconds[name].append(time.perf_counter() - began)
    return {"image_bytes": stored.batches.image_bytes, **summary(seconds, first)}


def summary(seconds: dict[str, list[float]], first: float) -> dict[str, Any]:
    """Medians, and the gain of features and of the bound over images, round by round."""
    gain = {
        name: [a / b for a, b in zip(seconds["images"], seconds[name], strict=True)]
        for name in ("features", "bound")
    }
    return {
        "epoch_seconds": {name: round(statistics.median(s), 3) for name, s in seconds.items()},
        "first_epoch_seconds": round(first, 3),
        "gain_median": {name: round(statistics.median(g), 2) for name, g in gain.items()},
        "gain_lowest": {name: round(min(g), 2) for name, g in gain.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        size = (options.crop, options.crop * 4 // 3)
        write_scenes(place / "scenes", train=options.images, val=1, test=1, size=size)
        dataset = load_dataset(place / "scenes")
        found = {
            name: measure(name, dataset, options.crop, options.rounds, place)
            for name in options.models
        }
    result = {
        "benchmark": "feature_cache",
        "images": options.images,
        "crop": options.crop,
        "batch_size": BATCH,
        "rounds": options.rounds,
        "precision": resolve_precision("auto", "cpu"),
        "models": found,
        **stamp("cpu"),
    }
    write_json(options.out, result)
    for name, figures in found.items():
        print(name, figures["gain_median"], figures["epoch_seconds"])


if __name__ == "__main__":
    main()
