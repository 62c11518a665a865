"""MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017, Section 5.1).

python3 main.py           trains, in a few minutes on a CPU
python3 main.py --test    measures the trained weights on 10,000 test tasks and
                          draws res/graph(k=10).png and res/steps(k=10).png
"""

import io
import math
import os
import re
import sys
import time
import zipfile
from argparse import ArgumentParser, Namespace
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
from meta import CompileError, Meta, chunks
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
    "name": "",
}

Tasks = Sinusoid  # the curves of training, validation, test and picture

# Independent random streams, told apart by the first word of their seeds. Training tasks and the
# drawn task follow --seed, as the initial weights do. All runs share validation and test tasks.
DRAWN, TRAIN, VALIDATION, TEST = range(4)

VALIDATION_TASKS, TEST_TASKS = 1_000, 10_000
VALIDATE_EVERY = 1_000  # iterations
CHECKPOINT_EVERY = 5  # seconds: about the most that a stopped run loses
MAX_STEPS = 10  # gradient steps in the evaluation
GRID = torch.from_numpy(np.linspace(*Tasks.x_range, 50)[:, None])  # (50, 1), inputs of the test
CAP = 100.0  # a larger MSE counts as this, so that the mean is finite; predicting 0 gives below 14
PRETRAINED = "pretrained"  # on all tasks, the paper's baseline
COLORS = {"MAML": "#0072B2", "first-order": "#E69F00", PRETRAINED: "#AA3377"}  # in all pictures
UNITS = {"rsse": "√SSE", "mse": "MSE"}

# Of a run: the losses, the validation losses by their iterations, and the best weights.
Results = tuple[list[float], dict[int, float], dict[str, Tensor]]


class Failure(Exception):
    """The command can't do what it is asked; the message is one sentence that says why."""


# Command line -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Train or test. Exits with 2 where it can't do what it is asked, and with 130 after Ctrl-C."""
    args = parse(argv)
    # A second thread makes one run a little faster, and two runs on two cores many times slower.
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(*(f"{key}={value}" for key, value in vars(args).items()), f"device={device}")
    try:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # pictures are the same, whatever the user's settings
            matplotlib.rcParams["text.parse_math"] = False  # a $ in a file name is not math
            (test if args.test else train)(args, device)
    except KeyboardInterrupt:
        hint = "; --resume goes on from the last checkpoint, if there is one"
        fail(f"interrupted{'' if args.test else hint}", code=130)
    except (Failure, OSError) as error:
        fail(str(error))
    except CompileError as error:
        fail(f"--compile failed: {error}")


def fail(sentence: str, code: int = 2) -> None:
    print("main.py:", *sentence.split(), file=sys.stderr)  # in one line
    sys.exit(code)


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """The flags. What can't be used costs one sentence and exit code 2."""
    parser = ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    settings = parser.add_argument_group("training settings, which name the files of a run")

    def setting(name: str, meaning: str, **options: object) -> None:
        default = SETTINGS[name]
        options = options or {"type": type(default)}
        meaning = f"{meaning} (default: {default!r})"
        settings.add_argument(f"--{name}", default=default, help=meaning, **options)

    setting("epochs", "iterations of the outer loop")
    setting("batch_size", "tasks in a meta-batch")
    setting("k_shot", "support points of a task, K")
    setting("inner_lr", "step size of the inner loop, alpha")
    setting("outer_lr", "Adam's step size, outer loop, beta")
    setting("seed", "seed of the initial weights, the training tasks and the drawn task")
    setting("loss", "root of the summed squared error, or mean squared error", choices=LOSSES)
    setting("inner_steps", "gradient steps in training; 0: the pretrained baseline")
    setting("first_order", "drop the second derivatives: FOMAML", action="store_true")
    setting("name", "label of an experiment of your own: a-z, 0-9, - and _")

    add = parser.add_argument_group("what to do").add_argument
    add("--compile", action="store_true", help="train more than twice as fast, after a slow start")
    add("--resume", action="store_true", help="resume a run that was stopped")
    add("--test", action="store_true", help="measure the trained weights and draw graphs")
    add("--test_shots", type=int, help="with --test: support points, if not those of --k_shot")
    file = "with --test: measure this file; files of one name, without its ending, share graphs"
    add("--weights", type=Path, help=file)

    args = parser.parse_args(argv)
    if args.test and (args.compile or args.resume):
        parser.error("--test can't be combined with --compile or --resume")
    if not args.test and (args.test_shots is not None or args.weights):
        parser.error("--test_shots and --weights need --test")
    for flag, value in vars(args).items():
        lowest = 1 if flag in ("epochs", "batch_size", "k_shot", "test_shots") else 0
        if isinstance(value, int | float) and not value >= lowest:  # nor NaN
            parser.error(f"--{flag} must be at least {lowest}, not {value}")
    if args.seed >= 2**32:  # PyTorch takes 32 bits of it
        parser.error(f"--seed must be below 2**32, not {args.seed}")
    if not re.fullmatch("([a-z0-9][a-z0-9_-]{0,39})?", args.name):
        parser.error("--name has up to 40 of a-z, 0-9, - and _, and begins with a letter or digit")
    return args


def run_name(args: Namespace) -> str:
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


def weights_file(args: Namespace) -> Path:
    return Path("weights", f"w({run_name(args)}).pt")


def learner(args: Namespace, device: str) -> Meta:
    """A learner with these settings and random weights: line 1 of the algorithm."""
    net, loss = Net().to(device), LOSSES[args.loss]
    return Meta(net, loss, args.inner_lr, args.outer_lr, args.inner_steps, args.first_order)


# Training -----------------------------------------------------------------------------------------


def train(args: Namespace, device: str) -> None:
    """Algorithm 1 of the paper, with validation and checkpoints. Its results come at the end."""
    checkpoint = Path("weights", f"checkpoint({run_name(args)}).pt")
    torch.manual_seed(args.seed)
    meta = learner(args, device)  # line 1
    check_parameters(meta)
    losses, validations, best = [], {}, snapshot(meta.net)
    if args.resume:
        losses, validations, best = resume(checkpoint, args, meta)
    elif checkpoint.exists():
        raise Failure(f"{checkpoint} belongs to an unfinished run: add --resume, or delete it")
    tasks = Tasks(args.k_shot, seed=(TRAIN, args.seed))
    if args.compile:
        print("compiling ...")
        meta.compile_gradient(*next(meta_batches(tasks, args.batch_size, 0, device)))

    batches = meta_batches(tasks, args.batch_size, len(losses), device)
    saved = time.monotonic()
    with tqdm(total=args.epochs, initial=len(losses), unit="it") as bar:
        while len(losses) < args.epochs:  # line 2
            batch = next(batches)  # line 3
            loss = meta(*batch)  # lines 4 to 8
            losses.append(loss)
            if not math.isfinite(loss):
                where = f"at iteration {len(losses)}"
                raise Failure(f"the loss is {loss} {where}: try a smaller step size")
            if len(losses) % VALIDATE_EVERY == 0 or len(losses) == args.epochs:
                validation = validate(meta, args.k_shot, device)
                if validation < min(validations.values(), default=math.inf):
                    best = snapshot(meta.net)
                validations[len(losses)] = validation
            latest = f", validation {validations[max(validations)]:.4g}" if validations else ""
            bar.set_postfix_str(f"loss {loss:.4g}{latest}", refresh=False)
            bar.update()
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                write_checkpoint(checkpoint, args, meta, (losses, validations, best))
                saved = time.monotonic()

    write_results(args, (losses, validations, best))
    checkpoint.unlink(missing_ok=True)


def check_parameters(meta: Meta) -> None:
    """Refuse to train what would be lost, or would stay as it is."""
    kept = set(meta.net.parameters())
    held = {p for group in meta.outer_optim.param_groups for p in group["params"]}
    for name, p in meta.named_parameters():
        if not p.requires_grad:
            raise Failure(f"{name} is frozen, but all parameters are trained: make it a buffer")
        if p not in kept:
            raise Failure(f"{name} would be trained but not kept: put it into the network")
        if p not in held:
            raise Failure(f"the optimizer does not have {name}: make it after the network")


@torch.no_grad()
def validate(meta: Meta, k_shot: int, device: str) -> float:
    """The mean query loss on the validation tasks, inf if it is not finite."""
    tasks = Tasks(k_shot, num_tasks=VALIDATION_TASKS, seed=(VALIDATION,))
    batch = [points.to(device) for points in tasks.batch(range(len(tasks)))]
    modes = {module: module.training for module in meta.modules()}
    meta.eval()
    loss = torch.cat([meta.query_loss(*chunk) for chunk in chunks(*batch)]).mean().item()
    for module, mode in modes.items():
        module.train(mode)  # parts come after the whole, so each ends in its own mode
    return loss if math.isfinite(loss) else math.inf  # NaN can't be compared


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights, as it is written to a file."""
    return {name: w.to("cpu", copy=True) for name, w in net.state_dict().items()}


def identity(args: Namespace, meta: Meta) -> dict[str, object]:
    """Whose a checkpoint is. An optimizer tells its parameters apart by their order."""
    names = {p: name for name, p in meta.named_parameters()}
    held = [p for group in meta.outer_optim.param_groups for p in group["params"]]
    return {
        "settings": {setting: getattr(args, setting) for setting in SETTINGS},
        "optimizer": str(type(meta.outer_optim)),
        "weights": [(names.get(p), list(p.shape)) for p in held],
    }


def write_checkpoint(path: Path, args: Namespace, meta: Meta, results: Results) -> None:
    losses, validations, best = results
    state = {
        "run": identity(args, meta),
        "meta": meta.state_dict(),
        "outer_optim": meta.outer_optim.state_dict(),
        "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state() if next(meta.parameters()).is_cuda else None,
        "losses": losses,
        "validations": validations,
        "best": best,
    }
    write(path, partial(torch.save, state))


def resume(path: Path, args: Namespace, meta: Meta) -> Results:
    """The results so far of a stopped run, whose state `meta` takes.

    Raises a `Failure` if there is no checkpoint, or one that does not fit this run.
    """
    if not path.exists():
        raise Failure(f"no checkpoint {path}: leave out --resume to start a run")
    state = read(path)
    try:
        if state["run"] != identity(args, meta):
            raise ValueError("it has other settings, weights or another optimizer")
        meta.load_state_dict(state["meta"])
        meta.outer_optim.load_state_dict(state["outer_optim"])
        torch.set_rng_state(state["random"])
        if next(meta.parameters()).is_cuda and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"])
        return list(state["losses"]), dict(state["validations"]), dict(state["best"])
    except Exception as error:  # any part may be something else
        raise Failure(f"{path} does not fit this run: {error}") from error


def write_results(args: Namespace, results: Results) -> None:
    """The weights of a run, its losses as CSV, and their graph. Raises a `Failure` without any."""
    losses, validations, best = results
    if not validations:
        raise Failure("the run has no results, because it ended before its first validation")
    lowest = min(validations.values())
    if lowest == math.inf:
        raise Failure("no validation loss was finite: try a smaller step size")
    name = run_name(args)
    graph = Path("res", "loss_final.png" if name == "k=10" else f"loss_final({name}).png")
    numbers = graph.with_suffix(".csv")
    rows = [f"{i},{loss},{validations.get(i, '')}" for i, loss in enumerate(losses, 1)]
    lines = "\n".join(["iteration,loss,validation_loss", *rows, ""])

    write(weights_file(args), partial(torch.save, best))
    write(numbers, lambda file: file.write(lines.encode()))
    draw_losses(graph, args, losses, validations)
    print(f"weights: {weights_file(args)}, best validation loss: {lowest:.5g}")
    print(f"losses: {graph}, {numbers}; the same command with --test measures the weights")


# Files --------------------------------------------------------------------------------------------


def read(path: Path) -> object:
    """What `torch.save` wrote; no code in it is executed. Raises a `Failure` if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # PyTorch itself checks no checksums
                raise ValueError("damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # such a file can make its reader raise almost anything
        raise Failure(f"{path} is damaged, or no file of tensors by torch.save") from error


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write a file beside `path`, then move it there. If that fails, the old one stays.

    Raises an `OSError` that names the file.
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
        if os.path.exists(temporary):  # `unlink` may fail, and hide the sentence
            temporary.unlink()


# Evaluation ---------------------------------------------------------------------------------------


def test(args: Namespace, device: str) -> None:
    """One drawn task and TEST_TASKS test tasks, with 0 to MAX_STEPS gradient steps."""
    files = files_to_measure(args)
    learners = {label: load(file, args, device) for label, file in files.items()}
    name, shots = run_name(args), args.test_shots or args.k_shot
    if shots != args.k_shot:
        name += f",test_shots={shots}"
    title = in_words(name)
    if args.weights:
        name += f",weights={args.weights.stem}"

    drawn = Tasks(shots, 0, num_tasks=1, seed=(DRAWN, args.seed))
    k_x, k_y, _, _ = drawn.batch([0])
    if k_x.shape[2] != 1 or k_y.shape[2] != 1:
        raise Failure("--test is for tasks of one input and one output")
    y = drawn.target([0], GRID)[0]  # (50, 1)
    curves, scores = {}, {}
    for label, meta in learners.items():
        curves[label] = predictions(meta, k_x, k_y, MAX_STEPS)[:, 0]  # (11, 50, 1)
        norms = (curves[label] - y).norm(dim=(1, 2))  # (11,)
        scores[label] = summarize(evaluate(meta, shots))
        tasks = f"a drawn task and {TEST_TASKS} test tasks with K = {shots}"
        print(f"\n{label}, {files[label]}, on {tasks}:")
        print(f"| pre loss: {norms[0]:.3f} | post loss: {norms[1]:.3f} |")
        print(table(scores[label]))

    graph_file, steps_file = Path("res", f"graph({name}).png"), Path("res", f"steps({name}).png")
    draw_graph(graph_file, title, args.loss, [k_x[0], k_y[0]], y, curves)
    draw_steps(steps_file, title, scores)
    print(f"\ngraphs: {graph_file}, {steps_file}")


def files_to_measure(args: Namespace) -> dict[str, Path]:
    """By label: the weights that are asked for, and the pretrained baseline if it is there.

    Pretraining does not use α: the baseline of the α that is asked for will do, or of the default.
    """
    method = "first-order" if args.first_order else "MAML"
    label = method if args.inner_steps else PRETRAINED
    files = {f"{label}, {args.name}" if args.name else label: weights_file(args)}
    if args.weights:  # quotes tell it from the other labels, escapes suit any font
        files = {ascii(args.weights.name): args.weights}
    if args.inner_steps:
        for alpha in (SETTINGS["inner_lr"], args.inner_lr):
            pretraining = {"inner_steps": 0, "first_order": False, "inner_lr": alpha}
            baseline = weights_file(Namespace(**{**vars(args), **pretraining}))
            if baseline.exists():
                files[PRETRAINED] = baseline
    return files


def load(file: Path, args: Namespace, device: str) -> Meta:
    """A learner with the weights of a file."""
    if not file.exists():
        raise Failure(f"no file {file} in this folder: train first, or pass --weights")
    meta, weights = learner(args, device), read(file)
    try:
        meta.net.load_state_dict(weights)
    except Exception as error:  # it may be anything
        raise Failure(f"{file} does not fit the network: {error}") from error
    return meta.eval()


@torch.no_grad()
def predictions(meta: Meta, k_x: Tensor, k_y: Tensor, steps: int) -> Tensor:
    """The predictions on GRID after 0 to `steps` steps: (steps + 1, tasks, 50, 1)."""
    weight = next(meta.parameters())
    x = GRID.expand(len(k_x), -1, -1)
    k_x, k_y, x = (points.to(weight) for points in (k_x, k_y, x))  # its device and precision
    curves = [meta.net(x, fast) for fast in meta.adapt(k_x, k_y, steps)]
    return torch.stack(curves).cpu()


def evaluate(meta: Meta, shots: int) -> Tensor:
    """The summed squared errors over GRID of the test tasks: (MAX_STEPS + 1, TEST_TASKS)."""
    tasks = Tasks(shots, 0, num_tasks=TEST_TASKS, seed=(TEST,))
    k_x, k_y, _, _ = tasks.batch(range(TEST_TASKS))
    y = tasks.target(range(TEST_TASKS), GRID)  # (TEST_TASKS, 50, 1)
    sse = []
    for chunk_x, chunk_y, target in tqdm(list(chunks(k_x, k_y, y)), "testing", leave=False):
        errors = predictions(meta, chunk_x, chunk_y, MAX_STEPS) - target
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
    row = "   {rsse:9.3f} +- {rsse_ci:5.3f}   {mse:7.3f} +- {mse_ci:5.3f}   {median:10.3f}"
    for step in [*(s for s in (0, 1, 2, 3, 5) if s < MAX_STEPS), MAX_STEPS]:
        lines.append(f"{step:14}" + row.format(**{name: x[step] for name, x in scores.items()}))
    capped = int(scores["capped"].max())
    lines.append(f"tasks capped at MSE {CAP:g}: at most {capped} of {TEST_TASKS} after any step")
    return "\n".join(lines)


# Graphs -------------------------------------------------------------------------------------------


def draw_losses(
    path: Path, args: Namespace, losses: list[float], validations: dict[int, float]
) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    iterations = range(1, len(losses) + 1)
    window = min(VALIDATE_EVERY, (len(losses) + 1) // 2)
    smoothed = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    lowest, kept = min((loss, number) for number, loss in validations.items())

    axes = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()
    axes.semilogy(iterations, losses, alpha=0.25, linewidth=0.5, label="each meta-batch")
    mean = f"mean of the last {window:,} iterations"
    axes.plot(iterations[window - 1 :], smoothed, "C0", label=mean)
    validation = f"validation, {VALIDATION_TASKS:,} tasks"
    axes.plot(*zip(*validations.items(), strict=True), "C1.-", markersize=3, label=validation)
    axes.plot(kept, lowest, "k*", label=f"weights kept, iteration {kept:,}")

    axes.set_title(f"Training, {in_words(run_name(args))}", fontsize="medium")
    unit = UNITS.get(args.loss, args.loss)
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


def draw_graph(
    path: Path, title: str, loss: str, points: list[Tensor], y: Tensor, curves: dict[str, Tensor]
) -> None:
    """The drawn task before and after adaptation, by every learner (the paper's Figure 2).

    `points` are k_x and k_y, (K, 1), y is (50, 1), a curve (MAX_STEPS + 1, 50, 1).
    """
    figure = Figure(figsize=(3.2 + 3.2 * len(curves), 4.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    for axes, (label, pred) in zip(panels, curves.items(), strict=True):
        color = COLORS.get(label, COLORS["MAML"])
        axes.plot(GRID, y, color="0.75", linewidth=5, label="Ground Truth")
        axes.plot(GRID, pred[0], "k:", linewidth=2, label="Pre Update")
        axes.plot(GRID, pred[1], color=color, linewidth=2, label="One Grad Step")
        low, high = axes.get_ylim()
        axes.plot(GRID, pred[-1], "--", color=color, label=f"{MAX_STEPS} Grad Steps")
        if axes is panels[0]:  # the frame of all grows by half at most: ten steps may go far off
            margin, (bottom, top) = (high - low) / 4, axes.get_ylim()
            axes.set_ylim(max(bottom, low - margin), min(top, high + margin))
        axes.plot(*points, "k^", label=f"K = {len(points[0])} Support Points")
        errors = LOSSES[loss](pred[[0, 1, MAX_STEPS]], y.expand(3, -1, -1))
        words = " → ".join(f"{error:.2f}" for error in errors)
        steps = f"{UNITS.get(loss, loss)} after 0 → 1 → {MAX_STEPS} steps: {words}"
        axes.set_title(f"{label}\n{steps}", fontsize="medium", color=color)
        axes.set(xlabel="x")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="y")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write(path, figure.savefig)


def draw_steps(path: Path, title: str, scores: Mapping[str, Mapping[str, Tensor]]) -> None:
    """MSE on the test tasks against the number of gradient steps (the paper's Figure 3)."""
    axes = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()
    steps = range(MAX_STEPS + 1)
    title += f"\n{TEST_TASKS:,} test tasks, mean and 95 % confidence interval"
    for label, score in scores.items():
        mse, ci, capped = score["mse"], score["mse_ci"], int(score["capped"].max())
        if capped:
            tasks = f"up to {capped} of {TEST_TASKS:,} tasks"
            title += f"\n{label}: after a step, {tasks} have an MSE ≥ {CAP:g}"
        color = COLORS.get(label, COLORS["MAML"])
        axes.plot(steps, mse, color=color, marker=".", label=label)
        axes.fill_between(steps, mse - ci, mse + ci, color=color, alpha=0.3)
    axes.set_title(title, fontsize="medium")
    ylabel = f"MSE of {len(GRID)} points"
    axes.set(xlabel="gradient steps", ylabel=ylabel, xticks=steps, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.figure.legend(loc="outside lower center", ncols=2)
    write(path, axes.figure.savefig)


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have any letter
    main()
