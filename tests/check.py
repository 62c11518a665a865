"""Says what an implementation of MAML computes, in any framework that can write NumPy's files.

python3 tests/check.py            writes check.npz: initial weights θ and a meta-batch of ten tasks
python3 tests/check.py yours.npz  says what your numbers for them are

check.npz, in float64: w_1 (40, 1), b_1 (40,), w_2 (40, 40), b_2 (40,), w_3 (1, 40) and b_3 (1,) of
the network relu(relu(x w_1ᵀ + b_1) w_2ᵀ + b_2) w_3ᵀ + b_3; support points k_x, k_y (10, 10, 1) and
query points q_x, q_y (10, 15, 1). yours.npz, in float64 or float32, what you have of these:

    support_losses (10,)                        of every task, at θ
    fast_w_1 (10, 40, 1), … fast_b_3 (10, 1)    the fast weights of every task
    query_losses (10,)                          of every task, at its fast weights
    w_1 (40, 1), … b_3 (1,)                     the meta-gradient

The flags say what they should be. The exit code is 0 if they are that, 1 if they are not, and 2 if
the file can't be used. From Python: `check(arrays)`.

There is no list of wrong numbers. Every way to compute something that is known here is computed,
and least squares take your numbers apart into its parts. What they leave of your numbers stands in
brackets. A line takes what the lines before it found for granted, so it has its own fault only.
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor, relu, sigmoid, tanh
from torch.nn.functional import leaky_relu

import main
from data import Sinusoid
from net import Net, linear, mse, rsse

TASKS = 10
KNOWN = 1e-4  # a way that leaves less of your numbers is what you compute
EXACT = 1e-10  # a way that leaves less needs no comparison with less simple ones
NEAR = 0.05  # a way that leaves more is not worth a word
SUPPORT, QUERY, ALL = "the support points", "the query points", "all points"
SAME = torch.nn.Identity()
SHAPES = {"w_1": (40, 1), "b_1": (40,), "w_2": (40, 40), "b_2": (40,), "w_3": (1, 40), "b_3": (1,)}


# Weights, networks and losses ---------------------------------------------------------------------


def joined(arrays: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    """All weights in one dimension, the last. Here, weights are a tensor of this kind."""
    parts = [arrays[f"{prefix}{name}"].flatten(-len(shape)) for name, shape in SHAPES.items()]
    return torch.cat(parts, dim=-1)


def by_name(weights: Tensor) -> dict[str, Tensor]:
    parts = weights.split([math.prod(shape) for shape in SHAPES.values()], dim=-1)
    return {n: part.unflatten(-1, SHAPES[n]) for n, part in zip(SHAPES, parts, strict=True)}


def turned(weights: Tensor) -> Tensor:
    """With w_2 as Flax and Keras store it."""
    arrays = by_name(weights)
    return joined({**arrays, "w_2": arrays["w_2"].mT})


def mask(*names: str) -> Tensor:
    """1 for the weights of these arrays, and 0 for the others."""
    return joined({name: torch.full(SHAPES[name], float(name in names)) for name in SHAPES})


def mlp(weights: Tensor, x: Tensor, first=relu, second=relu, last=SAME) -> Tensor:
    """The network with these functions after its layers."""
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
    ", without biases": lambda weights, x: mlp(weights * mask("w_1", "w_2", "w_3"), x),
}


def broadcast(loss: Callable) -> Callable:
    """The loss of someone whose y has lost its last dimension: (N, 1) − (N,) is (N, N)."""
    return lambda pred, y: loss(pred - y.mT, torch.zeros(1))


BY_FLAG = {"rsse": "√SSE", "mse": "MSE"}
USUAL = {"√SSE": rsse, "MSE": mse, "MAE": lambda pred, y: (pred - y).abs().mean((1, 2))}
LOSSES = USUAL | {f"{name} (y is (N,) and broadcasts)": broadcast(USUAL[name]) for name in USUAL}


class Problem:
    """The weights and the meta-batch of check.npz, with one of the networks."""

    def __init__(self, network: str) -> None:
        self.predict = NETWORKS[network]
        torch.manual_seed(0)
        net = Net()
        self.parameters, self.theta = net.Param, net.expand(TASKS)
        self.start = joined(self.theta).detach().requires_grad_()  # θ, once for every task
        self.batch = k_x, k_y, q_x, q_y = Sinusoid(10).batch(range(TASKS))
        self.points = {
            SUPPORT: (k_x, k_y),
            QUERY: (q_x, q_y),
            ALL: (torch.cat((k_x, q_x), 1), torch.cat((k_y, q_y), 1)),
            "the first half of the support points": (k_x[:, :5], k_y[:, :5]),
            "the second half of the support points": (k_x[:, 5:], k_y[:, 5:]),
            "the first half of the query points": (q_x[:, :7], q_y[:, :7]),
            "the second half of the query points": (q_x[:, 7:], q_y[:, 7:]),
            "the first ten query points": (q_x[:, :10], q_y[:, :10]),
        }

    def losses(self, loss: str, points: str, weights: Tensor) -> Tensor:
        """(tasks,)"""
        x, y = self.points[points]
        return LOSSES[loss](self.predict(weights, x), y)

    def moves(self, loss: str, points: str, alpha: float, most: int) -> Iterator[Tensor]:
        """θ' − θ after each of these steps, with the graph that leads back to θ."""
        fast = self.start
        for _ in range(most):
            fast = step(fast, self.losses(loss, points, fast), alpha)
            yield fast - self.start

    @functools.cached_property
    def descents(self) -> dict[tuple[str, str], Tensor]:
        """−∇L(θ), by loss and points."""
        return {pair: next(self.moves(*pair, 1.0, 1)) for pair in product(LOSSES, self.points)}

    def names(self, loss: str, points: str) -> dict[str, float]:
        """What has a name and is a number times this loss, with that number."""
        n = self.points[points][0].shape[1]
        others = {
            "√SSE": {"√MSE": n**-0.5},
            "MSE": {"SSE": n, "½ MSE": 1 / 2, "½ SSE": n / 2},
            "MAE": {"the sum of absolute errors": n},
        }
        return {loss: 1.0, **others.get(loss, {})}

    def named(self, loss: str, points: str, times: float) -> str:
        """So many times the loss, by its name."""
        found = [name for name, number in self.names(loss, points).items() if near(times, number)]
        return f"{found[0] if found else f'{times:.4g} × {loss}'} on {points}"


problem = functools.cache(Problem)  # what is the same for all is computed once


def step(weights: Tensor, losses: Tensor, alpha: float) -> Tensor:
    (gradient,) = torch.autograd.grad(losses.sum(), weights, create_graph=True)
    return weights - alpha * gradient


# Least squares ------------------------------------------------------------------------------------


class Way(NamedTuple):
    """A way to compute numbers: a sum of parts. The words have a place for how often each is in it.

    Where the words are not so simple, details are what they are made of.
    """

    words: str
    parts: Sequence[Tensor]
    details: tuple = ()

    def only(self, mask: Tensor) -> "Way":
        return self._replace(parts=[part * mask for part in self.parts])


class Fit(NamedTuple):
    """A way, how often each of its parts is in the numbers, and what is left of them, relative."""

    way: Way
    times: list[float]
    left: float
    known: bool

    def say(self, words: str | None = None) -> str:
        words = words or self.way.words.format(*self.times)
        if not self.known:
            words = f"unknown; {f'nearest: {words}' if self.left < NEAR else 'nothing is near'}"
        return f"{words} (left: {self.left:.0e})"


def fit(yours: Tensor, ways: Iterable[Way], tolerance: float = KNOWN) -> Fit:
    """The first way that is exact, or else is known, or else the nearest one of few parts."""
    y, known, nearest = yours.flatten(), None, None
    for way in ways:
        x = torch.stack([part.detach().flatten() for part in way.parts], dim=1)
        size = x.norm(dim=0).clamp(min=1e-300)
        if not size.isfinite().all():
            continue
        times = torch.from_numpy(np.linalg.lstsq((x / size).numpy(), y.numpy())[0])
        times = torch.where(times.abs() < 1e-6 * y.norm(), 0, times) / size  # no rounding errors
        left = ((y - x @ times).norm() / y.norm().clamp(min=1e-300)).item()
        found = Fit(way, times.tolist(), left, left < tolerance)
        if left < EXACT:
            return found
        if found.known and known is None:
            known = found
        if nearest is None or left < nearest.left and len(times) <= 3:
            nearest = found
    if nearest is None:
        raise ValueError("numbers as large as these can't be checked")
    return known or nearest


def place(yours: Mapping[str, Tensor], exact: Mapping[str, Tensor], tasks: int) -> str:
    """Where to look: the arrays and tasks that are not the exact ones, their size and direction."""
    wrong = {}
    for name, array in yours.items():
        errors = (array - exact[name]).reshape(tasks, -1).norm(dim=1)
        wrong[name] = errors > KNOWN / TASKS * exact[name].norm()
    words = f"not as expected: {', '.join(name for name in wrong if wrong[name].any())}"
    if tasks > 1:
        words += f" of tasks {listed(torch.stack(list(wrong.values())).any(0))}"
    a, b = (torch.cat([part[name].detach().flatten() for name in yours]) for part in (yours, exact))
    ratio, cosine = a.norm() / b.norm(), a @ b / a.norm() / b.norm()
    return f"{words}; {ratio:.4g} times as large, cosine {cosine:.4f}"


def listed(tasks: Tensor) -> str:
    return ", ".join(map(str, tasks.nonzero().flatten().tolist()))


def near(number: float, other: float) -> bool:
    return math.isclose(number, other, rel_tol=1e-3)


def say_times(times: float, words: str) -> str:
    return words if near(times, 1) else f"{times:.4g} × {words}"


# The step -----------------------------------------------------------------------------------------


class Settings(NamedTuple):
    """Of MAML: what the numbers should be, or what they are."""

    loss: str
    inner_lr: float
    inner_steps: int
    first_order: bool = False

    @property
    def steps(self) -> str:
        return "one step" if self.inner_steps == 1 else f"{self.inner_steps} steps"

    def __str__(self) -> str:
        method = "first-order MAML" if self.first_order else "MAML"
        return f"{method} with {self.loss}, {self.steps} and α = {self.inner_lr:.4g}"

    def same_step(self, other: "Settings") -> bool:
        same = (self.loss, self.inner_steps) == (other.loss, other.inner_steps)
        return same and near(self.inner_lr, other.inner_lr)


def ways_to_step(p: Problem, expected: Settings) -> Iterator[Way]:
    """θ' − θ. Details, if each task takes steps from θ: loss, points, α and number of steps."""
    if expected.inner_steps > 1:
        setting = expected.loss, SUPPORT, expected.inner_lr
        for number, moved in enumerate(p.moves(*setting, expected.inner_steps + 1), start=1):
            yield Way("", [moved], (*setting, number))
    for (loss, points), descent in p.descents.items():
        yield Way("", [descent], (loss, points, 1.0, 1))
    alphas = dict.fromkeys((expected.inner_lr, 0.01, 0.001, 0.1))
    for loss, points in product(USUAL, (SUPPORT, QUERY, ALL)):
        numbers = p.names(loss, points).values()
        for alpha in dict.fromkeys(a * number for a, number in product(alphas, numbers)):
            for number, moved in enumerate(p.moves(loss, points, alpha, 10), start=1):
                yield Way("", [moved], (loss, points, alpha, number))
    for (loss, points), descent in p.descents.items():
        for words, part in variants(descent).items():
            yield Way(f"{words}, {loss} on {points}, times {{:.4g}}", [part])
        words = f"one step, {loss} on {points}, α = {{:.4g}}, with weight decay, α λ = {{:.4g}}"
        yield Way(words, [descent, -p.start])
    for loss, points, alpha in product(USUAL, (SUPPORT, QUERY), alphas):
        words = f"one step from where the task before ended, {loss} on {points}, α = {alpha:g}"
        yield Way(words, [one_after_another(p, loss, points, alpha)])
    for loss in USUAL:
        descent = p.descents[loss, SUPPORT]
        tasks = torch.eye(TASKS)[:, :, None] * descent
        arrays = [descent * mask(name) for name in SHAPES]
        for of, parts in {"task": tasks, "array": arrays}.items():
            words = f"one step, {loss} on {SUPPORT}, with an α for each {of}: "
            yield Way(words + ", ".join(["{:.4g}"] * len(parts)), parts)


def variants(descent: Tensor) -> dict[str, Tensor]:
    """What somebody may add instead, in words."""
    order = torch.arange(TASKS)
    momentum = (0.9 ** (order[:, None] - order).double()).tril()  # (tasks, tasks)
    return {
        "the step of all tasks together": descent.sum(0).expand_as(descent),
        "gradients that pile up over tasks": descent.cumsum(0),
        "momentum of 0.9 from task to task": momentum @ descent,
        "the first step of Adam": descent.sign(),
        "a gradient clipped to a norm": descent / descent.detach().norm(dim=1, keepdim=True),
        "a gradient clipped to ± 1": descent.clamp(-1, 1),
    }


def one_after_another(p: Problem, loss: str, points: str, alpha: float) -> Tensor:
    """θ' − θ, if each task takes its step from the fast weights of the one before."""
    fast, ends = p.start[:1], []
    for x, y in zip(*(tensor.split(1) for tensor in p.points[points]), strict=True):
        fast = step(fast, LOSSES[loss](p.predict(fast, x), y), alpha)
        ends.append(fast)
    return torch.cat(ends) - p.start


def settings(p: Problem, found: Fit, expected: Settings) -> list[Settings]:
    """What the steps are: with the expected α first, and then with the simplest loss."""
    loss, points, alpha, number = found.way.details
    alpha *= found.times[0] if number == 1 else 1
    each = [Settings(name, alpha / x, number) for name, x in p.names(loss, points).items()]
    return sorted(each, key=lambda one: not near(one.inner_lr, expected.inner_lr))


def is_step_of_maml(found: Fit) -> bool:
    """One step may be of any size; several are not multiplied."""
    _, points, _, number = found.way.details or ("", "", 0, 0)
    return points == SUPPORT and (number == 1 or near(found.times[0], 1))


def say_step(p: Problem, found: Fit, expected: Settings) -> str | None:
    if not found.way.details:
        return None
    first, *others = settings(p, found, expected)
    words = f"{first.steps}, {first.loss} on {found.way.details[1]}, α = {first.inner_lr:.4g}"
    if others and not first.same_step(expected):
        words += f" (or {others[0].loss}, α = {others[0].inner_lr:.4g})"
    return words if first.inner_steps == 1 else say_times(found.times[0], words)


# Losses and the meta-gradient ---------------------------------------------------------------------


Term = tuple[str, str, str]  # a part of the query loss: which loss, on which points, at θ' or θ
Terms = Sequence[tuple[float, Term]]  # how many times each


def ways_to_support_losses(before: Tensor | None, losses: list[str]) -> Iterator[Way]:
    """Details: network, loss, points and where. `before` are fast weights of the task before."""
    for network, loss, points in product(NETWORKS, losses, problem("").points):
        p = problem(network)
        yield Way("", [p.losses(loss, points, p.start)], (network, loss, points, f"θ{network}"))
    for loss in losses if before is not None else ():
        part = problem("").losses(loss, SUPPORT, before)
        yield Way("", [part], ("", loss, SUPPORT, "the fast weights of the task before"))


def ways_to_query_losses(p: Problem, fast: Tensor, losses: list[str]) -> Iterator[Way]:
    """Details: the terms."""
    weights = {"θ'": fast, "θ": p.start}
    points = sorted(p.points, key=lambda points: points != QUERY)
    single = [(term,) for term in product(losses, points, weights)]
    double = [((loss, QUERY, "θ'"), (loss, SUPPORT, at)) for loss, at in product(losses, weights)]
    for terms in [*single, *double]:
        yield Way("", [p.losses(loss, of, weights[at]) for loss, of, at in terms], terms)


def ways_to_gradient(
    p: Problem, fast: Tensor, unrolled: Tensor, terms: Terms, loss: str
) -> Iterator[Way]:
    """The meta-gradient of these terms, and then of others. Details: a note."""
    direct, exact = by_task(p, fast, unrolled, terms)
    parts = orders(direct, exact)
    yield Way("{orders}", parts)
    yield Way("{orders}", [turned(part) for part in parts], ("; w_2 is transposed in the file",))
    yield Way("{orders}, plus {more:.4g} θ: weight decay", [*parts, p.start[0]])
    support = -p.descents[loss, SUPPORT].sum(0)
    words = "{orders}, plus {more:.4g} × the gradient of the support losses at θ"
    yield Way(words, [*parts, support])
    words = "the first step of Adam, the sign of the exact one, times {more:.4g}"
    yield Way(words, [exact.sum(0).sign()])
    for term in product(LOSSES, p.points, ("θ'", "θ")):
        parts = orders(*by_task(p, fast, unrolled, [(1.0, term)]))
        yield Way("{{orders}}, of {} on {} at {}".format(*term), parts)
    yield Way("exact, {tasks}", list(exact))
    yield Way("first-order, {tasks}", list(direct))


def by_task(p: Problem, fast: Tensor, unrolled: Tensor, terms: Terms) -> tuple[Tensor, Tensor]:
    """For each task the gradient of its loss as if θ' were θ plus a constant, and the exact one.

    `unrolled` are the fast weights with a graph that leads back to θ.
    """
    weights = {"θ'": fast, "θ": p.start}
    total = sum(times * p.losses(loss, of, weights[at]).sum() for times, (loss, of, at) in terms)
    grad = partial(torch.autograd.grad, retain_graph=True, materialize_grads=True)
    at_fast, at_theta = grad(total, (fast, p.start))
    (through_step,) = grad(unrolled, p.start, at_fast)  # tasks share no row of `p.start`
    return at_fast + at_theta, through_step + at_theta


def orders(direct: Tensor, exact: Tensor) -> list[Tensor]:
    """Sums over tasks: the first-order gradient and, if there is more, what second order adds."""
    first, second = direct.sum(0), (exact - direct).sum(0)
    return [first, second] if second.any() else [first]


def say_gradient(found: Fit) -> str:
    words, times = found.way.words, found.times
    tasks = f"tasks times {', '.join(f'{t:.3g}' for t in times)}"
    if all(t == 0 or near(t, 1) for t in times):
        tasks = f"of tasks {listed(torch.tensor(times))} only"
    first_two = times[:-1] if "{more" in words else times
    said = say_orders(*first_two) if "{orders}" in words else ""
    return words.format(orders=said, tasks=tasks, more=times[-1])


def say_orders(first: float, second: float | None = None) -> str:
    """`second` is None where nothing is adapted: there are no second derivatives."""
    if second is None or near(first, second):
        hints = {1 / TASKS: ", the mean over tasks", 2: ", added twice", -1: ", the wrong sign"}
        hint = next((hints[number] for number in hints if near(first, number)), "")
        return "exact" if near(first, 1) else f"{first:.4g} × the exact one{hint}"
    if abs(second) < 1e-3 * abs(first):
        words = "first-order: the gradient of the step is a constant (create_graph)"
        return say_times(first, words)
    if abs(first) < 1e-3 * abs(second):
        words = "what second derivatives add: θ is a constant in the step (detach)"
        return say_times(second, words)
    return f"{first:.4g} × first-order and {second:.4g} × what second derivatives add"


# The check ----------------------------------------------------------------------------------------


@torch.enable_grad()
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
    found = Check(tensors(arrays), Settings(BY_FLAG[loss], inner_lr, inner_steps, first_order))
    return not found.wrong, [found.verdict(), *found.lines]


class Check:
    """One part of the file after another. Each takes what is found of those before for granted."""

    def __init__(self, yours: Mapping[str, Tensor], expected: Settings) -> None:
        self.yours, self.expected, self.p = yours, expected, problem("")
        self.loss, *_ = self.losses = sorted(LOSSES, key=lambda loss: loss != expected.loss)
        self.lines, self.wrong, self.all_known = [], [], True
        # What is found. So far, it is what is expected.
        self.network, self.settings, self.names = "", [expected], None
        self.first_order = expected.first_order
        self.terms = [(1.0, (self.loss, QUERY, "θ'"))]
        self.fast = joined(yours, "fast_") if "fast_w_1" in yours else None
        if "support_losses" in yours:
            self.check_support_losses(yours["support_losses"])
        *_, self.exact = self.p.moves(self.loss, SUPPORT, expected.inner_lr, expected.inner_steps)
        self.unrolled = self.p.start + self.exact
        if self.fast is None:
            self.fast = self.unrolled.detach().requires_grad_()
            self.add("fast weights", "not in the file; taken to be right")
        else:
            self.check_fast_weights()
        if "query_losses" in yours:
            self.check_query_losses(yours["query_losses"])
        else:
            self.add("query losses", "not in the file; taken to be right")
        if "w_1" in yours:
            self.check_meta_gradient(joined(yours))
        else:
            self.add("meta-gradient", "not in the file")

    def add(self, part: str, words: str, right: bool = True) -> None:
        self.lines.append(f"{part:15} {words}")
        if not right:
            self.wrong.append(part)

    def check_support_losses(self, yours: Tensor) -> None:
        before = None if self.fast is None else torch.cat((self.p.start[:1], self.fast[:-1]))
        found = fit(yours, ways_to_support_losses(before, self.losses))
        network, loss, points, at = found.way.details
        right = (loss, points, at) == (self.loss, SUPPORT, "θ") and near(found.times[0], 1)
        words = f"{self.p.named(loss, points, found.times[0])} at {at}"
        self.add("support losses", found.say(words), found.known and right)
        self.network = network if found.known else None
        self.p = problem(self.network or "")

    def check_fast_weights(self) -> None:
        p, expected, notes = self.p, self.expected, []
        if (turned(self.fast) - p.start).norm() < 0.5 * (self.fast - p.start).norm():
            self.fast, notes = turned(self.fast), ["fast_w_2 is transposed in the file"]
        moved, digits = (self.fast - p.start).detach(), 4 * epsilon([self.fast])
        self.fast.requires_grad_()
        sizes = {name: a.norm() / p.theta[name].norm() for name, a in by_name(moved).items()}
        adapted = [name for name in SHAPES if sizes[name] > digits]
        if not adapted:
            self.unrolled, self.settings = p.start, []
            self.add("fast weights", "θ itself: nothing is adapted", False)
            return

        if len(adapted) < len(SHAPES):
            notes.append(f"only {', '.join(adapted)} adapted")
        lost = digits * p.start.norm() / moved.norm()  # θ' − θ has fewer digits than θ'
        tolerance = min(max(KNOWN, lost.item()), 0.01)
        ways = (way.only(mask(*adapted)) for way in ways_to_step(p, expected))
        found = fit(moved * mask(*adapted), ways, tolerance)
        is_maml = found.known and not notes and is_step_of_maml(found)
        self.settings = settings(p, found, expected) if is_maml else []
        right = any(each.same_step(expected) for each in self.settings)
        words = [found.say(say_step(p, found, expected)), *notes]
        self.add("fast weights", "; ".join(words), right)
        if found.known:
            parts = zip(found.times, found.way.parts, strict=True)
            self.unrolled = p.start + sum(times * part for times, part in parts)
        else:
            self.all_known = False
            self.add("", place(by_name(moved), by_name(self.exact), TASKS))

    def check_query_losses(self, yours: Tensor) -> None:
        p, self.names = self.p, []
        found = fit(yours, ways_to_query_losses(p, self.fast, self.losses))
        terms = list(zip(found.times, found.way.details, strict=True))
        times, (loss, *where) = terms[0]
        if found.known and where == [QUERY, "θ'"] and len(terms) == 1:
            self.names = [name for name, x in p.names(loss, QUERY).items() if near(times, x)]
        words = [f"{p.named(loss, of, times)} at {at}" for times, (loss, of, at) in terms]
        self.add("query losses", found.say(" plus ".join(words)), self.loss in self.names)
        if found.known:
            self.terms = terms
        else:
            self.all_known = False
            exact = p.losses(self.loss, QUERY, self.fast)
            self.add("", place({"query_losses": yours}, {"query_losses": exact}, TASKS))

    def check_meta_gradient(self, yours: Tensor) -> None:
        known = self.p, self.fast, self.unrolled, self.terms
        found = fit(yours, ways_to_gradient(*known, self.loss))
        plain = found.known and (found.way.words, found.way.details) == ("{orders}", ())
        if not plain or not near(found.times[0], 1):
            self.first_order = None
        elif len(found.times) == 2:
            self.first_order = {1.0: False, 0.0: True}.get(round(found.times[1], 3))
        right = self.first_order == self.expected.first_order
        if found.known or self.all_known:
            words = found.say(say_gradient(found)) + "".join(found.way.details)
            self.add("meta-gradient", words, right)
        else:
            self.add("meta-gradient", "unknown, as is what it depends on", right)
        if not found.known and self.all_known:
            direct, exact = by_task(*known)
            exact = (direct if self.expected.first_order else exact).sum(0)
            self.add("", place(by_name(yours), by_name(exact), 1))

    def verdict(self) -> str:
        if not self.wrong:
            this = "This" if len(self.yours) >= 13 else "As far as the file goes, this"
            digits = ", in float32" if epsilon(self.yours.values()) > 1e-9 else ""
            return f"{this} is {self.expected}{digits}."
        found = [s for s in self.settings if self.names is None or s.loss in self.names]
        if found and self.first_order is not None and self.network == "":
            found = found[0]._replace(first_order=self.first_order)
            if str(found) != str(self.expected):  # but for rounding
                return f"This is not {self.expected}: it is {found}."
        return f"This is not {self.expected}: look at the {self.wrong[0]} first."


# Files --------------------------------------------------------------------------------------------


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """The arrays in float64."""
    fast = {f"fast_{name}": (TASKS, *shape) for name, shape in SHAPES.items()}
    known = {"support_losses": (TASKS,), **fast, "query_losses": (TASKS,), **SHAPES}
    if unknown := arrays.keys() - known.keys():
        raise ValueError(f"{min(unknown)} is not one of {', '.join(known)}")
    if not arrays:
        raise ValueError(f"there is none of {', '.join(known)}")
    for six in (fast, SHAPES):
        missing = six.keys() - arrays.keys()
        if 0 < len(missing) < len(six):
            raise ValueError(f"{min(missing)} is missing")
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} has no real numbers: its type is {array.dtype}")
        if array.dtype == np.float16:
            raise ValueError(f"{name} has too few digits: its type is float16")
        if array.shape != known[name]:
            raise ValueError(f"{name} is {array.shape}, not {known[name]}")
        if not (abs(array) < 1e30).all():
            raise ValueError(f"{name} has NaN or infinity in it, or numbers above 1e30")
    return {name: torch.from_numpy(np.array(a, np.float64)) for name, a in arrays.items()}


def epsilon(arrays: Iterable[Tensor]) -> float:
    """The precision that they were computed in. Numbers of float32 may be stored as float64."""
    single = all((a == a.float()).all() for a in arrays)
    return torch.finfo(torch.float32 if single else torch.float64).eps


def load(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file of `np.savez`. No code in it is executed."""
    arrays, reason = {}, f"{path} is no file of numpy.savez"
    try:
        file = np.load(path)
        for name in file.files:
            reason = f"{name} can't be read: it is damaged, or an array of objects"
            arrays[name] = file[name]
    except Exception as error:  # it may be anything
        if isinstance(error, OSError) and error.strerror:
            reason = f"{path} can't be read: {error.strerror}"
        raise ValueError(reason) from error
    return arrays


def command(argv: Sequence[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("file", nargs="?", metavar="yours.npz", help="your numbers")
    flags = {"loss": {"choices": BY_FLAG}, "inner_lr": {"type": float}}
    flags |= {"inner_steps": {"type": int}, "first_order": {"action": "store_true"}}
    for name, options in flags.items():
        options |= {"default": main.SETTINGS[name], "help": "what yours should be (%(default)s)"}
        parser.add_argument(f"--{name}", **options)
    args = vars(parser.parse_args(argv))
    path = args.pop("file")
    torch.set_num_threads(1)
    try:
        if path is None:
            p = problem("")
            points = dict(zip(("k_x", "k_y", "q_x", "q_y"), p.batch, strict=True))
            arrays = {name: t.detach().numpy() for name, t in (p.parameters | points).items()}
            np.savez("check.npz", **arrays)
            names = "initial weights w_1, …, b_3 and points k_x, k_y, q_x, q_y of ten tasks"
            print(f"check.npz: {names}")
            return
        right, lines = check(load(path), **args)
    except (OSError, ValueError) as error:
        parser.exit(2, f"check.py: {error}\n")
    print("\n".join(lines))
    sys.exit(not right)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # for α, θ and √ in a pipe of Windows
    command()
