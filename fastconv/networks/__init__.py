"""The networks of the textbooks, and every problem that they pose.

>>> from fastconv import networks
>>> networks.find("resnet50/layer1.0.conv2").problem.w_shape
(64, 64, 3, 3)

Each network is described once, in a file of its own, in the language of `fastconv.networks.description`; layers, sizes
and counts all follow from that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from fastconv.networks.alexnet import ALEXNET
from fastconv.networks.densenet import DENSENET121
from fastconv.networks.description import Network
from fastconv.networks.googlenet import GOOGLENET, GOOGLENET_BN
from fastconv.networks.inception_resnet import INCEPTION_RESNET_V2
from fastconv.networks.lenet import LENET5
from fastconv.networks.preact_resnet import PREACT_RESNET50
from fastconv.networks.resnet import RESNET50, RESNET152, RESNEXT50, SE_RESNET50
from fastconv.networks.vgg import VGG16, VGG19
from fastconv.networks.xception import XCEPTION
from fastconv.problem import ConvProblem, PoolProblem

__all__ = ["NETWORKS", "Layer", "Network", "described", "distinct", "find", "layers", "parameters", "representative"]

NETWORKS: dict[str, Network] = {
    "lenet5": LENET5,
    "alexnet": ALEXNET,
    "vgg16": VGG16,
    "vgg19": VGG19,
    "googlenet": GOOGLENET,
    "googlenet_bn": GOOGLENET_BN,
    "resnet50": RESNET50,
    "resnet152": RESNET152,
    "preact_resnet50": PREACT_RESNET50,
    "densenet121": DENSENET121,
    "xception": XCEPTION,
    "inception_resnet_v2": INCEPTION_RESNET_V2,
    "resnext50": RESNEXT50,
    "se_resnet50": SE_RESNET50,
}


@dataclass(frozen=True)
class Layer:
    """A convolution, pooling or fully connected layer of a network.

    Attributes
    ----------
    network : str
        A key of `NETWORKS`.
    path : str
        Where it is in the network, such as ``layer1.0.conv2``.
    problem : ConvProblem or PoolProblem
        Its forward pass, without the activation. A layer with batch normalisation after it has no bias.
    auxiliary : bool
        Whether it belongs to an auxiliary classifier, which only training needs.
    """

    network: str
    path: str
    problem: ConvProblem | PoolProblem
    auxiliary: bool = False

    @property
    def name(self) -> str:
        """Network and path, such as ``resnet50/layer1.0.conv2``: no two layers share it."""
        return f"{self.network}/{self.path}"


def layers(name: str, n: int = 1, dtype: str = "float32") -> list[Layer]:
    """Return every layer of a network that poses a problem, in the order of execution.

    Parameters
    ----------
    name : str
        A key of `NETWORKS`.
    n : int
        The batch size.
    dtype : str
        ``float32``, ``float64``, ``float16`` or ``bfloat16``.

    Raises
    ------
    ValueError
        If there is no such network, or the batch size or dtype is not valid.
    """
    steps = described(name).steps()
    problems = [(step, step.operation.problem(step.shape, n, dtype)) for step in steps]
    return [Layer(name, step.path, problem, step.auxiliary) for step, problem in problems if problem]


def find(layer_name: str, n: int = 1, dtype: str = "float32") -> Layer:
    """Return the layer of that name, such as ``resnet50/layer1.0.conv2``.

    Raises
    ------
    ValueError
        If there is no such layer; the message lists those within it, if it is a block, or with similar names.
    """
    name, _, path = layer_name.partition("/")
    found = {layer.path: layer for layer in layers(name, n, dtype)}
    if path in found:
        return found[path]
    within = [known for known in found if known.startswith(f"{path}.")]
    near = within[:5] or difflib.get_close_matches(path, found, n=5, cutoff=0.5) or [described(name).representative]
    suggestions = ", ".join(f"{name}/{path}" for path in near)
    raise ValueError(f"layer_name: {name} has no layer {path!r}; expected a name such as {suggestions}")


def distinct(layers: Iterable[Layer]) -> dict[Layer, int]:
    """Return one layer a problem, the first that poses it, with the number of those that do."""
    first: dict[ConvProblem | PoolProblem, Layer] = {}
    counts: dict[Layer, int] = {}
    for layer in layers:
        kept = first.setdefault(layer.problem, layer)
        counts[kept] = counts.get(kept, 0) + 1
    return counts


def parameters(name: str, auxiliary: bool = False) -> int:
    """Return the number of learned parameters: weights, biases, and the scales and shifts of normalisations.

    Parameters
    ----------
    name : str
        A key of `NETWORKS`.
    auxiliary : bool
        Whether to count those of auxiliary classifiers too.

    Raises
    ------
    ValueError
        If there is no such network.
    """
    steps = described(name).steps()
    return sum(step.operation.parameters(step.shape) for step in steps if auxiliary or not step.auxiliary)


def representative(name: str, n: int = 1, dtype: str = "float32") -> Layer:
    """Return the one layer that best stands for a network.

    It has the most multiply-adds among the layers of the kind the network is known for: the depthwise ones of
    Xception, the grouped ones of ResNeXt, the global averages of SE-ResNet, and so on.

    Raises
    ------
    ValueError
        If there is no such network.
    """
    return find(f"{name}/{described(name).representative}", n, dtype)


def described(name: str) -> Network:
    """Return the description of a network.

    Raises
    ------
    ValueError
        If there is no such network.
    """
    if name not in NETWORKS:
        near = difflib.get_close_matches(name, NETWORKS, n=5, cutoff=0.5) or NETWORKS
        raise ValueError(f"name: unknown network {name!r}; expected {', '.join(near)}")
    return NETWORKS[name]
