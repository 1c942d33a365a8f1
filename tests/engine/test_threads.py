"""Several threads that import, toggle, register and look."""

import logging
import sys
import threading

import pytest

from qlora_bf16_patch.engine.patch import Patch

from .registries import check, make_registry, make_registry_of, run, says_its_name

LIBRARY = """
import meeting

class Layer:
    def forward(self):
        return "original"

meeting.point.wait(30)  # both libraries' bodies have run, and both hooks come next
"""
PATCH = """
import time

def factory(original, installation):
    time.sleep(0.2)
    import {other}  # as torch, transformers and peft import each other lazily
    return lambda self: "patched" if installation.on else {other}.Layer and original(self)
"""


def test_two_threads_whose_libraries_hooks_need_each_other_do_not_deadlock(tmp_path):
    (tmp_path / "meeting.py").write_text("import threading\npoint = threading.Barrier(2)\n")
    for name, other in (("one", "other"), ("other", "one")):
        (tmp_path / f"{name}.py").write_text(LIBRARY)
        (tmp_path / f"patch_of_{name}.py").write_text(PATCH.format(other=other))
    code = """
import importlib, os, threading
from tests.engine.registries import make_registry
from qlora_bf16_patch.engine.patch import Patch

registry = make_registry(module="one", load=lambda: importlib.import_module("patch_of_one").factory)
load = lambda: importlib.import_module("patch_of_other").factory
registry.register(Patch("fake.other", "other", "Layer.forward", load, "", ""))
threads = [threading.Thread(target=importlib.import_module, args=(name,), daemon=True) for name in ("one", "other")]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(10)
if any(thread.is_alive() for thread in threads):
    print("deadlock", flush=True)
    os._exit(1)
import one, other
assert (one.Layer().forward(), other.Layer().forward()) == ("patched", "patched")
assert {row.state for row in registry.status()} == {"active"}
"""
    result = run(tmp_path, code)
    assert result.stdout == ""
    check(result)


def in_threads(*functions):
    """Run the functions at once; what they raise is returned."""
    errors, start = [], threading.Barrier(len(functions))

    def work(function):
        start.wait()
        try:
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(function,), daemon=True) for function in functions]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # many more switches than in a second of a user's program
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    return errors


def test_registering_toggling_and_looking_from_many_threads_leaves_no_torn_state(library):
    original = vars(library.Layer)["forward"]
    registry = make_registry_of("a", "b", "c")
    errors = []

    def register():
        for number in range(20):
            registry.register(Patch(f"fake.z{number:02}", "fake_library", "Layer.forward", lambda: says_its_name))

    def toggle():
        for _ in range(60):
            with registry.disabled("fake.b"), registry.strict(), registry.enabled("fake.*"):
                registry.disable("fake.a")
            registry.uninstall()
            registry.enable()

    def look():
        for _ in range(100):
            for status in registry.status():
                if status.state not in ("active", "off", "pending"):
                    errors.append(status)
            calls = library.Layer().forward().split()
            if len(set(calls)) < len(calls) or calls[-1] != "original":
                errors.append(calls)

    assert in_threads(register, toggle, toggle, look, look) == []
    assert errors == []
    registry.reset()
    names = [status.name[5:] for status in registry.status()]
    assert len(names) == 23
    assert {status.state for status in registry.status()} == {"active"}
    assert library.Layer().forward().split() == [*reversed(names), "original"]
    assert not any(registry.installation(f"fake.{name}").strict for name in names)
    registry.uninstall()
    assert vars(library.Layer)["forward"] is original


def test_a_name_is_registered_once_however_many_threads_try(library):
    registry = make_registry_of("a")

    def register():
        registry.register(Patch("fake.b", "fake_library", "Layer.forward", lambda: says_its_name))

    errors = in_threads(*[register] * 8)
    assert [type(error) for error in errors] == [ValueError] * 7
    assert library.Layer().forward() == "b a original"


class Asks(logging.Handler):
    """A handler that waits for another thread, which asks the registry: as one that ships status with its records."""

    def __init__(self, registry):
        super().__init__()
        self.registry = registry
        self.answers = []

    def emit(self, record):
        thread = threading.Thread(target=lambda: self.answers.append(self.registry.status()), daemon=True)
        thread.start()
        thread.join(5)


@pytest.mark.parametrize("occasion", ["a refusal", "a failure", "a note"])
@pytest.mark.filterwarnings("error")
def test_nothing_is_logged_while_the_lock_is_held(library, occasion):
    registry = make_registry({"QLORA_BF16_PATCH_DISABLE": "fake.*"} if occasion == "a refusal" else {})
    handler = Asks(registry)
    logger = logging.getLogger("qlora_bf16_patch")
    logger.addHandler(handler)
    try:
        if occasion == "a refusal":
            registry.enable()
        elif occasion == "a failure":
            registry.register(Patch("fake.broken", "fake_library", "Gone.forward", lambda: says_its_name))
        else:
            registry.installation("fake.layer").note("key", "text")
    finally:
        logger.removeHandler(handler)
    assert len(handler.answers) == 1
