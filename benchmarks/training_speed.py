"""Training images a second: `zoo finetune` against a plain loop, Lightning and fastai on CamVid.

Every candidate trains the same U-Net from random weights, all of it, on the training images, and
reads them as its users do: zoo through its own loader, the plain loop and Lightning through
torchvision's transforms in a DataLoader, fastai through its data blocks; all make crops of 256
pixels in batches of 8. Reading a batch counts as well as the step on it. The candidates are
processes that take turns of a few steps within one epoch or several, so that a noisy machine still
gives a fair ratio. Each trains as it does by default: zoo with the recipe `scratch` and the
precision `auto`, Lightning with `Trainer()`, fastai with `fine_tune` once all layers learn.
`--precision bf16` or `fp32` gives all of them that one instead.

    python benchmarks/training_speed.py --camvid PATH/TO/camvid
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from candidates import Candidate, Turns, compared, in_turns
from loader import CROP, fastai_loaders, torchvision_loader

KINDS = ("zoo", "plain", "lightning", "fastai")
ENCODERS = ("mobilenetv2_100", "resnet18")
CLASSES, VOID, BATCH = 11, 11, 8
WARM_UP = 3
FOR_EVER = 10_000


def zoo_training(options: argparse.Namespace, turns: Turns) -> None:
    """`zoo finetune` as it is, with a loader that counts its steps."""
    from zoo.data.loading.loader import TrainLoader

    class Counted(TrainLoader):
        def epoch(self, epoch: int, first_step: int = 0) -> Any:
            turns.begin()
            for batch in super().epoch(epoch, first_step):
                yield batch
                turns.tick(len(batch[0]))

    settings = [f"precision={options.precision or 'auto'}"]
    finetune_with(Counted, options.encoder, options.camvid, options.folder / "run", settings)


def finetune_with(
    loader: type[Any], encoder: str, camvid: Path, run: Path, settings: list[str]
) -> None:
    """`zoo finetune` of a U-Net on CamVid with another class of loaders, without an end."""
    from zoo.training import prepare as start
    from zoo.training.finetune import finetune

    start.TrainLoader = loader  # type: ignore[misc]
    length = [f"stages.all.epochs={FOR_EVER}", f"validate_every={FOR_EVER}"]
    finetune(
        f"unet-{encoder}", f"camvid:{camvid}", recipe="scratch", encoder_weights=None, out=run,
        overrides=[*length, f"crop={CROP}", f"batch_size={BATCH}", *settings],
    )  # fmt: skip


def unet(encoder: str) -> Any:
    """The U-Net that the others train; zoo's has the same layers."""
    import segmentation_models_pytorch as smp

    return smp.Unet(f"tu-{encoder}", encoder_weights=None, classes=CLASSES)


def cross_entropy(logits: Any, masks: Any) -> Any:
    """Cross-entropy that leaves out void and what was added around an image."""
    from torch.nn import functional

    masks = masks.long().masked_fill(masks == 255, VOID)
    return functional.cross_entropy(logits, masks, ignore_index=VOID)


def normalised(images: Any) -> Any:
    """float32 pixels with ImageNet's mean and deviation."""
    from torchvision.transforms.v2 import functional

    mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    return functional.normalize(images.float() / 255, mean, deviation)


def plain_training(options: argparse.Namespace, turns: Turns) -> None:
    """A loop as a tutorial writes it: contiguous tensors, cross-entropy, AdamW."""
    import torch

    bf16 = options.precision == "bf16"
    model = unet(options.encoder).to(options.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = torchvision_loader(options.camvid, BATCH, options.workers)
    for _ in range(FOR_EVER):
        turns.begin()
        for images, masks in loader:
            images, masks = images.to(options.device), masks.to(options.device)  # noqa: PLW2901
            with torch.autocast(options.device, torch.bfloat16, enabled=bf16):
                loss = cross_entropy(model(normalised(images)), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            turns.tick(len(images))


def lightning_training(options: argparse.Namespace, turns: Turns) -> None:
    """Lightning's Trainer at its defaults."""
    import lightning
    import torch

    class Net(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = unet(options.encoder)

        def training_step(self, batch: Any, _: int) -> Any:
            images, masks = batch
            return cross_entropy(self.net(normalised(images)), masks)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

        def on_train_epoch_start(self) -> None:
            turns.begin()

        def on_train_batch_end(self, _outputs: Any, batch: Any, _: int) -> None:
            turns.tick(len(batch[0]))

    named = {None: {}, "bf16": {"precision": "bf16-mixed"}, "fp32": {"precision": "32-true"}}
    trainer = lightning.Trainer(
        max_epochs=FOR_EVER, default_root_dir=options.folder, **named[options.precision]
    )
    trainer.fit(Net(), torchvision_loader(options.camvid, BATCH, options.workers))


def fastai_training(options: argparse.Namespace, turns: Turns) -> None:
    """fastai's `fine_tune` at its defaults, but for the epochs with a frozen encoder."""
    from fastai.callback.core import Callback
    from fastai.callback.schedule import Learner  # with fine_tune, which the module adds
    from fastai.losses import CrossEntropyLossFlat

    class Counting(Callback):
        def before_train(self) -> None:
            turns.begin()

        def after_batch(self) -> None:
            turns.tick(len(self.learn.xb[0]))

    learner = Learner(
        fastai_loaders(options.camvid, BATCH, device=options.device),
        unet(options.encoder),
        loss_func=CrossEntropyLossFlat(axis=1, ignore_index=VOID),
        cbs=Counting(),
        path=options.folder,
    )
    if options.precision == "bf16":
        learner.to_bf16()
    learner.fine_tune(FOR_EVER, freeze_epochs=0)


def train(options: argparse.Namespace) -> None:
    """Be one candidate."""
    import torch

    loops: dict[str, Callable[[argparse.Namespace, Turns], None]] = {
        "zoo": zoo_training, "plain": plain_training, "lightning": lightning_training,
        "fastai": fastai_training,
    }  # fmt: skip
    on_gpu = options.device == "cuda"
    synchronise = torch.cuda.synchronize if on_gpu else lambda: None
    loops[options.kind](options, Turns(WARM_UP, options.steps, synchronise))


def measure(encoder: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of every candidate, one entry a round."""
    sites = dict(text.split("=", 1) for text in options.peer_site)
    hidden = {} if options.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        candidates = []
        for kind in KINDS:
            place = Path(folder, kind)
            place.mkdir()
            command = [__file__, "--kind", kind, "--encoder", encoder, "--folder", str(place)]
            command += ["--camvid", str(options.camvid), "--steps", str(options.steps)]
            command += ["--device", options.device, "--workers", str(options.workers)]
            if options.precision is not None:
                command += ["--precision", options.precision]
            site = Path(sites[kind]) if kind in sites else None
            candidates.append(Candidate(kind, command, site=site, ZOO_CACHE=folder, **hidden))
        return in_turns(candidates, options.rounds)


def summary(speeds: dict[str, list[float]]) -> dict[str, Any]:
    """The medians, and zoo against each of the others."""
    ratios = {kind: compared(speeds["zoo"], speeds[kind]) for kind in speeds if kind != "zoo"}
    return {
        "images_per_second": {k: round(statistics.median(v), 2) for k, v in speeds.items()},
        "ratio_median": {kind: median for kind, (median, _) in ratios.items()},
        "ratio_lowest": {kind: lowest for kind, (_, lowest) in ratios.items()},
    }


def result(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and describe it."""
    from zoo.runtime.environment import stamp
    from zoo.runtime.precision import resolve_precision

    ours = resolve_precision(options.precision or "auto", options.device)
    others = options.precision or "fp32"
    return {
        "benchmark": "training_speed",
        "data": "camvid train",
        "crop": CROP,
        "batch_size": BATCH,
        "rounds": options.rounds,
        "steps_per_round": options.steps,
        "cores": os.cpu_count(),
        "precision": {kind: ours if kind == "zoo" else others for kind in KINDS},
        "models": {f"unet-{name}": summary(measure(name, options)) for name in options.encoders},
        **stamp(options.device),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--camvid", type=Path, required=True, help="folder with train, trainannot")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5, help="steps of a candidate in a round")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="the same for all")
    parser.add_argument(
        "--workers", type=int, default=0, help="of the loader of the plain loop and of Lightning"
    )
    parser.add_argument(
        "--peer-site", action="append", default=[], metavar="KIND=FOLDER",
        help="a folder that fastai or lightning was installed into; may be given for each",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("benchmarks/speed/training.json"))
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--encoder", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure all candidates, or be one of them (`--kind`)."""
    options = arguments()
    if options.kind is not None:
        train(options)
        return
    from zoo.common.files import write_json

    if options.device == "cuda" and options.precision is None:
        sys.exit("On a GPU compare at equal precision: give --precision bf16 or fp32.")
    found = result(options)
    write_json(options.out, found)
    for model, figures in found["models"].items():
        print(f"{model}: {figures['images_per_second']}; zoo against: {figures['ratio_median']}")


if __name__ == "__main__":
    main()
