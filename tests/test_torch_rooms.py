"""Rooms of large results: lent to one tensor at a time, lent again when nothing holds it, given back when told."""

from __future__ import annotations

import threading

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import fastconv.torch as ft  # noqa: E402 - after what may be missing
from fastconv.torch import rooms  # noqa: E402

LAYER = torch.nn.Conv2d(8, 16, 3, padding=1)
X = torch.randn(1, 8, 40, 40)


@pytest.fixture(autouse=True)
def nothing_waits():
    ft.forget()
    yield
    ft.forget()


def convolved(layer=LAYER, x=X):
    with torch.inference_mode(), ft.use():
        return layer(x)


def waiting():
    return len(rooms._rooms.free)


def test_a_room_is_lent_again_when_its_tensor_is_gone():
    first = convolved()
    address = first.data_ptr()
    assert address % 64 == 0 and waiting() == 0
    del first
    assert waiting() == 1
    assert convolved().data_ptr() == address
    assert not rooms._rooms.lent


@pytest.mark.parametrize(
    "hold",
    [
        lambda y: y[0, 3:5],
        lambda y: y.untyped_storage(),
        lambda y: y.numpy(),
        lambda y: y.numpy()[0, :, ::2].T,
        lambda y: np.from_dlpack(y),
        lambda y: y.detach().relu_(),
        lambda y: torch.from_dlpack(y),
    ],
    ids=["view", "storage", "array", "array's view", "dlpack", "in place", "tensor of dlpack"],
)
def test_whatever_holds_the_memory_keeps_the_room(hold):
    y = convolved()
    address = y.data_ptr()
    held = hold(y)
    del y
    others = [convolved() for _ in range(3)]
    assert all(other.data_ptr() != address for other in others)
    del held
    assert convolved().data_ptr() == address


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_results_in_rooms_are_those_without(dtype, order, monkeypatch):
    layer, x = torch.nn.Conv2d(8, 16, 3, padding=1).to(dtype), X.to(dtype).contiguous(memory_format=order)
    monkeypatch.setattr(rooms, "_LEAST", 1 << 40)
    expected = convolved(layer, x)
    monkeypatch.undo()
    ft.forget()
    for _ in range(3):  # the first fills new rooms, others those of before
        y = convolved(layer, x)
        assert torch.equal(y, expected)
        assert y.is_contiguous(memory_format=order)
        assert y.data_ptr() % 64 == 0
        del y
    assert waiting() == 1


def test_small_results_and_halves_have_no_rooms():
    small = torch.nn.Conv2d(8, 4, 3)
    convolved(small)
    with torch.inference_mode(), ft.use(dtypes=(torch.bfloat16,)):
        LAYER.bfloat16()(X.bfloat16())
    LAYER.float()
    assert waiting() == 0


def test_rooms_that_are_much_too_large_stay_free():
    wide, narrow = torch.nn.Conv2d(8, 64, 3, padding=1), torch.nn.Conv2d(8, 12, 3, padding=1)
    convolved(wide)
    convolved(narrow)
    assert waiting() == 2
    convolved()  # between the two: the smaller is too small, the larger is more than twice as large
    assert waiting() == 3


def test_no_more_waits_than_is_allowed(monkeypatch):
    monkeypatch.setattr(rooms, "_WAITING", 3 * 16 * 40 * 40 * 4)
    results = [convolved() for _ in range(6)]
    addresses = [y.data_ptr() for y in results]
    while results:
        results.pop(0)
    assert waiting() == 3
    assert convolved().data_ptr() == addresses[-1]  # the one that is still near
    monkeypatch.setattr(rooms, "_WAITING", 1 << 10)
    convolved()
    assert waiting() == 0  # one that is too large by itself


def test_forget_gives_what_waits_back():
    held = convolved()
    convolved()
    assert waiting() == 1
    ft.forget()
    assert waiting() == 0
    expected = held.clone()
    del held
    assert torch.equal(convolved(), expected)


def test_threads_never_share_a_room():
    expected, wrong = {float(scale): convolved(x=X * float(scale)) for scale in range(1, 9)}, []

    def work(scale):
        results = (convolved(x=X * scale) for _ in range(30))
        wrong.extend(scale for y in results if not torch.equal(y, expected[scale]))

    threads = [threading.Thread(target=work, args=(float(scale),)) for scale in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len({id(room) for room in rooms._rooms.free}) == waiting()
