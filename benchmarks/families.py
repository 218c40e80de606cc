"""Layers that the networks described in fastconv do not have, each measured forward and backward."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.cases import Case
from fastconv.notation import parse_problem
from fastconv.problem import ConvProblem


class Family(NamedTuple):
    """Layers of one kind.

    Attributes
    ----------
    asked : float
        How many times as fast as the best of PyTorch fastconv should be, as a geometric mean.
    layers : dict of str to str
        By name, the text of a problem: the convolution, or what is done to windows.
    transposed : bool
        Whether the layers are transposes of those convolutions: their input gradients, forward.
    """

    asked: float
    layers: dict[str, str]
    transposed: bool = False


FAMILIES = {
    # Radford et al. 2015, with the kernels of 4x4 that are common since; Ronneberger et al. 2015, "up-convolutions".
    "transposed": Family(
        1.5,
        {
            "dcgan 4x4": "conv2d n16 c512 i8 oc1024 k4 s2 p1",
            "dcgan 8x8": "conv2d n16 c256 i16 oc512 k4 s2 p1",
            "dcgan 16x16": "conv2d n16 c128 i32 oc256 k4 s2 p1",
            "dcgan 32x32": "conv2d n16 c3 i64 oc128 k4 s2 p1",
            "unet 28x28": "conv2d n1 c512 i56 oc1024 k2 s2",
            "unet 52x52": "conv2d n1 c256 i104 oc512 k2 s2",
            "unet 100x100": "conv2d n1 c128 i200 oc256 k2 s2",
            "unet 196x196": "conv2d n1 c64 i392 oc128 k2 s2",
        },
        transposed=True,
    ),
    # Van den Oord et al. 2016: a second of speech at 16 kHz; filter and gate side by side.
    "conv1d": Family(
        1.5,
        {
            **{f"wavenet dilation {d}": f"conv1d n1 c32 i16000 oc64 k2 d{d}" for d in (1, 8, 64, 512)},
            "wavenet residual": "conv1d n1 c32 i16000 oc32 k1",
            "wavenet skip": "conv1d n1 c32 i16000 oc256 k1",
        },
    ),
    # Tran et al. 2018: R3D-18 on 16 frames.
    "conv3d": Family(
        1.5,
        {
            "r3d18 stem": "conv3d n1 c3 id16 ih112 iw112 oc64 kd3 kh7 kw7 sd1 sh2 sw2 pd1 ph3 pw3",
            "r3d18 layer1": "conv3d n1 c64 id16 ih56 iw56 oc64 k3 p1",
            "r3d18 layer2.0": "conv3d n1 c64 id16 ih56 iw56 oc128 k3 s2 p1",
            "r3d18 layer2": "conv3d n1 c128 id8 ih28 iw28 oc128 k3 p1",
            "r3d18 layer2.skip": "conv3d n1 c64 id16 ih56 iw56 oc128 k1 s2",
            "r3d18 layer3": "conv3d n1 c256 id4 ih14 iw14 oc256 k3 p1",
            "r3d18 layer4": "conv3d n1 c512 id2 ih7 iw7 oc512 k3 p1",
        },
    ),
    "unfold": Family(
        3.0,
        {
            "3x3 56x56": "unfold n1 c64 i56 k3 p1",
            "3x3 14x14 n16": "unfold n16 c256 i14 k3 p1",
            "3x3 stride 2": "unfold n1 c128 i56 k3 s2 p1",
            "resnet stem": "unfold n1 c3 i224 k7 s2 p3",
            "patches of 16x16": "unfold n16 c3 i224 k16 s16",
        },
    ),
}


def cases(name: str) -> list[Case]:
    """Return the layers of a family, each forward and with both gradients as far as it has them."""
    family = FAMILIES[name]
    forward = "dgrad" if family.transposed else "fprop"
    found = []
    for layer, text in family.layers.items():
        problem = parse_problem(text)
        for direction in ("fprop", "dgrad", "wgrad"):
            if direction in problem.directions:
                # A network's weights do not change between forward passes.
                packed = {"prepacked": direction == forward} if isinstance(problem, ConvProblem) else {}
                found.append(Case(f"{name}/{layer} {direction}", problem.replace(direction=direction, **packed)))
    return found
