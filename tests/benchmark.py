"""How fast an iteration of training is, beside the alternatives: python3 tests/benchmark.py, about ten minutes.

Whole loops are timed, since a part alone finds its data in the caches and looks two to three times cheaper: main.py
itself, with validation and bar, also around the gradients of reference.py; and JAX, if there is one,
without these. Each measurement is a process of its own, less its start, JAX's with the threads that it likes (NPROC=1
holds it to one) and all others on one. Medians are printed.
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
import timeit
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))

import reference

import main

ROUNDS = {10: 5, 100: 3}  # for each number of tasks
STRETCH = main.VALIDATE_EVERY  # iterations from one look at the clock to the next: with one validation
SECONDS = 1.5  # a measurement ends with the first stretch after them


def paced(batches: Iterable, stretch: int, scale: int = 1, pause: Callable = lambda batch: None) -> Iterator:
    """Hand out `batches` and time the loop that takes them, by stretches of so many; the first isn't counted.

    Prints a line when the loop comes back from its first batch, then waits for one; and in the end the µs of an
    iteration, of which the loop makes `scale` from a batch. What `pause` does before a stretch isn't counted.
    """
    times, begin = [], time.perf_counter()
    for i, batch in enumerate(batches):
        if i == 1:
            print("started", file=sys.__stdout__, flush=True)
            sys.stdin.readline()
        if i and i % stretch == 0:
            times.append(time.perf_counter() - begin)
            if sum(times[1:]) > SECONDS:
                break
            pause(batch)
            begin = time.perf_counter()
        yield batch
    print(1e6 * statistics.median(times[1:]) / stretch / scale, file=sys.__stdout__)


def ours(tasks: int, *flags: str, **options) -> None:
    options, endless = {"stretch": STRETCH, **options}, main.meta_batches
    main.meta_batches = lambda *args, **kwargs: paced(endless(*args, **kwargs), **options)
    with contextlib.suppress(StopIteration):  # main.py doesn't expect its batches to end
        main.main(["--batch_size", str(tasks), *flags])


def eager(tasks: int) -> None:
    """Prints the µs of the meta-gradient alone, too: in a tight loop before each stretch."""
    meta, times, calls = main.Meta(), [], STRETCH // 10

    def alone(batch: tuple) -> None:  # with garbage collection, as in the loop
        times.append(timeit.timeit(lambda: meta.meta_gradient(*batch), "gc.enable()", number=calls))

    ours(tasks, pause=alone)
    print(1e6 * statistics.median(times) / calls, file=sys.__stdout__)


def functional(tasks: int) -> None:
    main.Meta.meta_gradient = torch.no_grad()(lambda meta, *batch: reference.functional(meta.net.Param, *batch))
    ours(tasks, stretch=STRETCH // 10)


def original(tasks: int) -> None:
    """Task by task, and for every meta-batch a new DataLoader iterator, which shuffles the million tasks."""

    def batches(sinusoid, batch_size, *_, **__):
        def one_by_one(indices: list[int]) -> list[torch.Tensor]:
            return [torch.cat(tensors) for tensors in zip(*(sinusoid.batch([i]) for i in indices), strict=True)]

        loader = DataLoader(range(len(sinusoid)), batch_size, shuffle=True, collate_fn=one_by_one)
        return (next(iter(loader)) for _ in itertools.count())

    main.meta_batches = batches
    main.Meta.meta_gradient = lambda meta, *batch: reference.loop(meta.net.Param, *batch)
    ours(tasks, stretch=max(1, 200 // tasks))


def scan(tasks: int) -> None:
    """As JAX's users write it: `jit` of a `scan` over 500 iterations, the drawing of the data and Adam inside."""
    import jax
    import jax.numpy as jnp
    from jax.example_libraries import optimizers

    jax.config.update("jax_enable_x64", True)
    length = 500
    init, update, get_weights = optimizers.adam(1e-3)

    def task_loss(weights, x, y):
        (w_1, b_1), (w_2, b_2), (w_3, b_3) = weights
        h = jax.nn.relu(jax.nn.relu(x @ w_1 + b_1) @ w_2 + b_2)
        return jnp.sqrt(jnp.sum((h @ w_3 + b_3 - y) ** 2))

    def adapted_loss(weights, x, y):
        gradients = jax.grad(task_loss)(weights, x[:10], y[:10])
        return task_loss(jax.tree.map(lambda w, g: w - 1e-2 * g, weights, gradients), x[10:], y[10:])

    def iteration(state, key):
        step, adam = state
        keys = jax.random.split(key, 3)
        amplitude = jax.random.uniform(keys[0], (tasks, 1, 1), minval=0.1, maxval=5.0)
        phase = jax.random.uniform(keys[1], (tasks, 1, 1), maxval=jnp.pi)
        x = jax.random.uniform(keys[2], (tasks, 25, 1), minval=-5.0, maxval=5.0)
        y = amplitude * jnp.sin(x + phase)
        losses = jax.vmap(adapted_loss, (None, 0, 0))
        loss, gradients = jax.value_and_grad(lambda weights: losses(weights, x, y).sum())(get_weights(adam))
        return (step + 1, update(step, gradients, adam)), loss / tasks

    iterations = jax.jit(lambda state, key: jax.lax.scan(iteration, state, jax.random.split(key, length)))
    keys = (jax.random.key(i) for i in itertools.count())
    draw = jax.nn.initializers.he_uniform(dtype=float)
    state = 0, init([(draw(next(keys), size), jnp.zeros(size[1])) for size in ((1, 40), (40, 40), (40, 1))])
    for key in paced(keys, stretch=1, scale=length):
        state, losses = iterations(state, key)
        losses.tolist()


ORIGINAL, EAGER, COMPILED, JAX = "the original's loop", "main.py", "main.py --compile", "JAX"
ROWS = {ORIGINAL: [original], "torch.func": [functional], EAGER: [eager], COMPILED: [ours, "--compile"], JAX: [scan]}


def measure(folder: str, row: str, tasks: int, copies: int = 1) -> list[float]:
    """The seconds until the first iteration is done, and what the row prints: means over `copies` run at once."""
    command, pipe = [sys.executable, Path(__file__).resolve(), row, str(tasks)], subprocess.PIPE
    with Path(folder, "log").open("w+") as log:
        options, begin = {"stdin": pipe, "stdout": pipe, "stderr": log, "text": True}, time.perf_counter()
        processes = [subprocess.Popen(command, cwd=tempfile.mkdtemp(dir=folder), **options) for _ in range(copies)]
        if not all([process.stdout.readline() for process in processes]):
            sys.exit(f"{row}, {tasks} tasks: {log.seek(0) or log.read()}")
        start = time.perf_counter() - begin
        for process in processes:
            print(file=process.stdin, flush=True)
        outputs = [map(float, process.communicate()[0].split()) for process in processes]
    return [start, *map(statistics.fmean, zip(*outputs, strict=True))]


def benchmark() -> None:
    rows, runs = [row for row in ROWS if row != JAX or importlib.util.find_spec("jax")], {}
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    os.environ.pop("OMP_NUM_THREADS", None)  # which main.py would follow
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder, "cache"))  # empty: cold
        for tasks, rounds in ROUNDS.items():
            for _, row in itertools.product(range(rounds), rows):
                runs.setdefault((row, tasks), []).append(measure(folder, row, tasks))
                if tasks == 10 and row in (EAGER, COMPILED):
                    runs.setdefault((row, "two"), []).append(measure(folder, row, tasks, copies=2))
    us = {key: statistics.median(numbers[1] for numbers in rounds) for key, rounds in runs.items()}

    print("| an iteration |", *(f"{tasks} tasks |" for tasks in ROUNDS), "two at once, 10 tasks | start: cold, again |")
    print("|---" * (len(ROUNDS) + 3) + "|")
    for row in rows:
        cells = [f"{us[ORIGINAL, n] / us[row, n]:.1f} × as fast, {us[row, n]:,.0f} µs" for n in ROUNDS]
        if JAX in rows:
            cells = [f"{cell}, {us[row, n] / us[JAX, n]:.2f} × JAX's" for cell, n in zip(cells, ROUNDS, strict=True)]
        if row in (EAGER, COMPILED):
            cells += [f"{us[row, 'two'] / us[row, 10]:.2f} × as long, {us[row, 'two']:,.0f} µs"]
            cells += [f"{runs[row, 10][0][0]:.1f} s, {runs[row, 10][-1][0]:.1f} s"]
        print("|", " | ".join([row, *cells, "", ""][: len(ROUNDS) + 3]), "|")
    alone = {n: statistics.median(numbers[2] for numbers in runs[EAGER, n]) for n in ROUNDS}
    cells = [f"{alone[n]:,.0f} µs, the whole {us[EAGER, n] / alone[n]:.2f} × that" for n in ROUNDS]
    print("| main.py's meta-gradient alone in a tight loop |", " | ".join(cells), "| | |\n")
    jax = "" if JAX in rows else "; no row for JAX, which can't be imported"
    print(f"PyTorch {torch.__version__}, {os.cpu_count()} cores{jax}")


if __name__ == "__main__":
    if sys.argv[1:]:
        with contextlib.redirect_stdout(sys.stderr):  # the standard output is for `paced`
            loop, *flags = ROWS[sys.argv[1]]
            loop(int(sys.argv[2]), *flags)
    else:
        benchmark()
