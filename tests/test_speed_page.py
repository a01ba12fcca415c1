"""The figures of docs/speed.md are those of the files that the benchmarks wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LIST = "zoo list 'unet-*'"


def test_the_readme_states_what_the_records_say() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    record = _json(_evidence("cnn"))
    assert f"`{record['model']}` fine-tuned on CamVid" in readme
    assert f"{100 * record['metrics']['miou']:.1f} % mIoU on the {record['images']}" in readme
    assert f"chosen by val after {record['steps']} steps and" in readme
    assert f"{record['train_seconds'] / 60:.1f} minutes on 2 CPU cores" in readme


def test_the_readme_states_shorter_and_longer_runs() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    budget = RESULTS / "camvid-test--fpn-mobilenetv2_100--auto--s0--6110ec91.json"
    for record in (_json(budget), _json(_evidence("cnn_long"))):
        minutes = f"{record['train_seconds'] / 60:.1f} minutes"
        miou = f"{100 * record['metrics']['miou']:.1f} %"
        assert re.search(f"{miou} after {record['steps']} steps and {minutes}", readme)


def test_the_readme_states_how_much_long_runs_differ() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    files = RESULTS.glob("camvid-test--fpn-mobilenetv2_100--cnn*.json")
    long = [_json(file) for file in files if file != _evidence("cnn_long")]
    long = [record for record in long if record["steps"] > 2000]
    enlarged = sorted((r for r in long if "input_size" in r), key=lambda r: r["input_size"])
    plain = [record for record in long if "input_size" not in record]
    assert [record["input_size"] for record in enlarged] == [[450, 600], [540, 720]]
    first, second = (f"{100 * record['metrics']['miou']:.1f}" for record in enlarged)
    assert f"two runs with other lengths and scales gave {first} and {second} %" in readme
    shares = sorted(100 * record["metrics"]["miou"] for record in plain)
    minutes = sorted(record["train_seconds"] / 60 for record in plain)
    assert len(plain) == 7
    assert f"seven without the upsampling {shares[0]:.1f} to {shares[-1]:.1f} %" in readme
    assert f"in {minutes[0]:.0f} to {minutes[-1]:.0f} minutes" in readme


def _evidence(recipe: str) -> Path:
    recipes = yaml.safe_load((ROOT / "registry.yaml").read_text())["recipes"]
    return ROOT / str(recipes[recipe]["evidence"])


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def result(name: str) -> dict:
    return _json(ROOT / "benchmarks" / "speed" / name)


def test_the_page_states_what_the_files_say() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    startup = result("startup.json")
    seconds = startup["seconds_median"]
    for figure in (
        f"{seconds['import zoo']:.3f} s",
        f"{seconds[LIST]:.2f} s",
        f"{seconds['zoo show unet-resnet18']:.2f} s",
        f"{startup['create_against_smp_median']:.2f} times its time",
    ):
        assert figure in page, figure


def test_the_page_states_the_speed_of_the_leaderboard() -> None:
    page, found = (ROOT / "docs" / "speed.md").read_text(), result("leaderboard.json")
    plain, counts = (found[f"rebuild{kind}_s"] for kind in ("", "_with_counts"))
    assert f"| {plain:.1f} s and {counts:.1f} s | `leaderboard.json` |" in page
    figures = found["page"]
    size, sort = f"{figures['bytes'] / 1e6:.1f} MB", f"{figures['sort_ms']['median']:.0f} ms"
    assert f"| {size}, {sort} | `leaderboard.json` |" in page
    assert (found["records"], figures["rows"]) == (10_000, 1000)


def test_the_page_states_what_building_takes() -> None:
    page, pairs = (ROOT / "docs" / "speed.md").read_text(), result("encoder_path.json")["pairs"]
    assert len(pairs) == 6
    for path in ("zoo", "adapter"):
        spans = []
        for step in ("build", "forward"):
            ratios = [pair[step]["against_smp_median"][path] for pair in pairs.values()]
            spans.append(f"{min(ratios):.2f} to {max(ratios):.2f}")
        assert f"| {' and '.join(spans)} times its time | `encoder_path.json` |" in page


def test_the_page_states_what_ray_gains() -> None:
    page, found = (ROOT / "docs" / "speed.md").read_text(), result("ray_workers.json")
    assert f"| {found['gain_median']:.2f} times as fast | `ray_workers.json` |" in page
    assert found["jobs"] == 4


def test_the_page_states_the_speed_of_training() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    training, data = result("training.json"), result("data_share.json")
    assert training["precision"]["zoo"] == "bf16"
    assert set(training["models"]) == {"unet-mobilenetv2_100", "unet-resnet18"}
    for model, measured in training["models"].items():
        ratio = measured["ratio_median"]
        row = (
            f"| training `{model}` on CamVid, crops of 256 x 256, batch 8 "
            f"| {measured['images_per_second']['zoo']:.1f} images per second: "
            f"{ratio['plain']:.2f} times a plain fp32 loop, {ratio['lightning']:.2f} times "
            f"Lightning, {ratio['fastai']:.2f} times fastai | `training.json` |"
        )
        assert row in page, row
    row = (
        f"| fraction of such a step that waits for data, `{data['model']}` "
        f"| {100 * data['settings']['0']['share']:.1f} % without workers, "
        f"{100 * data['settings']['auto']['share']:.1f} % with `workers: auto` "
        "| `data_share.json` |"
    )
    assert row in page, row


def test_the_page_of_encoders_states_what_whole_images_cost() -> None:
    page = (ROOT / "docs" / "encoders.md").read_text()
    models = result("image_sizes.json")["models"]
    assert len(models) == 3
    for model, sizes in models.items():
        for size, found in sizes.items():
            tokens, seconds = found["tokens"], found["seconds_median"]
            row = (
                f"| `{model}` | {size.replace('x', ' x ')} | {found['passes']['windows']}, "
                f"{tokens['windows']:,} tokens, {seconds['windows']:.2f} s | "
                f"{tokens['whole']:,} tokens, {seconds['whole']:.2f} s | "
                f"{found['whole_against_windows_median']:.2f} |"
            )
            assert row in page, row


def test_the_pages_state_what_stored_features_gain() -> None:
    page = (ROOT / "docs" / "speed.md").read_text()
    models = result("feature_cache.json")["models"]
    assert len(models) == 3
    for model, measured in models.items():
        gain = measured["gain_median"]
        row = (
            f"| an epoch of `{model}` on [stored features](features.md) against one on images, "
            f"256 x 256, encoder frozen | {gain['features']:.1f} times as fast; the decoder's own "
            f"cost allows {gain['bound']:.1f} | `feature_cache.json` |"
        )
        assert row in page, row
        size = f"{measured['image_bytes'] / 1e6:.2f} MB for `{model}`"
        assert size in " ".join((ROOT / "docs" / "features.md").read_text().split()), size


def test_the_loaders_page_states_what_its_file_says() -> None:
    page = (ROOT / "docs" / "loader.md").read_text()
    loader = result("loader.json")
    speed = loader["images_per_second"]
    for figure in (
        f"{speed['zoo, 0 workers']:.0f} without and {speed['zoo, 2 workers']:.0f} with",
        f"torchvision {speed['torchvision, 0 workers']:.0f} and "
        f"{speed['torchvision, 2 workers']:.0f}",
        f"fastai {speed['fastai, 0 workers']:.0f} and {speed['fastai, 2 workers']:.0f}",
        f"{loader['ratio_median']['torchvision']:.2f} times torchvision",
        f"{loader['ratio_median']['fastai']:.2f} times fastai",
    ):
        assert figure in page, figure


def test_the_doctors_page_states_what_its_file_says() -> None:
    scale = result("data_scale.json")
    page = (ROOT / "docs" / "doctor.md").read_text()
    assert f"{scale['doctor_seconds_for_10000']:.0f} s for 10,000 pairs" in page
    assert f"{scale['start_seconds']['total']:.1f} s" in (ROOT / "docs" / "loader.md").read_text()


def test_the_losses_page_states_what_its_file_says() -> None:
    memory = result("loss_memory.json")
    page = (ROOT / "docs" / "losses.md").read_text()
    for name, peak in memory["peak_mb"].items():
        decoder, part = name.split(", ")
        seconds = memory["cpu_seconds"][name]
        row = (
            f"| `{decoder}` | {part} | {peak['usual']} MB | {peak['zoo']} MB "
            f"| {seconds['usual']:.1f} s, here {seconds['zoo']:.1f} s |"
        )
        assert row in page, row
    peak = memory["peak_mb"]["segformer, step"]
    text = f"{peak['zoo']} MB, with the loss as usually written {peak['usual']} MB"
    assert text in (ROOT / "docs" / "speed.md").read_text()
