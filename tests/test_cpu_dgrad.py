"""Input gradients and transposed convolutions on the CPU engine."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sharing import check_threads_share

import fastconv as fc
from fastconv import registry, testing
from fastconv.backends.cpu.dgrad import channels, folded
from fastconv.backends.cpu.dgrad.depthwise_work import Work
from fastconv.backends.cpu.dgrad.phases import contributions, groups_of, line_of
from fastconv.backends.cpu.dgrad.run import Runner
from fastconv.backends.cpu.direct import work as direct
from fastconv.machine import machine
from fastconv.notation import parse_problem

DGRAD = [algorithm for algorithm in registry.algorithms() if algorithm.name.startswith("dgrad_")]

GRADIENTS = """
    conv2d:dgrad n2 c5 i9 oc7 k3 p1
    conv2d:dgrad n2 c19 i12 oc34 k3 p1
    conv2d:dgrad n1 c20 i8 oc33 k1
    conv2d:dgrad n2 c3 i9 oc4 k3 p0
    conv2d:dgrad n2 c3 i9 oc4 k3 p4
    conv2d:dgrad n2 c3 ih11 iw10 oc4 kh3 kw2 ph1:0 pw0:3
    conv2d:dgrad n2 c6 i14 oc5 k3 s2 p1
    conv2d:dgrad n2 c6 ih15 iw13 oc5 k3 s2 p1
    conv2d:dgrad n1 c20 i35 oc18 k4 s2 p1
    conv2d:dgrad n3 c8 i12 oc6 k2 s2
    conv2d:dgrad n3 c8 i13 oc6 k2 s2 g2
    conv2d:dgrad n2 c5 i70 oc9 k2 s2
    conv2d:dgrad n2 c5 i13 oc6 k1 s2
    conv2d:dgrad n2 c3 i23 oc4 k11 s4 p2
    conv2d:dgrad n2 c3 i33 oc4 k4 s4
    conv2d:dgrad n2 c3 i32 oc4 k8 s8
    conv2d:dgrad n2 c4 ih9 iw14 oc6 kh3 kw5 sh3 sw2 ph1:2 pw0:3
    conv2d:dgrad n2 c4 ih9 iw14 oc6 kh3 kw3 sh2 sw1 p1
    conv2d:dgrad n2 c4 i16 oc6 k3 s3 d2 p2
    conv2d:dgrad n2 c4 i17 oc6 k3 s2 d2 p2
    conv2d:dgrad n2 c4 i17 oc6 k3 s4 d2 p1
    conv2d:dgrad n2 c4 i14 oc6 k3 s6 d4 p3
    conv2d:dgrad n2 c4 i12 oc6 k3 d3 p2:3
    conv2d:dgrad n2 c3 i7 oc4 k3 p1:-1 d2
    conv2d:dgrad n2 c3 i9 oc4 k2 s3
    conv2d:dgrad n2 c8 i10 oc12 k3 s2 p1 g4
    conv2d:dgrad n2 c6 i19 oc6 k3 p1 g6
    conv2d:dgrad n2 c6 i19 oc6 k5 s2 p2 g6
    conv2d:dgrad n2 c3 ih9 iw70 oc3 kh2 kw4 s2 ph1:0 pw0:3 g3
    conv2d:dgrad n1 c2 ih90 iw45 oc2 k7 s2 p3 g2
    conv2d:dgrad n2 c40 i9 oc24 k3 p1 g4
    conv2d:dgrad n1 c6 ih40 iw33 oc4 kh5 kw2 s2 ph2:1 pw0:1 g2
    conv2d:dgrad n2 c6 i9 oc12 k3 p1 g6
    conv2d:dgrad n2 c20 i9 oc18 k3 p1 channels_last
    conv2d:dgrad n2 c20 i9 oc18 k3 s2 p1 channels_last
    conv2d:dgrad n2 c6 i9 oc6 k3 s2 p1 g6 channels_last
    conv2d:dgrad n2 c6 i9 oc5 k1 s2 channels_last
    conv2d:dgrad n1 c4 i4 oc5 k4 s3 p3
    conv1d:dgrad n2 c5 i40 oc6 k3 p1
    conv1d:dgrad n2 c5 i40 oc6 k2 d8 p8:0
    conv1d:dgrad n2 c5 i41 oc6 k4 s3 p2
    conv1d:dgrad n2 c6 i41 oc6 k4 s2 p1 g6
    conv3d:dgrad n1 c4 id5 ih6 iw7 oc5 k3 p1
    conv3d:dgrad n1 c4 id5 ih6 iw7 oc5 k3 s2 p1
    conv3d:dgrad n2 c4 i6 oc5 k1 s2
    conv3d:dgrad n1 c4 id5 ih6 iw7 oc5 k3 sd1 sh2 sw2 p1 channels_last
    linear:dgrad n5 c17 oc9
    linear:dgrad n16 c130 oc70 residual relu
    conv2d:dgrad n5 c16 i5 oc30 k5
    conv2d:dgrad n3 c6 ih4 iw3 oc9 kh4 kw3 channels_last residual sigmoid
    conv3d:dgrad n2 c3 i2 oc5 k2 residual
    conv2d:dgrad n2 c6 i14 oc5 k4 s2 p1 bias relu
    conv2d:dgrad n2 c6 i14 oc6 k2 s2 g2 bias leaky_relu
    conv2d:dgrad n2 c6 i15 oc5 k3 s2 p1 bias residual relu6
    conv2d:dgrad n2 c6 i13 oc5 k1 s2 bias sigmoid
    conv2d:dgrad n2 c6 i13 oc5 k1 s3 sigmoid
    conv2d:dgrad n2 c6 i13 oc5 k1 s2 bias tanh residual channels_last
    conv2d:dgrad n2 c6 i9 oc5 k3 p1 bias residual relu
    conv2d:dgrad n2 c40 i14 oc33 k1 residual
    conv2d:dgrad n2 c40 i14 oc33 k1 residual channels_last
    conv2d:dgrad n2 ic32 ih13 iw14 oc24 k3 p1 residual
    conv2d:dgrad n1 ic16 ih13 iw14 oc24 k5 p2 residual
    conv2d:dgrad n2 c8 i11 oc8 k3 p1 g8 residual
    conv2d:dgrad n2 c16 i11 oc8 k3 p1 g4 residual sigmoid
    conv2d:dgrad n2 c4 i11 oc5 k1 p1 residual
    conv1d:dgrad n2 c4 i11 oc5 k1 s3 residual
    conv1d:dgrad n2 c5 i40 oc6 k4 s2 p1 bias relu
    conv3d:dgrad n1 c4 i6 oc5 k2 s2 bias relu
    conv2d:dgrad n1 c5 ih1 iw9 oc7 k3 s2 p1
    conv2d:dgrad n2 c17 ih5 iw7 oc40 kh4 kw7 sh4 sw2 ph1:0 pw0:6
    conv1d:dgrad n1 c4 i3 oc4 k2 s2 p1 d3 bias
    conv1d:dgrad n8 c12 i25 oc256 k2 s4 p0:1
    conv2d:dgrad n1 c96 ih15 iw11 oc1000 k2 s2 ph0:1 pw0:2
    conv2d:dgrad n2 c128 ih7 iw45 oc192 k2 sh2 sw4 ph0:1 pw0:3
    conv2d:dgrad n1 c20 ih40 iw61 oc18 k3 s3 p1
    conv2d:dgrad n3 c5 i4 oc6 k3 s5 p1
    conv2d:dgrad n3 c5 i3 oc6 k4 s4 p2
    conv2d:dgrad n2 c5 i4 oc6 kh11 kw2 s4 ph5 pw0
    conv2d:dgrad n1 c5 ih23 iw131 oc4 k5 s5 d2 p2
    conv2d:dgrad n1 c5 ih23 iw131 oc4 k3 sh2 sw7 p1
    conv2d:dgrad n1 c5 ih23 iw131 oc4 k3 sh1 sw6 p1
    conv2d:dgrad n1 c6 ih23 iw131 oc4 k3 s9 p1 g2
    conv2d:dgrad n1 c6 ih23 iw31 oc4 k1 s3 g2
    conv1d:dgrad n1 c13 i5 oc5 k9 s3 p4
    conv1d:dgrad n2 c6 i90 oc4 k2 s3 g2
    conv1d:dgrad n2 c6 i90 oc6 k7 s5 d3 p3 g6
    conv2d:dgrad n2 c6 ih31 iw90 oc6 k9 s3 d2 p4 g6
    conv2d:dgrad n2 c6 ih31 iw20 oc6 kh2 kw5 sh4 sw1 ph0 pw2 g6
    conv3d:dgrad n2 c6 id7 ih9 iw40 oc6 k3 sd1 sh2 sw3 p1 g6
    conv3d:dgrad n2 c6 id7 ih9 iw10 oc6 kd3 kh5 kw2 s2 d2 p2 g6
    conv3d:dgrad n1 c3 id6 ih9 iw10 oc2 kd3 kh3 kw1 pd1 ph0 pw0
    conv2d:dgrad n1 c2 ih61 iw70 oc2 k3 s2 d21 p21 g2
    conv3d:dgrad n1 c2 id18 ih31 iw45 oc2 kd2 kh3 kw2 sd1 sh3 sw2 dd15 dh9 dw41 p20 g2
""".strip().splitlines()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("text", [text.strip() for text in GRADIENTS])
def test_gradients_are_the_references(text, dtype):
    problem = parse_problem(text).replace(dtype=dtype)
    algorithms = [algorithm for algorithm in DGRAD if algorithm.refuses(problem) is None]
    assert algorithms
    for algorithm in algorithms:
        testing.check_problem(algorithm, problem)
        testing.check_problem(algorithm, problem.replace(prepacked=True))


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:dgrad n2 c16 i14 oc12 k3 s2 p1",
        "conv2d:dgrad n2 c16 i14 oc12 k1 s2",
        "conv2d:dgrad n2 c16 i14 oc16 k3 s2 p1 g16",
        "conv2d:dgrad n2 c16 i14 oc16 k3 p1",
    ],
)
def test_arrays_of_any_strides_and_alignment_are_taken(text):
    problem = parse_problem(text)
    dy, w = testing.random_inputs(problem)
    shifted = np.zeros(dy.nbytes + 1, np.uint8)[1:].view(dy.dtype).reshape(dy.shape)
    shifted[...] = dy
    for algorithm in DGRAD:
        if algorithm.refuses(problem) is not None:
            continue
        plan = algorithm.plan(problem)
        (expected,) = testing.run(algorithm, problem, (dy, w))
        spread = np.zeros((*problem.x_shape[:-1], 2 * problem.x_shape[-1]), dy.dtype)
        turned = np.zeros(problem.x_shape[::-1], dy.dtype).T
        for given, dx in ((dy, spread[..., ::2]), (dy, turned), (shifted, np.empty_like(expected))):
            plan.run((given, w), (dx,))
            np.testing.assert_allclose(dx, expected, rtol=1e-4, atol=1e-4)
        assert not spread[..., 1::2].any()


def test_gradients_to_which_nothing_contributes_are_refused():
    """All taps meet padding."""
    problem = parse_problem("conv1d:dgrad n1 c4 i3 oc4 k2 s2 p5 d11")
    assert all(algorithm.refuses(problem) for algorithm in DGRAD)


@pytest.mark.parametrize(
    "text", ["conv2d n3 c6 i11 oc4 k3 s2 p1", "conv2d n2 c8 i9 oc8 k3 p1 g8", "conv1d n2 c4 i20 oc6 k3 d2"]
)
def test_adjoint_of_the_forward_convolution(text):
    """On integers: <conv(x, w), dy> is <x, dgrad(dy, w)> exactly."""
    forward = parse_problem(text)
    x, w = testing.integer_inputs(forward)
    backward = forward.replace(direction="dgrad")
    dy, _ = testing.integer_inputs(backward, seed=1)
    (y,) = testing.run(registry.find("numba/direct"), forward, (x, w))
    for algorithm in DGRAD:
        if algorithm.refuses(backward) is None and algorithm.strict:
            (dx,) = testing.run(algorithm, backward, (dy, w))
            assert (y.astype(np.float64) * dy).sum() == (x.astype(np.float64) * dx).sum()


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:dgrad n2 c24 i30 oc40 k3 p1",
        "conv2d:dgrad n3 c24 i30 oc40 k3 s2 p1",
        "conv2d:dgrad n2 c32 i29 oc32 k3 s2 p1 g32",
        "conv2d:dgrad n4 c512 i40 oc600 k1 s3",  # in several rounds on one thread, in one on two
    ],
)
def test_any_number_of_threads_gives_the_same_bits(text):
    problem = parse_problem(text)
    for algorithm in DGRAD:
        if algorithm.refuses(problem) is None:
            check_threads_share(algorithm, problem)


def test_lines_are_the_definition():
    """Every pair of an element and a tap that the definition joins, a line joins, and no other."""
    sizes = itertools.product((1, 5, 9), (1, 2, 3, 4), (1, 2, 3, 4, 6), (1, 2, 3, 4), (0, 1, 3))
    for size, kernel, stride, dilation, padding in sizes:
        for after in (-1, 0, 2):
            out = (size + padding + after - dilation * (kernel - 1) - 1) // stride + 1
            if out < 1:
                continue
            wanted = {
                (i, r, o)
                for o in range(out)
                for r in range(kernel)
                for i in [o * stride + r * dilation - padding]
                if 0 <= i < size
            }
            found = set()
            for remainder in range(min(stride, size)):
                line, taps = line_of(remainder, size, out, kernel, stride, dilation, padding)
                assert line.length == len(range(remainder, size, stride))
                assert min(line.before, line.after, line.start) >= 0
                for j in range(line.length):
                    for t, r in enumerate(taps):
                        read = j + t * line.dilation - line.before
                        if 0 <= read < line.size:
                            found.add((remainder + j * stride, r, read + line.start))
                if line.kernel:
                    spans = line.size + line.before + line.after - line.dilation * (line.kernel - 1)
                    assert spans == line.length
            assert found == wanted


def test_phases_that_read_alike_are_one_convolution():
    halves = parse_problem("conv2d:dgrad n1 c8 i16 oc4 k2 s2")
    assert [len(group.members) for group in groups_of(halves, together=True)] == [4]
    assert [len(group.members) for group in groups_of(halves, together=False)] == [1] * 4


@pytest.mark.parametrize("text", ["i3 k2 s2 p5 d11", "i5 k2 s3", "ih2 iw9 kh1 kw3 s2 p1", "i7 k4 s4 d2 p1", "i6 k1 s1"])
def test_whether_something_contributes_is_known_axis_by_axis(text):
    problem = parse_problem(f"conv2d:dgrad n1 c3 oc3 g3 {text}")
    empty = [group.is_empty for group in groups_of(problem, together=False)]
    assert contributions(problem) == (not all(empty), not any(empty))


@pytest.mark.parametrize(
    "key", ["dgrad_depthwise2", "dgrad_grouped2", "dgrad_folded", "dgrad_woven", "dgrad_mixed", "dgrad_channels"]
)
def test_phases_of_a_long_stride_are_not_listed_to_refuse_it(key, monkeypatch):
    monkeypatch.setattr("fastconv.backends.cpu.dgrad.phases._group", None)
    registry.find(f"numba/{key}").refuses(parse_problem("conv3d:dgrad n1 c3 i999 oc3 g3 k1 sd333 sh333 sw3"))
    registry.find(f"numba/{key}").refuses(parse_problem("conv2d:dgrad n1 c3 i999 oc3 g3 k3 s333"))


@pytest.mark.parametrize(
    "text",
    [
        "conv2d:dgrad n1 c2 i6 oc3 k3 p1",
        "conv2d:dgrad n1 c3 i9 oc3 k3 p1 g3",
        "conv2d:dgrad n1 c3 i9 oc3 k3 s2 p1 g3",
        "conv2d:dgrad n1 c6 i9 oc4 k3 s2 p1 g2",
    ],
)
def test_weight_that_is_not_finite_is_not_multiplied_by_padding(text):
    problem = parse_problem(text)
    dy, w = testing.random_inputs(problem)
    w = w.copy()
    w[0, 0, 0, 0] = np.inf
    expected = testing.exact(problem, (dy, w))
    for algorithm in DGRAD:
        if algorithm.refuses(problem) is None:
            for form in (problem, problem.replace(prepacked=True)):
                results = testing.run(algorithm, form, (dy, w))
                testing.compare(problem, results, expected, algorithm.error_bound(problem))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d:bgrad n2 c3 i8 oc4 k3 bias",
        "conv2d:bgrad n3 c3 i19 oc70 k3 bias",
        "conv2d:bgrad n3 c3 i19 oc70 k3 bias channels_last",
        "conv2d:bgrad n3 c3 i3 oc7 k3 bias",
        "conv2d:bgrad n1 c3 i9 oc1 k3 bias channels_last",
        "conv1d:bgrad n2 c3 i300 oc5 k3 bias",
        "conv3d:bgrad n2 c3 i7 oc5 k3 bias channels_last",
        "linear:bgrad n9 c3 oc130 bias",
        "locally_connected2d:bgrad n2 c3 ih6 iw7 oc4 k3 bias",
    ],
)
def test_bias_gradients_are_the_references(text, dtype):
    testing.check_problem(registry.find("numba/bias_gradient"), parse_problem(text).replace(dtype=dtype))


@pytest.mark.parametrize("key", ["numba/dgrad_depthwise2", "numba/dgrad_grouped2"])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_beyond_the_kernel_is_refused(key, stride):
    problem = parse_problem(f"conv2d:dgrad n1 c4 i9 oc4 k3 s{stride} p4 g4")
    why = registry.find(key).refuses(problem)
    assert why is None or "whole of the output's gradient" in why
    if why is None:
        testing.check_problem(registry.find(key), problem)
    assert (why is None) == ((key, stride) == ("numba/dgrad_depthwise2", 2))


def test_no_time_goes_into_what_a_dilation_passes_over():
    """Nor into code: what is not multiplied is not read."""
    near, far = (parse_problem(f"conv3d:dgrad n1 c2 i60 oc2 k3 s2 d{d} p{d} g2") for d in (3, 20))
    assert Work.of(far).cycles < 2 * Work.of(near).cycles


TOGETHER = [
    ("numba/dgrad_depthwise2", "conv2d:dgrad n2 c37 ih19 iw41 oc37 k3 p1 g37"),
    ("numba/dgrad_depthwise2", "conv2d:dgrad n2 c37 ih19 iw41 oc37 k3 s2 p1 g37"),
    ("numba/dgrad_depthwise2", "conv2d:dgrad n1 c5 ih1 iw40 oc5 kh3 kw5 s2 ph1 pw2 g5"),
    ("numba/dgrad_grouped2", "conv2d:dgrad n2 c12 ih19 iw41 oc24 k3 p1 g3"),
    ("numba/dgrad_grouped2", "conv2d:dgrad n2 c12 ih18 iw41 oc24 k3 s2 p1 g3"),
    ("numba/dgrad_woven", "conv2d:dgrad n2 c36 ih19 iw41 oc24 k3 s2 p1"),
    ("numba/dgrad_woven", "conv2d:dgrad n1 c40 i17 oc20 k3 s4 d2 p1 g2"),
    ("numba/dgrad_woven", "conv3d:dgrad n2 c5 i9 oc18 k3 s2"),
    ("numba/dgrad_depthwise2", "conv3d:dgrad n2 c5 i9 oc5 k3 s2 p1 g5"),
    ("numba/dgrad_depthwise2", "conv1d:dgrad n2 c5 i99 oc5 k5 s3 d2 p1 g5"),
    ("numba/dgrad_grouped2", "conv2d:dgrad n2 c12 ih18 iw41 oc24 k2 s3 p1 g3"),
    ("numba/dgrad_grouped2", "conv1d:dgrad n2 c12 i99 oc24 k5 s4 p1 g3"),
    ("numba/dgrad_woven", "conv2d:dgrad n1 c13 i17 oc20 k3 s5 p1"),
    ("numba/dgrad_woven", "conv1d:dgrad n1 c13 i5 oc5 k9 s3 p4"),
    ("numba/dgrad_folded", "conv2d:dgrad n3 c13 i12 oc20 k5 s2 d2 p3"),
    ("numba/dgrad_folded", "conv3d:dgrad n1 c6 i4 oc9 k5 p2 g3"),
    ("numba/dgrad_channels", "conv2d:dgrad n3 c37 i13 oc9 k5 s2 d2 p3 channels_last"),
    ("numba/dgrad_channels", "conv2d:dgrad n2 c36 i11 oc6 k3 s4 g3 channels_last"),
    ("numba/dgrad_channels", "conv2d:dgrad n3 c100 i13 oc9 k3 s4 channels_last"),
    ("numba/dgrad_channels", "conv3d:dgrad n2 c70 i7 oc19 k3 s2 p1 channels_last"),
    ("numba/dgrad_channels", "conv1d:dgrad n2 c3 i40 oc19 k9 s3 p4 channels_last"),
]


@pytest.mark.parametrize(("key", "text"), TOGETHER)
def test_threads_change_no_gradient_of_all_phases_together(key, text, monkeypatch):
    monkeypatch.setattr("fastconv.backends.cpu.work.WORTH_SHARING", 0.0)  # most are so small that one thread takes them
    problem, algorithm = parse_problem(text), registry.find(key)
    testing.check_problem(algorithm, problem)
    check_threads_share(algorithm, problem, counts=(1, 2, 3))


def test_the_workspace_holds_a_weight_that_is_packed_for_all_rounds(monkeypatch):
    monkeypatch.setattr("fastconv.backends.cpu.dgrad.rounds._SHARE", 0)
    problem = parse_problem("conv2d:dgrad n4 c16 i9 oc32 k3 channels_last")
    algorithm = registry.find("numba/dgrad_channels")
    assert channels.steps_of(problem).rounds == 4
    weight = math.prod(problem.w_shape) * problem.itemsize
    packed = algorithm.workspace_bytes(problem.replace(prepacked=True))
    assert algorithm.workspace_bytes(problem) >= packed + weight


def test_the_workspace_holds_a_winograd_weight_that_all_rounds_share():
    problem = parse_problem("conv2d:dgrad n16 c64 i56 oc64 k4 s2 p1")
    algorithm = registry.find("numba/dgrad_winograd2_2x2")
    work = algorithm._work(problem)
    assert work.rounds > 1 and all(forward.prepacked for forward in work.forward)
    runner = Runner(work, algorithm.forward)
    shared = sum(weight.transformed.nbytes for weight in runner.pack(np.ones(problem.w_shape, np.float32)).weights)
    working = max(map(algorithm.forward.workspace_bytes, work.forward))
    turned = sum(size for _, size in work.places)
    assert algorithm.workspace_bytes(problem) >= shared + working + turned


@pytest.mark.parametrize("key", ["numba/dgrad_gemv", "numba/dgrad_gemv_batch"])
@pytest.mark.parametrize("text", ["conv2d:dgrad n16 c25 oc6 i1 k3 p2", "conv1d:dgrad n1 c5 oc40 i1 k2 p1 prepacked"])
def test_gradients_of_one_pixel_read_the_kernel_backwards(key, text):
    testing.check_problem(registry.find(key), parse_problem(text))


@pytest.mark.parametrize("form", ["", " prepacked"])
@pytest.mark.parametrize(
    ("module", "text"),
    [
        (folded, "conv2d:dgrad n4 c4 ih9 iw11 oc6 k3 s2 p1 g2"),
        (channels, "conv2d:dgrad n4 c4 i9 oc6 k3 p1 channels_last"),
    ],
    ids=["folded", "channels"],
)
def test_images_are_folded_in_as_many_rounds_as_caches_ask_for(module, text, form, monkeypatch):
    name, steps_of = module.__name__, module.steps_of
    problem, algorithm = parse_problem(text + form), registry.find(f"numba/dgrad_{name.rpartition('.')[2]}")
    product = steps_of(problem).product
    image = max(math.prod(product.x_shape), math.prod(product.y_shape)) * problem.itemsize // problem.n
    inputs = testing.random_inputs(problem)
    wanted = testing.exact(problem, inputs)
    results = []
    for images in (4, 3, 1, 0):
        monkeypatch.setattr("fastconv.backends.cpu.dgrad.rounds._SHARE", (images * image + 1) / machine().l2_bytes)
        with fc.options(threads=1):
            assert steps_of(problem).rounds == {4: 1, 3: 2}.get(images, 4)
            results += testing.run(algorithm, problem, inputs)
        testing.compare(problem, (results[-1],), wanted, algorithm.error_bound(problem))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("numba/dgrad_mixed", "conv2d:dgrad n6 c40 ih27 iw29 oc33 k3 s2 p1"),
        ("numba/dgrad_winograd3_2x2", "conv2d:dgrad n6 c40 ih28 iw30 oc33 k4 s2 p1"),
    ],
)
def test_who_is_computed_with_what_is_not_finite_does_not_depend_on_threads(key, text, monkeypatch):
    problem, algorithm = parse_problem(text), registry.find(key)
    image = math.prod(problem.x_shape[1:]) * problem.itemsize
    monkeypatch.setattr("fastconv.backends.cpu.dgrad.work._SHARE", 1.5 * image / machine().l2_bytes)
    dy, w = testing.random_inputs(problem)
    dy[0, 0].flat[0] = np.nan
    check_threads_share(algorithm, problem, (dy, w))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("key", "text"), TOGETHER)
def test_what_is_not_finite_goes_where_its_windows_are(key, text, value):
    problem, algorithm = parse_problem(text), registry.find(key)
    dy, w = testing.random_inputs(problem)
    dy[-1, 1].flat[0] = dy[0, 0].flat[-1] = value
    with np.errstate(invalid="ignore"):
        expected = testing.exact(problem, (dy, w))
    testing.compare(problem, testing.run(algorithm, problem, (dy, w)), expected, algorithm.error_bound(problem))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("key", "text"), TOGETHER)
def test_no_weight_that_is_not_finite_is_multiplied_by_padding(key, text, value):
    problem, algorithm = parse_problem(text), registry.find(key)
    dy, w = testing.random_inputs(problem)
    w[0, 0].flat[0] = w[-1, -1].flat[-1] = value
    with np.errstate(invalid="ignore"):
        expected = testing.exact(problem, (dy, w))
    testing.compare(problem, testing.run(algorithm, problem, (dy, w)), expected, algorithm.error_bound(problem))


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("key", ["numba/dgrad_direct", "numba/dgrad_woven"])
def test_halves_are_rounded_once_where_the_weight_is_not_finite(key, dtype):
    problem, algorithm = parse_problem(f"conv2d:dgrad n1 c7 i12 oc5 k3 s2 p1 bias relu {dtype}"), registry.find(key)
    dy, w, bias = testing.random_inputs(problem)
    w[0, 0, 0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        expected = testing.exact(problem, (dy, w, bias))
    testing.compare(problem, testing.run(algorithm, problem, (dy, w, bias)), expected, algorithm.error_bound(problem))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("channels", [32, 37])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_weights_of_all_phases_are_packed_whatever_their_taps(kernel, channels, dtype):
    problem = parse_problem(f"conv2d:dgrad n1 c{channels} i13 oc19 k{kernel} s2").replace(dtype=dtype)
    testing.check_problem(registry.find("numba/dgrad_woven"), problem)


@pytest.mark.parametrize("text", ["c16 i260 oc16 k2 s2", "c16 ih130 iw250 oc16 k3 s2 p1", "c16 ih131 iw250 oc16 k3 s2"])
def test_bands_of_large_maps_are_woven(text):
    testing.check_problem(registry.find("numba/dgrad_woven"), parse_problem(f"conv2d:dgrad n1 {text}"))


@pytest.mark.parametrize("form", ["", " prepacked", " f64"])
@pytest.mark.parametrize(
    "text",
    [
        "conv2d:dgrad n2 ic40 ih27 iw29 oc24 k3 s2 p1",
        "conv2d:dgrad n3 ic17 ih30 iw28 oc20 k5 s2 p2 bias relu",
        "conv2d:dgrad n2 ic24 ih25 iw31 oc18 k4 s3 channels_last",
        "conv2d:dgrad n2 ic36 ih24 iw26 oc28 k3 s2 p0:1 g2 bias residual",
        "conv1d:dgrad n2 ic24 iw250 oc20 k3 s2 p1",
        "conv3d:dgrad n1 ic20 id6 ih18 iw17 oc24 k3 s2 p1",
    ],
)
def test_every_phase_by_an_algorithm_of_its_own(text, form):
    problem, algorithm = parse_problem(text + form), registry.find("numba/dgrad_mixed")
    testing.check_problem(algorithm, problem)
    check_threads_share(algorithm, problem)


@pytest.mark.parametrize("text", ["n1 c8 i9 oc8 k3 p1", "n1 c8 i10 oc8 k4 s2 p1", "n1 c8 i20 oc8 k11 s5"])
def test_phases_that_are_alike_need_one_algorithm(text):
    assert registry.find("numba/dgrad_mixed").refuses(parse_problem(f"conv2d:dgrad {text}")) is not None


def test_phases_are_made_ready_once_for_all_that_ask(monkeypatch):
    made, make = [], direct.Work.__init__

    def count(self, *parameters):
        made.append(parameters)
        make(self, *parameters)

    monkeypatch.setattr(direct.Work, "__init__", count)
    problem = parse_problem("conv2d:dgrad n3 c23 i37 oc29 k5 s2 p1")  # which nobody else asks about
    for key in ("numba/dgrad_direct", "numba/dgrad_mixed"):
        algorithm = registry.find(key)
        algorithm.predict(problem, machine())
        algorithm.workspace_bytes(problem)
    assert made
    assert len(made) == len(set(made))
