"""MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017, Section 5.1).

python3 main.py           trains, in a few minutes on a CPU
python3 main.py --test    measures the trained weights on 10,000 test tasks and
                          draws res/graph(k=10).png and res/steps(k=10).png
"""

import argparse
import io
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # draws to files; a notebook's may not be installed here

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor, nn
from tqdm import tqdm

from data import Sinusoid, meta_batches
from meta import Meta, chunks
from net import LOSSES, Net

# The settings of a run and their defaults. Those that are changed name its files.
SETTINGS = {
    "k_shot": 10,
    "epochs": 70_000,
    "batch_size": 10,
    "inner_lr": 0.01,
    "outer_lr": 0.001,
    "seed": 0,
    "loss": "rsse",
    "inner_steps": 1,
    "first_order": False,
}

# Independent random streams, told apart by the first word of their seeds. Training tasks and the
# drawn task follow --seed, as the initial weights do. All runs share validation and test tasks.
DRAWN, TRAIN, VALIDATION, TEST = range(4)

VALIDATION_TASKS, TEST_TASKS = 1_000, 10_000
VALIDATE_EVERY = 1_000  # iterations
CHECKPOINT_EVERY = 5  # seconds: about the most that a stopped run loses
MAX_STEPS = 10  # gradient steps in the evaluation
GRID = torch.from_numpy(np.linspace(-5.0, 5.0, 50)[:, None])  # (50, 1), the inputs of the test
CAP = 100.0  # a larger MSE counts as this, so that the mean is finite; predicting 0 gives below 14
PRETRAINED = "pretrained on all tasks"  # the paper's baseline
ADVICE = "try a smaller --inner_lr or --outer_lr, or fewer --inner_steps"  # if a run diverges


class InputError(Exception):
    """What the user gave can't be used; the message is one sentence that says why."""


# Command line -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Train or test. Exits with 2 where it can't do what it is asked, and with 130 after Ctrl-C."""
    args = parse(argv)
    matplotlib.rcdefaults()  # pictures are the same, whatever the user's settings
    matplotlib.rcParams["text.parse_math"] = False  # a $ in a file name is not math
    # A second thread makes one run a little faster, and two runs on two cores many times slower.
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(*(f"{key}={value}" for key, value in vars(args).items()), f"device={device}")
    command = test if args.test else train
    try:
        command(args, device)
    except KeyboardInterrupt:
        advice = "; --resume goes on from the last checkpoint, if there is one"
        fail(f"interrupted{'' if args.test else advice}", code=130)
    except (InputError, OSError) as error:
        fail(str(error))
    except torch._dynamo.exc.TorchDynamoException as error:  # no C++ compiler, for example
        fail(f"--compile failed: {str(error).splitlines()[0]}")


def fail(sentence: str, code: int = 2) -> None:
    print(f"main.py: {sentence}", file=sys.stderr)
    sys.exit(code)


def in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags. What can't be used costs one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        description="MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("training settings, which name the files of a run").add_argument
    add("--epochs", type=above(0), metavar="N", help="iterations of the outer loop")
    add("--batch_size", type=above(0), metavar="N", help="tasks in a meta-batch")
    add("--k_shot", type=above(0), metavar="N", help="support points of a task, K")
    rate = {"type": above(0, kind=float), "metavar": "LR"}
    add("--inner_lr", **rate, help="step size of the inner loop, alpha")
    add("--outer_lr", **rate, help="Adam's step size, outer loop, beta")
    seed = "seed of the initial weights, the training tasks and the drawn task"
    add("--seed", type=above(-1, below=2**32), metavar="N", help=seed)
    add("--loss", choices=LOSSES, help="root of the summed squared error, or mean squared error")
    steps = "gradient steps in training; 0: the pretrained baseline"
    add("--inner_steps", type=above(-1), metavar="N", help=steps)
    add("--first_order", action="store_true", help="drop the second derivatives: FOMAML")
    parser.set_defaults(**SETTINGS)

    add = parser.add_argument_group("what to do").add_argument
    add("--compile", action="store_true", help="train about twice as fast, after a slow start")
    add("--resume", action="store_true", help="resume a run that was stopped")
    add("--test", action="store_true", help="measure the trained weights and draw graphs")
    shots = "with --test: support points in the test, if not those of --k_shot"
    add("--test_shots", type=above(0), metavar="N", help=shots)
    file = "with --test: measure the weights in FILE instead"
    add("--weights", type=Path, metavar="FILE", help=file)

    args = parser.parse_args(argv)
    if args.test and (args.compile or args.resume):
        parser.error("--test can't be combined with --compile or --resume")
    if not args.test and (args.test_shots or args.weights):
        parser.error("--test_shots and --weights need --test")
    return args


def above(bound: int, below: float = math.inf, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number between these two."""

    def number(text: str) -> float:
        if not bound < kind(text) < below:
            words = f"must be above {bound} and below {below}, not {text}"
            raise argparse.ArgumentTypeError(words)
        return kind(text)

    number.__name__ = kind.__name__  # for argparse's own sentence, "invalid int value: 'ten'"
    return number


def run_name(args: argparse.Namespace) -> str:
    """The name of a run, for its files: K, then the settings that are not the defaults."""
    words = [f"k={args.k_shot}"]
    for setting, default in SETTINGS.items():
        value = getattr(args, setting)
        if setting != "k_shot" and value != default:
            words.append(setting if value is True else f"{setting}={value}")
    return ",".join(words)


def in_words(name: str) -> str:
    """A `run_name`, which begins with "k=", as the title of a graph."""
    return "K" + name[1:].replace(",", ", ").replace("_", " ").replace("=", " = ")


def weights_file(args: argparse.Namespace) -> Path:
    return Path("weights", f"w({run_name(args)}).pt")


def learner(args: argparse.Namespace, device: str) -> Meta:
    """A learner with these settings and random weights: line 1 of the algorithm."""
    net, loss = Net().to(device), LOSSES[args.loss]
    return Meta(net, loss, args.inner_lr, args.outer_lr, args.inner_steps, args.first_order)


# Training -----------------------------------------------------------------------------------------


def train(args: argparse.Namespace, device: str) -> None:
    """Algorithm 1 of the paper, with validation and checkpoints. Its results come at the end."""
    checkpoint = Path("weights", f"checkpoint({run_name(args)}).pt")
    settings = {setting: getattr(args, setting) for setting in SETTINGS}

    torch.manual_seed(args.seed)
    meta = learner(args, device)  # line 1
    losses, validations, best = [], [], snapshot(meta.net)
    if args.resume:
        losses, validations, best = resume(checkpoint, settings, meta)
    elif checkpoint.exists():
        raise InputError(f"{checkpoint} belongs to an unfinished run: add --resume, or delete it")
    if args.compile:
        meta.compile()
        print("compiling ...")

    tasks = Sinusoid(args.k_shot, seed=(TRAIN, args.seed))
    batches = meta_batches(tasks, args.batch_size, len(losses), device)
    schedule = validation_schedule(args.epochs)
    saved = time.monotonic()
    with tqdm(total=args.epochs, initial=len(losses), unit="it") as bar:
        while len(losses) < args.epochs:  # line 2
            batch = next(batches)  # line 3
            loss = meta(*batch)  # lines 4 to 8
            losses.append(loss)
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at iteration {len(losses)}: {ADVICE}")
            bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            bar.update()
            if len(losses) == schedule[len(validations)]:
                validation = validate(meta, args.k_shot, device)
                if validation < min(validations, default=math.inf):
                    best = snapshot(meta.net)
                validations.append(validation)
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                state = {
                    "settings": settings,
                    "meta": meta.state_dict(),
                    "outer_optim": meta.outer_optim.state_dict(),
                    "losses": torch.tensor(losses, dtype=torch.float64),
                    "validations": torch.tensor(validations, dtype=torch.float64),
                    "best": best,  # weights, as in the file that the run will leave
                }
                write(checkpoint, partial(torch.save, state))
                saved = time.monotonic()

    if min(validations) == math.inf:
        raise InputError(f"no validation loss was finite: {ADVICE}")
    write_results(args, losses, validations, best)
    checkpoint.unlink(missing_ok=True)


def validation_schedule(epochs: int) -> list[int]:
    """The iterations of a run that are followed by a validation, the last among them."""
    return [*range(VALIDATE_EVERY, epochs, VALIDATE_EVERY), epochs]


@torch.no_grad()
def validate(meta: Meta, k_shot: int, device: str) -> float:
    """The mean query loss on the validation tasks, inf if it is not finite."""
    tasks = Sinusoid(k_shot, num_tasks=VALIDATION_TASKS, seed=(VALIDATION,))
    batch = [points.to(device) for points in tasks.batch(range(len(tasks)))]
    meta.eval()
    loss = torch.cat([meta.query_loss(*chunk) for chunk in chunks(*batch)]).mean().item()
    meta.train()
    return loss if math.isfinite(loss) else math.inf  # NaN can't be compared


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights, as it is written to a file."""
    return {name: w.to("cpu", copy=True) for name, w in net.state_dict().items()}


def resume(path: Path, settings: dict, meta: Meta) -> tuple[list, list, dict]:
    """The losses, validation losses and best weights of a stopped run, whose state `meta` takes.

    Raises an `InputError` if there is no checkpoint, or one that does not fit this run.
    """
    if not path.exists():
        raise InputError(f"no checkpoint {path}: leave out --resume to start a run")
    state = read(path)
    try:
        if state["settings"] != settings:
            raise ValueError("it has other settings")
        losses, validations = state["losses"].tolist(), state["validations"].tolist()
        epochs = settings["epochs"]
        due = [number for number in validation_schedule(epochs) if number <= len(losses)]
        if len(losses) > epochs or len(validations) != len(due):
            raise ValueError(f"it has {len(losses)} losses and {len(validations)} validations")
        meta.net.load_state_dict(state["best"])  # do they fit? Those of now come last
        for p in meta.parameters():
            p.grad = torch.zeros_like(p)
        meta.outer_optim.step()  # makes its state; PyTorch does not compare it with what it loads
        expected = shapes(meta.outer_optim)
        meta.outer_optim.load_state_dict(state["outer_optim"])
        if shapes(meta.outer_optim) != expected:
            raise ValueError("the state of its optimizer has other shapes")
        meta.load_state_dict(state["meta"])
    except Exception as error:  # any part may be something else
        raise InputError(f"{path} does not fit this run: {in_one_line(error)}") from error
    return losses, validations, state["best"]


def shapes(optim: torch.optim.Optimizer) -> dict:
    """What an optimizer keeps for each parameter, by name and shape."""
    return {p: {name: x.shape for name, x in kept.items()} for p, kept in optim.state.items()}


def write_results(
    args: argparse.Namespace, losses: list[float], validations: list[float], best: dict[str, Tensor]
) -> None:
    """The weights of a run, its losses as CSV, and their graph."""
    name = run_name(args)
    graph = Path("res", "loss_final.png" if name == "k=10" else f"loss_final({name}).png")
    table = graph.with_suffix(".csv")
    at = dict(zip(validation_schedule(len(losses)), validations, strict=True))
    rows = [f"{number},{loss},{at.get(number, '')}" for number, loss in enumerate(losses, 1)]
    lines = "\n".join(["iteration,loss,validation_loss", *rows, ""])

    write(weights_file(args), partial(torch.save, best))
    write(table, lambda file: file.write(lines.encode()))
    draw_losses(graph, args, losses, validations)
    print(f"weights: {weights_file(args)}, best validation loss: {min(validations):.5g}")
    print(f"losses: {graph}, {table}; the same command with --test measures the weights")


# Files --------------------------------------------------------------------------------------------


def read(path: Path) -> object:
    """What `torch.save` wrote. No code in it is executed.

    Raises an `OSError` if the file can't be read, and an `InputError` if it is of another kind, or
    damaged, down to a single bit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # PyTorch checks no checksums, and reads nothing of a part that is said to be a folder.
            folders = [part for part in archive.infolist() if part.external_attr & 0x10]
            if folders or archive.testzip():
                raise ValueError("damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # such a file can make its reader raise almost anything
        raise InputError(f"{path} is damaged, or no file of tensors by torch.save") from error


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path`, then move it there.

    If that fails, the old file stays as it was, and an `OSError` is raised.
    """
    buffer = io.BytesIO()
    save(buffer)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # else a power cut after the move may leave an empty file
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


# Evaluation ---------------------------------------------------------------------------------------


def test(args: argparse.Namespace, device: str) -> None:
    """One drawn task and TEST_TASKS test tasks, with 0 to MAX_STEPS gradient steps."""
    files = files_to_measure(args)
    learners = {label: load(file, args, device) for label, file in files.items()}
    name, shots = run_name(args), args.test_shots or args.k_shot
    if shots != args.k_shot:
        name += f",test_shots={shots}"
    title = in_words(name)
    if args.weights:
        name += f",weights={args.weights.stem}"

    drawn = Sinusoid(shots, 0, num_tasks=1, seed=(DRAWN, args.seed))
    k_x, k_y, _, _ = drawn.batch([0])
    y = drawn.target([0], GRID)[0]  # (50, 1)
    curves, scores = {}, {}
    for label, meta in learners.items():
        curves[label] = predictions(meta, k_x, k_y)[:, 0]  # (11, 50, 1)
        norms = (curves[label] - y).norm(dim=(1, 2))  # (11,)
        scores[label] = summarize(evaluate(meta, shots))
        tasks = f"a drawn task and {TEST_TASKS} test tasks with K = {shots}"
        print(f"\n{label}, {files[label]}, on {tasks}:")
        print(f"| pre loss: {norms[0]:.3f} | post loss: {norms[1]:.3f} |")
        print(table(scores[label]))

    graph_file, steps_file = Path("res", f"graph({name}).png"), Path("res", f"steps({name}).png")
    draw_graph(graph_file, title, (k_x[0], k_y[0]), y, curves)
    draw_steps(steps_file, title, scores)
    print(f"\ngraphs: {graph_file}, {steps_file}")


def files_to_measure(args: argparse.Namespace) -> dict[str, Path]:
    """By label: the weights that are asked for, and the pretrained baseline if it is there."""
    pretraining = argparse.Namespace(**{**vars(args), "inner_steps": 0, "first_order": False})
    baseline = weights_file(pretraining)
    if args.weights:  # quotes tell it from the other labels, escapes suit any font
        files = {ascii(args.weights.name): args.weights}
    elif args.inner_steps == 0:
        files = {PRETRAINED: weights_file(args)}
    else:
        files = {"FOMAML" if args.first_order else "MAML": weights_file(args)}
    if args.inner_steps > 0 and baseline.exists():
        files[PRETRAINED] = baseline
    return files


def load(file: Path, args: argparse.Namespace, device: str) -> Meta:
    """A learner with the weights of a file."""
    if not file.exists():
        raise InputError(f"no file {file} in this folder: train first, or pass --weights")
    meta, weights = learner(args, device), read(file)
    try:
        meta.net.load_state_dict(weights)
    except Exception as error:  # it may be anything
        raise InputError(f"{file} does not fit the network: {in_one_line(error)}") from error
    return meta.eval()


@torch.no_grad()
def predictions(meta: Meta, k_x: Tensor, k_y: Tensor) -> Tensor:
    """The predictions on GRID after 0 to MAX_STEPS steps: (MAX_STEPS + 1, tasks, 50, 1)."""
    weight = next(meta.parameters())
    x = GRID.expand(len(k_x), -1, -1)
    k_x, k_y, x = (points.to(weight) for points in (k_x, k_y, x))  # its device and precision
    fast = meta.adapt(k_x, k_y, 0)
    steps = [meta.net(x, fast)]
    for _ in range(MAX_STEPS):
        fast = meta.adapt(k_x, k_y, 1, fast)
        steps.append(meta.net(x, fast))
    return torch.stack(steps).cpu()


def evaluate(meta: Meta, shots: int) -> Tensor:
    """The summed squared errors over GRID of the test tasks: (MAX_STEPS + 1, TEST_TASKS)."""
    tasks = Sinusoid(shots, 0, num_tasks=TEST_TASKS, seed=(TEST,))
    k_x, k_y, _, _ = tasks.batch(range(TEST_TASKS))
    y = tasks.target(range(TEST_TASKS), GRID)  # (TEST_TASKS, 50, 1)
    sse = []
    for chunk_x, chunk_y, target in tqdm(list(chunks(k_x, k_y, y)), "testing", leave=False):
        errors = predictions(meta, chunk_x, chunk_y) - target
        sse.append(errors.square().sum((2, 3)))
    return torch.cat(sse, dim=1)


def summarize(sse: Tensor) -> dict[str, Tensor]:
    """Scores, each (MAX_STEPS + 1,), of summed squared errors over GRID, (MAX_STEPS + 1, tasks).

    An MSE above CAP, or NaN, counts as CAP. The scores are the means "rsse", √SSE, and "mse", half
    of their 95 % confidence intervals, "rsse_ci" and "mse_ci", the "median" MSE, and how many tasks
    are "capped".
    """
    mse = torch.fmin(sse / len(GRID), torch.tensor(CAP))  # `clamp` would keep NaN
    rsse = (mse * len(GRID)).sqrt()
    root_n = math.sqrt(sse.shape[1])
    return {
        "rsse": rsse.mean(1),
        "rsse_ci": 1.96 * rsse.std(1) / root_n,
        "mse": mse.mean(1),
        "mse_ci": 1.96 * mse.std(1) / root_n,
        "median": mse.quantile(0.5, dim=1),
        "capped": (mse >= CAP).sum(1),
    }


def table(scores: Mapping[str, Tensor]) -> str:
    """The scores of `summarize` as lines to print."""
    lines = [f"gradient steps   rsse of {len(GRID)} points                MSE   median MSE"]
    for step in (0, 1, 2, 3, 5, MAX_STEPS):
        row = "{rsse:9.3f} +- {rsse_ci:5.3f}   {mse:7.3f} +- {mse_ci:5.3f}   {median:10.3f}"
        values = {name: values[step] for name, values in scores.items()}
        lines.append(f"{step:14}   {row.format(**values)}")
    capped = int(scores["capped"].max())
    lines.append(f"tasks capped at MSE {CAP:g}: at most {capped} of {TEST_TASKS} after any step")
    return "\n".join(lines)


# Graphs -------------------------------------------------------------------------------------------


def draw_losses(
    path: Path, args: argparse.Namespace, losses: list[float], validations: list[float]
) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    iterations, schedule = range(1, len(losses) + 1), validation_schedule(len(losses))
    window = min(VALIDATE_EVERY, (len(losses) + 1) // 2)
    smoothed = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    kept = schedule[np.argmin(validations)]
    unit = {"rsse": "√SSE", "mse": "MSE"}.get(args.loss, args.loss)

    axes = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()
    axes.semilogy(iterations, losses, alpha=0.25, linewidth=0.5, label="each meta-batch")
    mean = f"mean of the last {window:,} iterations"
    axes.plot(iterations[window - 1 :], smoothed, "C0", label=mean)
    validation = f"validation, {VALIDATION_TASKS:,} tasks"
    axes.plot(schedule, validations, "C1.-", markersize=3, label=validation)
    axes.plot(kept, min(validations), "k*", label=f"weights kept, iteration {kept:,}")

    axes.set_title(f"Training, {in_words(run_name(args))}", fontsize="medium")
    axes.set(xlabel="iteration of the outer loop", ylabel=f"query loss ({unit})")
    # Beyond four decades, the powers of ten are enough. Within half of one, all ticks are labelled.
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1,) if high > 1e4 * low else (1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}" if high < 4.1 * low else "")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right").get_lines()[0].set(linewidth=6)
    axes.grid(which="both", alpha=0.3)
    write(path, axes.figure.savefig)


def draw_graph(path: Path, title: str, points: Sequence, y: Tensor, curves: Mapping) -> None:
    """The drawn task before and after adaptation, by every learner (the paper's Figure 2).

    Args:
        points: support points k_x and k_y, each (K, 1).
        y: the task on GRID, (50, 1).
        curves: by label, predictions after 0 to MAX_STEPS steps, (MAX_STEPS + 1, 50, 1).
    """
    figure = Figure(figsize=(3.2 + 3.2 * len(curves), 4.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (label, pred) in zip(panels, curves.items(), strict=True):
        axes.plot(GRID, y, "k", alpha=0.4, linewidth=4, label="Ground Truth")
        axes.plot(GRID, pred[0], color="#E69F00", linestyle=":", linewidth=2, label="Pre Update")
        axes.plot(GRID, pred[1], color="#0072B2", linewidth=2, label="One Grad Step")
        axes.plot(GRID, pred[-1], color="#CC79A7", linestyle="--", label=f"{MAX_STEPS} Grad Steps")
        axes.plot(*points, "k^", label=f"K = {len(points[0])} Support Points")
        pre, post, last = (pred - y).norm(dim=(1, 2))[[0, 1, MAX_STEPS]]
        errors = f"{pre:.2f} → {post:.2f} → {last:.2f}"
        steps = f"√SSE after 0 → 1 → {MAX_STEPS} steps: {errors}"
        axes.set_title(f"{label}\n{steps}", fontsize="medium")
        axes.set(xlabel="x", ylim=panels[0].get_ylim())  # the first sets the frame of all
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write(path, figure.savefig)


def draw_steps(path: Path, title: str, scores: Mapping[str, Mapping[str, Tensor]]) -> None:
    """MSE on the test tasks against the number of gradient steps (the paper's Figure 3)."""
    axes = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()
    steps = range(MAX_STEPS + 1)
    for label, score in scores.items():
        mse, ci, capped = score["mse"], score["mse_ci"], int(score["capped"].max())
        if capped:
            label += f", MSE ≥ {CAP:g}: {capped} {'task' if capped == 1 else 'tasks'}"
        axes.plot(steps, mse, marker=".", label=label)
        axes.fill_between(steps, mse - ci, mse + ci, alpha=0.3)
    protocol = f"{TEST_TASKS:,} test tasks, mean and 95 % confidence interval"
    axes.set_title(f"{title}\n{protocol}", fontsize="medium")
    ylabel = f"MSE of {len(GRID)} points"
    axes.set(xlabel="gradient steps", ylabel=ylabel, xticks=steps, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.figure.legend(loc="outside lower center", ncols=2)
    write(path, axes.figure.savefig)


if __name__ == "__main__":
    main()
