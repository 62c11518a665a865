"""Measures all included weights, and makes the tables and pictures of the pages from the numbers.

python3 res/results.py            measures (two minutes on two cores) and prints the tables
python3 res/results.py --check    compares what it measures with res/results.csv
python3 res/results.py --write    puts the numbers into res/results.csv and res/plateau.csv, the
                                  tables into the pages, and draws seeds.png and plateau.png

Measurements are those of `main.py --test`, but in float32, which takes half the time and changes no
score by 0.0005. res/stuck.csv is only read: res/stuck.py makes it.
"""

import argparse
import contextlib
import csv
import io
import itertools
import os
import re
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["MPLBACKEND"] = "agg"  # draws to files; a notebook's may not be installed here

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from tqdm import tqdm

import main
from data import Sinusoid, meta_batches
from res import stuck

ROOT = Path(main.__file__).parent
RESULTS, PLATEAU, STUCK = ROOT / "res/results.csv", ROOT / "res/plateau.csv", stuck.CSV
PAGES = [ROOT / "README.md", ROOT / "res/README.md"]

MAML, FOMAML, PRETRAINED = "", "--first_order", "--inner_steps 0"
PAPER = "--batch_size 25 --loss mse"  # the objective of the paper
PAPER_FOMAML, PAPER_PRETRAINED = f"{PAPER} --first_order", f"{PAPER} --inner_steps 0"
TWO_STEPS, PAPER_SMALL = f"{PAPER} --inner_steps 2", f"{PAPER} --inner_lr 0.001"
ORIGINAL = "--test --weights 'weights/original(k=10).pt'"

# Seeds, and numbers of support points in the test, in the order of results.csv.
SEEDS = range(10)
EXPERIMENTS = {
    MAML: (SEEDS, [10]),
    FOMAML: (SEEDS, [10]),
    PAPER: (SEEDS, [5, 10, 20]),
    PAPER_FOMAML: (SEEDS, [5, 10, 20]),
    TWO_STEPS: (SEEDS, [5, 10, 20]),
    PRETRAINED: ([0], [10]),
    ORIGINAL: ([0], [10]),
    "--k_shot 5": ([0], [5]),
    "--k_shot 5 --inner_steps 0": ([0], [5]),
    "--k_shot 5 --test --weights 'weights/original(k=5).pt'": ([0], [5]),
    PAPER_PRETRAINED: ([0], [5, 10, 20]),
    PAPER_SMALL: (SEEDS, [5, 10, 20]),
}
TABLE_2 = {1: 0.67, 5: 0.38, 10: 0.35}  # the paper's MSE for K = 5, by gradient steps
ON_10, ON_5 = "trained with √SSE, tested on 10 points", "trained with MSE, tested on 5 points"
GRADIENTS = {"first-order": FOMAML, "exact": MAML}
COLORS = {"first-order": "#E69F00", "exact": "#0072B2"}


# Measuring ----------------------------------------------------------------------------------------


class Measurement(NamedTuple):
    """A file of weights, by the flags of its run, and the number of support points in the test."""

    flags: str
    seed: int
    shots: int

    def args(self) -> argparse.Namespace:
        return main.parse(shlex.split(f"{self.flags} --seed {self.seed}"))

    def file(self) -> Path:
        args = self.args()
        return args.weights or main.weights_file(args)


def measurements() -> list[Measurement]:
    """All that the pages show."""
    return [
        Measurement(flags, seed, shots)
        for flags, (seeds, every_k) in EXPERIMENTS.items()
        for seed, shots in itertools.product(seeds, every_k)
    ]


def task_errors(measurement: Measurement) -> torch.Tensor:
    """The summed squared error of every test task: (11, 10000)."""
    meta = main.load(ROOT / measurement.file(), measurement.args(), "cpu").float()
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        return main.evaluate(meta, measurement.shots)


def measure(measurement: Measurement) -> list[dict]:
    """A row of the results for each number of gradient steps."""
    torch.set_num_threads(1)
    sse = task_errors(measurement)
    mse = sse / len(main.GRID)
    summary = main.summarize(sse)
    summary["mse_of_uncapped"] = mse.where(mse < main.CAP, torch.nan).nanmean(1)
    flags, seed, shots = measurement
    rows = []
    for steps in range(main.MAX_STEPS + 1):
        numbers = {name: values[steps].item() for name, values in summary.items()}
        rows.append({"flags": flags, "seed": seed, "K": shots, "steps": steps, **numbers})
    return rows


def measure_plateau() -> list[dict]:
    """The rows of plateau.csv: each failed run goes on, with a new Adam and either gradient."""
    torch.set_num_threads(1)
    rows = []
    for seed, (gradient, flags) in itertools.product((5, 7), GRADIENTS.items()):
        failed, args = Measurement(FOMAML, seed, 10).file(), Measurement(flags, seed, 10).args()
        meta = main.load(ROOT / failed, args, "cpu")
        batches = meta_batches(Sinusoid(10, seed=(main.TRAIN, seed)), 10, start=args.epochs)
        for end in range(500, 4_001, 500):
            loss = np.mean([meta(*next(batches)) for _ in range(500)])
            rows.append({"seed": seed, "gradient": gradient, "iteration": end, "loss": loss})
    return rows


def small_tests(measurement: Measurement) -> dict[int, list[float]]:
    """What tests on 600 tasks, as in the paper's code, would say: quantiles, by gradient steps."""
    mse = task_errors(measurement)[list(TABLE_2)] / len(main.GRID)
    mse = torch.fmin(mse, torch.tensor(main.CAP))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randperm(mse.shape[1], generator=generator)[:600] for _ in range(300)]
    means = torch.stack([mse[:, tasks].mean(1) for tasks in drawn])
    quantiles = np.quantile(means, (0.05, 0.5, 0.95), axis=0)
    return dict(zip(TABLE_2, quantiles.T.tolist(), strict=True))


def write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {key: f"{x:.6g}" for key, x in row.items() if isinstance(x, float)}
            writer.writerow({**row, **numbers})


# Tables -------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict]:
    """The rows of a file, their numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {key: float(row[key]) for key in row.keys() - {"flags", "gradient"}}
    return rows


def scores(rows: list[dict], flags: str, shots: int, name: str = "mse") -> np.ndarray:
    """One column of results.csv, by gradient steps and seed: (11, seeds)."""
    chosen = [row[name] for row in rows if (row["flags"], row["K"]) == (flags, shots)]
    return np.reshape(chosen, (-1, main.MAX_STEPS + 1)).T


def capped(rows: list[dict], flags: str) -> np.ndarray:
    """For each seed the number of capped tasks, of the worst step and K."""
    counts = [scores(rows, flags, shots, "capped") for shots in EXPERIMENTS[flags][1]]
    return np.max(counts, axis=(0, 1)).astype(int)


def markdown(header: list[str], *lines: list[str]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def counted(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def score_cell(rows: list[dict], flags: str, shots: int, steps: int, name: str = "mse") -> str:
    """The median of ten seeds with the lowest and the highest, or one seed with its ±."""
    seeds = scores(rows, flags, shots, name)[steps]
    if len(seeds) == 1:
        return f"{seeds[0]:.2f} ± {scores(rows, flags, shots, f'{name}_ci')[steps, 0]:.2f}"
    return f"{np.median(seeds):.2f} ({seeds.min():.2f} to {seeds.max():.2f})"


def median_cell(rows: list[dict], flags: str, shots: int) -> str:
    """The MSE of the median task, the median of the seeds, after 1, 5 and 10 steps."""
    medians = np.median(scores(rows, flags, shots, "median"), axis=1)
    return " / ".join(f"{medians[steps]:.2f}" for steps in TABLE_2)


def capped_cell(rows: list[dict], flags: str) -> str:
    """The number of capped tasks of the worst of ten seeds, which is named if no other has any."""
    counts = capped(rows, flags)
    is_alone = len(counts) == 10 and np.count_nonzero(counts) == 1
    return f"{counts.max()} (seed {counts.argmax()} only)" if is_alone else f"{counts.max()}"


def job_table(rows: list[dict]) -> str:
    """The original's job."""
    columns = {
        "[the original's weights](res/README.md#the-weights-of-the-original)": ORIGINAL,
        "[**exact gradient**](res/README.md#maml)": MAML,
        "[first-order](res/README.md#first-order)": FOMAML,
        "[pretrained](res/README.md#pretrained)": PRETRAINED,
    }
    runs, lines = columns.values(), []
    for name, unit, steps in (("rsse", "√SSE", 1), *(("mse", "MSE", n) for n in (1, 2, 5, 10))):
        cells = [score_cell(rows, flags, 10, steps, name) for flags in runs]
        lines.append([f"{unit}, {counted(steps)}", *cells])
    lines.append([f"MSE ≥ {main.CAP:g}", *(capped_cell(rows, flags) for flags in runs)])
    return markdown(["K = 10", *columns], *lines)


def paper_table(rows: list[dict]) -> str:
    """The paper's Table 2, and its "varying numbers of K"; for each K also the median task."""
    columns = {
        "[1 inner step](res/README.md#the-objective-of-the-paper)": PAPER,
        "[α = 0.001](res/README.md#the-step-size-of-the-authors-code)": PAPER_SMALL,
        "[first-order](res/README.md#first-order-with-the-objective-of-the-paper)": PAPER_FOMAML,
        "[2 inner steps](res/README.md#two-inner-steps)": TWO_STEPS,
        "[pretrained](res/README.md#pretrained-with-the-objective-of-the-paper)": PAPER_PRETRAINED,
    }
    runs, lines = columns.values(), []
    for shots in (5, 10, 20):
        for steps, paper in TABLE_2.items():
            cells = [score_cell(rows, flags, shots, steps) for flags in runs]
            lines.append([f"{shots}, {steps}", f"*{paper}*" if shots == 5 else "", *cells])
        cells = [median_cell(rows, flags, shots) for flags in runs]
        lines.append([f"{shots}, median task after 1 / 5 / 10", "", *cells])
    lines.append([f"MSE ≥ {main.CAP:g}", "", *(capped_cell(rows, flags) for flags in runs)])
    return markdown(["K, steps", "*paper*", *columns], *lines)


def seeds_table(rows: list[dict], flags: str) -> str:
    """One line for each seed of a run, for the gallery."""
    every_k = EXPERIMENTS[flags][1]
    tests = list(itertools.product(every_k, (1, 2, 5, 10) if every_k == [10] else TABLE_2))
    columns = [scores(rows, flags, shots)[steps] for shots, steps in tests]
    lines = []
    for seed, count in enumerate(capped(rows, flags)):
        cells = [f"{column[seed]:.2f}" for column in columns]
        lines.append([f"{seed}", *cells, f"{count}"])
    header = [f"{shots}, {steps}" for shots, steps in tests]
    return markdown(["seed; K, steps", *header, f"MSE ≥ {main.CAP:g}"], *lines)


def counts_table(rows: list[dict]) -> str:
    """With how many of ten seeds a first-order run is ahead of the exact gradient, or fails."""
    pairs = {ON_10: (MAML, FOMAML, 10), ON_5: (PAPER, PAPER_FOMAML, 5)}
    lines = []
    for label, (exact, first_order, shots) in pairs.items():
        ratios = scores(rows, first_order, shots) / scores(rows, exact, shots)
        ahead = [f"{np.sum(ratios[steps] < 1)} of 10" for steps in TABLE_2]
        failed = np.flatnonzero(ratios[1] > 1.9)  # after one step
        word = "seed" if len(failed) == 1 else "seeds"
        lines.append([label, *ahead, f"{len(failed)} ({word} {', '.join(map(str, failed))})"])
    header = [f"first-order ahead after {counted(steps)}" for steps in TABLE_2]
    return markdown(["", *header, "first-order runs that fail"], *lines)


def references_table(rows: list[dict]) -> str:
    """With how many of ten seeds a run is at or below a reference, both to two decimals."""
    original = scores(rows, ORIGINAL, 10)[:, 0].round(2)
    runs = {
        "exact gradient, the original's weights (K = 10)": (MAML, 10, original),
        "1 inner step, the paper (K = 5)": (PAPER, 5, TABLE_2),
        "α = 0.001, the paper (K = 5)": (PAPER_SMALL, 5, TABLE_2),
        "first-order, the paper (K = 5)": (PAPER_FOMAML, 5, TABLE_2),
        "2 inner steps, the paper (K = 5)": (TWO_STEPS, 5, TABLE_2),
    }
    lines = []
    for label, (flags, shots, reference) in runs.items():
        ours = scores(rows, flags, shots).round(2)
        cells = [f"{np.sum(ours[steps] <= reference[steps])} of 10" for steps in TABLE_2]
        lines.append([label, *cells])
    header = [f"after {counted(steps)}" for steps in TABLE_2]
    return markdown(["seeds at or below the reference", *header], *lines)


def stuck_table(rows: list[dict]) -> str:
    """How many runs get stuck, of ten from the same initial weights on other training tasks."""
    lines = []
    for seed in stuck.WEIGHTS_SEEDS:
        cells = []
        for gradient in ("exact", "first-order"):
            chosen = (r for r in rows if (r["weights_seed"], r["gradient"]) == (seed, gradient))
            losses = np.array([row["validation_loss"] for row in chosen])
            span = f"{losses.min():.2f} to {losses.max():.2f}"
            cells.append(f"{np.sum(losses > stuck.STUCK)} of 10 ({span})")
        lines.append([f"seed {seed}", *cells])
    return markdown(["initial weights", "exact gradient", "first-order"], *lines)


def plateau_table(rows: list[dict]) -> str:
    """What the two failed first-order runs do in 4,000 more iterations."""
    columns = list(itertools.product((5, 7), GRADIENTS))
    losses = {(row["seed"], row["gradient"], row["iteration"]): row["loss"] for row in rows}
    lines = []
    for end in (500, 1_000, 2_000, 4_000):
        cells = [f"{losses[(*column, end)]:.2f}" for column in columns]
        lines.append([f"{end - 499:,} to {end:,}", *cells])
    header = [f"seed {seed}, {gradient}" for seed, gradient in columns]
    return markdown(["iterations", *header], *lines)


def blocks(rows: list[dict], plateau: list[dict], stuck_rows: list[dict]) -> dict[str, str]:
    """What stands between the comment lines of the pages, by the name in these lines."""
    tables = {"the original's experiment": job_table(rows), "the paper": paper_table(rows)}
    tables["counts of seeds"] = counts_table(rows)
    tables["ahead of the references"] = references_table(rows)
    tables["stuck runs"] = stuck_table(stuck_rows)
    tables["the plateau"] = plateau_table(plateau)
    seeds = {"maml": MAML, "first-order": FOMAML, "paper": PAPER, "paper, small step": PAPER_SMALL}
    seeds |= {"paper, first-order": PAPER_FOMAML, "paper, two steps": TWO_STEPS}
    return tables | {f"seeds of {name}": seeds_table(rows, seeds[name]) for name in seeds}


def filled(page: str, tables: dict[str, str]) -> str:
    """A page with these tables between its comment lines."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: made by res/results.py -->", "<!-- end -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        page = re.sub(pattern, f"{begin}\n{table}\n{end}", page, flags=re.DOTALL)
    return page


# Pictures -----------------------------------------------------------------------------------------


def draw_seeds(path: Path, rows: list[dict]) -> None:
    """MSE after 1 and 10 steps of every seed of the runs that have ten: means and median tasks."""
    sse_runs = {"exact": MAML, "first-order": FOMAML}
    mse_runs = {"exact": PAPER, "α = 0.001": PAPER_SMALL, "first-order": PAPER_FOMAML}
    mse_runs["2 inner steps"] = TWO_STEPS
    figure = Figure(figsize=(9.6, 7.2), dpi=150, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey=True, width_ratios=[1, 2])
    groups = itertools.product((1, 10), ((ON_10, 10, sse_runs), (ON_5, 5, mse_runs)))
    for axes, (steps, (title, shots, runs)) in zip(panels.flat, groups, strict=True):
        for place, flags in enumerate(runs.values()):
            means = scores(rows, flags, shots)[steps]
            median_tasks = scores(rows, flags, shots, "median")[steps]
            color = COLORS["first-order" if "--first_order" in flags else "exact"]
            x = [place + (seed - 4.5) / 15 for seed in SEEDS]
            axes.semilogy(x, means, "o", color=color, alpha=0.7, markersize=5)
            axes.plot([place - 0.4, place + 0.4], [np.median(means)] * 2, "k", linewidth=1)
            axes.plot(x, median_tasks, "o", color=color, markersize=3.5, fillstyle="none")
            for seed in np.flatnonzero(means > 1.5 * np.median(means)):
                text = {"s": f"   seed {seed}   ", "va": "center", "fontsize": "x-small"}
                axes.text(x[seed], means[seed], ha="left" if seed < 5 else "right", **text)
        if shots == 5:
            axes.axhline(TABLE_2[steps], color="r", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(runs)), runs)
        axes.grid(axis="y", which="both", alpha=0.3)
        axes.set_title(title if steps == 1 else "", fontsize="medium")
        axes.set_ylabel(f"MSE after {counted(steps)}" if shots == 10 else "")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))  # of all panels: they share it
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    meanings = ["one seed, mean of 10,000 test tasks", "median of these ten means"]
    meanings += ["one seed, median of the tasks", "the paper's mean, K = 5"]
    figure.legend(axes.lines[-4:], meanings, loc="outside lower center", ncols=2)
    main.write(path, figure.savefig)


def draw_plateau(path: Path, rows: list[dict]) -> None:
    """The two failed first-order runs, continued first-order and with the exact gradient."""
    axes = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained").subplots()
    for seed, gradient in itertools.product((5, 7), GRADIENTS):
        chosen = [row for row in rows if (row["seed"], row["gradient"]) == (seed, gradient)]
        marker = "o" if seed == 5 else "s"
        x, y = zip(*((row["iteration"], row["loss"]) for row in chosen), strict=True)
        axes.plot(x, y, marker=marker, color=COLORS[gradient], label=f"seed {seed}, {gradient}")
    axes.set_title("Two first-order runs that stand still, continued", fontsize="medium")
    axes.set(xlabel="more iterations", ylabel="query loss (√SSE), means of 500")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.figure.legend(loc="outside lower center", ncols=2)
    main.write(path, axes.figure.savefig)


# The command --------------------------------------------------------------------------------------


def differences(rows: list[dict]) -> list[str]:
    """Where these measurements are not those of results.csv.

    Another processor rounds otherwise. It may move a score by 0.0075, and up to two tasks to the
    cap or below it, each of which moves a mean of MSEs by 0.01.
    """
    known = read_rows(RESULTS)
    found = []
    for row in rows:
        flags, seed, shots, steps = test = list(row.values())[:4]
        margin = 0.0275 if scores(known, flags, shots, "capped")[:, seed].any() else 0.0075
        for name in ("rsse", "rsse_ci", "mse", "mse_ci", "median", "mse_of_uncapped", "capped"):
            expected = scores(known, flags, shots, name)[steps, seed]
            if abs(row[name] - expected) > (2 if name == "capped" else margin):
                found.append(f"{test}: {name} is {row[name]:g}, not {expected:g}")
    return found


def command() -> None:
    parser = argparse.ArgumentParser(description="Makes the tables and pictures of the pages.")
    parser.add_argument("--write", action="store_true", help="put all into res/ and the pages")
    parser.add_argument("--check", action="store_true", help="only compare with res/results.csv")
    args = parser.parse_args()
    matplotlib.rcdefaults()  # pictures are the same, whatever the user's settings
    matplotlib.rcParams["text.parse_math"] = False
    todo = measurements()
    with ProcessPoolExecutor() as pool:
        measured = tqdm(pool.map(measure, todo), total=len(todo))
        rows = list(itertools.chain.from_iterable(measured))
    if args.check:
        sys.exit("\n".join(differences(rows)) or None)

    plateau = measure_plateau()
    tables = blocks(rows, plateau, read_rows(STUCK))
    for name, table in tables.items():
        print(f"\n{name}\n{table}")
    print("\n300 tests on 600 tasks, the paper's objective, seed 0, K = 5")
    for steps, (low, median, high) in small_tests(Measurement(PAPER, 0, 5)).items():
        print(f"{counted(steps)}: median MSE {median:.2f}, 90 % from {low:.2f} to {high:.2f}")

    if args.write:
        write_rows(RESULTS, rows)
        write_rows(PLATEAU, plateau)
        draw_seeds(ROOT / "res/seeds.png", rows)
        draw_plateau(ROOT / "res/plateau.png", plateau)
        for page in PAGES:
            text = filled(page.read_text(encoding="utf-8"), tables)
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command()
