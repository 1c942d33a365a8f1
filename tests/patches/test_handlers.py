"""A program that handles torch's error about dtypes itself gets it, in every call."""

import contextlib

import pytest
import torch
from torch import nn

from toys.models import Model, lora_model

F32, BF16 = torch.float32, torch.bfloat16


class Part(nn.Module):
    """Its product is refused for float32 hidden states; the program's own answer is in bfloat16."""

    def __init__(self):
        super().__init__()
        self.gate, self.linear, self.inner = nn.Parameter(torch.eye(64, dtype=BF16)), nn.Linear(64, 64), Product()
        self.linear.to(BF16)

    def own(self, x):
        return x.to(BF16) @ self.gate


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.eye(64, dtype=BF16))

    def forward(self, x):
        return x @ self.gate


class Handles(Part):
    def forward(self, x, cache=None):
        try:
            return x @ self.gate
        except RuntimeError:
            return self.own(x)


class HandlesInAHelper(Part):
    def forward(self, x, cache=None):
        return self.multiplied(x)

    def multiplied(self, x):
        try:
            return torch.matmul(x, self.gate)
        except (KeyError, RuntimeError):
            pass
        return self.own(x)


class HandlesAll(Part):
    def forward(self, x, cache=None):
        try:
            return x @ self.gate
        except:  # noqa: E722
            return self.own(x)


class HandlesWhatAPartRaises(Part):
    def forward(self, x, cache=None):
        try:
            return self.inner(x)
        except RuntimeError as error:
            if "dtype" not in str(error):
                raise
            return self.own(x)


class HandlesWhatATorchLayerRaises(Part):
    def forward(self, x, cache=None):
        try:
            return self.linear(x)
        except Exception:
            return self.own(x)


class Suppresses(Part):
    def forward(self, x, cache=None):
        with contextlib.suppress(RuntimeError):
            return self.inner(x)
        return self.own(x)


class RaisesAgain(Part):
    def forward(self, x, cache=None):
        try:
            return self.inner(x)
        except RuntimeError as error:
            raise ValueError("no inner product") from error


class HandlesOutOfMemory(Part):
    def forward(self, x, cache=None):
        try:
            return x @ self.gate
        except RuntimeError as error:
            if "out of memory" in str(error):
                return self.own(x)
            raise


class HandlesOtherErrors(Part):
    def forward(self, x, cache=None):
        try:
            return self.inner(x)
        except (KeyError, TypeError):
            return self.own(x)
        finally:
            x = None


class IsBehindATry(Part):
    def forward(self, x, cache=None):
        try:
            x = x + 0
        except RuntimeError:
            return self.own(x)
        return self.inner(x)


def falls_back(errors):
    def decorate(function):
        def called(self, x, cache=None):
            try:
                return function(self, x)
            except errors:
                return self.own(x)

        return called

    return decorate


class HandlesInADecorator(Part):
    @falls_back((RuntimeError, KeyError))
    def forward(self, x):
        return x @ self.gate


class HandlesWhatItNames(Part):
    errors = (RuntimeError,)

    def forward(self, x, cache=None):
        try:
            return self.inner(x)
        except self.errors:
            return self.own(x)


class ReturnsAtLast(Part):
    def forward(self, x, cache=None):
        result = self.own(x)
        try:
            result = self.inner(x)
        finally:
            return result  # noqa: B012


HANDLING = [
    HandlesInADecorator,
    HandlesWhatItNames,
    ReturnsAtLast,
    Handles,
    HandlesInAHelper,
    HandlesAll,
    HandlesWhatAPartRaises,
    HandlesWhatATorchLayerRaises,
    Suppresses,
]
NOT_HANDLING = [RaisesAgain, HandlesOutOfMemory, HandlesOtherErrors, IsBehindATry]


@pytest.mark.parametrize("cache", [None, {}], ids=["tensors", "a cache"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("part", [*HANDLING, *NOT_HANDLING], ids=lambda cls: cls.__name__)
def test_the_programs_own_handler_runs_and_one_that_raises_again_is_none(part, training, cache):
    model = lora_model(toy=Model(part()), bias=False).train(training)
    with torch.set_grad_enabled(training):
        for _ in range(3):
            assert model(torch.randn(2, 64), cache=cache).dtype == (BF16 if part in HANDLING else F32)


def test_code_without_source_text_is_taken_to_handle_nothing():
    namespace = {"nn": nn, "Part": Part}
    exec(
        "class Part(Part):\n  def forward(self, x):\n    try: return x @ self.gate\n    except KeyError: pass",
        namespace,
    )
    model = lora_model(toy=Model(namespace["Part"]()), bias=False)
    assert model(torch.randn(2, 64)).dtype == F32
