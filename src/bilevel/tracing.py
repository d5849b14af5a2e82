"""Derivatives recorded once as straight-line code and replayed: no autograd, no module, no graph at run time.

For small problems most of the time of a gradient is bookkeeping. Recording runs a loss and its derivatives once, writes
down the tensor operations (`torch.fx`), leaves out what the result does not need (the gradient itself in a
Hessian-vector product, what occurs twice), makes one operation of a product and the sum that it goes into, computes
what depends on the hyperparameters alone once for all steps, and lets the last matrix products write straight into the
flat vectors of the caller.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from bilevel.problem import Batch, Loss, Problem, gradients, leaves_of, map_batch

aten = torch.ops.aten
_VIEWS = {
    aten.alias.default,
    aten.detach.default,
    aten.expand.default,
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.split_with_sizes.default,
    aten.squeeze.dim,
    aten.t.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.view.default,
    operator.getitem,
}
_CONSTANTS = {aten.ones_like.default, aten.zeros_like.default, aten.full_like.default}
_WITH_SUM = {aten.mm.default: aten.addmm.default, aten.mul.Tensor: aten.addcmul.default}
"""Products, and the operations that add them to something in one go."""
Node = Any
"""A `torch.fx.Node`, whose arguments are declared as one of twenty types."""

_BY_CALLER = {"copy_", "add_", "addmm_", torch.mm}
"""What `_write` puts into a graph for its effect."""


@dataclass(frozen=True)
class TracedProblem(Problem):
    """A problem with recordings of its derivatives; made by `traced`."""

    recorder: Recorder = field(default_factory=lambda: Recorder(), compare=False, repr=False)


def traced(problem: Problem) -> TracedProblem:
    """The same problem, with its derivatives recorded at first use and replayed from then on.

    Up to twice as fast for small networks, after a second or two for recording; one recording for each shape of a
    batch. The losses must be functions of their arguments: what they read besides is remembered as it was, a tensor of
    an enclosing scope as the object, a Python number as its value. A loss whose course, or a shape in it, depends on
    the values of tensors cannot be recorded; it is then differentiated at each call, as without, with a warning.
    """
    return TracedProblem(**{part.name: getattr(problem, part.name) for part in fields(Problem)})


class Unrecordable(RuntimeWarning):
    """A loss could not be recorded; it is differentiated at each call instead."""


class Recorder:
    """Recordings of one problem, by what they compute and by the shapes of their arguments."""

    def __init__(self) -> None:
        self._found: dict[Any, Any] = {}

    def gradient(self, loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> Recording | None:
        """(w, h, batch; g) -> g = ∂L/∂w; None where it cannot be recorded, here and below."""
        found: Recording | None = self._recorded("gradient", params, hyper, batch, partial(_record_gradient, loss))
        return found

    def hyper_gradient(self, loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> Recording | None:
        """(w, h, batch; g) -> g = ∂L/∂h."""
        found: Recording | None = self._recorded("hyper", params, hyper, batch, partial(_record_hyper_gradient, loss))
        return found

    def outer_gradient(self, loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> Recording | None:
        """(w, h, batch; l, g, p) -> l = L, g = ∂L/∂w, p = ∂L/∂h."""
        found: Recording | None = self._recorded("outer", params, hyper, batch, partial(_record_outer, loss))
        return found

    def linear(self, loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> LinearRecording | None:
        """∂L/∂w with products with its Jacobians."""
        found: LinearRecording | None = self._recorded("linear", params, hyper, batch, partial(LinearRecording, loss))
        return found

    def _recorded(
        self, kind: str, params: Tensor, hyper: Tensor, batch: Batch, record: Callable[[Tensor, Tensor, Batch], Any]
    ) -> Any:
        key = (kind, _signature(params), _signature(hyper), _described(batch))
        if key not in self._found:
            try:
                self._found[key] = record(params, hyper, batch)
            except Exception as error:  # whatever a loss does that cannot be recorded, it can still be differentiated
                reason = str(error).split("\n", 1)[0]
                warnings.warn(f"this problem is not recorded: {reason}", Unrecordable, stacklevel=2)
                self._found[key] = None
        return self._found[key]


class Recording:
    """Straight-line code for a function of (w, h, …) that writes flat vectors, or adds to them, and returns the rest.

    results: the outputs of `module` that go into vectors of the caller; the others are returned.
    """

    def __init__(self, module: fx.GraphModule, results: int, accumulate: bool) -> None:
        self._before = _compiled(_hoist(module))
        _write_outputs(module, results, accumulate)
        self._run = _compiled(module)

    def prepare(self, hyper: Tensor) -> list[Tensor]:
        """What depends on the hyperparameters alone."""
        with torch.no_grad():
            return list(self._before(hyper))

    def __call__(self, prepared: list[Tensor], arguments: Sequence[Tensor], to: Sequence[Tensor]) -> list[Tensor]:
        """Run, with results in the flat contiguous vectors `to`."""
        with torch.inference_mode():
            # parameters are a slot of a state, with gaps between seeds; they were recorded without
            rest: list[Tensor] = self._run(arguments[0].contiguous(), *arguments[1:], *prepared, *to)
            return rest


class LinearRecording:
    """The gradient g = ∂L/∂w at one point, and products of vectors with its Jacobians, in three pieces of code.

    forward: (w, h, batch; g) -> g, and returns what products at this point have in common ("kept").
    alone: (w, h, batch; g) -> g by the same operations, with nothing kept.
    products[wanted]: (w, h, batch, v, *kept; to…) -> to += products.
    whole[wanted]: (w, h, batch, v; to…) -> the same without anything kept.
    `wanted` says whether the products with ∂²L/∂w∂w and with ∂²L/∂h∂w are.

    kept_bytes: size of what `forward` returns.
    """

    def __init__(self, loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> None:
        def function(w: Tensor, h: Tensor, *leaves: Tensor) -> list[Tensor]:
            *rest, vector = leaves
            sources = [w.detach().requires_grad_(), h.detach().requires_grad_()]
            value = loss(sources[0], sources[1], _rebuilt(batch, rest))
            (gradient,) = gradients(value, sources[:1], create_graph=True)
            if not gradient.requires_grad:
                return [gradient, *(torch.zeros_like(leaf) for leaf in sources)]
            products = torch.autograd.grad(gradient, sources, vector, allow_unused=True, materialize_grads=True)
            return [gradient, *products]

        # in place of a vector any tensor of its shape will do
        module = _made(function, [params, hyper, *leaves_of(batch), params])
        kept = _kept(module)
        self.kept_bytes: int = sum(node.meta["bytes"] for node in kept)
        self.forward = Recording(_forward(module, kept), 1, accumulate=False)
        self.alone = Recording(_forward(module, []), 1, accumulate=False)
        self.products: dict[tuple[bool, bool], Recording] = {}
        self.whole: dict[tuple[bool, bool], Recording] = {}
        cut = _backward(module, kept)
        for wanted, chosen in (((True, True), [1, 2]), ((True, False), [1]), ((False, True), [2])):
            self.whole[wanted] = Recording(_with_outputs(module, chosen), len(chosen), accumulate=True)
            self.products[wanted] = Recording(_with_outputs(cut, chosen), len(chosen), accumulate=True)


def _record_gradient(loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> Recording:
    def function(w: Tensor, h: Tensor, *leaves: Tensor) -> list[Tensor]:
        w = w.detach().requires_grad_()
        return [*gradients(loss(w, h, _rebuilt(batch, leaves)), [w])]

    return Recording(_made(function, [params, hyper, *leaves_of(batch)]), 1, accumulate=False)


def _record_hyper_gradient(loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> Recording:
    def function(w: Tensor, h: Tensor, *leaves: Tensor) -> list[Tensor]:
        h = h.detach().requires_grad_()
        return [*gradients(loss(w, h, _rebuilt(batch, leaves)), [h])]

    return Recording(_made(function, [params, hyper, *leaves_of(batch)]), 1, accumulate=False)


def _record_outer(loss: Loss, params: Tensor, hyper: Tensor, batch: Batch) -> Recording:
    def function(w: Tensor, h: Tensor, *leaves: Tensor) -> list[Tensor]:
        sources = [w.detach().requires_grad_(), h.detach().requires_grad_()]
        value = loss(sources[0], sources[1], _rebuilt(batch, leaves))
        return [value.detach().reshape(-1), *gradients(value, sources)]

    return Recording(_made(function, [params, hyper, *leaves_of(batch)]), 3, accumulate=False)


def _rebuilt(batch: Batch, leaves: Iterable[Tensor]) -> Batch:
    """The batch with other tensors in the places of its own."""
    waiting = iter(leaves)
    return map_batch(lambda _: next(waiting), batch)


def _described(batch: Batch) -> Any:
    """Structure of a batch, and what a recording of its tensors depends on."""
    if isinstance(batch, Tensor):
        return _signature(batch)
    if isinstance(batch, dict):
        return tuple([(key, _described(part)) for key, part in batch.items()])
    return None if batch is None else tuple([_described(part) for part in batch])


def _signature(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


# --- making a graph


def _made(function: Callable[..., list[Tensor]], arguments: list[Tensor]) -> fx.GraphModule:
    """The operations of a function, simplified; a node's meta says its `shape`, `bytes` and whether it is `zero`."""
    from torch.fx.experimental.proxy_tensor import make_fx

    copies = [argument.detach().clone() for argument in arguments]
    with torch.enable_grad():
        # tensors without values: a loss that asks for one is noticed, and not recorded together with the answer
        module = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*copies)
    _refuse_varying(module)
    with torch.no_grad():
        _describe(module, copies)
    _simplify(module)
    return module


def _refuse_varying(module: fx.GraphModule) -> None:
    """ValueError where a number or a shape follows from the values of tensors."""
    for node in _nodes(module.graph):
        for value in tree_leaves(node.meta.get("val")):
            sizes = value.shape if isinstance(value, Tensor) else (value,)
            if any(isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool) for size in sizes):
                raise ValueError(f"{node.target} depends on the values of tensors")


def _describe(module: fx.GraphModule, arguments: list[Tensor]) -> None:
    class Watching(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                size = value.numel() * value.element_size()
                n.meta.update(shape=value.shape, dtype=value.dtype, bytes=size, zero=False)
                if n.target in _CONSTANTS:
                    n.meta.update(value=value, zero=not value.any())
            return value

    Watching(module).run(*arguments)


def _simplify(module: fx.GraphModule) -> None:
    graph = module.graph
    written = _written(graph)
    size = None
    while size != len(graph.nodes):
        size = len(graph.nodes)
        _shorten(graph)
        _share(graph, written)
        if not written:
            _fuse(graph)
        graph.eliminate_dead_code(_has_effect)
    for node in _nodes(graph):
        if node.target in _CONSTANTS and node not in written:
            name = f"_filled_{node.name}"
            module.register_buffer(name, node.meta["value"], persistent=False)
            with graph.inserting_before(node):
                constant = graph.get_attr(name)
            constant.meta.update(node.meta)
            node.replace_all_uses_with(constant)
    graph.eliminate_dead_code(_has_effect)


def _written(graph: fx.Graph) -> set[Node]:
    """Nodes whose memory some operation writes to: these are not constant, and not the same as their likes."""
    found: set[Node] = set()
    for node in _nodes(graph):
        if _writes(node):
            found.add(node)
            source = node.args[0]
            while isinstance(source, fx.Node):
                found.add(source)
                source = source.args[0] if source.target in _VIEWS else None
    return found


def _writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _has_effect(node: Node) -> bool:
    return _writes(node) or node.op in ("placeholder", "output") or node.target in _BY_CALLER


def _shorten(graph: fx.Graph) -> None:
    """Leave out what does nothing: aliases, and transpositions of transpositions."""
    for node in _nodes(graph):
        if node.target in (aten.alias.default, aten.detach.default):
            node.replace_all_uses_with(node.args[0])
        elif node.target is aten.t.default and node.args[0].target is aten.t.default:
            node.replace_all_uses_with(node.args[0].args[0])


def _share(graph: fx.Graph, written: set[Node]) -> None:
    """Compute once what occurs twice."""
    seen: dict[Any, Node] = {}
    for node in _nodes(graph):
        if node.op != "call_function" or node in written:
            continue
        key = (node.target, _frozen(node.args), _frozen(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
        else:
            seen[key] = node


def _fuse(graph: fx.Graph) -> None:
    """Sums of which one part is a product, or all parts are zero where another is not, become one operation."""
    for node in _nodes(graph):
        if not _is_plain_sum(node):
            continue
        with graph.inserting_before(node):
            fused = _joined(graph, node) or _with_product(graph, node) or _transposed_sum(graph, node)
        if fused is not None:
            fused.meta.update(node.meta)
            node.replace_all_uses_with(fused)


def _is_plain_sum(node: Node) -> bool:
    """Whether it is a + b of two tensors of the shape and type of the sum, which is of floating-point numbers."""
    if node.target is not aten.add.Tensor or node.kwargs or not all(_is_like(part, node) for part in node.args):
        return False
    kind = node.meta["dtype"]
    return bool(kind.is_floating_point or kind.is_complex)


def _is_like(part: Any, node: Node) -> bool:
    return isinstance(part, fx.Node) and all(part.meta.get(name) == node.meta[name] for name in ("shape", "dtype"))


def _with_product(graph: fx.Graph, node: Node) -> Node | None:
    """x + a b, where nothing else uses the product."""
    for rest, product in (node.args, node.args[::-1]):
        fused = _WITH_SUM.get(product.target)
        whole = product.target is not aten.mul.Tensor or all(_is_like(factor, node) for factor in product.args)
        if fused is not None and whole and not product.kwargs and len(product.users) == 1:
            return graph.call_function(fused, (rest, *product.args))
    return None


def _transposed_sum(graph: fx.Graph, node: Node) -> Node | None:
    """aᵀ + bᵀ = (a + b)ᵀ, so that a sum of transposed products can be one of products."""
    if any(part.target is not aten.t.default or len(part.users) > 1 for part in node.args):
        return None
    summed = graph.call_function(aten.add.Tensor, tuple(part.args[0] for part in node.args))
    summed.meta.update(node.meta, shape=node.meta["shape"][::-1])
    return graph.call_function(aten.t.default, (summed,))


def _joined(graph: fx.Graph, node: Node) -> Node | None:
    """Parts next to each other, each padded with zeros to the whole: what is left of a `cat` that is differentiated."""
    parts = _summands(node)
    if any(part.target is not aten.slice_backward.default for part in parts):
        return None
    parts.sort(key=lambda part: part.args[3])
    sizes, dim = parts[0].args[1:3]
    ends = [0, *(min(part.args[4], sizes[dim]) for part in parts)]
    fits = all(
        part.args[1:3] == (sizes, dim) and (part.args[3], part.args[5]) == (end, 1)
        for part, end in zip(parts, ends, strict=False)
    )
    if not fits or ends[-1] != sizes[dim]:
        return None
    joined = graph.call_function(aten.cat.default, ([part.args[0] for part in parts], dim))
    return graph.call_function(aten.contiguous.default, (joined,))


def _summands(node: Node) -> list[Node]:
    """What a sum is made of, with the parts of parts that nothing else uses."""
    found = []
    for part in node.args:
        found += _summands(part) if _is_plain_sum(part) and len(part.users) == 1 else [part]
    return found


def _frozen(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return value
    if isinstance(value, list | tuple):
        return tuple(_frozen(part) for part in value)
    if isinstance(value, dict):
        return tuple((key, _frozen(part)) for key, part in value.items())
    return type(value).__name__, str(value)


# --- cutting a graph in two


def _nodes(graph: fx.Graph) -> list[Node]:
    return list(graph.nodes)


def _placeholders(graph: fx.Graph) -> list[Node]:
    return [node for node in _nodes(graph) if node.op == "placeholder"]


def _results(graph: fx.Graph) -> list[Node]:
    (output,) = [node for node in _nodes(graph) if node.op == "output"]
    return list(output.args[0])


def _reached(graph: fx.Graph, start: Node) -> set[Node]:
    """The node and all that depends on it."""
    found = {start}
    for node in _nodes(graph):
        if node.op != "output" and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _kept(module: fx.GraphModule) -> list[Node]:
    """What products with a vector, the last argument, need of the computations that do not depend on it.

    Views are left out in favor of what they look at. Nothing where an operation writes in place: what it wrote to would
    have to be kept as it was.
    """
    graph = module.graph
    if any(_writes(node) for node in _nodes(graph)):
        return []
    after = _reached(graph, _placeholders(graph)[-1])
    found: dict[Node, None] = {}
    for node in _nodes(graph):
        for source in node.all_input_nodes if node in after else []:
            base = _base(source)
            if source not in after and base.op == "call_function":
                found[base] = None
    return list(found)


def _base(node: Node) -> Node:
    """What a chain of views looks at; a part of several results stands for itself."""
    while node.target in _VIEWS and not _is_part(node):
        node = node.args[0]
    return node


def _is_part(node: Node) -> bool:
    return node.target is operator.getitem and node.args[0].target is not aten.split_with_sizes.default


def _forward(module: fx.GraphModule, kept: list[Node]) -> fx.GraphModule:
    """(w, h, batch) -> gradient, *kept."""
    graph = fx.Graph()
    after = _reached(module.graph, _placeholders(module.graph)[-1])
    copies = _copied(graph, [node for node in _nodes(module.graph) if node not in after], {})
    graph.output([copies[_results(module.graph)[0]], *(copies[node] for node in kept)])
    return _cleaned(module, graph)


def _backward(module: fx.GraphModule, kept: list[Node]) -> fx.GraphModule:
    """(w, h, batch, v, *kept) -> gradient (not to be asked for), products."""
    graph = fx.Graph()
    copies = {node: graph.node_copy(node) for node in _placeholders(module.graph)}
    for node in kept:
        copies[node] = graph.placeholder(f"kept_{node.name}")
        copies[node].meta.update(node.meta)
    _copied(graph, _nodes(module.graph), copies)
    graph.output([copies[node] for node in _results(module.graph)])
    return _cleaned(module, graph)


def _with_outputs(module: fx.GraphModule, chosen: list[int]) -> fx.GraphModule:
    """The same with some of its results only."""
    graph = fx.Graph()
    copies = _copied(graph, _nodes(module.graph), {})
    results = _results(module.graph)
    graph.output([copies[results[index]] for index in chosen])
    return _cleaned(module, graph)


def _copied(graph: fx.Graph, nodes: Iterable[Node], copies: dict[Node, Node]) -> dict[Node, Node]:
    """`copies` with those of the other nodes, which are put into `graph`; not of the output."""
    for node in nodes:
        if node not in copies and node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return copies


def _cleaned(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    graph.eliminate_dead_code(_has_effect)
    return fx.GraphModule(root, graph)


def _hoist(module: fx.GraphModule) -> fx.GraphModule:
    """Move what depends on the hyperparameters alone into a function of its own; its results become arguments."""
    graph = module.graph
    placeholders = _placeholders(graph)
    hyper, written = placeholders[1], _written(graph)
    alone = {hyper}
    for node in _nodes(graph):
        inputs = node.all_input_nodes
        if node.op == "call_function" and inputs and node not in written and alone.issuperset(inputs):
            alone.add(node)
    crossing = [
        node
        for node in _nodes(graph)
        if node in alone and node is not hyper and any(user not in alone for user in node.users)
    ]
    before = fx.Graph()
    copies = {hyper: before.placeholder("hyper")}
    _copied(before, [node for node in _nodes(graph) if node in alone], copies)
    before.output(tuple(copies[node] for node in crossing))
    last = placeholders[-1]
    for node in crossing:
        with graph.inserting_after(last):
            last = graph.placeholder(f"prepared_{node.name}")
        last.meta.update(node.meta)
        node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in alone)
    graph.eliminate_dead_code(_has_effect)
    return fx.GraphModule(module, before)


# --- results into vectors of the caller


def _write_outputs(module: fx.GraphModule, results: int, accumulate: bool) -> None:
    """The first results go into vectors that become the last arguments; matrix products without a copy."""
    graph = module.graph
    (output,) = [node for node in _nodes(graph) if node.op == "output"]
    found = list(output.args[0])
    last, targets = _placeholders(graph)[-1], []
    for index in range(results):
        with graph.inserting_after(last):
            last = graph.placeholder(f"to_{index}")
        targets.append(last)
    with graph.inserting_before(output):
        for result, target in zip(found[:results], targets, strict=True):
            _write(graph, result, target, accumulate)
    output.args = (found[results:],)
    graph.eliminate_dead_code(_has_effect)


def _write(graph: fx.Graph, result: Node, target: Node, accumulate: bool) -> None:
    if accumulate and result.meta["zero"]:
        return
    if len(result.meta["shape"]) != 1:
        graph.call_method("add_" if accumulate else "copy_", (target, result))
        return
    pieces = list(_pieces(result))
    flat = graph.call_method("view", (target, -1))
    if len(pieces) == 1:
        _write_piece(graph, pieces[0], flat, accumulate)
        return
    places = graph.call_method("split", (flat, [piece.meta["shape"].numel() for piece in pieces]))
    for index, piece in enumerate(pieces):
        _write_piece(graph, piece, graph.call_function(operator.getitem, (places, index)), accumulate)


def _pieces(result: Node) -> Iterator[Node]:
    """Consecutive parts that a flat result is put together from."""
    if result.target is aten.cat.default:
        yield from result.args[0]
    else:
        yield result


def _write_piece(graph: fx.Graph, piece: Node, place: Node, accumulate: bool) -> None:
    products = _products(piece)
    if not products:
        graph.call_method("add_" if accumulate else "copy_", (place, piece))
        return
    transposed = piece.args[0] is not products[-1]
    size = products[0].meta["shape"]
    matrix = graph.call_method("view", (place, *(size[::-1] if transposed else size)))
    for product in products:
        left, right = product.args[-2:]
        if transposed:  # (a b)ᵀ = bᵀ aᵀ
            left, right = (graph.call_function(aten.t.default, (factor,)) for factor in (right, left))
        if accumulate or product is not products[0]:
            graph.call_method("addmm_", (matrix, left, right))
        else:
            graph.call_function(torch.mm, (left, right), {"out": matrix})


def _products(piece: Node) -> list[Node]:
    """The matrix products of which the piece is the sum, transposed or not, as a flat view; none where it is not, or
    where something else uses them."""
    if piece.target is not aten.view.default:
        return []
    matrix = piece.args[0]
    node = matrix.args[0] if matrix.target is aten.t.default else matrix
    used, found = [piece, matrix, node], [node]
    while node.target is aten.addmm.default and not node.kwargs:
        node = node.args[0]
        used.append(node)
        found.append(node)
    alone = all(len(node.users) == 1 for node in used)
    return found[::-1] if alone and node.target is aten.mm.default else []


# --- code

_METHODS = {
    aten.t.default: Tensor.t,
    aten.view.default: Tensor.view,
    aten.squeeze.dim: Tensor.squeeze,
    aten.unsqueeze.default: Tensor.unsqueeze,
    aten.expand.default: Tensor.expand,
    aten.split_with_sizes.default: Tensor.split_with_sizes,
    aten.sum.dim_IntList: Tensor.sum,
    aten.add.Tensor: Tensor.add,
    aten.sub.Tensor: Tensor.sub,
    aten.mul.Tensor: Tensor.mul,
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.tanh.default: torch.tanh,
    aten.exp.default: torch.exp,
    aten.neg.default: torch.neg,
}
"""The same operations by the way that PyTorch itself calls them, which is shorter."""


def _compiled(module: fx.GraphModule) -> Callable[..., Any]:
    """The graph as a Python function: a line for each node, operators bound to what they call at last.

    `torch.fx` writes such a function too, but goes through a wrapper at each operator, a tenth of the time here.
    """
    names: dict[Node, str] = {}
    known: dict[str, Any] = {}
    lines: list[str] = []
    last = {source: node for node in _nodes(module.graph) for source in node.all_input_nodes}

    def said(value: Any) -> str:
        if isinstance(value, fx.Node):
            return names[value]
        if isinstance(value, list | tuple):
            return f"[{', '.join(said(part) for part in value)}]"
        known[f"constant_{len(known)}"] = value
        return f"constant_{len(known) - 1}"

    for number, node in enumerate(_nodes(module.graph)):
        names[node] = f"value_{number}"
        if node.op == "placeholder":
            continue
        if node.op == "output":
            lines.append(f"return {said(node.args[0])}")
        elif node.op == "get_attr":
            names[node] = said(getattr(module, node.target))
        else:
            lines.append(f"{names[node]} = {_called(node, said, known)}")
            done = [source for source in node.all_input_nodes if last[source] is node and source.op != "get_attr"]
            unused = [] if node.users else [node]
            lines += [f"del {names[each]}" for each in [*done, *unused]]
    arguments = ", ".join(names[node] for node in _placeholders(module.graph))
    source = f"def run({arguments}):\n" + "".join(f"    {line}\n" for line in lines)
    exec(compile(source, "<recorded derivative>", "exec"), known)
    function: Callable[..., Any] = known["run"]
    return function


def _called(node: Node, said: Callable[[Any], str], known: dict[str, Any]) -> str:
    """The call of one node as text."""
    arguments = [said(value) for value in node.args]
    named = [f"{name}={said(value)}" for name, value in node.kwargs.items()]
    if node.op == "call_method":
        return f"{arguments[0]}.{node.target}({', '.join([*arguments[1:], *named])})"
    if node.target is operator.getitem:
        return f"{arguments[0]}[{arguments[1]}]"
    if _in_place(node):
        return f"{arguments[0]}.addmm_({', '.join([*arguments[1:], *named])})"
    name = f"operator_{len(known)}"
    known[name] = _METHODS.get(node.target) or getattr(node.target, "_op", node.target)
    return f"{name}({', '.join([*arguments, *named])})"


def _in_place(node: Node) -> bool:
    """Whether what a matrix product is added to is another one that nothing else uses, so that it may be written to."""
    if node.target is not aten.addmm.default:
        return False
    source = node.args[0]
    fresh = source.target in (aten.mm.default, aten.addmm.default)
    return fresh and len(source.users) == 1 and source.meta["shape"] == node.meta["shape"]
