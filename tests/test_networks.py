"""The network descriptions against what is published of the networks: parameters, multiply-adds and sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fastconv import networks
from fastconv.networks import NETWORKS
from fastconv.networks.description import (
    Activation,
    Auxiliary,
    Flatten,
    Network,
    Node,
    add,
    concat,
    conv,
    global_avg_pool,
    identity,
    linear,
    max_pool,
    multiply,
    separable_conv,
    seq,
    stack,
)
from fastconv.notation import format_problem, parse_problem
from fastconv.problem import ConvProblem, PoolProblem

PARAMETERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "googlenet": 6_998_552,
    "googlenet_bn": 6_624_904,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "preact_resnet50": 25_549_352,
    "densenet121": 7_978_856,
    "xception": 22_855_952,
    "inception_resnet_v2": 55_843_464,
    "resnext50": 25_028_904,
    "se_resnet50": 28_088_024,
}

# 10^9 multiply-adds of convolutions and fully connected layers for one image, with the digits that are published.
GMACS = {
    "alexnet": 0.714,
    "vgg16": 15.470,
    "vgg19": 19.632,
    "googlenet": 1.58,
    "resnet50": 4.089,
    "resnet152": 11.514,
    "densenet121": 2.834,
    "xception": 8.4,
    "inception_resnet_v2": 13.2,
    "resnext50": 4.230,
}

OUTPUTS = {
    "lenet5/c1": (6, 28, 28),
    "lenet5/s4": (16, 5, 5),
    "lenet5/c5": (120, 1, 1),
    "alexnet/conv1": (64, 55, 55),
    "alexnet/conv2": (192, 27, 27),
    "alexnet/conv5": (256, 13, 13),
    "alexnet/pool5": (256, 6, 6),
    "alexnet/fc6": (4096,),
    "vgg16/conv1_2": (64, 224, 224),
    "vgg16/pool5": (512, 7, 7),
    "vgg19/conv5_4": (512, 14, 14),
    "googlenet/pool1": (64, 56, 56),
    "googlenet/pool2": (192, 28, 28),
    "googlenet/inception3b.tower5x5.conv": (96, 28, 28),
    "googlenet/aux1.pool": (512, 4, 4),
    "googlenet/pool4": (832, 7, 7),
    "googlenet/pool5": (1024, 1, 1),
    "resnet50/conv1": (64, 112, 112),
    "resnet50/maxpool": (64, 56, 56),
    "resnet50/layer2.0.conv1": (128, 56, 56),
    "resnet50/layer2.0.conv2": (128, 28, 28),
    "resnet50/layer4.2.conv3": (2048, 7, 7),
    "resnet152/layer3.35.conv3": (1024, 14, 14),
    "densenet121/denseblock1.denselayer6.conv2": (32, 56, 56),
    "densenet121/transition3.conv": (512, 14, 14),
    "densenet121/pool5": (1024, 1, 1),
    "xception/conv2": (64, 147, 147),
    "xception/block1.pool": (128, 74, 74),
    "xception/block11.sep3.pointwise": (728, 19, 19),
    "xception/sep4.pointwise": (2048, 10, 10),
    "inception_resnet_v2/pool5a": (192, 35, 35),
    "inception_resnet_v2/block35.9.project": (320, 35, 35),
    "inception_resnet_v2/block17.19.project": (1088, 17, 17),
    "inception_resnet_v2/block8.9.project": (2080, 8, 8),
    "inception_resnet_v2/conv7b": (1536, 8, 8),
    "resnext50/layer1.0.conv2": (128, 56, 56),
    "se_resnet50/layer4.2.se.fc1": (128,),
}

every_network = pytest.mark.parametrize("name", NETWORKS)


def test_every_network_has_a_published_parameter_count() -> None:
    assert set(PARAMETERS) == set(NETWORKS)


@every_network
def test_parameters(name: str) -> None:
    assert networks.parameters(name) == PARAMETERS[name]


def test_auxiliary_classifiers_are_flagged() -> None:
    assert networks.parameters("googlenet", auxiliary=True) == 13_378_280
    assert networks.parameters("googlenet_bn", auxiliary=True) == 13_004_888
    auxiliary = [layer.path for layer in networks.layers("googlenet") if layer.auxiliary]
    assert auxiliary == [f"aux{i}.{part}" for i in (1, 2) for part in ("pool", "conv", "fc1", "fc2")]
    assert not any(layer.auxiliary for name in NETWORKS if "googlenet" not in name for layer in networks.layers(name))


@pytest.mark.parametrize("name", GMACS)
def test_multiply_adds(name: str) -> None:
    macs = sum(
        layer.problem.macs
        for layer in networks.layers(name)
        if isinstance(layer.problem, ConvProblem) and not layer.auxiliary
    )
    digits = len(str(GMACS[name]).partition(".")[2])
    assert round(macs / 1e9, digits) == GMACS[name]


@pytest.mark.parametrize("name", OUTPUTS)
def test_output_size(name: str) -> None:
    assert networks.find(name).problem.y_shape == (1, *OUTPUTS[name])


@every_network
def test_layers(name: str) -> None:
    found = networks.layers(name, n=3, dtype="bfloat16")
    assert len({layer.name for layer in found}) == len(found)
    for layer in found:
        assert layer.name == f"{name}/{layer.path}"
        assert layer.problem.n == 3
        assert layer.problem.dtype == "bfloat16"
        assert layer.problem.direction == "fprop"
        assert parse_problem(format_problem(layer.problem)) == layer.problem
    assert found[0].problem.x_shape == (3, *NETWORKS[name].input_shape)
    assert found[-1].problem.y_shape == (3, 10 if name == "lenet5" else 1000)


@every_network
def test_a_bias_only_where_no_normalisation_follows(name: str) -> None:
    steps = NETWORKS[name].steps()
    normalised = {step.path.removesuffix(".norm") for step in steps if step.path.endswith(".norm")}
    for layer in networks.layers(name):
        if isinstance(layer.problem, ConvProblem):
            # DenseNet normalises before its convolutions and Xception after the pointwise half of a pair.
            bare = (
                layer.path in normalised
                or name in ("densenet121", "preact_resnet50")
                or layer.path.endswith("depthwise")
            )
            assert layer.problem.bias == ("none" if bare and layer.problem.op == "conv2d" else "channel")


@every_network
def test_representative_has_the_most_multiply_adds_of_its_kind(name: str) -> None:
    def kind(layer: networks.Layer) -> tuple[object, ...]:
        problem = layer.problem
        return (problem.op, problem.kernel_size, isinstance(problem, ConvProblem) and problem.groups > 1)

    layer = networks.representative(name)
    # DenseNet's other 1x1 convolutions, those of its transitions, are no bottlenecks.
    rivals = [
        other
        for other in networks.layers(name)
        if kind(other) == kind(layer) and not other.path.startswith("transition")
    ]
    assert layer in rivals
    assert layer.problem.macs == max(other.problem.macs for other in rivals)


def test_representatives_of_the_characteristic_kind() -> None:
    depthwise, grouped = (networks.representative(name).problem for name in ("xception", "resnext50"))
    assert isinstance(depthwise, ConvProblem)
    assert depthwise.groups == depthwise.ic == depthwise.oc
    assert isinstance(grouped, ConvProblem)
    assert (grouped.groups, grouped.ic) == (32, 128)
    assert networks.representative("googlenet").problem.kernel_size == (5, 5)
    assert networks.representative("inception_resnet_v2").problem.kernel_size == (7, 1)
    assert networks.representative("se_resnet50").problem.op == "adaptive_avg_pool2d"


def test_distinct_keeps_the_first_and_counts() -> None:
    found = networks.layers("resnet50")
    counts = networks.distinct(found)
    assert sum(counts.values()) == len(found)
    assert len({layer.problem for layer in counts}) == len(counts)
    assert list(counts) == sorted(counts, key=found.index)
    # conv1 of layer4's later blocks: 2048 -> 512 channels on 7x7, twice.
    assert counts[networks.find("resnet50/layer4.1.conv1")] == 2
    assert networks.find("resnet50/layer4.2.conv1") not in counts


def test_distinct_over_networks() -> None:
    both = networks.distinct([*networks.layers("resnet50"), *networks.layers("resnet152")])
    assert both.keys() == networks.distinct(networks.layers("resnet50")).keys()


def test_find() -> None:
    layer = networks.find("resnet50/layer1.0.conv2", n=8, dtype="float64")
    assert layer.problem == parse_problem("conv2d n8 ic64 i56 oc64 k3 p1 f64")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50/layer1.0.conv4", "resnet50 has no layer 'layer1.0.conv4'.*resnet50/layer1.0.conv3"),
        ("xception/block2.sep1", "xception/block2.sep1.depthwise, xception/block2.sep1.pointwise$"),
        ("resnet50", "expected a name such as resnet50/layer1.0.conv2"),
        ("resnet5/conv1", "unknown network 'resnet5'; expected .*resnet50"),
        ("?/conv1", "unknown network '\\?'; expected lenet5, alexnet, "),
        ("", "unknown network ''"),
    ],
)
def test_find_lists_near_matches(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.find(name)


def test_invalid_arguments() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'vgg'; expected .*vgg16"):
        networks.parameters("vgg")
    with pytest.raises(ValueError, match=r"n: .*-1"):
        networks.layers("lenet5", n=-1)
    with pytest.raises(ValueError, match=r"dtype: .*'int8'"):
        networks.layers("lenet5", dtype="int8")


def test_a_trace_names_and_sizes_every_operation() -> None:
    body = seq(
        stem=conv(8, 3, 2),
        blocks=stack([add(separable_conv(8), identity()), concat(wide=conv(4, (1, 7)), pool=max_pool(3, 1, 1))]),
        aux=Auxiliary(seq(flatten=Flatten(), fc=linear(5))),
        gate=multiply(identity(), seq(squeeze=global_avg_pool(), fc=linear(12, "sigmoid"))),
    )
    steps = Network(body, representative="stem", input_shape=(3, 8, 6)).steps()
    assert [(step.path, step.shape) for step in steps] == [
        ("stem", (3, 8, 6)),
        ("stem.norm", (8, 4, 3)),
        ("stem.relu", (8, 4, 3)),
        ("blocks.0.depthwise", (8, 4, 3)),
        ("blocks.0.pointwise", (8, 4, 3)),
        ("blocks.0.pointwise.norm", (8, 4, 3)),
        ("blocks.1.wide", (8, 4, 3)),
        ("blocks.1.wide.norm", (4, 4, 3)),
        ("blocks.1.wide.relu", (4, 4, 3)),
        ("blocks.1.pool", (8, 4, 3)),
        ("aux.flatten", (12, 4, 3)),
        ("aux.fc", (144,)),
        ("gate.squeeze", (12, 4, 3)),
        ("gate.squeeze.flatten", (12, 1, 1)),
        ("gate.fc", (12,)),
        ("gate.fc.sigmoid", (12,)),
    ]
    assert [step.path for step in steps if step.auxiliary] == ["aux.flatten", "aux.fc"]
    assert steps[-1].operation == Activation("sigmoid")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (concat(conv(4, 3), max_pool(2, 2)), "cannot concat"),
        (add(conv(4, 3), identity()), "cannot add"),
        (multiply(identity(), seq(global_avg_pool(), linear(4))), "cannot multiply"),
    ],
)
def test_branches_that_do_not_fit(node: Node, message: str) -> None:
    with pytest.raises(ValueError, match=f"here: {message} outputs of shapes"):
        Network(seq(here=node), representative="here").steps()


def test_needs_nothing_but_the_problems() -> None:
    # With a bare package in place of fastconv, so that only what the descriptions import themselves is seen.
    script = (
        "import sys, types\n"
        "package = types.ModuleType('fastconv')\n"
        f"package.__path__ = [{str(Path(networks.__file__).parents[1])!r}]\n"
        "sys.modules['fastconv'] = package\n"
        "import fastconv.networks\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'numba', 'llvmlite'}))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('fastconv.') and 'networks' not in name))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    records = "fastconv.arguments fastconv.problem fastconv.record fastconv.sizes"
    assert result.stdout.split("\n") == ["", records, ""]


def test_global_pools_are_adaptive() -> None:
    pools = [layer.problem for layer in networks.layers("se_resnet50") if isinstance(layer.problem, PoolProblem)]
    assert [pool.op for pool in pools] == ["max_pool2d"] + ["adaptive_avg_pool2d"] * 17
