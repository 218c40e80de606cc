"""Who runs whole networks: fastconv, alone and within PyTorch, PyTorch in its layouts and compiled, ONNX Runtime.

All have the same weights.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastconv import networks, nn
from fastconv.options import options

Run: TypeAlias = Callable[[], Any]

# What a training step does: softmax cross-entropy, and SGD with this rate and momentum.
RATE, MOMENTUM = 1e-3, 0.9


class Job(NamedTuple):
    """What is measured: a network on a batch, forward in evaluation mode or a whole training step."""

    network: str
    batch: int
    training: bool
    threads: int

    def images(self) -> Any:
        """Return a batch of random images."""
        shape = self.batch, *networks.described(self.network).input_shape
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    def labels(self) -> Any:
        """Return a class for each."""
        return np.arange(self.batch) % 10

    def built(self) -> nn.Sequential:
        """Return the network in `fastconv.nn`, with the weights that every entrant has; without dropout."""
        network = nn.build(self.network, random=0)
        for _, layer in network.named_layers():
            if isinstance(layer, nn.Dropout):
                layer.share = 0.0
        return network


class Entrant(NamedTuple):
    """Someone who runs networks.

    Attributes
    ----------
    name : str
    needs : tuple of str
        What must be installed.
    trains : bool
    prepare : callable
        ``prepare(job, same)`` returns the run: it returns the outputs, or the loss of a training step. With ``same`` it
        has the weights that all others have; without, those that it begins with, so that nobody else's are in memory.
    """

    name: str
    needs: tuple[str, ...]
    trains: bool
    prepare: Callable[[Job, bool], Run]


def _fastconv(job: Job, same: bool) -> Run:
    network, x = job.built(), job.images()
    with options(threads=job.threads):
        if not job.training:
            predict = nn.Inference(network, x)
            return lambda: predict(x)
    loss, optimiser, labels = nn.SoftmaxCrossEntropy(), nn.SGD(network, RATE, MOMENTUM), job.labels()

    def run() -> float:
        with options(threads=job.threads):
            return nn.train_step(network, loss, optimiser, x, labels)

    return run


def torch_run(
    job: Job,
    same: bool,
    *,
    channels_last: bool = False,
    made: Callable[[Any], Any] = lambda module: module,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Run:
    """Return the run of the PyTorch module, or of what is made of it, under a context such as `fastconv.torch.use`."""
    import torch

    from benchmarks.networks import torch_modules

    torch.set_num_threads(job.threads)
    module = torch_modules.build(job.network)
    if same:
        torch_modules.load(module, job.built().state())
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    x, labels = torch.from_numpy(job.images()), torch.from_numpy(job.labels())
    if channels_last:
        module, x = module.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    if not job.training:
        module.eval()
    called = made(module)
    if not job.training:

        def forward() -> Any:
            with within(), torch.inference_mode():
                return called(x).numpy()

        return forward
    optimiser = torch.optim.SGD(module.parameters(), RATE, MOMENTUM)
    cross_entropy = torch.nn.CrossEntropyLoss()

    def step() -> float:
        with within():
            optimiser.zero_grad()
            loss = cross_entropy(called(x), labels)
            for part in module.modules():
                if isinstance(part, torch_modules.Auxiliary):
                    loss = loss + nn.training.AUXILIARY_WEIGHT * cross_entropy(part.output, labels)
            loss.backward()
            optimiser.step()
            return float(loss.detach())

    return step


def _onnxruntime(job: Job, same: bool) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = job.threads, 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.onnx")
        # Whoever runs a file has not made it in the same process.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(_export, job, path).result()
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    name, x = session.get_inputs()[0].name, job.images()
    return lambda: session.run(None, {name: x})[0]


def _export(job: Job, path: Path) -> None:
    """Write a network as an ONNX file."""
    import torch

    from benchmarks.networks import torch_modules

    module = torch_modules.build(job.network)
    torch_modules.load(module, job.built().state())
    torch.onnx.export(module.eval(), (torch.from_numpy(job.images()),), path, dynamo=False, opset_version=17)


def _torch_compile(job: Job, same: bool) -> Run:
    import torch

    torch.compiler.reset()  # it gives up compiling a function that it has compiled for eight networks
    return torch_run(job, same, made=torch.compile)


def _within_use(job: Job, same: bool) -> Run:
    import fastconv.torch

    return torch_run(job, same, within=fastconv.torch.use)


def _compile_model(job: Job, same: bool) -> Run:
    import fastconv.torch

    return torch_run(job, same, made=fastconv.torch.compile_model)


FASTCONV, COMPILED, ONNXRUNTIME = "fastconv", "torch.compile", "onnxruntime"
ENTRANTS = (
    Entrant(FASTCONV, (), True, _fastconv),
    Entrant("torch", ("torch",), True, torch_run),
    Entrant("torch channels-last", ("torch",), True, partial(torch_run, channels_last=True)),
    Entrant(COMPILED, ("torch",), True, _torch_compile),
    Entrant("torch within use()", ("torch",), True, _within_use),
    Entrant("torch, compile_model", ("torch",), False, _compile_model),
    Entrant(ONNXRUNTIME, ("torch", "onnx", "onnxruntime"), False, _onnxruntime),
)
EAGER = ("torch", "torch channels-last")
