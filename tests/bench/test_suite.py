"""Suite files: what they may hold, what is merged, what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.bench.suite import job_from_json, merged, read_suite, suite_jobs
from zoo.common.errors import InputError
from zoo.registry.load import load_registry
from zoo.registry.overrides import apply_overrides
from zoo.registry.recipe import recipe_hash
from zoo.registry.resolve import Resolved, resolve

SUITES = sorted((Path(__file__).parents[2] / "benchmarks" / "suites").glob("*.yaml"))


def changed(path: Path, *pairs: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        suite_jobs(read_suite(path))
    return str(caught.value)


def test_every_seed_is_done_for_all_variants_before_the_next(suite_file: Path) -> None:
    jobs = suite_jobs(read_suite(suite_file))
    assert [(job.seed, job.variant) for job in jobs] == [
        (0, "base"),
        (0, "short"),
        (1, "base"),
        (1, "short"),
    ]


def test_a_job_is_the_recipe_that_finetune_would_hash(suite_file: Path) -> None:
    job = suite_jobs(read_suite(suite_file))[1]
    wanted = ["crop=64", "batch_size=4", "precision=fp32", "ema=null"]
    wanted.append("stages=[{name: all, epochs: 1}]")
    recipe = apply_overrides(load_registry().recipe("scratch"), [*wanted, "seed=5"])
    assert job.recipe_hash == recipe_hash(recipe)
    assert job_from_json(job.as_json()) == job
    assert job.folder.startswith("scenes--unet-test_resnet--short--s0--")


def test_options_of_the_model_make_another_job(suite_file: Path) -> None:
    option = "model.decoder_channels=[16, 16, 8, 8, 8]"
    other = f'  again: {{encoder_weights: none, set: ["{option}"]}}\nblocks:'
    changed(suite_file, ("blocks:", other), ("[base, short]", "[base, again, short]"))
    base, again, *_ = suite_jobs(read_suite(suite_file))
    recipe = apply_overrides(load_registry().recipe("scratch"), base.overrides)
    assert base.recipe_hash == recipe_hash(recipe)
    assert again.recipe_hash == recipe_hash(recipe, {"decoder_channels": [16, 16, 8, 8, 8]})
    dropped = "model.encoder_args.drop_path_rate=0.1"
    changed(suite_file, (option, dropped))
    _, again, *_ = suite_jobs(read_suite(suite_file))
    assert again.recipe_hash == recipe_hash(recipe, {"encoder_args": {"drop_path_rate": 0.1}})
    changed(suite_file, (dropped, "model.decoder_chanels=[8]"))
    assert "variants.again, unet-test_resnet: " in message(suite_file)
    assert "unet has no option decoder_chanels" in message(suite_file)


def test_two_names_of_one_run_are_one_job(suite_file: Path) -> None:
    # the same values as the base has, written in another way
    same = '  again: {encoder_weights: none, set: ["crop=64", "stages.all.epochs=2"]}\nblocks:'
    changed(suite_file, ("blocks:", same), ("[base, short]", "[base, again, short]"))
    jobs = suite_jobs(read_suite(suite_file))
    assert [job.variant for job in jobs] == ["base", "short"] * 2


def test_own_overrides_take_the_place_of_common_ones() -> None:
    common = ["stages=[]", "stages.head.epochs=1", "ema=0.9", "optimizer.lr=0.1"]
    assert merged(common, ["ema=null"]) == [*common[:2], common[3], "ema=null"]
    assert merged(common, ["stages=[{}]"]) == ["ema=0.9", "optimizer.lr=0.1", "stages=[{}]"]
    assert merged(common, ["stages.head.epochs=3"]) == [
        "stages=[]",
        "ema=0.9",
        "optimizer.lr=0.1",
        "stages.head.epochs=3",
    ]


def test_without_a_recipe_it_is_the_models_own(suite_file: Path) -> None:
    changed(suite_file, ("recipe: scratch\n", ""), ("base: {encoder_weights: none}", "base: {}"))
    base, short, *_ = suite_jobs(read_suite(suite_file))
    assert (base.recipe, short.recipe) == ("cnn", "scratch")
    assert base.setting[1] == "pretrained"
    assert short.setting[1] == "random"


def test_all_faults_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "version: 2\ntitle: x\nsplits: test\nseeds: [0, 0]\ncommon: [ema, seed=3, a=1, a=2]\n"
        "variants: {'a b': {encoder_weights: imagenet}}\n"
        "blocks: [{title: '', models: [], data: [a//b], variants: [x]}]\n"
    )
    with pytest.raises(InputError) as caught:
        read_suite(path)
    text = str(caught.value)
    for part in (
        "version: ",
        "there is no key 'splits'; allowed: split,",
        "seeds: given twice: 0",
        "common[0]: should be key=value, got 'ema'; for no value write key=null",
        "common[1]: the seed is set by `seeds`, not by an override",
        "should be letters, digits, dots, underscores and hyphens, got 'a b'",
        "should be 'default' or 'none'",
        "blocks[0].title: ",
        "blocks[0].models: has too few entries",
        "names joined by single slashes, such as drive/fold_0, got 'a//b'",
    ):
        assert part in text


def test_twice_given_keys_and_files_that_are_no_mapping(suite_file: Path, tmp_path: Path) -> None:
    changed(suite_file, ("crop=64,", "crop=64, crop=96,"))
    assert "common: keys given twice: crop" in message(suite_file)
    (tmp_path / "list.yaml").write_text("[1]")
    assert "should be a mapping of keys to values" in message(tmp_path / "list.yaml")


def test_variants_that_do_not_exist_or_are_not_used(suite_file: Path) -> None:
    changed(suite_file, ("[base, short]", "[bse]"), ("title: Tiny", "title: Tiny\nsplit: val"))
    text = message(suite_file)
    assert "blocks[0].variants: Unknown variant 'bse'. Did you mean base?" in text
    assert "variants.short: no block names it" in text
    assert "split: val trains or chooses the models, so it cannot be reported" in text


def test_unknown_models_recipes_and_values_are_listed_at_once(suite_file: Path) -> None:
    changed(
        suite_file,
        ("[unet-test_resnet]", "[unet-test_resnet, unet-resnet19]"),
        ("ema=null", "emma=null"),
        ("base: {", "base: {recipe: ccn, "),
    )
    text = message(suite_file)
    assert text.startswith("The suite 'Tiny' cannot be used:")
    assert "Unknown encoder 'resnet19'. Did you mean resnet18" in text
    assert "variants.base: Unknown recipe 'ccn'. Did you mean cnn?" in text
    assert text.count("variants.short: These recipe overrides cannot be used:") == 1
    assert "there is no key 'emma'" in text


def test_models_that_are_not_supported_are_refused(
    suite_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = dataclasses.replace(resolve("unet-test_resnet"), supported=False, reason="too new")

    def answer(*arguments: object) -> Resolved:
        return refused

    monkeypatch.setattr("zoo.bench.suite.resolve", answer)
    assert "unet-test_resnet is not supported: too new" in message(suite_file)


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_suites_that_come_with_zoo_can_be_used(path: Path) -> None:
    suite = read_suite(path)
    jobs = suite_jobs(suite)
    assert len(jobs) == len({job.folder for job in jobs}) > 2
    assert suite.split == "test"
    for block in suite.blocks:
        assert len(block.variants) * len(block.models) > 1, block.title


def test_status_and_tables_need_no_torch() -> None:
    code = (
        "import sys, zoo.bench.table, zoo.bench.table; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'accelerate')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
