"""Training on real digits, and what goes with it: the same bits every time, vanishing gradients, saving, sliding."""

from __future__ import annotations

import copy
import itertools
import time

import numpy as np
import pytest

import fastconv as fc
from fastconv import nn
from fastconv.algorithm import EPSILON, ERROR_CONSTANT

pytest.importorskip("sklearn")
pictures = pytest.importorskip("benchmarks.networks.pictures")
digits = pytest.importorskip("benchmarks.networks.digits")


def undisturbed_step(name, rounds=30):
    """Return the least seconds of a training step."""
    data, task = digits.digits(digits.TASKS[name].size), digits.TASKS[name]
    network, loss = task.build(0), nn.SoftmaxCrossEntropy()
    optimiser, taken = nn.Adam(network, task.rate), []
    for _ in range(rounds):
        start = time.perf_counter()
        nn.train_step(network, loss, optimiser, data.x[:32], data.labels[:32])
        taken.append(time.perf_counter() - start)
    return min(taken)


@pytest.mark.slow
def test_lenet5_on_digits():
    """98 % of what it never saw, within 30 seconds; the same losses to the bit again, on one thread and on two.

    The seconds are the steps that nothing else on the machine disturbs, times their number.
    """
    first = digits.train("lenet5", threads=2)
    assert undisturbed_step("lenet5") * len(first.losses) < 30
    assert first.network.count() == 61_706
    assert first.scores[-1] >= 0.98
    again = digits.train("lenet5", threads=1)
    assert again.losses == first.losses
    assert again.scores == first.scores


@pytest.mark.parametrize("name", [name for name in digits.TASKS if "perceptron" in name])
def test_perceptrons_on_digits(name):
    assert digits.train(name).scores[-1] > 0.96


@pytest.mark.parametrize(
    "name",
    ["small VGG, without batch normalisation, dropout 0.0", "small ResNet, with batch normalisation, dropout 0.25"],
)
def test_an_epoch_is_the_same_on_any_number_of_threads(name, monkeypatch):
    task = digits.TASKS[name]
    monkeypatch.setitem(digits.TASKS, name, task._replace(epochs=1))
    one, two = (digits.train(name, threads=threads) for threads in (1, 2))
    assert one.losses == two.losses
    assert one.scores == two.scores
    state = two.network.state()
    assert all(np.array_equal(array, state[key]) for key, array in one.network.state().items())


def first_losses(backend, steps=8):
    data = digits.digits(32)
    network = nn.build("lenet5", random=0)
    loss, optimiser = nn.SoftmaxCrossEntropy(), nn.SGD(network, 0.05, 0.9)
    with fc.options(backend=backend):
        batches = itertools.islice(nn.minibatches(data.x, data.labels, 32, 0), steps)
        return [nn.train_step(network, loss, optimiser, x, labels) for x, labels in batches]


@pytest.mark.parametrize("backend", ["numba", "im2col", "naive", "reference"])
def test_every_backend_gives_the_same_curve(backend):
    expected = first_losses(None)
    worst = 400  # the longest sum in the network
    allowed = ERROR_CONSTANT * EPSILON["float32"] * np.sqrt(worst) * len(expected) * np.array(expected)
    assert (np.abs(np.subtract(first_losses(backend), expected)) <= allowed).all()


def test_gradients_vanish_with_sigmoid_and_not_with_relu():
    sigmoid, relu = (pictures.gradient_norms(activation) for activation in (nn.Sigmoid, nn.ReLU))
    # The sigmoid's slope is a quarter at most: from layer to layer, less arrives.
    assert all(early < late for early, late in itertools.pairwise(sigmoid))
    assert sigmoid[0] < sigmoid[-1] * 4.0 ** -(len(sigmoid) // 2)
    # A rectifier's is one where it is on: all layers learn at about the same rate.
    assert max(relu) < 10 * min(relu)


def test_pictures(tmp_path, monkeypatch):
    name = "small VGG, with batch normalisation, dropout 0.25"
    monkeypatch.setitem(digits.TASKS, name, digits.TASKS[name]._replace(epochs=1))
    for path in pictures.draw({name: digits.train(name)}, tmp_path):
        assert path.stat().st_size > 1000


@pytest.mark.parametrize(("make", "fans"), [(nn.he, lambda i, o: i), (nn.xavier, lambda i, o: (i + o) / 2)])
def test_initial_weights_have_the_published_variance(make, fans):
    shape, fan_in, fan_out = (300, 200), 200, 700
    values = make(shape, fan_in, fan_out, np.random.default_rng(0)).astype(np.float64)
    wanted = {nn.he: 2, nn.xavier: 1}[make] / fans(fan_in, fan_out)
    # The variance of 60,000 draws is off by a share of sqrt(2 / draws); five times that.
    assert abs(values.var() / wanted - 1) < 5 * np.sqrt(2 / values.size)
    assert abs(values.mean()) < 5 * np.sqrt(wanted / values.size)
    if make is nn.xavier:
        assert np.abs(values).max() <= np.sqrt(6 / (fan_in + fan_out))


def test_half_types_train():
    """Stored in half precision, computed in single: the same losses, but for rounding, and they fall."""
    data, losses = digits.digits(16), {}
    for dtype in (np.float16, np.float32):
        network = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, random=0), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Residual(nn.Conv2d(8, 8, 3, padding=1, random=1)), nn.GlobalAvgPool(), nn.Flatten(),
            nn.Linear(8, 10, random=2),
        ).astype(dtype)  # fmt: skip
        loss, optimiser = nn.SoftmaxCrossEntropy(), nn.SGD(network, 0.1, 0.9)
        x, labels = data.x[:64].astype(dtype), data.labels[:64]
        losses[dtype] = [nn.train_step(network, loss, optimiser, x, labels) for _ in range(10)]
        assert network(x).dtype == dtype
    assert np.allclose(losses[np.float16], losses[np.float32], rtol=ERROR_CONSTANT * EPSILON["float16"])
    assert losses[np.float16][-1] < losses[np.float16][0]


def test_early_stopping_restores_the_best():
    network = nn.Sequential(nn.Linear(4, 3, random=0))
    x, labels = np.eye(4, dtype=np.float32), np.array([0, 1, 2, 0])
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    states = []

    def score(trained):
        states.append(trained.state()["0.weight"].copy())
        return next(scores)

    stopping = nn.EarlyStopping(patience=2)
    optimiser = nn.SGD(network, 0.1)
    history = nn.fit(
        network,
        nn.SoftmaxCrossEntropy(),
        optimiser,
        x,
        labels,
        epochs=9,
        batch=2,
        random=0,
        score=score,
        stopping=stopping,
    )
    assert history.scores == [0.5, 0.7, 0.6, 0.65]
    assert stopping.best == 0.7
    assert len(history.losses) == 4 * 2
    assert np.array_equal(network.state()["0.weight"], states[1])
    with pytest.raises(ValueError, match="takes a score"):
        nn.fit(network, nn.SoftmaxCrossEntropy(), optimiser, x, labels, epochs=1, batch=1, stopping=stopping)


def test_minibatches_hold_everything_once():
    x = np.arange(10)
    batches = list(nn.minibatches(x, -x, 4, 0))
    assert [len(a) for a, _ in batches] == [4, 4, 2]
    assert all(np.array_equal(a, -b) for a, b in batches)
    assert sorted(np.concatenate([a for a, _ in batches])) == list(range(10))
    with pytest.raises(ValueError, match="targets: expected one for each of 10 inputs, got 9"):
        nn.minibatches(x, x[:9], 4)


# ------------------------------------------------------------------------------------------ saving and loading


def saved_network(random):
    return nn.Sequential(nn.Conv2d(2, 3, 3, random=random), norm=nn.BatchNorm2d(3))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_saving_and_loading(suffix, tmp_path):
    network, other = saved_network(0), saved_network(1)
    network(np.random.default_rng(0).standard_normal((2, 2, 5, 5), np.float32))
    path = tmp_path / f"network{suffix}"
    nn.save(network, path)
    nn.load(other, path)
    assert network.state().keys() == other.state().keys() == {
        "0.weight", "0.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    }  # fmt: skip
    for name, array in network.state().items():
        assert np.array_equal(array, other.state()[name])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(ValueError, match=r"state: missing .*unknown"):
        nn.load(nn.Sequential(nn.Linear(2, 2)), path)
    before = {name: array.copy() for name, array in other.state().items()}
    wide = nn.Sequential(nn.Conv2d(2, 3, 5), norm=nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match=r"0.weight: expected shape \(3, 2, 5, 5\), got \(3, 2, 3, 3\)"):
        nn.load(wide, path)
    data = path.read_bytes()
    for spoilt in (b"", data[:20], b"\xff" * 64, data[: len(data) // 2]):
        path.write_bytes(spoilt)
        with pytest.raises(ValueError, match="cannot be read as"):
            nn.load(other, path)
    assert all(np.array_equal(array, other.state()[name]) for name, array in before.items())


def test_no_pickles(tmp_path):
    path = tmp_path / "network.npz"
    np.savez(path, **{"0.weight": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(ValueError, match="cannot be read as"):
        nn.load(saved_network(0), path)
    with pytest.raises(ValueError, match=r"expected \.npz or \.safetensors"):
        nn.save(saved_network(0), tmp_path / "network.pkl")


def test_safetensors_is_laid_out_as_documented(tmp_path):
    path = tmp_path / "network.safetensors"
    network = nn.Sequential(nn.Linear(2, 1, random=0))
    nn.save(network, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = __import__("json").loads(data[8 : 8 + length])
    assert header == {
        "0.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "0.bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
    assert data[8 + length :] == network[0].weight.value.tobytes() + network[0].bias.value.tobytes()


# -------------------------------------------------------------------------------------- tables and conversions


def test_summary_counts_as_the_textbooks_do():
    network = nn.Sequential(
        nn.Conv2d(3, 10, 5, padding=2), nn.MaxPool2d(2), nn.Residual(nn.Conv2d(10, 10, 3, padding=1)), nn.Flatten(),
        nn.Linear(2560, 7),
    )  # fmt: skip
    table = nn.summary(network, (3, 32, 32))
    conv, pool, inner, total, flatten, linear = table.rows
    assert (conv.parameters, conv.output, conv.macs, conv.memory, conv.field) == (
        760, (10, 32, 32), 5 * 5 * 3 * 32 * 32 * 10, 4 * 32 * 32 * 10, (5, 5),
    )  # fmt: skip
    assert (pool.output, pool.field, pool.parameters) == ((10, 16, 16), (6, 6), 0)
    assert (inner.path, inner.field) == ("2.body", (10, 10))
    assert (total.path, total.kind, total.output, total.field) == ("2", "Residual", (10, 16, 16), (10, 10))
    assert (total.parameters, total.memory) == (0, inner.memory)
    assert (flatten.output, flatten.field) == ((2560,), None)
    assert (linear.parameters, linear.macs) == (2560 * 7 + 7, 2560 * 7)
    assert table.parameters == network.count()
    assert table.flops == 2 * table.macs == sum(row.flops for row in table.rows)
    assert "2.body" in str(table)
    assert f"{table.parameters:,}" in str(table).splitlines()[-1]


def test_three_3x3_layers_see_7x7():
    rows = nn.summary(nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)]), (1, 9, 9)).rows
    assert [row.field for row in rows] == [(3, 3), (5, 5), (7, 7)]
    assert sum(row.parameters for row in rows) == 27 + 3


def test_a_transposed_convolution_sees_less_and_a_linear_layer_all():
    network = nn.Sequential(
        nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.ConvTranspose2d(1, 1, 4, 2, 1), nn.Conv2d(1, 1, 3, padding=1)
    )
    # An output of the second sees two of the first, two pixels apart; three of those see one half-step further.
    assert [row.field for row in nn.summary(network, (1, 16, 16)).rows] == [(3, 3), (5, 5), (7, 7)]
    assert nn.summary(nn.Linear(4, 2), (4,)).rows[0].field is None


def test_what_stands_side_by_side_takes_memory_and_a_norm_of_maps_sees_all():
    network = nn.Sequential(nn.Concat(nn.Conv2d(2, 3, 3, padding=1), nn.Sequential()), nn.GroupNorm(1, 5), nn.ReLU())
    rows = nn.summary(network, (2, 8, 8)).rows
    assert [(row.kind, row.memory // 256, row.field) for row in rows] == [
        ("Conv2d", 3, (3, 3)), ("Concat", 5, (3, 3)), ("GroupNorm", 5, None), ("ReLU", 5, None),
    ]  # fmt: skip


def test_a_container_of_the_users_own_is_one_row():
    class Twice(nn.Layer):
        def __init__(self):
            self.inner = nn.Linear(4, 4, random=0)

        def children(self):
            return {"inner": self.inner}

        def forward(self, x):
            return 2 * self.inner.forward(x)

        def backward(self, dy, wanted=True):
            return self.inner.backward(2 * dy, wanted)

    table = nn.summary(nn.Sequential(Twice()), (4,))
    assert [row.kind for row in table.rows] == ["Twice"]
    assert table.parameters == 20


def test_summary_of_a_network_agrees_with_its_description():
    from fastconv import networks
    from fastconv.problem import ConvProblem

    table = nn.summary(nn.build("resnet50", random=0), (3, 224, 224))
    macs = sum(layer.problem.macs for layer in networks.layers("resnet50") if isinstance(layer.problem, ConvProblem))
    assert table.macs == macs
    assert table.parameters == networks.parameters("resnet50")


def test_a_fully_connected_network_slides():
    """224 becomes 1x1 and 384 becomes 6x6, equal to crops at steps of 32 pixels; here at an eighth of that."""
    channels = (4, 4, 8, 8, 8)
    layers = []
    for inputs, outputs in itertools.pairwise((1, *channels)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=0, random=0), nn.ReLU()]
    network = nn.Sequential(
        *layers,
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 3 * 3, 16, random=0),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 5),
    )
    x = np.random.default_rng(0).standard_normal((1, 1, 24, 24), np.float32)
    sliding = nn.to_conv(network, (1, 16, 16))
    assert all(layer.training for _, layer in network.named_layers())  # it stays as it is
    mine = network.state()
    assert all(np.shares_memory(value, mine[name]) for name, value in sliding.state().items())
    network.eval()
    y = sliding(x)
    assert y.shape == (1, 5, 5, 5)
    bound = ERROR_CONSTANT * EPSILON["float32"] * np.sqrt(72)
    for row, column in itertools.product(range(5), repeat=2):
        crop = np.ascontiguousarray(x[:, :, 2 * row : 2 * row + 16, 2 * column : 2 * column + 16])
        expected = network(crop)
        assert np.abs(y[:, :, row, column] - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("last", [nn.Softmax, lambda: nn.PReLU(5)])
def test_what_follows_slides_too(last):
    network = nn.Sequential(nn.Conv2d(1, 4, 3, random=0), nn.Flatten(), nn.Linear(16, 5, random=1), last())
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 4), np.float32)
    expected = network(x)
    y = nn.to_conv(network, (1, 4, 4))(x)
    assert y.shape == (2, 5, 1, 1)
    assert np.abs(y[:, :, 0, 0] - expected).max() <= ERROR_CONSTANT * EPSILON["float32"] * 4


@pytest.mark.slow
def test_vgg16_slides_over_384_as_the_textbook_says():
    sliding = nn.to_conv(nn.build("vgg16", random=0), (3, 224, 224))
    assert sliding.output_shape((3, 224, 224)) == (1000, 1, 1)
    assert sliding.output_shape((3, 384, 384)) == (1000, 6, 6)


def test_flat_maps_are_flattened_again_and_auxiliaries_left_out():
    network = nn.Sequential(
        nn.Auxiliary(nn.Sequential(nn.Flatten(), nn.Linear(16, 2))),
        nn.Conv2d(1, 4, 3, random=0), nn.Flatten(), nn.Linear(16, 5, random=1), nn.Flatten(), nn.Linear(5, 3, random=2),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((2, 1, 4, 4), np.float32)
    sliding = nn.to_conv(network, (1, 4, 4))
    assert list(sliding.children()) == ["1", "3", "5"]
    assert np.abs(sliding(x)[:, :, 0, 0] - network.eval()(x)).max() <= ERROR_CONSTANT * EPSILON["float32"] * 4
    labels = network(x).argmax(axis=1)
    assert nn.accuracy(sliding, x, labels) == 1  # maps of 1x1 are numbers
    with pytest.raises(
        ValueError, match=r"network: expected a number for each class, got outputs of shape \(2, 3, 3, 3"
    ):
        nn.accuracy(sliding, np.zeros((2, 1, 6, 6), np.float32), labels)


def test_what_does_not_slide():
    for after in ((nn.Softmax(),), (nn.PReLU(16), nn.Linear(16, 2))):
        with pytest.raises(ValueError, match=r"after a Flatten, and does not slide"):
            nn.to_conv(nn.Sequential(nn.Flatten(), *after), (4, 2, 2))
    with pytest.raises(ValueError, match="nothing fully connected follows its Flatten"):
        nn.to_conv(nn.Sequential(nn.Flatten(), nn.ReLU()), (4, 2, 2))
    with pytest.raises(ValueError, match=r"0 flattens \(4,\), which is no map"):
        nn.to_conv(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (4,))
    with pytest.raises(ValueError, match="does not slide"):
        nn.to_conv(nn.Sequential(nn.Flatten(), nn.BatchNorm2d(4)), (1, 2, 2))
    with pytest.raises(ValueError, match="no Flatten before it"):
        nn.to_conv(nn.Sequential(nn.Linear(4, 2)), (4,))


# ------------------------------------------------------------------------------------------------- inference


def test_inference_is_tied_to_the_examples_form():
    network = nn.Sequential(nn.Conv2d(2, 3, 3, random=0), nn.ReLU())
    x = np.ones((2, 2, 6, 6), np.float32)
    predict = nn.Inference(network, x)
    with pytest.raises(ValueError, match=r"x: expected the example's shape \(2, 2, 6, 6\), got \(1, 2, 6, 6\)"):
        predict(x[:1])
    with pytest.raises(TypeError, match="x: expected dtype float32"):
        predict(x.astype(np.float64))
    first = predict(x)
    kept = first.copy()
    assert not np.array_equal(predict(2 * x), kept)
    assert np.array_equal(first, kept)  # a result is the caller's own


def test_inference_notices_that_weights_have_changed():
    """Some weights are packed and some read where they lie: a mixture of old and new would be no network at all."""
    network, other = (nn.Sequential(nn.Conv2d(2, 3, 3, random=0), nn.Flatten(), nn.Linear(12, 2)) for _ in range(2))
    x = np.ones((2, 2, 4, 4), np.float32)
    predict, of_a_copy = nn.Inference(network, x), nn.Inference(copy.deepcopy(network), x)
    before = predict(x)
    for trained in (other, network):
        nn.train_step(trained, nn.MeanSquaredError(), nn.SGD(trained, 0.1), x, np.ones((2, 2), np.float32))
        if trained is other:
            assert np.array_equal(predict(x), before)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="network: its weights have changed since this Inference was made"):
            predict(x)
    assert np.array_equal(of_a_copy(x), before)
    predict = nn.Inference(network, x)
    network.load_state(other.state())
    with pytest.raises(RuntimeError, match="weights have changed"):
        predict(x)


class Wrapped(nn.Layer):
    """A container of a user's own."""

    def __init__(self, inner):
        self.inner = inner

    def children(self):
        return {"inner": self.inner}

    def forward(self, x):
        return self.inner.forward(x)

    def backward(self, dy, wanted=True):
        return self.inner.backward(dy, wanted)


def test_inference_runs_a_users_container_in_evaluation_mode():
    norm = nn.BatchNorm2d(2)
    network = nn.Sequential(Wrapped(nn.Sequential(norm, nn.Dropout())))
    x = np.random.default_rng(0).standard_normal((4, 2, 3, 3), np.float32)
    network(x)
    mean = norm.running_mean.copy()
    predict = nn.Inference(network, x)
    y = predict(x)
    assert network.training and norm.training
    assert np.array_equal(norm.running_mean, mean)
    assert np.array_equal(y, network.eval()(x))


def test_inference_holds_a_users_container_to_what_it_promises():
    network = nn.Sequential(Wrapped(nn.GlobalAvgPool()))  # whose output_shape is that of the input
    x = np.ones((1, 2, 3, 3), np.float32)
    with pytest.raises(
        ValueError, match=r"network: 0 returns float32 of shape \(1, 2, 1, 1\).* promises \(1, 2, 3, 3\)"
    ):
        nn.Inference(network, x)(x)


def test_predicting_leaves_every_mode_as_it_is():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout())
    network[0].eval()
    nn.predict(network, np.ones((3, 2, 2, 2), np.float32))
    assert [layer.training for _, layer in network.named_layers()] == [True, False, True]


def test_inference_folds_and_fuses():
    block = nn.Residual(
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False, random=0), nn.BatchNorm2d(4), nn.Scale(0.5))
    )
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6), np.float32)
    network = nn.Sequential(block, nn.ReLU(), nn.Dropout(), nn.Concat(nn.Sequential(), nn.MaxPool2d(3, 1, 1)))
    network(x)
    predict = nn.Inference(network, x)
    kinds = [step.what.partition(" by ")[0] for step in predict.steps]
    assert kinds == ["Conv2d + residual + relu", "MaxPool2d"]
    bound = ERROR_CONSTANT * EPSILON["float32"] * np.sqrt(36)
    expected = network.eval()(x)
    assert np.abs(predict(x) - expected).max() <= bound * np.abs(expected).max()
    assert len(predict.profile(x, 2)) == 2
