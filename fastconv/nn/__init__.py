"""Networks for NumPy and CuPy arrays: small layers with explicit `forward` and `backward` over fastconv's ops.

>>> import numpy as np
>>> from fastconv import nn
>>> network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.GlobalAvgPool(), nn.Flatten(), nn.Linear(8, 10))
>>> loss, optimiser = nn.SoftmaxCrossEntropy(), nn.SGD(network, rate=0.1, momentum=0.9)
>>> value = loss(network(x), labels)
>>> network.backward(loss.backward())
>>> optimiser.step()
"""

from fastconv.nn.activations import LeakyReLU, PReLU, ReLU, ReLU6, Sigmoid, Softmax, Tanh
from fastconv.nn.building import build
from fastconv.nn.containers import Auxiliary, Concat, Gate, Residual, Sequential, SqueezeExcite
from fastconv.nn.inference import Inference
from fastconv.nn.initialisation import he, xavier
from fastconv.nn.layer import Layer, Parameter
from fastconv.nn.losses import Loss, MeanSquaredError, SoftmaxCrossEntropy
from fastconv.nn.normalisation import BatchNorm2d, GroupNorm, InstanceNorm, LayerNorm, LocalResponseNorm
from fastconv.nn.optimisers import SGD, Adam, Optimiser, limit_norm
from fastconv.nn.pools import AvgPool2d, GlobalAvgPool, LpPool2d, MaxPool2d
from fastconv.nn.saving import load, save
from fastconv.nn.shapes import Dropout, Flatten, Scale
from fastconv.nn.sliding import to_conv
from fastconv.nn.summary import Summary, summary
from fastconv.nn.training import EarlyStopping, History, accuracy, fit, minibatches, predict, train_step
from fastconv.nn.weighted import Conv2d, ConvTranspose2d, Linear, LocallyConnected2d

__all__ = [
    "SGD",
    "Adam",
    "Auxiliary",
    "AvgPool2d",
    "BatchNorm2d",
    "Concat",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "EarlyStopping",
    "Flatten",
    "Gate",
    "GlobalAvgPool",
    "GroupNorm",
    "History",
    "Inference",
    "InstanceNorm",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LocallyConnected2d",
    "Loss",
    "LpPool2d",
    "MaxPool2d",
    "MeanSquaredError",
    "Optimiser",
    "PReLU",
    "Parameter",
    "ReLU",
    "ReLU6",
    "Residual",
    "Scale",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SoftmaxCrossEntropy",
    "SqueezeExcite",
    "Summary",
    "Tanh",
    "accuracy",
    "build",
    "fit",
    "he",
    "limit_norm",
    "load",
    "minibatches",
    "predict",
    "save",
    "summary",
    "to_conv",
    "train_step",
    "xavier",
]
