"""Says what an implementation of MAML computes, in any framework that can write NumPy's files.

python3 tests/check.py            writes check.npz: initial weights θ and a meta-batch of ten tasks
python3 tests/check.py yours.npz  says what your numbers for them are

check.npz, in float64: w_1 (40, 1), b_1 (40,), w_2 (40, 40), b_2 (40,), w_3 (1, 40) and b_3 (1,) of
the network relu(relu(x w_1ᵀ + b_1) w_2ᵀ + b_2) w_3ᵀ + b_3; support points k_x, k_y (10, 10, 1) and
query points q_x, q_y (10, 15, 1). yours.npz, in any precision, what you have of these:

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
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, relu

import main
from data import Sinusoid
from net import Net, linear, mse, rsse

TASKS = 10
KNOWN = 1e-4  # a way that leaves less of your numbers is what you compute
SUPPORT, QUERY = "the support points", "the query points"

Fast = Mapping[str, Tensor]  # w_1 (tasks, 40, 1), and so on


# Networks and losses ------------------------------------------------------------------------------


def mlp(first: Callable, second: Callable, last: Callable = lambda h: h) -> Callable:
    """The network with these functions after its layers."""

    def predict(w: Fast, x: Tensor) -> Tensor:
        h = first(linear(x, w["w_1"], w["b_1"]))
        h = second(linear(h, w["w_2"], w["b_2"]))
        return last(linear(h, w["w_3"], w["b_3"]))

    return predict


def without_biases(w: Fast, x: Tensor) -> Tensor:
    return PLAIN({name: 0 * p if name.startswith("b") else p for name, p in w.items()}, x)


PLAIN = mlp(relu, relu)
NETWORKS = {
    "": PLAIN,
    ", with w_2 transposed": lambda w, x: PLAIN({**w, "w_2": w["w_2"].mT}, x),
    ", with a ReLU after the last layer, too": mlp(relu, relu, relu),
    ", without a ReLU after the second layer": mlp(relu, lambda h: h),
    ", with tanh for ReLU": mlp(torch.tanh, torch.tanh),
    ", with sigmoid for ReLU": mlp(torch.sigmoid, torch.sigmoid),
    ", with leaky ReLU": mlp(leaky_relu, leaky_relu),
    ", without biases": without_biases,
}


def broadcast(loss: Callable) -> Callable:
    """The loss of someone whose y has lost its last dimension: (N, 1) − (N,) is (N, N)."""
    return lambda pred, y: loss(pred - y.mT, torch.zeros(1))


BY_FLAG = {"rsse": "√SSE", "mse": "MSE"}
LOSSES = {
    "√SSE": rsse,
    "MSE": mse,
    "MAE": lambda pred, y: (pred - y).abs().mean((1, 2)),
    "√SSE (y is (N,) and broadcasts)": broadcast(rsse),
    "MSE (y is (N,) and broadcasts)": broadcast(mse),
}
MULTIPLES = {  # what else is one of these losses times a number, of N points
    "√SSE": {"the root of the mean square": lambda n: n**-0.5},
    "MSE": {"SSE": lambda n: n, "½ MSE": lambda n: 1 / 2, "½ SSE": lambda n: n / 2},
    "MAE": {"the sum of absolute errors": lambda n: n},
}


class Problem:
    """The weights and the meta-batch of check.npz, with one of the networks."""

    def __init__(self, network: str) -> None:
        self.predict = NETWORKS[network]
        torch.manual_seed(0)
        self.parameters = Net().Param
        self.theta = {n: p.expand(TASKS, *p.shape) for n, p in self.parameters.items()}
        self.batch = k_x, k_y, q_x, q_y = Sinusoid(10).batch(range(TASKS))
        self.points = {
            SUPPORT: (k_x, k_y),
            QUERY: (q_x, q_y),
            "all points": (torch.cat((k_x, q_x), 1), torch.cat((k_y, q_y), 1)),
            "the first half of the support points": (k_x[:, :5], k_y[:, :5]),
            "the second half of the support points": (k_x[:, 5:], k_y[:, 5:]),
            "the first half of the query points": (q_x[:, :7], q_y[:, :7]),
            "the second half of the query points": (q_x[:, 7:], q_y[:, 7:]),
        }

    def losses(self, loss: str, points: str, fast: Fast) -> Tensor:
        """(tasks,)"""
        x, y = self.points[points]
        return LOSSES[loss](self.predict(fast, x), y)

    def gradient(self, loss: str, points: str, fast: Fast) -> dict[str, Tensor]:
        total = self.losses(loss, points, fast).sum()
        gradient = torch.autograd.grad(total, list(fast.values()), create_graph=True)
        return dict(zip(fast, gradient, strict=True))

    def moves(
        self, loss: str, points: str, alpha: float, steps: int
    ) -> Iterator[dict[str, Tensor]]:
        """θ' − θ after each step, with the graph that leads back to θ."""
        fast = self.theta
        for _ in range(steps):
            g = self.gradient(loss, points, fast)
            fast = {n: w - alpha * g[n] for n, w in fast.items()}
            yield {n: w - self.theta[n] for n, w in fast.items()}

    @functools.cached_property
    def descents(self) -> dict[tuple[str, str], dict[str, Tensor]]:
        """−∇L(θ), by loss and points."""
        pairs = itertools.product(LOSSES, self.points)
        return {pair: all_of(self.gradient(*pair, self.theta), torch.neg) for pair in pairs}

    def names(self, loss: str, points: str) -> dict[str, float]:
        """The loss and its multiples, and what each of them is times the loss."""
        count = self.points[points][0].shape[1]
        multiples = MULTIPLES.get(loss, {})
        return {loss: 1.0} | {name: factor(count) for name, factor in multiples.items()}

    def named(self, loss: str, points: str, times: float) -> str:
        """So many times the loss, by its name."""
        names = [n for n, factor in self.names(loss, points).items() if near(times, factor)]
        return f"{names[0] if names else f'{times:.4g} × {loss}'} on {points}"


problem = functools.cache(Problem)  # what is the same for all is computed once


# Least squares ------------------------------------------------------------------------------------


class Way(NamedTuple):
    """A way to compute arrays: a sum of parts. `say` puts into words how often each is in it."""

    say: Callable[..., str]
    parts: Sequence[Mapping[str, Tensor]]
    details: tuple = ()


class Fit(NamedTuple):
    """A way, how often each of its parts is in the numbers, and what is left of them, relative."""

    way: Way
    times: list[float]
    left: float
    known: bool

    def line(self, what: str) -> str:
        words = self.way.say(*self.times)
        return (
            f"{what:15} {'' if self.known else 'unknown; nearest: '}{words} (left: {self.left:.0e})"
        )


def flat(arrays: Iterable[Tensor]) -> Tensor:
    return torch.cat([array.detach().flatten() for array in arrays])


def fit(yours: Mapping[str, Tensor], ways: Iterable[Way], tolerance: float = KNOWN) -> Fit:
    """The first way that is known, or else the nearest one of few parts."""
    y, nearest = flat(yours.values()), None
    for way in ways:
        x = torch.stack([flat(part[name] for name in yours) for part in way.parts], dim=1)
        size = x.norm(dim=0).clamp(min=1e-300)
        if not x.isfinite().all():
            continue
        times = torch.from_numpy(np.linalg.lstsq((x / size).numpy(), y.numpy())[0]) / size
        left = ((y - x @ times).norm() / y.norm()).item()
        if left < tolerance:
            return Fit(way, times.tolist(), left, True)
        if nearest is None or left < nearest.left and len(times) <= 3:
            nearest = Fit(way, times.tolist(), left, False)
    return nearest


def near(number: float, other: float) -> bool:
    return abs(number - other) <= 1e-3 * abs(other)


def place(yours: Mapping[str, Tensor], exact: Mapping[str, Tensor], by_task: bool) -> str:
    """Where to look: the arrays and tasks that are not the exact ones, their size and direction."""
    wrong = {
        name: (y - exact[name]).reshape(TASKS if by_task else 1, -1).norm(dim=1)
        > KNOWN * exact[name].norm()
        for name, y in yours.items()
    }
    a, b = flat(yours.values()), flat(exact[name] for name in yours)
    words = f"{' ' * 15} not as expected: {', '.join(n for n in wrong if wrong[n].any())}"
    if by_task:
        tasks = torch.stack(list(wrong.values())).any(0).nonzero().flatten().tolist()
        words += f" of tasks {', '.join(map(str, tasks))}"
    ratio, cosine = a.norm() / b.norm(), a @ b / a.norm() / b.norm()
    return f"{words}; {ratio:.4g} times as large, cosine {cosine:.4f}"


# Ways ---------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """What the numbers should be."""

    loss: str = "√SSE"
    inner_lr: float = 0.01
    inner_steps: int = 1
    first_order: bool = False

    def __str__(self) -> str:
        steps = "one step" if self.inner_steps == 1 else f"{self.inner_steps} steps"
        method = "first-order MAML" if self.first_order else "MAML"
        return f"{method} with {self.loss}, {steps} and α = {self.inner_lr:.4g}"


def all_of(part: Mapping[str, Tensor], function: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: function(array) for name, array in part.items()}


def column(numbers: Tensor, array: Tensor) -> Tensor:
    """One number a task, in the shape that multiplies this array."""
    return numbers.reshape(-1, *[1] * (array.dim() - 1))


def ways_to_step(p: Problem, expected: Expected) -> Iterator[Way]:
    """θ' − θ. Details, if it is that of MAML: a function that gives the settings."""
    alphas = list(dict.fromkeys((expected.inner_lr, 0.01, 0.001, 0.1)))
    yield from plain_ways(p, expected)
    for loss, points in itertools.product(MULTIPLES, (SUPPORT, QUERY, "all points")):
        yield from several_steps(p, loss, points, alphas, expected)
    for (loss, points), descent in p.descents.items():
        of = f"{loss} on {points}"
        for words, part in variants(descent).items():
            yield Way(f"{words}, {of}, times {{:.4g}}".format, [part])
        words = f"one step, {of}, α = {{:.4g}}, with weight decay, α λ = {{:.4g}}"
        yield Way(words.format, [descent, all_of(p.theta, torch.neg)])
    for loss, points, alpha in itertools.product(MULTIPLES, (SUPPORT, QUERY), alphas):
        words = f"one step from where the task before ended, {loss} on {points}, α = {alpha:g}"
        yield Way(partial(times_words, words), [one_after_another(p, loss, points, alpha)])
    for loss in MULTIPLES:
        descent = p.descents[loss, SUPPORT]
        tasks = [all_of(descent, lambda a, t=t: a * column(t, a)) for t in torch.eye(TASKS)]
        arrays = [{n: a * (n == name) for n, a in descent.items()} for name in descent]
        for of, parts in {"task": tasks, "array": arrays}.items():
            words = f"one step, {loss} on {SUPPORT}, with an α for each {of}: "
            yield Way((words + ", ".join(["{:.4g}"] * len(parts))).format, parts)


def plain_ways(p: Problem, expected: Expected) -> Iterator[Way]:
    """What is expected, and one step of any size, on any loss and points."""
    if expected.inner_steps > 1:
        yield from several_steps(p, expected.loss, SUPPORT, [expected.inner_lr], expected)
    for loss, points in p.descents:
        yield one_step(p, loss, points, expected)


def one_step(p: Problem, loss: str, points: str, expected: Expected) -> Way:
    def settings(step_size: float) -> list[Expected]:
        """That with the expected α comes first, then that with the simplest loss."""
        alphas = {name: step_size / factor for name, factor in p.names(loss, points).items()}
        names = sorted(alphas, key=lambda name: not near(alphas[name], expected.inner_lr))
        return [Expected(name, alphas[name]) for name in names]

    def say(step_size: float) -> str:
        first, *others = settings(step_size)
        words = f"one step, {first.loss} on {points}, α = {first.inner_lr:.4g}"
        if others and not matches([first], expected):
            words += f" (or {others[0].loss}, α = {others[0].inner_lr:.4g})"
        return words

    return Way(say, [p.descents[loss, points]], (settings,) if points == SUPPORT else ())


def several_steps(
    p: Problem, loss: str, points: str, alphas: list[float], expected: Expected
) -> Iterator[Way]:
    """2, 3, 5 and 10 steps, and as many as are expected, of the loss and of its multiples."""
    numbers = {2, 3, 5, 10, expected.inner_steps} - {0, 1}
    for alpha, (name, factor) in itertools.product(alphas, p.names(loss, points).items()):
        moves = p.moves(loss, points, alpha * factor, max(numbers))
        for number, moved in enumerate(moves, start=1):
            if number in numbers:
                words = f"{number} steps, {name} on {points}, α = {alpha:g}"
                settings = partial(several, Expected(name, alpha, number))
                details = (settings,) if points == SUPPORT else ()
                yield Way(partial(times_words, words), [moved], details)


def several(settings: Expected, times: float) -> list[Expected]:
    return [settings] if near(times, 1) else []


def times_words(words: str, times: float) -> str:
    return words if near(times, 1) else f"{times:.4g} × {words}"


def variants(descent: Fast) -> dict[str, dict[str, Tensor]]:
    """What somebody may add instead, in words."""
    norms = torch.cat([a.detach().flatten(1) for a in descent.values()], 1).norm(dim=1)
    order = torch.arange(TASKS)
    momentum = (0.9 ** (order[:, None] - order).double()).tril()  # (tasks, tasks)
    functions = {
        "the step of all tasks together": lambda a: a.sum(0, keepdim=True).expand_as(a),
        "gradients that pile up over tasks": lambda a: a.cumsum(0),
        "momentum of 0.9 from task to task": lambda a: torch.tensordot(momentum, a, dims=1),
        "the first step of Adam": torch.sign,
        "a gradient clipped to a norm": lambda a: a / column(norms, a),
        "a gradient clipped to ± 1": lambda a: a.clamp(-1, 1),
    }
    return {words: all_of(descent, function) for words, function in functions.items()}


def one_after_another(p: Problem, loss: str, points: str, alpha: float) -> dict[str, Tensor]:
    """θ' − θ, if each task takes its step from the fast weights of the one before."""
    fast, ends = all_of(p.theta, lambda w: w[:1]), []
    for x, y in zip(*(tensor.split(1) for tensor in p.points[points]), strict=True):
        total = LOSSES[loss](p.predict(fast, x), y).sum()
        g = torch.autograd.grad(total, list(fast.values()), create_graph=True)
        fast = {n: w - alpha * part for (n, w), part in zip(fast.items(), g, strict=True)}
        ends.append(fast)
    return {n: torch.cat([end[n] for end in ends]) - w for n, w in p.theta.items()}


class Term(NamedTuple):
    """A part of the query loss: which loss, on which points, at θ' or θ."""

    loss: str
    points: str
    at: str = "θ'"


def ways_to_losses(p: Problem, fast: Fast, expected: Expected) -> Iterator[Way]:
    """A number for each task. Details: the terms."""
    weights = {"θ'": fast, "θ": p.theta}
    losses = sorted(LOSSES, key=lambda loss: loss != expected.loss)
    order = [QUERY, *(points for points in p.points if points != QUERY)]
    single = [Term(*term) for term in itertools.product(losses, order, weights)]
    double = [(Term(loss, QUERY), Term(loss, SUPPORT, at)) for loss in losses for at in weights]
    for terms in [*((term,) for term in single), *double]:
        parts = [{"query_losses": p.losses(loss, of, weights[at])} for loss, of, at in terms]

        yield Way(partial(say_terms, p, terms), parts, terms)


def say_terms(p: Problem, terms: Sequence[Term], *times: float) -> str:
    named = [p.named(loss, of, t) for (loss, of, _), t in zip(terms, times, strict=True)]
    return " plus ".join(f"{words} at {term.at}" for words, term in zip(named, terms, strict=True))


def ways_to_gradient(
    p: Problem, fast: Fast, unrolled: Fast, terms: Sequence[tuple[float, Term]], expected: Expected
) -> Iterator[Way]:
    """The meta-gradient of this loss, and then of other losses.

    `unrolled` are fast weights that depend on θ by their graph.
    """
    direct, exact = by_task(p, fast, unrolled, terms)
    parts = orders(direct, exact)
    yield Way(say_gradient, parts, ("plain",))
    yield Way(say_more("{:.4g} θ: weight decay"), [*parts, p.parameters])
    support = all_of(p.descents[expected.loss, SUPPORT], lambda a: -a.sum(0))
    yield Way(say_more("{:.4g} × the gradient of the support losses at θ"), [*parts, support])
    for words, part in {"exact": exact, "first-order": direct}.items():
        tasks = [all_of(part, lambda a, task=task: a[task]) for task in range(TASKS)]
        yield Way(partial(say_tasks, words), tasks)
    sign = all_of(exact, lambda a: a.sum(0).sign())
    yield Way("the first step of Adam, the sign of the exact one, times {:.4g}".format, [sign])
    for term in itertools.starmap(Term, itertools.product(LOSSES, p.points, ("θ'", "θ"))):
        parts = orders(*by_task(p, fast, unrolled, [(1.0, term)]))
        yield Way(partial(say_other, term), parts)


def orders(direct: Fast, exact: Fast) -> list[dict[str, Tensor]]:
    """Sums over tasks: the first-order gradient and, if there is more, what second order adds."""
    second = {name: (exact[name] - a).sum(0) for name, a in direct.items()}
    first = all_of(direct, lambda a: a.sum(0))
    return [first, second] if any(a.any() for a in second.values()) else [first]


def by_task(
    p: Problem, fast: Fast, unrolled: Fast, terms: Sequence[tuple[float, Term]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """For each task the gradient of its loss as if θ' were θ plus a constant, and the exact one."""
    at_theta = all_of(p.theta, torch.zeros_like)
    v = all_of(p.theta, torch.zeros_like)
    for times, (loss, points, at) in terms:
        place, into = (fast, v) if at == "θ'" else (p.theta, at_theta)
        for name, g in p.gradient(loss, points, place).items():
            into[name] = into[name] + times * g.detach()
    # One call for all tasks: the θ of each, `p.theta`, is a tensor of its own in the graph.
    total = sum((w * v[name]).sum() for name, w in unrolled.items())
    exact = torch.autograd.grad(total, list(p.theta.values()), retain_graph=True)
    direct = {n: v[n] + at_theta[n] for n in v}
    return direct, {n: g + at_theta[n] for n, g in zip(p.theta, exact, strict=True)}


def say_gradient(first: float, second: float | None = None) -> str:
    hints = {1 / TASKS: ", the mean over tasks", 2: ", added twice", -1: ", the wrong sign"}
    hint = next((hints[number] for number in hints if near(first, number)), "")
    if second is None or near(first, second):
        return "exact" if near(first, 1) else f"{first:.4g} × the exact one{hint}"
    if abs(second) < 1e-3 * abs(first):
        times = "" if near(first, 1) else f"{first:.4g} × "
        return f"{times}first-order: the gradient in the step is a constant (create_graph, detach)"
    if abs(first) < 1e-3 * abs(second):
        return f"{second:.4g} × what second derivatives add: θ is a constant in the step (detach)"
    return f"{first:.4g} × first-order and {second:.4g} × what second derivatives add"


def say_more(words: str) -> Callable[..., str]:
    return lambda *times: f"{say_gradient(*times[:-1])}, plus {words.format(times[-1])}"


def say_other(term: Term, *times: float) -> str:
    return f"{say_gradient(*times)}, of {term.loss} on {term.points} at {term.at}"


def say_tasks(words: str, *times: float) -> str:
    if all(abs(t) < 1e-3 or near(t, 1) for t in times):
        return f"{words}, of tasks {', '.join(str(n) for n, t in enumerate(times) if t > 0.5)} only"
    return f"{words}, tasks times {', '.join(f'{t:.3g}' for t in times)}"


# The check ----------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What is found of the fast weights."""

    lines: list[str]
    right: bool
    settings: list[Expected]  # of MAML, if it is that
    fast: Fast  # as they are
    unrolled: Fast  # as they depend on θ


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
    expected = Expected(BY_FLAG[loss], inner_lr, inner_steps, first_order)
    yours, epsilon = tensors(arrays)
    p, lines, rights = problem(""), [], {}
    if "support_losses" in yours:
        line, network = check_network(yours["support_losses"], expected)
        lines.append(line)
        rights["support losses"] = network == ""
        p = problem(network or "")
    step = check_step(p, yours, expected, epsilon)
    more, loss_is_right, terms, names = check_losses(p, yours, step.fast, expected)
    last, gradient_is_right, first = check_gradient(p, yours, step, terms, expected)
    rights |= {"fast weights": step.right, "query losses": loss_is_right}
    rights["meta-gradient"] = gradient_is_right
    lines += [*step.lines, *more, *last]

    if all(rights.values()):
        some = "" if len(yours) >= 13 else "As far as the file goes, this"
        verdict = f"{some or 'This'} is {expected}{', in float32' if epsilon > 1e-9 else ''}."
        return True, [verdict, *lines]
    verdict = f"This is not {expected}: "
    found = [s for s in step.settings if names is None or s.loss in names]
    if found and first is not None and rights.get("support losses", True):
        verdict += f"it is {found[0]._replace(first_order=first)}."
    else:
        verdict += f"look at the {next(name for name in rights if not rights[name])} first."
    return False, [verdict, *lines]


def check_network(yours: Tensor, expected: Expected) -> tuple[str, str | None]:
    """A line and, if it is known, the network. The loss is told by the lines that follow."""

    def ways() -> Iterator[Way]:
        losses = sorted(LOSSES, key=lambda loss: loss != expected.loss)
        for network, loss, points in itertools.product(NETWORKS, losses, problem("").points):
            p = problem(network)
            part = {"support_losses": p.losses(loss, points, p.theta)}
            say = partial(say_network, network, loss, points)
            yield Way(say, [part], (network,))

    found = fit({"support_losses": yours}, ways())
    return found.line("support losses"), found.way.details[0] if found.known else None


def say_network(network: str, loss: str, points: str, times: float) -> str:
    return f"{problem(network).named(loss, points, times)} at θ{network}"


def check_step(p: Problem, yours: Mapping[str, Tensor], expected: Expected, epsilon: float) -> Step:
    """`epsilon` is the precision of the file."""
    *_, exact = p.moves(expected.loss, SUPPORT, expected.inner_lr, expected.inner_steps)
    unrolled = {name: w + exact[name] for name, w in p.theta.items()}
    if "fast_w_1" not in yours:
        lines = [f"{'fast weights':15} not in the file; taken to be right"]
        return Step(lines, True, [expected], all_of(unrolled, leaf), unrolled)
    fast = {name: leaf(yours[f"fast_{name}"]) for name in p.theta}
    moved = {name: (fast[name] - w).detach() for name, w in p.theta.items()}
    adapted = {n: d for n, d in moved.items() if d.norm() > 4 * epsilon * p.theta[n].norm()}
    if not adapted:
        return Step([f"{'fast weights':15} θ itself: nothing is adapted"], False, [], fast, p.theta)

    lost = 4 * epsilon * flat(p.theta.values()).norm() / flat(adapted.values()).norm()
    tolerance = max(KNOWN, lost.item())  # θ' − θ has fewer digits than θ'
    found, notes = fit(adapted, ways_to_step(p, expected), tolerance), []
    if not found.known:
        turned = {**fast, "w_2": leaf(fast["w_2"].mT)}
        other_moved = {name: (turned[name] - w).detach() for name, w in p.theta.items()}
        other = fit(other_moved, plain_ways(p, expected), tolerance)
        if other.known:
            found, fast, adapted = other, turned, other_moved
            notes = ["fast_w_2 is transposed in the file"]
    if len(adapted) < len(moved):
        notes.append(f"only {', '.join(adapted)} adapted")
    lines = ["; ".join([found.line("fast weights"), *notes])]
    if not found.known:
        return Step([*lines, place(moved, exact, by_task=True)], False, [], fast, unrolled)

    unrolled = dict(p.theta)
    for times, part in zip(found.times, found.way.parts, strict=True):
        unrolled |= {name: unrolled[name] + times * part[name] for name in adapted}
    settings = [each for function in found.way.details for each in function(*found.times)]
    return Step(
        lines, not notes and matches(settings, expected), settings * (not notes), fast, unrolled
    )


def matches(settings: list[Expected], expected: Expected) -> bool:
    """Whether one of these is as expected, first order aside."""
    return any(
        (s.loss, s.inner_steps) == (expected.loss, expected.inner_steps)
        and near(s.inner_lr, expected.inner_lr)
        for s in settings
    )


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def check_losses(
    p: Problem, yours: Mapping[str, Tensor], fast: Fast, expected: Expected
) -> tuple[list[str], bool, list[tuple[float, Term]], set[str] | None]:
    """Lines, whether they are right, the terms of the loss, and its names if it is that of MAML."""
    usual = [(1.0, Term(expected.loss, QUERY))]
    if "query_losses" not in yours:
        return [f"{'query losses':15} not in the file; taken to be right"], True, usual, None
    numbers = {"query_losses": yours["query_losses"]}
    found = fit(numbers, ways_to_losses(p, fast, expected))
    lines = [found.line("query losses")]
    if not found.known:
        exact = {"query_losses": p.losses(expected.loss, QUERY, fast).detach()}
        return [*lines, place(numbers, exact, by_task=True)], False, usual, set()
    terms = list(zip(found.times, found.way.details, strict=True))
    names = set()
    if [(term.points, term.at) for _, term in terms] == [(QUERY, "θ'")]:
        (times, term), *_ = terms
        names = {name for name, x in p.names(term.loss, QUERY).items() if near(times, x)}
    return lines, expected.loss in names, terms, names


def check_gradient(
    p: Problem,
    yours: Mapping[str, Tensor],
    step: Step,
    terms: list[tuple[float, Term]],
    expected: Expected,
) -> tuple[list[str], bool, bool | None]:
    """Lines, whether they are right, and whether it is first-order; None if it is not MAML's."""
    if "w_1" not in yours:
        lines = [f"{'meta-gradient':15} not in the file"]
        return lines, True, expected.first_order
    gradient, note = {name: yours[name] for name in p.theta}, ""
    found = fit(gradient, ways_to_gradient(p, step.fast, step.unrolled, terms, expected))
    if not found.known:
        turned = {**gradient, "w_2": gradient["w_2"].mT}
        ways = ways_to_gradient(p, step.fast, step.unrolled, terms, expected)
        other = fit(turned, itertools.islice(ways, 1))
        if other.known:
            found, note = other, "; w_2 is transposed in the file"
    lines = [found.line("meta-gradient") + note]
    if not found.known:
        direct, exact = by_task(p, step.fast, step.unrolled, terms)
        right = all_of(direct if expected.first_order else exact, lambda a: a.sum(0))
        return [*lines, place(gradient, right, by_task=False)], False, None
    first_order = None
    if found.way.details == ("plain",) and not note and near(found.times[0], 1):
        first_order = {1.0: False, 0.0: True}.get(round(found.times[-1], 3))
        if len(found.times) == 1:  # nothing was adapted: there are no second derivatives
            first_order = expected.first_order
    return lines, first_order == expected.first_order, first_order


# Files --------------------------------------------------------------------------------------------


def shapes() -> dict[str, tuple[int, ...]]:
    """Of the arrays that a file may have."""
    weights = {name: tuple(p.shape) for name, p in problem("").parameters.items()}
    fast = {f"fast_{name}": (TASKS, *shape) for name, shape in weights.items()}
    return {"support_losses": (TASKS,), **fast, "query_losses": (TASKS,), **weights}


def tensors(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Tensor], float]:
    """The arrays in float64, and the precision that they were computed in."""
    known, epsilon = shapes(), 2.0**-52
    if unknown := arrays.keys() - known.keys():
        raise ValueError(f"{min(unknown)} is not one of {', '.join(known)}")
    if not arrays:
        raise ValueError(f"there is none of {', '.join(known)}")
    for prefix in ("fast_", ""):
        names = {f"{prefix}{name}" for name in problem("").theta}
        if 0 < len(names - arrays.keys()) < len(names):
            raise ValueError(f"{min(names - arrays.keys())} is missing")
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} has no real numbers: its type is {array.dtype}")
        if array.shape != known[name]:
            raise ValueError(f"{name} is {array.shape}, not {known[name]}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} has NaN or infinity in it")
    # Numbers of float32 may be stored as float64.
    if all((np.asarray(a) == np.asarray(a, np.float32)).all() for a in arrays.values()):
        epsilon = 2.0**-23
    return {name: torch.from_numpy(np.array(a, np.float64)) for name, a in arrays.items()}, epsilon


def load(path: str) -> dict[str, np.ndarray]:
    """The arrays of a file of `np.savez`. No code in it is executed."""
    try:
        file = np.load(path)
        names = file.files
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # it may be anything
        raise ValueError(f"{path} is no file of numpy.savez") from error
    arrays = {}
    for name in names:
        try:
            arrays[name] = file[name]
        except Exception as error:  # as above
            raise ValueError(
                f"{name} can't be read: it is damaged, or an array of objects"
            ) from error
    return arrays


def command(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Says what an implementation of MAML computes: see the docstring of this file.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, defaults = parser.add_argument, main.SETTINGS
    add(
        "file",
        nargs="?",
        metavar="yours.npz",
        help="your numbers; without it, check.npz is written",
    )
    add("--loss", choices=BY_FLAG, default=defaults["loss"], help="what yours should be")
    add("--inner_lr", type=float, default=defaults["inner_lr"], help="what yours should be")
    add("--inner_steps", type=int, default=defaults["inner_steps"], help="what yours should be")
    add("--first_order", action="store_true", help="what yours should be")
    args = parser.parse_args(argv)
    if not args.inner_lr > 0 or args.inner_steps < 1:
        parser.error("--inner_lr must be above 0, and --inner_steps at least 1")
    torch.set_num_threads(1)
    if args.file is None:
        p = problem("")
        points = dict(zip(("k_x", "k_y", "q_x", "q_y"), p.batch, strict=True))
        arrays = {name: tensor.detach().numpy() for name, tensor in (p.parameters | points).items()}
        np.savez("check.npz", **arrays)
        print("check.npz: initial weights w_1, …, b_3 and points k_x, k_y, q_x, q_y of ten tasks")
        return
    try:
        right, lines = check(load(args.file), *list(vars(args).values())[1:])
    except ValueError as error:
        parser.exit(2, f"check.py: {error}\n")
    print("\n".join(lines))
    sys.exit(not right)


if __name__ == "__main__":
    command()
