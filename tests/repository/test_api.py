"""docs/api.md has every public thing; each says what it takes, gives and raises, and has an example that runs."""

import ast
import dataclasses
import doctest
import inspect
import pkgutil
import re
import sys
import textwrap

import pytest

import qlora_bf16_patch
from qlora_bf16_patch import inspection
from qlora_bf16_patch.inspection import advice

from .packages import ROOT

PAGE = (ROOT / "docs/api.md").read_text()
OURS = "qlora_bf16_patch."
# Third parties about each other, while the page's toy is made and trained.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.cpu("the page's toy stands there"),
]


def members(kind):
    """Public methods and properties, of bases too, but for those that a base of another library has."""
    for name, _, owner, member in inspect.classify_class_attrs(kind):
        if name.startswith("_") or any(
            name in vars(base) for base in kind.__mro__ if not base.__module__.startswith(OURS)
        ):
            continue
        if owner.__module__.startswith(OURS) and (isinstance(member, property) or inspect.isroutine(member)):
            yield name, getattr(member, "__func__", member)


def on_the_page():
    """Path and object of all that the page shows, by its own directives."""
    for path, options in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", PAGE, re.MULTILINE):
        thing = pkgutil.resolve_name(path)
        found = dict(members(thing)) if inspect.isclass(thing) else vars(thing)
        listed = re.findall(r"\w+", "".join(re.findall(r"members: \[(.*)\]", options)))
        if inspect.isclass(thing):
            yield path, thing
        yield from ((f"{path}.{name}", found[name]) for name in listed or found)


# What several classes inherit is looked at once.
THINGS = {id(thing): pytest.param(thing, id=path.removeprefix(OURS)) for path, thing in on_the_page()}
each = pytest.mark.parametrize("thing", THINGS.values())


def sections(thing):
    """The parts of a docstring by their titles, as griffe reads Google's style."""
    parts = re.split(r"^(\w+):\n(?= {4})", inspect.cleandoc(thing.__doc__ or ""), flags=re.MULTILINE)
    return dict(zip(["", *parts[1::2]], parts[0::2], strict=True))


def statements(function, kind):
    return (
        node for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))) if isinstance(node, kind)
    )


def raised(function):
    """The errors that its own statements raise."""
    calls = [node.exc for node in statements(function, ast.Raise) if isinstance(node.exc, ast.Call)]
    return [call.func.id for call in calls if isinstance(call.func, ast.Name)]


def assigned(function):
    """The public attributes that it sets on its object."""
    stored = [node for node in statements(function, ast.Attribute) if isinstance(node.ctx, ast.Store)]
    return [node.attr for node in stored if ast.unparse(node.value) == "self" and not node.attr.startswith("_")]


def attributes(kind):
    """What an object of ours holds for its users."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    ours = [vars(base).get("__init__") for base in kind.__mro__ if base.__module__.startswith(OURS)]
    return [name for function in ours if function for name in assigned(function)]


def to_be_told(thing):
    """Sections, and what each is to name; of a class what its objects are made of, and hold."""
    held, function = [], thing
    if inspect.isclass(thing):
        held, function = attributes(thing), vars(thing).get("__init__")
    yield from (("Attributes", name) for name in held)
    if function is None or isinstance(function, property) or dataclasses.is_dataclass(thing):
        return
    signature = inspect.signature(function)
    yield from (("Args", name) for name in signature.parameters if name not in ("self", "cls", *held))
    yield from (("Raises", name) for name in raised(inspect.unwrap(function)))
    if signature.return_annotation != "None":
        yield "Returns", ""
    if any(str(one.annotation).startswith("torch.nn.Module") for one in signature.parameters.values()):
        yield "Source", ""


def missing(thing):
    """What the docstring of a public thing does not say."""
    told = sections(thing)
    for title, name in [*to_be_told(thing), ("", ""), ("Examples", "")]:
        if title not in told or not re.search(rf"^ {{4}}{name}:" if name else r"\S", told[title], re.MULTILINE):
            yield f"{title}: {name}"
    examples = doctest.DocTestParser().get_examples(told.get("Examples", ""))
    if not examples or any(doctest.SKIP in example.options for example in examples):
        yield "an example that runs"
    errors = {example.exc_msg.partition(":")[0].rpartition(".")[2] for example in examples if example.exc_msg}
    names = {getattr(thing, "__name__", "")} if inspect.isclass(thing) else set()
    yield from (f"Raises: {name}" for name in errors - names if f"    {name}:" not in told.get("Raises", ""))
    if re.search(r":\w+:`", thing.__doc__ or ""):
        yield "plain words: the page shows Sphinx's roles as they are"


@each
def test_a_public_thing_says_what_it_takes_gives_and_raises(thing):
    assert [*missing(thing)] == []


def takes(rows: "int") -> "int":
    """Doubles.

    Args:
        columns: none.

    Examples:
        >>> takes(2)  # doctest: +SKIP
        4
        >>> takes(None)
        Traceback (most recent call last):
            ...
        TypeError: rows
    """
    if rows is None:
        raise ValueError("rows")
    return 2 * rows


def says_nothing(model: "torch.nn.Module") -> "None":  # noqa: F821  # as future annotations are
    pass


@dataclasses.dataclass
class Row:
    """A row, as :class:`Row`.

    Examples:
        >>> Row("a").path
        'a'
    """

    path: str


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (takes, ["Args: rows", "Raises: ValueError", "Returns: ", "an example that runs", "Raises: TypeError"]),
        (says_nothing, ["Args: model", "Source: ", ": ", "Examples: ", "an example that runs"]),
        (Row, ["Attributes: path", "plain words: the page shows Sphinx's roles as they are"]),
    ],
)
def test_what_is_not_said_is_found(thing, expected):
    assert [*missing(thing)] == expected


@pytest.mark.parametrize("module", [qlora_bf16_patch, inspection], ids=lambda module: module.__name__)
def test_every_public_name_is_on_the_page(module):
    public = {name: getattr(module, name) for name in module.__all__}
    assert {name for name, thing in public.items() if id(getattr(thing, "__func__", thing)) not in THINGS} == set()


@pytest.fixture(scope="module")
def names():
    """What the page makes at its top."""
    made = {}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        exec(block, made)
    return made


@pytest.fixture
def as_before(names, tmp_path, monkeypatch):
    """Files are written elsewhere, and after it patches and modes are what they were."""
    monkeypatch.chdir(tmp_path)
    for program in advice.PROGRAMS:  # another test may have imported one, and advice is in its words then
        monkeypatch.delitem(sys.modules, program, raising=False)
    registry = qlora_bf16_patch._registry
    known = {patch.name for patch in registry.patches()}
    yield
    for patch in registry.patches():
        if patch.name not in known:  # users have no call for it
            registry._entries.pop(patch.name).installation.restore()
    registry.reset()
    names["model"].eval().zero_grad()


@each
def test_an_example_prints_what_it_shows(thing, names, as_before):
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(thing), dict(names), getattr(thing, "__qualname__", ""), None, 0
    )
    told = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=told.append).failed == 0, "".join(told)
