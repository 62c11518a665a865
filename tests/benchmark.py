"""How long an iteration of training takes, beside the alternatives.

python3 tests/benchmark.py    a quarter of an hour; needs JAX

Every row is the same loop around another step, on one thread; JAX has a `scan` of its own. Rows are
measured in turn, each in its own process. Printed are medians over rounds: the µs, and the speed-up
over the first row in the same round.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import maml
import reference
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import Sinusoid, meta_batches
from meta import Meta
from net import Net

TASKS, ROUNDS = (10, 100, 1_000), 3
WARM_UP, SECONDS = 1.0, 2.0  # of a measurement


def train(tasks: int, step: Callable, sample: Callable = meta_batches) -> Iterator[list[float]]:
    """The loop: the loss of one iteration after the other."""
    for batch in sample(Sinusoid(10), tasks):
        yield [step(*batch)]


def with_adam(gradient: Callable) -> Callable:
    """A step of Adam with a gradient like `loop`; it returns the mean loss."""
    theta = list(Net().parameters())
    adam = torch.optim.Adam(theta, lr=1e-3, fused=True)

    def step(*batch):
        total, gradients = gradient(theta, *batch)
        for w, g in zip(theta, gradients, strict=True):
            w.grad = g
        adam.step()
        return total.item() / len(batch[0])

    return step


def compiled_meta(tasks: int, first_order: bool = False) -> Meta:
    meta = Meta(Net(), first_order=first_order)
    meta.compile_gradient(*Sinusoid(10).batch(range(tasks)))
    return meta


def rsse(pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (pred - y).norm()


def loop(theta: list[torch.Tensor], *batch: torch.Tensor) -> reference.Result:
    """tests/maml.py: one task after the other."""
    total = sum(maml.adapted_loss(theta, *task, loss=rsse) for task in zip(*batch, strict=True))
    return total.detach(), torch.autograd.grad(total, theta)


@torch.no_grad()  # `torch.func` records by itself what it differentiates
def functional(theta: list[torch.Tensor], *batch: torch.Tensor) -> reference.Result:
    """`torch.func`: the gradient of a vmap over tasks of the loss after one gradient step."""

    def task_loss(theta, x, y):
        return rsse(maml.predict(theta, x), y)

    def adapted_loss(theta, k_x, k_y, q_x, q_y):
        gradient = torch.func.grad(task_loss)(theta, k_x, k_y)
        fast = [w - 1e-2 * g for w, g in zip(theta, gradient, strict=True)]
        return task_loss(fast, q_x, q_y)

    def batch_loss(theta):
        return torch.vmap(adapted_loss, in_dims=(None, 0, 0, 0, 0))(theta, *batch).sum()

    gradient, total = torch.func.grad_and_value(batch_loss)(theta)
    return total, tuple(gradient)


def compiled_functional(tasks: int) -> Callable:
    # As in `Meta.compile_gradient`, but with 1,000 tasks at once memory planning would be slow.
    options = {"cpp_wrapper": True, "memory_planning": tasks <= 100}
    return torch.compile(functional, fullgraph=True, dynamic=False, options=options)


def shuffled(sinusoid: Sinusoid, tasks: int) -> Iterator[list[torch.Tensor]]:
    """The meta-batches of the original: each shuffles a million tasks, and samples one by one."""
    loader = DataLoader(range(len(sinusoid)), tasks, shuffle=True)
    while True:
        indices = next(iter(loader)).tolist()
        samples = [sinusoid.batch([index]) for index in indices]
        yield [torch.cat(points) for points in zip(*samples, strict=True)]


def scan(tasks: int) -> Iterator[list[float]]:
    """JAX: `jit` of a `scan` over iterations, with Adam inside."""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries import optimizers

    jax.config.update("jax_enable_x64", True)
    gradient = jax.value_and_grad(reference.jax_loss())
    init, update, weights_of = optimizers.adam(1e-3)

    def iteration(state, batch):
        number, adam = state
        total, gradients = gradient(weights_of(adam), *batch)
        return (number + 1, update(number, gradients, adam)), total / tasks

    iterations = jax.jit(lambda state, batches: jax.lax.scan(iteration, state, batches))
    state = 0, init({name: jnp.asarray(w.detach().numpy()) for name, w in Net().Param.items()})
    batches = meta_batches(Sinusoid(10), tasks)
    while True:
        some = itertools.islice(batches, max(10, 5_000 // tasks))
        stacks = [jnp.asarray(torch.stack(points).numpy()) for points in zip(*some, strict=True)]
        state, losses = iterations(state, stacks)
        yield losses.tolist()


BASELINE = "loop over tasks"
ROWS: dict[str, Callable[[int], Iterator[list[float]]]] = {
    BASELINE: lambda n: train(n, with_adam(loop)),
    "the original's shuffle re-enacted": lambda n: train(n, with_adam(loop), shuffled),
    "`torch.func`": lambda n: train(n, with_adam(functional)),
    "`torch.func`, compiled": lambda n: train(n, with_adam(compiled_functional(n))),
    "**this project**": lambda n: train(n, Meta(Net())),
    "**this project, first-order**": lambda n: train(n, Meta(Net(), first_order=True)),
    "**this project, `--compile`**": lambda n: train(n, compiled_meta(n)),
    "**this project, first-order, `--compile`**": lambda n: train(n, compiled_meta(n, True)),
    "JAX, in a `scan`": scan,
}


def measure(row: str, tasks: int) -> float:
    """The µs of an iteration, after the first ones."""
    torch.set_num_threads(1)
    losses = ROWS[row](tasks)
    next(losses)  # may compile
    for seconds in (WARM_UP, SECONDS):
        iterations, begin = 0, time.perf_counter()
        while (passed := time.perf_counter() - begin) < seconds:
            iterations += len(next(losses))
    return 1e6 * passed / iterations


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "NPROC": "1"}
    times = {case: [] for case in itertools.product(ROWS, TASKS)}
    for tasks, _, row in tqdm(list(itertools.product(TASKS, range(ROUNDS), ROWS))):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:  # of its own
            times[row, tasks].append(process.submit(measure, row, tasks).result())

    print("| µs |", *(f"{tasks:,} tasks |" for tasks in TASKS))
    print("|---" * (len(TASKS) + 1) + "|")
    for row in ROWS:
        cells = [row]
        for tasks in TASKS:
            pairs = zip(times[BASELINE, tasks], times[row, tasks], strict=True)
            ratio = statistics.median(baseline / ours for baseline, ours in pairs)
            cells.append(f"{statistics.median(times[row, tasks]):,.0f} ({ratio:.2g} ×)")
        print("|", " | ".join(cells), "|")
    print(f"\nPyTorch {torch.__version__}, {os.cpu_count()} cores")
