"""Calls of torch's operations with at least two floating operands: torch's own samples, and those that it lacks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, get_testing_overrides, resolve_name
from torch.testing._internal import common_utils
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

from toys import devices

# It walks the stack for the test of torch's own that asks for a sample, a tenth of a second under pytest each time.
common_utils.extract_test_fn = lambda: None

_SAMPLES = 3  # of each operation, of different kinds
_LARGEST = 5000  # elements of an operand
_LOOKED_AT = 100  # samples that are looked at
_SHAPES = [((4, 4),) * 2, ((4, 4),) * 3, ((4,),) * 2, ((2, 4, 4),) * 2, ((2, 4, 4),) * 3, ((4, 4),) * 4]
_OPERATORS = [
    f"__{prefix}{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lt", "le", "eq", "ne")
    for prefix in ("", "r", "i")
]


@dataclasses.dataclass(frozen=True)
class Call:
    """A call in float32, by the operation's name; one in place has one of its own."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def operands(self) -> list[torch.Tensor]:
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32]

    def given(self, dtypes: tuple[torch.dtype, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Operands of these dtypes, nobody else's: what has none is copied, too."""
        left = list(dtypes)

        def own(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            copy = leaf.detach().clone()
            return copy.to(left.pop(0)) if leaf.dtype == torch.float32 else copy

        args, kwargs = pytree.tree_map(own, (self.args, self.kwargs))
        return args, kwargs

    def entry(self) -> Any:
        """The function that a mode is asked about first."""
        args, kwargs = self.given((torch.float32,) * len(self.operands()))
        with contextlib.suppress(Exception), _First() as first:
            self.function(*args, **kwargs)
        return first.function


class _First(TorchFunctionMode):
    function: Any = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.function is None and not getattr(func, "__name__", "").startswith(("__get", "__index__")):
            self.function = func
        return func(*args, **(kwargs or {}))


def every_call() -> Iterator[Call]:
    calls = [*of_torchs_samples(), *of_ours()]
    known = {call.entry() for call in calls}
    yield from calls
    yield from of_the_public_api(known)


def of_the_public_api(known: set[Any]) -> Iterator[Call]:
    """What neither has, where a call of some matrices or vectors succeeds."""
    generator = devices.generator(0)
    for function, name in _public(known):
        for shapes in _SHAPES:
            call = Call(name, function, tuple(torch.rand(shape, generator=generator) + 0.1 for shape in shapes))
            try:
                result = function(*call.given((torch.float32,) * len(shapes))[0])
            except Exception:
                continue
            if isinstance(result, (torch.Tensor, tuple, list)):
                yield call
                break


def _public(known: set[Any]) -> Iterator[tuple[Any, str]]:
    for function in get_testing_overrides():
        name = (resolve_name(function) or "_").replace("torch.nn.functional.", "F.").removeprefix("torch.")
        own = name.rpartition(".")[2]
        if (function not in known and not own.startswith(("_", "set_"))) or own in _OPERATORS:
            yield function, name


def of_torchs_samples() -> Iterator[Call]:
    for operation in op_db:
        if torch.float32 not in operation.dtypes:
            continue
        variants = {operation.op: "", operation.method_variant: "", operation.inplace_variant: "_"}
        for n, sample in enumerate(_samples(operation)):
            for function, suffix in variants.items():
                is_again = function is operation.method_variant and n > 0
                if function is not None and not is_again and not (suffix and sample.broadcasts_input):
                    name = operation.name.replace("nn.functional.", "F.")
                    yield Call(name + suffix, function, (sample.input, *sample.args), dict(sample.kwargs))


def _samples(operation: Any) -> Iterator[Any]:
    kinds = set()
    torch.manual_seed(0)
    for _, sample in zip(range(_LOOKED_AT), operation.sample_inputs("cpu", torch.float32), strict=False):
        operands = Call("", operation.op, (sample.input, *sample.args), sample.kwargs).operands()
        kind = (tuple(min(tensor.dim(), 1) for tensor in operands), *sorted(sample.kwargs))
        small = all(0 < tensor.numel() <= _LARGEST for tensor in operands)
        if devices.NAME == "emulated":  # which has no compressed sparse tensors
            small &= all(tensor.layout == torch.strided for tensor in operands)
        if len(operands) > 1 and small and kind not in kinds:
            kinds.add(kind)
            yield sample.transform(lambda value: value.to(devices.TYPE) if isinstance(value, torch.Tensor) else value)
        if len(kinds) == _SAMPLES:
            return


def _put(index: Any) -> Callable[..., Any]:
    def setitem(x: torch.Tensor, source: Any) -> torch.Tensor:
        x[index] = source
        return x

    return setitem


def of_ours() -> Iterator[Call]:
    """What torch's samples lack: fused and recurrent layers, assignments, keywords."""
    generator = devices.generator(0)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    rows = torch.tensor([0, 1])
    yield Call("Tensor.__setitem__", _put(rows), (made(3, 4), made(2, 4)))
    yield Call("Tensor.__setitem__", _put(torch.tensor([True, False, True])), (made(3, 4), made(2, 4)))
    yield Call("Tensor.__setitem__", _put((slice(None), rows)), (made(3, 4), made(3, 2)))
    yield Call("Tensor.__setitem__ of slices", _put(slice(0, 2)), (made(3, 4), made(2, 4)))
    for join in (torch.cat, torch.concat, torch.stack, torch.hstack):
        yield Call(join.__name__, lambda x, y, join=join: join(tensors=[x, y]), (made(2, 4), made(2, 4)))
    yield Call("F.linear", lambda x, w: F.linear(x, weight=w), (made(2, 4), made(3, 4)))
    yield Call("F.scaled_dot_product_attention", _attend_by_keyword, tuple(made(1, 2, 4, 8) for _ in range(3)))
    yield Call("Tensor.__matmul__", torch.Tensor.__matmul__, (made(2, 4), made(4, 3)))
    yield Call("Tensor.__rmatmul__", torch.Tensor.__rmatmul__, (made(4, 3), made(2, 4)))
    yield Call("einsum", torch.einsum, ("ij,jk->ik", made(2, 4), made(4, 3)))
    yield Call("F.batch_norm", _train(F.batch_norm), (made(4, 3, 5), made(3), made(3).abs(), made(3), made(3)))
    yield Call("F.instance_norm", F.instance_norm, (made(4, 3, 5), made(3), made(3).abs(), made(3), made(3)))
    yield from _recurrent(made)
    yield from _fused(made)


def _attend_by_keyword(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(query=q, key=k, value=v)


def _train(norm: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands: norm(*operands, training=True)


def _recurrent(made: Callable[..., torch.Tensor]) -> Iterator[Call]:
    gates = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
    for name, n in gates.items():
        weights = [made(n * 4, 3), made(n * 4, 4), made(n * 4), made(n * 4)]
        hidden = made(1, 2, 4), made(1, 2, 4)
        state: Any = list(hidden) if name == "lstm" else hidden[0]
        options = (True, 1, 0.0, False, False, False)
        yield Call(name, getattr(torch, name), (made(5, 2, 3), state, weights, *options))
        cell_state: Any = [h[0] for h in hidden] if name == "lstm" else hidden[0][0]
        yield Call(f"{name}_cell", getattr(torch, f"{name}_cell"), (made(2, 3), cell_state, *weights))


def _fused(made: Callable[..., torch.Tensor]) -> Iterator[Call]:
    attention = [made(24, 8), made(24), made(8, 8), made(8)]
    feed_forward = [made(8), made(8), made(8), made(8), made(16, 8), made(16), made(8, 16), made(8)]
    layer = (made(2, 5, 8), 8, 2, *attention, False, False, 1e-5, *feed_forward)
    yield Call("_transformer_encoder_layer_fwd", torch._transformer_encoder_layer_fwd, layer)
    x = made(2, 5, 8)
    yield Call(
        "_native_multi_head_attention",
        lambda x, *weights: torch._native_multi_head_attention(x, x, x, 8, 2, *weights)[0],
        (x, *attention),
    )
