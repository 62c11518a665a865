"""Measures all included weights, and makes the tables and pictures of the pages from the numbers.

python3 res/results.py            measures (two minutes on two cores) and prints the tables
python3 res/results.py --check    compares what it measures with res/results.csv
python3 res/results.py --write    puts the numbers into res/results.csv and res/plateau.csv, the
                                  tables into the pages, and draws alpha.png, plateau.png, seeds.png

Measurements are those of `main.py --test`, but in float32, which takes half the time and changes no
score by 0.0005. res/runs.csv is only read: res/runs.py makes it.
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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["MPLBACKEND"] = "agg"  # draws to files; a notebook's may not be installed here

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from tqdm import tqdm

import main
from data import Sinusoid, meta_batches
from res import runs

ROOT = Path(main.__file__).parent
RESULTS, PLATEAU = ROOT / "res/results.csv", ROOT / "res/plateau.csv"
PAGES = [ROOT / "README.md", ROOT / "res/README.md"]

MAML, FOMAML, PRETRAINED = "", "--first_order", "--inner_steps 0"
PAPER = "--batch_size 25 --loss mse"  # the objective of the paper
PAPER_FOMAML, PAPER_PRETRAINED = f"{PAPER} --first_order", f"{PAPER} --inner_steps 0"
TWO_STEPS, PAPER_SMALL = f"{PAPER} --inner_steps 2", f"{PAPER} --inner_lr 0.001"
ORIGINAL = "--test --weights 'weights/original(k=10).pt'"
TUNED = {  # the pretrained net by the step size of the test
    alpha: f"{PAPER} --inner_lr {alpha} --test --weights "
    "'weights/w(k=10,batch_size=25,loss=mse,inner_steps=0).pt'"
    for alpha in (0.001, 0.005, 0.01, 0.02, 0.05)
}

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
    **{flags: ([0], [5]) for flags in TUNED.values()},
}
TABLE_2 = runs.TABLE_2
STUCK = 3.5  # a run with √SSE is stuck if its lowest validation loss is above; a good one has 2.9
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
    worst = mse.shape[1] // 100
    summary["trimmed"] = mse.nan_to_num(torch.inf).sort(1).values[:, :-worst].mean(1)
    summary["worse"] = (mse[0] < mse.nan_to_num(torch.inf)).sum(1)  # than before the first step
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
            rows.append({"seed": seed, "gradient": gradient, "iteration": end, "query_loss": loss})
    return rows


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
        texts = {"flags", "gradient", "loss", "start", "kept", "weights"}
        row |= {key: float(row[key] or "nan") for key in row.keys() - texts}
    return rows


def chosen(rows: list[dict], **values: object) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def scores(rows: list[dict], flags: str, shots: int, name: str = "mse") -> np.ndarray:
    """One column of results.csv, by gradient steps and seed: (11, seeds)."""
    column = [row[name] for row in chosen(rows, flags=flags, K=shots)]
    return np.reshape(column, (-1, main.MAX_STEPS + 1)).T


def capped(rows: list[dict], flags: str) -> np.ndarray:
    """For each seed the number of capped tasks, of the worst step and K."""
    counts = [scores(rows, flags, shots, "capped") for shots in EXPERIMENTS[flags][1]]
    return np.max(counts, axis=(0, 1)).astype(int)


def markdown(header: list[str], *lines: list[str]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))


def counted(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def seeds_cell(seeds: Sequence[float]) -> str:
    """The median of the seeds with the lowest and the highest, or the number of a single one."""
    if len(seeds) == 1:
        return f"{seeds[0]:.2f}"
    return f"{np.median(seeds):.2f} ({np.min(seeds):.2f} to {np.max(seeds):.2f})"


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
    lines = []
    for name, unit, steps in (("rsse", "√SSE", 1), *(("mse", "MSE", n) for n in (1, 2, 5, 10))):
        cells = [seeds_cell(scores(rows, flags, 10, name)[steps]) for flags in columns.values()]
        lines.append([f"{unit}, {counted(steps)}", *cells])
    return markdown(["K = 10", *columns], *lines)


PAPER_COLUMNS = {
    "[1 inner step](res/README.md#the-objective-of-the-paper)": PAPER,
    "[α = 0.001](res/README.md#the-step-size-of-the-authors-code)": PAPER_SMALL,
    "[first-order](res/README.md#first-order-with-the-objective-of-the-paper)": PAPER_FOMAML,
    "[2 inner steps](res/README.md#two-inner-steps)": TWO_STEPS,
    "[pretrained](res/README.md#pretrained-with-the-objective-of-the-paper)": PAPER_PRETRAINED,
}


def paper_table(rows: list[dict]) -> str:
    """The paper's Table 2."""
    lines = []
    for steps, paper in TABLE_2.items():
        cells = [seeds_cell(scores(rows, f, 5)[steps]) for f in PAPER_COLUMNS.values()]
        lines.append([counted(steps), f"*{paper}*", *cells])
    return markdown(["K = 5", "*the paper*", *PAPER_COLUMNS], *lines)


def more_table(rows: list[dict]) -> str:
    """The same runs, also on ten and on twenty points, and by other scores than the mean."""
    lines, names = [], {"mse": "", "trimmed": ", without the worst 1 %", "median": ", median task"}
    for shots, (name, words), steps in itertools.product((5, 10, 20), names.items(), TABLE_2):
        cells = [seeds_cell(scores(rows, f, shots, name)[steps]) for f in PAPER_COLUMNS.values()]
        lines.append([f"{shots}, {steps}{words}", *cells])
    counts = [capped_cell(rows, flags) for flags in PAPER_COLUMNS.values()]
    header = [re.sub(r"\[(.*)\].*", r"\1", column) for column in PAPER_COLUMNS]
    return markdown(["K, steps", *header], *lines, [f"MSE ≥ {main.CAP:g}, worst seed", *counts])


def tuned_table(rows: list[dict]) -> str:
    """The pretrained net with other step sizes in the test."""
    lines = [
        [f"{alpha:g}", *(f"{scores(rows, flags, 5)[steps, 0]:.2f}" for steps in TABLE_2)]
        for alpha, flags in TUNED.items()
    ]
    return markdown(["α", *map(counted, TABLE_2)], *lines)


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
    compared = {
        "exact gradient, the original's weights (K = 10)": (MAML, 10, original),
        "1 inner step, the paper (K = 5)": (PAPER, 5, TABLE_2),
        "α = 0.001, the paper (K = 5)": (PAPER_SMALL, 5, TABLE_2),
        "first-order, the paper (K = 5)": (PAPER_FOMAML, 5, TABLE_2),
        "2 inner steps, the paper (K = 5)": (TWO_STEPS, 5, TABLE_2),
    }
    lines = []
    for label, (flags, shots, reference) in compared.items():
        ours, margin = scores(rows, flags, shots), scores(rows, flags, shots, "mse_ci")
        cells = []
        for steps in TABLE_2:
            ahead = np.sum(ours[steps].round(2) <= reference[steps])
            close = np.sum(np.abs(ours[steps] - reference[steps]) <= margin[steps])
            cells.append(f"{ahead} of 10" + f" ({close} too close to tell)" * bool(close))
        lines.append([label, *cells])
    header = [f"after {counted(steps)}" for steps in TABLE_2]
    return markdown(["seeds at or below the reference", *header], *lines)


def authors_table(run_rows: list[dict]) -> str:
    """The paper's Table 2 from the start of its authors' code."""
    pairs = list(itertools.product((0.001, 0.01), runs.GRADIENTS))
    own = chosen(run_rows, start="truncated normal")
    columns = {f"α = {a}, {g}": chosen(own, inner_lr=a, gradient=g) for a, g in pairs}
    lines = []
    for steps, paper in TABLE_2.items():
        cells = [seeds_cell([row[f"mse_{steps}"] for row in c]) for c in columns.values()]
        lines.append([counted(steps), f"*{paper}*", *cells])
    shares = [", ".join(f"{100 * row['near_paper']:.0f}" for row in c) for c in columns.values()]
    lines.append(["draws within 10 %, by seed", "", *shares])
    return markdown(["K = 5", "*the paper*", *columns], *lines)


def alpha_rows(run_rows: list[dict], gradient: str, alpha: float) -> list[dict]:
    return chosen(run_rows, loss="mse", start="Net", gradient=gradient, inner_lr=alpha)


def alpha_table(run_rows: list[dict]) -> str:
    """What the exact gradient and first order reach with each α, and the loss around θ."""
    lines = []
    for alpha, gradient in itertools.product(runs.ALPHAS, runs.GRADIENTS):
        rows = alpha_rows(run_rows, gradient, alpha)
        norm = np.median([row["gradient_norm"] for row in rows])
        curvature = np.median([row["curvature"] for row in rows])
        cells = [seeds_cell([row[name] for row in rows]) for name in ("mse_1", "mse_10")]
        cells += [f"{norm:.1f}", f"{curvature:,.0f}", f"{alpha * curvature:.1f}"]
        lines.append([f"{alpha:g}, {gradient}", *cells])
    header = ["MSE after 1 step", "after 10 steps", "norm of the gradient", "λ", "α λ"]
    return markdown(["α", *header], *lines)


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 95 % confidence interval of a rate (Wilson, 1927)."""
    rate, z = count / of, 1.96
    middle = rate + z**2 / (2 * of)
    half = z * np.sqrt(rate * (1 - rate) / of + (z / (2 * of)) ** 2)
    return (middle - half) / (1 + z**2 / of), (middle + half) / (1 + z**2 / of)


def fifty_table(run_rows: list[dict]) -> str:
    """How many of the seeds 0 to 49 get stuck."""
    lines = []
    for gradient in runs.GRADIENTS:
        default = chosen(run_rows, loss="rsse", gradient=gradient)
        losses = {r["weights_seed"]: r["validation_loss"] for r in default if r["mse_1"] > 0}
        seeds = [f"{seed:g}" for seed, loss in losses.items() if loss > STUCK]
        low, high = wilson(len(seeds), len(losses))
        interval = f"{100 * low:.0f} to {100 * high:.0f} %"
        lines.append([gradient, f"{len(seeds)} of {len(losses)}", interval, ", ".join(seeds)])
    header = ["stuck", "95 % confidence interval", "seeds"]
    return markdown(["", *header], *lines)


def stuck_table(run_rows: list[dict]) -> str:
    """How many runs get stuck, of ten from the same initial weights on other training tasks."""
    lines = []
    for seed in (0, 5, 7):
        cells = []
        for gradient in runs.GRADIENTS:
            rows = chosen(run_rows, loss="rsse", gradient=gradient, weights_seed=float(seed))
            losses = np.array([r["validation_loss"] for r in rows if r["weights"] == "compiled"])
            span = f"{losses.min():.2f} to {losses.max():.2f}"
            cells.append(f"{np.sum(losses > STUCK)} of {len(losses)} ({span})")
        lines.append([f"seed {seed}", *cells])
    return markdown(["initial weights", "exact gradient", "first-order"], *lines)


def blocks(rows: list[dict], run_rows: list[dict]) -> dict[str, str]:
    """What stands between the comment lines of the pages, by the name in these lines."""
    tables = {
        "the original's experiment": job_table(rows),
        "the paper": paper_table(rows),
        "more of the paper": more_table(rows),
        "pretrained, tuned": tuned_table(rows),
        "counts of seeds": counts_table(rows),
        "ahead of the references": references_table(rows),
        "the authors' start": authors_table(run_rows),
        "alpha": alpha_table(run_rows),
        "fifty seeds": fifty_table(run_rows),
        "stuck runs": stuck_table(run_rows),
    }
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
    """MSE after 10 steps of every seed of the runs that have ten: means and median tasks."""
    sse_runs = {"exact": MAML, "first-order": FOMAML}
    mse_runs = {"exact": PAPER, "α = 0.001": PAPER_SMALL, "first-order": PAPER_FOMAML}
    mse_runs["2 inner steps"] = TWO_STEPS
    figure = Figure(figsize=(8.3, 4.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[1, 2])
    groups = (ON_10, 10, sse_runs), (ON_5, 5, mse_runs)
    for axes, (title, shots, group) in zip(panels, groups, strict=True):
        for place, flags in enumerate(group.values()):
            color = COLORS["first-order" if "--first_order" in flags else "exact"]
            x = [place + (seed - 4.5) / 15 for seed in SEEDS]
            means, tasks = (scores(rows, flags, shots, name)[10] for name in ("mse", "median"))
            axes.semilogy(x, means, "o", color=color, alpha=0.7, markersize=5)
            axes.plot([place - 0.4, place + 0.4], [np.median(means)] * 2, "k", linewidth=1)
            axes.plot(x, tasks, "o", color="gray", markersize=3.5, fillstyle="none")
        if shots == 5:
            axes.axhline(TABLE_2[10], color="r", linestyle="--", linewidth=1)
        axes.set_xticks(range(len(group)), group)
        axes.set_title(title, fontsize="medium")
    panels[0].set_ylabel("MSE after 10 steps")
    label_decades(panels)
    exact, first_order = panels[0].lines[0], panels[0].lines[3]
    handles = [exact, first_order, panels[0].lines[1], panels[0].lines[2], panels[1].lines[-1]]
    meanings = ["one seed, exact: mean of the tasks", "one seed, first-order: mean of the tasks"]
    meanings += ["median of these ten means", "one seed: median task", "the paper's mean, K = 5"]
    figure.legend(handles, meanings, loc="outside lower center", ncols=2)
    main.write(path, figure.savefig)


def label_decades(panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y", alpha=0.3)


def draw_alpha(path: Path, run_rows: list[dict]) -> None:
    """MSE after one step against the step size, with either gradient: five seeds and medians."""
    axes = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained").subplots()
    for gradient in runs.GRADIENTS:
        rows = [row for alpha in runs.ALPHAS for row in alpha_rows(run_rows, gradient, alpha)]
        every, color = [row["inner_lr"] for row in rows], COLORS[gradient]
        axes.loglog(every, [row["mse_1"] for row in rows], "o", color=color, alpha=0.5)
        medians = [
            np.median([row["mse_1"] for row in rows if row["inner_lr"] == alpha])
            for alpha in runs.ALPHAS
        ]
        axes.plot(runs.ALPHAS, medians, color=color, label=f"{gradient}: median and five seeds")
    axes.set(xlabel="step size α, in training and in the test", ylabel="MSE after one step")
    axes.set_title("The paper's loss, 25 tasks in a meta-batch, K = 10", fontsize="medium")
    axes.set_xticks(runs.ALPHAS, [f"{alpha:g}" for alpha in runs.ALPHAS])
    axes.xaxis.set_minor_locator(NullLocator())
    label_decades([axes])
    axes.legend()
    main.write(path, axes.figure.savefig)


def draw_plateau(path: Path, rows: list[dict]) -> None:
    """The two failed first-order runs, continued first-order and with the exact gradient."""
    axes = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained").subplots()
    for seed, gradient in itertools.product((5, 7), GRADIENTS):
        run = chosen(rows, seed=seed, gradient=gradient)
        marker = "o" if seed == 5 else "s"
        x, y = zip(*((row["iteration"], row["query_loss"]) for row in run), strict=True)
        axes.plot(x, y, marker=marker, color=COLORS[gradient], label=f"seed {seed}, {gradient}")
    axes.axhline(2.9, color="k", linestyle="--", linewidth=1, label="end of a good run")
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
    cap or below it, each of which moves a mean of MSEs by 0.01. Where hundreds of tasks run away,
    as with too large a step size, there is nothing to compare.
    """
    known = read_rows(RESULTS)
    found = []
    for row in rows:
        flags, seed, shots, steps = test = list(row.values())[:4]
        away = scores(known, flags, shots, "capped")[:, seed].max()
        if away > 100:
            continue
        margin = 0.0275 if away else 0.0075
        for name in ("rsse", "rsse_ci", "mse", "mse_ci", "median", "trimmed", "capped"):
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
    run_rows = read_rows(runs.CSV)
    tables = blocks(rows, run_rows)
    for name, table in tables.items():
        print(f"\n{name}\n{table}")
    if args.write:
        write_rows(RESULTS, rows)
        write_rows(PLATEAU, plateau)
        draw_seeds(ROOT / "res/seeds.png", rows)
        draw_alpha(ROOT / "res/alpha.png", run_rows)
        draw_plateau(ROOT / "res/plateau.png", plateau)
        for page in PAGES:
            text = filled(page.read_text(encoding="utf-8"), tables)
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command()
