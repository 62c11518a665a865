"""Says what an implementation of MAML computes, in any framework that can write NumPy's files.

python3 tests/check.py            writes check.npz: initial weights θ and a meta-batch of ten tasks
python3 tests/check.py yours.npz  says what your numbers for them are

check.npz, in float64: w_1 (40, 1), b_1 (40,), w_2 (40, 40), b_2 (40,), w_3 (1, 40) and b_3 (1,) of
the network relu(relu(x w_1ᵀ + b_1) w_2ᵀ + b_2) w_3ᵀ + b_3; support points k_x, k_y (10, 10, 1) and
query points q_x, q_y (10, 15, 1). yours.npz, in float64 or float32, what you have of these:

    fast_w_1 (10, 40, 1), … fast_b_3 (10, 1)    the fast weights of every task, θ'
    query_losses (10,)                          of every task, at its fast weights
    w_1 (40, 1), … b_3 (1,)                     the meta-gradient, a sum over tasks

The flags say what they should be. The exit code is 0 if they are that, 1 if they are not, and 2 if
the file can't be used. From Python: `check(arrays)`.

For each of the three there is a list of ways to compute it, the expected one first. A way is a sum
of parts, and least squares say how often each of them is in your numbers. The first way that leaves
no more than rounding is what you compute. Each line takes what the lines above it say for granted,
so it has its own fault only.
"""

import argparse
import difflib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor, relu, sigmoid, tanh
from torch.nn.functional import huber_loss, leaky_relu

from data import Sinusoid
from net import Net, linear, mse, rsse

TASKS = 10
CLOSE = 0.01  # what is off by less may be as expected, in a lower precision
SUPPORT, QUERY, ALL = "the support points", "the query points", "all points"
SAME = torch.nn.Identity()
SHAPES = {"w_1": (40, 1), "b_1": (40,), "w_2": (40, 40), "b_2": (40,), "w_3": (1, 40), "b_3": (1,)}


# Weights, networks and losses. All weights are one tensor, (tasks, weights) or (weights,) ---------


def joined(arrays: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    parts = [arrays[f"{prefix}{name}"].flatten(-len(shape)) for name, shape in SHAPES.items()]
    return torch.cat(parts, dim=-1)


def by_name(weights: Tensor) -> dict[str, Tensor]:
    parts = weights.split([math.prod(shape) for shape in SHAPES.values()], dim=-1)
    return {n: part.unflatten(-1, SHAPES[n]) for n, part in zip(SHAPES, parts, strict=True)}


def turned(weights: Tensor) -> Tensor:
    """With w_2 as Flax and Keras store it."""
    arrays = by_name(weights)
    return joined({**arrays, "w_2": arrays["w_2"].mT})


def mask(names: Iterable[str]) -> Tensor:
    """1 for the weights of these arrays, and 0 for the others."""
    return joined({n: torch.from_numpy(np.full(SHAPES[n], n in names, float)) for n in SHAPES})


def mlp(weights: Tensor, x: Tensor, first=relu, second=relu, last=SAME) -> Tensor:
    w = by_name(weights)
    h = first(linear(x, w["w_1"], w["b_1"]))
    h = second(linear(h, w["w_2"], w["b_2"]))
    return last(linear(h, w["w_3"], w["b_3"]))


NETWORKS = {
    "": mlp,
    ", with w_2 transposed": lambda weights, x: mlp(turned(weights), x),
    ", with a ReLU after the last layer, too": partial(mlp, last=relu),
    ", without a ReLU after the second layer": partial(mlp, second=SAME),
    ", with tanh for ReLU": partial(mlp, first=tanh, second=tanh),
    ", with sigmoid for ReLU": partial(mlp, first=sigmoid, second=sigmoid),
    ", with leaky ReLU": partial(mlp, first=leaky_relu, second=leaky_relu),
    ", without biases": lambda weights, x: mlp(weights * mask(["w_1", "w_2", "w_3"]), x),
}


def broadcast(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of someone whose y has lost its last dimension: (N, 1) − (N,) is (N, N)."""
    return lambda pred, y: loss(pred - y.mT, torch.zeros_like(y.mT))


BY_FLAG = {"rsse": "√SSE", "mse": "MSE"}
BASIC = {
    "√SSE": rsse,
    "MSE": mse,
    "MAE": lambda pred, y: (pred - y).abs().mean((1, 2)),
    "Huber": lambda pred, y: huber_loss(pred, y, reduction="none").mean((1, 2)),
}
LOSSES = BASIC | {
    "√MSE": lambda pred, y: mse(pred, y).sqrt(),
    "SSE": lambda pred, y: mse(pred, y) * y.shape[1],
    "½ MSE": lambda pred, y: mse(pred, y) / 2,
    "½ SSE": lambda pred, y: mse(pred, y) * y.shape[1] / 2,
    "the sum of absolute errors": lambda pred, y: (pred - y).abs().sum((1, 2)),
    "the sum of Huber losses": lambda pred, y: huber_loss(pred, y, reduction="none").sum((1, 2)),
    "√SSE (y is (N,) and broadcasts)": broadcast(rsse),
    "MSE (y is (N,) and broadcasts)": broadcast(mse),
}


class Given(NamedTuple):
    arrays: dict[str, np.ndarray]  # of check.npz
    start: Tensor  # θ, once for every task
    points: dict[str, tuple[Tensor, Tensor]]  # x and y


@cache
def given() -> Given:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)  # the default run's
        net = Net()
    k_x, k_y, q_x, q_y = Sinusoid(10).batch(range(TASKS))
    both = torch.cat((k_x, q_x), dim=1), torch.cat((k_y, q_y), dim=1)
    points = {SUPPORT: (k_x, k_y), QUERY: (q_x, q_y), ALL: both}
    tensors = net.state_dict() | {"k_x": k_x, "k_y": k_y, "q_x": q_x, "q_y": q_y}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return Given(arrays, joined(net.expand(TASKS)).detach().requires_grad_(), points)


# The inner loop -----------------------------------------------------------------------------------

Update = Callable[[Sequence[Tensor]], Tensor]  # of the gradients so far: α times it is subtracted


def plain(gradients: Sequence[Tensor]) -> Tensor:
    return gradients[-1]


def constant_in(steps: Sequence[int]) -> Update:
    """In these steps, the gradient is a constant: they are first-order."""
    return lambda g: g[-1].detach() if len(g) - 1 in steps else g[-1]


def momentum(gradients: Sequence[Tensor]) -> Tensor:
    return sum(0.9**age * g for age, g in enumerate(reversed(gradients)))


def momentum_over_tasks(gradients: Sequence[Tensor]) -> Tensor:
    weight = torch.from_numpy(0.9 ** np.arange(TASKS))[:, None]
    return (gradients[-1] / weight).cumsum(0) * weight


def adam(gradients: Sequence[Tensor]) -> Tensor:
    m = v = 0.0
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    m, v = m / (1 - 0.9 ** len(gradients)), v / (1 - 0.999 ** len(gradients))
    return m / ((v + 1e-30).sqrt() + 1e-8)  # the root has no derivative at 0


def to_norm(limit: float | Tensor, gradients: Sequence[Tensor]) -> Tensor:
    return gradients[-1] * (limit / gradients[-1].norm(dim=1, keepdim=True)).clamp(max=1)


def of_one_step(moved: Tensor, alpha: float) -> dict[str, Update]:
    """Clipping is to what is the longest in this step, or the largest number."""
    length, largest = moved.norm(dim=1, keepdim=True), moved.abs().max() / alpha
    longest = length > 0.9999 * length.max()  # PyTorch adds 1e-6 to the norm of a gradient
    limit = torch.where(longest, length, length.max()) / alpha
    return {
        f", clipped to norm {limit.max():.4g} ({listed(longest)})": partial(to_norm, limit),
        f", clipped to ± {largest:.4g}": lambda gradients: gradients[-1].clamp(-largest, largest),
        ", by the sign of the gradient": lambda gradients: gradients[-1].sign(),
        ", of all tasks together": lambda gradients: gradients[-1].sum(0).expand(TASKS, -1),
        ", with gradients that pile up over tasks": lambda gradients: gradients[-1].cumsum(0),
        ", with momentum of 0.9 from task to task": momentum_over_tasks,
    }


OF_SEVERAL_STEPS = {
    ", with momentum of 0.9": momentum,
    ", with Adam": adam,
    ", clipped to norm 1": partial(to_norm, 1.0),
    ", clipped to norm 10": partial(to_norm, 10.0),
}


class Learner(NamedTuple):
    network: str = ""
    adapted: Sequence[str] = tuple(SHAPES)

    def losses(self, loss: str, points: str, weights: Tensor) -> Tensor:
        """(tasks,)"""
        x, y = given().points[points]
        return LOSSES[loss](NETWORKS[self.network](weights, x), y)

    def moves(
        self, loss: str, points: str, alpha: float, steps: int, update: Update = plain
    ) -> Iterator[Tensor]:
        """θ' − θ after each of these steps, with the graph that leads back to θ."""
        fast, adapted, gradients = given().start, mask(self.adapted), []
        for _ in range(steps):
            total = self.losses(loss, points, fast).sum()
            gradients += torch.autograd.grad(total, fast, create_graph=True)
            fast = fast - alpha * adapted * update(gradients)
            yield fast - given().start

    def descent(self, loss: str, points: str) -> Tensor:
        """−∇L(θ)"""
        return next(self.moves(loss, points, 1.0, 1))


# Ways, and which of them it is --------------------------------------------------------------------


class Way(NamedTuple):
    """A sum of parts, and the words for it, of how often each is in the numbers."""

    say: Callable[..., str]
    parts: Sequence[Tensor]
    free: bool = True  # if not, each part is in it once
    setting: tuple = ()  # which plain steps, which query losses, or which method it is


class Found(NamedTuple):
    words: str
    right: bool
    way: Way  # what is unknown is a way of its own
    times: Sequence[float] = (1.0,)
    known: bool = True


def find(yours: Tensor, ways: Iterator[Way], tolerance: float, zero: str = "all zero") -> Found:
    """The expected way, which is the first, or the first that leaves much less than that one."""
    if not yours.any():
        return unknown(zero, yours)
    expected, limit = None, tolerance
    for way in ways:
        times, error = fit(yours, way, tolerance)
        words = way.say(*times) if error < limit else ""
        if words:
            rest = f" (error {short(error)})" if error > tolerance / 100 else ""
            return Found(f"{words}{rest}", not expected, way, times)
        if not expected:
            expected, limit = way, min(tolerance, error / 10)
    return compared(yours, expected, tolerance)


def fit(yours: Tensor, way: Way, tolerance: float) -> tuple[list[float], float]:
    """How often the parts are in the numbers, and what they leave, relative."""
    y = yours.flatten()
    x = torch.stack([part.detach().flatten() for part in way.parts], dim=1)
    size = x.norm(dim=0).clamp(min=1e-300)
    if not size.isfinite().all():
        return [], math.inf
    times = torch.ones_like(size)
    if way.free:
        times = torch.from_numpy(np.linalg.lstsq((x / size).numpy(), y.numpy(), rcond=None)[0])
        times = torch.where(times.abs() < tolerance * y.norm(), 0, times) / size  # no tiny parts
    return times.tolist(), ((y - x @ times).norm() / y.norm()).item()


def unknown(words: str, yours: Tensor) -> Found:
    return Found(words, False, Way(str, [yours]), known=False)


def compared(yours: Tensor, expected: Way, tolerance: float) -> Found:
    """What is different from what is expected, if it is nothing that is known."""
    exact = expected.parts[0].detach()
    pairs = zip(arrays_of(yours), arrays_of(exact), strict=True)
    wrong = torch.stack([(a - b).norm(dim=1) > tolerance / TASKS * b.norm() for a, b in pairs])
    arrays = [name for name, array in zip(SHAPES, wrong, strict=False) if array.any()]
    arrays = "all arrays" if len(arrays) == len(SHAPES) else ", ".join(arrays)
    tasks = listed(wrong.any(0))
    place = {(1, TASKS): tasks, (len(SHAPES), 1): arrays}.get(wrong.shape, f"{arrays} of {tasks}")
    error, size = (yours - exact).norm() / exact.norm(), yours.norm() / exact.norm()
    if error < CLOSE:
        everywhere = wrong.double().mean() > 0.5
        why = ": lower precision (TF32, bfloat16)?" if everywhere else f", in {place}"
        words = f"as expected but for {short(error)}{why}"
        return Found(words, False, expected._replace(setting=()))
    cosine = (yours * exact).sum() / yours.norm() / exact.norm()
    words = f"unknown: different in {place}; {size:.4g} times as large, cosine {cosine:.4f}"
    return unknown(words, yours)


def arrays_of(numbers: Tensor) -> list[Tensor]:
    """Losses or weights: (tasks, numbers of a task)."""
    if numbers.shape == (TASKS,):
        return [numbers[:, None]]
    return [array.flatten(1) for array in by_name(numbers.reshape(-1, numbers.shape[-1])).values()]


def listed(tasks: Tensor) -> str:
    numbers = [str(task) for task, each in enumerate(tasks.flatten().tolist()) if each]
    if len(numbers) == TASKS:
        return "all tasks"
    return f"task{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}"


def short(number: float) -> str:
    return f"{number:.0e}".replace("e-0", "e-")


def near(number: float, other: float) -> bool:
    return math.isclose(number, other, rel_tol=1e-4)


def reordered(exact: Tensor, yours: Tensor) -> Tensor:
    """The tasks in the order of yours, if they have the same sizes."""
    sizes = (each.detach().reshape(TASKS, -1).norm(dim=1) for each in (exact, yours))
    order, places = (size.argsort() for size in sizes)
    return exact[order[places.argsort()]]


# The step, θ' − θ ---------------------------------------------------------------------------------

Setting = tuple[str, str, float, int]  # of steps: loss, points, α and how many
Term = tuple[str, str, str]  # a part of the query loss: loss, points, and at which weights


class Expected(NamedTuple):
    losses: Sequence[str]  # all of them, the expected one first
    alpha: float
    steps: int
    first_order: bool

    @property
    def setting(self) -> Setting:
        return self.losses[0], SUPPORT, self.alpha, self.steps

    @property
    def term(self) -> Term:
        return self.losses[0], QUERY, "θ'"

    def tolerance(self, yours: Mapping[str, Tensor]) -> float:
        """Rounding errors add up from step to step."""
        return self.steps * precision(yours)[1]

    def step(self, learner: Learner) -> Way:
        *_, way = ways_of(learner, self.setting)
        return way


def ways_to_step(
    learner: Learner, expected: Expected, losses: Sequence[str], moved: Tensor
) -> Iterator[Way]:
    """The losses are tried in this order."""
    way, start, (first, *others) = expected.step(learner), given().start, losses
    alphas = dict.fromkeys((expected.alpha, 0.01, 0.001))
    yield way
    yield Way(ANOTHER_ORDER.format, [reordered(*way.parts, moved)], False, way.setting)
    for points in given().points:
        yield with_any_alpha(learner, first, points)
    for loss, points, alpha in product(losses, (SUPPORT, QUERY), alphas):
        if points == SUPPORT or loss in BASIC:
            yield from ways_of(learner, (loss, points, alpha, max(expected.steps, 10)))
    for loss, points in product(others, given().points):
        yield with_any_alpha(learner, loss, points)
    basic = [loss for loss in losses if loss in BASIC]
    for loss, points in product(basic, (SUPPORT, QUERY)):
        for update in of_one_step(moved, expected.alpha).items():
            yield from ways_of(learner, (loss, points, expected.alpha, 1), *update)
        say = partial(say_decay, said((loss, points, "{:.6g}", 1)))
        yield Way(say, [learner.descent(loss, points), -start])
    for loss, alpha in product(basic, alphas):
        for update in OF_SEVERAL_STEPS.items():
            yield from ways_of(learner, (loss, SUPPORT, alpha, max(expected.steps, 5)), *update)
    for loss in basic:
        parts = torch.from_numpy(np.eye(TASKS))[:, :, None] * learner.descent(loss, SUPPORT)
        each = ", ".join(["{:.3g}"] * TASKS)
        yield Way(said((loss, SUPPORT, each, 1), " for each task").format, [*parts])


def with_any_alpha(learner: Learner, loss: str, points: str) -> Way:
    words = said((loss, points, "{:.6g}", 1))
    return Way(words.format, [learner.descent(loss, points)], True, (loss, points, 1.0, 1))


def ways_of(
    learner: Learner, setting: Setting, more: str = "", update: Update = plain
) -> Iterator[Way]:
    """After every step."""
    for number, moved in enumerate(learner.moves(*setting, update), start=1):
        here = (*setting[:3], number)
        yield Way(said(here, more).format, [moved], False, () if more else here)


def said(setting: Setting, more: str = "") -> str:
    loss, points, alpha, steps = setting
    return f"{count(steps)}, {loss} on {points}, α = {alpha}{more}"


def count(steps: int) -> str:
    return "one step" if steps == 1 else f"{steps} steps"


def say_decay(words: str, times: float, decay: float) -> str:
    if near(abs(decay), 1):
        return f"a step, not θ' ({words.format(times)})"
    return f"{words.format(times)}, with weight decay, α λ = {decay:.4g}"


def path_of(step: Found, learner: Learner) -> list[Tensor]:
    """θ' − θ after every step, with the graph that leads back to θ."""
    if step.way.setting:
        loss, points, alpha, steps = step.way.setting
        return [*learner.moves(loss, points, step.times[0] * alpha, steps)]
    return [sum(times * part for times, part in zip(step.times, step.way.parts, strict=True))]


# The query losses ---------------------------------------------------------------------------------

EVERY = "θ' after every step, summed"


def ways_to_query_losses(
    learner: Learner, expected: Expected, path: Sequence[Tensor], yours: Tensor
) -> Iterator[Way]:
    parts = {}
    for term in all_terms(expected.losses, path):
        parts[term] = query_losses(learner, term, path)
        yield Way("{} on {} at {}".format(*term).format, [parts[term]], False, (term,))
    exact = query_losses(Learner(), expected.term, expected.step(Learner()).parts)
    words = "as expected, but not of these fast weights"
    yield Way(words.format, [exact], False)
    yield Way(ANOTHER_ORDER.format, [reordered(exact, yours)], False)
    for term, part in parts.items():
        yield Way("{{:.6g}} × {} on {} at {}".format(*term).format, [part], True, (term,))
    for loss, at in product(expected.losses, ("θ'", "θ")):
        pair = (loss, QUERY, "θ'"), (loss, SUPPORT, at)
        words = f"{{:.6g}} × {loss} on {QUERY} at θ' plus {{:.6g}} × {loss} on {SUPPORT} at {at}"
        yield Way(words.format, [parts[term] for term in pair], True, pair)


def all_terms(losses: Iterable[str], path: Sequence[Tensor]) -> list[Term]:
    places = ("θ'", "θ", EVERY) if len(path) > 1 else ("θ'", "θ")
    terms = product((QUERY, SUPPORT, ALL), losses, places)
    return [(loss, points, at) for points, loss, at in terms]


def query_losses(learner: Learner, term: Term, path: Sequence[Tensor]) -> Tensor:
    """(tasks,)"""
    loss, points, at = term
    moves = {"θ'": path[-1:], "θ": [0], EVERY: path}[at]
    return sum(learner.losses(loss, points, given().start + moved) for moved in moves)


# The meta-gradient --------------------------------------------------------------------------------

Terms = Sequence[tuple[float, Term]]  # with how often each is in the query loss
FIRST_ORDER = "first-order: no second derivatives (create_graph=False, detach or stop_gradient)"
SECOND_ORDER = "only the second-order part: θ is detached in θ − α g"
NEW = "new weights, not a gradient"


def ways_to_gradient(
    learner: Learner, expected: Expected, step: Found, terms: Terms
) -> Iterator[Way]:
    path, start = path_of(step, learner), given().start[0]
    direct, exact = by_task(learner, path, terms)
    first, total = direct.sum(0), exact.sum(0)
    methods = [
        Way("exact".format, [total], False, ("MAML",)),
        Way(FIRST_ORDER.format, [first], False, ("first-order MAML",)),
    ]
    yield from reversed(methods) if expected.first_order else methods
    parts = [first, total - first]
    yield Way(say_orders, parts)
    say = partial(say_orders, more="; w_2 is transposed in the file")
    yield Way(say, [turned(part) for part in parts])
    for steps in range(1, len(path)):
        for where, constant in {"in": range(steps), "after": range(steps, len(path))}.items():
            other = [*learner.moves(*step.way.setting, constant_in(constant))]
            words = f"first-order {where} the first {count(steps)} only"
            yield Way(words.format, [by_task(learner, other, terms)[1].sum(0)], False)
    for term in all_terms(BASIC, path):
        first, total = (each.sum(0) for each in by_task(learner, path, [(1.0, term)]))
        words = "the gradient of another loss: {} on {} at {}".format(*term)
        yield Way(partial(say_orders, exact="", more=words), [first, total - first])
    yield Way(partial(say_more, ", plus {:.4g} θ: weight decay"), [*parts, start])
    step_of_adam = adam([exact.sum(0)])
    yield Way("a step of Adam, or the sign of the exact one, times {:.4g}".format, [step_of_adam])
    yield Way(f"{NEW}: θ and a step of Adam".format, [step_of_adam, start])
    support = -learner.descent(expected.losses[0], SUPPORT)
    for tasks in torch.from_numpy(np.vstack((np.ones(TASKS), np.eye(TASKS)))):
        words = f", plus {{:.4g}} × the gradient of the support loss at θ of {listed(tasks)}"
        yield Way(partial(say_more, words), [*parts, tasks @ support])
    for words, tasks in {"exact": exact, "first-order": direct}.items():
        yield Way(partial(say_tasks, words), [*tasks])


def by_task(learner: Learner, path: Sequence[Tensor], terms: Terms) -> list[Tensor]:
    """For each task the gradient of its loss as if θ' were θ plus a constant, and the exact one."""
    gradients = []
    for moves in ([moved.detach() for moved in path], path):
        total = sum(times * query_losses(learner, term, moves).sum() for times, term in terms)
        gradients += torch.autograd.grad(total, given().start, retain_graph=True)
    return gradients


def say_orders(first: float, second: float, exact: str = "exact", more: str = "") -> str:
    """Of the first-order part and of the second-order part."""
    words, times = f"{first:.6g} × first-order and {second:.6g} × the second-order part", 1.0
    if near(first, second):
        hints = {1 / TASKS: ", the mean over tasks", 2: ", added twice", -1: ", the wrong sign"}
        hint = next((hints[number] for number in hints if near(first, number)), "")
        words, times = (exact, 1.0) if near(first, 1) else (exact and f"the exact one{hint}", first)
    elif second == 0:
        words, times = FIRST_ORDER, first
    elif first == 0:
        words, times = SECOND_ORDER, second
    return f"{'' if near(times, 1) else f'{times:.6g} × '}{words}{more}"


def say_more(more: str, first: float, second: float, last: float) -> str:
    """Other weights have θ in them just once."""
    if "θ: weight decay" in more and near(abs(last), 1):
        return NEW
    return say_orders(first, second, more=more.format(last))


def say_tasks(words: str, *times: float) -> str:
    """Nothing, if only rounding tells the tasks apart."""
    if all(math.isclose(t, 1, rel_tol=CLOSE) for t in times):
        return ""
    if all(t == 0 or near(t, 1) for t in times):
        return f"{words}, of {listed(np.array(times))} only"
    return f"{words}, tasks times {', '.join(f'{t:.3g}' for t in times)}"


# The check ----------------------------------------------------------------------------------------

MISSING, ANOTHER_ORDER = "not in the file; taken to be right", "the tasks are in another order"
ZERO = "zero: nothing leads back to θ (detach, stop_gradient, a copy)"


def check(
    arrays: Mapping[str, np.ndarray],
    loss: str = "rsse",
    inner_lr: float = 0.01,
    inner_steps: int = 1,
    first_order: bool = False,
) -> tuple[bool, list[str]]:
    """Whether the arrays of yours.npz are those of these settings of main.py, and lines about them.

    Raises a `ValueError` if an array is missing, is not known, or has a wrong shape or no numbers.
    """
    if not 0 < inner_lr < math.inf or inner_steps < 1:
        raise ValueError("inner_lr must be above 0, and inner_steps at least 1")
    losses = sorted(LOSSES, key=lambda name: name != BY_FLAG[loss])
    expected = Expected(losses, inner_lr, inner_steps, first_order)
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has set
        yours = tensors(arrays)
        found = find_all(yours, expected)
    right = all(each.right for each in found.values())
    lines = [f"{part:15} {each.words}" for part, each in found.items()]
    return right, [verdict(yours, expected, found), *lines]


def find_all(yours: Mapping[str, Tensor], expected: Expected) -> dict[str, Found]:
    """What is found of each part. It takes what is found of those before for granted."""
    tolerance, losses = expected.tolerance(yours), yours.get("query_losses")
    learner, step = Learner(), Found(MISSING, True, expected.step(Learner()))
    if "fast_w_1" in yours:
        learner, step = find_step(yours, expected)

    ways = ways_to_query_losses(learner, expected, path_of(step, learner), losses)
    query = Found(MISSING, True, next(ways)) if losses is None else find(losses, ways, tolerance)
    if query.known:
        query = query._replace(words=f"{query.words}{learner.network}")

    terms = [*zip(query.times, query.way.setting, strict=False)]
    ways = ways_to_gradient(learner, expected, step, terms)
    known = step.known and query.known and terms
    if not known:  # the gradient may still be as expected
        right = Found("", True, expected.step(Learner()))
        ways = islice(ways_to_gradient(Learner(), expected, right, [(1.0, expected.term)]), 1)
    if "w_1" not in yours:
        gradient = Found("not in the file", True, next(ways))
    else:
        gradient = find(joined(yours), ways, tolerance, ZERO)
        judged = gradient.known or gradient.words == ZERO or known and step.right and query.right
        if not judged:
            gradient = gradient._replace(words="not judged: mend the lines above first")
    return {"fast weights": step, "query losses": query, "meta-gradient": gradient}


def find_step(yours: Mapping[str, Tensor], expected: Expected) -> tuple[Learner, Found]:
    """The step, and the network and the adapted arrays that it shows."""
    fast, start, notes = joined(yours, "fast_"), given().start.detach(), ""
    if (turned(fast) - start).norm() < 0.5 * (fast - start).norm():
        fast, notes = turned(fast), "; fast_w_2 is transposed in the file"
    epsilon, tolerance = precision(yours)[0], expected.tolerance(yours)
    moved = fast - start
    lost = (4 * epsilon * start.norm() / moved.norm()).item()  # θ' − θ has fewer digits than θ'
    tolerance = max(tolerance, min(lost, CLOSE))
    sizes = zip(arrays_of(moved), arrays_of(start), SHAPES, strict=True)
    adapted = [name for a, b, name in sizes if a.norm() > 4 * epsilon * b.norm()]
    if not adapted or not fast.any():
        words = "all zero" if adapted else "θ itself: nothing is adapted"
        return Learner(), unknown(words, moved)
    if len(adapted) < len(SHAPES):
        notes = f"; only {', '.join(adapted)} adapted{notes}"

    learner, losses = find_learner(moved, tuple(adapted), yours, expected, tolerance)
    found = find(moved, ways_to_step(learner, expected, losses, moved), tolerance)
    words = found.words if found.known else other_start(moved) or found.words
    if learner.network or notes:
        words, way = f"{words}{learner.network}{notes}", found.way._replace(setting=())
        return learner, found._replace(words=words, right=False, way=way)
    return learner, found._replace(words=words)


def find_learner(
    moved: Tensor, adapted: Sequence[str], yours: Mapping, expected: Expected, tolerance: float
) -> tuple[Learner, list[str]]:
    """The network, by the query losses or else by the step, and the losses in a likely order."""

    def fits(numbers: Tensor, way: Way) -> bool:
        return fit(numbers, way, tolerance)[1] < tolerance

    learners = [Learner(network, adapted) for network in NETWORKS]
    if fits(moved, expected.step(learners[0])):
        return learners[0], [*expected.losses]
    for learner, loss in product(learners, expected.losses if "query_losses" in yours else ()):
        part = query_losses(learner, (loss, QUERY, "θ'"), [moved])
        if fits(yours["query_losses"], Way(str, [part], False)):
            return learner, [*dict.fromkeys((loss, *expected.losses))]
    for learner in learners:
        ways = [with_any_alpha(learner, loss, SUPPORT) for loss in BASIC]
        if any(fits(moved, way) for way in [expected.step(learner), *ways]):
            return learner, [*expected.losses]
    return learners[0], [*expected.losses]


def other_start(moved: Tensor) -> str:
    """What to say if the tasks share most of the step."""
    shared = moved.mean(0)
    if (moved == moved[0]).all():
        return "all tasks have the same fast weights"
    if shared.norm() < 10 * (moved - shared).norm(dim=1).max():
        return ""
    arrays = zip(SHAPES, arrays_of(shared), arrays_of(moved - shared), strict=True)
    far = [name for name, both, own in arrays if both.norm() > 3 * own.norm(dim=1).max()]
    return f"your fast weights do not start from θ of check.npz ({', '.join(far)})"


def verdict(yours: Mapping[str, Tensor], expected: Expected, found: Mapping[str, Found]) -> str:
    right = described("first-order MAML" if expected.first_order else "MAML", *expected.setting)
    far = "" if len(yours) == 2 * len(SHAPES) + 1 else "as far as the file goes, "
    wrong = [part for part, each in found.items() if not each.right]
    if not wrong:
        digits = ", in float32" if precision(yours) == FLOAT32 else ""
        words = f"{far}this is {right}{digits}."
        return words[0].upper() + words[1:]
    other = other_maml(*found.values())
    if other and other != right:
        return f"This is not {right}: {far}it is {other}."
    advice = f"Look at the {wrong[0]} first: each line takes those above it for granted."
    return f"This is not {right}. {advice}"


def other_maml(step: Found, query: Found, gradient: Found) -> str | None:
    """MAML with other settings, if all lines say so: they have the same loss, and α is above 0."""
    if not (step.way.setting and gradient.way.setting):
        return None
    loss, points, alpha, steps = step.way.setting
    same = query.way.setting == ((loss, QUERY, "θ'"),) and near(query.times[0], 1)
    alpha *= step.times[0]
    if points == SUPPORT and alpha > 0 and same:
        return described(*gradient.way.setting, loss, points, alpha, steps)
    return None


def described(method: str, loss: str, points: str, alpha: float, steps: int) -> str:
    return f"{method} with {loss}, {count(steps)} and α = {alpha:.6g}"


# Files --------------------------------------------------------------------------------------------

FLOAT64, FLOAT32 = (2.2e-16, 1e-7), (1.2e-7, 1e-4)  # epsilon, and what a way may leave


def precision(yours: Mapping[str, Tensor]) -> tuple[float, float]:
    """What was computed in float32 may be stored in float64: one such array is enough."""
    single = any(array.any() and (array == array.float()).all() for array in yours.values())
    return FLOAT32 if single else FLOAT64


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The arrays in float64."""
    fast = {f"fast_{name}": (TASKS, *shape) for name, shape in SHAPES.items()}
    known = {**fast, "query_losses": (TASKS,), **SHAPES}
    for name in arrays.keys() - known.keys():
        similar = difflib.get_close_matches(name, known, 1, 0.8)
        hint = f"did you mean {similar[0]}?" if similar else f"known are {', '.join(known)}"
        raise ValueError(f"{name} is not known: {hint}")
    if not arrays:
        raise ValueError(f"there is none of {', '.join(known)}")
    for six in (fast, SHAPES):
        missing = six.keys() - arrays.keys()
        if 0 < len(missing) < len(six):
            raise ValueError(f"{min(missing)} is missing")
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(f"{name} is {array.dtype}, not float32 or float64")
        if array.shape != known[name]:
            raise ValueError(f"{name} is {array.shape}, not {known[name]}")
        wrong = ~(abs(array) < 1e30)
        if wrong.any():
            tasks = "" if name in SHAPES else f" of {listed(wrong.reshape(TASKS, -1).any(1))}"
            raise ValueError(f"{name}{tasks} has NaN, infinity or numbers above 1e30")
    return {name: torch.from_numpy(np.array(a, np.float64)) for name, a in arrays.items()}


def load(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file of `np.savez`. No code in it is executed."""
    words = "is no file of numpy.savez with float32 or float64 in it"
    try:
        with np.load(path) as file:
            arrays = dict(file)
    except Exception as error:  # it may be anything
        reason = getattr(error, "strerror", None)
        words = f"can't be read: {reason}" if reason else words
        raise ValueError(f"{path} {words}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError(f"{path} {words}")
    return arrays


def command(argv: Sequence[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("file", nargs="?", metavar="yours.npz", help="your numbers")
    of = "what yours should be (%(default)s)"
    parser.add_argument("--loss", choices=BY_FLAG, default="rsse", help=of)
    parser.add_argument("--inner_lr", type=float, default=0.01, help=of)
    parser.add_argument("--inner_steps", type=int, default=1, help=of)
    parser.add_argument("--first_order", action="store_true", help=of)
    args = vars(parser.parse_args(argv))
    path = args.pop("file")
    torch.set_num_threads(1)
    try:
        if path is None:
            np.savez("check.tmp.npz", **given().arrays)
            os.replace("check.tmp.npz", "check.npz")  # so that it is never there in part
            print("check.npz: weights w_1, …, b_3 and points k_x, k_y, q_x, q_y of ten tasks")
            return
        right, lines = check(load(path), **args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"check.py: {error}\n")
    print("\n".join(lines))
    sys.exit(not right)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # for α, θ and √ in a pipe of Windows
    command()
