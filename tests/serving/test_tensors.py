"""Tensors in JSON become arrays of the type that they claim."""

from __future__ import annotations

import json

import numpy as np
import pytest

from serving.service.problems import Problem
from serving.service.tensors import _from_json


@pytest.mark.parametrize(
    ("kind", "data", "dtype"),
    [
        ("UINT8", [0, 7, 255], "uint8"),
        ("UINT8", [[[0], [7]], [[255], [1]]], "uint8"),
        ("INT64", [-1, 2**40], "int64"),
        ("FP32", [0.5, None, 1e300], "float64"),
        ("BOOL", [True, False], "bool"),
    ],
    ids=["bytes", "nested", "whole", "real", "flags"],
)
def test_values_as_they_were_sent(kind: str, data: list[object], dtype: str) -> None:
    flat = json.loads(f"[{json.dumps(data).replace('[', '').replace(']', '')}]")
    found = _from_json(data, kind, len(flat), "x")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array(flat, dtype))


@pytest.mark.parametrize(("kind", "value"), [("UINT8", 256), ("UINT8", -1), ("INT64", 2**63), ("UINT64", -1)])
def test_a_number_beyond_its_type_is_refused(kind: str, value: int) -> None:
    with pytest.raises(Problem) as caught:
        _from_json([1, value], kind, 2, "x")
    assert (caught.value.status, caught.value.code) == (422, "bad_tensor")
    assert caught.value.detail == f"tensor x: its data is beyond the range of {kind}"
