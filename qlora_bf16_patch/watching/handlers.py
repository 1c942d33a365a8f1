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


def is_handled(error: Exception, frames: Iterable[FrameType]) -> bool:
    """Whether one of the frames has a handler for the error around the statement that it runs."""
    return any(_handles(frame, error) for frame in frames)


def _handles(frame: FrameType, error: Exception) -> bool:
    namespace = {**vars(builtins), **frame.f_globals}
    for node in _around(frame.f_code, frame.f_lineno):
        if isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            suppressed = [types for call in calls if ast.unparse(call.func).endswith("suppress") for types in call.args]
            if any(_catches(types, error, namespace) for types in suppressed):
                return True
        elif isinstance(node, _TRIES):
            for handler in node.handlers:
                if handler.type is None or _catches(handler.type, error, namespace):
                    if not _raises(handler.body, {**namespace, **({handler.name: error} if handler.name else {})}):
                        return True
                    break
    return False


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


def _catches(types: ast.expr, error: Exception, namespace: dict[str, Any]) -> bool:
    with contextlib.suppress(Exception):
        return isinstance(error, _value(types, namespace))
    return False


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
