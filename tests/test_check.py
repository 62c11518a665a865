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
RANDOM = np.random.default_rng(0)
LOSS = {
    "√SSE": lambda pred, y: (pred - y).norm(),
    "MSE": maml.mse,
    "√MSE": lambda pred, y: maml.mse(pred, y).sqrt(),
    "SSE": lambda pred, y: (pred - y).square().sum(),
    "½ MSE": lambda pred, y: maml.mse(pred, y) / 2,
    "½ SSE": lambda pred, y: (pred - y).square().sum() / 2,
    "MAE": lambda pred, y: (pred - y).abs().mean(),
    "the sum of absolute errors": lambda pred, y: (pred - y).abs().sum(),
    "Huber": huber_loss,
    "the sum of Huber losses": partial(huber_loss, reduction="sum"),
    "√SSE (y is (N,) and broadcasts)": lambda pred, y: (pred - y[:, 0]).norm(),
    "MSE (y is (N,) and broadcasts)": lambda pred, y: maml.mse(pred, y[:, 0]),
}


def implement(
    loss=LOSS["√SSE"],
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
    dtype=torch.float64,
):
    """yours.npz by an implementation of MAML, task by task, with the functions of maml.py.

    `gradients` are those of all steps so far, and `path` has the weights after every step.
    """
    theta = [start(GIVEN[name].to(dtype).clone()).requires_grad_() for name in NAMES]
    adapted, losses, (inner, outer) = [], [], points
    for task in zip(*(tensor.to(dtype) for tensor in BATCH), strict=True):
        fast, path, gradients = theta, [], []
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


def with_weights(change):
    return lambda weights, x: maml.predict([change(w) for w in weights], x)


def each(function):
    """The update that is a function of the gradients of one array so far."""
    return lambda gradients, _: [function(gs) for gs in zip(*gradients, strict=True)]


def clip(limit, held=False, small=0.0):
    def update(gradients, _):
        norm = torch.cat([g.flatten() for g in gradients[-1]]).norm()
        scale = (limit / (norm + small)).clamp(max=1)
        return [g * (scale.detach() if held else scale) for g in gradients[-1]]

    return update


def average(gs, decay):
    weights = [decay**age for age in range(len(gs))][::-1]
    return sum(w * g for w, g in zip(weights, gs, strict=True)), sum(weights)


def adam(gs):
    (m, n), (v, k) = average(gs, 0.9), average([g**2 for g in gs], 0.999)
    return m / n / ((v / k + 1e-30).sqrt() + 1e-8)


def decayed(gradients, weights):
    return [g + 1e-4 * w for g, w in zip(gradients[-1], weights, strict=True)]


EXACT = implement()
FIRST = implement(second_order=lambda step: False)
THETA = {name: GIVEN[name].numpy() for name in NAMES}
STEP = {name: EXACT[f"fast_{name}"] - THETA[name] for name in NAMES}  # θ' − θ


def changed(change, names=NAMES, arrays=EXACT):
    return arrays | {name: change(name).astype(arrays[name].dtype) for name in names}


def over_tasks(matrix, theta=1.0):
    """Fast weights by steps that are sums of those of all tasks."""

    def array(name):
        return theta * THETA[name[5:]] + np.tensordot(matrix, STEP[name[5:]], 1)

    return changed(array, FAST)


def shifted(size):
    """Fast weights whose starts are off by so many times the mean step."""
    length = sum((step**2).sum() for step in STEP.values()) ** 0.5
    shifts = {
        name: size * length * RANDOM.standard_normal(THETA[name].shape) / 1761**0.5
        for name in NAMES
    }
    return changed(lambda name: EXACT[name] + shifts[name[5:]], FAST)


def noise(size, *names):
    return changed(lambda n: EXACT[n] * (1 + size * RANDOM.standard_normal(EXACT[n].shape)), names)


def off(names, size, **changes):
    """A part of the file with this relative error."""
    arrays = implement(**changes)
    sizes = {name: arrays[name] - (THETA[name[5:]] if name in FAST else 0) for name in names}
    noise = {name: RANDOM.standard_normal(arrays[name].shape) for name in names}
    whole, more = (sum((x[name] ** 2).sum() for name in names) ** 0.5 for x in (sizes, noise))
    return changed(lambda name: arrays[name] + size * whole / more * noise[name], names, arrays)


def gradient(function):
    return changed(lambda name: function(EXACT[name], THETA[name], FIRST[name], STEP[name]))


def gradient_of(**changes):
    return EXACT | {name: a for name, a in implement(**changes).items() if name in NAMES}


def of_two_losses():
    other = implement(points=(0, 0))
    return changed(lambda name: EXACT[name] / 2 + 2 * other[name], ["query_losses", *NAMES])


def in_order(names):
    return changed(lambda name: EXACT[name][[3, 1, 2, 0, *range(4, 10)]], names)


def turned(name):
    return changed(lambda name: EXACT[name].swapaxes(-1, -2), [name])


def in_float32(change=lambda t: t):
    return {"dtype": torch.float32, "predict": with_weights(change)}


ON_SUPPORT, THREE, QUERY = "on the support points", {"inner_steps": 3}, ["query_losses"]
ONE, EYE = f"one step, √SSE {ON_SUPPORT}, α = 0.01", np.eye(10)
AGE = np.subtract.outer(np.arange(10), np.arange(10))
AT_THETA = {"query_weights": lambda theta, path: [theta]}
UPDATES = {  # words -> an update
    ", with Adam": each(adam),
    ", by the sign of the gradient": each(lambda gs: gs[-1].sign()),
    ", clipped to norm 1 (all tasks)": clip(1.0),
    ", clipped to norm 15 (tasks 1, 2, 3, ": clip(15.0, small=1e-6),
    ", clipped to ± 0.5": each(lambda gs: gs[-1].clamp(-0.5, 0.5)),
    ", with weight decay, α λ = 1e-06": decayed,
    "; only w_3, b_3 adapted": lambda gs, _: [g * (i > 3) for i, g in enumerate(gs[-1])],
}
THREE_STEPS = {  # words -> an update
    ", with momentum of 0.9": each(lambda gs: average(gs, 0.9)[0]),
    ", with Adam": each(adam),
    ", clipped to norm 1": clip(1.0),
    ", clipped to norm 10": clip(10.0),
}
NETWORKS = {
    ", with w_2 transposed": with_weights(lambda w: w.T if w.shape == (40, 40) else w),
    ", with a ReLU after the last layer, too": network(torch.relu, last=torch.relu),
    ", without a ReLU after the second layer": network(torch.relu, lambda h: h),
    ", with tanh for ReLU": network(torch.tanh),
    ", with sigmoid for ReLU": network(torch.sigmoid),
    ", with leaky ReLU": network(leaky_relu),
    ", without biases; only w_1, w_2, w_3": with_weights(lambda w: w * (w.dim() > 1)),
}
STEPS = [  # words for the fast weights, an implementation or arrays, and what is expected
    (ONE.replace("0.01", "0.0102"), {"alpha": 0.0102}),
    (ONE.replace("0.01", "0.0100099"), {"alpha": 0.0100099}),
    (ONE.replace("0.01", "-0.01"), {"alpha": -0.01}),
    (ONE.replace("support", "query"), {"points": (2, 2)}),
    ("a step, not θ' (one step, √SSE", over_tasks(EYE, theta=0)),
    ("a step, not θ' (one step, √SSE", over_tasks(-EYE, theta=0)),
    ("2 steps, √SSE on the support points, α = 0.01", {"steps": 2}),
    ("4 steps, SSE on the", {"steps": 4, "loss": LOSS["SSE"], "alpha": 0.001}),
    ("3 steps, √SSE on the query points, α = 0.01", {"steps": 3, "points": (2, 2)}),
    ("3 steps, √SSE on the support", {"steps": 3, "predict": network(torch.tanh)}),
    (f"{ONE}, of all tasks together", over_tasks(np.ones((10, 10)))),
    (f"{ONE}, with gradients that pile up over tasks", over_tasks(np.tri(10))),
    (f"{ONE}, with momentum of 0.9 from task to task", over_tasks(np.tri(10) * 0.9**AGE)),
    ("α = 0.01, 0.02, 0.03, ", over_tasks(EYE * range(1, 11))),
    ("θ itself: nothing is adapted", over_tasks(0 * EYE)),
    ("all zero", over_tasks(0 * EYE, theta=0)),
    (f"{ONE}; fast_w_2 is transposed in the file", turned("fast_w_2")),
    ("the tasks are in another order", in_order(FAST)),
    ("all tasks have the same fast weights", over_tasks(0 * EYE + EYE[0])),
    ("start from θ of check.npz (b_1, b_2, b_3)", {"start": lambda p: p * (p.dim() > 1)}),
    ("do not start from θ of check.npz (w_1, b_1, w_2, b_2, w_3, ", shifted(20)),
    ("unknown: different in all arrays of all tasks; ", shifted(1)),
    (", in w_2 of all tasks", noise(1e-4, "fast_w_2")),
    ("as expected but for 9e-3: lower precision (TF32, bfloat16)?", off(FAST, 9e-3)),
    ("unknown: different in all arrays of all tasks; ", off(FAST, 1.1e-2)),
    ("unknown: different in w_2 of all tasks; ", noise(0.005, "fast_w_2")),
    ("as expected but for ", in_float32(lambda w: w + (w.bfloat16() - w).detach())),
    ("as expected but for ", in_float32(lambda w: w + (w.half() - w).detach())),  # as TF32
]
STEPS += [(f"one step, {n} {ON_SUPPORT}, α = 0.02", {"loss": LOSS[n], "alpha": 0.02}) for n in LOSS]
STEPS += [(f"one step, {n} {ON_SUPPORT}, α = 0.01", {"loss": LOSS[n]}) for n in ("√MSE", "½ SSE")]
STEPS += [(f"{ONE}{n}", {"update": update}) for n, update in UPDATES.items()]
STEPS += [
    (f"3 steps, √SSE {ON_SUPPORT}, α = 0.01{n}.", {"steps": 3, "update": u})
    for n, u in THREE_STEPS.items()
]
STEPS += [(f"{ONE}{n}", {"predict": predict}) for n, predict in NETWORKS.items()]
STEPS += [
    (
        "MSE on the support points, α = 0.01, by the sign",
        {"loss": maml.mse, "update": UPDATES[", by the sign of the gradient"]},
        {"loss": "mse"},
    )
]
QUERIES = [  # words for the query losses
    ("√SSE on the query points at θ.", AT_THETA),
    ("√SSE on the support points at θ'.", {"points": (0, 0)}),
    ("√MSE on the query points at θ'", {"query_loss": LOSS["√MSE"]}),
    ("0.3 × √SSE on the query points at θ'", {"query_loss": lambda p, y: 0.3 * (p - y).norm()}),
    ("√SSE (y is (N,) and broadcasts) on", {"query_loss": lambda p, y: (p - y[:, 0]).norm()}),
    ("every step, summed", {"steps": 3, "query_weights": lambda theta, path: path}, THREE),
    ("0.5 × √SSE on the query points at θ' plus 2 × √SSE on the support", of_two_losses()),
    (", in task 3", changed(lambda name: EXACT[name] * (1 + 1e-4 * EYE[3]), QUERY)),
    ("the tasks are in another order", in_order(QUERY)),
    ("unknown: different in all tasks; ", noise(0.1, *QUERY)),
    ("all zero", changed(lambda name: 0 * EXACT[name], QUERY)),
]
GRADIENTS = [  # words for the meta-gradient, with g, θ, the first-order one and θ' − θ
    ("first-order: no second derivatives (create_graph=False, detach or stop_gradient)", FIRST),
    ("exact.", EXACT, {"first_order": True}),
    ("only the second-order part: θ is detached in θ − α g", gradient(lambda g, p, f, s: g - f)),
    ("1 × first-order and 0.97 × the", gradient(lambda g, p, f, s: 0.97 * g + 0.03 * f)),
    ("0.1 × the exact one, the mean over tasks", gradient(lambda g, *_: g / 10)),
    ("2 × the exact one, added twice", gradient(lambda g, *_: 2 * g)),
    ("-1 × the exact one, the wrong sign", gradient(lambda g, *_: -g)),
    ("exact, of tasks 0, 3 only", gradient_of(over_tasks=lambda losses: losses[0] + losses[3])),
    ("exact, tasks times 1, 2, 2, ", gradient_of(over_tasks=lambda x: 2 * sum(x) - x[0])),
    ("exact; w_2 is transposed in the file", turned("w_2")),
    ("the gradient of another loss: √SSE on the query points at θ.", gradient_of(**AT_THETA)),
    ("another loss: √SSE on the support points at θ'", gradient_of(points=(0, 0))),
    ("exact, plus 0.01 θ: weight decay", gradient(lambda g, p, *_: g + 0.01 * p)),
    ("new weights, not a gradient.", gradient(lambda g, p, *_: p - 0.001 * g)),
    (
        "new weights, not a gradient: θ and a",
        gradient(lambda g, p, *_: p - 0.1 * g / (abs(g) + 1e-8)),
    ),
    ("a step of Adam, or the sign", gradient(lambda g, *_: g / (abs(g) + 1e-8))),
    (
        "exact, plus 1 × the gradient of the support loss at θ of task 9",
        gradient(lambda g, p, f, s: g - 100 * s[9]),
    ),
    ("the support loss at θ of all tasks", gradient(lambda g, p, f, s: g - 100 * s.sum(0))),
    ("first-order in the first 2 steps only", {"steps": 3, "second_order": lambda n: n > 1}, THREE),
    ("first-order after the first 2 steps", {"steps": 3, "second_order": lambda n: n < 2}, THREE),
    (
        "zero: nothing leads back to θ (detach, stop_gradient, a copy)",
        gradient(lambda g, *_: 0 * g),
    ),
    (", in w_2", noise(0.005, "w_2")),
    ("unknown: different in all arrays; ", noise(0.1, *NAMES)),
]
CASES = [
    (part, *case, {})[:4]
    for part, cases in (
        ("fast weights", STEPS),
        ("query losses", QUERIES),
        ("meta-gradient", GRADIENTS),
    )
    for case in cases
]


def say(arrays, **expected):
    """The verdict, and the words for each part."""
    arrays = arrays if {*NAMES, *FAST} & {*arrays} else implement(**arrays)
    right, (verdict, *lines) = check.check(arrays, **expected)
    assert right == (" not " not in verdict)
    return verdict, {line[:16].strip(): line[16:] for line in lines}


@pytest.mark.parametrize(("part", "words", "arrays", "expected"), CASES)
def test_what_is_computed_is_said(part, words, arrays, expected):
    verdict, lines = say(arrays, **expected)
    assert words in f"{lines[part]}."
    assert f"Look at the {part} first" in verdict or "it is " in verdict


def test_what_depends_on_an_unknown_step_may_be_as_expected():
    """Else it is not judged."""
    lines = say(noise(0.1, *FAST))[1]
    assert lines["query losses"] == "as expected, but not of these fast weights"
    assert lines["meta-gradient"] == "exact"
    zero = noise(0.1, *FAST) | {name: 0 * EXACT[name] for name in NAMES}
    assert say(zero)[1]["meta-gradient"].startswith("zero: ")
    for arrays in (noise(0.1, *EXACT), implement(update=clip(1.0, held=True))):
        assert say(arrays)[1]["meta-gradient"] == "not judged: mend the lines above first"


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("MAML with √SSE, one step and α = 0.1.", {"alpha": 0.1}),
        ("MAML with MSE, 2 steps and α = 0.01.", {"loss": maml.mse, "steps": 2}),
        ("first-order MAML with √SSE, one step and α = 0.01.", {"second_order": lambda n: False}),
        ("", {"alpha": -0.01}),
        ("", {"query_loss": maml.mse, "alpha": 0.1}),
        ("", {"points": (2, 2), "alpha": 0.1}),
        ("", {"over_tasks": lambda losses: sum(losses) / 10}),
        ("", {"predict": network(torch.tanh), "alpha": 0.1}),
        ("", {"update": UPDATES["; only w_3, b_3 adapted"], "alpha": 0.1}),
    ],
)
def test_it_is_another_maml_if_all_lines_say_so(words, changes):
    assert say(implement(**changes))[0].partition(": it is ")[2] == words


def test_parts_that_are_not_in_the_file():
    verdict, lines = say({name: EXACT[name] for name in NAMES})
    assert verdict == "As far as the file goes, this is MAML with √SSE, one step and α = 0.01."
    assert lines["fast weights"] == lines["query losses"] == "not in the file; taken to be right"
    verdict, lines = say({name: FIRST[name] for name in [*FAST, *NAMES]})
    assert ": as far as the file goes, it is first-order MAML with" in verdict
    assert say({name: EXACT[name] for name in FAST})[1]["meta-gradient"] == "not in the file"


def test_the_gradient_of_jax_is_exact():
    pytest.importorskip("jax")
    _, gradient = reference.in_jax({name: GIVEN[name] for name in NAMES}, *BATCH)
    _, lines = say(dict(zip(NAMES, (g.numpy() for g in gradient), strict=True)))
    assert lines["meta-gradient"] == "exact"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"alpha": a}, {"inner_lr": a}) for a in (1e-4, 0.001, 0.01, 0.1)]
    + [
        ({"loss": maml.mse, "steps": 10}, {"loss": "mse", "inner_steps": 10}),
        ({"alpha": 0.1, "steps": 10}, {"inner_lr": 0.1, "inner_steps": 10}),
        ({"steps": 3, "second_order": lambda n: False}, {"first_order": True, **THREE}),
    ],
)
def test_what_is_right_is_said_to_be_right(changes, expected, dtype):
    arrays = implement(**changes, dtype=dtype)
    verdict, lines = say(arrays, **expected)
    assert verdict.startswith(("This is MAML with ", "This is first-order MAML with "))
    assert verdict.endswith(", in float32.") == (dtype == torch.float32)
    assert "error" not in "".join(lines.values()) or dtype == torch.float32
    assert say(arrays, **(expected | {"inner_lr": 0.5}))[0].startswith("This is not ")


def test_a_tiny_step_is_judged_in_float64_only():
    assert say(implement(alpha=1e-6), inner_lr=1e-6)[0].startswith("This is MAML")


@pytest.mark.parametrize("names", [FAST, QUERY, NAMES])
@pytest.mark.parametrize(("size", "dtype"), [(1e-7, torch.float64), (1e-4, torch.float32)])
def test_both_sides_of_the_tolerance(names, size, dtype):
    verdict, lines = say(off(names, 0.9 * size, dtype=dtype))
    assert verdict.startswith("This is MAML")
    assert f"(error {check.short(0.9 * size)})" in "".join(lines.values())
    verdict, lines = say(off(names, 1.1 * size, dtype=dtype))
    assert verdict.startswith("This is not MAML")
    assert f"as expected but for {check.short(1.1 * size)}" in "".join(lines.values())


def test_one_array_of_float32_is_enough():
    """Others are float64 by `.item()`, or by an average in Python. Zeros are both."""
    assert say(implement(dtype=torch.float32) | {n: EXACT[n] for n in FAST})[0].endswith(
        ", in float32."
    )
    arrays = off(QUERY, 1e-5) | {"b_3": np.zeros(1)}
    assert "as expected but for 1e-5" in say(arrays)[1]["query losses"]


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
    "w_3 has NaN, infinity or": lambda x: {**x, "w_3": x["w_3"] + np.inf},
    "b_1 has NaN, infinity or": lambda x: {**x, "b_1": x["b_1"] * np.nan},
    "fast_b_1 of task 3 has NaN, infinity or": lambda x: {**x, "fast_b_1": nan_in_task_3(x)},
    "b_1 is int64, not float32 or float64": lambda x: {**x, "b_1": np.ones(40, int)},
    "b_1 is float16, not float32 or float64": lambda x: {**x, "b_1": np.ones(40, np.float16)},
    "yours.npz is no file of numpy.savez with": lambda x: {**x, "b_1": np.array([{}] * 40)},
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
    sentences = dict.fromkeys(
        ("text.npz", "torch.npz", "one.npy"),
        "is no file of numpy.savez with float32 or float64 in it",
    )
    for name, sentence in (sentences | {"none.npz": none}).items():
        with pytest.raises(SystemExit) as end:
            check.command([name])
        assert (end.value.code, capsys.readouterr().err) == (2, f"check.py: {name} {sentence}\n")


@pytest.mark.parametrize("loss", ["rsse", "mse"])
def test_the_algorithm_of_the_page_is_exact(loss):
    torch.manual_seed(0)
    meta, batch = Meta(Net(), LOSSES[loss]), Sinusoid(10, num_tasks=4).batch(range(4))
    theta, function = list(meta.net.parameters()), LOSS[check.BY_FLAG[loss]]
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
