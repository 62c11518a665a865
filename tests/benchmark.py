"""How long an iteration of training takes, beside the alternatives: python3 tests/benchmark.py

Ten to twenty minutes. Each row runs in its own process, on one thread, without its start-up: it is
the loop of main.py, with validation and progress bar, around its own gradient. JAX has a loop of
its own, without these. Printed are medians of µs, and the speed-up over the original's loop without
its shuffle.
"""

import contextlib
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import reference
import torch
from torch.utils.data import DataLoader

import main
import meta

TASKS = (10, 100, 1_000)
ROUNDS = 3
SECONDS = 2.0  # a measurement ends with the first stretch after them


def paced(batches: Iterable, stretch: int, scale: int = 1) -> Iterator:
    """Hand out `batches`, and time the loop that takes them, by stretches of so many.

    The first stretch is not counted. The µs of an iteration are printed at the end; the loop makes
    `scale` iterations from a batch.
    """
    times, begin = [], time.perf_counter()
    for number, batch in enumerate(batches):
        if number and number % stretch == 0:
            times.append(time.perf_counter() - begin)
            if sum(times[1:]) > SECONDS:
                break
            begin = time.perf_counter()
        yield batch
    print(1e6 * statistics.median(times[1:]) / stretch / scale, file=sys.__stdout__)


def train(tasks: int, *flags: str, stretch: int = 0) -> None:
    """The loop of main.py. Up to 100 tasks, a stretch has one validation."""
    stretch = stretch or min(main.VALIDATE_EVERY, 100_000 // tasks)
    endless = main.meta_batches
    main.meta_batches = lambda *args, **options: paced(endless(*args, **options), stretch)
    with contextlib.suppress(StopIteration):  # main.py doesn't expect its batches to end
        main.main(["--batch_size", str(tasks), *flags])


def fewer(tasks: int) -> int:
    """A stretch of at least a fifth of a second for the slow rows."""
    return max(1, 500 // tasks)


def loop(tasks: int) -> None:
    """Task by task, with the batches of this project."""
    meta.Meta.meta_gradient = lambda self, *batch: reference.loop(self.net.Param, *batch)
    train(tasks, stretch=fewer(tasks))


def original(tasks: int) -> None:
    """Task by task; a new DataLoader iterator for every batch shuffles the million tasks."""

    def batches(sinusoid, batch_size, *_, **__):
        def one_by_one(indices: list[int]) -> list[torch.Tensor]:
            batches = (sinusoid.batch([index]) for index in indices)
            return [torch.cat(points) for points in zip(*batches, strict=True)]

        loader = DataLoader(range(len(sinusoid)), batch_size, shuffle=True, collate_fn=one_by_one)
        return (next(iter(loader)) for _ in itertools.count())

    main.meta_batches = batches
    loop(tasks)


def functional(tasks: int, *flags: str) -> None:
    """`torch.func`, all tasks at once; compiled, too, it is compiled together with Adam."""
    meta.CHUNK = 10**6

    def gradient(self: meta.Meta, *batch: torch.Tensor) -> tuple:
        weights = {name: p.detach() for name, p in self.net.Param.items()}
        return reference.functional(weights, *batch)

    meta.Meta.meta_gradient = gradient
    train(tasks, *flags)


def scan(tasks: int) -> None:
    """As JAX's users write it: `jit` of a `scan` over iterations, with the data and Adam inside."""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries import optimizers

    jax.config.update("jax_enable_x64", True)
    length = max(10, 5_000 // tasks)
    init, update, get_weights = optimizers.adam(1e-3)

    def task_loss(weights, x, y):
        (w_1, b_1), (w_2, b_2), (w_3, b_3) = weights
        h = jax.nn.relu(jax.nn.relu(x @ w_1 + b_1) @ w_2 + b_2)
        return jnp.sqrt(jnp.sum((h @ w_3 + b_3 - y) ** 2))

    def adapted_loss(weights, x, y):
        gradients = jax.grad(task_loss)(weights, x[:10], y[:10])
        fast = jax.tree.map(lambda w, g: w - 1e-2 * g, weights, gradients)
        return task_loss(fast, x[10:], y[10:])

    def iteration(state, key):
        step, adam = state
        keys = jax.random.split(key, 3)
        amplitude = jax.random.uniform(keys[0], (tasks, 1, 1), minval=0.1, maxval=5.0)
        phase = jax.random.uniform(keys[1], (tasks, 1, 1), maxval=jnp.pi)
        x = jax.random.uniform(keys[2], (tasks, 25, 1), minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x + phase)

        def batch_loss(weights):
            return jax.vmap(adapted_loss, (None, 0, 0))(weights, x, y).sum()

        loss, gradients = jax.value_and_grad(batch_loss)(get_weights(adam))
        return (step + 1, update(step, gradients, adam)), loss / tasks

    @jax.jit
    def iterations(state, key):
        return jax.lax.scan(iteration, state, jax.random.split(key, length))

    keys = (jax.random.key(number) for number in itertools.count())
    draw = jax.nn.initializers.he_uniform(dtype=float)
    layers = ((1, 40), (40, 40), (40, 1))
    state = 0, init([(draw(next(keys), size), jnp.zeros(size[1])) for size in layers])
    for key in paced(keys, stretch=1, scale=length):
        state, losses = iterations(state, key)
        losses.tolist()


BASELINE = "loop over tasks, no shuffle"
ROWS: dict[str, tuple[Callable, tuple[str, ...], dict[str, str]]] = {
    "the original's loop, with its shuffle": (original, (), {}),
    BASELINE: (loop, (), {}),
    "`torch.func`": (functional, (), {}),
    "`torch.func`, compiled": (functional, ("--compile",), {}),
    "**this project**": (train, (), {}),
    "**`--compile`**": (train, ("--compile",), {}),
    "JAX, one thread": (scan, (), {"NPROC": "1"}),
    "JAX, its own choice of threads": (scan, (), {}),
}


def measure(row: str, tasks: int) -> float:
    """The µs of an iteration, from a process of its own in an empty folder."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", **ROWS[row][2]}
    environment.pop("OMP_NUM_THREADS", None)  # which main.py would follow
    command = [sys.executable, str(Path(__file__).resolve()), row, str(tasks)]
    with tempfile.TemporaryDirectory() as folder:
        options = {"cwd": folder, "env": environment, "capture_output": True, "text": True}
        process = subprocess.run(command, **options)
    if process.returncode != 0:
        sys.exit(f"{row}, {tasks} tasks: {process.stderr}")
    return float(process.stdout.split()[-1])


def benchmark() -> None:
    rows = [row for row in ROWS if "JAX" not in row or importlib.util.find_spec("jax")]
    times: dict[tuple[str, int], list[float]] = {}
    for tasks, _, row in itertools.product(TASKS, range(ROUNDS), rows):
        times.setdefault((row, tasks), []).append(measure(row, tasks))
    medians = {key: statistics.median(rounds) for key, rounds in times.items()}
    print("| µs |", *(f"{tasks:,} tasks |" for tasks in TASKS))
    print("|---" * (len(TASKS) + 1) + "|")
    for row in rows:
        cells = []
        for tasks in TASKS:
            ratio = medians[BASELINE, tasks] / medians[row, tasks]
            cells.append(f"{medians[row, tasks]:,.0f} ({ratio:.2g} ×)")
        print("|", " | ".join([row, *cells]), "|")
    print(f"\nPyTorch {torch.__version__}, {os.cpu_count()} cores")


if __name__ == "__main__":
    if sys.argv[1:]:
        with contextlib.redirect_stdout(sys.stderr):  # the standard output is for `paced`
            loop_of_row, flags, _ = ROWS[sys.argv[1]]
            loop_of_row(int(sys.argv[2]), *flags)
    else:
        benchmark()
