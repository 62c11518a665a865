"""tests/maml.py has the meta-gradient of `Meta`, and tests/check.py says what is computed."""

import sys

import check
import maml
import numpy as np
import pytest
import reference
import torch
from conftest import ROOT, contents, run

from data import Sinusoid
from meta import Meta
from net import LOSSES, Net

BATCH = check.problem("").batch


def rsse(pred, y):
    return (pred - y).norm()


def mean(losses):
    return sum(losses) / len(losses)


def implement(
    loss=rsse,
    query_loss=None,
    alpha=0.01,
    steps=1,
    second_order=True,
    over_tasks=sum,
    predict=maml.predict,
    inner=0,
    outer=2,
    at_theta=False,
    momentum=0.0,
    decay=0.0,
    not_adapted=None,
    dtype=torch.float64,
):
    """yours.npz by an implementation of MAML, task by task, with the functions of maml.py."""
    theta = [p.detach().to(dtype).requires_grad_() for p in check.problem("").parameters.values()]
    names, adapted, losses, supports = list(check.problem("").theta), [], [], []
    moving = [0.0 for _ in theta]
    for task in zip(*(points.to(dtype) for points in BATCH), strict=True):
        fast = theta
        supports.append(loss(predict(theta, task[0]), task[1]))
        for _ in range(steps):
            total = loss(predict(fast, task[inner]), task[inner + 1])
            g = torch.autograd.grad(total, fast, create_graph=second_order)
            g = [part + decay * w for part, w in zip(g, fast, strict=True)]
            moving = [momentum * m + part for m, part in zip(moving, g, strict=True)]
            step = [0 if name == not_adapted else alpha for name in names]
            fast = [w - a * m for w, a, m in zip(fast, step, moving, strict=True)]
        adapted.append(fast)
        weights = theta if at_theta else fast
        losses.append((query_loss or loss)(predict(weights, task[outer]), task[outer + 1]))
    gradient = torch.autograd.grad(over_tasks(losses), theta)
    fast = [torch.stack(tensors) for tensors in zip(*adapted, strict=True)]
    arrays = {"support_losses": torch.stack(supports), "query_losses": torch.stack(losses)}
    arrays |= dict(zip(names, gradient, strict=True))
    arrays |= {f"fast_{name}": tensor for name, tensor in zip(names, fast, strict=True)}
    return {name: tensor.detach().numpy() for name, tensor in arrays.items()}


def turned(arrays):
    return {n: a.swapaxes(-1, -2) if n.endswith("w_2") else a for n, a in arrays.items()}


def tanh(weights, x):
    w_1, b_1, w_2, b_2, w_3, b_3 = weights
    return (x @ w_1.T + b_1).tanh().matmul(w_2.T).add(b_2).tanh() @ w_3.T + b_3


THIS = "This is not MAML with √SSE, one step and α = 0.01: "
SAID = {  # an implementation with one change, and what is said of it: parts of lines
    "another α": (dict(alpha=0.1), [f"{THIS}it is MAML with √SSE, one step and α = 0.1."]),
    "uphill": (dict(alpha=-0.01), ["one step, √SSE on the support points, α = -0.01 "]),
    "MSE": (dict(loss=maml.mse), [f"{THIS}it is MAML with MSE, one step and α = 0.01."]),
    "the root of the mean": (
        dict(loss=lambda pred, y: maml.mse(pred, y).sqrt()),
        ["√MSE on the support points, α = 0.01 (or √SSE, α = 0.003162)"],
    ),
    "y as (N,)": (
        dict(query_loss=lambda pred, y: rsse(pred, y[:, 0])),
        ["look at the query losses first", "√SSE (y is (N,) and broadcasts) on the query points"],
    ),
    "two steps": (dict(steps=2), [f"{THIS}it is MAML with √SSE, 2 steps and α = 0.01."]),
    "first order": (
        dict(second_order=False),
        [f"{THIS}it is first-order MAML with √SSE, one step and α = 0.01.", "create_graph"],
    ),
    "the mean": (dict(over_tasks=mean), ["0.1 × the exact one, the mean over tasks"]),
    "some tasks": (dict(over_tasks=lambda x: x[0] + x[3]), ["exact, of tasks 0, 3 only"]),
    "support for query": (dict(outer=0), ["√SSE on the support points at θ'"]),
    "query for support": (dict(inner=2), ["one step, √SSE on the query points, α = 0.01"]),
    "the loss of θ": (dict(at_theta=True), ["√SSE on the query points at θ "]),
    "shared momentum": (dict(momentum=0.9), ["momentum of 0.9 from task to task, √SSE on"]),
    "a little weight decay": (dict(decay=1e-4), ["with weight decay, α λ = 1e-06"]),
    "a bias that stays": (dict(not_adapted="b_3"), ["only w_1, b_1, w_2, b_2, w_3 adapted"]),
    "tanh": (dict(predict=tanh), ["look at the support losses first", "with tanh for ReLU"]),
}


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
    k_x, k_y, q_x, q_y = maml.sample_task(5, 1000)
    assert [tuple(a.shape) for a in (k_x, k_y, q_x, q_y)] == [(5, 1), (5, 1), (1000, 1), (1000, 1)]
    assert 4.9 < q_x.abs().max() <= 5
    # One sine curve of period 2π: of sin x and cos x, with A cos φ and A sin φ of its ranges.
    x, y = torch.cat((k_x, q_x)), torch.cat((k_y, q_y))
    (a,), (b,) = torch.linalg.lstsq(torch.cat((x.sin(), x.cos()), 1), y).solution
    assert torch.allclose(a * x.sin() + b * x.cos(), y, atol=1e-4)
    assert 0.1 <= (a**2 + b**2).sqrt() <= 5
    assert b >= 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_exact_implementation_is_said_to_be_exact(dtype):
    right, (verdict, *lines) = check.check(implement(dtype=dtype))
    assert right
    assert verdict.startswith("This is MAML with √SSE, one step and α = 0.01")
    assert ("float32" in verdict) == (dtype == torch.float32)
    assert len(lines) == 4
    assert lines[-1].startswith("meta-gradient   exact (left: ")
    settings = {"loss": "mse", "inner_lr": 0.001, "inner_steps": 3, "first_order": True}
    names = {"alpha": 0.001, "steps": 3, "second_order": False, "dtype": dtype}
    assert check.check(implement(loss=maml.mse, **names), **settings)[0]
    assert not check.check(implement(dtype=dtype), **settings)[0]


@pytest.mark.parametrize("case", SAID)
def test_what_a_wrong_implementation_computes_is_said(case):
    changes, parts = SAID[case]
    right, lines = check.check(implement(**changes))
    assert not right
    for part in parts:
        assert part in "\n".join(lines)
    assert not any("unknown" in line for line in lines)


def test_weights_of_the_other_layout_are_noticed():
    """Flax and Keras store (inputs, outputs), which the square w_2 does not show."""
    right, lines = check.check(turned(implement()))
    assert not right
    assert [line.split("; ")[-1] for line in lines if "transposed" in line] == [
        "fast_w_2 is transposed in the file",
        "w_2 is transposed in the file",
    ]


def test_what_is_not_known_is_located():
    arrays = implement()
    arrays["fast_w_1"] = arrays["fast_w_1"].copy()
    arrays["fast_w_1"][3] += 0.1 * np.random.default_rng(0).standard_normal((40, 1))
    right, lines = check.check(arrays)
    assert not right
    assert "fast weights    unknown; " in lines[2]
    assert " not as expected: w_1 of tasks 3; " in lines[3]


def test_the_gradient_of_jax_is_exact():
    pytest.importorskip("jax")
    _, gradient = reference.in_jax(check.problem("").parameters, *BATCH)
    arrays = dict(zip(check.problem("").theta, (g.numpy() for g in gradient), strict=True))
    right, (verdict, *lines) = check.check(arrays)
    assert right
    assert verdict.startswith("As far as the file goes, this is MAML")
    assert [line.split()[-1] for line in lines[:2]] == ["right", "right"]


def test_the_command(tmp_path):
    """It writes check.npz, reads yours.npz, and its exit code says what it thinks of that."""
    command = (sys.executable, str(ROOT / "tests/check.py"))
    assert run(tmp_path, command=command).code == 0
    written = np.load(tmp_path / "check.npz")
    for name, tensor in zip(("k_x", "k_y", "q_x", "q_y"), BATCH, strict=True):
        assert (written[name] == tensor.numpy()).all()
    for name, p in check.problem("").parameters.items():
        assert (written[name] == p.detach().numpy()).all()


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


def test_the_flags_say_what_it_should_be(command):
    arrays = implement(loss=maml.mse, alpha=0.02, steps=2, second_order=False)
    code, lines = command(arrays)
    assert (code, lines[0][:16]) == (1, "This is not MAML")
    flags = ["--loss", "mse", "--inner_lr", "0.02", "--inner_steps", "2", "--first_order"]
    code, lines = command(arrays, *flags)
    assert (code, lines[0]) == (0, "This is first-order MAML with MSE, 2 steps and α = 0.02.")


REFUSED = {
    "b_2 is missing": lambda x: {name: a for name, a in x.items() if name != "b_2"},
    "fast_b_2 is missing": lambda x: {name: a for name, a in x.items() if name != "fast_b_2"},
    "fast_w1 is not one of support_losses, ": lambda x: {**x, "fast_w1": x["fast_w_1"]},
    "there is none of support_losses, ": lambda x: {},
    "w_1 is (1, 40), not (40, 1)": lambda x: {**x, "w_1": x["w_1"].T},
    "fast_w_1 is (40, 1, 10), not ": lambda x: {**x, "fast_w_1": np.moveaxis(x["fast_w_1"], 0, 2)},
    "b_1 has NaN or infinity in it": lambda x: {**x, "b_1": x["b_1"] * np.nan},
    "b_1 has no real numbers: its type is <U1": lambda x: {**x, "b_1": np.full(40, "a")},
    "b_1 can't be read: it is damaged, or an array of objects": lambda x: {
        **x,
        "b_1": np.array([{}] * 40),
    },
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_file_that_can_not_be_used_costs_one_sentence(command, sentence):
    code, (line,) = command(REFUSED[sentence](implement()))
    assert code == 2
    assert line.startswith(f"check.py: {sentence}")


def test_another_file_costs_one_sentence(command, tmp_path):
    (tmp_path / "text.npz").write_text("no numbers")
    np.save(tmp_path / "one.npy", np.ones(3))
    sentences = {"text.npz": "is no file of numpy.savez", "one.npy": "is no file of numpy.savez"}
    sentences |= {"none.npz": "can't be read: No such file or directory"}
    for name, sentence in sentences.items():
        process = run(tmp_path, name, command=(sys.executable, str(ROOT / "tests/check.py")))
        assert (process.code, process.err) == (2, [f"check.py: {name} {sentence}"])
    assert set(contents()) == {"text.npz", "one.npy"}
