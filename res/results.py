"""Measures all included weights, and makes the tables and pictures of the pages from the numbers.

python3 res/results.py            measures (ten minutes on two cores) and prints the tables
python3 res/results.py --check    compares results.csv with measurements in float32, half the time
python3 res/results.py --write    puts the numbers into res/results.csv and the tables into the
                                  pages, and draws alpha.png and seeds.png

Measurements are those of `main.py --test`. "Tuned" ones, of the pretrained networks, take the step
size of TUNING that is best on the validation tasks. res/runs.py makes res/runs.csv.
"""

import argparse
import contextlib
import csv
import io
import itertools
import math
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import Pool
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
from meta import Meta
from net import mse
from res import runs

ROOT = Path(main.__file__).parent
RESULTS = ROOT / "res/results.csv"
PAGES = [ROOT / "README.md", ROOT / "res/README.md"]

# The runs with included weights, by their flags, and their names on the pages.
MAML, FOMAML, PRETRAINED = "", "--first_order", "--inner_steps 0"
PAPER = "--batch_size 25 --loss mse"  # the objective of the paper
PAPER_PRETRAINED = f"{PAPER} --inner_steps 0"
ORIGINAL = "--test --weights 'weights/original(k=10).pt'"
PAPER_RUNS = {
    "MAML, α = 0.01": PAPER,
    "MAML, α = 0.001": f"{PAPER} --inner_lr 0.001",
    "first-order": f"{PAPER} --first_order",
    "two steps": f"{PAPER} --inner_steps 2",
    "pretrained": PAPER_PRETRAINED,
}
JOB_RUNS = {"the original's weights": ORIGINAL, "MAML": MAML, "first-order": FOMAML}
JOB_RUNS |= {"pretrained": PRETRAINED}
COLORS = {"MAML, α = 0.001": "#56B4E9", "two steps": "#009E73", **main.COLORS}
COLORS |= {"MAML, α = 0.01": COLORS["MAML"], "exact": COLORS["MAML"]}

# Seeds, and numbers of support points in the test, in the order of results.csv.
SEEDS = range(10)
EXPERIMENTS = {
    **{flags: (SEEDS, [10]) for flags in (MAML, FOMAML, PRETRAINED)},
    **{flags: (SEEDS, [5, 10, 20]) for flags in PAPER_RUNS.values()},
    ORIGINAL: ([0], [10]),
    "--k_shot 5": ([0], [5]),
    "--k_shot 5 --inner_steps 0": ([0], [5]),
    "--k_shot 5 --test --weights 'weights/original(k=5).pt'": ([0], [5]),
}
TUNED = (PRETRAINED, PAPER_PRETRAINED)
TUNING = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
TABLE_2 = runs.TABLE_2
TABLE_2_ROWS = {"the paper": TABLE_2.values(), "the paper, pretrained": (2.41, 2.23, 2.19)}


# Measuring ----------------------------------------------------------------------------------------


class Measurement(NamedTuple):
    """A file of weights, by the flags of its run, and its test."""

    flags: str
    seed: int
    shots: int  # support points in the test
    tuned: bool = False  # the test takes the best step size of TUNING

    def args(self) -> argparse.Namespace:
        return main.parse(shlex.split(f"{self.flags} --seed {self.seed}"))

    def file(self) -> Path:
        args = self.args()
        return args.weights or main.weights_file(args)

    def learner(self) -> Meta:
        return main.load(ROOT / self.file(), self.args(), "cpu")


def measurements() -> list[Measurement]:
    """All that the pages show."""
    return [
        Measurement(flags, seed, shots, tuned)
        for flags, (seeds, every_k) in EXPERIMENTS.items()
        for tuned, seed, shots in itertools.product((False, True), seeds, every_k)
        if flags in TUNED or not tuned
    ]


def measure(measurement: Measurement, dtype: torch.dtype = torch.float64) -> list[dict]:
    """A row of the results for each number of gradient steps."""
    torch.set_num_threads(1)
    meta, shots = measurement.learner().to(dtype), measurement.shots
    if measurement.tuned:
        meta.inner_lr = min(TUNING, key=lambda alpha: validation_error(meta, shots, alpha))
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        sse = main.evaluate(meta, shots)
    summary = main.summarize(sse)
    errors = (sse / len(main.GRID)).nan_to_num(torch.inf).sort(dim=1).values
    summary["trimmed"] = errors[:, : -(errors.shape[1] // 100)].mean(1)  # the worst 1 % left out
    rows = []
    for steps in range(main.MAX_STEPS + 1):
        numbers = {name: values[steps].item() for name, values in summary.items()}
        test = {**measurement._asdict(), "alpha": meta.inner_lr, "steps": steps}
        rows.append({**test, "tuned": int(measurement.tuned), **numbers})
    return rows


def validation_error(meta: Meta, shots: int, alpha: float) -> float:
    """The MSE on the validation tasks after one step of this size, measured like the test."""
    number = main.VALIDATION_TASKS
    tasks = main.Tasks(shots, 0, num_tasks=number, seed=(main.VALIDATION,))
    k_x, k_y, _, _ = tasks.batch(range(number))
    meta.inner_lr = alpha
    after = main.predictions(meta, k_x, k_y, 1)[1]
    return mse(after, tasks.target(range(number), main.GRID)).clamp(max=main.CAP).mean().item()


def write_rows(path: Path, rows: list[dict]) -> None:
    text = io.StringIO(newline="")
    names = dict.fromkeys(itertools.chain.from_iterable(rows))  # some rows lack some
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        numbers = {key: f"{x:.6g}" for key, x in row.items() if isinstance(x, float)}
        writer.writerow({**row, **numbers})
    main.write(path, lambda file: file.write(text.getvalue().encode()))


def read_rows(path: Path) -> list[dict]:
    """The rows of a file, their numbers as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    texts = {"flags", "gradient", "loss", "start", "kept", "weights", "learner", "points"}
    for row in rows:
        row |= {key: float(row[key] or "nan") for key in row.keys() - texts}
    return rows


def chosen(rows: list[dict], **values: object) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def scores(
    rows: list[dict], flags: str, shots: int, name: str = "mse", tuned: bool = False
) -> np.ndarray:
    """One column of results.csv, by gradient steps and seed: (11, seeds)."""
    column = [row[name] for row in chosen(rows, flags=flags, shots=shots, tuned=tuned)]
    return np.reshape(column, (-1, main.MAX_STEPS + 1)).T


def differences(rows: list[dict]) -> list[str]:
    """Where these measurements are not those of results.csv.

    Another processor rounds otherwise. Float32 in the place of float64 changes no score by more
    than 0.001, and the cap of no task.
    """
    test = (*Measurement._fields, "steps")
    known = {tuple(row[name] for name in test): row for row in read_rows(RESULTS)}
    found = []
    for row in rows:
        where = tuple(row[name] for name in test)
        for name in ("alpha", "rsse", "rsse_ci", "mse", "mse_ci", "median", "trimmed", "capped"):
            expected = known[where][name]
            if not abs(row[name] - expected) <= 0.002:
                found.append(f"{where}: {name} is {row[name]:g}, not {expected:g}")
    return found


# Tables -------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], *lines: Sequence[str]) -> str:
    """A table in whose cells nothing breaks around "=" and its like."""
    rule = ["---"] * len(header)
    text = "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines))
    return re.sub(" ([=≥>→]) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def counted(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def seeds_cell(seeds: Sequence[float]) -> str:
    """The median of the seeds with the lowest and the highest, or the number of a single one."""
    median, low, high = (f"{score(seeds):.2f}" for score in (np.median, np.min, np.max))
    # A cell breaks neither at its blank nor at its dash.
    words = f"{median}\N{NO-BREAK SPACE}({low}\N{WORD JOINER}–\N{WORD JOINER}{high})"
    return median if len(seeds) == 1 else words


# Of results.csv: a column is a run, a line is a test.


def scores_table(rows: list[dict], runs_by_name: dict[str, str], tests: dict[str, tuple]) -> str:
    """The scores of these runs in these tests: K, the name of the score, and the steps."""
    lines = []
    for words, (shots, name, steps) in tests.items():
        cells = [seeds_cell(scores(rows, f, shots, name)[steps]) for f in runs_by_name.values()]
        lines.append([words, *cells])
    return markdown(["", *runs_by_name], *lines)


def job_table(rows: list[dict]) -> str:
    """The original's job."""
    tests = {"√SSE, 1 step": (10, "rsse", 1)}
    tests |= {f"MSE, {counted(steps)}": (10, "mse", steps) for steps in (1, 2, 5, 10)}
    return scores_table(rows, JOB_RUNS, tests)


def errors_cells(rows: list[dict], flags: str, shots: int, tuned: bool = False) -> list[str]:
    """The MSE after the steps of the paper's Table 2."""
    errors = scores(rows, flags, shots, tuned=tuned)
    return [seeds_cell(errors[steps]) for steps in TABLE_2]


def paper_table(rows: list[dict]) -> str:
    """The paper's Table 2, a line for each run."""
    lines = [[f"*{name}*", *(f"*{x}*" for x in numbers)] for name, numbers in TABLE_2_ROWS.items()]
    lines += [[name, *errors_cells(rows, flags, 5)] for name, flags in PAPER_RUNS.items()]
    lines += [["pretrained, tuned α", *errors_cells(rows, PAPER_PRETRAINED, 5, tuned=True)]]
    return markdown(["K = 5", *map(counted, TABLE_2)], *lines)


def more_table(rows: list[dict]) -> str:
    """The same runs on ten and on twenty points, and on five by other scores than the mean."""
    tests = {f"K = {k}, {counted(n)}": (k, "mse", n) for k in (10, 20) for n in TABLE_2}
    for name, words in {"trimmed": "without the worst 1 %", "median": "median task"}.items():
        tests |= {f"K = 5, {counted(n)}, {words}": (5, name, n) for n in (5, 10)}
    return scores_table(rows, PAPER_RUNS, tests)


def tuned_table(rows: list[dict]) -> str:
    """The pretrained networks with α = 0.01, and with the α that is best on validation tasks."""
    lines = []
    for flags, shots in ((PRETRAINED, 10), *((PAPER_PRETRAINED, k) for k in (5, 10, 20))):
        loss = "√SSE" if flags == PRETRAINED else "MSE"
        for tuned in (False, True):
            alphas = Counter(scores(rows, flags, shots, "alpha", tuned=tuned)[1])
            words = ", ".join(f"{alpha:g} ({count} ×)" for alpha, count in sorted(alphas.items()))
            cells = errors_cells(rows, flags, shots, tuned)
            lines.append([f"{loss}, K = {shots}", words if tuned else "0.01", *cells])
    return markdown(["", "α", *map(counted, TABLE_2)], *lines)


def seeds_table(rows: list[dict]) -> str:
    """One line for each seed of the default run."""
    errors, capped = scores(rows, MAML, 10), scores(rows, MAML, 10, "capped").max(0)
    lines = [
        [f"{seed}", *(f"{errors[steps, seed]:.2f}" for steps in (1, 2, 5, 10)), f"{capped[seed]:g}"]
        for seed in SEEDS
    ]
    return markdown(["seed", *map(counted, (1, 2, 5, 10)), f"MSE ≥ {main.CAP:g}"], *lines)


# Of runs.csv: a line is a group of runs, a column says something of them.

Column = Callable[[list[dict]], str]


def groups_table(groups: dict[str, list[dict]], columns: dict[str, Column]) -> str:
    """Groups that have no run yet are left out."""
    lines = (
        [words, *(say(rows) for say in columns.values())] for words, rows in groups.items() if rows
    )
    return markdown(["", *columns], *lines)


def each(score: str, say: Column = seeds_cell) -> Column:
    """What is said of one score of the runs."""
    return lambda rows: say([row[score] for row in rows])


def median(digits: int) -> Column:
    return lambda seeds: f"{np.median(seeds):,.{digits}f}"


def finite(draws: Sequence[float]) -> str:
    """The median of these; without a cap, one task may make a mean of any size."""
    middle = np.median(draws)
    return f"{middle:.2f}" if middle < 100 else "> 100"


def span(seeds: Sequence[float], digits: int = 0) -> str:
    return f"{min(seeds):.{digits}f}–{max(seeds):.{digits}f}"


ERRORS = {counted(n): each(f"mse_{n}") for n in (1, 2, 5, 10)}
NUMBER = {"seeds": lambda rows: f"{len(rows)}"}


def paper_row_table(run_rows: list[dict], columns: dict[str, Column]) -> str:
    """Start, step size, gradient and the weights kept, with which the paper's row may be made."""
    own = chosen(run_rows, q_query=10)
    cells = itertools.product(runs.STARTS, (0.001, 0.01), runs.GRADIENTS, (runs.LAST, runs.BEST))
    groups = {
        f"{start}, α = {alpha}, {g}, {kept}": chosen(
            own, start=start, inner_lr=alpha, gradient=g, kept=kept
        )
        for start, alpha, g, kept in cells
    }
    return groups_table(groups, columns)


OUR_TEST = {counted(n): each(f"mse_{n}") for n in TABLE_2}
AUTHORS_TEST = {counted(n): each(f"draw_{n}", finite) for n in TABLE_2}
AUTHORS_TEST |= {
    "draws near": each("near_paper", lambda shares: f"{100 * np.mean(shares):.0f} %"),
    "half": each("near_paper", lambda shares: f"{sum(x >= 0.5 for x in shares)}"),
    "none": each("near_paper", lambda shares: f"{shares.count(0)}"),
}


def paper_rows(run_rows: list[dict], **values: object) -> list[dict]:
    """The best weights of runs with the paper's loss and this project's start."""
    return chosen(run_rows, loss="mse", start="Net", q_query=15, kept="best", **values)


def alpha_rows(run_rows: list[dict], alpha: float, gradient: str) -> list[dict]:
    return paper_rows(run_rows, inner_lr=alpha, gradient=gradient, inner_steps=1)


def alpha_table(run_rows: list[dict], columns: dict[str, Column]) -> str:
    """The exact gradient and first order with each α."""
    cells = itertools.product(runs.ALPHAS, runs.GRADIENTS)
    groups = {f"{alpha:g}, {g}": alpha_rows(run_rows, alpha, g) for alpha, g in cells}
    return groups_table(groups, columns)


BY_ALPHA = {
    "1 step": each("mse_1"),
    "10 steps": each("mse_10"),
    "median task": each("median_10", median(2)),
    f"MSE ≥ {main.CAP:g}": each("capped_10", span),
}
AROUND_THETA = {
    "norm of the gradient": each("gradient_norm", median(1)),
    "λ": each("curvature", median(0)),
    "α λ": lambda rows: median(1)([row["inner_lr"] * row["curvature"] for row in rows]),
}


def pairs_table(run_rows: list[dict]) -> str:
    """How often first order has the higher error, of pairs with the same seed and α."""
    lines = []
    for steps in (1, 10):
        cells = []
        for alpha in runs.ALPHAS:
            exact, first_order = (
                {row["weights_seed"]: row[f"mse_{steps}"] for row in alpha_rows(run_rows, alpha, g)}
                for g in runs.GRADIENTS
            )
            seeds = exact.keys() & first_order.keys()
            higher = sum(first_order[seed] > exact[seed] for seed in seeds)
            cells.append(f"{higher} of {len(seeds)}")
        lines.append([f"after {counted(steps)}", *cells])
    return markdown(["first-order is higher", *(f"α = {alpha:g}" for alpha in runs.ALPHAS)], *lines)


def inner_steps_table(run_rows: list[dict]) -> str:
    pairs = ((1, 0.001), (2, 0.001), (1, 0.01), (2, 0.01), (3, 0.01), (5, 0.01))
    exact = paper_rows(run_rows, gradient="exact")
    groups = {
        f"trained for {counted(steps)}, α = {alpha}": chosen(
            exact, inner_lr=alpha, inner_steps=steps
        )
        for steps, alpha in pairs
    }
    return groups_table(groups, NUMBER | ERRORS)


def equal_time_table(run_rows: list[dict]) -> str:
    """First order for as long as the exact gradient takes."""
    longer = chosen(run_rows, epochs=104_000)
    groups = {
        "exact": chosen(run_rows, loss="rsse", gradient="exact", weights="included"),
        "first-order": chosen(longer, kept=runs.EARLIER),
        "first-order, 104,000 iterations": chosen(longer, kept=runs.BEST),
    }
    return groups_table(groups, ERRORS | {"stuck": lambda rows: stuck(rows, run_rows)})


def of_each_seed(run_rows: list[dict]) -> list[dict]:
    """For each seed the first run in the file that has its weights and its tasks."""
    rows = {}
    for row in run_rows:
        if row["weights_seed"] == row["tasks_seed"]:
            rows.setdefault(row["weights_seed"], row)
    return [*rows.values()]


def is_stuck(row: dict, run_rows: list[dict]) -> bool:
    """Whether the validation loss of a run is far above the median of the exact ones like it."""
    alike = {name: row[name] for name in ("loss", "q_query", "start", "inner_lr", "inner_steps")}
    exact = of_each_seed(chosen(run_rows, gradient="exact", kept="best", **alike))
    middle = np.median([other["validation_loss"] for other in exact])
    return row["validation_loss"] > (1.2 if row["loss"] == "rsse" else 1.5) * middle


def stuck(rows: list[dict], run_rows: list[dict]) -> str:
    """How many runs are stuck, and which seeds; a dash if there are no runs."""
    seeds = [f"{row['weights_seed']:g}" for row in rows if is_stuck(row, run_rows)]
    words = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(seeds)}"
    return f"{len(seeds)} of {len(rows)}" + f" ({words})" * bool(seeds) if rows else "–"


def settings_table(run_rows: list[dict]) -> str:
    """The runs that get stuck, by their settings; weights and tasks of the same seed."""
    best = chosen(run_rows, kept="best", epochs=runs.EPOCHS)
    words, groups = "{unit}, {start}, Q = {q_query:g}, α = {inner_lr:g}, {steps}", {}
    for row in best:
        steps, unit = counted(int(row["inner_steps"])), main.UNITS[row["loss"]]
        groups.setdefault(words.format(unit=unit, steps=steps, **row), []).append(row)
    columns = {
        g: lambda rows, g=g: stuck(of_each_seed(chosen(rows, gradient=g)), best)
        for g in runs.GRADIENTS
    }
    return groups_table(groups, columns)


def wilson(count: int, of: int) -> str:
    """The 95 % confidence interval of a rate (Wilson, 1927)."""
    rate, z = count / of, 1.96
    middle = rate + z**2 / (2 * of)
    half = z * np.sqrt(rate * (1 - rate) / of + (z / (2 * of)) ** 2)
    ends = [100 * (middle + sign * half) / (1 + z**2 / of) for sign in (-1, 1)]
    return span([max(0.0, end) for end in ends]) + " %"


def fisher(one: int, of_one: int, other: int, of_other: int) -> float:
    """Fisher's exact test, two-sided: the p-value of two counts."""
    total = one + other
    ways = {k: math.comb(of_one, k) * math.comb(of_other, total - k) for k in range(total + 1)}
    return sum(n for n in ways.values() if n <= ways[one]) / math.comb(of_one + of_other, total)


def default_rows(run_rows: list[dict], **values: object) -> list[dict]:
    return chosen(run_rows, loss="rsse", epochs=runs.EPOCHS, kept="best", **values)


def fifty_table(run_rows: list[dict]) -> str:
    """How many of the seeds 0 to 49 get stuck."""
    lines, counts = [], []
    for gradient in runs.GRADIENTS:
        own = of_each_seed(default_rows(run_rows, gradient=gradient))
        count = sum(is_stuck(row, run_rows) for row in own)
        counts += [count, len(own)]
        lines.append([gradient, stuck(own, run_rows), wilson(count, len(own))])
    p = ["Fisher's exact test", f"p = {fisher(*counts):.2g}", ""]
    return markdown(["", "stuck", "95 % confidence interval"], *lines, p)


def stuck_table(run_rows: list[dict]) -> str:
    """How many runs get stuck, of ten from the same initial weights on other training tasks."""
    lines, compiled = [], default_rows(run_rows, weights="compiled")
    for seed in (0, 5, 7):
        cells, counts = [], []
        for gradient in runs.GRADIENTS:
            own = chosen(compiled, gradient=gradient, weights_seed=seed)
            count = sum(is_stuck(row, run_rows) for row in own)
            counts += [count, len(own)]
            losses = span([row["validation_loss"] for row in own], 2)
            cells.append(f"{count} of {len(own)}\N{NO-BREAK SPACE}({losses})")
        lines.append([f"seed {seed}", *cells, f"{fisher(*counts):.1g}"])
    return markdown(["initial weights", *runs.GRADIENTS, "p"], *lines)


def blocks(rows: list[dict], run_rows: list[dict]) -> dict[str, str]:
    """What stands between the comment lines of the pages, by the name in these lines."""
    return {
        "the original's experiment": job_table(rows),
        "the paper": paper_table(rows),
        "more of the paper": more_table(rows),
        "pretrained, tuned": tuned_table(rows),
        "the paper's row, our test": paper_row_table(run_rows, OUR_TEST),
        "the paper's row, the authors' test": paper_row_table(run_rows, AUTHORS_TEST),
        "alpha": alpha_table(run_rows, NUMBER | BY_ALPHA),
        "around θ": alpha_table(run_rows, AROUND_THETA),
        "pairs": pairs_table(run_rows),
        "inner steps": inner_steps_table(run_rows),
        "equal time": equal_time_table(run_rows),
        "fifty seeds": fifty_table(run_rows),
        "stuck runs": stuck_table(run_rows),
        "stuck by setting": settings_table(run_rows),
        "seeds of maml": seeds_table(rows),
    }


def fill(tables: dict[str, str], script: str) -> None:
    """Put these tables, made by a script, between the comment lines of the pages."""
    for page in PAGES:
        text = filled(page.read_text(encoding="utf-8"), tables, script)
        main.write(page, lambda file, text=text: file.write(text.encode()))


def filled(page: str, tables: dict[str, str], script: str) -> str:
    for name, table in tables.items():
        begin, end = f"<!-- {name}: made by res/{script} -->", "<!-- end -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        page = re.sub(pattern, f"{begin}\n{table}\n{end}", page, flags=re.DOTALL)
    return page


# Pictures -----------------------------------------------------------------------------------------


def draw_seeds(path: Path, rows: list[dict]) -> None:
    """MSE after 10 steps of every seed of the runs that have ten: means and median tasks."""
    figure = Figure(figsize=(8.3, 4.4), dpi=150, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, width_ratios=[1, 2])
    job = {name: flags for name, flags in JOB_RUNS.items() if flags in (MAML, FOMAML)}
    paper = {name: flags for name, flags in PAPER_RUNS.items() if flags != PAPER_PRETRAINED}
    titles = ("trained with √SSE, tested on 10 points", "trained with MSE, tested on 5 points")
    for axes, title, shots, group in zip(panels, titles, (10, 5), (job, paper), strict=True):
        for place, (name, flags) in enumerate(group.items()):
            x = [place + (seed - 4.5) / 15 for seed in SEEDS]
            means, tasks = (scores(rows, flags, shots, score)[10] for score in ("mse", "median"))
            axes.semilogy(x, means, "o", color=COLORS[name], alpha=0.8, markersize=5)
            axes.plot([place - 0.4, place + 0.4], [np.median(means)] * 2, "k", linewidth=1)
            axes.plot(x, tasks, "o", color="gray", markersize=3.5, fillstyle="none")
        axes.set_xticks(range(len(group)), [name.replace(", ", ",\n") for name in group])
        axes.set_title(title, fontsize="medium")
    panels[1].axhline(TABLE_2[10], color="k", linestyle="--", linewidth=1)
    panels[0].set_ylabel("MSE after 10 steps")
    label_decades(panels)
    handles = [*panels[0].lines[:3], panels[1].lines[-1]]
    meanings = ["one seed: mean of the tasks", "median of these ten means"]
    meanings += ["one seed: median task", "the paper's mean, K = 5"]
    figure.legend(handles, meanings, loc="outside lower center", ncols=2)
    main.write(path, figure.savefig)


def label_decades(panels: Sequence[Axes]) -> None:
    for axes in panels:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y", alpha=0.3)


def draw_alpha(path: Path, run_rows: list[dict]) -> None:
    """MSE after one step against the step size, with either gradient: seeds and medians."""
    axes = Figure(figsize=(6.4, 4.2), dpi=150, layout="constrained").subplots()
    for gradient in runs.GRADIENTS:
        medians, color = [], COLORS[gradient]
        for alpha in runs.ALPHAS:
            errors = [row["mse_1"] for row in alpha_rows(run_rows, alpha, gradient)]
            axes.loglog([alpha] * len(errors), errors, "o", color=color, alpha=0.5)
            medians.append(np.median(errors))
        axes.plot(runs.ALPHAS, medians, color=color, label=f"{gradient}: median and every seed")
    axes.set(xlabel="step size α, in training and in the test", ylabel="MSE after one step")
    axes.set_title("The paper's loss, 25 tasks in a meta-batch, K = 10", fontsize="medium")
    axes.set_xticks(runs.ALPHAS, [f"{alpha:g}" for alpha in runs.ALPHAS])
    axes.xaxis.set_minor_locator(NullLocator())
    label_decades([axes])
    axes.legend()
    main.write(path, axes.figure.savefig)


# The command --------------------------------------------------------------------------------------


def command() -> None:
    parser = argparse.ArgumentParser(description="Makes the tables and pictures of the pages.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="put all into res/ and the pages")
    what.add_argument("--check", action="store_true", help="only compare with res/results.csv")
    args, run_rows = parser.parse_args(), read_rows(runs.CSV)
    todo = measurements()
    dtype = torch.float32 if args.check else torch.float64
    with Pool(os.cpu_count(), runs.ignore_interrupts) as pool:
        measured = tqdm(pool.imap(partial(measure, dtype=dtype), todo), total=len(todo))
        rows = list(itertools.chain.from_iterable(measured))
    if args.check:
        sys.exit("\n".join(differences(rows)) or None)

    if args.write:
        write_rows(RESULTS, rows)
    tables = blocks(rows, run_rows)
    if args.write:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # pictures are the same, whatever the user's settings
            draw_seeds(ROOT / "res/seeds.png", rows)
            draw_alpha(ROOT / "res/alpha.png", run_rows)
        fill(tables, "results.py")
    for name, table in tables.items():
        print(f"\n{name}\n{table}")


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has Greek letters
    command()
