"""Every op, primitive or fused, has every property: the rows of the registry, times these tests, times the devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calling import arguments, gradients, ops_of, outputs_of
from tests.helpers import assert_close, host
from tests.registry import MODULES, Row
from tests.registry_fused import ROWS
from tests.strategies import non_contiguous
from tinykron import ops, shapes
from tinykron.backend import to_device
from tinykron.errors import TinykronError
from tinykron.gradcheck import gradcheck
from tinykron.tensor import Tensor, no_grad

GRADED = [row for row in ROWS if row.step]
FEWER = settings(max_examples=settings().max_examples // 3)  # the rows are many
DEFINED_AT_ZERO = [row for row in ROWS if row.zero_size is not None]


def every(rows: list[Row]) -> Any:
    return pytest.mark.parametrize("row", rows, ids=str)


def close32(row: Row, actual: Any, expected: Any) -> None:
    wanted = np.asarray(host(expected))
    scale = float(np.abs(wanted).max(initial=1.0)) if wanted.dtype.kind == "f" else 1.0
    wanted = wanted.astype(np.float32) if wanted.dtype == np.float64 else wanted
    assert_close(actual, wanted, rtol=row.rtol32, atol=row.rtol32 * scale)


@every(ROWS)
@FEWER
@given(data=st.data())
def test_value_shape_and_dtype(row: Row, device: str, data: st.DataObject) -> None:
    case = data.draw(row.cases)
    expected = outputs_of(row.reference(*case.inputs, **case.options))
    for dtype in (np.float64, np.float32):
        with no_grad():
            outputs = outputs_of(row.apply(*arguments(row, case, dtype), **case.options))
        for output, wanted in zip(outputs, expected, strict=True):
            assert output.device == device
            if dtype == np.float64:
                assert_close(output, np.asarray(wanted), rtol=1e-10, atol=1e-11)
            else:
                close32(row, output, wanted)


@every(GRADED)
@FEWER
@given(data=st.data())
def test_gradient(row: Row, device: str, data: st.DataObject) -> None:
    case = data.draw(row.cases)
    graded = row.differentiable(case)
    args = arguments(row, case, np.float64)

    def function(*tensors: Tensor) -> Any:
        filled = list(args)
        for i, tensor in zip(graded, tensors, strict=True):
            filled[i] = tensor
        return row.apply(*filled, **case.options)

    gradcheck(function, *[args[i].data for i in graded], method=row.step)


@every(GRADED)
@FEWER
@given(data=st.data())
def test_float32_gradient_keeps_shape_and_dtype(row: Row, device: str, data: st.DataObject) -> None:
    case = data.draw(row.cases)
    double = gradients(row, case, arguments(row, case, np.float64))
    for found, wanted, i in zip(
        gradients(row, case, arguments(row, case, np.float32)), double, row.differentiable(case), strict=True
    ):
        assert found.shape == case.inputs[i].shape
        assert found.dtype == np.float32
        close32(row, found, wanted)


@every(ROWS)
@FEWER
@given(data=st.data())
def test_inputs_are_not_mutated(row: Row, device: str, data: st.DataObject) -> None:
    case = data.draw(row.cases)
    args = arguments(row, case, np.float64)
    if row.step:
        gradients(row, case, args)
    else:
        row.apply(*args, **case.options)
    for arg, original in zip(args, case.inputs, strict=True):
        assert_close(arg, original, rtol=0, atol=0)


@every(ROWS)
@FEWER
@given(data=st.data())
def test_layout_does_not_matter(row: Row, device: str, data: st.DataObject) -> None:
    case = data.draw(row.cases)
    which = data.draw(st.integers(0, 2))
    plain = arguments(row, case, np.float64)
    strided = arguments(row, case, np.float64, lambda array: (views := non_contiguous(array))[which % len(views)])
    found, wanted = (outputs_of(row.apply(*args, **case.options)) for args in (strided, plain))
    for output, expected in zip(found, wanted, strict=True):
        assert_close(output, expected)
    if row.step:
        for grad, expected in zip(gradients(row, case, strided), gradients(row, case, plain), strict=True):
            assert_close(grad, expected)


@every(DEFINED_AT_ZERO)
@FEWER
@given(data=st.data())
def test_zero_size(row: Row, device: str, data: st.DataObject) -> None:
    assert row.zero_size is not None
    case = data.draw(row.zero_size)
    args = arguments(row, case, np.float32)
    expected = outputs_of(row.reference(*case.inputs, **case.options))
    for output, wanted in zip(outputs_of(row.apply(*args, **case.options)), expected, strict=True):
        close32(row, output, wanted)
    if row.step:
        for grad, i in zip(gradients(row, case, args), row.differentiable(case), strict=True):
            assert grad.shape == case.inputs[i].shape
            assert grad.dtype == np.float32
            assert not host(grad).any() or case.inputs[i].size  # nothing came in, so nothing can flow back


def test_every_op_has_a_row() -> None:
    assert {row.op for row in ROWS} == set().union(*map(ops_of, MODULES))


# What the table cannot say ------------------------------------------------------------------------------------------


def test_equal_maxima_share_the_gradient(device: str) -> None:
    x = Tensor(np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], np.float32), requires_grad=True)
    x.max(axis=1).sum().backward()
    assert_close(x.grad, np.array([[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3]], np.float32))


def test_logsumexp_does_not_overflow(device: str) -> None:
    x = Tensor(np.array([1000.0, 1000.0], np.float32), requires_grad=True)
    out = x.logsumexp()
    out.backward()
    assert_close(out, 1000.0 + np.log(2.0))
    assert_close(x.grad, np.array([0.5, 0.5], np.float32), rtol=1e-4)  # float32 near 1000 has steps of 6e-5


def test_whole_powers_of_negative_numbers_and_zero(device: str) -> None:
    for exponent in (1, 2, 3, 4):
        x = Tensor(np.array([-2.0, 0.0], np.float32), requires_grad=True)
        (x**exponent).sum().backward()
        slope_at_0 = 1.0 if exponent == 1 else 0.0
        assert_close(x.grad, np.array([exponent * (-2.0) ** (exponent - 1), slope_at_0], np.float32))


@pytest.mark.parametrize(
    "index",
    [[2, 0, 2], (slice(None), [1, 1, 1]), ([0, 0, 2], [1, 1, 0]), ([0, 0], None), ([[2, 2], [0, 2]], slice(1, 2))],
)
def test_repeated_indices_accumulate(device: str, index: Any) -> None:
    x = Tensor(np.zeros((3, 2)), requires_grad=True)
    out = x[index]
    seed = np.arange(1.0, out.size + 1).reshape(out.shape)
    out.backward(to_device(seed))
    expected = np.zeros((3, 2))
    np.add.at(expected, index, seed)
    assert_close(x.grad, expected)
    gradcheck(lambda x: x[index], x)


def test_repeated_ids_accumulate(device: str) -> None:
    table = Tensor(np.zeros((3, 2), np.float32), requires_grad=True)
    rows = shapes.take_rows(table, to_device(np.array([[2, 0], [2, 2]])))
    rows.backward(to_device(np.ones((2, 2, 2), np.float32)))
    assert_close(table.grad, np.array([[1, 1], [0, 0], [3, 3]], np.float32))


def test_an_index_may_be_a_tensor_a_list_or_an_array_of_the_host(device: str) -> None:
    x = Tensor(np.arange(6, dtype=np.float32).reshape(3, 2))
    for index in ([2, 0, 2], np.array([2, 0, 2]), Tensor([2, 0, 2]), to_device(np.array([2, 0, 2]))):
        assert_close(x[index], np.array([[4, 5], [0, 1], [4, 5]], np.float32))
    assert_close(x[x > 2.0], np.array([3, 4, 5], np.float32))


def test_operators_and_methods_are_the_ops(device: str) -> None:
    x, y = Tensor(np.array([[1.0, 2.0]], np.float32)), Tensor(np.array([[3.0], [4.0]], np.float32))
    pairs = [
        (x + y, ops.add(x, y)),
        (x - y, ops.subtract(x, y)),
        (x * y, ops.multiply(x, y)),
        (x / y, ops.divide(x, y)),
        (x**y, ops.power(x, y)),
        (x @ y, ops.matmul(x, y)),
        (-x, ops.negative(x)),
        (x == y, ops.equal(x, y)),
        (x != y, ops.not_equal(x, y)),
        (x < y, ops.less(x, y)),
        (x <= y, ops.less_equal(x, y)),
        (x > y, ops.greater(x, y)),
        (x >= y, ops.greater_equal(x, y)),
        (x.exp(), ops.exp(x)),
        (x.log(), ops.log(x)),
        (x.sqrt(), ops.sqrt(x)),
        (x.tanh(), ops.tanh(x)),
        (x.erf(), ops.erf(x)),
        (x.sum(1, True), ops.sum(x, 1, True)),
        (x.mean(1), ops.mean(x, 1)),
        (x.max(1), ops.max(x, 1)),
        (x.logsumexp(1), ops.logsumexp(x, 1)),
        (x.reshape(2, -1), shapes.reshape(x, (2, -1))),
        (x.transpose(1, 0), shapes.transpose(x, (1, 0))),
        (x.swapaxes(0, 1), shapes.swapaxes(x, 0, 1)),
        (x.T, shapes.transpose(x)),
        (x[0], shapes.getitem(x, 0)),
    ]
    for found, wanted in pairs:
        assert_close(found, wanted, rtol=0, atol=0)


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: x + Tensor(np.zeros(2, np.float32)), r"Add: .*float32 \(2, 3\), float32 \(2,\)"),
        (lambda x: x @ x, "MatMul: "),
        (lambda x: x.reshape(4, 2), "Reshape: "),
        (lambda x: x.transpose(0, 0), "Transpose: "),
        (lambda x: x.sum(axis=2), "Sum: .*axis 2"),
        (lambda x: x.max(axis=2), "Max: .*axis 2"),
        (lambda x: x[3], "GetItem: .*index 3"),
        (lambda x: x[:, np.array([3])], "index 3 is out of bounds"),
        (lambda x: x[np.array([0, -3])], "index -3 is out of bounds"),
        (lambda x: shapes.split(x, 2, axis=1), "split: axis 1 of length 3 has no 2 equal pieces"),
        (lambda x: shapes.split(x, 0), "split: axis 0 of length 2 has no 0 equal pieces"),
        (lambda x: shapes.split(x, [1, 1], axis=1), r"Split: lengths \[1, 1\] do not add up to the 3 of axis 1"),
        (lambda x: shapes.pad(x, [(1, 1)]), "pad: 1 pairs of widths for 2 axes"),
        (lambda x: shapes.concatenate([x, x.T]), "Concatenate: "),
        (lambda x: shapes.stack([x, x.T]), "Stack: "),
        (lambda x: shapes.broadcast_to(x, (3, 2)), "BroadcastTo: "),
        (lambda x: ops.exp(2.0), "Exp: expected a Tensor or an array, found only Python numbers"),
        (lambda x: x + "text", "Add: expected an array of .*, found str"),
    ],
)
def test_bad_input_is_named(device: str, call: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises((TinykronError, ValueError, IndexError), match=message):
        call(Tensor(X))
