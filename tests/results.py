"""Measures all included weights, and makes the tables and pictures of the pages from the numbers.

python3 tests/results.py            measures (two minutes on two cores) and prints the tables
python3 tests/results.py --check    compares what it measures with res/results.csv
python3 tests/results.py --write    puts the numbers into res/results.csv and res/plateau.csv, the
                                    tables into the pages, and draws seeds.png and plateau.png

Measurements are those of `main.py --test`, but in float32, which takes half the time and changes no
score by 0.0005.
"""

import argparse
import contextlib
import csv
import io
import itertools
import re
import shlex
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import matplotlib.style
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

import main
from data import Sinusoid, meta_batches
from meta import Meta
from net import Net

ROOT = Path(main.__file__).parent
RESULTS, PLATEAU = ROOT / "res/results.csv", ROOT / "res/plateau.csv"
PAGES = [ROOT / "README.md", ROOT / "res/README.md"]
STEPS = range(main.MAX_STEPS + 1)

SEEDS = range(10)
MAML, FOMAML, PRETRAINED = "", "--first_order", "--inner_steps 0"
PAPER = "--batch_size 25 --loss mse"  # the objective of the paper
PAPER_FOMAML, TWO_STEPS = f"{PAPER} --first_order", f"{PAPER} --inner_steps 2"
PAPER_PRETRAINED = f"{PAPER} --inner_steps 0"
FIVE, FIVE_PRETRAINED = "--k_shot 5", "--k_shot 5 --inner_steps 0"
ORIGINAL = "--test --weights 'weights/original(k=10).pt'"
ORIGINAL_FIVE = "--k_shot 5 --test --weights 'weights/original(k=5).pt'"
TABLE_2 = {1: 0.67, 5: 0.38, 10: 0.35}  # the paper's numbers for K = 5


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
    job = itertools.product((MAML, FOMAML), SEEDS, (10,))
    paper = itertools.product((PAPER, PAPER_FOMAML, TWO_STEPS), SEEDS, (5, 10, 20))
    single = [(PRETRAINED, 0, 10), (ORIGINAL, 0, 10)]
    single += [(flags, 0, 5) for flags in (FIVE, FIVE_PRETRAINED, ORIGINAL_FIVE)]
    single += [(PAPER_PRETRAINED, 0, shots) for shots in (5, 10, 20)]
    return [Measurement(*each) for each in (*job, *paper, *single)]


# Measuring ----------------------------------------------------------------------------------------


def task_errors(measurement: Measurement) -> torch.Tensor:
    """The summed squared error of every test task: (11, 10000)."""
    meta = main.load(ROOT / measurement.file(), measurement.args(), "cpu")
    meta.net.float()
    return main.evaluate(meta, measurement.shots)


def measure(measurement: Measurement) -> list[dict]:
    """A row of the results for each number of gradient steps."""
    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        sse = task_errors(measurement)
    scores = main.summarize(sse)
    mse = sse / len(main.GRID)
    rows = []
    for steps in STEPS:
        below = mse[steps][mse[steps] < main.CAP]  # which leaves NaN out, too
        row = {"flags": measurement.flags, "seed": measurement.seed, "K": measurement.shots}
        row |= {"steps": steps, **{name: values[steps].item() for name, values in scores.items()}}
        row["mse_of_uncapped"] = below.mean().item()
        rows.append(row)
    return rows


def measure_all() -> list[dict]:
    """The rows of results.csv, from as many processes as there are processors."""
    todo = measurements()
    with ProcessPoolExecutor() as pool:
        return [row for rows in tqdm(pool.map(measure, todo), total=len(todo)) for row in rows]


def continue_training(seed: int, first_order: bool, iterations: int) -> list[float]:
    """The losses of more iterations from the weights of a first-order run, with a new Adam."""
    net = Net()
    file = Measurement(FOMAML, seed, 10).file()
    net.load_state_dict(torch.load(ROOT / file))
    meta = Meta(net, first_order=first_order)
    batches = meta_batches(Sinusoid(10, seed=(main.TRAIN, seed)), 10, start=70_000)
    return [meta(*next(batches)) for _ in range(iterations)]


def measure_plateau() -> list[dict]:
    """The rows of plateau.csv: means of 500 losses of 4,000 iterations, for each failed run."""
    torch.set_num_threads(1)
    rows = []
    for seed, first_order in itertools.product((5, 7), (True, False)):
        losses = continue_training(seed, first_order, 4_000)
        for end in range(500, 4_001, 500):
            loss = statistics.fmean(losses[end - 500 : end])
            gradient = "first-order" if first_order else "exact"
            rows.append({"seed": seed, "gradient": gradient, "iteration": end, "loss": loss})
    return rows


def small_tests(measurement: Measurement, steps: int, draws: int = 300) -> tuple[float, ...]:
    """What tests on 600 tasks, as in the paper's code, would say: the median MSE, 5 % and 95 %."""
    mse = task_errors(measurement)[steps] / len(main.GRID)
    mse = torch.fmin(mse, torch.tensor(main.CAP))
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.randperm(len(mse), generator=generator)[:600] for _ in range(draws)]
    means = torch.stack([mse[tasks].mean() for tasks in chosen])
    levels = torch.tensor([0.5, 0.05, 0.95], dtype=means.dtype)
    return tuple(means.quantile(levels).tolist())


def second_step() -> dict[str, float]:
    """What the first two steps do in the run of seed 0: lengths and errors on the test tasks."""
    meta = main.load(ROOT / Measurement(MAML, 0, 10).file(), main.parse([]), "cpu")
    tasks = Sinusoid(10, 0, num_tasks=main.TEST_TASKS, seed=(main.TEST,))
    everything = range(len(tasks))
    k_x, k_y, _, _ = tasks.batch(everything)
    x, y = main.GRID.expand(len(tasks), -1, -1), tasks.target(everything, main.GRID)

    def length(old: dict, new: dict) -> float:
        moves = [(new[name] - old[name]).flatten(1) for name in new]
        return torch.cat(moves, dim=1).norm(dim=1).median().item()

    def mse(weights: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (meta.net.predict(x, weights) - y).square().mean((1, 2)).clamp_max(main.CAP)

    with torch.no_grad():
        theta = meta.adapt(k_x, k_y, 0)
        first = meta.adapt(k_x, k_y, 1)
        second = meta.adapt(k_x, k_y, 2)
        quarter = {name: w + (second[name] - w) / 4 for name, w in first.items()}
        return {
            "median length of the first step": length(theta, first),
            "median length of the second step": length(first, second),
            "median support MSE before": mse(theta, k_x, k_y).median().item(),
            "median support MSE after one step": mse(first, k_x, k_y).median().item(),
            "mean support MSE after one step": mse(first, k_x, k_y).mean().item(),
            "mean support MSE after two steps": mse(second, k_x, k_y).mean().item(),
            "test MSE after a quarter of the second step": mse(quarter, x, y).mean().item(),
        }


# Results ------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {key: f"{x:.6g}" for key, x in row.items() if isinstance(x, float)}
            writer.writerow({**row, **numbers})


def read_rows(path: Path) -> list[dict]:
    """The rows of a file, their numbers as numbers."""

    def value(text: str) -> int | float | str:
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                pass
        return text

    with path.open(newline="", encoding="utf-8") as file:
        return [{key: value(x) for key, x in row.items()} for row in csv.DictReader(file)]


class Results:
    """The rows of results.csv, to be asked for numbers."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = {(row["flags"], row["seed"], row["K"], row["steps"]): row for row in rows}

    def seeds(self, flags: str) -> list[int]:
        return sorted({seed for other, seed, _, _ in self.rows if other == flags})

    def score(self, flags: str, seed: int, shots: int, steps: int, name: str = "mse") -> float:
        return self.rows[flags, seed, shots, steps][name]

    def scores(self, flags: str, shots: int, steps: int, name: str = "mse") -> list[float]:
        """One for each seed."""
        return [self.score(flags, seed, shots, steps, name) for seed in self.seeds(flags)]

    def cell(self, flags: str, shots: int, steps: int, name: str = "mse") -> str:
        """The median of ten seeds with the lowest and the highest, or one seed with its ±."""
        scores = self.scores(flags, shots, steps, name)
        if len(scores) == 1:
            (ci,) = self.scores(flags, shots, steps, f"{name}_ci")
            return f"{scores[0]:.2f} ± {ci:.2f}"
        low, high = min(scores), max(scores)
        return f"{statistics.median(scores):.2f} ({low:.2f} to {high:.2f})"

    def capped(self, flags: str, shots: int, seed: int | None = None) -> int:
        """The number of capped tasks, of the worst step and seed."""
        seeds = self.seeds(flags) if seed is None else [seed]
        return max(
            int(self.score(flags, seed, shots, steps, "capped"))
            for seed in seeds
            for steps in STEPS
        )


# Tables -------------------------------------------------------------------------------------------


def markdown(*lines: list[str]) -> str:
    """A table, its first line the header."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def counted(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def job_table(results: Results) -> str:
    """The original's job."""
    columns = {
        "[the original's weights](res/README.md#the-weights-of-the-original)": ORIGINAL,
        "[**exact gradient**](res/README.md#maml)": MAML,
        "[first-order](res/README.md#first-order)": FOMAML,
        "[pretrained](res/README.md#pretrained)": PRETRAINED,
    }
    lines = [["K = 10", *columns]]
    for name, unit, steps in (("rsse", "√SSE", 1), *(("mse", "MSE", n) for n in (1, 2, 5, 10))):
        cells = [results.cell(flags, 10, steps, name) for flags in columns.values()]
        lines.append([f"{unit}, {counted(steps)}", *cells])
    capped = [str(results.capped(flags, 10)) for flags in columns.values()]
    return markdown(*lines, [f"MSE ≥ {main.CAP:g}", *capped])


def paper_table(results: Results) -> str:
    """The paper's Table 2, and its "varying numbers of K"."""
    columns = {
        "[1 inner step](res/README.md#the-objective-of-the-paper)": PAPER,
        "[first-order](res/README.md#first-order-with-the-objective-of-the-paper)": PAPER_FOMAML,
        "[2 inner steps](res/README.md#two-inner-steps)": TWO_STEPS,
        "[pretrained](res/README.md#pretrained-with-the-objective-of-the-paper)": PAPER_PRETRAINED,
    }
    lines = [["K, steps", "*paper*", *columns]]
    for shots, steps in itertools.product((5, 10, 20), TABLE_2):
        theirs = f"*{TABLE_2[steps]}*" if shots == 5 else ""
        cells = [results.cell(flags, shots, steps) for flags in columns.values()]
        lines.append([f"{shots}, {steps}", theirs, *cells])
    capped = [str(max(results.capped(flags, k) for k in (5, 10, 20))) for flags in columns.values()]
    lines.append([f"MSE ≥ {main.CAP:g}", "", *capped])
    return markdown(*lines)


def seeds_table(results: Results, flags: str) -> str:
    """One line for each seed of a run, for the gallery."""
    every_k = sorted({shots for other, _, shots, _ in results.rows if other == flags})
    steps = (1, 2, 5, 10) if len(every_k) == 1 else (1, 5, 10)
    columns = list(itertools.product(every_k, steps))
    if len(every_k) == 1:
        header = ["seed", *(f"K = {shots}, {counted(number)}" for shots, number in columns)]
    else:
        header = ["seed; K, steps", *(f"{shots}, {number}" for shots, number in columns)]
    lines = [[*header, f"MSE ≥ {main.CAP:g}"]]
    for seed in results.seeds(flags):
        cells = [f"{results.score(flags, seed, *column):.2f}" for column in columns]
        capped = max(results.capped(flags, shots, seed) for shots in every_k)
        lines.append([str(seed), *cells, str(capped)])
    return markdown(*lines)


def plateau_table(rows: list[dict]) -> str:
    """What the two failed first-order runs do in 4,000 more iterations."""
    columns = list(itertools.product((5, 7), ("first-order", "exact")))
    lines = [["iterations", *(f"seed {seed}, {gradient}" for seed, gradient in columns)]]
    for end in (500, 1_000, 2_000, 4_000):
        at = {(row["seed"], row["gradient"]): row for row in rows if row["iteration"] == end}
        cells = [f"{at[column]['loss']:.2f}" for column in columns]
        lines.append([f"{end - 499:,} to {end:,}", *cells])
    return markdown(*lines)


def blocks(rows: list[dict], plateau: list[dict]) -> dict[str, str]:
    """What stands between the comment lines of the pages, by the name in these lines."""
    results = Results(rows)
    tables = {"the original's experiment": job_table(results), "the paper": paper_table(results)}
    tables["the plateau"] = plateau_table(plateau)
    seeds = {"maml": MAML, "first-order": FOMAML, "paper": PAPER}
    seeds |= {"paper, first-order": PAPER_FOMAML, "paper, two steps": TWO_STEPS}
    return tables | {f"seeds of {name}": seeds_table(results, seeds[name]) for name in seeds}


def filled(page: str, tables: dict[str, str]) -> str:
    """A page with these tables between its comment lines."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: made by tests/results.py -->", "<!-- end -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        page = re.sub(pattern, f"{begin}\n{table}\n{end}", page, flags=re.DOTALL)
    return page


# Pictures -----------------------------------------------------------------------------------------


@matplotlib.style.context(main.STYLE)
def draw_seeds(path: Path, results: Results) -> None:
    """One point a seed: MSE after 1 and 10 steps of every method that has ten seeds."""
    methods = {
        "exact\n√SSE, K = 10": (MAML, 10),
        "first-order\n√SSE, K = 10": (FOMAML, 10),
        "exact\nMSE, K = 5": (PAPER, 5),
        "first-order\nMSE, K = 5": (PAPER_FOMAML, 5),
        "2 inner steps\nMSE, K = 5": (TWO_STEPS, 5),
    }
    figure = Figure(figsize=(9.6, 4.8), dpi=150, layout="constrained")
    for axes, steps in zip(figure.subplots(1, 2, sharey=True), (1, 10), strict=True):
        for place, (flags, shots) in enumerate(methods.values()):
            scores = results.scores(flags, shots, steps)
            x = [place + (seed - 4.5) / 15 for seed in SEEDS]
            color = "#0072B2" if "--first_order" not in flags else "#E69F00"
            axes.semilogy(x, scores, "o", color=color, alpha=0.7, markersize=5)
            median = statistics.median(scores)
            axes.plot([place - 0.4, place + 0.4], [median, median], "k", linewidth=1)
            for seed, score in enumerate(scores):
                if score > 1.5 * median:
                    offset, side = ((5, -3), "left") if seed < 5 else ((-5, -3), "right")
                    axes.annotate(f"seed {seed}", (x[seed], score), offset, ha=side, **LABEL)
        axes.plot([1.6, 4.4], [TABLE_2[steps]] * 2, "r--", linewidth=1, label="paper, K = 5")
        axes.axvline(1.5, color="gray", linewidth=0.8)
        axes.set_title(f"after {counted(steps)}", fontsize="medium")
        axes.set_xticks(range(len(methods)), methods, fontsize="small")
        axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.grid(axis="y", which="both", alpha=0.3)
    figure.axes[0].set_ylabel("MSE on 10,000 test tasks")
    figure.axes[0].legend(loc="lower left")
    figure.suptitle("Each point is one seed; the black line is the median of ten", fontsize="large")
    main.write(path, figure.savefig)


LABEL = {"textcoords": "offset points", "fontsize": "x-small"}


@matplotlib.style.context(main.STYLE)
def draw_plateau(path: Path, rows: list[dict]) -> None:
    """The two failed first-order runs, continued first-order and with the exact gradient."""
    axes = Figure(figsize=(6.4, 3.6), dpi=150, layout="constrained").subplots()
    for seed, gradient in itertools.product((5, 7), ("first-order", "exact")):
        chosen = [row for row in rows if (row["seed"], row["gradient"]) == (seed, gradient)]
        color = "#0072B2" if gradient == "exact" else "#E69F00"
        marker = "o" if seed == 5 else "s"
        x, y = zip(*((row["iteration"], row["loss"]) for row in chosen), strict=True)
        axes.plot(x, y, marker=marker, color=color, label=f"seed {seed}, {gradient}")
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
    known = Results(read_rows(RESULTS))
    found = []
    for row in rows:
        key = (row["flags"], row["seed"], row["K"], row["steps"])
        margin = 0.0275 if known.capped(row["flags"], row["K"], row["seed"]) else 0.0075
        for name in ("rsse", "rsse_ci", "mse", "mse_ci", "median", "mse_of_uncapped", "capped"):
            allowed = 2 if name == "capped" else margin
            if abs(row[name] - known.rows[key][name]) > allowed:
                found.append(f"{key}: {name} is {row[name]}, not {known.rows[key][name]}")
    return found


def command() -> None:
    parser = argparse.ArgumentParser(description="Makes the tables and pictures of the pages.")
    parser.add_argument("--write", action="store_true", help="put all into res/ and the pages")
    parser.add_argument("--check", action="store_true", help="only compare with res/results.csv")
    args = parser.parse_args()
    rows = measure_all()
    if args.check:
        sys.exit("\n".join(differences(rows)) or None)
    plateau = measure_plateau()
    tables = blocks(rows, plateau)
    for name, table in tables.items():
        print(f"\n{name}\n{table}")
    for steps in (5, 10):
        scores = Results(rows).scores(PAPER, 5, steps, "mse_of_uncapped")
        below_cap = f"median MSE of tasks below the cap {statistics.median(scores):.2f}"
        print(f"\nK = 5, {steps} steps, the paper's objective: {below_cap}")
        median, low, high = small_tests(Measurement(PAPER, 0, 5), steps)
        draws = f"median MSE {median:.2f}, 90 % from {low:.2f} to {high:.2f}"
        print(f"\n600 test tasks, drawn 300 times, {steps} steps, the paper's objective: {draws}")
    for name, number in second_step().items():
        print(f"the second step of seed 0, {name}: {number:.2f}")
    if args.write:
        write_rows(RESULTS, rows)
        write_rows(PLATEAU, plateau)
        draw_seeds(ROOT / "res/seeds.png", Results(rows))
        draw_plateau(ROOT / "res/plateau.png", plateau)
        for page in PAGES:
            text = filled(page.read_text(encoding="utf-8"), tables)
            page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command()
