"""Measure what fastconv gains in other frameworks' programs: ``python -m benchmarks.providers``.

For PyTorch: microseconds that a call through `fastconv.torch` takes beyond fastconv's own, and two whole networks at
batch 1 with random weights, by PyTorch, by PyTorch with `fastconv.torch.use`, compiled by
`fastconv.torch.compile_model`, and by ONNX Runtime on the exported model. All in one process, in turns, after a check
that their results agree. A library's idle threads spin for a while and take cores from the next: each turn begins when
they have stopped, with a run that is not counted.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import numpy as np

import fastconv as fc
from fastconv import tuning

Run: TypeAlias = Callable[[], Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.providers", description=__doc__)
    parser.add_argument("--threads", type=int, default=2, help="for every library (default: 2)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of rounds of each comparison (default: 5)")
    parser.add_argument("--only", choices=MEASUREMENTS, nargs="+", default=list(MEASUREMENTS))
    args = parser.parse_args(argv)
    with fc.options(threads=args.threads):
        for name in args.only:
            MEASUREMENTS[name](args.threads, args.seconds)
    return 0


def torch_overhead(threads: int, seconds: float) -> None:
    """Print the time of small calls, directly and through the provider."""
    import torch

    import fastconv.torch as ft

    torch.set_num_threads(threads)
    x = torch.randn(1, 2, 4, 4)
    conv = torch.nn.Conv2d(2, 2, 3, padding=1)
    weight, bias = conv.weight, conv.bias
    window = (1, 1), (1, 1), (1, 1), 1
    arrays = x.numpy(), weight.detach().numpy(), bias.detach().numpy()
    plain = weight.detach(), bias.detach()

    def inference(run: Run) -> Run:
        def wrapped() -> Any:
            with torch.inference_mode():
                return [run() for _ in range(200)]

        return wrapped

    def used(run: Run) -> Run:
        def wrapped() -> Any:
            with ft.use():
                return run()

        return wrapped

    def often(run: Run) -> Run:
        return lambda: [run() for _ in range(200)]

    functional = torch.nn.functional
    runs = {
        "fastconv.conv2d on arrays": often(lambda: fc.conv2d(*arrays, *window)),
        "fastconv.torch.conv2d": inference(lambda: ft.conv2d(x, *plain, *window)),
        "fastconv.torch.conv2d, parameters": inference(lambda: ft.conv2d(x, weight, bias, *window)),
        "F.conv2d within use()": used(inference(lambda: functional.conv2d(x, weight, bias, *window))),
        "fastconv.torch.conv2d, gradient recorded": often(lambda: ft.conv2d(x, weight, bias, *window)),
        "PyTorch's F.conv2d": inference(lambda: functional.conv2d(x, weight, bias, *window)),
        "PyTorch's F.conv2d, gradient recorded": often(lambda: functional.conv2d(x, weight, bias, *window)),
    }
    times = tuning.measure(runs, seconds, rest=threads > 1)
    direct = times["fastconv.conv2d on arrays"]
    print(f"\na call of conv2d on 1x2x4x4, {threads} threads; beyond fastconv's own")
    for name, taken in times.items():
        print(f"  {name:42} {taken / 200 * 1e6:7.2f} us {(taken - direct) / 200 * 1e6:+7.2f} us")


def torch_networks(threads: int, seconds: float) -> None:
    """Print the times of whole networks."""
    import torch

    import fastconv.torch as ft
    from benchmarks import torch_models

    torch.set_num_threads(threads)
    x = torch.randn(1, 3, 224, 224)
    for make in (torch_models.resnet50, torch_models.mobilenet_v2):
        model, last = make(), make().to(memory_format=torch.channels_last)
        compiled = ft.compile_model(model)
        x_last = x.contiguous(memory_format=torch.channels_last)
        runs: dict[str, Run] = {
            "PyTorch": partial(model, x),
            "PyTorch, channels-last": partial(last, x_last),
            "PyTorch within use()": partial(_within_use, ft.use, model, x),
            "compile_model": partial(compiled, x),
            "compile_model, channels-last": partial(compiled, x_last),
        }
        session = _onnxruntime(model, x, threads)
        if session is not None:
            runs["ONNX Runtime"] = session
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            expected = model(x).numpy()
            for name, run in runs.items():
                error = np.abs(np.asarray(run()) - expected).max() / np.abs(expected).max()
                if not error < 1e-4:
                    raise ValueError(f"{name}: differs from PyTorch by {error} of the largest")
            times = tuning.measure(runs, seconds, rest=threads > 1)
        eager = min(times["PyTorch"], times["PyTorch, channels-last"])
        print(f"\n{make.__name__}, batch 1, {threads} threads; times faster than the better of PyTorch's two")
        for name, taken in times.items():
            print(f"  {name:42} {taken * 1e3:7.2f} ms {eager / taken:7.2f}")


def _within_use(use: Any, model: Any, x: Any) -> Any:
    with use():
        return model(x)


def _onnxruntime(model: Any, x: Any, threads: int) -> Run | None:
    """Return a run of the exported model by ONNX Runtime, if that is installed."""
    try:
        import onnx  # noqa: F401  what PyTorch's exporter writes with
        import onnxruntime
    except ImportError:
        print("\nONNX Runtime is left out: pip install 'fastconv[peers]'")
        return None
    import torch

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), buffer, input_names=["x"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    array = x.numpy()
    return lambda: session.run(None, {"x": array})[0]


MEASUREMENTS: dict[str, Callable[[int, int], None]] = {
    "torch-overhead": torch_overhead,
    "torch-networks": torch_networks,
}

if __name__ == "__main__":
    raise SystemExit(main())
