"""The adapter on a pair that does not need it, for comparison with true dilation.

    python benchmarks/forced_adapter.py --data camvid:PATH --registry OVERLAY --work WORK \
        --results benchmarks/adapter

Builds deeplabv3plus-mobilenetv2_100 as if neither timm nor zoo could dilate the encoder, so that
the map of stride 16 is made from the levels of the pretrained net. It trains as the suite
`leaderboard_camvid.yaml` trains the dilated net of the same name, with three seeds, and the records
carry the name with `-resampled` behind it, which the registry does not know: they stand in
`benchmarks/adapter`, apart from what the leaderboard is built from. Runs that are there are not
made again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from zoo.bench.suite import merged, read_suite
from zoo.creation.create import create, encoder_source
from zoo.data.load import load_dataset
from zoo.evaluation.evaluate import evaluate, write_result
from zoo.hub.folder import save_folder
from zoo.models.build import build
from zoo.models.spec import model_spec
from zoo.registry.resolve import Resolved, resolve

MODEL = "deeplabv3plus-mobilenetv2_100"
SUITE = Path(__file__).parent / "suites" / "leaderboard_camvid.yaml"
VARIANT, SEEDS = "pretrained", (0, 1, 2)


def undilated(name: str, overlay: Path | None = None) -> Resolved:
    """What the registry says of the model, but that nothing dilates its encoder."""
    found = resolve(name, overlay)
    assert found.row is not None
    found.row = found.row._replace(dilates="", dilatable="")
    found.adapted, found.smp_loadable = "measured against true dilation", False
    return found


def make_model(folder: Path, data: str, overlay: Path | None, seed: int) -> None:
    """A folder with the pretrained encoder and a decoder drawn from `seed`."""
    dataset = load_dataset(data)
    resolved = undilated(MODEL, overlay)
    file, source = encoder_source(resolved)
    spec = model_spec(resolved, dataset.classes, palette=dataset.palette).model_copy(update=source)
    assert spec.dilated is None
    assert "output_stride" not in spec.encoder_args
    torch.manual_seed(seed)
    save_folder(build(spec, file), folder)


def run(seed: int, options: argparse.Namespace) -> None:
    """Train and report one seed, unless its record is there."""
    model, out = options.work / f"model_{seed}", options.work / f"run_{seed}"
    if list(options.results.glob(f"*-resampled--*--s{seed}--*.json")):
        return
    if not model.is_dir():
        make_model(model, options.data, options.registry, seed)
    suite = read_suite(SUITE)
    variant = suite.variants[VARIANT]
    settings = [f"seed={seed}", *merged(suite.common, variant.set)]
    recipe = ["--recipe", str(variant.recipe), "--out", str(out)]
    resume = ["--resume"] if (out / "run.json").is_file() else []
    words = ["finetune", str(model), "--data", options.data, *recipe, *resume, *settings]
    if not (out / "result.json").is_file():
        subprocess.run([sys.executable, "-m", "zoo", *words], check=True)
    trained = create(out)
    trained.spec = trained.spec.model_copy(update={"name": f"{MODEL}-resampled"})
    write_result(evaluate(trained, options.data, split=suite.split), options.results)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="CamVid, as `zoo finetune --data` takes it")
    parser.add_argument("--registry", type=Path, help="an overlay with the encoder's weights")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    options = parser.parse_args()
    for seed in SEEDS:
        run(seed, options)


if __name__ == "__main__":
    main()
