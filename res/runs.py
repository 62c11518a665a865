"""The runs whose weights are not included: trains those that res/runs.csv does not have yet.

python3 res/runs.py    about a minute a run on a core; stop it and start it as you like

Each run is a row of res/runs.csv. Its first columns are the settings of `Run`; then come the lowest
validation loss and, for the weights kept, scores on the test tasks after 1, 2, 5 and 10 steps: the
mean MSE with the cap, the MSE of the median task, and how many tasks are capped. The last columns:

- near_paper: the share of 300 draws of 600 test tasks whose plain means are within 10 % of all
  three numbers of the paper's Table 2, with the start of its authors' code
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
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["MPLBACKEND"] = "agg"  # draws to files; a notebook's may not be installed here

import torch
from torch import Tensor, nn
from tqdm import tqdm

import main
from data import Sinusoid, meta_batches
from meta import Meta
from net import LOSSES, Net

CSV = Path(__file__).with_suffix(".csv")
TABLE_2 = {1: 0.67, 5: 0.38, 10: 0.35}  # the paper's MSE for K = 5, by gradient steps
GRADIENTS = ("exact", "first-order")
ALPHAS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
TASKS = 20


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
    kept: str = "best"  # weights: by validation, or the last
    test_shots: int = 10
    weights: str = "compiled"  # trained here with --compile, or "included"


def runs() -> list[Run]:
    """All runs, in the order of the file."""
    authors = ("mse", 25, 10, "truncated normal", "last", 5)
    paper = ("mse", 25, 15, "Net", "best", 10)
    included = {("exact", 0.01), ("exact", 0.001), ("first-order", 0.01)}
    every = [
        Run(seed, seed, gradient, alpha, *authors)
        for alpha, gradient, seed in itertools.product((0.001, 0.01), GRADIENTS, range(10))
    ]
    for alpha, gradient, seed in itertools.product(ALPHAS, GRADIENTS, range(5)):
        weights = "included" if (gradient, alpha) in included else "compiled"
        every.append(Run(seed, seed, gradient, alpha, *paper, weights))
    for seed, gradient in itertools.product(range(50), GRADIENTS):
        every.append(Run(seed, seed, gradient, weights="included" if seed < 10 else "compiled"))
    return every + [Run(*run) for run in itertools.product((0, 5, 7), range(10), GRADIENTS)]


def train(run: Run) -> tuple[Meta, float]:
    """The learner with the weights kept, and its lowest validation loss."""
    torch.manual_seed(run.weights_seed)
    net, first_order = Net(), run.gradient == "first-order"
    meta = Meta(net, LOSSES[run.loss], run.inner_lr, first_order=first_order)
    if run.weights == "included":
        words = f"--seed {run.weights_seed} --loss {run.loss} --batch_size {run.batch_size} "
        words += f"--inner_lr {run.inner_lr}" + " --first_order" * first_order
        args = main.parse(words.split())
        meta = main.load(main.weights_file(args), args, "cpu")
        return meta, main.validate(meta, 10, "cpu")
    if run.start == "truncated normal":
        for name, p in net.named_parameters():
            nn.init.zeros_(p) if name[0] == "b" else nn.init.trunc_normal_(p, 0, 0.01, -0.02, 0.02)
    tasks = Sinusoid(10, run.q_query, seed=(main.TRAIN, run.tasks_seed))
    meta.compile(*tasks.batch(range(run.batch_size)))
    batches, lowest = meta_batches(tasks, run.batch_size), float("inf")
    for iteration in range(1, main.SETTINGS["epochs"] + 1):
        meta(*next(batches))
        if iteration % main.VALIDATE_EVERY == 0:
            validation = main.validate(meta, 10, "cpu")
            if validation < lowest:
                lowest, best = validation, main.snapshot(net)
    if run.kept == "best":
        net.load_state_dict(best)
    return meta, lowest


def measure(run: Run) -> dict[str, float]:
    """The row of a run, without its settings."""
    torch.set_num_threads(1)
    meta, lowest = train(run)
    row = {"validation_loss": lowest}
    gradient_norm, curvature = around_theta(meta)
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        sse = main.evaluate(meta.float(), run.test_shots)  # in half the time
    for name, values in main.summarize(sse).items():
        if name in ("mse", "median", "capped"):
            row |= {f"{name}_{steps}": values[steps].item() for steps in (1, 2, 5, 10)}
    row["near_paper"] = near_paper(sse / len(main.GRID)) if run.start != "Net" else ""
    return row | {"gradient_norm": gradient_norm, "curvature": curvature}


def near_paper(mse: Tensor) -> float:
    """The share of 300 draws of 600 tasks within 10 % of Table 2, of MSEs (11, tasks)."""
    paper, generator = torch.tensor(list(TABLE_2.values())), torch.Generator().manual_seed(0)
    draws = [torch.randperm(mse.shape[1], generator=generator)[:600] for _ in range(300)]
    means = torch.stack([mse[list(TABLE_2)][:, tasks].mean(1) for tasks in draws])
    return ((means - paper).abs() <= 0.1 * paper).all(1).double().mean().item()


def around_theta(meta: Meta) -> tuple[float, float]:
    """The norm of the support gradient at θ, and the largest eigenvalue of H by power iteration."""
    k_x, k_y, _, _ = Sinusoid(10, seed=(main.VALIDATION,)).batch(range(TASKS))
    theta = meta.net.expand(TASKS)
    weights = list(theta.values())
    loss = meta.task_losses(k_x, k_y, theta).sum()
    gradient = torch.autograd.grad(loss, weights, create_graph=True)

    def norms(tensors: tuple[Tensor, ...]) -> Tensor:  # (tasks,)
        return torch.cat([part.flatten(1) for part in tensors], dim=1).norm(dim=1)

    v = [part.detach() for part in gradient]
    for _ in range(100):
        v = [part / norms(v).reshape(-1, *[1] * (part.dim() - 1)) for part in v]
        before, v = v, torch.autograd.grad(gradient, weights, v, retain_graph=True)  # H v
    rayleigh = sum((one * other).sum() for one, other in zip(before, v, strict=True)) / TASKS
    return norms(gradient).mean().item(), rayleigh.item()


def command() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = {}
    if CSV.exists():
        with CSV.open(newline="", encoding="utf-8") as file:
            rows = {tuple(row[name] for name in Run._fields): row for row in csv.DictReader(file)}
    todo = [run for run in runs() if tuple(map(str, run)) not in rows]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        futures = {pool.submit(measure, run): run for run in todo}
        for future in tqdm(as_completed(futures), total=len(todo), unit="run"):
            run, row = futures[future], future.result()
            numbers = {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()}
            rows[tuple(map(str, run))] = {**run._asdict(), **numbers}
            write(rows)


def write(rows: dict[tuple, dict]) -> None:
    names = list(max(rows.values(), key=len))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for run in runs():
        if (key := tuple(map(str, run))) in rows:
            writer.writerow(rows[key])
    main.write(CSV, lambda file: file.write(text.getvalue().encode()))


if __name__ == "__main__":
    command()
