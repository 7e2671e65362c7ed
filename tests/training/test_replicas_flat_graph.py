"""A traced function does what the function does, whatever was made lighter in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from batchscope.seeding import isolated
from batchscope.training.flat_graph import flat_graph
from batchscope.training.stacked_attention import batched_attention


def written_in_part(a: Tensor, b: Tensor) -> Tensor:
    """A matrix whose first row is changed through a view of it, after another value was made of it."""
    c = a @ b
    c[0].add_(1)
    return c


# Steps of a random program on 4×4 matrices: each takes two of the values so far.
STEPS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: a + b,
    lambda a, b: a - 2 * b,
    lambda a, b: a * b,
    lambda a, b: torch.relu(a),
    lambda a, b: torch.tanh(a),
    lambda a, b: a @ b,
    lambda a, b: a.t(),
    lambda a, b: a.t().t() * 1,
    lambda a, b: a.reshape(2, 8).reshape(4, 4),
    lambda a, b: a.sum(0, keepdim=True).expand(4, 4),
    lambda a, b: a.clone().add_(b),
    lambda a, b: a.contiguous(),
    written_in_part,
    lambda a, b: torch.zeros_like(a) + torch.ones_like(b),
    lambda a, b: torch.where(a > b, a, torch.tensor(0.5, dtype=a.dtype)),
    lambda a, b: a.view(1, 4, 4).bmm(b.view(1, 4, 4))[0] if b.is_contiguous() and a.is_contiguous() else a,
    lambda a, b: (a[None] @ b[None] + a[:1][None])[0],
    lambda a, b: a[1:3].repeat(2, 1),
    lambda a, b: torch.cat([a[:2], b[2:]]),
]


def program(steps: list[tuple[int, int, int]]) -> Callable[..., list[Tensor]]:
    def function(*inputs: Tensor) -> list[Tensor]:
        values = list(inputs)
        for step, first, second in steps:
            values.append(STEPS[step](values[first % len(values)], values[second % len(values)]))
        return [values[-1].sum(), *values[-3:], values[-1]]

    return function


@given(
    st.lists(
        st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 20), st.integers(0, 20)), min_size=3, max_size=12
    ),
    st.integers(0, 2**20),
)
@settings(max_examples=40)
def test_a_random_program_gives_what_it_gives(steps: list[tuple[int, int, int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    function = program(steps)
    flat = flat_graph(function, [torch.ones_like(tensor) for tensor in inputs], given=4)
    expected = function(*inputs)
    block = torch.zeros(4, 50, dtype=torch.float64)  # rows that are not next to each other
    into = [block[i, :16].view(4, 4) for i in range(4)]
    before = [tensor.clone() for tensor in inputs]
    for _ in range(2):  # constants and given memory stay good
        (result,) = flat(*inputs, *into)
        for found, right in zip([result, *into], expected, strict=True):
            assert torch.allclose(found, right, rtol=1e-12, atol=1e-12)
    assert all(map(torch.equal, inputs, before))


def operations(flat: Any) -> list[str]:
    return [str(node.target) for node in flat.__self__.graph.nodes if node.op == "call_function"]


def test_what_changes_nothing_is_left_out() -> None:
    flat = flat_graph(lambda x: [(x.t().t() * 1).view(3, 4).detach().clone() + 2], [torch.ones(3, 4)])
    assert operations(flat) == ["aten.add.Tensor"]


def test_what_depends_on_no_input_is_computed_once() -> None:
    flat = flat_graph(lambda x: [x + torch.ones_like(x) * torch.arange(4).exp().sum()], [torch.zeros(4)])
    assert operations(flat) == ["aten.add.Tensor"]
    assert torch.equal(flat(torch.ones(4))[0], torch.ones(4) + torch.arange(4).exp().sum())


def test_equal_operations_are_done_once_but_for_those_with_chance_in_them() -> None:
    def function(x: Tensor) -> list[Tensor]:
        return [torch.exp(x) + torch.exp(x), F.dropout(x, 0.5), F.dropout(x, 0.5)]

    flat = flat_graph(function, [torch.ones(1000)])
    assert operations(flat).count("aten.exp.default") == 1
    with isolated(1):
        found = flat(torch.ones(1000))
    with isolated(1):
        expected = function(torch.ones(1000))
    assert all(map(torch.equal, found, expected))
    assert not torch.equal(found[1], found[2])


def test_random_numbers_are_drawn_as_often_as_they_were() -> None:
    flat = flat_graph(lambda x: [torch.rand_like(x) - torch.rand_like(x)], [torch.ones(100)])
    assert bool((flat(torch.ones(100))[0] != 0).any())


def test_nothing_is_overwritten_that_is_read_another_way_round() -> None:
    def function(x: Tensor) -> list[Tensor]:
        product = x @ x
        return [product + product.t()]

    x = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(flat_graph(function, [torch.ones(40, 40)])(x)[0], function(x)[0])


def test_gradients_of_products_are_written_where_they_belong() -> None:
    def loss(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
        return torch.relu(x @ w.t() + b).square().sum()

    function = vmap(grad(loss, argnums=(0, 1)))
    w, b, x = torch.randn(3, 5, 4), torch.randn(3, 5), torch.randn(3, 2, 4)
    flat = flat_graph(lambda *t: [t[0].sum(), *function(*t)], [w, b, x], given=2)
    block = torch.zeros(3, 40)
    into = [block[:, :20].view(3, 5, 4), block[:, 24:29]]
    flat(w, b, x, *into)
    for found, right in zip(into, function(w, b, x), strict=True):
        assert torch.allclose(found, right, rtol=1e-6)
    names = operations(flat)
    assert "aten.bmm.out" in names
    assert "aten.baddbmm.default" in names  # the bias
    assert "aten.copy_.default" not in names


def test_pooling_in_channels_last_memory_is_the_same_to_the_last_bit() -> None:
    x = torch.randint(3, (5, 3, 8, 8)).float()  # many ties, and the first of them must win
    x[0, 0, 0, 0] = float("nan")

    def function(x: Tensor) -> list[Tensor]:
        return [*F.max_pool2d(x, 2, return_indices=True), F.max_pool2d(x, 3, stride=2, padding=1)]

    flat = flat_graph(function, [torch.zeros(5, 3, 8, 8)])
    assert sum("channels_last" in name for name in operations(flat)) == 2
    for found, right in zip(flat(x), function(x), strict=True):
        assert torch.equal(torch.nan_to_num(found.double(), 7.0), torch.nan_to_num(right.double(), 7.0))
        assert found.stride() == right.stride()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_what_a_function_writes_into_its_inputs_is_written_each_time(momentum: float | None) -> None:
    norm = nn.BatchNorm1d(4, momentum=momentum)
    names = ["running_mean", "running_var", "num_batches_tracked"]

    def function(*tensors: Tensor) -> list[Tensor]:
        return [functional_call(norm, dict(zip(names, tensors, strict=False)), (tensors[-1],)).square().sum()]

    inputs = [torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(3, dtype=torch.int64), torch.randn(3, 8, 4)]
    if momentum is None:  # a factor that depends on the count, which vmap cannot read as a number
        with pytest.raises(RuntimeError):
            flat_graph(vmap(function), [tensor.clone() for tensor in inputs])
        return
    flat = flat_graph(vmap(function), [tensor.clone() for tensor in inputs])
    for k in range(2):
        assert torch.allclose(flat(*inputs)[0], vmap(function)(*[t.clone() for t in inputs])[0])
        assert inputs[2].tolist() == [k + 1] * 3
    expected = nn.BatchNorm1d(4, momentum=momentum)
    for _ in range(2):
        expected(inputs[3][1])
    assert torch.allclose(inputs[0][1], expected.running_mean)  # type: ignore[arg-type]
    assert torch.allclose(inputs[1][1], expected.running_var)  # type: ignore[arg-type]


# Attention


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_batched_attention_is_attention(causal: bool, scale: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, 4, 7, 8, generator=generator, dtype=torch.float64) for _ in range(3))

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).square().sum()

    gradients = grad(loss, argnums=(0, 1, 2))
    with batched_attention():
        found = vmap(gradients)(q, k, v)
        shared = vmap(gradients, in_dims=(0, None, 1))(q, k[0], v.transpose(0, 1))
    for i in range(3):
        for part, right in zip(found, gradients(q[i], k[i], v[i]), strict=True):
            assert torch.allclose(part[i], right, rtol=1e-9, atol=1e-12)
        for part, right in zip(shared, gradients(q[i], k[0], v[i]), strict=True):
            assert torch.allclose(part[i], right, rtol=1e-9, atol=1e-12)


def test_attention_with_a_mask_or_another_head_size_is_attention_too() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, 2, 4, 7, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    v = torch.randn(3, 2, 4, 7, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(7, 7, generator=generator) > 0.3
    mask[:, 0] = True
    for masked in (mask, None):
        with batched_attention():
            found = vmap(lambda q, k, v, m=masked: F.scaled_dot_product_attention(q, k, v, attn_mask=m))(q, k, v)
        right = F.scaled_dot_product_attention(q, k, v, attn_mask=masked)
        assert torch.allclose(found, right, rtol=1e-9, atol=1e-12)
