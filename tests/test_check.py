"""tests/maml.py has the meta-gradient of `Meta`, and tests/check.py says what is computed."""

import inspect
import sys
from functools import partial
from pathlib import Path

import check
import maml
import numpy as np
import pytest
import reference
import torch
from conftest import ROOT, contents, run, saved
from torch.nn.functional import huber_loss, leaky_relu

import main
from data import Sinusoid
from meta import Meta
from net import LOSSES, Net

NAMES = ["w_1", "b_1", "w_2", "b_2", "w_3", "b_3"]
FAST = [f"fast_{name}" for name in NAMES]
GIVEN = {name: torch.from_numpy(array) for name, array in check.given().arrays.items()}
BATCH = [GIVEN[name] for name in ("k_x", "k_y", "q_x", "q_y")]
THETA = {name: GIVEN[name].numpy() for name in NAMES}
RANDOM = np.random.default_rng(0)


def rsse(pred, y):
    return (pred - y).norm()


def sse(pred, y):
    return (pred - y).square().sum()


def rmse(pred, y):
    return maml.mse(pred, y).sqrt()


def mae(pred, y):
    return (pred - y).abs().mean()


def broadcast(loss):
    return lambda pred, y: loss(pred, y[:, 0])


def times(number, loss=rsse):
    return lambda pred, y: number * loss(pred, y)


def implement(
    loss=rsse,
    query_loss=None,
    alpha=0.01,
    steps=1,
    second_order=lambda step: True,
    over_tasks=sum,
    predict=maml.predict,
    points=(0, 2),
    update=lambda gradients, weights: gradients[-1],
    query_weights=lambda theta, path: path[-1:],
    start=lambda p: p,
    in_turn=False,
    dtype=torch.float64,
):
    """yours.npz by an implementation of MAML, task by task, with the functions of maml.py.

    `gradients` are those of all steps so far, and `path` has the weights after every step.
    """
    theta = fast = [start(GIVEN[name].to(dtype)).requires_grad_() for name in NAMES]
    adapted, losses, (inner, outer) = [], [], points
    for task in zip(*(tensor.to(dtype) for tensor in BATCH), strict=True):
        fast, path, gradients = fast if in_turn else theta, [], []
        for step in range(steps):
            total = loss(predict(fast, task[inner]), task[inner + 1])
            g = torch.autograd.grad(total, fast, create_graph=True)
            gradients.append([part if second_order(step) else part.detach() for part in g])
            pairs = zip(fast, update(gradients, fast), strict=True)
            fast = [w - alpha * part for w, part in pairs]
            path.append(fast)
        adapted.append(fast)
        pred = [predict(w, task[outer]) for w in query_weights(theta, path)]
        losses.append(sum((query_loss or loss)(each, task[outer + 1]) for each in pred))
    arrays = dict(zip(NAMES, torch.autograd.grad(over_tasks(losses), theta), strict=True))
    arrays |= {n: torch.stack(tensors) for n, *tensors in zip(FAST, *adapted, strict=True)}
    arrays["query_losses"] = torch.stack(losses)
    return {name: tensor.detach().numpy() for name, tensor in arrays.items()}


def network(first, second=None, last=lambda h: h):
    def predict(weights, x):
        w_1, b_1, w_2, b_2, w_3, b_3 = weights
        h = (second or first)(first(x @ w_1.T + b_1) @ w_2.T + b_2)
        return last(h @ w_3.T + b_3)

    return predict


def w_2_turned(weights, x):
    return maml.predict([w.T if w.shape == (40, 40) else w for w in weights], x)


def without_biases(weights, x):
    return maml.predict([w * (w.dim() > 1) for w in weights], x)


def each(function):
    """The update that is a function of the gradients of one array so far."""
    return lambda gradients, _: [function(gs) for gs in zip(*gradients, strict=True)]


def clip(limit, held=False, small=0.0):
    def update(gradients, _):
        norm = torch.cat([g.flatten() for g in gradients[-1]]).norm()
        scale = (limit / (norm + small)).clamp(max=1)
        return [g * (scale.detach() if held else scale) for g in gradients[-1]]

    return update


def adam(gs):
    m = sum(0.1 * 0.9**age * g for age, g in enumerate(gs[::-1])) / (1 - 0.9 ** len(gs))
    v = sum(0.001 * 0.999**age * g**2 for age, g in enumerate(gs[::-1])) / (1 - 0.999 ** len(gs))
    return m / ((v + 1e-30).sqrt() + 1e-8)


def momentum(gs):
    return sum(0.9**age * g for age, g in enumerate(gs[::-1]))


def sign(gs):
    return gs[-1].sign()


def decayed(gradients, weights):
    return [g + 1e-4 * w for g, w in zip(gradients[-1], weights, strict=True)]


def only(*names):
    return lambda gs, _: [g * (name in names) for name, g in zip(NAMES, gs[-1], strict=True)]


EXACT = implement()
FIRST_ORDER = implement(second_order=lambda step: False)
STEP = {name: EXACT[f"fast_{name}"] - THETA[name] for name in NAMES}  # θ' − θ
LOSS_OF_THETA = dict(query_weights=lambda theta, path: [theta])
AFTER_EVERY_STEP = dict(steps=3, query_weights=lambda theta, path: path)


def changed(change, names=NAMES):
    """The exact arrays, some of them changed."""
    return EXACT | {name: change(name) for name in names}


def by_step(change):
    """Fast weights from a function of θ and all tasks' θ' − θ, (tasks, numbers)."""

    def array(name):
        theta, step = THETA[name[5:]], STEP[name[5:]]
        return change(theta.ravel(), step.reshape(10, -1)).reshape(step.shape)

    return changed(array, FAST)


def over_tasks(matrix):
    return by_step(lambda theta, step: theta + matrix @ step)


def noise(size, *names):
    return changed(lambda n: EXACT[n] * (1 + size * RANDOM.standard_normal(EXACT[n].shape)), names)


def off(part, size, **changes):
    """All numbers of a part are a little off, which together is this relative error."""
    arrays = implement(**changes)
    names = {"fast": FAST, "query": ["query_losses"], "gradient": NAMES}[part]
    dtype = arrays[names[0]].dtype
    numbers = {name: arrays[name] - (THETA[name[5:]] if part == "fast" else 0) for name in names}
    noise = {name: RANDOM.standard_normal(arrays[name].shape) for name in names}
    length = [sum((each[name] ** 2).sum() for name in names) ** 0.5 for each in (numbers, noise)]
    scale = size * length[0] / length[1]
    return arrays | {name: (arrays[name] + scale * noise[name]).astype(dtype) for name in names}


def order(names, *tasks):
    return changed(lambda name: EXACT[name][list(tasks)], names)


def turned(name):
    return changed(lambda name: EXACT[name].swapaxes(-1, -2), [name])


def two_losses():
    on_support = implement(points=(0, 0))
    return changed(lambda name: EXACT[name] / 2 + 2 * on_support[name], ["query_losses", *NAMES])


def with_support(*tasks):
    """As backward() of these tasks' support losses leaves their gradients in `.grad`."""
    return changed(lambda name: EXACT[name] - STEP[name][list(tasks)].sum(0) / 0.01)


def gradient(function):
    return changed(lambda name: function(EXACT[name], THETA[name]))


def task_3(size, name):
    return changed(lambda name: EXACT[name] * (1 + size * np.eye(10)[3]), [name])


def adam_of(g):
    return 0.001 * g / (abs(g) + 1e-8)


def second_order_times(number, first):
    """So many times each of the two parts of the gradient."""
    second = {name: EXACT[name] - FIRST_ORDER[name] for name in NAMES}
    return changed(lambda name: first * FIRST_ORDER[name] + number * second[name])


def gradient_of(changes):
    arrays = implement(**changes)
    return changed(lambda name: arrays[name])


def first_order(*steps):
    return dict(steps=3, second_order=lambda step: step not in steps)


AGE = np.subtract.outer(np.arange(10), np.arange(10))
SWAPPED = 3, 1, 2, 0, 4, 5, 6, 7, 8, 9
ONE = "one step, √SSE on the support points, α = 0.01"
MSE, THREE = {"loss": "mse"}, {"inner_steps": 3}
STEPS = [  # words for the fast weights, an implementation or arrays, and what is expected
    ("one step, √SSE on the support points, α = 0.0102", dict(alpha=0.0102)),
    ("one step, √SSE on the support points, α = 0.0100099", dict(alpha=0.0100099)),
    ("one step, √SSE on the support points, α = -0.01", dict(alpha=-0.01)),
    ("one step, MSE on the support points, α = 0.01", dict(loss=maml.mse)),
    ("one step, √MSE on the support points, α = 0.01", dict(loss=rmse)),
    ("one step, SSE on the support points, α = 0.001", dict(loss=sse, alpha=0.001)),
    ("one step, ½ MSE on the support points, α = 0.01", dict(loss=times(0.5, maml.mse))),
    ("one step, ½ SSE on the support points, α = 0.01", dict(loss=times(0.5, sse))),
    ("one step, MAE on the support points, α = 0.02", dict(loss=mae, alpha=0.02)),
    ("the sum of absolute errors", dict(loss=lambda pred, y: (pred - y).abs().sum())),
    ("one step, Huber on the support points, α = 0.01", dict(loss=huber_loss)),
    ("the sum of Huber losses", dict(loss=partial(huber_loss, reduction="sum"))),
    ("one step, √SSE on the query points, α = 0.01", dict(points=(2, 2))),
    ("√SSE (y is (N,) and broadcasts) on the support", dict(loss=broadcast(rsse))),
    ("MSE (y is (N,) and broadcasts) on the support", dict(loss=broadcast(maml.mse))),
    ("2 steps, √SSE on the support points, α = 0.01", dict(steps=2)),
    ("4 steps, SSE on the support points, α = 0.001", dict(steps=4, loss=sse, alpha=0.001)),
    ("3 steps, √SSE on the query points, α = 0.01", dict(steps=3, points=(2, 2))),
    ("α = 0.01, with momentum of 0.9", dict(steps=3, update=each(momentum))),
    (f"{ONE}, with Adam", dict(update=each(adam))),
    ("α = 0.001, with Adam", dict(update=each(adam), steps=3, alpha=0.001)),
    (f"{ONE}, by the sign of the gradient", dict(update=each(sign))),
    ("MSE on the support points, α = 0.01, by", dict(loss=maml.mse, update=each(sign)), MSE),
    (f"{ONE}, clipped to norm 1 (all tasks)", dict(update=clip(1.0))),
    (f"{ONE}, clipped to norm 15 (tasks 1, 2, 3, ", dict(update=clip(15.0, small=1e-6))),
    ("α = 0.01, clipped to norm 1", dict(steps=3, update=clip(1.0))),
    ("α = 0.01, clipped to norm 10", dict(steps=3, update=clip(10.0))),
    (f"{ONE}, clipped to ± 0.5", dict(update=each(lambda gs: gs[-1].clamp(-0.5, 0.5)))),
    (f"{ONE}, with weight decay, α λ = 1e-06", dict(update=decayed)),
    (f"{ONE}, of all tasks together", over_tasks(np.ones((10, 10)))),
    (f"{ONE}, with gradients that pile up over tasks", over_tasks(np.tri(10))),
    (f"{ONE}, with momentum of 0.9 from task to task", over_tasks(np.tri(10) * 0.9**AGE)),
    (f"{ONE}, from where the task before ended", dict(in_turn=True)),
    ("α = 0.01, 0.02, 0.03, ", over_tasks(np.diag(np.arange(1.0, 11.0)))),
    (f"{ONE}; only w_3, b_3 adapted", dict(update=only("w_3", "b_3"))),
    (f"{ONE}; fast_w_2 is transposed in the file", turned("fast_w_2")),
    ("θ itself: nothing is adapted", over_tasks(np.zeros((10, 10)))),
    ("all zero", by_step(lambda theta, step: 0 * step)),
    ("a step, not θ'", by_step(lambda theta, step: step)),
    ("a step, not θ'", by_step(lambda theta, step: -step)),
    ("the tasks are in another order", order(FAST, *SWAPPED)),
    ("start from θ of check.npz (b_1, b_2, b_3)", dict(start=lambda p: p * (p.dim() > 1))),
    (", in w_2 of all tasks", noise(1e-4, "fast_w_2")),
    ("as expected but for 1e-3: lower precision", off("fast", 1e-3)),
    ("as expected but for 9e-3: lower precision", off("fast", 9e-3)),
    ("unknown: different in all arrays of all tasks; ", off("fast", 1.1e-2)),
    ("unknown: different in w_2 of all tasks; ", noise(0.005, "fast_w_2")),
    ("unknown: different in all arrays of all tasks; ", noise(0.1, *FAST)),
    (f"{ONE}, with w_2 transposed", dict(predict=w_2_turned)),
    (
        f"{ONE}, with a ReLU after the last layer",
        dict(predict=network(torch.relu, last=torch.relu)),
    ),
    (f"{ONE}, without a ReLU after the second", dict(predict=network(torch.relu, lambda h: h))),
    (f"{ONE}, with tanh for ReLU", dict(predict=network(torch.tanh))),
    (f"{ONE}, with sigmoid for ReLU", dict(predict=network(torch.sigmoid))),
    (f"{ONE}, with leaky ReLU", dict(predict=network(leaky_relu))),
    ("without biases; only w_1, w_2, w_3 adapted", dict(predict=without_biases)),
    ("3 steps, √SSE on the support", dict(predict=network(torch.tanh), steps=3)),
]
QUERY = [  # words for the query losses
    ("√SSE on the query points at θ", LOSS_OF_THETA),
    ("√SSE on the support points at θ'", dict(points=(0, 0))),
    ("√MSE on the query points at θ'", dict(query_loss=rmse)),
    ("0.3 × √SSE on the query points at θ'", dict(query_loss=times(0.3))),
    ("√SSE (y is (N,) and broadcasts) on the query", dict(query_loss=broadcast(rsse))),
    ("√SSE on the query points at θ' after every step, summed", AFTER_EVERY_STEP, THREE),
    (
        "0.5 × √SSE on the query points at θ' plus 2 × √SSE on the support points at θ'",
        two_losses(),
    ),
    (", in task 3", task_3(2e-4, "query_losses")),
    ("the tasks are in another order", order(["query_losses"], *SWAPPED)),
    ("unknown: different in all tasks; ", noise(0.1, "query_losses")),
    ("all zero", changed(lambda name: np.zeros(10), ["query_losses"])),
]
NO_SECOND = "first-order: no second derivatives (create_graph=False, detach or stop_gradient)"
GRADIENT = [  # words for the meta-gradient
    (NO_SECOND, FIRST_ORDER),
    ("exact", EXACT, {"first_order": True}),
    ("only the second-order part: θ is detached in θ − α g", second_order_times(1, 0)),
    ("1 × first-order and 0.97 × the second-order part", second_order_times(0.97, 1)),
    ("0.1 × the exact one, the mean over tasks", gradient(lambda g, _: g / 10)),
    ("2 × the exact one, added twice", gradient(lambda g, _: 2 * g)),
    ("-1 × the exact one, the wrong sign", gradient(lambda g, _: -g)),
    ("exact, of tasks 0, 3 only", dict(over_tasks=lambda losses: losses[0] + losses[3])),
    ("exact, tasks times 1, 2, 2, ", dict(over_tasks=lambda losses: 2 * sum(losses) - losses[0])),
    ("exact; w_2 is transposed in the file", turned("w_2")),
    ("another loss: √SSE on the query points at θ", gradient_of(LOSS_OF_THETA)),
    ("another loss: √SSE on the support points at θ'", gradient_of(dict(points=(0, 0)))),
    ("exact, plus 0.01 θ: weight decay", gradient(lambda g, theta: g + 0.01 * theta)),
    ("new weights, not a gradient", gradient(lambda g, theta: theta - 0.001 * g)),
    ("new weights, not a gradient: θ and a step", gradient(lambda g, theta: theta - adam_of(g))),
    ("a step of Adam or the sign of the exact", gradient(lambda g, _: adam_of(g))),
    ("plus 1 × the gradient of the support loss at θ of task 9", with_support(9)),
    ("plus 1 × the gradient of the support loss at θ of all tasks", with_support(*range(10))),
    ("first-order in the first 2 steps only", first_order(0, 1), THREE),
    ("first-order after the first 2 steps only", first_order(2), THREE),
    ("zero: nothing leads back to θ (detach, stop_gradient, a copy)", gradient(lambda g, _: 0 * g)),
    ("as expected but for 2e-3, in w_2", noise(0.002, "w_2")),
    ("unknown: different in all arrays; ", noise(0.1, *NAMES)),
]
CASES = [("fast weights", *case) for case in STEPS]
CASES += [("query losses", *case) for case in QUERY]
CASES += [("meta-gradient", *case) for case in GRADIENT]


def say(arrays, **expected):
    """The verdict, and the words for each part."""
    right, (verdict, *lines) = check.check(arrays, **expected)
    assert right == (" not " not in verdict)
    return verdict, {line[:16].strip(): line[16:] for line in lines}


@pytest.mark.parametrize(("part", "words", "arrays", "expected"), [(*c, {})[:4] for c in CASES])
def test_what_is_computed_is_said(part, words, arrays, expected):
    verdict, lines = say(arrays if set(NAMES) < set(arrays) else implement(**arrays), **expected)
    assert words in lines[part]
    assert f"Look at the {part} first" in verdict or "it is " in verdict


def test_what_depends_on_an_unknown_step_may_be_as_expected():
    """Else it is not judged."""
    lines = say(noise(0.1, *FAST))[1]
    assert lines["query losses"] == "as expected, but not of these fast weights"
    assert lines["meta-gradient"] == "exact"
    for arrays in (noise(0.1, *EXACT), implement(update=clip(1.0, held=True))):
        assert say(arrays)[1]["meta-gradient"] == "not judged: mend the lines above first"


IT_IS = [
    ("MAML with √SSE, one step and α = 0.1.", dict(alpha=0.1)),
    ("MAML with MSE, 2 steps and α = 0.01.", dict(loss=maml.mse, steps=2)),
    ("first-order MAML with √SSE, one step and α = 0.01.", dict(second_order=lambda step: False)),
    (None, dict(alpha=-0.01)),
    (None, dict(query_loss=rmse)),
    (None, dict(over_tasks=lambda losses: sum(losses) / 10)),
    (None, dict(predict=network(torch.tanh), alpha=0.1)),
]


@pytest.mark.parametrize(("words", "changes"), IT_IS)
def test_it_is_another_maml_if_all_lines_say_so(words, changes):
    verdict, _ = say(implement(**changes))
    assert verdict.partition(": it is ")[2] == (words or "")


def test_parts_that_are_not_in_the_file():
    verdict, lines = say({name: EXACT[name] for name in NAMES})
    assert verdict == "As far as the file goes, this is MAML with √SSE, one step and α = 0.01."
    assert lines["fast weights"] == lines["query losses"] == "not in the file; taken to be right"
    verdict, lines = say({name: FIRST_ORDER[name] for name in [*FAST, *NAMES]})
    assert ": as far as the file goes, it is first-order MAML with" in verdict
    assert say({name: EXACT[name] for name in FAST})[1]["meta-gradient"] == "not in the file"


def test_the_gradient_of_jax_is_exact():
    pytest.importorskip("jax")
    _, gradient = reference.in_jax({name: GIVEN[name] for name in NAMES}, *BATCH)
    _, lines = say(dict(zip(NAMES, (g.numpy() for g in gradient), strict=True)))
    assert lines["meta-gradient"] == "exact"


FLOAT32 = {"dtype": torch.float32}
THREE_STEPS = dict(alpha=0.001, steps=3, second_order=lambda step: False)
EXPECTED = {"inner_lr": 0.001, "inner_steps": 3, "first_order": True}
RIGHT = [({"alpha": a}, {"inner_lr": a}) for a in (1e-6, 1e-4, 0.01, 0.1)]
RIGHT += [({"alpha": a, **FLOAT32}, {"inner_lr": a}) for a in (1e-4, 1e-3, 0.01, 0.1)]
RIGHT += [({"loss": maml.mse, "steps": 10, **d}, {**MSE, "inner_steps": 10}) for d in ({}, FLOAT32)]
RIGHT += [({**THREE_STEPS, **d}, EXPECTED) for d in ({}, FLOAT32)]


@pytest.mark.parametrize(("changes", "expected"), RIGHT)
def test_what_is_right_is_said_to_be_right(changes, expected):
    verdict, lines = say(implement(**changes), **expected)
    assert verdict.startswith(("This is MAML with ", "This is first-order MAML with "))
    assert verdict.endswith(", in float32.") == ("dtype" in changes)
    assert "error" not in "".join(lines.values()) or "dtype" in changes
    assert " not " in say(implement(**changes), inner_lr=0.5)[0]


@pytest.mark.parametrize("part", ["fast", "query", "gradient"])
@pytest.mark.parametrize(("size", "changes"), [(1e-7, {}), (1e-4, FLOAT32)])
def test_both_sides_of_the_tolerance(part, size, changes):
    verdict, lines = say(off(part, 0.9 * size, **changes))
    assert verdict.startswith("This is MAML")
    assert f"(error {check.short(0.9 * size)})" in "".join(lines.values())
    verdict, lines = say(off(part, 1.1 * size, **changes))
    assert verdict.startswith("This is not MAML")
    assert f"as expected but for {check.short(1.1 * size)}" in "".join(lines.values())


def test_one_array_of_float32_is_enough():
    """Others are float64 by `.item()`, or by an average in Python. Zeros are both."""
    assert say(implement(**FLOAT32) | {n: EXACT[n] for n in FAST})[0].endswith(", in float32.")
    arrays = off("query", 1e-5) | {"b_3": np.zeros(1)}
    assert "as expected but for 1e-5" in say(arrays)[1]["query losses"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_exact_implementation_in_lower_precision(dtype):
    """float16 has as many digits as TF32."""

    def low(tensor):
        return tensor + (tensor.to(dtype).float() - tensor).detach()

    def predict(weights, x):
        return maml.predict([low(w) for w in weights], low(x))

    verdict, lines = say(implement(predict=predict, **FLOAT32))
    assert "Look at the fast weights first" in verdict
    assert "lower precision (TF32, bfloat16)?" in lines["fast weights"]


def test_the_caller_keeps_what_he_has_set():
    check.given.cache_clear()
    state = torch.random.get_rng_state()
    with torch.inference_mode(), torch.device("meta"):
        assert check.check(EXACT)[0]
        assert torch.is_inference_mode_enabled()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert check.check(EXACT)[0]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """What `python3 tests/check.py yours.npz` says of arrays: its exit code and its lines."""
    monkeypatch.chdir(tmp_path)

    def call(arrays, *flags):
        np.savez("yours.npz", **arrays)
        with pytest.raises(SystemExit) as end:
            check.command(["yours.npz", *flags])
        out, err = capsys.readouterr()
        return int(end.value.code), (out + err).splitlines()

    return call


def test_the_command_writes_the_start_of_the_default_run(program, tmp_path):
    """A step of size 0 keeps the initial weights."""
    assert run(tmp_path, command=(sys.executable, str(ROOT / "tests/check.py"))).code == 0
    assert set(contents()) == {"check.npz"}
    program("--epochs 1 --outer_lr 0")
    initial = torch.load("weights/w(k=10,epochs=1,outer_lr=0.0).pt")
    with np.load("check.npz") as written:
        assert set(written.files) == {*NAMES, "k_x", "k_y", "q_x", "q_y"}
        for name in NAMES:
            assert (written[name] == initial[name].numpy()).all()
        for name, points in zip(("k_x", "k_y", "q_x", "q_y"), BATCH, strict=True):
            assert (written[name] == points.numpy()).all()


def test_check_npz_is_never_there_in_part(command, monkeypatch):
    def full(path, **arrays):
        (Path(path)).write_bytes(b"PK")
        raise OSError(28, "No space left on device")

    check.command([])
    before = Path("check.npz").read_bytes()
    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(SystemExit) as end:
        check.command([])
    assert end.value.code == 2
    assert Path("check.npz").read_bytes() == before


def test_the_flags_say_what_it_should_be(command):
    arrays = implement(loss=maml.mse, alpha=0.02, steps=2, second_order=lambda step: False)
    code, lines = command(arrays)
    assert (code, lines[0][:16]) == (1, "This is not MAML")
    flags = ["--loss", "mse", "--inner_lr", "0.02", "--inner_steps", "2", "--first_order"]
    code, lines = command(arrays, *flags)
    assert (code, lines[0]) == (0, "This is first-order MAML with MSE, 2 steps and α = 0.02.")


def test_the_defaults_are_those_of_the_program(command):
    for name, parameter in [*inspect.signature(check.check).parameters.items()][1:]:
        assert parameter.default == main.SETTINGS[name]
    assert command(EXACT)[0] == 0


REFUSED = {
    "b_2 is missing": lambda x: {name: a for name, a in x.items() if name != "b_2"},
    "fast_b_2 is missing": lambda x: {name: a for name, a in x.items() if name != "fast_b_2"},
    "fast_w1 is not known: did you mean fast_w_1?": lambda x: {**x, "fast_w1": x["fast_w_1"]},
    "support_losses is not known: known are fast_w_1, ": lambda x: {
        **x,
        "support_losses": x["b_1"],
    },
    "there is none of fast_w_1, ": lambda x: {},
    "w_1 is (1, 40), not (40, 1)": lambda x: {**x, "w_1": x["w_1"].T},
    "b_1 has NaN, infinity or": lambda x: {**x, "b_1": x["b_1"] * np.nan},
    "fast_b_1 of task 3 has NaN, infinity or": lambda x: {**x, "fast_b_1": nan_in_task_3(x)},
    "b_1 is int64, not float32 or float64": lambda x: {**x, "b_1": np.ones(40, int)},
    "b_1 is float16, not float32 or float64": lambda x: {**x, "b_1": np.ones(40, np.float16)},
    "b_1 can't be read": lambda x: {**x, "b_1": np.array([{}] * 40)},
}


def nan_in_task_3(arrays):
    return np.where(np.eye(10)[3][:, None] == 1, np.nan, arrays["fast_b_1"])


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_file_that_can_not_be_used_costs_one_sentence(command, sentence):
    code, (line,) = command(REFUSED[sentence](EXACT))
    assert code == 2
    assert line.startswith(f"check.py: {sentence}")


def test_another_file_costs_one_sentence(command, tmp_path, capsys):
    Path("text.npz").write_text("no numbers")
    Path("torch.npz").write_bytes(saved({"w_1": torch.ones(40, 1)}))
    np.save("one.npy", np.ones(3))
    none = "can't be read: No such file or directory"
    sentences = dict.fromkeys(("text.npz", "torch.npz", "one.npy"), "is no file of numpy.savez")
    for name, sentence in (sentences | {"none.npz": none}).items():
        with pytest.raises(SystemExit) as end:
            check.command([name])
        assert (end.value.code, capsys.readouterr().err) == (2, f"check.py: {name} {sentence}\n")


@pytest.mark.parametrize("loss", ["rsse", "mse"])
def test_the_algorithm_of_the_page_is_exact(loss):
    torch.manual_seed(0)
    meta, batch = Meta(Net(), LOSSES[loss]), Sinusoid(10, num_tasks=4).batch(range(4))
    theta, function = list(meta.net.parameters()), {"rsse": rsse, "mse": maml.mse}[loss]
    tasks = zip(*batch, strict=True)
    total = sum(maml.adapted_loss(theta, *task, loss=function) for task in tasks)
    expected = meta.meta_gradient(*batch)
    result = total.detach(), torch.autograd.grad(total, theta)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)


def test_the_tasks_of_the_page_are_those_of_the_paper():
    assert [len(a) for a in maml.sample_task(5, 1000)] == [5, 5, 1000, 1000]
    tasks = [maml.sample_task(5, 5) for _ in range(2000)]
    x, y = (torch.stack([torch.cat(task[i::2]) for task in tasks]).double() for i in (0, 1))
    assert -5 <= x.min() < -4.99 < 4.99 < x.max() <= 5
    # One sine curve of period 2π: of sin x and cos x, with A cos φ and A sin φ of its ranges.
    waves = torch.cat((x.sin(), x.cos()), 2)
    factors = torch.linalg.lstsq(waves, y).solution
    torch.testing.assert_close(waves @ factors, y, rtol=0, atol=1e-4)
    amplitude, phase = factors.norm(dim=1), torch.atan2(factors[:, 1], factors[:, 0])
    assert 0.1 <= amplitude.min() < 0.12 < 4.98 < amplitude.max() <= 5
    assert 0 <= phase.min() < 0.01 < 3.13 < phase.max() <= 3.15


def test_the_first_loss_on_the_page_is_that_of_theta(capsys):
    """With a step of Adam of size 0, all lines are those of the initial weights."""
    source = (ROOT / "tests/maml.py").read_text(encoding="utf-8")
    block = source.replace("lr=0.001", "lr=0.0").replace("range(1601)", "range(1)")
    names = {"__name__": "__main__"}
    exec(compile(block, "maml.py", "exec"), names)
    losses = [maml.mse(maml.predict(names["theta"], q_x), q_y) for _, _, q_x, q_y in names["new"]]
    line = capsys.readouterr().out
    assert line.isascii()
    assert f"MSE {sum(losses) / len(losses):.2f} " in line
    assert names["before"] == pytest.approx((sum(losses) / len(losses)).item())


def test_the_algorithm_of_the_page_can_be_pasted_into_a_prompt():
    _, block = (
        (ROOT / "tests/maml.py").read_text(encoding="utf-8").split('if __name__ == "__main__":\n')
    )
    assert "" not in block.splitlines()
