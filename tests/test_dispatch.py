"""From a problem to a plan: what is asked, what is chosen, what is remembered, and what is said about it."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fakes import Fake, general_backends, registered
from fresh import python
from subject import PROBLEM, TEXT, W, X, Y, candidate, conv

import fastconv as fc
from fastconv import Algorithm, Plan, dispatch, registry, testing
from fastconv.machine import machine
from fastconv.notation import format_problem, parse_problem
from fastconv.options import current

pytestmark = pytest.mark.usefixtures("cache_dir")


# -------------------------------------------------------------------------------------------------- explain


def test_explain_lists_every_algorithm_and_the_winner():
    choice = fc.explain(fc.conv2d, X, W, padding=1)
    assert choice.problem == PROBLEM
    assert {c.algorithm for c in choice.candidates} == {a.key for a in registry.algorithms()}
    usable = [c for c in choice.candidates if c.refusal is None]
    assert {c.algorithm.partition("/")[0] for c in usable} >= set(general_backends())
    for c in usable:
        assert 0 < c.predicted < math.inf
        assert c.measured is None
        assert c.workspace >= 0
        assert c.error_bound > 0
    assert [c.seconds for c in usable] == sorted(c.seconds for c in usable)
    assert choice.winner == usable[0].algorithm
    assert candidate("reference/windows", choice).refusal == "solves window operations only"
    assert choice.candidates[-1].refusal is not None


def test_explain_prints():
    lines = str(fc.explain(fc.conv2d, X, W, padding=1)).splitlines()
    choice = fc.explain(PROBLEM)
    assert lines[0] == TEXT
    for c in choice.candidates:
        (line,) = (line for line in lines[3:-1] if c.algorithm in line.replace("->", "  ").split())
        assert ("->" in line) == (c.algorithm == choice.winner)
        assert (f"refused: {c.refusal}" in line) == (c.refusal is not None)
    assert all(word in lines[2] for word in ("predicted", "measured", "workspace", "error bound"))
    assert lines[-1] == f"  {choice.winner}: {choice.reason}"


def test_explain_is_data():
    data = fc.explain(PROBLEM).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert (data["problem"], data["flops"], data["bytes"]) == (TEXT, PROBLEM.flops, PROBLEM.bytes)
    assert [c["algorithm"] for c in data["candidates"]] == [c.algorithm for c in fc.explain(PROBLEM).candidates]
    assert data["options"]["max_workspace"] == current().max_workspace


def test_explain_takes_an_op_a_problem_or_a_text():
    by_op = fc.explain(fc.conv2d, X, W, padding=1)
    assert by_op == fc.explain(PROBLEM) == fc.explain(TEXT) == fc.explain("conv2d n2 c3 i8 oc4 k3 p1")


def test_explain_of_gradients_and_pools():
    assert fc.explain(fc.grad.conv2d_weight, X, W.shape, Y, padding=1).problem.direction == "wgrad"
    assert fc.explain(fc.max_pool2d, X, 2).problem == parse_problem("max_pool2d n2 c3 i8 k2")


def test_explain_tells_what_would_run():
    for key in ("fake/one", "fake/two"):
        fake = Fake(key.partition("/")[2])
        with registered(fake):
            assert fc.explain(PROBLEM).winner == key
            assert fc.plan(fc.conv2d, X, W, padding=1).algorithm == key


def test_explain_runs_nothing():
    fake = Fake("idle")
    with registered(fake):
        fc.explain(PROBLEM)
    assert (fake.plans, fake.runs) == (0, 0)


@pytest.mark.parametrize("subject", [print, 7, None])
def test_explain_wants_an_op(subject):
    with pytest.raises(TypeError, match=r"^function: expected one of fastconv's ops"):
        fc.explain(subject, X, W)


def test_reasons():
    with registered(Fake("a", predicted=2e-9), Fake("b", predicted=1e-9)):
        assert fc.explain(PROBLEM).reason == "predicted 0.001 us, 2 times faster than fake/a"
        with fc.options(algorithm="a"):
            assert fc.explain(PROBLEM).reason == "the only one that was not refused"
    with registered(Fake("c", refusal="out of order")), fc.options(backend="fake"):
        choice = fc.explain(PROBLEM)
        assert (choice.winner, choice.reason) == (None, "every algorithm was refused")
        assert "nothing: every algorithm was refused" in str(choice)
        assert candidate("fake/c", choice).refusal == "out of order"


def test_of_equals_the_later_one_is_taken():
    with registered(Fake("a"), Fake("b")):
        assert fc.explain(PROBLEM).winner == "fake/b"


def test_other_devices_are_refused():
    refusals = {c.refusal for c in fc.explain(PROBLEM.replace(device="cuda")).candidates}
    assert "computes on cpu, the arrays are on cuda" in refusals


# ------------------------------------------------------------------------------------- a user's own algorithm


class ShiftedSums(Algorithm):
    """One product with a 1x1 filter for each kernel position, added up."""

    name, backend = "shifted_sums", "mine"

    def refuses(self, problem):
        if problem.op != "conv2d" or problem.direction != "fprop":
            return "solves forward conv2d only"
        plain = problem.groups == 1 and problem.padding_mode == "zeros" and len(problem.inputs) == 2
        if not plain or problem.activation or max(problem.dilation + problem.stride) > 1:
            return "has no groups, strides, padding modes or epilogues"
        return "expects float32 or float64" if problem.itemsize < 4 else None

    def predict(self, problem, machine):
        return 1e-9

    def plan(self, problem):
        (top, bottom), (left, right) = problem.padding
        oh, ow = problem.output_size

        def run(inputs, outputs):
            x, w = inputs
            x = np.pad(x, ((0, 0), (0, 0), (top, max(bottom, 0)), (left, max(right, 0))))
            outputs[0][...] = 0
            for i, j in np.ndindex(problem.kernel_size):
                outputs[0][...] += np.einsum("oc,nchw->nohw", w[:, :, i, j], x[:, :, i : i + oh, j : j + ow])

        return Plan(problem, self, run)


def test_users_algorithm_is_right_shows_up_wins_and_runs():
    mine = ShiftedSums()
    assert testing.check_algorithm(mine) >= 4
    with registered(mine):
        assert fc.available_backends()[-1] == "mine"
        choice = fc.explain(PROBLEM)
        assert choice.winner == "mine/shifted_sums"
        assert "mine/shifted_sums" in str(choice)
        assert np.array_equal(conv(), Y)
        assert candidate(mine.key, fc.explain(fc.conv2d, X, W, stride=2)).refusal == mine.refuses(
            PROBLEM.replace(stride=(2, 2))
        )
        assert "mine/shifted_sums" in [c.algorithm for c in fc.explain("max_pool2d c1 i4 k2").candidates]
    assert fc.explain(PROBLEM).winner != "mine/shifted_sums"


def test_registered_algorithm_is_called():
    fake = Fake("mine")
    conv()
    with registered(fake):
        assert np.array_equal(conv(), Y)
        assert (fake.plans, fake.runs) == (1, 1)
    conv()
    assert fake.runs == 1


# ------------------------------------------------------------------------------------------------ no algorithm


def test_no_algorithm_error_gives_every_reason():
    with registered(Fake("tired", refusal="is asleep"), Fake("hungry", workspace=1 << 30)), fc.options(backend="fake"):
        with pytest.raises(fc.NoAlgorithmError) as caught:
            conv()
        assert isinstance(caught.value, ValueError)
        message = str(caught.value)
        assert message.startswith(f"no algorithm for {TEXT}:")
        assert "fake/tired: is asleep" in message
        assert "fake/hungry: needs 1 GiB of workspace, max_workspace allows 64 MiB" in message
        assert "reference/einsum: options ask for backend 'fake'" in message


@pytest.mark.parametrize(
    ("option", "known"),
    [("backend", ["reference", "naive", "im2col"]), ("algorithm", ["einsum", "reference/einsum", "im2col/gemm"])],
)
def test_misspelt_names_are_answered_with_what_there_is(option, known):
    with pytest.raises(fc.NoAlgorithmError, match=rf"^{option}: no 'typo'; registered are ") as caught:
        fc.conv2d(X, W, **{option: "typo"})
    assert set(known) <= set(str(caught.value).partition("registered are ")[2].split(", "))
    with fc.options(**{option: "typo"}), pytest.raises(ValueError, match=f"^{option}"):
        fc.explain(PROBLEM)


# -------------------------------------------------------------------------------------------------- plan cache


def test_a_problem_is_planned_once():
    fake = Fake("counted")
    with registered(fake):
        for _ in range(5):
            conv()
        assert (fake.plans, fake.runs) == (1, 5)
        fc.conv2d(X, W, padding=1, stride=2)
        assert fake.plans == 2
        with fc.options(max_workspace=1 << 20):
            conv()
        assert fake.plans == 3
        conv()
        assert fake.plans == 3


def test_plan_cache_is_bounded():
    dispatch.forget()
    limit = dispatch._planned.cache_info().maxsize
    assert limit is not None
    assert limit <= 1 << 16
    with registered(Fake("first")), fc.options(backend="fake"):
        for n in range(1, limit + 20):
            dispatch.plan_for(PROBLEM.replace(n=n), current())
        info = dispatch._planned.cache_info()
        assert info.currsize == limit
        dispatch.plan_for(PROBLEM.replace(n=limit), current())
        assert dispatch._planned.cache_info().hits == info.hits + 1


def test_what_was_being_chosen_when_all_was_forgotten_is_not_found_afterwards():
    """A thread that is about to choose meets one that registers, or tunes."""

    class Slow(Fake):
        def refuses(self, problem):
            if threading.current_thread() is chooser:
                asked.set()
                assert forgotten.wait(60)
            return super().refuses(problem)

    asked, forgotten = threading.Event(), threading.Event()
    chooser = threading.Thread(target=lambda: dispatch.plan_for(PROBLEM, current()))
    with registered(Slow("slow", predicted=1e-9)):
        dispatch.forget()
        chooser.start()
        assert asked.wait(60)
        with registered(Fake("faster", predicted=1e-10)):
            forgotten.set()
            chooser.join()
            assert dispatch.plan_for(PROBLEM, current()).algorithm.key == "fake/faster"


def test_plan_cache_in_many_threads():
    """Eight threads meet the same two hundred problems at once, in different order, while the registry changes."""
    shapes = [(1 + i % 3, 2, 4 + i % 13, 4 + i % 5) for i in range(200)]
    w = np.ones((3, 2, 3, 3), np.float32)

    def work(thread: int, backend: str | None = None) -> list[np.ndarray]:
        turned = shapes[25 * thread :] + shapes[: 25 * thread]
        images = [np.arange(math.prod(shape), dtype=np.float32).reshape(shape) % 7 for shape in turned]
        return [fc.conv2d(x, w, padding=1, backend=backend) for x in images]

    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(work, thread) for thread in range(8)]
        while not all(future.done() for future in running):
            with registered(Fake("coming and going", predicted=1e3)):
                time.sleep(0.005)
    for thread, future in enumerate(running):
        for y, expected in zip(future.result(), work(thread, "reference"), strict=True):
            assert np.array_equal(y, expected)


# ---------------------------------------------------------------------------- algorithms that cannot be asked


@pytest.mark.parametrize("predicted", [math.nan, -1.0, math.inf])
def test_a_prediction_that_is_no_time_is_a_refusal(predicted):
    with registered(Fake("odd", predicted=predicted)):
        assert candidate("fake/odd").refusal == f"predicts that a run takes {predicted} seconds"
        assert np.array_equal(conv(), Y)


@pytest.mark.parametrize("method", ["refuses", "predict", "workspace_bytes", "error_bound"])
def test_what_is_raised_when_asked_is_a_refusal(method, monkeypatch):
    def fail(*args):
        raise KeyError("oh")

    monkeypatch.setattr(Fake, method, fail)
    with registered(Fake("odd")):
        assert candidate("fake/odd").refusal == "raised KeyError when it was asked: 'oh'"
        assert np.array_equal(conv(), Y)


# -------------------------------------------------------------------------------------------------- no images


def test_an_empty_batch_needs_no_algorithm():
    empty, fake = PROBLEM.replace(n=0), Fake("idle")
    with registered(fake):
        for choice in (fc.explain(empty), fc.tune(empty), fc.explain(fc.conv2d, X[:0], W, padding=1)):
            assert (choice.candidates, choice.winner) == ((), None)
            assert str(choice).splitlines()[-1] == "  nothing: the batch is empty: nothing to compute"
            assert json.loads(json.dumps(choice.to_dict()))["winner"] is None
        fc.warmup([empty])
        with fc.autotune():
            assert fc.conv2d(X[:0], W, padding=1).shape == (0, *Y.shape[1:])
        with pytest.raises(fc.NoAlgorithmError, match="the batch is empty"):
            dispatch.plan_for(empty, current())
    assert fake.plans == 0


# ------------------------------------------------------------------------------------------- logging, warm-up


def test_choices_are_logged_once_with_their_reason(caplog):
    with registered(Fake("logged")), caplog.at_level(logging.INFO, "fastconv"):
        conv()
        conv()
        reason = fc.explain(PROBLEM).reason
    assert [r.getMessage() for r in caplog.records] == [f"{TEXT} -> fake/logged: {reason}"]


def test_warmup_plans_and_runs():
    fake, seen = Fake("warm"), []
    with registered(fake):
        fc.warmup([PROBLEM, "max_pool2d c1 i4 k2"], progress=seen.append)
        assert (fake.plans, fake.runs) == (2, 2)
        assert seen == [TEXT, format_problem(parse_problem("max_pool2d c1 i4 k2"))]
        conv()
        assert (fake.plans, fake.runs) == (2, 3)


def test_warmup_takes_an_op_a_problem_or_a_text():
    fake, seen = Fake("warm"), []
    with registered(fake):
        for subject in (PROBLEM, TEXT):
            fc.warmup(subject, progress=seen.append)
        fc.warmup(fc.conv2d, X, W, padding=1, progress=seen.append)
        assert (seen, fake.plans, fake.runs) == ([TEXT] * 3, 1, 3)
        fc.warmup(TEXT, backend="naive")
        assert fake.runs == 3
        with pytest.raises(TypeError, match=r"^function: expected one of fastconv's ops"):
            fc.warmup(7)


VERBOSE = """
import sys
import fastconv, logging, numpy
if "configured" in sys.argv:
    logging.basicConfig(level=logging.INFO)
x = numpy.ones((1, 1, 4, 4), numpy.float32)
try:
    fastconv.conv2d(x, x)
except ValueError as error:
    print(error)
logging.basicConfig(level=logging.INFO)
fastconv.conv2d(x, x[:, :, 1:, 1:])
"""


@pytest.mark.parametrize("configured", ["", "sys.argv.append('configured')"])
def test_verbose_writes_every_choice_once(configured):
    code = f"import sys; {configured}\n{VERBOSE}"
    lines = python(code, FASTCONV_VERBOSE="1", FASTCONV_BACKEND="naive").stderr.splitlines()
    assert [line.endswith("-> naive/loops: the only one that was not refused") for line in lines] == [True, True]


def test_unreadable_verbose_is_told_at_the_first_call():
    done = python("import fastconv; print('imported')\n" + VERBOSE, fails=True, FASTCONV_VERBOSE="2")
    imported, error = done.stdout.splitlines()
    assert imported == "imported"
    assert error.startswith("FASTCONV_VERBOSE='2': expected 0 or 1")
    assert done.stderr.splitlines()[-1] == f"ValueError: {error}"


@pytest.mark.parametrize("subject", [lambda: conv(), lambda: fc.explain(PROBLEM)])
def test_a_misspelt_variable_is_no_refusal(subject, monkeypatch):
    monkeypatch.setenv("FASTCONV_SIMD", "axv2")
    with pytest.raises(ValueError, match="FASTCONV_SIMD='axv2': expected avx512, avx2, neon or none"):
        subject()


def test_unreadable_threads_are_shown():
    shown = python("from fastconv import cli; raise SystemExit(cli.main(['info']))", FASTCONV_THREADS="abc").stdout
    (line,) = (line for line in shown.splitlines() if line.split()[:1] == ["FASTCONV_THREADS"])
    assert "unreadable: FASTCONV_THREADS='abc'" in line


@pytest.mark.parametrize("backend", general_backends())
def test_warmup_of_prepacked_weights(backend):
    with fc.options(backend=backend):
        fc.warmup([PROBLEM.replace(prepacked=True)])


def test_a_deterministic_choice_does_not_depend_on_threads():
    """Predictions and measurements differ with the number of threads; what must give the same bits may not."""

    class Alone(Fake):
        def predict(self, problem, machine):
            return 1e-9 * (1 if machine.threads() == 1 else 4)

    with registered(Alone("alone"), Fake("together", predicted=2e-9)):
        winners = {}
        for deterministic in (False, True):
            for threads in (1, 2):
                with fc.options(backend="fake", threads=threads, deterministic=deterministic):
                    winners[deterministic, threads] = fc.explain(PROBLEM).winner
    assert winners[False, 1] == winners[True, 1] == winners[True, 2] == "fake/alone"
    if machine().cores > 1:
        assert winners[False, 2] == "fake/together"
