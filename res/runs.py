"""The runs whose weights are not included: trains those that res/runs.csv does not have yet.

python3 res/runs.py    two to five minutes a run on a core; stop it and start it as you like: what
                       is done stays, and runs that have begun are trained again

A run is the settings of `Run`. Each row of res/runs.csv is a run and the weights that were kept of
it: the "best" by validation, the best of its first 70,000 iterations, or the "last". Then come
their scores:

- validation_loss: the lowest so far
- mse_1 to capped_10: on the test tasks after 1, 2, 5 and 10 steps the mean MSE with the cap, the
  MSE of the median task, and how many tasks are capped
- draw_1, draw_5, draw_10, near_paper: the test of the authors' code, drawn 300 times; the median
  draw after 1, 5 and 10 steps, and the share of draws within 10 % of all three numbers of the
  paper's Table 2
- gradient_norm, curvature: the norm of the support gradient at θ, and the eigenvalue of its
  Hessian that is largest in magnitude; means over TASKS tasks

Runs of "included" weights are measured, not trained. 60 runs were only validated.
"""

import argparse
import contextlib
import csv
import io
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["MPLBACKEND"] = "agg"  # draws to files; a notebook's may not be installed here

import torch
from torch import Tensor, nn
from tqdm import tqdm

import main
from data import Sinusoid, meta_batches
from meta import Meta, chunks
from net import LOSSES, Fast, Net, mse

CSV = Path(__file__).with_suffix(".csv")
TABLE_2 = {1: 0.67, 5: 0.38, 10: 0.35}  # the paper's MSE for K = 5, by gradient steps
STARTS, GRADIENTS = ("truncated normal", "Net"), ("exact", "first-order")
ALPHAS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
TASKS = 20
EPOCHS = main.SETTINGS["epochs"]
BEST, EARLIER, LAST = "best", f"best of {EPOCHS}", "last"  # the weights kept


class Run(NamedTuple):
    """What sets a run apart; the defaults are those of main.py. All train on K = 10."""

    weights_seed: int
    tasks_seed: int
    gradient: str
    inner_lr: float = 0.01
    loss: str = "rsse"
    batch_size: int = 10
    q_query: int = 15
    start: str = "Net"  # or the truncated normal of the authors' code
    test_shots: int = 10
    weights: str = "compiled"  # trained here with --compile, or "included"
    inner_steps: int = 1
    epochs: int = EPOCHS


Row = tuple[Run, str]  # a run and the weights kept
SCORES = ["validation_loss"]
SCORES += [f"{name}_{n}" for name in ("mse", "median", "capped") for n in (1, 2, 5, 10)]
SCORES += [*(f"draw_{n}" for n in TABLE_2), "near_paper", "gradient_norm", "curvature"]
COLUMNS = [*Run._fields, "kept", *SCORES]


def runs() -> dict[Run, list[str]]:
    """All runs, in the order of the file, and the weights that are kept of each."""
    authors = {"loss": "mse", "batch_size": 25, "q_query": 10, "test_shots": 5}
    paper = {"loss": "mse", "batch_size": 25}
    included = {("exact", 0.01), ("exact", 0.001), ("first-order", 0.01)}

    every = {}
    for seed, *cell in itertools.product(range(10), STARTS, (0.001, 0.01), GRADIENTS):
        start, alpha, gradient = cell
        every[Run(seed, seed, gradient, alpha, start=start, **authors)] = [LAST, BEST]
    for seed in range(10):
        every[Run(seed, seed, "first-order", epochs=104_000)] = [EARLIER, BEST]
    for seed, alpha, gradient in itertools.product(range(10), ALPHAS, GRADIENTS):
        if seed < 5 or 0.001 <= alpha <= 0.03:
            weights = "included" if (gradient, alpha) in included else "compiled"
            every[Run(seed, seed, gradient, alpha, weights=weights, **paper)] = [BEST]
    for seed in range(10):
        every[Run(seed, seed, "exact", weights="included", inner_steps=2, **paper)] = [BEST]
    for (steps, alpha), seed in itertools.product(((2, 0.001), (5, 0.01), (3, 0.01)), range(5)):
        every[Run(seed, seed, "exact", alpha, inner_steps=steps, **paper)] = [BEST]
    for seed, gradient in itertools.product(range(50), GRADIENTS):
        every[Run(seed, seed, gradient, weights="included" if seed < 10 else "compiled")] = [BEST]
    for seed, tasks_seed, gradient in itertools.product((0, 5, 7), range(10), GRADIENTS):
        every[Run(seed, tasks_seed, gradient)] = [BEST]
    return every


# Training and measuring ---------------------------------------------------------------------------


def train(run: Run) -> Iterator[tuple[str, float, Meta]]:
    """The weights kept: their name, the lowest validation loss so far, and a learner with them."""
    torch.manual_seed(run.weights_seed)
    net, first_order = Net(), run.gradient == "first-order"
    meta = Meta(net, LOSSES[run.loss], run.inner_lr, 0.001, run.inner_steps, first_order)
    if run.start == "truncated normal":
        for name, p in net.named_parameters():
            nn.init.zeros_(p) if name[0] == "b" else nn.init.trunc_normal_(p, 0, 0.01, -0.02, 0.02)
    tasks = Sinusoid(10, run.q_query, seed=(main.TRAIN, run.tasks_seed))
    meta.compile_gradient(*tasks.batch(range(run.batch_size)))
    batches, lowest, best = meta_batches(tasks, run.batch_size), float("inf"), main.snapshot(net)
    for iteration in range(1, run.epochs + 1):
        meta(*next(batches))
        if iteration % main.VALIDATE_EVERY == 0:
            validation = main.validate(meta, 10, "cpu")
            if validation < lowest:
                lowest, best = validation, main.snapshot(net)
        if iteration in (EPOCHS, run.epochs):
            last = main.snapshot(net)
            net.load_state_dict(best)
            yield (BEST if iteration == run.epochs else EARLIER), lowest, meta
            net.load_state_dict(last)
    yield LAST, lowest, meta


def load(run: Run) -> tuple[str, float, Meta]:
    """The same for weights that are included."""
    words = f"--seed {run.weights_seed} --loss {run.loss} --batch_size {run.batch_size} "
    words += f"--inner_lr {run.inner_lr} --inner_steps {run.inner_steps}"
    args = main.parse((words + " --first_order" * (run.gradient == "first-order")).split())
    meta = main.load(CSV.parent.parent / main.weights_file(args), args, "cpu")
    return BEST, main.validate(meta, 10, "cpu"), meta


def measure(run: Run) -> dict[Row, dict[str, float]]:
    """The rows of a run."""
    torch.set_num_threads(1)
    rows, kept = {}, runs()[run]
    for name, lowest, meta in [load(run)] if run.weights == "included" else train(run):
        if name in kept:
            rows[run, name] = {"validation_loss": lowest, **scores(meta, run.test_shots)}
    return rows


def scores(meta: Meta, shots: int) -> dict[str, float]:
    row = {}
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        summary = main.summarize(main.evaluate(meta, shots))
    for name in ("mse", "median", "capped"):
        row |= {f"{name}_{n}": summary[name][n].item() for n in (1, 2, 5, 10)}
    if shots == 5:
        row |= test_of_the_authors(meta)
    k_x, k_y, _, _ = Sinusoid(10, seed=(main.VALIDATION,)).batch(range(TASKS))
    norms, curvatures = steepness(meta, k_x, k_y, meta.net.expand(TASKS))
    return row | {"gradient_norm": norms.mean().item(), "curvature": curvatures.mean().item()}


@torch.no_grad()
def test_of_the_authors(meta: Meta) -> dict[str, float]:
    """The test of the code of the paper's authors, with 300 draws of its 600 tasks.

    A task has five random support points and five random query points. Its error is its MSE on the
    query points, and the error of a test is the plain mean of 600 tasks. A draw is near the paper
    if it is within 10 % of all three numbers of Table 2.
    """
    batch = Sinusoid(5, 5, num_tasks=10_000).batch(range(10_000))
    errors = torch.cat([query_errors(meta, *chunk) for chunk in chunks(*batch)], dim=1)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randperm(10_000, generator=generator)[:600] for _ in range(300)]
    means = torch.stack([errors[:, tasks].mean(1) for tasks in draws])  # (300, 3)
    paper = torch.tensor(list(TABLE_2.values()))
    near = ((means - paper).abs() <= 0.1 * paper).all(1).double().mean()
    medians = means.nan_to_num(torch.inf, posinf=torch.inf).median(dim=0).values
    named = zip(TABLE_2, medians.tolist(), strict=True)
    return {f"draw_{n}": median for n, median in named} | {"near_paper": near.item()}


def query_errors(meta: Meta, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> Tensor:
    """The MSE of every task on its query points, after the steps of the paper's Table 2."""
    fast = meta.adapt(k_x, k_y, max(TABLE_2))
    return torch.stack([mse(meta.net(q_x, fast[steps]), q_y) for steps in TABLE_2])  # (3, tasks)


def steepness(meta: Meta, k_x: Tensor, k_y: Tensor, weights: Fast) -> tuple[Tensor, Tensor]:
    """The support loss around the weights of every task: two (tasks,).

    They are the norm of its gradient, and the eigenvalue of its Hessian H that is largest in
    magnitude, by power iteration.
    """
    weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
    at, loss = list(weights.values()), meta.task_losses(k_x, k_y, weights).sum()
    gradient = torch.autograd.grad(loss, at, create_graph=True)

    def norms(tensors: tuple[Tensor, ...]) -> Tensor:  # (tasks,)
        return torch.cat([part.flatten(1) for part in tensors], dim=1).norm(dim=1)

    v = [part.detach() for part in gradient]
    for _ in range(100):
        size = norms(v)
        v = [part / size.reshape(-1, *[1] * (part.dim() - 1)) for part in v]
        before, v = v, torch.autograd.grad(gradient, at, v, retain_graph=True)  # H v
    pairs = zip(before, v, strict=True)
    return norms(gradient).detach(), sum((one * other).flatten(1).sum(1) for one, other in pairs)


# The file -----------------------------------------------------------------------------------------


def read() -> dict[Row, dict[str, str]]:
    """The rows of the file. Raises a `ValueError` if it has other columns."""
    if not CSV.exists():
        return {}
    with CSV.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{CSV} does not have these columns: {', '.join(COLUMNS)}")
        return {(setting(row), row["kept"]): {name: row[name] for name in SCORES} for row in reader}


def setting(row: dict[str, str]) -> Run:
    """The run of a row: 1E-03 is 0.001."""
    return Run(*(kind(row[name]) for name, kind in Run.__annotations__.items()))


def write(rows: dict[Row, dict]) -> None:
    """In the order of `runs`; rows that are not of these come last."""
    order = {(run, kept): None for run, names in runs().items() for kept in names} | rows
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run, kept in order:
        if (run, kept) in rows:
            row = rows[run, kept]
            numbers = {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}
            writer.writerow({**run._asdict(), "kept": kept, **numbers})
    main.write(CSV, lambda file: file.write(text.getvalue().encode()))


def ignore_interrupts() -> None:
    """Ctrl-C reaches the command alone, which ends its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def command() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    try:
        rows = read()
    except ValueError as error:
        parser.exit(2, f"runs.py: {error}\n")
    todo = [run for run, names in runs().items() if not all((run, name) in rows for name in names)]
    with Pool(os.cpu_count(), ignore_interrupts) as pool:  # at its end, whatever runs is stopped
        for done in tqdm(pool.imap_unordered(measure, todo), total=len(todo), unit="run"):
            rows |= done
            write(rows)


if __name__ == "__main__":
    command()
