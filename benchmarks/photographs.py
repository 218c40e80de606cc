"""Real input: the two photographs that scikit-learn ships, and what is done to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastconv as fc
from benchmarks.cases import Case
from fastconv import networks
from fastconv.call import Call, lowering_of

PHOTOGRAPHS = ("china.jpg", "flower.jpg")

Image = NDArray[np.float32]
"""Of shape (1, channels, height, width), values from 0 to 1."""

_LUMINANCE = (0.299, 0.587, 0.114)
# The textbook's vertical edge filter, Sobel's two, and the Laplacian.
EDGE_FILTERS = {
    "vertical edges": [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],
    "Sobel x": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
    "Sobel y": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "Laplacian": [[0, 1, 0], [1, -4, 1], [0, 1, 0]],
}
_BLUR_SIZE, _BLUR_SIGMA = 13, 2.5


@cache
def load(name: str) -> Image:
    """Return a photograph in colour."""
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image(name).astype(np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def edges(image: Image) -> Call:
    """Find edges in the luminance, by four filters at once."""
    grey = fc.conv2d(image, np.array(_LUMINANCE, np.float32).reshape(1, 3, 1, 1))
    weight = np.array(list(EDGE_FILTERS.values()), np.float32)[:, None]
    return lowering_of(fc.conv2d)(grey, weight, padding=1)


def blur(image: Image) -> Call:
    """Blur every channel by the same Gaussian; the image is mirrored at its borders."""
    offsets = np.arange(_BLUR_SIZE) - _BLUR_SIZE // 2
    profile = np.exp(-(offsets**2) / (2 * _BLUR_SIGMA**2))
    kernel = np.outer(profile, profile) / profile.sum() ** 2
    weight = np.broadcast_to(kernel, (3, 1, _BLUR_SIZE, _BLUR_SIZE)).astype(np.float32)
    return lowering_of(fc.conv2d)(image, weight, padding=_BLUR_SIZE // 2, groups=3, padding_mode="reflect")


def alexnet(image: Image) -> Call:
    """Apply AlexNet's first layer to the middle of the image, with filters as such layers learn them."""
    problem = networks.find("alexnet/conv1").problem
    side = min(image.shape[2:])
    top, left = ((size - side) // 2 for size in image.shape[2:])
    square = image[:, :, top : top + side, left : left + side]
    resized = fc.adaptive_avg_pool2d(square, problem.input_size)
    weight, bias = oriented_filters(*problem.w_shape), np.zeros(problem.oc, np.float32)
    return lowering_of(fc.conv2d)(
        resized, weight, bias, stride=problem.stride, padding=problem.padding, dilation=problem.dilation
    )


def oriented_filters(count: int, channels: int, height: int, width: int) -> NDArray[np.float32]:
    """Return Gabor filters: eight orientations, several wavelengths, half of them grey, half of opposed colours.

    A Gabor filter is a wave under a Gaussian, ``exp(-r^2 / 2 sigma^2) cos(2 pi u / wavelength + phase)`` with u the
    distance along its direction. Each is made to sum to zero, so that even areas give no answer, and to norm one.
    """
    rows, columns = (np.arange(size) - size // 2 for size in (height, width))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    colours = np.array([[1, 1, 1], [1, -1, 0], [1, 1, 1], [1, 1, -2]])
    weight = np.empty((count, channels, height, width), np.float32)
    for i in range(count):
        angle = np.pi * (i % 8) / 8
        step = i // 8
        wavelength, phase = 4.0 + 2 * (step // 2 % 4), np.pi / 2 * (step % 2)
        along = x * np.cos(angle) + y * np.sin(angle)
        wave = np.exp(-(x**2 + y**2) / (2 * (wavelength / 2) ** 2)) * np.cos(2 * np.pi * along / wavelength + phase)
        filters = colours[step % 4, :, None, None] * (wave - wave.mean())
        weight[i] = filters / np.linalg.norm(filters)
    return weight


WORK: dict[str, Callable[[Image], Call]] = {"edges": edges, "blur": blur, "AlexNet conv1": alexnet}


def case(name: str, work: str, image: Image) -> Case:
    """Return a piece of work on an image as something to measure."""
    call = WORK[work](image)
    return Case(f"{name} {work}", call.problem, tuple(call.inputs.values()))


def images() -> dict[str, Image]:
    """Return the photographs by name."""
    return {name: load(name) for name in PHOTOGRAPHS}


def cases() -> list[Case]:
    """Return all work on all photographs."""
    return [case(name, work, image) for name, image in images().items() for work in WORK]


def results(image: Image) -> dict[str, Any]:
    """Return what each piece of work makes of an image, by the algorithms that the dispatcher chooses."""
    return {name: lower(image).run() for name, lower in WORK.items()}
