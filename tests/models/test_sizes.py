"""How models take images of every size: what the description says, and what the network sees."""

from __future__ import annotations

from zoo.models.spec import model_spec
from zoo.registry.resolve import resolve


def test_given_encoder_arguments_take_precedence_over_the_registry() -> None:
    resolved = resolve("dpt-test_vit3")
    given = {"num_classes": 5, "drop_path_rate": 0.1}
    assert resolved.encoder_args == {"num_classes": 0}
    assert model_spec(resolved, 2, encoder_args=given).encoder_args.items() >= given.items()
