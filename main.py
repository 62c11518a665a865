"""MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017, Section 5.1).

python3 main.py           trains, in one to three minutes on a CPU
python3 main.py --test    measures the trained weights on 10,000 test tasks and
                          draws res/graph(k=10).png and res/steps(k=10).png
"""

import argparse
import contextlib
import functools
import math
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from tqdm import tqdm

from data import Sinusoid, meta_batches
from meta import Meta
from net import LOSSES, InputError, load, write

# Independent random streams, told apart by the first word of their seeds. Training tasks and the drawn
# task follow --seed, as the initial weights do; validation and test tasks are the same in every run.
DRAWN, TRAIN, VALIDATION, TEST = range(4)

VALIDATION_TASKS, TEST_TASKS = 1_000, 10_000
VALIDATE_EVERY = 1_000  # iterations
CHUNK = 100  # tasks that are evaluated at once: more or fewer take up to twice as long
MAX_STEPS = 10  # gradient steps in the evaluation,
TABLE_STEPS = [0, 1, 2, 3, 5, 10]  # and those that its table shows
GRID = np.linspace(-5.0, 5.0, 50)[:, None]  # (50, 1), the inputs that are scored in the evaluation
PRETRAINED = "pretrained on all tasks"  # the paper's baseline
DIVERGED = 100.0  # an MSE above this has diverged; to answer 0 everywhere costs less than 14


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Exits with 2 on input that can't be used, and with 128 + its number after a signal."""
    args = parse(argv)
    # Measured on two cores, meta-batches of 25 to 1000 tasks: a run alone is 1.2 to 1.9 times as fast with two threads;
    # two runs at once, each with two, are 4 to 20 times as slow as with one.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(*(f"{key}={value}" for key, value in vars(args).items()), f"device={device}")
    try:
        (test if args.test else train)(args, device)
    except (OSError, InputError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument_group("training settings, which name the files of a run").add_argument
    whole, rate = functools.partial(number, int), number(float, 1e-300, 1e300)
    add("--epochs", metavar="N", type=whole(1, 10**7), default=70_000, help="iterations of the outer loop")
    add("--batch_size", metavar="N", type=whole(1, 10**4), default=10, help="tasks in a meta-batch")
    add("--k_shot", metavar="K", type=whole(1, 10**3), default=10, help="support points of a task")
    add("--inner_lr", metavar="LR", type=rate, default=1e-2, help="step size of the inner loop, α")
    add("--outer_lr", metavar="LR", type=rate, default=1e-3, help="learning rate of Adam, outer loop, β")
    add("--seed", metavar="N", type=whole(0, 2**32 - 1), default=0, help="of initial weights, tasks, drawn task")
    add("--loss", choices=LOSSES, default="rsse", help="√Σ of squared errors or their mean, both loops")
    add("--inner_steps", metavar="N", type=whole(0, 100), default=1, help="in training; 0 is plain pretraining")
    add("--first_order", action="store_true", help="drop the second derivatives: FOMAML")
    add = parser.add_argument_group("what to do").add_argument
    add("--compile", action="store_true", help="slower to start, then three times as fast")
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    add("--test", action="store_true", help="measure the trained weights and draw graphs")
    add("--weights", metavar="FILE", type=Path, help="with --test: those in FILE instead")
    args = parser.parse_args(argv)
    if args.test and (args.resume or args.compile):
        parser.error(f"{'--resume' if args.resume else '--compile'} is for training: leave it out, or leave out --test")
    if args.weights and not args.test:
        parser.error(f"--weights {args.weights} is for --test: add that, or leave it out")
    return args


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"main.py: {message}\n")


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """An argparse type: an `int` or `float` from `low` to `high`."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole ' * (kind is int)}number from {low} to {high}")
        return value

    return convert


def settings(args: argparse.Namespace) -> list[str]:
    """The training settings that are not the defaults, in the order of the flags: epochs=600, first_order, …"""
    defaults, others = vars(parse([])), ("compile", "resume", "test", "weights")
    changed = {key: value for key, value in vars(args).items() if key not in others and value != defaults[key]}
    return [key if value is True else f"{key}={value}" for key, value in changed.items()]


def run_name(args: argparse.Namespace) -> str:
    """What tells a run from every other, for the names of its files: K, and what is not the default."""
    return ",".join([f"k={args.k_shot}", *(setting for setting in settings(args) if not setting.startswith("k_shot"))])


def command(args: argparse.Namespace, *flags: str) -> str:
    """The command line that starts this program from this folder, with the settings of `args` and with `flags`."""
    words = [word for setting in settings(args) for word in f"--{setting}".split("=")]
    return shlex.join([sys.orig_argv[0], os.path.relpath(__file__), *words, *flags])


class Run(NamedTuple):
    """What training changes: all of it goes into a checkpoint."""

    meta: Meta
    best: dict[str, Tensor]  # the weights that had the lowest validation loss
    losses: list[float]  # of every iteration
    validation: list[float]  # after every VALIDATE_EVERY iterations, and after the last


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Algorithm 1 of the paper, with validation, checkpoints and a loss graph."""
    name = run_name(args)
    weights_file, checkpoint_file = Path("weights", f"w({name}).pt"), Path("weights", f"checkpoint({name}).pt")
    graph_file = Path("res", "loss_final.png" if name == "k=10" else f"loss_final({name}).png")
    check_writable(weights_file, checkpoint_file, graph_file)

    torch.manual_seed(args.seed)
    meta = Meta(args.inner_lr, args.outer_lr, args.loss, args.inner_steps, args.first_order, device)  # line 1
    run = Run(meta, best={key: torch.zeros_like(w) for key, w in meta.net.Param.items()}, losses=[], validation=[])
    if args.resume:
        load_checkpoint(checkpoint_file, run, args.epochs)
    elif checkpoint_file.exists():
        raise InputError(f"{checkpoint_file} is of a run that was interrupted: add --resume to go on, or delete it")
    tasks = Sinusoid(args.k_shot, seed=(TRAIN, args.seed))
    validation_tasks = Sinusoid(args.k_shot, num_tasks=VALIDATION_TASKS, seed=(VALIDATION,))
    validation_batch = [tensor.to(device) for tensor in validation_tasks.__getitems__(range(VALIDATION_TASKS))]
    if args.compile:
        print("compiling …", flush=True)
        meta.compile(*next(meta_batches(tasks, args.batch_size, device=device)))

    batches = meta_batches(tasks, args.batch_size, len(run.losses), device)
    with interruptions() as signals:
        with tqdm(total=args.epochs, initial=len(run.losses), unit="it") as bar:
            while len(run.losses) < args.epochs and not signals:  # line 2
                batch = next(batches)  # line 3
                loss = meta(*batch)  # lines 4 to 8
                run.losses.append(loss)
                check_finite(loss, len(run.losses))
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()
                if len(run.losses) % VALIDATE_EVERY == 0:
                    validate(run, validation_batch)
                    save_checkpoint(checkpoint_file, run)

        finished = len(run.losses) == args.epochs
        if not finished:
            save_checkpoint(checkpoint_file, run)
        elif args.epochs % VALIDATE_EVERY:
            validate(run, validation_batch)
        if finished or not surpassed(run, weights_file, validation_batch):
            draw_losses(graph_file, f"Training, {name}", args.loss, run)
            print(f"loss graph: {graph_file}")
            if run.validation:
                meta.net.set_Param(run.best)
                meta.save_weights(weights_file)
                print(f"weights: {weights_file}, best validation loss: {min(run.validation):.4f}")
    if not finished:
        again = command(args, *["--compile"] * args.compile, "--resume")
        print(f"interrupted after {len(run.losses)} of {args.epochs} iterations; to go on: {again}")
        sys.exit(128 + signals[0])
    checkpoint_file.unlink(missing_ok=True)
    print(f"to measure them: {command(args, '--test')}")


@contextlib.contextmanager
def interruptions() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are put on, in the place of what else they would do, until it is left."""
    signals = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: signals.append(number)) for number in numbers]
    try:
        yield signals
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def check_finite(loss: float, iteration: int) -> None:
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} at iteration {iteration}: try a smaller --inner_lr or --outer_lr")


def validate(run: Run, batch: Sequence[Tensor]) -> None:
    """Record the loss on the validation tasks, and the weights if it is the lowest so far."""
    loss = validation_loss(run.meta, batch)
    check_finite(loss, len(run.losses))
    if loss < min(run.validation, default=math.inf):
        run.best.update({name: parameter.detach().clone() for name, parameter in run.meta.net.Param.items()})
    run.validation.append(loss)


@torch.no_grad()
def validation_loss(meta: Meta, batch: Sequence[Tensor]) -> float:
    chunks = zip(*(tensor.split(CHUNK) for tensor in batch), strict=True)
    return torch.cat([meta.query_loss(*chunk) for chunk in chunks]).mean().item()


def surpassed(run: Run, path: Path, batch: Sequence[Tensor]) -> bool:
    """Whether `path` has better weights than the best of `run`: those of a run that went further."""
    try:
        run.meta.load_weights(path)
    except (OSError, InputError):
        return False
    return validation_loss(run.meta, batch) < min(run.validation, default=math.inf)


def checkpoint(run: Run) -> dict[str, Tensor]:
    """All of `run`. The random state and Adam's step count are not among it: they follow from the number of losses."""
    tensors = {key: torch.tensor(getattr(run, key), dtype=torch.float64) for key in ("losses", "validation")}
    for name, parameter in run.meta.net.Param.items():
        moments = run.meta.outer_optim.state[parameter]
        tensors |= {name: parameter.detach(), f"best_{name}": run.best[name]}
        tensors |= {f"{key}_{name}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
    return tensors


def save_checkpoint(path: Path, run: Run) -> None:
    """Write `run`; `load_checkpoint` brings it back, bit for bit."""
    write(path, functools.partial(torch.save, checkpoint(run)))


def load_checkpoint(path: Path, run: Run, epochs: int) -> None:
    """Put `run`, which has not begun yet, where `save_checkpoint` found it. An `InputError` if that can't be."""
    if not path.exists():
        raise InputError(f"--resume found no checkpoint {path}: without it, training starts from the beginning")
    blank = checkpoint(run)
    saved = load(path, like=blank)
    losses, validation = saved.pop("losses").tolist(), saved.pop("validation").tolist()
    if len(losses) > epochs or len(validation) != len(losses) // VALIDATE_EVERY:
        raise InputError(f"{path} holds {len(losses)} losses and {len(validation)} validations, which is no such run")
    for name, tensor in saved.items():
        blank[name].copy_(tensor)
    for moments in run.meta.outer_optim.state.values():
        moments["step"].fill_(len(losses))
    run.losses.extend(losses)
    run.validation.extend(validation)


def check_writable(*paths: Path) -> None:
    """Find out now, rather than after the work, that one of `paths` can't be written. Makes folders if need be."""
    for path in paths:
        try:
            path.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                pass
        except OSError as error:
            raise OSError(f"{path.parent} must be a folder that can be written to: {error.strerror}") from error
        if path.is_dir():
            raise InputError(f"{path} is a folder: a file is to be written there")


def test(args: argparse.Namespace, device: torch.device) -> None:
    """The evaluation: one drawn task, then TEST_TASKS test tasks, with 0 to MAX_STEPS gradient steps."""
    name = run_name(args)
    if args.weights:
        files = {args.weights.name: args.weights}
    else:
        learner = PRETRAINED if args.inner_steps == 0 else "FOMAML" if args.first_order else "MAML"
        files = {learner: Path("weights", f"w({name}).pt")}
    (weights_file,) = files.values()
    if not weights_file.exists():
        hint = "check --weights" if args.weights else f"{command(args)} makes them"
        raise InputError(f"there are no weights {weights_file}: {hint}")
    pretrained = argparse.Namespace(**{**vars(args), "inner_steps": 0, "first_order": False})
    baseline_file = Path("weights", f"w({run_name(pretrained)}).pt")
    if args.inner_steps and baseline_file.exists():
        files[PRETRAINED] = baseline_file
    learners = {learner: Meta(args.inner_lr, loss=args.loss, device=device) for learner in files}
    for learner, file in files.items():
        learners[learner].load_weights(file)
    shown = f"{name},weights={args.weights.stem}" if args.weights else name
    graph_file, steps_file = Path("res", f"graph({shown}).png"), Path("res", f"steps({shown}).png")
    check_writable(graph_file, steps_file)

    drawn = Sinusoid(args.k_shot, num_tasks=1, seed=(DRAWN, args.seed))
    k_x, k_y, _, _ = drawn[0]
    truth = torch.from_numpy(drawn.target([0], GRID)[0])  # (50, 1)
    predictions = {learner: predict(meta, k_x.to(device), k_y.to(device)).cpu() for learner, meta in learners.items()}
    pre, post = rsse(next(iter(predictions.values())), truth)[:2]
    print(f"| pre loss: {pre:.3f} | post loss: {post:.3f} |")

    scores = {}
    for learner, meta in learners.items():
        tasks = Sinusoid(args.k_shot, q_query=0, num_tasks=TEST_TASKS, seed=(TEST,))
        scores[learner] = summarize(evaluate(meta, tasks, device))
        print(f"\n{learner}, {files[learner]}, on {TEST_TASKS} test tasks with K = {args.k_shot}:")
        print_scores(scores[learner])
    draw_graph(graph_file, k_x, k_y, truth, predictions)
    draw_steps(steps_file, args.k_shot, scores)
    print(f"\ngraphs: {graph_file}, {steps_file}")


@torch.no_grad()
def predict(meta: Meta, k_x: Tensor, k_y: Tensor) -> Tensor:
    """Predictions at GRID after 0 to MAX_STEPS gradient steps.

    Args:
        k_x, k_y: support points, (tasks, K, 1), or of one task, (K, 1).

    Returns:
        (MAX_STEPS + 1, tasks, 50, 1), or (MAX_STEPS + 1, 50, 1)
    """
    x = torch.from_numpy(GRID).to(k_x.device).expand(*k_x.shape[:-2], -1, -1)
    weights, predictions = None, []
    for step in range(MAX_STEPS + 1):
        weights = meta.adapt(k_x, k_y, min(step, 1), weights)
        _, pred = meta.net(x, x, weights)
        predictions.append(pred)
    return torch.stack(predictions)


def evaluate(meta: Meta, tasks: Sinusoid, device: torch.device, chunk: int = CHUNK) -> Tensor:
    """Sum of squared errors over GRID of every task after 0 to MAX_STEPS steps: (MAX_STEPS + 1, tasks).

    The tasks are taken in chunks, which bounds the memory and changes nothing else.
    """
    sse = []
    for start in tqdm(range(0, len(tasks), chunk), unit="chunk", leave=False):
        indices = range(start, min(start + chunk, len(tasks)))
        k_x, k_y, _, _ = tasks.__getitems__(indices)
        pred = predict(meta, k_x.to(device), k_y.to(device)).cpu()
        sse.append((pred - torch.from_numpy(tasks.target(indices, GRID))).square().sum((-2, -1)))
    return torch.cat(sse, dim=1)


def summarize(sse: Tensor) -> dict[str, Tensor]:
    """Scores over tasks from their sums of squared errors over GRID, (MAX_STEPS + 1, tasks).

    Returns:
        For each number of steps, (MAX_STEPS + 1,): the means "rsse", √SSE, and "mse", with half the widths of
        their 95 % confidence intervals, "rsse_ci" and "mse_ci"; the number of tasks that have "diverged", which
        the means leave out; and the "median" MSE over all tasks.
    """
    mse = sse / len(GRID)
    kept = mse <= DIVERGED  # False for nan, too
    count = kept.sum(1)
    scores = {"median": mse.where(kept, math.inf).median(1).values, "diverged": (~kept).sum(1)}
    for name, values in (("rsse", sse.sqrt()), ("mse", mse)):
        scores[name] = values.where(kept, 0).sum(1) / count
        variance = (values - scores[name][:, None]).where(kept, 0).square().sum(1) / (count - 1)
        scores[f"{name}_ci"] = 1.96 * (variance / count).sqrt()
    return scores


def rsse(pred: Tensor, truth: Tensor) -> list[float]:
    """√SSE over GRID for each number of gradient steps: (MAX_STEPS + 1, 50, 1), (50, 1) -> (MAX_STEPS + 1,)."""
    return (pred - truth).square().sum((1, 2)).sqrt().tolist()


def print_scores(scores: dict[str, Tensor]) -> None:
    """A table of means ± 95 % confidence intervals, a row for each of TABLE_STEPS."""
    print("gradient steps   √SSE of 50 points               MSE   median MSE   diverged")
    for step in TABLE_STEPS:
        row = "{rsse:9.3f} ± {rsse_ci:5.3f}   {mse:6.3f} ± {mse_ci:5.3f}   {median:10.3f}   {diverged} of {tasks}"
        values = {name: score[step].item() for name, score in scores.items()}
        print(f"{step:14}  ", row.format(**values, tasks=TEST_TASKS))


def draw_losses(path: Path, title: str, loss: str, run: Run) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    count = len(run.losses)
    window = min(VALIDATE_EVERY, count)
    smoothed = np.convolve(run.losses, np.full(window, 1 / window), mode="valid")
    validated = np.minimum(np.arange(1, len(run.validation) + 1) * VALIDATE_EVERY, count)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, count + 1), run.losses, "C0", alpha=0.25, linewidth=0.5, label="training, each meta-batch")
    axes.plot(range(window, count + 1), smoothed, "C0", label=f"training, mean of the last {window:,} iterations")
    axes.plot(validated, run.validation, "C1", label=f"validation, {VALIDATION_TASKS:,} tasks")
    unit = {"rsse": "√SSE of 15 query points", "mse": "MSE of the query points"}[loss]
    axes.set(title=title, xlabel="iteration of the outer loop", ylabel=f"query loss ({unit})", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3, which="both")
    write(path, figure.savefig)


def draw_graph(path: Path, k_x: Tensor, k_y: Tensor, truth: Tensor, predictions: dict[str, Tensor]) -> None:
    """The drawn task before and after adaptation, the first learner large (the paper's Figure 2)."""
    width = [2] + [1] * (len(predictions) - 1)
    figure = Figure(figsize=(4 * sum(width), 5.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(predictions), sharey=True, squeeze=False, width_ratios=width)[0]
    for axes, (learner, pred) in zip(panels, predictions.items(), strict=True):
        axes.plot(GRID, truth, "C0", label="Ground Truth")
        axes.plot(GRID, pred[0], "C1:", label="Pre Update")
        axes.plot(GRID, pred[1], "C2", label="One Grad Step")
        axes.plot(GRID, pred[10], "C3--", label="Ten Grad Steps")
        axes.plot(k_x, k_y, "k^", label=f"K = {len(k_x)} Support Points")
        errors = " → ".join(f"{error:.2f}" for error in [rsse(pred, truth)[step] for step in (0, 1, 10)])
        axes.set_title(f"{learner}\n√SSE after 0 → 1 → 10 steps: {errors}", fontsize="medium")
        axes.set(xlabel="x")
        axes.grid(alpha=0.3)
        if axes is panels[0]:  # the others may leave its frame
            axes.set(ylabel="y", ylim=axes.get_ylim())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    write(path, figure.savefig)


def draw_steps(path: Path, k_shot: int, scores: dict[str, dict[str, Tensor]]) -> None:
    """MSE on the test tasks against the number of gradient steps (the paper's Figure 3)."""
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    steps = range(MAX_STEPS + 1)
    for learner, score in scores.items():
        mse, ci = score["mse"], score["mse_ci"]
        axes.plot(steps, mse, marker=".", label=learner)
        axes.fill_between(steps, mse - ci, mse + ci, alpha=0.3)
    axes.set(title=f"{TEST_TASKS:,} test tasks, K = {k_shot}, mean and 95 % confidence interval")
    axes.set(xlabel="gradient steps", ylabel="MSE of 50 points", xticks=steps, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    write(path, figure.savefig)


if __name__ == "__main__":
    main()
