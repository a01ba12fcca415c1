"""One fact, one place: a copy of the package learns something new by one row or one file."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.record_examples import record

from zoo.records.record import write_record

ROOT = Path(__file__).parent.parent


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of a copy of zoo, to be changed and then run by `python -c` in that folder."""
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "zoo", tmp_path / "zoo", ignore=skipped)
    shutil.copy(ROOT / "registry.yaml", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "leaderboard.json", tmp_path / "benchmarks")
    return tmp_path


def run(package: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


METRIC_ROW = """
    Metric("fw_iou", "frequency-weighted IoU", "mean of IoU, weighted by the pixels of a class",
           lambda n: np.nansum(_iou(n) * (n.tp + n.fn), -1) / (n.tp + n.fn).sum(-1), _EMPTY,
           per_class=False, leaderboard=True, report=True),
"""

METRIC_USE = """
import json, sys
from pathlib import Path
from zoo.checks.reference import TABLES
from zoo.evaluation.counts import Confusion
from zoo.leaderboard.build import write
from zoo.records.record import parse_record, read_record, record_name, write_record

confusion = Confusion(["a", "b"])
confusion.add_matrix([[8, 2], [0, 30]])
old = json.loads(Path("old.json").read_text())
path = Path("results", record_name(parse_record({**old, "record_hash": None}, "old")))
path.parent.mkdir()
path.write_text(Path("old.json").read_text())
counted = {"classes": confusion.classes, "confusion": confusion.matrix.tolist()}
counted["metrics"] = confusion.metrics()
new = parse_record({**old, "seed": 1, "record_hash": None, **counted}, "new")
stated = json.loads(write_record(new, path.parent).read_text())["metrics"]
write(path.parent, Path("out"))
computed = read_record(path).metrics.fw_iou
documented = [row[0] for row in TABLES["metrics"].rows()]
print(json.dumps([path.name, documented, confusion.fw_iou, stated["fw_iou"], computed]))
"""


def test_a_metric_is_one_row(package: Path) -> None:
    """Truth: 10 of a, 30 of b. IoU 8 / 10 and 30 / 32, so (10 * 0.8 + 30 * 0.9375) / 40."""
    table = package / "zoo" / "records" / "metrics.py"
    start = "METRICS: tuple[Metric, ...] = ("
    table.write_text(table.read_text().replace(start, start + METRIC_ROW))
    write_record(record(classes=["a", "b"], confusion=[[8, 2], [0, 30]]), package / "made")
    (old,) = (package / "made").iterdir()
    shutil.move(old, package / "old.json")
    name, documented, *values = json.loads(run(package, METRIC_USE))
    assert values == pytest.approx([0.903125] * 3)
    assert name == old.name  # what older files do not state changes neither name nor hash
    assert "`fw_iou`" in documented
    out = package / "out"
    board = json.loads((out / "leaderboard.json").read_text())
    assert board["tables"][0]["rows"][0]["fw_iou"] == 0.903125
    assert ",fw_iou," in (out / "leaderboard.csv").read_text()
    for page in ("leaderboard.md", "leaderboard.html"):
        text = (out / page).read_text()
        assert "frequency-weighted IoU %" in text
        assert "90.31" in text


LOSS_ROW = """
        LossRow(
            "poly1", "Poly-1 cross-entropy", "poly", "2204.12511",
            options=(LossOption("poly1_epsilon", 1.0, "weight of 1 - p", at_least=0),),
        ),
"""

LOSS_FILE = '''
"""Poly-1 cross-entropy: -log p + epsilon (1 - p)."""

from zoo.training.losses.targets import total
from zoo.training.losses.terms import PixelLoss, quotient


def _sums(batch):
    nll, epsilon = batch.maps["nll"], batch.settings.options.poly1_epsilon
    return {"poly1": total(batch.weights * (nll + epsilon * (1 - (-nll).exp())))}


LOSSES = {
    "poly1": PixelLoss(
        lambda strip: {"nll": strip.nll}, _sums, quotient("poly1"),
        lambda target, weights, settings: {"poly1.weight": total(weights)},
    )
}
'''

LOSS_USE = """
import json
from pathlib import Path
import torch
import zoo
from zoo.checks.reference import TABLES
from zoo.common.errors import InputError
from zoo.data.scenes import write_scenes
from zoo.registry.load import load_registry
from zoo.registry.recipe import LossOptions, recipe_dict
from zoo.training.losses import Objective

shown = recipe_dict(load_registry(None).recipe("cnn"))["loss_options"]["poly1_epsilon"]
logits = torch.log(torch.tensor([[[[0.8, 0.5]], [[0.2, 0.5]]]]))
target = torch.zeros(1, 1, 2, dtype=torch.long)
value = Objective({"poly1": 1.0}, LossOptions(poly1_epsilon=2.0))(logits, target)
data = write_scenes(Path("scenes"), train=4, val=2, test=2, size=(64, 64))

def losses(out, loss, *more):
    zoo.finetune(
        "unet-test_resnet", data, recipe="scratch", encoder_weights=None, out=out,
        overrides=["crop=64", "batch_size=2", "workers=0", "precision=fp32", loss, *more,
                   "stages=[{name: all, epochs: 1}]"],
    )
    lines = map(json.loads, Path(out, "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["event"] == "step"]

plain = losses("plain", "loss={ce: 1.0}")
same = losses("same", "loss={poly1: 1.0}", "loss_options.poly1_epsilon=0")
try:
    zoo.finetune("unet-test_resnet", data, overrides=["loss_options.poly1_epsilon=-1"])
except InputError as error:
    refused = str(error)
recipe = json.loads(Path("same", "run.json").read_text())["recipe"]
documented = [row[0] for row in TABLES["losses"].rows()]
print(json.dumps([shown, float(value), plain, same, recipe["loss"],
                  recipe["loss_options"]["poly1_epsilon"], refused, documented]))
"""


@pytest.mark.long
def test_a_loss_is_one_row_and_one_file(package: Path) -> None:
    """By hand, with epsilon 2: (-log 0.8 + 2 * 0.2 - log 0.5 + 2 * 0.5) / 2."""
    table = package / "zoo" / "registry" / "losses.py"
    start = "    for row in (\n"
    table.write_text(table.read_text().replace(start, start + LOSS_ROW))
    (package / "zoo" / "training" / "losses" / "poly.py").write_text(LOSS_FILE)
    *found, refused, documented = json.loads(run(package, LOSS_USE))
    shown, value, plain, same, loss, epsilon = found
    assert shown == 1.0
    assert value == pytest.approx((0.223144 + 0.4 + 0.693147 + 1.0) / 2, abs=1e-5)
    assert len(plain) == 2
    assert same == pytest.approx(plain, rel=1e-6)
    assert (loss, epsilon) == ({"poly1": 1.0}, 0.0)
    assert "poly1_epsilon: should be greater than or equal to 0, got -1" in refused
    assert "`poly1`" in documented


DECODER_ROW = """
    "mean_map": Decoder(title="Mean map", paper="1411.4038", strides=(8,), options=MeanMapOptions),
"""

DECODER_OPTIONS = """
class MeanMapOptions(Strict):
    scale: Annotated[float, Field(gt=0)] = 2.0


DECODERS: dict[str, Decoder] = {"""

DECODER_MODULE = """
from torch import nn

from zoo.models.network import Parts
from zoo.models.pyramid import Pyramid, plan


class Deepest(nn.Module):
    def __init__(self, levels, scale):
        super().__init__()
        self.pyramid, self.scale = Pyramid(levels, plan(levels, (8,))), scale

    def forward(self, features):
        return self.scale * self.pyramid(features)[0]


def parts(levels, classes, *, scale):
    decoder = Deepest(levels, scale)
    return Parts(decoder, nn.Sequential(nn.Conv2d(decoder.pyramid.channels[0], classes, 1)))
"""

DECODER_USE = """
import json
import torch, zoo
from zoo.checks.reference import TABLES
from zoo.leaderboard.lookup import show
from zoo.registry.resolve import list_models

model = zoo.create("mean_map-test_resnet", classes=3, encoder_weights=None, scale=0.5)
refused = ""
try:
    zoo.create("mean_map-test_resnet", classes=3, encoder_weights=None, scale=0)
except zoo.InputError as error:
    refused = str(error)
shown = {key: value for key, value, _ in show("mean_map-test_resnet")}
print(json.dumps({
    "listed": list_models("mean_map-resnet18"),
    "default": shown["options.scale"],
    "shape": list(model(torch.zeros(1, 3, 50, 70)).shape),
    "small": list(model.training_outputs(torch.zeros(1, 3, 64, 64)).logits.shape),
    "scale": model.net.decoder.scale,
    "scoring": [layer.out_channels for layer in model.scoring_layers()],
    "documented": [row[0] for row in TABLES["decoders"].rows()],
    "refused": refused,
}))
"""


@pytest.mark.long
def test_a_decoder_is_one_row_and_one_file(package: Path) -> None:
    table = package / "zoo" / "registry" / "decoders.py"
    start = "DECODERS: dict[str, Decoder] = {"
    assert table.read_text().count(start) == 1
    table.write_text(table.read_text().replace(start, DECODER_OPTIONS + DECODER_ROW))
    (package / "zoo" / "models" / "heads" / "mean_map.py").write_text(DECODER_MODULE)
    found = json.loads(run(package, DECODER_USE))
    assert "`mean_map`" in found.pop("documented")
    assert found.pop("refused").endswith("scale: should be greater than 0, got 0")
    assert found == {
        "listed": ["mean_map-resnet18"],
        "default": 2.0,
        "shape": [1, 3, 50, 70],
        "small": [1, 3, 8, 8],
        "scale": 0.5,
        "scoring": [3],
    }
