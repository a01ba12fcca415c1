"""The mode of a model that is given to zoo's functions."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.data_folders import three_classes
from helpers.hub_server import LoopbackHub

import zoo


def test_functions_that_take_a_model_leave_every_mode_as_it_was(
    loopback_hub: LoopbackHub, tmp_path: Path
) -> None:
    model, data = zoo.create("unet-test_resnet", classes=3, encoder_weights=None), tmp_path / "data"
    model.net.decoder.eval()
    model.net.encoder.model.bn1.eval()
    before = {name: module.training for name, module in model.named_modules()}
    dataset = three_classes(data, [(40, 50)], "val")
    model.spec = model.spec.model_copy(update={"classes": dataset.classes})

    def check_modes() -> None:
        assert {name: module.training for name, module in model.named_modules()} == before

    image = data / "val" / "images" / "val_0.png"
    (found,) = zoo.predict(model, image)
    check_modes()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    for images in ([broken], [image, broken]):
        with pytest.raises(zoo.ZooError, match="cannot be predicted"):
            list(zoo.predict(model, images))
        check_modes()
    zoo.evaluate(model, data, split="val")
    check_modes()
    zoo.push(model, "org/modes", dry_run=True)
    check_modes()
    (expected,) = zoo.predict(model.eval(), image)  # what was predicted was in evaluation mode
    assert (found.mask == expected.mask).all()
