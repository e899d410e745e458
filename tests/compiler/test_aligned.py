from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from safetensors import safe_open
from safetensors.torch import load_file

from eecompile.compiler.aligned import LARGE, LINE, PAGE, write_safetensors

TYPES = [np.float32, np.float16, np.int64, np.int8, np.uint8, np.bool_, np.float64]


@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 40), max_size=3)), max_size=8
    )
)
def test_safetensors_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[type, list[int]]]
) -> None:
    draws = np.random.default_rng(0)
    arrays = {
        f"t{index}": (draws.standard_normal(shape) * 10).astype(kind)
        for index, (kind, shape) in enumerate(shapes)
    }
    path = tmp_path_factory.mktemp("aligned") / "w.safetensors"
    tensors = {name: ir.tensor(array, name=name) for name, array in arrays.items()}
    places = write_safetensors(path, tensors)
    data = path.read_bytes()
    with safe_open(path, "numpy") as file:
        for name, array in arrays.items():
            found = file.get_tensor(name)
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array)
            place = places[name]
            assert place.offset % LINE == 0
            assert data[place.offset : place.offset + place.length] == array.tobytes()


def test_large_tensors_begin_on_a_page_and_cost_little(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    arrays = {str(i): draws.standard_normal(LARGE // 4 + i).astype(np.float32) for i in range(3)}
    arrays["small"] = np.ones(3, np.float32)
    path = tmp_path / "w.safetensors"
    places = write_safetensors(path, {n: ir.tensor(a, name=n) for n, a in arrays.items()})
    assert all(places[name].offset % PAGE == 0 for name in "012")
    assert path.stat().st_size < sum(a.nbytes for a in arrays.values()) + 5 * PAGE
    mapped = np.memmap(path, np.float32, "r", places["1"].offset, (LARGE // 4 + 1,))
    np.testing.assert_array_equal(mapped, arrays["1"])


def test_every_float_that_checkpoints_use_is_kept(tmp_path: Path) -> None:
    array = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16)
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"b": ir.tensor(array, name="b")})
    (found,) = load_file(path).values()
    assert str(found.dtype) == "torch.bfloat16"
    np.testing.assert_array_equal(found.float().numpy(), array.astype(np.float32))


def test_types_that_safetensors_does_not_know_are_written_as_bytes(tmp_path: Path) -> None:
    array = np.array([1, -2, 3, 4], ml_dtypes.int4)
    tensor = ir.tensor(array, dtype=ir.DataType.INT4, name="q")
    path = tmp_path / "w.safetensors"
    places = write_safetensors(path, {"q": tensor})
    with safe_open(path, "numpy") as file:
        found = file.get_tensor("q")
    assert found.dtype == np.uint8
    assert found.tobytes() == tensor.tobytes()
    assert places["q"].length == 2
