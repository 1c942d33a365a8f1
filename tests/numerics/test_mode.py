"""The rules of the function mode, held against torch itself: they act where torch raises, and nowhere else."""

import itertools

import pytest
import torch
from torch import nn

from qlora_bf16_patch.numerics.mode import CastOnMismatch
from toys import devices
from toys.layers import FLOATING

F = nn.functional
INDEX = torch.tensor([0, 1], device=devices.TYPE)
ROWS = torch.zeros(2, 4, dtype=torch.long, device=devices.TYPE)


def setitem(x, source, index=INDEX):
    x = x.clone()
    x[index] = source
    return x


def norm(function, **options):
    return lambda x, w: function(x, weight=w, bias=w, **options)


# name: the operation, and the shapes of its two floating operands
OPERATIONS = {
    "F.linear": (F.linear, (2, 4), (3, 4)),
    "F.linear of keywords": (lambda x, w: F.linear(x, weight=w), (2, 4), (3, 4)),
    "@": (lambda x, w: x @ w, (2, 4), (4, 3)),
    "torch.matmul": (torch.matmul, (2, 4), (4, 3)),
    "Tensor.matmul": (lambda x, w: x.matmul(w), (2, 4), (4, 3)),
    "Tensor.mm": (lambda x, w: x.mm(w), (2, 4), (4, 3)),
    "torch.bmm": (torch.bmm, (2, 2, 4), (2, 4, 3)),
    "torch.baddbmm": (lambda x, w: torch.baddbmm(w.new_zeros(1), x, w), (2, 2, 4), (2, 4, 3)),
    "torch.addmm": (lambda x, w: torch.addmm(w.new_zeros(1), x, w), (2, 4), (4, 3)),
    "torch.addbmm": (lambda x, w: torch.addbmm(w.new_zeros(1), x, w), (2, 2, 4), (2, 4, 3)),
    "torch.addmv": (lambda x, w: torch.addmv(w.new_zeros(1), x, w), (2, 4), (4,)),
    "torch.inner": (torch.inner, (2, 4), (3, 4)),
    "torch.linalg.multi_dot": (lambda x, w: torch.linalg.multi_dot([x, w]), (2, 4), (4, 3)),
    "torch.linalg.vecdot": (torch.linalg.vecdot, (2, 4), (2, 4)),
    "torch.mv": (torch.mv, (2, 4), (4,)),
    "torch.dot": (torch.dot, (4,), (4,)),
    "torch.tensordot": (lambda x, w: torch.tensordot(x, w, dims=1), (2, 4), (4, 3)),
    "einsum, a product": (lambda x, w: torch.einsum("ij, jk -> ik", x, w), (2, 4), (4, 3)),
    "einsum, a list": (lambda x, w: torch.einsum("ij,jk", [x, w]), (2, 4), (4, 3)),
    "einsum, over a size of one": (lambda x, w: torch.einsum("bi,ij->bj", x, w), (1, 1), (1, 4)),
    "einsum, elementwise": (lambda x, w: torch.einsum("ij,ij->ij", x, w), (2, 4), (2, 4)),
    "F.conv1d": (F.conv1d, (1, 2, 6), (3, 2, 3)),
    "F.conv2d": (F.conv2d, (1, 2, 6, 6), (3, 2, 3, 3)),
    "F.conv_transpose1d": (F.conv_transpose1d, (1, 2, 6), (2, 3, 3)),
    "F.bilinear": (lambda x, w: F.bilinear(x, x, w), (2, 4), (3, 4, 4)),
    "F.prelu": (F.prelu, (2, 4), (1,)),
    "F.layer_norm": (norm(F.layer_norm, normalized_shape=(4,)), (2, 4), (4,)),
    "F.group_norm": (norm(F.group_norm, num_groups=2), (2, 4, 4), (4,)),
    "F.rms_norm": (lambda x, w: F.rms_norm(x, (4,), w), (2, 4), (4,)),
    "index_add": (lambda x, s: x.index_add(0, INDEX, s), (2, 4), (2, 4)),
    "index_add_": (lambda x, s: x.clone().index_add_(0, INDEX, s), (2, 4), (2, 4)),
    "index_put": (lambda x, s: x.index_put((INDEX,), s), (2, 4), (2, 4)),
    "x[tensor] = ": (setitem, (2, 4), (2, 4)),
    "x[slice] = ": (lambda x, s: setitem(x, s, slice(0, 2)), (2, 4), (2, 4)),
    "scatter": (lambda x, s: x.scatter(0, ROWS, s), (2, 4), (2, 4)),
    "scatter_add": (lambda x, s: x.scatter_add(0, ROWS, s), (2, 4), (2, 4)),
    "masked_scatter": (lambda x, s: x.masked_scatter(ROWS == 0, s), (2, 4), (2, 4)),
    "F.grid_sample": (lambda x, grid: F.grid_sample(x, grid.tanh(), align_corners=False), (1, 2, 8, 8), (1, 3, 3, 2)),
    "F.cross_entropy": (lambda x, w: F.cross_entropy(x, INDEX, w.abs()), (2, 4), (4,)),
    "F.cross_entropy of probabilities": (lambda x, w: F.cross_entropy(x, x.softmax(-1), w), (2, 4), (4,)),
    "F.embedding_bag": (lambda x, w: F.embedding_bag(ROWS, x, mode="sum", per_sample_weights=w), (2, 4), (2, 4)),
    "torch.cross": (lambda x, y: torch.cross(x, y, dim=1), (2, 3), (2, 3)),
    "lerp": (lambda x, s: torch.lerp(x, s, 0.5), (2, 4), (2, 4)),
    "+": (torch.add, (2, 4), (2, 4)),
    "cat": (lambda x, s: torch.cat([x, s]), (2, 4), (2, 4)),
    "masked_fill": (lambda x, s: x.masked_fill(ROWS == 0, torch.finfo(s.dtype).min), (2, 4), (1,)),
    "F.pad": (lambda x, s: F.pad(x, (1, 1), value=torch.finfo(s.dtype).min), (2, 4), (1,)),
}


def attempt(operation, x, other, dtype):
    """The result; None where torch refuses the dtypes."""
    with torch.autocast(devices.TYPE, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        try:
            return operation(x, other)
        except RuntimeError as error:
            told = str(error).lower()
            assert any(word in told for word in ("dtype", "scalar", "same", "did not match", "overflow", "promot")), (
                told
            )
            return None


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # rms_norm's, of its slower kernel
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["outside autocast", "autocast"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_cast_exactly_where_torch_refuses_it(name, autocast):
    operation, *shapes = OPERATIONS[name]
    for dtypes in itertools.product(FLOATING, repeat=2):
        torch.manual_seed(0)
        x, other = (torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
        casts = []
        plain = attempt(operation, x, other, autocast)
        with CastOnMismatch(lambda *told, casts=casts: casts.append(told) or True):
            mended = attempt(operation, x, other, autocast)
        if plain is None and mended is None:
            # CUDA's autocast refuses float16 alone as well, where it promotes and its own dtype is another.
            assert (devices.TYPE, autocast, *dtypes) == ("cuda", torch.bfloat16, torch.float16, torch.float16)
        elif plain is not None:
            assert torch.equal(mended, plain), dtypes
            assert mended.dtype == plain.dtype, dtypes
            assert not casts or name == "x[slice] = ", dtypes
        else:
            joined = autocast if len(set(dtypes)) == 1 else torch.float32
            assert mended.dtype == (joined if name == "cat" else x.dtype), dtypes
            # CUDA's autocast refuses an index_put or a scatter_add in a half precision that is not its own.
            assert len(casts) == 1 or (devices.TYPE, autocast) == ("cuda", torch.bfloat16), dtypes
            if "mask" not in name and name != "F.pad":
                torch.testing.assert_close(mended.double(), operation(x.double(), other.double()), atol=0.1, rtol=0.1)


def test_a_product_is_computed_in_its_parameters_dtype_and_in_the_half_precision_where_it_has_none():
    x, weight = torch.randn(2, 4).bfloat16(), nn.Parameter(torch.randn(4, 3))
    with CastOnMismatch(), torch.no_grad():
        with_a_parameter, with_none = x @ weight, x @ weight.data
    assert torch.equal(with_a_parameter, (x.float() @ weight).bfloat16())
    assert torch.equal(with_none, x @ weight.bfloat16())


@torch.library.custom_op("qlora_bf16_patch_tests::distance", mutates_args=())
def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Refuses mixed dtypes as torchvision's kernels do (roi_align, deform_conv2d)."""
    if x.dtype != y.dtype:
        raise RuntimeError(f"Expected y to have the same type as x, but type {y.dtype} does not equal {x.dtype}")
    return (x - y).abs()


def near(*shape):
    """Two tensors whose difference is 1 percent of their values."""
    x = torch.rand(shape)
    return x, x + 0.01 * torch.rand(shape)


def grid(*shape):
    return torch.rand(shape) * 1.8 - 0.9


def sampled(x, grid):
    return F.grid_sample(x, grid, align_corners=False)


def pooled(x, samples):
    return F.fractional_max_pool2d(x, 3, output_ratio=(0.37, 0.37), _random_samples=samples)


CLASSES = torch.arange(50, device=devices.TYPE)
# name: the operation, and what makes its two operands. Half precision is too coarse for what these compute.
COARSE = {
    "grid_sample, 128 wide": (sampled, lambda: (torch.randn(1, 1, 128, 128), grid(1, 20, 20, 2))),
    "grid_sample, 640 wide": (sampled, lambda: (torch.randn(1, 1, 640, 640), grid(1, 20, 20, 2))),
    "grid_sample, volumes": (sampled, lambda: (torch.randn(1, 1, 64, 64, 64), grid(1, 9, 9, 9, 3))),
    "fractional_max_pool2d": (pooled, lambda: (torch.randn(1, 4, 200, 200), torch.rand(1, 4, 2))),
    "cross_entropy": (lambda x, w: F.cross_entropy(x, CLASSES, w), lambda: (4 * torch.randn(50, 50), torch.rand(50))),
    "nll_loss": (lambda x, w: F.nll_loss(x, CLASSES, w), lambda: (-torch.rand(50, 50), torch.rand(50))),
    "cdist": (torch.cdist, lambda: near(1, 50, 3)),
    "cross": (torch.linalg.cross, lambda: near(50, 3)),
    "quantile": (torch.quantile, lambda: (torch.rand(1000), torch.rand(20))),
    "isclose": (lambda x, y: torch.isclose(x, y, rtol=5e-3), lambda: near(1000)),
    "meshgrid": (lambda x, y: torch.meshgrid(x, y, indexing="ij")[1], lambda: (torch.rand(9), torch.arange(999.0))),
    "layer_norm": (lambda x, w: F.layer_norm(x, (64,), w), lambda: (torch.randn(50, 64) + 10, torch.randn(64))),
    "of another library": (distance, lambda: near(100)),
}


@pytest.mark.parametrize("name", COARSE)
def test_an_operation_is_computed_in_the_widest_dtype_of_its_operands(name):
    operation, make = COARSE[name]
    torch.manual_seed(0)
    made, mixtures = make(), 0
    for dtypes in itertools.permutations(FLOATING, 2):
        x, other = (tensor.to(dtype) for tensor, dtype in zip(made, dtypes, strict=True))
        if attempt(operation, x, other, None) is None:
            with CastOnMismatch() as mode:
                result = operation(x, other)
            wide = operation(x.float(), other.float())
            expected = wide.to(x.dtype) if name not in ("isclose", "meshgrid") else wide
            assert torch.equal(result, expected), dtypes
            assert result.dtype == expected.dtype, dtypes
            assert mode.casts == 1, dtypes
            mixtures += 1
    assert mixtures >= 4


def test_a_write_is_computed_in_the_dtype_of_what_is_written_to():
    x, source = torch.zeros(2).half(), torch.randn(2)
    with CastOnMismatch() as mode:
        x.index_copy_(0, INDEX, source).index_add_(0, INDEX, source)
        x[INDEX] += x.scatter(0, INDEX, source)
    assert torch.equal(x, 3 * source.half())
    assert mode.casts == 3


def test_a_table_is_not_copied_for_the_weights_of_some_rows():
    table, weights, asked = torch.randn(9, 4).bfloat16(), torch.rand(1, 3), []
    with CastOnMismatch(lambda *told: asked.append(told[1:]) or True):
        F.embedding_bag(ROWS[:1, :3], table, mode="sum", per_sample_weights=weights)
    assert asked == [("per_sample_weights", torch.float32, torch.bfloat16)]


def test_an_error_about_something_else_comes_through():
    with CastOnMismatch() as mode, pytest.raises(RuntimeError, match="shape"):
        torch.randn(2, 3).bfloat16().view(4, 5)
    assert mode.casts == 0


def test_a_cast_that_is_refused_is_left_to_torch():
    x, weight = torch.randn(2, 4), torch.randn(3, 4).bfloat16()
    with CastOnMismatch(lambda *_: False) as mode, pytest.raises(RuntimeError, match="dtype"):
        F.linear(x, weight)
    assert mode.casts == 0


def test_an_operation_with_a_buffer_of_the_callers_is_left_to_torch():
    weight, x, buffer = torch.randn(3, 4).bfloat16(), torch.randn(4), torch.zeros(3)
    with CastOnMismatch(), pytest.raises(RuntimeError, match=r"dtype|scalar type"):
        torch.mv(weight, x, out=buffer)
