"""Images per second of what `zoo predict` runs, by backend and precision, against plain SMP.

All candidates take one image of 512 x 512 uint8 pixels and give logits, on the CPU with as many
threads as torch has: SMP's own model in eager fp32 as `smp.create_model` builds it, the network
that `zoo predict` runs by default (torch, precision auto), the others that it can run, and int8
files (what these leave in floating point is bf16 where the CPU has it). They take turns, each
warmed up before it is timed, so that a noisy machine still gives fair ratios. Weights are random,
and so are the images that int8 is calibrated on; they cost the same.

    python benchmarks/inference_speed.py
    python benchmarks/inference_speed.py --models unet-resnet18 --rounds 3 --out speed.json
    python benchmarks/inference_speed.py --run RUN --data camvid:PATH

With --run and --data it also states how many pixels of 20 validation images get the class that
torch gives them in fp32. Takes about eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

import zoo
from zoo.common.files import write_json
from zoo.creation.create import load_trained
from zoo.data.load import load_dataset
from zoo.data.loading.loader import EvalLoader
from zoo.exporting.quantise import (
    CalibrationImages,
    quantisation_method,
    quantised_onnx,
    quantised_openvino,
)
from zoo.inference.exported import (
    GraphNetwork,
    import_runtime,
    onnx_session,
    openvino_precision,
    openvino_session,
)
from zoo.inference.graphs import Graph, GraphOptions, to_onnx
from zoo.inference.networks import Network, TorchNetwork
from zoo.inference.tiling import joined, plan_windows, predict_tiles
from zoo.models.segmentation import SegmentationModel
from zoo.runtime.environment import stamp

MODELS = (
    "unet-resnet18", "fpn-mobilenetv2_100", "deeplabv3plus-resnet50", "segformer-resnet18",
    "pspnet_lite-densenet121", "unet-tf_efficientnet_lite0",
)  # fmt: skip
SMP_NAMES = {"pspnet_lite": "pspnet"}
"""What SMP calls a decoder, where it is not zoo's name."""
SIZE, CLASSES, IMAGES = 512, 11, 20
TURN_S = 0.3
"""How long a candidate is timed in a turn; at least two images."""


def networks(model: SegmentationModel) -> dict[str, Network]:
    """What can run a model on this CPU, by backend and precision; what predict takes is first."""
    default = TorchNetwork(model, precision="auto", fold=True)
    found: dict[str, Network] = {f"torch {default.precision}": default}
    if default.precision != "fp32":
        found["torch fp32"] = TorchNetwork(model, precision="fp32", fold=True)
    options = GraphOptions(size=model.spec.window)
    content = to_onnx(Graph(model, options))
    found["onnxruntime fp32"] = GraphNetwork(
        "onnxruntime", onnx_session(content), model.spec, options, "fp32"
    )
    for precision in dict.fromkeys(("fp32", openvino_precision("auto"))):
        session = openvino_session(content, precision)
        found[f"openvino {precision}"] = GraphNetwork(
            "openvino", session, model.spec, options, precision
        )
    return found


class RandomImages(CalibrationImages):
    """What int8 is calibrated on where only its speed is wanted."""

    def __init__(self, model: SegmentationModel, format: str):
        self.samples = range(8)
        self.described = argparse.Namespace(method=quantisation_method(model, format))
        self.channels = model.spec.in_chans

    def inputs(self, options: GraphOptions) -> Iterator[np.ndarray]:  # noqa: ARG002
        """Noise about 0, as normalised pixels are."""
        dice = np.random.default_rng(0)
        for _ in self.samples:
            yield dice.standard_normal((1, self.channels, SIZE, SIZE), np.float32)


def int8_networks(model: SegmentationModel) -> dict[str, Network]:
    """A model in int8, in both runtimes."""
    graph = Graph(model, GraphOptions(size=model.spec.window))
    content = to_onnx(graph)
    with tempfile.TemporaryDirectory() as folder:
        small = quantised_onnx(content, graph, RandomImages(model, "onnx"), Path(folder))
        source = import_runtime("openvino", "OpenVINO").Core().read_model(content)
        path = Path(folder, "int8.xml")
        given = quantised_openvino(source, graph, RandomImages(model, "openvino"))
        import_runtime("openvino", "OpenVINO").save_model(given, path)
        sessions = {
            "onnxruntime": onnx_session(small),
            "openvino": openvino_session(path, openvino_precision("auto")),
        }
    return {
        f"{backend} int8": GraphNetwork(backend, session, model.spec, graph.options, "int8")
        for backend, session in sessions.items()
    }


def plain_smp(name: str, model: SegmentationModel) -> Callable[[Tensor], Tensor]:
    """SMP's model as its users call it: pixels normalised, eager, fp32."""
    decoder, _, encoder = name.partition("-")
    net = smp.create_model(
        SMP_NAMES.get(decoder, decoder), f"tu-{encoder}", encoder_weights=None, classes=CLASSES
    ).eval()
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (model.spec.mean, model.spec.std))

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = net((images / 255 - mean) / std)
        return logits

    return run


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Median milliseconds per image of every candidate, and how much faster it is than SMP."""
    torch.manual_seed(0)
    model = zoo.create(name, classes=CLASSES, encoder_weights=None).eval()
    runs: dict[str, Callable[[Tensor], Tensor]] = {"smp fp32": plain_smp(name, model)}
    for key, network in (networks(model) | int8_networks(model)).items():
        runs[key] = lambda images, network=network: network(images, 1.0)
    images = torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8)
    for run in runs.values():
        assert run(images).shape == (1, CLASSES, SIZE, SIZE)
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            seconds[key].append(turn(run, images))
    ratios = {
        key: [a / b for a, b in zip(seconds["smp fp32"], taken, strict=True)]
        for key, taken in seconds.items()
    }
    return {
        "ms_median": {k: round(1000 * statistics.median(v), 2) for k, v in seconds.items()},
        "against_smp_median": {k: round(statistics.median(v), 2) for k, v in ratios.items()},
        "against_smp_lowest": {k: round(min(v), 2) for k, v in ratios.items()},
    }


def turn(run: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Seconds per image."""
    run(images)  # warms caches and threads after another candidate's turn
    began, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - began < TURN_S:
        run(images)
        count += 1
    return (time.perf_counter() - began) / count


def agreement(run: Path, data: str) -> dict[str, Any]:
    """The fraction of pixels that each network gives the class that torch gives in fp32."""
    model = load_trained(run)
    runners = {"reference": TorchNetwork(model, precision="fp32", fold=False), **networks(model)}
    loader = EvalLoader(load_dataset(data), "val", batch_pixels=1)  # one image at a time
    step = max(1, loader.images // IMAGES)
    equal: dict[str, list[float]] = {key: [] for key in runners if key != "reference"}
    for number, (_, images, _) in enumerate(loader):
        if number % step or number // step >= IMAGES:
            continue
        ids = {key: _ids(model, network, images) for key, network in runners.items()}
        for key, shares in equal.items():
            shares.append(float(np.mean(ids[key] == ids["reference"])))
    return {
        "model": model.spec.name,
        "data": load_dataset(data).name,
        "split": "val",
        "images": len(next(iter(equal.values()))),
        "equal_argmax": {key: round(statistics.fmean(shares), 5) for key, shares in equal.items()},
    }


def _ids(model: SegmentationModel, network: Network, images: Tensor) -> np.ndarray:
    height, width = images.shape[-2:]
    windows = plan_windows(model.spec, height, width, size=network.size)
    tiles = predict_tiles(network, model.spec, images, windows)
    return joined(tiles, (len(images), height, width)).numpy()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--run", type=Path, help="a trained run, for equal pixels")
    parser.add_argument("--data", help="its data set, camvid:PATH")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/inference.json"))
    given = parser.parse_args()
    if (given.run is None) != (given.data is None):
        sys.exit("--run and --data go together.")
    found: dict[str, Any] = {
        "benchmark": "inference_speed",
        "size": SIZE,
        "batch": 1,
        "rounds": given.rounds,
        "models": {},
    }
    for name in given.models:
        figures = found["models"][name] = measure(name, given.rounds)
        print(
            f"{name}: {figures['ms_median']} ms; times SMP: {figures['against_smp_median']}",
            flush=True,
        )
    if given.run is not None:
        found["agreement"] = agreement(given.run, given.data)
        print(f"equal pixels: {found['agreement']}")
    write_json(given.out, found | stamp("cpu"))


if __name__ == "__main__":
    main()
