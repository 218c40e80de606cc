"""The photographs and what the convolutions made of them, as contact sheets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import photographs
from benchmarks.photographs import EDGE_FILTERS
from fastconv import networks

_TILES_A_ROW = 8
# The share of values that is not shown as plain white: the few largest would leave all else dark.
_BRIGHT = 0.99


def draw(images: dict[str, photographs.Image], directory: Path) -> list[Path]:
    """Draw the sheets for some images, given by name, and return the files."""
    directory.mkdir(parents=True, exist_ok=True)
    results = {name: photographs.results(image) for name, image in images.items()}
    sheets = {"photographs.png": _filtered(images, results), "alexnet_conv1.png": _alexnet(results)}
    for name, figure in sheets.items():
        figure.savefig(directory / name, dpi=110)
    return [directory / name for name in sheets]


def _filtered(images: dict[str, photographs.Image], results: dict[str, dict[str, Any]]) -> Figure:
    """Return a row for each photograph: itself, blurred, and its edges."""
    titles = ["photograph", "blur", "vertical edges", "Sobel magnitude", "Laplacian"]
    figure = Figure(figsize=(3.2 * len(titles), 2.4 * len(images) + 0.4), layout="constrained")
    grid = figure.subplots(len(images), len(titles), squeeze=False)
    for axes, (name, image) in zip(grid, images.items(), strict=True):
        edges = dict(zip(EDGE_FILTERS, results[name]["edges"][0], strict=True))
        sobel = np.hypot(edges["Sobel x"], edges["Sobel y"])
        _show(axes[0], image[0])
        _show(axes[1], results[name]["blur"][0])
        _show(axes[2], edges["vertical edges"])
        _show(axes[3], sobel, darkest=0.0)
        _show(axes[4], edges["Laplacian"])
        axes[0].set_ylabel(name)
    for axis, title in zip(grid[0], titles, strict=True):
        axis.set_title(title)
    return figure


def _alexnet(results: dict[str, dict[str, Any]]) -> Figure:
    """Return AlexNet's first layer: its filters, and each filter's answers to each photograph."""
    problem = networks.find("alexnet/conv1").problem
    weight = photographs.oriented_filters(*problem.w_shape)
    panels = {f"{problem.oc} filters": [0.5 + 0.5 * each / np.abs(each).max() for each in weight]} | {
        name: [np.maximum(answer, 0) / np.quantile(answer, _BRIGHT) for answer in answers["AlexNet conv1"][0]]
        for name, answers in results.items()
    }
    figure = Figure(figsize=(5 * len(panels), 5.4), layout="constrained")
    for axis, (name, tiles) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        _show(axis, _mosaic(tiles), darkest=0.0, brightest=1.0)
        axis.set_title(name)
    return figure


def _mosaic(tiles: list[Any]) -> Any:
    """Return tiles of (channels, height, width) or (height, width) side by side, with a margin around each."""
    framed = [np.pad(tile, [(0, 0)] * (tile.ndim - 2) + [(1, 1)] * 2, constant_values=1.0) for tile in tiles]
    rows = [framed[i : i + _TILES_A_ROW] for i in range(0, len(framed), _TILES_A_ROW)]
    return np.concatenate([np.concatenate(row, axis=-1) for row in rows], axis=-2)


def _show(axis: Axes, image: Any, darkest: float | None = None, brightest: float | None = None) -> None:
    """Show (3, height, width) in colour, or (height, width) in grey, by default with zero in the middle."""
    axis.set(xticks=[], yticks=[])
    if image.ndim == 3:
        axis.imshow(np.clip(image.transpose(1, 2, 0), 0, 1))
        return
    bright = np.quantile(np.abs(image), _BRIGHT) if brightest is None else brightest
    axis.imshow(image, cmap="gray", vmin=-bright if darkest is None else darkest, vmax=bright)
