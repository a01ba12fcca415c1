"""CutMix and copy-paste worked out by hand on tiny batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import torch
from helpers.data_folders import three_classes
from torch import Tensor

from zoo.data.dataset import IGNORE
from zoo.data.loading.loader import TrainLoader
from zoo.data.loading.transforms import Draw, draw, mix_batch
from zoo.registry.recipe import Augment

NEVER = Draw(*[0.99] * (len(fields(Draw)) - 1), ())
CUT = Augment(cutmix=0.5)
PASTE = Augment(copy_paste=0.5)


def batch(*labels: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Masks, and images whose every pixel says its row and its label: 50 * row + label."""
    masks = torch.tensor(labels, dtype=torch.uint8)
    images = masks[:, None].repeat(1, 3, 1, 1) + 50 * torch.arange(len(labels)).view(-1, 1, 1, 1)
    return images.to(torch.uint8), masks


def whole(label: int, side: int = 4) -> list[list[int]]:
    return [[label] * side] * side


def test_cutmix_by_hand() -> None:
    images, masks = batch(whole(1), whole(2), whole(3))
    cut = replace(NEVER, cutmix=0.4, cutmix_area=0.25, cutmix_top=0.0, cutmix_left=0.99)
    # a quarter of the area: 2 x 2 pixels in the upper right; 0 and 0.99 choose the next and the
    # last of the other rows, both read as they came in
    first, second = replace(cut, cutmix_partner=0.0), replace(cut, cutmix_partner=0.99)
    mixed, labels = mix_batch(images, masks, [first, second, NEVER], CUT)
    assert labels[0].tolist() == [[1, 1, 2, 2]] * 2 + [[1] * 4] * 2
    assert mixed[0, 0].tolist() == [[1, 1, 52, 52]] * 2 + [[1] * 4] * 2
    assert labels[1].tolist() == [[2, 2, 1, 1]] * 2 + [[2] * 4] * 2
    assert labels[2].tolist() == whole(3)


def test_copy_paste_takes_half_of_the_rarer_classes() -> None:
    other = [[0, 0, 0, 0], [0, 0, 1, 1], [2, 2, 3, 3], [IGNORE] * 4]
    paste = replace(NEVER, paste=0.0, paste_partner=0.0)
    pasted = Counter()
    for number in range(60):
        images, masks = batch(whole(9), other)
        drawn = replace(paste, paste_classes=number / 60)
        mixed, labels = mix_batch(images, masks, [drawn, NEVER], PASTE)
        found = set(labels[0].unique().tolist()) - {9}
        assert len(found) == 2  # of the classes 1, 2 and 3; neither 0 nor the ignored pixels
        assert found < {1, 2, 3}
        theirs = torch.isin(masks[1], torch.tensor(sorted(found)))
        assert torch.equal(labels[0], torch.where(theirs, masks[1], 9))
        assert torch.equal(mixed[0, 2], torch.where(theirs, 50 + masks[1], 9))
        pasted.update(found)
    assert all(pasted[label] >= 25 for label in (1, 2, 3))


def test_a_partner_of_one_class_gives_nothing() -> None:
    for label in (4, IGNORE):
        images, masks = batch(whole(9), whole(label))
        drawn = replace(NEVER, paste=0.0, paste_partner=0.0, paste_classes=0.3)
        assert mix_batch(images, masks, [drawn, drawn], PASTE)[1][0].tolist() == whole(9)


def test_many_classes_are_all_within_reach() -> None:
    other = torch.arange(256, dtype=torch.uint8).reshape(16, 16).tolist()
    images, masks = batch(whole(7, 16), other)
    drawn = replace(NEVER, paste=0.0, paste_partner=0.0, paste_classes=0.9)
    labels = mix_batch(images, masks, [drawn, NEVER], PASTE)[1][0]
    # classes 1 to 254 stand for themselves: half of these 254
    assert int((labels != 7).sum()) in (126, 127)


def test_a_batch_of_one_and_no_probability_change_nothing() -> None:
    always = Augment(cutmix=1.0, copy_paste=1.0)
    zero = replace(NEVER, cutmix=0.0, paste=0.0)
    images, masks = batch(whole(1))
    assert mix_batch(images, masks, [zero], always)[1].tolist() == [whole(1)]
    images, masks = batch(whole(1), whole(2))
    mixed = mix_batch(images, masks, [zero, zero], Augment())
    assert mixed[0] is images
    assert mixed[1].tolist() == [whole(1), whole(2)]


def test_every_other_row_can_be_the_partner() -> None:
    all_of_it = replace(NEVER, cutmix=0.0, cutmix_area=0.9999)
    for row in range(4):
        seen = set()
        for number in range(40):
            images, masks = batch(*(whole(label) for label in range(4)))
            drawn = [NEVER] * 4
            drawn[row] = replace(all_of_it, cutmix_partner=number / 40)
            seen.update(mix_batch(images, masks, drawn, CUT)[1][row].unique().tolist())
        assert seen == set(range(4)) - {row}


def test_mixing_follows_the_seed_and_moves_labels_with_pixels() -> None:
    both = Augment(cutmix=1.0, copy_paste=1.0)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (6, 32, 32), generator=generator, dtype=torch.uint8)
    results = []
    for _ in range(2):
        images, masks = batch(*labels.tolist())
        results.append(mix_batch(images, masks, [draw(3, 1, n) for n in range(6)], both))
    (images, masks), (again, same) = results
    assert torch.equal(images, again)
    assert torch.equal(masks, same)
    assert torch.equal(images[:, 0] % 50, masks)
    assert (images[:, 0] // 50 != torch.arange(6).view(-1, 1, 1)).float().mean() > 0.3


def test_the_loader_mixes_each_batch(tmp_path: Path) -> None:
    dataset = three_classes(tmp_path, [(12, 16)] * 6)
    settings = {"crop": 8, "batch_size": 3, "seed": 1}
    plain, mixed, again = (
        list(TrainLoader(dataset, "train", augment=augment, **settings).epoch(0))
        for augment in (Augment(), Augment(cutmix=1.0), Augment(cutmix=1.0))
    )
    for (images, masks), (others, labels), (same, _) in zip(plain, mixed, again, strict=True):
        assert torch.equal(others, same)
        assert not torch.equal(images, others)
        assert not torch.equal(masks, labels)
        assert others.is_contiguous(memory_format=torch.channels_last)
