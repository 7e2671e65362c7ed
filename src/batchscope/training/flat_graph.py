"""A function of tensors traced once into a flat list of operations, made lighter, and called many times.

What a training step costs beside its arithmetic is autograd's bookkeeping and, in a batched pass, functorch's: both are
paid at every call. Traced with ``make_fx`` through ``vmap`` and ``grad``, the step is a list of plain operations that
needs neither. The list is then made lighter, by changes that leave the values as they are:

* what is a view of the same shape, a product with one or a copy of the same layout is left out;
* equal operations are done once, and what depends on no input is computed once and kept;
* a bias is added by the matrix product that it follows;
* an elementwise operation writes into its argument where nobody needs that any more;
* max pooling on a CPU runs in channels-last memory, where torch's kernel is vectorised (4 times as fast here, with the
  same values and indices);
* results that are wanted in given memory, as gradients are, are written there by the operation that makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten

Flat = Callable[..., "tuple[Tensor, ...]"]

_SHAPED = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.reshape.default)
_COPIES = (aten.clone.default, aten._to_copy.default)
# What makes a tensor out of nothing but the shape and type of another.
_LIKE = (aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default)
_IN_PLACE: dict[Any, Any] = {
    aten.add.Tensor: aten.add_.Tensor,
    aten.sub.Tensor: aten.sub_.Tensor,
    aten.mul.Tensor: aten.mul_.Tensor,
    aten.mul.Scalar: aten.mul_.Scalar,
    aten.div.Tensor: aten.div_.Tensor,
    aten.relu.default: aten.relu_.default,
    aten.tanh.default: aten.tanh_.default,
    aten.sigmoid.default: aten.sigmoid_.default,
    aten.neg.default: aten.neg_.default,
    aten.exp.default: aten.exp_.default,
}
_BATCH_NORMS = (aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default)
_WRITING_PRODUCTS: dict[Any, Any] = {aten.bmm.default: aten.bmm.out, aten.mm.default: aten.mm.out}
_MOST_CONSTANT_BYTES = 8 << 20


def flat_graph(function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], *, given: int = 0) -> Flat:
    """Trace a function of tensors.

    Args:
        function: Called with ``inputs``; returns a sequence of tensors.
        inputs: Tensors of the shapes, layouts and types to come; their values do not matter, and what the function
            writes into them is written.
        given: How many of the results, the last ones, are to be written into memory that the caller gives.

    Returns:
        A function of the inputs, followed by the memory for those results; it returns the others.

    Raises:
        Exception: Whatever tracing raises where the function cannot be traced.

    Examples:
        >>> square = flat_graph(lambda x: ((x * x).sum(), x * x), [torch.ones(3)], given=1)
        >>> into = torch.empty(3)
        >>> square(torch.tensor([1.0, 2.0, 3.0]), into), into
        ((tensor(14.),), tensor([1., 4., 9.]))
    """
    # With a mode of fake tensors at hand; else torch makes one for every value traced, which takes as long again.
    with torch.no_grad(), tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        module = make_fx(lambda *tensors: list(function(*tensors)))(*inputs)
    graph = _Graph(module, on_cpu=all(tensor.device.type == "cpu" for tensor in inputs))
    graph.drop_idle()
    graph.do_once()
    graph.add_biases_in_products()
    graph.pool_in_channels_last()
    graph.write_into_given_memory(given)
    graph.work_in_place()
    module.graph.lint()
    module.recompile()
    forward: Flat = module.forward
    return forward


class _Graph:
    """A traced graph while it is being changed."""

    def __init__(self, module: fx.GraphModule, *, on_cpu: bool) -> None:
        self.module, self.graph, self.on_cpu = module, module.graph, on_cpu
        self.placeholders = [node for node in self.graph.nodes if node.op == "placeholder"]
        self.output = next(node for node in self.graph.nodes if node.op == "output")
        self.constants: set[fx.Node] = set()
        self.written = {root(target) for node in self.graph.nodes for target in _written_by(node)}

    # Changes, each of which leaves the values as they are

    def drop_idle(self) -> None:
        """Leave out what changes nothing: views of the same shape, double transposes, factors of one, plain copies."""
        for node in list(self.graph.nodes):
            same = self._same_as(node)
            if same is not None:
                node.replace_all_uses_with(same)
                self.graph.erase_node(node)
        self._eliminate_dead_code()

    def do_once(self) -> None:
        """Do equal operations once, and compute what depends on no input now."""
        done: dict[Any, fx.Node] = {}
        for node in list(self.graph.nodes):
            if node.op != "call_function" or not self._is_repeatable(node):
                continue
            if self._is_constant(node):
                self._keep_value(node)
                continue
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
            if key in done:
                node.replace_all_uses_with(done[key])
                self.graph.erase_node(node)
            else:
                done[key] = node
        self._eliminate_dead_code()

    def add_biases_in_products(self) -> None:
        """``bias + x·W``, the product used for nothing else, becomes one ``baddbmm``."""
        for node in list(self.graph.nodes):
            if node.target is not aten.add.Tensor or node.kwargs or len(node.args) != 2:
                continue
            for bias, product in (node.args, node.args[::-1]):
                if not isinstance(bias, fx.Node) or not isinstance(product, fx.Node):
                    continue
                wide, narrow = _value(product), _value(bias)
                if (
                    product.target is aten.bmm.default
                    and len(product.users) == 1
                    and narrow.dim() == 3
                    and narrow.dtype == wide.dtype
                    and narrow.shape[0] == wide.shape[0]
                    and narrow.shape[1:] == (1, wide.shape[2])
                ):
                    self._replace(node, aten.baddbmm.default, (bias, *product.args))
                    self.graph.erase_node(product)
                    break

    def pool_in_channels_last(self) -> None:
        """Let max pooling on a CPU see its channels last, which its kernel is vectorised for."""
        if not self.on_cpu:
            return
        for node in list(self.graph.nodes):
            if node.target is aten.max_pool2d_with_indices.default and _value(node.args[0]).is_contiguous():
                self._replace(node, _max_pool_in_channels_last, node.args, node.kwargs)

    def write_into_given_memory(self, given: int) -> None:
        """Give the graph an argument for each of its last results, and let the operation that makes it write there."""
        results: list[Any] = list(self.output.args[0])
        returned, written = results[: len(results) - given], results[len(results) - given :]
        last = self.placeholders[-1]
        for i, made in enumerate(written):
            with self.graph.inserting_after(last):
                last = self.graph.placeholder(f"into_{i}")
            self.placeholders.append(last)
            self._write(made, last, final=results.count(made) == 1)
        self.output.args = (tuple(returned),)
        self._eliminate_dead_code()

    def work_in_place(self) -> None:
        """Let an elementwise operation overwrite an argument that it is the last to need."""
        last_use = self._last_uses()
        for place, node in enumerate(self.graph.nodes):
            target = _IN_PLACE.get(node.target)
            if target is None or "out" in node.kwargs:
                continue
            argument = node.args[0]
            if not isinstance(argument, fx.Node) or not self._is_own(argument) or last_use[root(argument)] != place:
                continue
            others = [other for other in node.all_input_nodes if other is not argument]
            if any(root(other) is root(argument) for other in others):
                continue
            before, after = _value(argument), _value(node)
            if before.shape == after.shape and before.dtype == after.dtype and before.stride() == after.stride():
                node.target = target
                node.meta["in place"] = True
                last_use[root(node)] = max(last_use[root(node)], last_use[node])

    # What they go by

    def _same_as(self, node: fx.Node) -> fx.Node | None:
        """The node whose value this one has too, if there is one."""
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        source, target = node.args[0], node.target
        if not isinstance(node.meta.get("val"), Tensor) or not isinstance(source.meta.get("val"), Tensor):
            return None
        before, after = _value(source), _value(node)
        if target in (aten.detach.default, aten.alias.default):
            return source
        if target in _SHAPED or target is aten.permute.default:
            alike = before.shape == after.shape and before.stride() == after.stride()
            return source if alike else self._transposed_back(node)
        if target in (aten.transpose.int, aten.t.default):
            return self._transposed_back(node)
        if target in (aten.mul.Scalar, aten.mul.Tensor, aten.div.Scalar) and node.args[1] == 1:
            return source if before.dtype == after.dtype and root(source) not in self.written else None
        if target in _COPIES and not {root(source), root(node)} & self.written:
            alike = before.dtype == after.dtype and before.device == after.device
            return source if alike and before.stride() == after.stride() else None
        return None

    def _transposed_back(self, node: fx.Node) -> fx.Node | None:
        source = node.args[0]
        there, back = _swapped(source), _swapped(node)
        return source.args[0] if there is not None and there == back else None  # type: ignore[union-attr, return-value]

    def _is_repeatable(self, node: fx.Node) -> bool:
        """Whether doing it again would give the same: no chance in it, and nothing that is written to."""
        target = node.target
        if not isinstance(target, torch._ops.OpOverload):
            return target.__name__ == "getitem"  # type: ignore[union-attr]
        if torch.Tag.nondeterministic_seeded in target.tags or target._schema.is_mutable:
            return False
        return not {root(node), *map(root, node.all_input_nodes)} & self.written

    def _is_constant(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.numel() * value.element_size() > _MOST_CONSTANT_BYTES:
            return False
        return node.target in _LIKE or all(source in self.constants for source in node.all_input_nodes)

    def _keep_value(self, node: fx.Node) -> None:
        """Put the value in the place of the operation that computes it."""

        def real(source: fx.Node) -> Tensor:
            if source in self.constants:
                return getattr(self.module, str(source.target))  # type: ignore[no-any-return]
            found = _value(source)
            return torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device=found.device)

        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), real)
        operation: Any = node.target
        name = f"constant_{len(self.constants)}"
        self.module.register_buffer(name, operation(*args, **kwargs).clone(), persistent=False)
        with self.graph.inserting_before(node):
            kept = self.graph.get_attr(name)
        kept.meta["val"] = node.meta["val"]
        self.constants.add(kept)
        node.replace_all_uses_with(kept)
        self.graph.erase_node(node)

    def _write(self, made: fx.Node, into: fx.Node, *, final: bool) -> None:
        """Let the value of a node end up in given memory, without a copy where its operation can write there."""
        into.meta["val"] = _value(made)
        if root(made) in self.written or made.op != "call_function":
            with self.graph.inserting_before(self.output):  # after whatever else writes to it
                self.graph.call_function(aten.copy_.default, (into, made))
            return
        summed = made.args[0] if made.target in _SHAPED else made
        with self.graph.inserting_after(made):
            if final and len(made.users) == 1 and made.target in _WRITING_PRODUCTS:
                self.graph.call_function(_WRITING_PRODUCTS[made.target], made.args, {"out": into})
            elif final and isinstance(summed, fx.Node) and _sums_to(summed, made):
                self.graph.call_function(aten.sum.IntList_out, (*summed.args[:2], False), {"out": into})
            else:
                self.graph.call_function(aten.copy_.default, (into, made))

    def _is_own(self, node: fx.Node) -> bool:
        """Whether its memory was made in this call, all of it for this value."""
        base = root(node)
        if base.op != "call_function" or base in self.written or not isinstance(base.meta.get("val"), Tensor):
            return False
        if not isinstance(base.target, torch._ops.OpOverload) or base.target._schema.is_mutable:
            return False
        value = _value(node)
        return all(stride != 0 for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1)

    def _last_uses(self) -> dict[fx.Node, int]:
        """The place of the last node that needs each node's memory."""
        places = {node: place for place, node in enumerate(self.graph.nodes)}
        last = dict(places)
        for node, place in places.items():
            for source in node.all_input_nodes:
                last[source] = max(last[source], place)
                last[root(source)] = max(last[root(source)], place)
        return last

    def _replace(self, node: fx.Node, target: Any, args: Any, kwargs: Any = None) -> None:
        with self.graph.inserting_before(node):
            new = self.graph.call_function(target, args, kwargs or {})
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def _eliminate_dead_code(self) -> None:
        """Drop what nobody uses, except what writes."""
        for node in reversed(self.graph.nodes):
            if node.op in ("call_function", "get_attr") and not node.users and not _written_by(node):
                self.graph.erase_node(node)


def root(node: fx.Node) -> fx.Node:
    """The node whose memory a node's value lies in."""
    while node.op == "call_function":
        target = node.target
        is_view = (
            node.meta.get("in place", False)
            or target in (aten._unsafe_view.default, aten.reshape.default)
            or (not isinstance(target, torch._ops.OpOverload) and target.__name__ == "getitem")  # type: ignore[union-attr]
            or (isinstance(target, torch._ops.OpOverload) and _returns_a_view(target))
        )
        if not is_view or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]
    return node


def _returns_a_view(target: torch._ops.OpOverload[Any, Any]) -> bool:
    return any(result.alias_info is not None for result in target._schema.returns)


def _sums_to(summed: fx.Node, made: fx.Node) -> bool:
    """Whether a node's value is a sum over dimensions of another, wanted for nothing else, these dimensions gone."""
    if summed.target is not aten.sum.dim_IntList or summed.kwargs or not len(made.users) == len(summed.users) == 1:
        return False
    source: Any = summed.args[0]
    dimensions: Any = summed.args[1]
    shape = _value(source).shape
    reduced = {d % len(shape) for d in dimensions}
    return _value(made).shape == tuple(n for d, n in enumerate(shape) if d not in reduced)


def _swapped(node: Any) -> set[int] | None:
    """The two dimensions that a transpose swaps; None where a node is none."""
    if not isinstance(node, fx.Node) or node.target not in (aten.transpose.int, aten.t.default):
        return None
    dimensions = _value(node).dim()
    swapped: Any = node.args[1:] or range(dimensions)
    return {d % dimensions for d in swapped}


def _written_by(node: fx.Node) -> list[fx.Node]:
    """The arguments that an operation writes to."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    if node.target in _BATCH_NORMS:  # whose declarations do not tell of their statistics
        return [argument for argument in node.args[3:5] if isinstance(argument, fx.Node)]
    written = []
    for i, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
            written += [value] if isinstance(value, fx.Node) else []
    return written


def _value(node: Any) -> Tensor:
    """A tensor of the shape, layout and type that a node's value has."""
    value: Tensor = node.meta["val"]
    return value


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, *map(_hashable, value))
    if isinstance(value, dict):
        return tuple(sorted((key, _hashable(item)) for key, item in value.items()))
    # 1, 1.0 and True are equal and not the same.
    return value if isinstance(value, fx.Node) else (type(value).__name__, value)


def _max_pool_in_channels_last(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    pooled, indices = aten.max_pool2d_with_indices.default(
        x.contiguous(memory_format=torch.channels_last), *args, **kwargs
    )
    return pooled.contiguous(), indices.contiguous()
