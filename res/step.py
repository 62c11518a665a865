"""What one step from θ does to the curve, measured with the included weights.

python3 res/step.py            draws res/follow.gif and res/half.png, measures (a few minutes on
                               two cores), and prints the tables
python3 res/step.py --write    also puts the numbers into res/step.csv and the tables into the pages

Numbers are means over test tasks, in float32, which takes half the time: MANY tasks for the
direction of the step, FEW for the best step size and for points in one half of the inputs, and
STEEP for the loss around θ and θ'. An MSE of 100 or more counts as 100.
"""

import argparse
import io
import itertools
import os
import sys
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["MPLBACKEND"] = "agg"  # draws to files; a notebook's may not be installed here

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image  # Pillow, which comes with Matplotlib
from torch import Tensor
from tqdm import tqdm

import main
from data import Sinusoid
from meta import Meta, chunks
from net import mse
from res import results, runs

CSV = Path(__file__).with_suffix(".csv")
MANY, FEW, STEEP = 10_000, 1_000, 50
ALPHAS = np.geomspace(1e-4, 0.2, 34)
STEPS = (0, 1, 5, 10)
FRAMES, START = 36, 31 / 36  # of the picture that moves, and where on its way it begins
MAML, PRETRAINED = "MAML, α = 0.01", "pretrained"
LEARNERS = results.PAPER_RUNS | {"√SSE": results.MAML}


class Left(Sinusoid):
    """Tasks whose points are in the left half of the inputs."""

    x_range = -5.0, 0.0


class Right(Sinusoid):
    """In the right half."""

    x_range = 0.0, 5.0


# The points of a test: their number, where they are, and which points of GRID are in that half.
HALVES = {
    f"{shots} in {words}": (shots, kind, side * main.GRID[:, 0] > 0)
    for shots in (5, 10)
    for words, kind, side in (("[−5, 0]", Left, -1), ("[0, 5]", Right, 1))
}


# Measuring ----------------------------------------------------------------------------------------


def load(learner: str, seed: int) -> Meta:
    return results.Measurement(LEARNERS[learner], seed, 10).learner()


def measure(job: tuple[str, int]) -> list[dict]:
    """The rows of a learner in step.csv."""
    torch.set_num_threads(1)
    (learner, seed), meta = job, load(*job).float()
    name, scores = {"learner": learner, "seed": seed}, {"points": "10"}
    if learner in (MAML, "√SSE"):
        scores |= overshoot(meta)
    if learner == "√SSE":
        return [name | scores]
    halves = [{"points": points, **half(meta, *test)} for points, test in HALVES.items()]
    scores |= {"cosine": cosine(meta), "best": best_alpha(meta)}
    return [name | row for row in (scores, *halves)]


def first_tasks(number: int, shots: int = 10, kind: type = Sinusoid) -> tuple[Tensor, ...]:
    """The first test tasks: k_x and k_y, (tasks, K, 1), and y on GRID, (tasks, 50, 1)."""
    tasks = kind(shots, 0, num_tasks=main.TEST_TASKS, seed=(main.TEST,))
    k_x, k_y, _, _ = tasks.batch(range(number))
    return k_x, k_y, tasks.target(range(number), main.GRID)


def curves(meta: Meta, k_x: Tensor, k_y: Tensor, steps: int) -> Tensor:
    """The predictions on GRID after 0 to `steps` steps: (steps + 1, tasks, 50, 1)."""
    parts = [main.predictions(meta, *points, steps) for points in chunks(k_x, k_y)]
    return torch.cat(parts, dim=1).double()


def cosine(meta: Meta) -> float:
    """Between the change that one step makes to the curve and the change that is needed."""
    k_x, k_y, y = first_tasks(MANY)
    before, after = curves(meta, k_x, k_y, 1)
    return torch.cosine_similarity(after - before, y - before, dim=1).mean().item()


def best_alpha(meta: Meta) -> float:
    """The MSE after one step if every task has the best of ALPHAS, by its whole curve."""
    (k_x, k_y, y), own, errors = first_tasks(FEW), meta.inner_lr, []
    for alpha in ALPHAS:
        meta.inner_lr = alpha
        errors.append(mse(curves(meta, k_x, k_y, 1)[1], y))
    meta.inner_lr = own
    return torch.stack(errors).amin(0).mean().item()


def half(meta: Meta, shots: int, kind: type, seen: Tensor) -> dict[str, float]:
    """The MSE of the half with all the points, and of the other."""
    k_x, k_y, y = first_tasks(FEW, shots, kind)
    pred, scores = curves(meta, k_x, k_y, max(STEPS)), {}
    for name, at in {"unseen": ~seen, "seen": seen}.items():
        for steps in STEPS:
            errors = mse(pred[steps][:, at], y[:, at]).nan_to_num(main.CAP)
            scores[f"{name}_{steps}"] = errors.clamp(max=main.CAP).mean().item()
    return scores


def overshoot(meta: Meta) -> dict[str, float]:
    """The support loss around θ and θ', and how many tasks the second step makes worse.

    On a quadratic a step multiplies the error along an eigenvector of the Hessian by 1 − α λ, so
    with α λ > 2 it grows. Worse is a task whose MSE on GRID is higher after the second step.
    """
    k_x, k_y, y = first_tasks(STEEP)
    _, first, second = (mse(pred, y) for pred in curves(meta, k_x, k_y, 2))
    k_x, k_y = k_x.float(), k_y.float()
    theta, fast = (runs.steepness(meta, k_x, k_y, w) for w in meta.adapt(k_x, k_y, 1))
    steep, worse = meta.inner_lr * fast[1] > 2, second > first
    counts = {"steep": steep, "steep_worse": steep & worse, "other_worse": ~steep & worse}
    return {name: tasks.sum().item() for name, tasks in counts.items()} | {
        "norm_theta": theta[0].mean().item(),
        "norm_fast": fast[0].mean().item(),
        "size_theta": meta.inner_lr * theta[1].mean().item(),
        "size_fast": meta.inner_lr * fast[1].mean().item(),
    }


# Tables -------------------------------------------------------------------------------------------


def tables(rows: list[dict]) -> dict[str, str]:
    """What stands in the pages, of the rows of step.csv."""
    each, median = results.each, results.median
    everywhere = results.chosen(rows, points="10")
    learners = {name: results.chosen(everywhere, learner=name) for name in LEARNERS}
    root = learners.pop("√SSE")
    direction = {"cosine": each("cosine", results.seeds_cell), "MSE with the best α": each("best")}

    halves = {
        f"{points}, {name}": results.chosen(rows, points=points, learner=name)
        for points in HALVES
        for name in learners
    }
    columns = {
        f"{name}, {steps}": each(f"{name}_{steps}", median(2))
        for name in ("unseen", "seen")
        for steps in STEPS
    }
    losses = {"√SSE, seed 0": root[:1], "√SSE, seeds 1 to 9": root[1:], "MSE": learners[MAML]}
    return {
        "direction": results.groups_table(learners, direction),
        "halves": results.groups_table(halves, columns),
        "overshoot": results.groups_table(losses, OVERSHOOT),
    }


def both(score: str) -> results.Column:
    """The medians of a score at θ and at θ'."""
    theta, fast = (results.each(f"{score}_{at}", results.median(1)) for at in ("theta", "fast"))
    return lambda rows: f"{theta(rows)} → {fast(rows)}"


def share(count: str, of: Callable[[dict], float]) -> results.Column:
    """The number of tasks, of all seeds together."""
    return lambda rows: f"{sum(row[count] for row in rows):g} of {sum(map(of, rows)):g}"


OVERSHOOT = {
    "norm of the gradient, θ → θ'": both("norm"),
    "α λ, θ → θ'": both("size"),
    "tasks with α λ > 2 at θ'": share("steep", lambda row: STEEP),
    "worse after the second step": share("steep_worse", lambda row: row["steep"]),
    "worse, of the other tasks": share("other_worse", lambda row: STEEP - row["steep"]),
}


# Pictures -----------------------------------------------------------------------------------------


def draw_halves(path: Path) -> None:
    """The drawn task of the other pictures, with all its points in one half of the inputs."""
    figure = Figure(figsize=(8.3, 7), dpi=150, layout="constrained")
    panels = iter(figure.subplots(2, 2, sharex=True, sharey=True).flat)
    points_in_a_half = [points for points in HALVES if points.startswith("10")]
    for points, name in itertools.product(points_in_a_half, (MAML, PRETRAINED)):
        (shots, kind, seen), axes = HALVES[points], next(panels)
        tasks = kind(shots, 0, num_tasks=1, seed=(main.DRAWN, 0))
        k_x, k_y, _, _ = tasks.batch([0])
        y = tasks.target([0], main.GRID)  # (1, 50, 1)
        pred = main.predictions(load(name, 0), k_x, k_y, 10)  # (11, 1, 50, 1)
        draw_curves(axes, name, y[0], pred[:, 0], [k_x[0], k_y[0]])
        axes.plot(main.GRID, pred[10, 0], "--", color=results.COLORS[name], label="after ten steps")
        axes.axvspan(*kind.x_range, color="0.95")
        errors = [mse(pred[steps][:, ~seen], y[:, ~seen]).item() for steps in (0, 1, 10)]
        words = " → ".join(f"{error:.2f}" for error in errors)
        axes.set_title(f"{name}, unseen half:\nMSE {words}", color=results.COLORS[name])
        axes.set(xlabel="x", ylabel="y")
        axes.label_outer()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    main.write(path, figure.savefig)


def draw_curves(axes: Axes, name: str, y: Tensor, pred: Tensor, points: list[Tensor]) -> None:
    """A curve, the points, and a learner's curve before and after one step."""
    axes.plot(main.GRID, y, color="0.75", linewidth=6, label="the curve")
    axes.plot(main.GRID, pred[0], "k:", linewidth=2, label="before the step, at θ")
    axes.plot(main.GRID, pred[1], color=results.COLORS[name], linewidth=3, label="after one step")
    axes.plot(*points, "k^", markersize=7, label="the ten points")
    axes.set(ylim=(-6.5, 6.5), xticks=(-5, 0, 5), yticks=(-5, 0, 5))


def draw_follow(path: Path) -> None:
    """A curve that moves once around, and networks that follow it in one step from the same θ."""
    angle = 2 * np.pi * (np.arange(FRAMES) / FRAMES + START)
    phase, amplitude = np.pi * (1 - np.cos(angle)) / 2, 3 + 2 * np.cos(angle + np.pi / 4)
    curve = Sinusoid(10, num_tasks=FRAMES)
    curve.phase, curve.amplitude = phase.reshape(-1, 1, 1), amplitude.reshape(-1, 1, 1)
    k_x = torch.from_numpy(np.random.default_rng(0).uniform(-5, 5, (10, 1)))
    k_y, y = (curve.target(range(FRAMES), x) for x in (k_x, main.GRID))  # (frames, 10 or 50, 1)
    k_x = k_x.expand(FRAMES, -1, -1)
    pred = {name: main.predictions(load(name, 0), k_x, k_y, 1) for name in (MAML, PRETRAINED)}

    frames = []
    for i in range(FRAMES):
        figure = Figure(figsize=(7.2, 4), dpi=100, layout="constrained")
        for axes, name in zip(figure.subplots(1, 2, sharey=True), pred, strict=True):
            draw_curves(axes, name, y[i], pred[name][:, i], [k_x[i], k_y[i]])
            before, after = mse(pred[name][:, i], y[[i, i]])
            title = f"{name.split(',')[0]}, one step:\nMSE {before:.1f} → {after:.1f}"
            axes.set_title(title, color=results.COLORS[name])
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture)
        frames.append(Image.open(picture).convert("RGB"))
    palette = frames[0].quantize(32)  # one for all frames: a third of the bytes
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    options = {"save_all": True, "append_images": frames[1:], "duration": 200, "loop": 0}
    main.write(path, lambda file: frames[0].save(file, "GIF", **options))


def command() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="also write step.csv and the pages")
    args = parser.parse_args()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # pictures are the same, whatever the user's settings
        draw_halves(results.ROOT / "res/half.png")
        matplotlib.rcParams["font.size"] = 16
        draw_follow(results.ROOT / "res/follow.gif")
    todo = list(itertools.product(LEARNERS, results.SEEDS))
    with Pool(os.cpu_count(), runs.ignore_interrupts) as pool:
        found = list(tqdm(pool.imap(measure, todo), total=len(todo)))
    rows = list(itertools.chain.from_iterable(found))
    if args.write:
        results.write_rows(CSV, rows)
        results.fill(tables(rows), "step.py")
    for name, table in tables(rows).items():
        print(f"\n{name}\n{table}")


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has Greek letters
    command()
