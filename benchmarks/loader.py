"""Training crops a second: zoo's loader against torchvision v2 transforms and fastai's data blocks.

Every candidate is a process of its own that has read all images once before anything is measured.
Then they take turns, one epoch each, so that a noisy machine still gives a fair ratio. All make
batches of 256-pixel crops from the train split with a scale of 0.5 to 1.75, a horizontal flip and
changes of brightness, contrast and saturation; each is measured without workers and with two.

    python benchmarks/loader.py --camvid ../shared/data/camvid
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from candidates import Candidate, in_turns

from zoo.bench.speed.measure import answers

Epoch = Callable[[int], Iterator[int]]
"""Gives the number of images of each batch of an epoch."""
CROP, SCALE, COLOUR = 256, (0.5, 1.75), 0.3
KINDS = ("zoo", "torchvision", "fastai")
WORKERS = (0, 2)


def zoo_epoch(data: Path, batch: int, workers: int, cache_gib: float | None = None) -> Epoch:
    """The loader of `zoo finetune`."""
    from zoo.data.load import load_dataset
    from zoo.data.loading.loader import TrainLoader
    from zoo.registry.recipe import Augment

    augment = Augment(scale=list(SCALE), flip=0.5, colour=COLOUR)
    dataset = load_dataset(f"camvid:{data}")
    loader = TrainLoader(
        dataset, "train", crop=CROP, batch_size=batch, augment=augment, seed=0, workers=workers,
        cache_gib=cache_gib,
    )  # fmt: skip
    return lambda epoch: (len(images) for images, _ in loader.epoch(epoch))


def torchvision_loader(data: Path, batch: int, workers: int) -> Any:
    """A plain data set with transforms v2, as torchvision's guide for segmentation has them."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    from zoo.data.load import load_dataset

    fill = {tv_tensors.Image: 0, tv_tensors.Mask: 255}
    change = v2.Compose(
        [
            v2.ScaleJitter((360, 480), SCALE),
            v2.RandomCrop(CROP, pad_if_needed=True, fill=fill),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(COLOUR, COLOUR, COLOUR),
        ]
    )
    samples = load_dataset(f"camvid:{data}").samples("train")

    class Plain(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> Any:
            with Image.open(samples[index].image) as stored:
                image = tv_tensors.Image(stored.convert("RGB"))
            with Image.open(samples[index].mask) as stored:
                mask = tv_tensors.Mask(stored)
            image, mask = change(image, mask)
            return image, mask[0]

    torch.manual_seed(0)
    return DataLoader(
        Plain(), batch, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip


def torchvision_epoch(data: Path, batch: int, workers: int) -> Epoch:
    """The batches of `torchvision_loader`."""
    loader = torchvision_loader(data, batch, workers)
    return lambda _: (len(images) for images, _masks in loader)


def fastai_loaders(data: Path, batch: int, **options: Any) -> Any:
    """fastai's data block for segmentation: crops by item, flip and colours by batch."""
    from fastai.data.all import DataBlock, IndexSplitter
    from fastai.vision.all import (
        Brightness,
        Contrast,
        Flip,
        ImageBlock,
        MaskBlock,
        RandomResizedCrop,
        Saturation,
    )

    from zoo.data.load import load_dataset

    samples = load_dataset(f"camvid:{data}").samples("train")
    least = (CROP / SCALE[1]) ** 2 / (360 * 480)
    block = DataBlock(
        blocks=(ImageBlock, MaskBlock),
        getters=[lambda sample: sample.image, lambda sample: sample.mask],
        splitter=IndexSplitter([]),
        item_tfms=RandomResizedCrop(CROP, min_scale=least, ratio=(1, 1)),
        batch_tfms=[Flip(0.5), Brightness(COLOUR), Contrast(COLOUR), Saturation(COLOUR)],
    )
    return block.dataloaders(samples, bs=batch, **options)


def fastai_epoch(data: Path, batch: int, workers: int) -> Epoch:
    """The batches of `fastai_loaders`."""
    found = fastai_loaders(data, batch, num_workers=workers, device="cpu")
    return lambda _: (len(batch[0]) for batch in found.train)


def candidate(options: argparse.Namespace) -> None:
    """Warm up, then answer each line on stdin with the images a second of one epoch."""
    zoo = partial(zoo_epoch, cache_gib=options.cache_gib)
    makers = {"zoo": zoo, "torchvision": torchvision_epoch, "fastai": fastai_epoch}
    answer = answers()
    epoch = makers[options.kind](options.camvid, options.batch, options.workers)
    for number in range(2):
        sum(epoch(number))
    print("ready", file=answer, flush=True)
    for number, _ in enumerate(sys.stdin, 2):
        began = time.perf_counter()
        count = sum(epoch(number))
        print(count / (time.perf_counter() - began), file=answer, flush=True)


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of every candidate, one entry a round, in turns."""
    with tempfile.TemporaryDirectory() as cache:
        candidates = []
        for kind in KINDS:
            for workers in WORKERS:
                command = [__file__, "--kind", kind, "--workers", str(workers)]
                command += ["--camvid", str(options.camvid), "--batch", str(options.batch)]
                if options.cache_gib is not None:
                    command += ["--cache-gib", str(options.cache_gib)]
                site = options.fastai_site if kind == "fastai" else None
                name = f"{kind}, {workers} workers"
                candidates.append(Candidate(name, command, site=site, ZOO_CACHE=cache))
        return in_turns(candidates, options.rounds)


def summary(speeds: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    """The medians, and zoo's best setting against the best setting of the others."""
    from zoo.data.load import load_dataset
    from zoo.runtime.environment import stamp

    medians = {name: statistics.median(values) for name, values in speeds.items()}
    best = {
        kind: max((n for n in medians if n.startswith(kind)), key=lambda n: medians[n])
        for kind in KINDS
        if any(name.startswith(kind) for name in medians)
    }
    ratios = {
        kind: [a / b for a, b in zip(speeds[best["zoo"]], speeds[name], strict=True)]
        for kind, name in best.items()
        if kind != "zoo"
    }
    return {
        "benchmark": "loader",
        "data": "camvid train",
        "images": len(load_dataset(f"camvid:{options.camvid}").samples("train")),
        "crop": CROP,
        "scale": list(SCALE),
        "batch_size": options.batch,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "best": best,
        "ratio_median": {k: round(statistics.median(r), 2) for k, r in ratios.items()},
        "ratio_lowest": {k: round(min(r), 2) for k, r in ratios.items()},
        **stamp("cpu"),
    }


def main() -> None:
    """Measure all candidates, or be one of them (`--kind`)."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--camvid", type=Path, required=True, help="folder with train, trainannot")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--cache-gib", type=float, help="memory for decoded images; 0: disk only")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fastai-site", type=Path, help="folder that fastai was installed into")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/loader.json"))
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind is not None:
        candidate(options)
        return
    from zoo.common.files import write_json

    result = summary(measure(options), options)
    write_json(options.out, result)
    print(f"images a second: {result['images_per_second']}; ratios: {result['ratio_median']}")


if __name__ == "__main__":
    main()
