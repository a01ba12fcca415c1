"""Presets of the augmentation: what they set, what overrides them, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zoo.common.errors import InputError
from zoo.common.files import parse_yaml
from zoo.registry.overrides import apply_overrides
from zoo.registry.recipe import PRESET_KEYS, PRESETS, Augment, Recipe, recipe_dict

PAGE = Path(__file__).parents[2] / "docs" / "augmentation.md"
SPECIAL = {"scale": [0.9, 1.1], "flip": 0.0, "resize": 300}


def recipe(**augment: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "optimizer": {"lr": 0.01},
            "batch_size": 4,
            "crop": 64,
            "augment": augment,
            "stages": [{"name": "all", "epochs": 1}],
        }
    )


def shown(chosen: Recipe) -> dict[str, Any]:
    values: dict[str, Any] = recipe_dict(chosen)["augment"]
    return values


def overridden(*overrides: str, **augment: Any) -> dict[str, Any]:
    return shown(apply_overrides(recipe(**augment), overrides))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_every_key_but_resize(preset: str) -> None:
    assert tuple(PRESETS[preset]) == PRESET_KEYS
    assert set(PRESET_KEYS) == set(Augment.model_fields) - {"preset", "resize"}
    resolved = {"preset": preset, "resize": None, **PRESETS[preset]}
    assert Augment(preset=preset).model_dump() == resolved
    assert shown(recipe(preset=preset)) == resolved
    assert shown(apply_overrides(recipe(preset=preset), ["batch_size=2"])) == resolved


def test_no_preset_leaves_the_defaults() -> None:
    assert Augment(preset="none") == Augment()


def test_values_given_beside_a_preset_win() -> None:
    assert shown(recipe(preset="medium", **SPECIAL)) == {
        "preset": "medium",
        **PRESETS["medium"],
        **SPECIAL,
    }


def test_a_preset_is_not_changed_through_a_recipe() -> None:
    Augment(preset="light").scale.append(9.0)
    assert Augment(preset="light").scale == PRESETS["light"]["scale"] == [0.75, 1.5]


def test_an_overridden_preset_replaces_the_values_of_the_recipe() -> None:
    strong = {"preset": "strong", **PRESETS["strong"], "resize": 300}
    assert overridden("augment.preset=strong", **SPECIAL) == strong
    assert overridden("augment.preset=strong", preset="light", **SPECIAL) == strong
    none = overridden("augment.preset=none", preset="light", **SPECIAL)
    assert none == Augment(resize=300).model_dump()


@pytest.mark.parametrize("swapped", [False, True])
def test_keys_overridden_with_the_preset_win_in_either_order(swapped: bool) -> None:
    given = ["augment.preset=medium", "augment.rotate=45", "augment.flip=0.25"]
    after = overridden(*(given[::-1] if swapped else given), **SPECIAL)
    wanted = PRESETS["medium"] | {"rotate": 45.0, "flip": 0.25, "resize": 300}
    assert after == {"preset": "medium", **wanted}


def test_a_mapping_replaces_the_section_and_keeps_its_own_values() -> None:
    after = overridden("augment={flip: 0.1}", "augment.preset=light", **SPECIAL)
    assert after == {"preset": "light", "resize": None, **PRESETS["light"], "flip": 0.1}
    assert overridden("augment={preset: light}", **SPECIAL) == Augment(preset="light").model_dump()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preset=hard", "preset: should be 'none', 'light', 'medium' or 'strong', got 'hard'"),
        ("preset=[light]", "preset: should be 'none', 'light', 'medium' or 'strong', got"),
        ("preset=null", "preset: should be 'none', 'light', 'medium' or 'strong', got None"),
        ("resize=0", "resize: should be greater than or equal to 1, got 0"),
        ("resize=0.5", "resize: should be a whole number, got 0.5"),
        ("scale=[2, 1]", "scale: the smaller scale comes first, got [2.0, 1.0]"),
        ("max_class_share=0", "max_class_share: should be greater than 0, got 0"),
        ("max_class_share=75", "max_class_share: should be less than or equal to 1, got 75"),
        ("rotate=181", "rotate: should be less than or equal to 180, got 181"),
        ("rotate=[-10, 10]", "rotate: should be a number, got [-10, 10]"),
        ("rotate_probability=2", "rotate_probability: should be less than or equal to 1, got 2"),
        ("hue=0.6", "hue: should be less than or equal to 0.5, got 0.6"),
        ("blur=-1", "blur: should be greater than or equal to 0, got -1"),
        ("grayscale=true", "grayscale: should be a number, got True"),
        ("cutmix=.nan", "cutmix: should be a number, got '.nan'"),
        ("copypaste=1", "copypaste: there is no key 'copypaste'; allowed: copy_paste,"),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        overridden(f"augment.{override}")
    _, *lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"  - augment.{message}")


def test_the_page_shows_the_presets_as_they_are() -> None:
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines()]
    table = {cells[0].strip(" `"): cells[1:] for cells in rows if len(cells) == 4}
    for key in PRESET_KEYS:
        written = [parse_yaml(cell.strip(" `"), "page") for cell in table[key]]
        assert written == [PRESETS[preset][key] for preset in ("light", "medium", "strong")], key
