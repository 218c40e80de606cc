"""`fastconv.torch.use`: PyTorch's own samples of its functions, training, compilers, and processes."""

from __future__ import annotations

import math
import multiprocessing
import tempfile
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import conv2d as bound_by_name
from torch.testing._internal.common_methods_invocations import op_db

import fastconv.torch as ft
from fastconv.algorithm import EPSILON, ERROR_CONSTANT

# PyTorch's database of its functions: those that fastconv offers.
NAMES = {f"nn.functional.{name}" for name in ft.functional.OFFERS}
ENTRIES = [info for info in op_db if info.name in NAMES]
# The database has none of these; their calls stand here.
OTHERS = {
    "lp_pool1d": [((2, 3, 9), 2, 3), ((3, 8), 1, 2, 1, True)],
    "lp_pool2d": [((2, 3, 8, 9), 2.0, (3, 2), 2), ((3, 7, 7), 4, 3), ((1, 2, 7, 7), 1, 3, 2, True)],
    "lp_pool3d": [((1, 2, 5, 6, 5), 2, 2)],
    "fold": [((2, 12, 12), (4, 5), 2), ((6, 6), (6, 7), (2, 3), (1, 2), (0, 1), (3, 2))],
}


@pytest.fixture(autouse=True)
def _counts():
    ft.stats(reset=True)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding="same", padding_mode="circular", groups=2),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.AvgPool2d(3, 2, 1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_every_function_has_its_samples():
    assert {info.name.rpartition(".")[2] for info in ENTRIES} | set(OTHERS) == set(ft.functional.OFFERS)
    assert len(ENTRIES) == len(NAMES) - len(OTHERS) + 3  # max_unpool* twice


def check(name, dtype, samples):
    """Compare results and gradients with PyTorch's; ``samples`` are a tensor, arguments and keywords each."""
    for x, args, kwargs in samples:
        outcomes = []
        for block in (torch.enable_grad(), ft.use()):
            with block:
                y = getattr(F, name)(x, *args, **kwargs)
            tensors = [t for t in (x, *args) if isinstance(t, torch.Tensor) and t.requires_grad]
            result = y[0] if isinstance(y, tuple) else y
            g = torch.randn(result.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
            outcomes.append((*(y if isinstance(y, tuple) else (y,)), *torch.autograd.grad(result, tensors, g)))
            with torch.no_grad(), block:  # without a gradient to record there is another way
                y = getattr(F, name)(x, *args, **kwargs)
            outcomes[-1] += y if isinstance(y, tuple) else (y,)
        bounds = error_bounds(name, x, args, kwargs, g) if name.startswith("conv") else [None] * len(outcomes[0])
        for theirs, ours, bound in zip(*outcomes, bounds, strict=True):
            if bound is None:
                torch.testing.assert_close(ours, theirs)
            else:
                assert ours.dtype == theirs.dtype and ((ours - theirs).abs() <= bound).all()


def error_bounds(name, x, args, kwargs, g):
    """Return how far two convolutions' results and gradients may be apart: that of absolute values, times rounding."""
    operands = [t.detach().double().abs().requires_grad_() if isinstance(t, torch.Tensor) else t for t in (x, *args)]
    y = getattr(F, name)(*operands, **kwargs)
    tensors = [t for t in operands if isinstance(t, torch.Tensor)]
    gradients = torch.autograd.grad(y, tensors, g.double().abs())
    terms = max(t.numel() for t in (y, *tensors))  # no sum has more
    factor = 2 * ERROR_CONSTANT * EPSILON[str(x.dtype).removeprefix("torch.")] * math.sqrt(terms)
    return [factor * t.detach() for t in (y, *gradients, y)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("info", ENTRIES, ids=lambda info: info.name.rpartition(".")[2] + info.variant_test_name)
def test_opinfo(info, dtype):
    """Every sample of PyTorch's database: the same result and the same gradients as PyTorch's."""
    name = info.name.rpartition(".")[2]
    samples = [(s.input, s.args, s.kwargs) for s in info.sample_inputs("cpu", dtype, requires_grad=True)]
    check(name, dtype, samples)
    counted = ft.stats()
    assert counted.computed[name] >= len(samples), counted  # of two calls each; some are of empty batches and the like
    reasons = {reason for (of, reason) in counted.left if of == name}
    assert reasons <= {"an empty tensor", "output_padding: of the stride or more"}, counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OTHERS)
def test_what_the_database_lacks(name, dtype):
    generator = torch.Generator().manual_seed(0)
    samples = [
        (torch.rand(shape, dtype=dtype, generator=generator).requires_grad_(), args, {})
        for shape, *args in OTHERS[name]
    ]
    check(name, dtype, samples)
    assert not ft.stats().left


def test_modules_train_as_without():
    losses = []
    for block in (torch.enable_grad(), ft.use()):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with block:
            for _ in range(3):
                optimizer.zero_grad()
                net(X).square().mean().backward()
                optimizer.step()
        losses.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    torch.testing.assert_close(*losses)
    assert not ft.stats().left


def test_blocks_nest_and_end():
    theirs = F.conv2d
    with pytest.raises(ZeroDivisionError), ft.use():  # noqa: PT012
        assert F.conv2d is not theirs and torch.conv2d is F.conv2d
        with ft.use(dtypes=[torch.float64]):
            F.max_pool2d(X, 2)
        F.max_pool2d(X, 2)
        1 / 0  # noqa: B018
    assert F.conv2d is theirs and torch.conv2d is theirs
    counted = ft.stats()
    assert counted.computed == {"max_pool2d": 1} and counted.left == {("max_pool2d", "dtype torch.float32"): 1}
    with pytest.raises(ValueError, match="dtypes"):
        ft.use(dtypes=[torch.int8])


def test_as_a_decorator():
    @ft.use()
    def pool(x):
        return F.max_pool2d(x, 2)

    assert torch.equal(pool(X), F.max_pool2d(X, 2)) and ft.stats().computed == {"max_pool2d": 1}


def test_names_bound_before():
    w = torch.ones(1, 3, 2, 2)
    with ft.use():
        bound_by_name(X, w)
    assert not ft.stats().computed
    with ft.use(bound_names=True):
        bound_by_name(X, w)
        nn.MaxPool2d(2)(X)
    assert ft.stats().computed == {"conv2d": 1, "max_pool2d": 1}


def test_other_threads_and_inference_mode():
    net, results = model().eval(), []

    def work():
        with torch.inference_mode():
            results.append(net(X))

    with ft.use():
        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for result in results:
        torch.testing.assert_close(result, net(X).detach())
        assert result.is_inference()
    assert ft.stats().computed["conv2d"] == 6 and len(results) == 3


def test_biases_at_one_address_are_told_apart():
    """What a packed parameter is found by: other elements of an array begin where these do."""
    torch.manual_seed(0)
    weight, biases = nn.Parameter(torch.randn(4, 3, 3, 3)), torch.randn(8)
    with torch.no_grad(), ft.use():
        for bias in (biases[:4], biases[::2], biases[:1].expand(4), biases[:4]):
            torch.testing.assert_close(F.conv2d(X, weight, bias), bound_by_name(X, weight, None) + bias[:, None, None])
        with pytest.raises(RuntimeError):
            F.conv2d(X, weight, biases[:3])


def test_a_parameter_may_move_to_shared_memory():
    conv, x = nn.Conv2d(256, 256, 3), torch.randn(1, 256, 4, 4)  # its old memory goes back to the system
    with torch.no_grad(), ft.use():
        y = conv(x)
        conv.share_memory()
        assert torch.equal(conv(x), y)


def test_a_weight_of_too_few_axes_is_pytorchs_error():
    x, weight = torch.ones(3, 8, 8, requires_grad=True), torch.ones(4, 3, 3)
    with ft.use(), pytest.raises(RuntimeError):
        F.conv2d(x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1024,), (1, 1024), (2, 3, 1024)])
def test_large_fully_connected_layers_of_few_rows(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    layer, x = nn.Linear(1024, 1100, dtype=dtype), torch.randn(shape, dtype=dtype, generator=generator)
    with torch.no_grad():
        expected = layer(x)
        with ft.use():
            y = layer(x)
    bound = 2 * ERROR_CONSTANT * EPSILON[str(dtype).removeprefix("torch.")] * math.sqrt(1025)
    with torch.no_grad():
        assert ((y - expected).abs() <= bound * F.linear(x.abs(), layer.weight.abs(), layer.bias.abs())).all()
    assert y.shape == expected.shape and y.dtype == dtype and ft.stats().computed == {"linear": 1}


def test_other_fully_connected_layers_are_pytorchs():
    layer, x = nn.Linear(1024, 1100), torch.randn(2, 1024)
    with ft.use(dtypes=[torch.float32]):
        layer(x).sum().backward()  # a gradient is recorded
        with torch.no_grad():
            layer(torch.randn(100, 1024))
            nn.functional.linear(x, torch.randn(1024, 1100).T)
            nn.Linear(5, 6)(torch.randn(2, 5))
            with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
                layer(torch.randn(2, 1023))
            with torch.autocast("cpu"):
                assert layer(x).dtype == torch.bfloat16
            assert layer(torch.nested.nested_tensor([x, x[:1]])).is_nested
            layer.double()(x.double())
            layer.bfloat16()(x.bfloat16())
    assert layer.weight.grad is not None and not ft.stats().computed and not ft.stats().left


def test_channels_last_is_kept():
    net = model().to(memory_format=torch.channels_last)
    x = X.contiguous(memory_format=torch.channels_last)
    with ft.use():
        y = net[0](x)
        torch.testing.assert_close(net(x), model()(X))
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model()(X)
        with ft.use():
            assert torch.equal(model()(X), expected)  # half types are PyTorch's, unless they are asked for
        assert {reason for _, reason in ft.stats(reset=True).left} == {"dtype torch.bfloat16"}
        with ft.use(dtypes=[torch.bfloat16, torch.float32]):
            y = model()(X)
    assert y.dtype == torch.bfloat16 and ft.stats().computed["conv2d"] == 2
    error = torch.linalg.vector_norm(y.double() - expected.double()) / torch.linalg.vector_norm(expected.double())
    assert error < torch.finfo(torch.bfloat16).eps
    y.float().sum().backward()


def fastconvs(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if "fastconv" in str(node.target)]


def test_compile():
    net, graphs = model(), []
    expected = torch.autograd.grad(net(X).sum(), list(net.parameters()))

    def backend(graph, inputs):
        graphs.append(graph.graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    with ft.use():
        compiled = torch.compile(net, fullgraph=True, backend=backend)
        gradients = torch.autograd.grad(compiled(X).sum(), list(net.parameters()))
    assert len(graphs) == 1 and len(fastconvs(graphs[0])) == 5
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_compile_with_inductor_and_any_size():
    net = model()[:4]
    with ft.use():
        compiled = torch.compile(net, fullgraph=True, dynamic=True)
        for size in (8, 10):
            x = torch.randn(2, 3, size, size)
            torch.testing.assert_close(compiled(x), model()[:4](x))


def test_export():
    net = model().eval()
    with ft.use():
        exported = torch.export.export(net, (X,))
    assert len(fastconvs(exported.graph)) == 5
    torch.testing.assert_close(exported.module()(X), net(X))


def test_traces_are_pytorchs():
    net = model().eval()
    with ft.use():
        traced = torch.jit.trace(net, X)
    assert {reason for _, reason in ft.stats().left} == {"torch.jit.trace"}
    torch.testing.assert_close(traced(2 * X), net(2 * X))


def test_per_sample_gradients():
    net = model().eval()
    parameters = dict(net.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(net, parameters, (x[None],)).square().sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))
    expected = gradients(parameters, X)
    with ft.use():
        ours = gradients(parameters, X)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value)
    assert ft.stats().computed["conv2d"] == 2


class _Pooled(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        with torch.no_grad():
            return F.conv2d(X + index, torch.ones(4, 3, 3, 3)), ft.stats().computed["conv2d"]


def test_dataloader_workers_that_fork():
    with ft.use():
        F.conv2d(X, torch.ones(4, 3, 3, 3))  # the parent's threads are at work already
        loader = torch.utils.data.DataLoader(_Pooled(), num_workers=2, multiprocessing_context="fork")
        batches = list(loader)
    for index, (maps, counted) in enumerate(batches):
        torch.testing.assert_close(maps[0], F.conv2d(X + index, torch.ones(4, 3, 3, 3)))
        assert counted.item() >= 1


def _train(rank: int, rendezvous: str, fast: bool, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    net = nn.parallel.DistributedDataParallel(model())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with ft.use() if fast else torch.enable_grad():
        for _ in range(3):
            optimizer.zero_grad()
            net(X + rank).square().mean().backward()
            optimizer.step()
    assert (ft.stats().computed["conv2d"] > 0) == fast
    if rank == 0:
        results.put([p.detach().numpy() for p in net.parameters()])
    torch.distributed.barrier()
    # A network that outlives its group ends gloo's threads while it holds the interpreter's lock, for which one of them
    # may be waiting: PyTorch alone, without fastconv, hangs so in one of twenty such runs on a busy machine.
    del net
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel():
    """Two processes, with gloo: the same parameters as without fastconv."""
    context = multiprocessing.get_context("fork")
    parameters = []
    for fast in (False, True):
        results = context.Queue()
        with tempfile.TemporaryDirectory() as directory:
            arguments = [(rank, f"{directory}/rendezvous", fast, results) for rank in range(2)]
            processes = [context.Process(target=_train, args=a) for a in arguments]
            for process in processes:
                process.start()
            parameters.append([torch.from_numpy(p) for p in results.get(timeout=120)])
            for process in processes:
                process.join(60)
                assert process.exitcode == 0
    for with_fastconv, without in zip(*parameters, strict=True):
        torch.testing.assert_close(with_fastconv, without)


@pytest.mark.parametrize("input", [None, 3.0, [[1.0]]])
def test_what_is_no_tensor_is_pytorchs_error(input):
    for conv2d in (ft.conv2d, ft.use()(lambda *args: F.conv2d(*args))):
        with pytest.raises(TypeError, match="conv2d"):
            conv2d(input, torch.ones(4, 3, 3, 3))
