"""A folder of images to index PNGs: images per second beside the network's own, and memory.

python benchmarks/predict_folder.py --out benchmarks/speed/predict_folder.json
python benchmarks/predict_folder.py [--images 1000] [--size 360 480] [--model NAME]

Images with large shapes and fine grain are written as JPEG, and a model with random weights is
saved. `zoo.predict` writes class ids (and the JSON of each image) in the process itself, from image
100 on; the network alone runs on batches of the same images before and after. Resident memory is
read after 100 images and at the end. Takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import zoo
from zoo.common.files import write_json
from zoo.inference.predictor import Predictor
from zoo.runtime.environment import stamp

WARM = 100
"""Images that are predicted before the clock starts."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(360, 480), metavar=("H", "W"))
    parser.add_argument("--model", default="unet-resnet18")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--save", default="index")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="zoo-predict-"))
    try:
        found = measure(given, folder)
    finally:
        shutil.rmtree(folder)
    if given.out is not None:
        write_json(given.out, {"predict_folder": found} | stamp("cpu"))
    print(
        f"{given.model} in {found['precision']}: {found['images_per_s']:.1f} images/s to files, "
        f"{found['network_per_s']:.1f} by the network alone: {100 * found['fraction']:.1f} %; "
        f"resident {found['rss_100_mb']:.0f} MB after {WARM} images, "
        f"{found['rss_end_mb']:.0f} MB after {given.images}"
    )


def measure(given: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Images per second and resident memory."""
    height, width = given.size
    write_images(folder / "images", given.images, height, width)
    model = zoo.create(given.model, classes=11, encoder_weights=None)
    zoo.save(model, folder / "model")
    predictor = Predictor(folder / "model", precision=given.precision, backend=given.backend)
    before = network_per_s(predictor, folder / "images")
    results = predictor.stream(folder / "images", out=folder / "out", save=[given.save])
    for _ in range(WARM):
        next(results)
    began, cpu, first = time.perf_counter(), time.process_time(), rss_mb()
    for _ in results:
        pass
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    last = rss_mb()
    after = network_per_s(predictor, folder / "images")
    network = (before[0] + after[0]) / 2
    network_cpu = 500 * (before[1] + after[1])
    per_s = (given.images - WARM) / seconds
    return {
        "model": given.model,
        "images": given.images,
        "size": list(given.size),
        "save": given.save,
        "images_per_s": per_s,
        "network_per_s": network,
        "network_before_and_after": [before[0], after[0]],
        "cpu_ms": 1000 * cpu / (given.images - WARM),
        "network_cpu_ms": network_cpu,
        "fraction": per_s / network,
        "rss_100_mb": first,
        "rss_end_mb": last,
        "threads": torch.get_num_threads(),
        **predictor.settings,
    }


def network_per_s(predictor: Predictor, folder: Path) -> tuple[float, float]:
    """Images per second of the network, and CPU seconds per image.

    It takes batches of the size that the predictor takes.
    """
    paths = sorted(folder.iterdir())
    images = [np.asarray(Image.open(path)) for path in paths[:48]]
    count = min(len(images), predictor.images_at_once(*images[0].shape[:2]))
    batch = torch.from_numpy(np.stack(images[:count])).permute(0, 3, 1, 2)
    factor = predictor.spec.input_factor(*images[0].shape[:2])
    for _ in range(3):
        predictor.network(batch, factor)
    times, cpu = [], time.process_time()
    rounds = max(3, 120 // count)
    for _ in range(rounds):
        began = time.perf_counter()
        predictor.network(batch, factor)
        times.append(time.perf_counter() - began)
    cpu = (time.process_time() - cpu) / rounds / count
    return count / float(np.median(times)), cpu


def write_images(folder: Path, count: int, height: int, width: int) -> None:
    """JPEGs with large shapes and fine grain."""
    folder.mkdir()
    dice = np.random.default_rng(0)
    for number in range(count):
        shapes = Image.fromarray(dice.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        large = np.asarray(shapes.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        grain = dice.integers(-8, 9, (height, width, 1), dtype=np.int16)
        image = Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))
        image.save(folder / f"{number:04d}.jpg", quality=92)


def rss_mb() -> float:
    """Resident memory of this process in MB."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 1e6


if __name__ == "__main__":
    main()
