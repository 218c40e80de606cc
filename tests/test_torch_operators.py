"""fastconv.torch's operators and functions: PyTorch's own checks of them, and its functions as the referee."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from fresh import python
from torch.nn import functional as F

import fastconv as fc
import fastconv.torch as ft
from fastconv.options import current
from fastconv.torch import convolutions, windows

W64 = {"dtype": torch.float64}
WINDOW = ((2, 1), (1, 1, 0, 2), (1, 2), 2)
POOL = ((3, 2), (2, 2), (1, 1))


def leaf(*shape: int, distinct: bool = False) -> torch.Tensor:
    """Return a tensor that wants its gradient; of distinct elements, so that maxima are unique."""
    generator = torch.Generator().manual_seed(0)
    size = torch.Size(shape).numel()
    values = torch.randperm(size, generator=generator) if distinct else torch.randn(size, generator=generator, **W64)
    return values.to(torch.float64).reshape(shape).requires_grad_()


def indices() -> torch.Tensor:
    return windows.max_pool(leaf(2, 2, 6, 5, distinct=True), (2, 2), (2, 2), (0, 0), (1, 1), False)[1]


# An operator's name: its arguments, tensors that want gradients first.
SAMPLES = {
    "conv": lambda: (leaf(2, 4, 6, 7), leaf(6, 2, 3, 2), leaf(6), *WINDOW),
    "conv_input": lambda: (leaf(2, 6, 3, 7), leaf(6, 2, 3, 2), leaf(4), (6, 7), *WINDOW),
    "conv_weight": lambda: (leaf(2, 4, 6, 7), leaf(2, 6, 3, 7), (3, 2), *WINDOW),
    "max_pool": lambda: (leaf(2, 2, 6, 5, distinct=True), *POOL, (1, 1), True),
    "max_pool_input": lambda: (leaf(2, 2, 3, 2), indices(), (6, 5), (2, 2), (2, 2), (0, 0), (1, 1), False),
    "adaptive_max_pool": lambda: (leaf(2, 2, 6, 5, distinct=True), (3, 2)),
    "avg_pool": lambda: (leaf(2, 2, 6, 5), *POOL, True, False, None),
    "avg_pool_input": lambda: (leaf(2, 2, 4, 3), (6, 5), *POOL, True, False, None),
    "adaptive_avg_pool": lambda: (leaf(2, 2, 6, 5), (4, 2)),
    "adaptive_avg_pool_input": lambda: (leaf(2, 2, 4, 2), (6, 5), (4, 2)),
    "max_unpool": lambda: (leaf(2, 2, 3, 2), indices(), (6, 5)),
    "unfold": lambda: (leaf(2, 2, 6, 5), (3, 2), (1, 2), (1, 0), (2, 1)),
    "fold": lambda: (leaf(2, 12, 9), (6, 5), (3, 2), (1, 2), (1, 0), (2, 1)),
}
OPERATORS = {name: getattr(windows, name, None) or getattr(convolutions, name) for name in SAMPLES}


def differentiable(name: str):
    """Return an operator's function of the tensors that want gradients, and these."""
    args = SAMPLES[name]()
    wanting = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    rest = args[len(wanting) :]
    return lambda *tensors: first(OPERATORS[name](*tensors, *rest)), wanting


def first(result):
    return result[0] if isinstance(result, tuple) else result


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b)


def test_samples_are_of_every_operator():
    registered = {n.partition("::")[2] for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastconv::")}
    assert registered == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name):
    torch.library.opcheck(OPERATORS[name].op, SAMPLES[name]())


@pytest.mark.parametrize("name", SAMPLES)
def test_gradcheck(name):
    function, tensors = differentiable(name)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize(("width", "dtype"), [(20, torch.int16), (40000, torch.int32)])
@pytest.mark.parametrize(
    "pool", [partial(ft.max_pool2d, kernel_size=2), partial(ft.adaptive_max_pool2d, output_size=(2, 9))]
)
def test_indices_that_nobody_asks_for_are_narrow(pool, width, dtype):
    x, kept = leaf(2, 3, 4, width, distinct=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.dtype) or t, lambda t: t):
        y = pool(x)
        _, indices = pool(x, return_indices=True)
    assert kept == [dtype, torch.int64]
    assert indices.dtype == torch.int64
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    ones = torch.ones_like(y).flatten(2)
    times = torch.zeros_like(x).flatten(2).scatter_add_(2, indices.flatten(2), ones).view(x.shape)
    assert torch.equal(dx, 2 * x * times)
    assert torch.equal(torch.autograd.grad(dx.sum(), x)[0], 2 * times)


def test_max_unpool_takes_indices_of_64_bits_alone():
    with pytest.raises(ValueError, match="indices: expected int64"):
        windows.max_unpool(leaf(2, 2, 3, 2), indices().to(torch.int16), (6, 5))


@pytest.mark.parametrize("name", SAMPLES)
def test_gradients_through_the_dispatcher_are_the_same(name):
    function, tensors = differentiable(name)
    rest = SAMPLES[name]()[len(tensors) :]
    direct = function(*tensors)
    dispatched = first(OPERATORS[name].op(*tensors, *rest))
    assert torch.equal(direct, dispatched) and direct.stride() == dispatched.stride()
    g = torch.ones_like(direct)
    for a, b in zip(torch.autograd.grad(direct, tensors, g), torch.autograd.grad(dispatched, tensors, g), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SAMPLES)
def test_vmap(name):
    """Over every choice of the arguments that may have a batch axis: as a loop over the batch."""
    function, tensors = differentiable(name)
    stacks = [torch.stack([t.detach(), t.detach().flip(0)]) for t in tensors]
    for chosen in itertools.product((True, False), repeat=len(tensors)):
        if any(chosen):
            args = [s if c else t.detach() for s, t, c in zip(stacks, tensors, chosen, strict=True)]
            result = torch.func.vmap(function, tuple(0 if c else None for c in chosen))(*args)
            loop = [function(*(a[i] if c else a for a, c in zip(args, chosen, strict=True))) for i in range(2)]
            close(result, torch.stack(loop))


@pytest.mark.parametrize("name", SAMPLES)
def test_functional_gradients(name):
    """torch.func's gradients, alone and under vmap, are autograd's."""
    function, tensors = differentiable(name)
    weight = torch.randn_like(function(*tensors).detach())
    loss = lambda *t: (function(*t) * weight).sum()  # noqa: E731
    expected = torch.autograd.grad(loss(*tensors), tensors)
    everything = tuple(range(len(tensors)))
    for a, b in zip(torch.func.grad(loss, everything)(*tensors), expected, strict=True):
        close(a, b)
    stacks = [torch.stack([t.detach(), t.detach()]) for t in tensors]
    for a, b in zip(torch.func.vmap(torch.func.grad(loss, everything))(*stacks), expected, strict=True):
        close(a[1], b)


def test_batched_gradients_of_autograd():
    x, w, b, *rest = SAMPLES["conv"]()
    y = convolutions.conv(x, w, b, *rest)
    (rows,) = torch.autograd.grad(y, w, torch.stack([torch.ones_like(y), y.detach()]), is_grads_batched=True)
    close(rows[1], torch.autograd.grad(convolutions.conv(x, w, b, *rest), w, y.detach())[0])


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["conv", "max_pool", "avg_pool", "adaptive_avg_pool", "max_pool_input"])
def test_strides_are_those_of_the_fake(name, order):
    args = [a.detach().contiguous(memory_format=order) if i == 0 else a for i, a in enumerate(SAMPLES[name]())]
    real = OPERATORS[name](*args)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = OPERATORS[name].op(*[mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in args])
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (real, fake)), strict=True):
        assert a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
    if name != "max_pool_input":
        assert first(real).is_contiguous(memory_format=order)


def test_zero_copy():
    """A result's memory is what fastconv made, an argument's what it reads."""
    x = torch.zeros(1, 1, 2, 2)
    assert ft.tensors.array(x).ctypes.data == x.data_ptr()
    array = ft.tensors.array(ft.conv2d(x, torch.ones(1, 1, 1, 1)))
    assert ft.tensors.tensor(array).data_ptr() == array.ctypes.data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)
    ft.stats(reset=True)
    half = ft.conv2d(x.to(dtype), w.to(dtype), padding=1)
    assert half.dtype == dtype and ft.stats().computed["conv2d"] == 1
    # Summed in float32 and rounded once: at most the last bit is another than that of the sum in float64.
    exact = F.conv2d(x.to(dtype).double(), w.to(dtype).double(), padding=1)
    torch.testing.assert_close(half.double(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).tiny)


def test_autocast_computes_in_its_dtype():
    x, w = torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ft.conv2d(x, w)
        assert y.dtype == ft.conv_transpose2d(x, torch.randn(3, 2, 2, 2)).dtype == torch.bfloat16
        assert ft.avg_pool3d(x[None].bfloat16(), 2).dtype == F.avg_pool3d(x[None].bfloat16(), 2).dtype
    y.sum().backward()
    assert w.grad is not None and w.grad.dtype == torch.float32


def test_threads_are_no_more_than_pytorchs(monkeypatch):
    seen = []
    monkeypatch.setattr(ft.tensors, "_CORES", 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ft.tensors.run(lambda: seen.append(current().threads))
        with fc.options(threads=2):
            ft.tensors.run(lambda: seen.append(current().threads))
    finally:
        torch.set_num_threads(before)
    assert seen == [3, 2]


def test_what_fastconv_cannot_do_is_pytorchs():
    ft.stats(reset=True)
    x = torch.ones(1, 1, 4, 4, dtype=torch.int64)
    assert torch.equal(ft.conv2d(x, x[..., :2, :2]), F.conv2d(x, x[..., :2, :2]))
    with pytest.raises(RuntimeError, match=r"padding='same' is not supported"):
        ft.conv2d(x.float(), x.float(), stride=2, padding="same")
    with pytest.raises(RuntimeError):
        ft.conv2d(torch.ones(1, 3, 4, 4), torch.ones(1, 2, 2, 2))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.double(), x.double())
        assert torch.autograd.forward_ad.unpack_dual(ft.avg_pool2d(dual, 2)).tangent is not None
    left = ft.stats(reset=True).left
    assert left.total() == 4 and left["avg_pool2d", "forward-mode differentiation"] == 1
    assert "PyTorch" in str(ft.stats()) or str(ft.stats()) == "no calls"


def test_indices_are_checked():
    dy, where = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 16)
    window = ((2, 2), (2, 2), (0, 0), (1, 1), False)
    for wrong in (where, where - 100):
        with pytest.raises(ValueError, match="indices: expected values from -1 to 15"):
            windows.max_pool_input(dy, wrong, (4, 4), *window)
    with pytest.raises(RuntimeError):
        ft.max_unpool2d(dy, where, 2)


def test_kept_weights_follow_changes():
    x, w = torch.randn(1, 8, 6, 6), torch.nn.Parameter(torch.randn(8, 8, 3, 3))
    with torch.no_grad():
        close(ft.conv2d(x, w), F.conv2d(x, w))
        assert ft.conv2d(x, w).equal(ft.conv2d(x, w))
        w.mul_(2)  # the version counter says so
        close(ft.conv2d(x, w), F.conv2d(x, w))
        w.data.add_(1)  # behind PyTorch's back: a sample shows it
        close(ft.conv2d(x, w), F.conv2d(x, w))
        w.data = torch.randn(8, 8, 3, 3)  # other memory
        close(ft.conv2d(x, w), F.conv2d(x, w))
        w.data = w.data.transpose(2, 3)  # the same memory, read otherwise
        close(ft.conv2d(x, w), F.conv2d(x, w))
    kept = ft.kept._records
    key = id(w)
    assert key in kept
    del w
    assert key not in kept


def _with_optimizer(kind, **how):
    def write(conv):
        optimizer = kind(conv.parameters(), 1.0, **how)
        conv.weight.grad, conv.bias.grad = torch.zeros_like(conv.weight), torch.zeros_like(conv.bias)
        conv.weight.grad[1, 2, 0, 1] = 1
        optimizer.step()

    return write


def _in_inference_mode(conv):
    with torch.inference_mode():
        conv.weight.detach()[1, 2, 0, 1] += 1


def _loaded(conv, assign):
    state = {name: value.clone() for name, value in conv.state_dict().items()}
    state["weight"][1, 2, 0, 1] += 1
    conv.load_state_dict(state, assign=assign)


def _from_vector(conv):
    vector = torch.nn.utils.parameters_to_vector(conv.parameters()).clone()
    vector[25] += 1
    torch.nn.utils.vector_to_parameters(vector, conv.parameters())


def _foreach(conv):
    torch._foreach_mul_([conv.weight[1, 2]], 2.0)


WRITES = {
    "an element": lambda conv: conv.weight[1, 2, 0, 1].add_(1),
    "a view": lambda conv: conv.weight.view(-1)[25:26].mul_(2),
    "a detached one": lambda conv: conv.weight.detach()[1, 2, 0, 1].zero_(),
    "out": lambda conv: torch.neg(conv.weight.clone()[1], out=conv.weight[1]),
    "bias": lambda conv: conv.bias[1].add_(1),
    "bias, behind PyTorch's back": lambda conv: conv.bias.data[1].add_(1),
    "foreach": _foreach,
    "inference mode": _in_inference_mode,
    "loaded": partial(_loaded, assign=False),
    "loaded by assignment": partial(_loaded, assign=True),
    "from a vector": _from_vector,
    "SGD": _with_optimizer(torch.optim.SGD, foreach=False),
    "SGD, foreach": _with_optimizer(torch.optim.SGD, foreach=True),
    "SGD, fused": _with_optimizer(torch.optim.SGD, fused=True),
    "Adam, fused": _with_optimizer(torch.optim.Adam, fused=True),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_kept_weight_is_packed_anew_after_every_kind_of_write(write):
    """One element is changed, in all ways that PyTorch counts: none gives a result that is out of date."""
    torch.manual_seed(0)
    conv, x = torch.nn.Conv2d(8, 8, 3), torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        before = [ft.conv2d(x, conv.weight, conv.bias) for _ in range(2)][-1]
        assert ft.kept._records[id(conv.weight)].plans
        WRITES[write](conv)
        after, expected = ft.conv2d(x, conv.weight, conv.bias), F.conv2d(x, conv.weight, conv.bias)
    close(after, expected)
    assert not torch.allclose(after, before)


def test_absence_of_pytorch_is_explained():
    code = "import sys; sys.modules['torch'] = None\nimport fastconv\ntry:\n    import fastconv.torch\n"
    assert "pip install 'fastconv[torch]'" in python(code + "except ImportError as e:\n    print(e)").stdout
