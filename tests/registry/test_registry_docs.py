"""The tables of docs/registry.md and docs/recipes.md against the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from zoo.common.files import parse_yaml
from zoo.registry.encoders import Encoder
from zoo.registry.load import RegistryFile, load_registry
from zoo.registry.recipe import (
    Augment,
    EarlyStop,
    LossOptions,
    Optimizer,
    Recipe,
    Schedule,
    Stage,
)

DOCS = Path(__file__).parents[2] / "docs"


def tables(page: str) -> list[list[list[str]]]:
    """The tables of a page as rows of cells, without heading and rule."""
    found: list[list[list[str]]] = [[]]
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table[2:] for table in found if table]


def quoted(cell: str) -> list[str]:
    """The words in backquotes at the start of a cell, separated by commas."""
    return [word.strip().strip("`") for word in cell.split(",")]


MODELS: list[type[BaseModel]] = [
    Recipe,
    LossOptions,
    Optimizer,
    Augment,
    EarlyStop,
    Stage,
    Schedule,
]


@pytest.mark.parametrize(("index", "model"), list(enumerate(MODELS)))
def test_the_recipes_page_has_every_key_with_its_default(
    index: int, model: type[BaseModel]
) -> None:
    rows = tables("recipes.md")[index]
    assert [row[0].strip("`") for row in rows] == list(model.model_fields)
    for key, _, _, default in rows:
        if default != "see below":
            assert written(default) == actual(model, key.strip("`")), key


def written(default: str) -> Any:
    return "required" if default == "required" else parse_yaml(default.strip("`"), "docs")


def actual(model: type[BaseModel], key: str) -> Any:
    value = model.model_fields[key].get_default(call_default_factory=True, validated_data={})
    if isinstance(value, BaseModel):
        return {key: getattr(value, key) for key in ("kind",)}
    return "required" if value is PydanticUndefined else value


def test_the_recipes_page_shows_overrides_that_work() -> None:
    from zoo.registry.overrides import apply_overrides

    for row in tables("recipes.md")[len(MODELS)]:
        recipe = load_registry().recipe("cnn")
        changed = apply_overrides(recipe, [row[0].strip("`"), "crop=32"])
        assert changed.crop == 32


def test_the_registry_page_has_every_decoder() -> None:
    expected = [f"`{name}`" for name in load_registry().decoders]
    assert [row[0] for row in tables("registry.md")[0]] == expected


def test_the_registry_page_has_every_section_and_column() -> None:
    _, sections, columns = tables("registry.md")
    assert [row[0].strip("`") for row in sections] == list(RegistryFile.model_fields)
    assert {name for row in columns for name in quoted(row[0])} == set(Encoder._fields)


def test_the_overlay_on_the_registry_page_works(tmp_path: Path) -> None:
    from zoo.registry.resolve import resolve

    text = (DOCS / "registry.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "mobilenetv2.safetensors").write_bytes(b"")
    model = resolve("unet-mobilenetv2_100", tmp_path / "mine.yaml")
    assert model.weights_file == tmp_path / "weights" / "mobilenetv2.safetensors"
    assert model.encoder_args == {"pad_type": "same"}
    assert model.mean == [0.5, 0.5, 0.5]
