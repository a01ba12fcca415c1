"""What the verb prints, writes and returns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.doctor_folders import image, mask, pixels, save
from PIL import Image

from zoo.common.errors import InputError
from zoo.common.files import parse_yaml
from zoo.data.doctor import diagnose, doctor
from zoo.data.inspect.mask_looks import rim_fraction


def test_a_clean_set_ends_with_0(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(clean) == 0
    text = capsys.readouterr().out
    assert text.startswith("scenes: train 40, val 12, test 8\n")
    assert "0 errors, 0 warnings, 2 notes" in text


def test_an_error_ends_with_2(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image(data, "val_0002").write_bytes(b"")
    assert doctor(data) == 2
    text = capsys.readouterr().out
    assert "1 error," in text
    assert "val/images/val_0002.png" in text


def test_json_for_machines(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask(data, "train_0001").unlink()
    assert doctor(data, as_json=True) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["splits"] == {"train": 39, "val": 12, "test": 8}
    assert found["counts"]["error"] == 1
    [finding] = [f for f in found["findings"] if f["severity"] == "error"]
    assert finding["code"] == "D105"
    assert finding["files"] == [{"path": "train/images/train_0001.png", "remark": ""}]
    assert finding["fixable"] is True
    assert len(found["facts"]["class_weights"]) == 8


def test_facts_by_hand(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 255)):
        picture = np.full((64, 64, 3), value, dtype=np.uint8)
        save(tmp_path / "train" / "images" / f"{name}.png", picture)
        ids = np.zeros((64, 64), dtype=np.uint8)
        ids[:16] = 1
        save(tmp_path / "train" / "masks" / f"{name}.png", ids)
    (tmp_path / "dataset.yaml").write_text("version: 1\nclasses: [a, b]\n")
    facts = diagnose(tmp_path, progress=False).facts
    assert facts["mean"] == [0.5, 0.5, 0.5]
    assert facts["std"] == [0.5, 0.5, 0.5]
    assert facts["pixels"] == {"train": [6144, 2048]}
    assert facts["images"] == {"train": [2, 2]}
    # 1/ln(1.77) = 1.75136, 1/ln(1.27) = 4.18379, mean 2.96758
    assert facts["class_weights"] == pytest.approx([0.5902, 1.4098], abs=1e-4)
    assert facts["dataset_yaml"] is None


def test_an_id_without_a_class_is_proposed_as_a_class_and_never_ignored(data: Path) -> None:
    ids = pixels(mask(data, "train_0003"))
    ids[0, 0] = 77
    save(mask(data, "train_0003"), ids)
    text = diagnose(data, progress=False).facts["dataset_yaml"]
    suggested = parse_yaml(text, "suggested")
    assert suggested["ignore"] == [255]
    assert suggested["classes"][-1] == "class_77"
    assert suggested["mapping"][77] == len(suggested["classes"]) - 1
    assert "  - class_77  # id 77: 1 pixels in 1 masks" in text
    (data / "dataset.yaml").write_text(text)
    assert diagnose(data, progress=False).exit_code == 0


def test_a_folder_without_description_gets_one(data: Path) -> None:
    (data / "dataset.yaml").unlink()
    ids = pixels(mask(data, "train_0003"))
    ids[0, 0] = 77
    save(mask(data, "train_0003"), ids)
    found = diagnose(data, progress=False)
    assert [f.code for f in found.of("error")] == ["D101"]
    assert len(found.pairs) == 60
    (data / "dataset.yaml").write_text(found.facts["dataset_yaml"])
    assert diagnose(data, progress=False).exit_code == 0


def test_a_bad_description_is_a_finding_with_its_message(data: Path) -> None:
    (data / "dataset.yaml").write_text("version: 1\nclasses: [one]\n")
    [finding] = diagnose(data, progress=False).of("error")
    assert finding.code == "D101"
    assert "2 to 255 are allowed" in finding.files["dataset.yaml"]


def test_a_broken_public_layout_is_looked_at(clean: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            picture = pixels(image(clean, f"{split}_000{'ab'.index(name)}"))
            save(tmp_path / split / f"{name}.png", picture)
            ids = pixels(mask(clean, f"{split}_000{'ab'.index(name)}")) % 11
            save(tmp_path / f"{split}annot" / f"{name}.png", ids)
    (tmp_path / "valannot" / "b.png").unlink()
    found = diagnose(f"camvid:{tmp_path}", progress=False)
    assert [(f.code, list(f.files)) for f in found.of("error")] == [("D105", ["val/b.png"])]


@pytest.mark.parametrize("given", ["nowhere", "camvid:nowhere", "no-such-format:."])
def test_nothing_to_look_at_is_bad_input(given: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        doctor(given.replace("nowhere", str(tmp_path / "nowhere")))


def test_a_folder_without_pairs_gets_the_words_of_the_loader(tmp_path: Path) -> None:
    save(tmp_path / "plain" / "a" / "1.png", np.zeros((8, 8), np.uint8))
    [finding] = diagnose(tmp_path / "plain", progress=False).of("error")
    assert finding.code == "D101"
    assert "`zoo data init" in finding.files["dataset.yaml"]
    for side in ("leftImg8bit", "gtFine"):
        (tmp_path / "official" / side / "val").mkdir(parents=True)
    with pytest.raises(InputError, match=f"give `cityscapes:{tmp_path / 'official'}` as the data"):
        doctor(tmp_path / "official")


def test_a_hundred_classes_stay_readable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every class once in train, the last ten nowhere; id 200 has no class."""
    ids = np.kron(np.arange(90, dtype=np.uint8).reshape(9, 10), np.ones((8, 8), dtype=np.uint8))
    ids[0, 0] = 200
    save(tmp_path / "train" / "images" / "a.png", np.stack([ids] * 3, axis=2))
    save(tmp_path / "train" / "masks" / "a.png", ids)
    names = [f"class_number_{index}" for index in range(100)]
    (tmp_path / "dataset.yaml").write_text(f"version: 1\nclasses: {names}\n")
    doctor(tmp_path)
    text = capsys.readouterr().out
    table, _, suggested = text.partition("A dataset.yaml that fits the masks (D603):")
    assert len(table.splitlines()) < 60
    assert "... and 92 more" in table  # of the class weights
    assert "... and 2 more" in table  # of the classes that occur nowhere
    content = parse_yaml(suggested[: suggested.rindex("\n\n")], "suggested")
    assert len(content["classes"]) == 101
    assert content["mapping"] == {**{index: index for index in range(100)}, 200: 100}
    doctor(tmp_path, as_json=True)
    found = json.loads(capsys.readouterr().out)
    weights = next(one for one in found["findings"] if one["code"] == "D602")
    assert "class_number_99 " in weights["detail"]


def test_page_is_self_contained_and_escaped(data: Path, tmp_path: Path) -> None:
    text = (data / "dataset.yaml").read_text().replace("name: sky", 'name: "<b>sky</b>"')
    (data / "dataset.yaml").write_text(text)
    save(mask(data, "train_0004"), pixels(mask(data, "train_0004"))[:50])
    image(data, "train_0005").write_bytes(b"")
    assert doctor(data, out=tmp_path / "out") == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<b>sky" not in page
    assert "&lt;b&gt;sky&lt;/b&gt;" in page
    assert "D303" in page
    assert "train/masks/train_0004.png" in page
    assert "cannot be shown" in page
    assert page.count("data:image/png;base64,") >= 8
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert "prefers-color-scheme: dark" in page


def test_file_names_that_are_no_text(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        image(data, "train_0003").rename(data / "train" / "images" / "odd\udcff\x1b[2J.png")
    except OSError:
        pytest.skip("this file system knows only valid names")
    assert doctor(data, out=tmp_path / "out") == 2
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "odd\ufffd\ufffd[2J.png" in shown
    assert "odd?" in (tmp_path / "out" / "report.html").read_text()


def test_an_image_and_mask_with_the_same_turn_belong_together(data: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for path in (image(data, "train_0003"), mask(data, "train_0003")):
        save(path, pixels(path), exif=exif)
    codes = {finding.code for finding in diagnose(data, progress=False).findings}
    assert not codes & {"D204", "D205"}


def test_rim_fraction_by_hand() -> None:
    # two rows of 0 3 5 5: per row 2 rises, 1 of them through 3; columns have no edge
    assert rim_fraction(np.array([[0, 3, 5, 5], [0, 3, 5, 5]], dtype=np.uint8)) == 0.5
    # 5 0 5 has edges, but 0 is not between
    assert rim_fraction(np.array([[5, 0, 5]], dtype=np.uint8)) == 0.0
    assert rim_fraction(np.zeros((3, 3), dtype=np.uint8)) == 0.0
