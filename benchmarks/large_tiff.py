"""Peak memory and time of `zoo predict` on a tiled RGB TIFF that is never decoded as a whole.

The TIFF is made of noise and waves and is deleted at the end, as is everything else. The model has
random weights, which cost the same.

    python benchmarks/large_tiff.py --out benchmarks/speed/large_tiff.json
    python benchmarks/large_tiff.py --side 6000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

import zoo
from zoo.common.files import write_json
from zoo.hub.folder import save_folder
from zoo.runtime.environment import stamp

BLOCK = 512


def write_tiff(path: Path, side: int, compress: str | None) -> None:
    """A georeferenced RGB TIFF of `side` x `side` pixels in tiles of 512."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 64, (3, BLOCK, BLOCK), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", tiled=True,
        blockxsize=BLOCK, blockysize=BLOCK, compress=compress, photometric="rgb",
        BIGTIFF="IF_SAFER", crs="EPSG:32632", transform=from_origin(5e5, 5e6, 0.2, 0.2),
    ) as file:  # fmt: skip
        for top in range(0, side, BLOCK):
            for left in range(0, side, BLOCK):
                rows, columns = np.ogrid[top : top + BLOCK, left : left + BLOCK]
                waves = 96 + 95 * np.sin(rows / 97) * np.cos(columns / 61)
                pixels = waves.astype(np.uint8)[None] + noise
                height, width = min(BLOCK, side - top), min(BLOCK, side - left)
                window = ((top, top + height), (left, left + width))
                file.write(pixels[:, :height, :width], window=window)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--model", default="unet-mobilenetv2_100")
    parser.add_argument("--classes", type=int, default=11)
    parser.add_argument("--compress", choices=["none", "deflate"], default="deflate")
    parser.add_argument("--folder", type=Path, help="where the scratch folder is made")
    parser.add_argument("--out", type=Path)
    given, options = parser.parse_known_args()  # the others are for zoo predict
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch)
        image = folder / "image.tif"
        write_tiff(image, given.side, None if given.compress == "none" else given.compress)
        torch.manual_seed(0)
        model = zoo.create(given.model, classes=given.classes, encoder_weights=None).eval()
        training = {"dataset": "none", "recipe": "cnn", "seed": 0, "steps": 1, "chosen_on": "val"}
        save_folder(model, folder / "model", training=training, metrics={})
        command = [
            sys.executable, "-m", "zoo", "predict", str(folder / "model"), str(image),
            "--out", str(folder / "out"), *options,
        ]  # fmt: skip
        began = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - began
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
        with rasterio.open(folder / "out" / "geotiff" / "image.tif") as made:
            assert (made.height, made.width) == (given.side, given.side)
    found = {
        "model": given.model,
        "side": given.side,
        "compress": given.compress,
        "options": options,
        "seconds": round(seconds, 1),
        "megapixels_per_s": round(given.side**2 / 1e6 / seconds, 2),
        "peak_gib": round(peak, 2),
    }
    print(found)
    if given.out is not None:
        write_json(given.out, {"large_tiff": found} | stamp("cpu"))


if __name__ == "__main__":
    main()
