"""Metrics against numbers worked out by hand and against sets of pixels."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from zoo.common.errors import InputError
from zoo.evaluation.counts import Confusion

NAN = float("nan")


def filled(matrix: list[list[int]], classes: list[str] | None = None) -> Confusion:
    confusion = Confusion(classes or len(matrix))
    confusion.add_matrix(matrix)
    return confusion


def close(values: np.ndarray, expected: list[float]) -> None:
    assert values.dtype == np.float64
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=0, equal_nan=True)


def test_two_classes_by_hand():
    """Truth: 50 of class 0, 50 of class 1; 40 and 45 of them are right."""
    confusion = filled([[40, 10], [5, 45]])
    close(confusion.iou, [40 / 55, 45 / 60])
    close(confusion.dice, [80 / 95, 90 / 105])
    close(confusion.tpr, [0.8, 0.9])
    close(confusion.tnr, [0.9, 0.8])
    close(confusion.fpr, [0.1, 0.2])
    close(confusion.precision, [40 / 45, 45 / 55])
    assert confusion.pixels == 100
    assert confusion.pixel_accuracy == 0.85
    assert confusion.miou == pytest.approx((40 / 55 + 0.75) / 2, rel=1e-12)
    assert confusion.mean_dice == pytest.approx((80 / 95 + 90 / 105) / 2, rel=1e-12)
    assert confusion.mean_accuracy == pytest.approx(0.85, rel=1e-12)


def test_rows_are_the_truth_and_255_counts_nowhere():
    truth = np.array([[0, 0, 1], [1, 255, 255]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1], [0, 0, 77]], dtype=np.uint8)
    confusion = Confusion(["a", "b"])
    confusion.add(truth, prediction)
    assert confusion.matrix.tolist() == [[1, 1], [1, 1]]
    assert confusion.matrix.dtype == np.int64


def test_class_absent_from_both_is_undefined_and_leaves_the_means():
    confusion = filled([[3, 1, 0], [0, 4, 0], [0, 0, 0]])
    close(confusion.iou, [3 / 4, 4 / 5, NAN])
    close(confusion.dice, [6 / 7, 8 / 9, NAN])
    close(confusion.tpr, [3 / 4, 1.0, NAN])
    close(confusion.precision, [1.0, 4 / 5, NAN])
    close(confusion.fpr, [0.0, 1 / 4, 0.0])
    close(confusion.tnr, [1.0, 3 / 4, 1.0])
    assert confusion.miou == pytest.approx(0.775, rel=1e-12)
    assert confusion.mean_accuracy == pytest.approx(0.875, rel=1e-12)


def test_class_predicted_but_absent_from_the_truth_counts_as_zero():
    confusion = filled([[3, 1], [0, 0]])
    close(confusion.iou, [0.75, 0.0])
    close(confusion.dice, [6 / 7, 0.0])
    close(confusion.tpr, [0.75, NAN])
    close(confusion.tnr, [NAN, 0.75])
    close(confusion.fpr, [NAN, 0.25])
    close(confusion.precision, [1.0, 0.0])
    assert confusion.miou == 0.375


def test_nothing_counted_is_undefined_not_zero_or_one():
    confusion = Confusion(["a", "b"])
    confusion.add(np.full((2, 2), 255), np.zeros((2, 2), dtype=int))
    assert confusion.pixels == 0
    assert math.isnan(confusion.miou)
    assert math.isnan(confusion.pixel_accuracy)
    assert confusion.metrics() == {
        "miou": None,
        "pixel_accuracy": None,
        "mean_dice": None,
        **{
            f"{name}_per_class": {"a": None, "b": None}
            for name in ("iou", "dice", "tpr", "tnr", "fpr")
        },
    }


def test_metrics_and_json():
    confusion = filled([[3, 1, 0], [0, 4, 0], [0, 0, 0]], ["sky", "road", "car"])
    metrics = confusion.metrics()
    assert metrics["miou"] == pytest.approx(0.775, rel=1e-12)
    assert metrics["pixel_accuracy"] == 0.875
    assert metrics["iou_per_class"] == {"sky": 0.75, "road": 0.8, "car": None}
    assert metrics["tpr_per_class"] == {"sky": 0.75, "road": 1.0, "car": None}
    assert metrics["tnr_per_class"] == {"sky": 1.0, "road": 0.75, "car": 1.0}
    assert metrics["fpr_per_class"] == {"sky": 0.0, "road": 0.25, "car": 0.0}
    assert list(metrics["dice_per_class"]) == ["sky", "road", "car"]
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def by_sets(truth: list[int], prediction: list[int], count: int) -> dict[str, list[float]]:
    """The same metrics from sets of pixel positions, without a matrix."""
    kept = {index for index, label in enumerate(truth) if label != 255}
    result: dict[str, list[float]] = {name: [] for name in ("iou", "dice", "tpr", "tnr", "fpr")}

    def share(part: int, whole: int) -> float:
        return part / whole if whole else NAN

    for label in range(count):
        real = {index for index in kept if truth[index] == label}
        found = {index for index in kept if prediction[index] == label}
        others = kept - real
        result["iou"].append(share(len(real & found), len(real | found)))
        result["dice"].append(share(2 * len(real & found), len(real) + len(found)))
        result["tpr"].append(share(len(real & found), len(real)))
        result["tnr"].append(share(len(others - found), len(others)))
        result["fpr"].append(share(len(others & found), len(others)))
    return result


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(1, 5))
def test_equals_sets_of_pixels_however_the_split_is_cut(data, count):
    labels = st.sampled_from([*range(count), 255])
    truth = data.draw(st.lists(labels, min_size=1, max_size=40))
    prediction = data.draw(
        st.lists(st.integers(0, count - 1), min_size=len(truth), max_size=len(truth))
    )
    cut = data.draw(st.integers(0, len(truth)))
    first, second = Confusion(count), Confusion(count)
    first.add(np.array(truth[:cut], dtype=np.uint8), np.array(prediction[:cut], dtype=np.uint8))
    second.add(torch.tensor(truth[cut:]).long(), torch.tensor(prediction[cut:]).long())
    whole = first + second
    for name, expected in by_sets(truth, prediction, count).items():
        close(getattr(whole, name), expected)
    defined = [v for v in by_sets(truth, prediction, count)["iou"] if not math.isnan(v)]
    if defined:
        assert whole.miou == pytest.approx(sum(defined) / len(defined), rel=1e-12)
    else:
        assert math.isnan(whole.miou)


def test_mean_iou_is_of_the_whole_split_not_of_its_batches():
    """Per batch: (1 + 0) / 2 and (1 + 1) / 2, mean 0.75; over the split: (3/4 + 1/2) / 2."""
    confusion = Confusion(2)
    confusion.add(np.array([0, 0, 1]), np.array([0, 0, 0]))
    confusion.add(np.array([0, 1]), np.array([0, 1]))
    assert confusion.miou == 0.625


def test_counts_beyond_float32_are_exact():
    big = 2**24 + 1
    confusion = filled([[big, 1], [0, 2**53 + 1]])
    confusion.add(np.array([0, 1], dtype=np.uint8), np.array([0, 1], dtype=np.uint8))
    assert confusion.matrix.tolist() == [[big + 1, 1], [0, 2**53 + 2]]
    zeros = np.zeros(2**24 + 3, dtype=np.uint8)
    ones = Confusion(1)
    ones.add(zeros, zeros)
    assert ones.pixels == 2**24 + 3


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "int64", "uint64"])
def test_any_integer_type_and_the_largest_matrix(dtype):
    confusion = Confusion(255)
    top = 100 if dtype == "int8" else 254
    confusion.add(np.array([top], dtype=dtype), np.array([top], dtype=dtype))
    assert confusion.matrix[top, top] == confusion.pixels == 1


def test_tensors_of_any_kind():
    confusion = Confusion(2)
    truth = torch.tensor([[0, 1], [255, 1]], dtype=torch.uint8)
    confusion.add(truth, torch.tensor([[0, 0], [0, 1]]))
    confusion.add_matrix(torch.eye(2, dtype=torch.int64))
    assert confusion.matrix.tolist() == [[2, 0], [1, 2]]


def test_adding_leaves_the_parts_alone():
    one, two = filled([[1, 0], [0, 0]]), filled([[0, 2], [0, 0]])
    assert (one + two).matrix.tolist() == [[1, 2], [0, 0]]
    assert one.matrix.tolist() == [[1, 0], [0, 0]]
    assert two.matrix.tolist() == [[0, 2], [0, 0]]


def refused(message: str):
    return pytest.raises(InputError, match=message)


def test_labels_out_of_range():
    confusion = Confusion(3)
    good = np.zeros(4, dtype=np.uint8)
    with refused(r"truth holds labels that are not classes: 3, 11\. Allowed: 0 to 2 and 255"):
        confusion.add(np.array([0, 11, 3, 255], dtype=np.uint8), good)
    with refused(r"prediction holds labels that are not classes: 255\. Allowed: 0 to 2\."):
        confusion.add(good, np.array([0, 1, 2, 255], dtype=np.uint8))
    with refused(r"truth holds labels that are not classes: -1\."):
        confusion.add(np.array([0, 0, 0, -1]), good)
    assert confusion.pixels == 0


def test_wrong_shapes_and_types():
    confusion = Confusion(2)
    with refused(r"Truth has the shape \(2, 2\), the prediction \(1, 2, 2\)"):
        confusion.add(np.zeros((2, 2), dtype=int), np.zeros((1, 2, 2), dtype=int))
    with refused("prediction must hold integers, not float32: pass class ids"):
        confusion.add(torch.zeros(2, dtype=torch.uint8), torch.zeros(2))
    with refused(r"shape \(3, 3\) to one of shape \(2, 2\)"):
        confusion.add_matrix(np.eye(3, dtype=int))
    with refused("holds pixel counts, but this one has negatives"):
        confusion.add_matrix([[1, 0], [0, -1]])
    with refused("matrix must hold integers, not float64"):
        confusion.add_matrix([[0.5, 0], [0, 0]])
    assert confusion.pixels == 0


def test_wrong_classes():
    with refused("needs 1 to 255 classes, not 0"):
        Confusion([])
    with refused("needs 1 to 255 classes, not 256"):
        Confusion(256)
    with refused("appear twice: car, sky"):
        Confusion(["sky", "car", "car", "sky", "road"])
    with refused(r"different classes: \[a, b\] and \[a, c\]"):
        Confusion(["a", "b"]) + Confusion(["a", "c"])


def test_table_shows_percent_and_names_as_they_are():
    confusion = filled([[3, 1, 0], [0, 4, 0], [0, 0, 0]], ["[bold]sky", "road", "car"])
    stream = io.StringIO()
    Console(file=stream, width=100).print(confusion.table())
    rows = {
        line.split()[1]: line.split()[3::2]
        for line in stream.getvalue().splitlines()[4:-1]
        if len(line.split()) > 8
    }
    assert rows["[bold]sky"] == ["50.00", "75.00", "85.71", "75.00", "100.00", "100.00", "0.00"]
    assert rows["car"] == ["0.00", "-", "-", "-", "-", "100.00", "0.00"]
    assert "77.50" in stream.getvalue()
