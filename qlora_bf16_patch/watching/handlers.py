"""Whether the program itself handles an error that torch is about to raise: then it gets the error.

The frames between the operation and the model's call are looked at, and of each the source text: a ``try`` around the
running statement, with an ``except`` for this error that does not raise again, or ``contextlib.suppress``. Code without
source text, and context managers that suppress errors by themselves, are not seen.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import inspect
import textwrap
from collections.abc import Iterable, Sequence
from types import CodeType, FrameType
from typing import Any

_TRIES = (ast.Try, *filter(None, [getattr(ast, "TryStar", None)]))


def is_handled(error: BaseException, frames: Iterable[FrameType]) -> bool:
    """Whether one of the frames has a handler for the error around the statement that it runs."""
    return any(_handles(frame, node, error) for frame in frames for node in _around(frame.f_code, frame.f_lineno))


def _handles(frame: FrameType, node: Any, error: BaseException) -> bool:
    if isinstance(node, ast.With):
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("suppress"):
                if any(_catches(types, error, frame) for types in call.args):
                    return True
        return False
    handler = next((one for one in node.handlers if one.type is None or _catches(one.type, error, frame)), None)
    if handler is None:
        return any(isinstance(statement, ast.Return) for statement in node.finalbody)
    return not _raises(handler.body, {**_names(frame), **({handler.name: error} if handler.name else {})})


def _names(frame: FrameType) -> dict[str, Any]:
    return {**vars(builtins), **frame.f_globals, **frame.f_locals}


@functools.lru_cache(maxsize=64)
def _around(code: CodeType, line: int) -> tuple[Any, ...]:
    """The ``try`` and ``with`` statements of a function that are around a line, the innermost first."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError, TypeError, ValueError):
        return ()
    line -= code.co_firstlineno - 1
    nodes: list[Any] = [node for node in ast.walk(tree) if isinstance(node, (ast.With, *_TRIES))]
    return tuple(node for node in reversed(nodes) if node.body[0].lineno <= line <= (node.body[-1].end_lineno or 0))


def _value(node: Any, namespace: dict[str, Any]) -> Any:
    """The value of an expression of names, and of tests of an error's class and text.

    Raises:
        Exception: it has none, or is of another sort.
    """
    match node:
        case ast.Name():
            return namespace[node.id]
        case ast.Constant():
            return node.value
        case ast.Attribute():
            return getattr(_value(node.value, namespace), node.attr)
        case ast.Tuple():
            return tuple(_value(item, namespace) for item in node.elts)
        case ast.BoolOp():
            values = (_value(item, namespace) for item in node.values)
            return all(values) if isinstance(node.op, ast.And) else any(values)
        case ast.Compare(ops=[ast.In() | ast.NotIn()]):
            found = _value(node.left, namespace) in _value(node.comparators[0], namespace)
            return found is isinstance(node.ops[0], ast.In)
        case ast.Call(func=ast.Name(id="str" | "isinstance") | ast.Attribute(attr="lower" | "startswith")):
            return _value(node.func, namespace)(*(_value(item, namespace) for item in node.args))
    raise ValueError


def _catches(types: ast.expr, error: BaseException, frame: FrameType) -> bool:
    """Whether an ``except`` is for the error; if that cannot be said, it is."""
    with contextlib.suppress(Exception):
        return isinstance(error, _value(types, _names(frame)))
    return True


def _raises(body: Sequence[ast.stmt], namespace: dict[str, Any]) -> bool:
    """Whether a handler raises again for this error: ``if "out of memory" not in str(error): raise``."""
    for statement in body:
        if isinstance(statement, ast.Raise):
            return True
        if isinstance(statement, ast.If):
            try:
                taken = _value(statement.test, namespace)
            except Exception:
                return False
            if _raises(statement.body if taken else statement.orelse, namespace):
                return True
    return False
