"""MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017, Section 5.1).

python3 main.py           trains, in about a minute on a CPU
python3 main.py --test    measures the trained weights on 10,000 test tasks and
                          draws res/graph(k=10).png and res/steps(k=10).png
"""

import argparse
import contextlib
import functools
import itertools
import math
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from tqdm import tqdm

from data import Batch, Sinusoid, meta_batches
from meta import Meta
from net import LOSSES, InputError, load, save, write

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
    # two runs at once, each with two, are 3 to 17 times as slow as with one.
    if not os.environ.get("OMP_NUM_THREADS"):
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
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.error = lambda message: parser.exit(2, f"main.py: {message}\n")  # one line, without the usage
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


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """An argparse type: an `int` or `float` from `low` to `high`."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * (kind is int)}number from {low} to {high}")
        return value

    return convert


def settings(args: argparse.Namespace) -> dict[str, int | float | str | bool]:
    """The training settings that are not the defaults, in the order of the flags."""
    defaults, others = vars(parse([])), ("compile", "resume", "test", "weights")
    return {key: value for key, value in vars(args).items() if key not in others and value != defaults[key]}


def run_name(args: argparse.Namespace) -> str:
    """What tells a run from every other, for the names of its files: K, then the settings that are not the defaults."""
    named = {"k": args.k_shot, **settings(args)}
    return ",".join(key if value is True else f"{key}={value}" for key, value in named.items() if key != "k_shot")


def command(args: argparse.Namespace, *flags: str) -> str:
    """The command line that starts this program from this folder, with the settings of `args` and with `flags`."""
    words = [[f"--{key}"] if value is True else [f"--{key}", str(value)] for key, value in settings(args).items()]
    return shlex.join([sys.orig_argv[0], os.path.relpath(__file__), *itertools.chain(*words), *flags])


class Run(NamedTuple):
    """What training changes: all of it goes into a checkpoint."""

    meta: Meta
    best: dict[str, Tensor]  # the weights that had the lowest validation loss
    losses: list[float]  # of every iteration
    validation: list[float]  # after every VALIDATE_EVERY iterations, and after the last


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Start a run or go on with it, and write what comes of it, however it ends."""
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
        raise InputError(f"{checkpoint_file} is of a run that has not ended: add --resume to go on, or delete it")
    tasks = Sinusoid(args.k_shot, seed=(TRAIN, args.seed))
    validation_tasks = Sinusoid(args.k_shot, num_tasks=VALIDATION_TASKS, seed=(VALIDATION,))
    validation_batch = tuple(tensor.to(device) for tensor in validation_tasks.batch(range(VALIDATION_TASKS)))
    if args.compile:
        print("compiling …", flush=True)
        meta.compile(*next(meta_batches(tasks, args.batch_size, device=device)))

    batches = meta_batches(tasks, args.batch_size, len(run.losses), device)
    results = functools.partial(save_results, args, run, validation_batch, weights_file, graph_file)
    with interruptions() as signals:
        try:
            outer_loop(run, args.epochs, batches, validation_batch, checkpoint_file, signals)
        except InputError:  # diverged: what was best until then is a result all the same
            results(finished=False)
            raise
        finished = len(run.losses) == args.epochs
        if not finished:
            save_checkpoint(checkpoint_file, run)
        results(finished)
        if finished:
            checkpoint_file.unlink(missing_ok=True)
            print(f"to measure them: {command(args, '--test')}")
        else:
            again = command(args, *["--compile"] * args.compile, "--resume")
            print(f"interrupted after {len(run.losses)} of {args.epochs} iterations; to go on: {again}")
            sys.exit(128 + signals[0])


def outer_loop(
    run: Run,
    epochs: int,
    batches: Iterator[Batch],
    validation_batch: Batch,
    checkpoint_file: Path,
    signals: list[int],
) -> None:
    """Algorithm 1 of the paper, with validation and checkpoints, until its end or a signal."""
    with tqdm(total=epochs, initial=len(run.losses), unit="it") as bar:
        while len(run.losses) < epochs and not signals:  # line 2
            batch = next(batches)  # line 3
            loss = run.meta(*batch)  # lines 4 to 8
            run.losses.append(check_finite(loss, len(run.losses) + 1))
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
            if len(run.losses) % VALIDATE_EVERY == 0 or len(run.losses) == epochs:
                validate(run, validation_batch)
                save_checkpoint(checkpoint_file, run)


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


def check_finite(loss: float, iteration: int) -> float:
    """The loss itself, where it is a number whose square is one, too: Adam needs that."""
    if not abs(loss) < 1e150:
        raise InputError(
            f"the loss is {loss} at iteration {iteration}: "
            "try a smaller --inner_lr or --outer_lr, or fewer --inner_steps"
        )
    return loss


def validate(run: Run, batch: Batch) -> None:
    """Record the loss on the validation tasks, and the weights if it is the lowest so far."""
    loss = check_finite(validation_loss(run.meta, batch), len(run.losses))
    if loss < min(run.validation, default=math.inf):
        run.best.update({name: parameter.detach().clone() for name, parameter in run.meta.net.Param.items()})
    run.validation.append(loss)


@torch.no_grad()
def validation_loss(meta: Meta, batch: Batch) -> float:
    chunks = zip(*(tensor.split(CHUNK) for tensor in batch), strict=True)
    return torch.cat([meta.query_loss(*chunk) for chunk in chunks]).mean().item()


def save_results(
    args: argparse.Namespace, run: Run, batch: Batch, weights_file: Path, graph_file: Path, finished: bool
) -> None:
    """Write the best weights and the loss graph, but not in the place of better ones if the run has not finished."""
    if not run.validation:
        return
    best = min(run.validation)
    if not finished:
        with contextlib.suppress(OSError, InputError):  # where there are no weights yet, or no sound ones
            run.meta.load_weights(weights_file)
            if validation_loss(run.meta, batch) <= best:
                print(f"{weights_file} is no worse than the weights of this run so far, and stays as it is")
                return
    run.meta.net.set_Param(run.best)
    run.meta.save_weights(weights_file)
    draw_losses(graph_file, args, run)
    print(f"weights: {weights_file}, best validation loss: {best:.5g}")
    print(f"loss graph: {graph_file}")


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
    save(path, checkpoint(run))


def load_checkpoint(path: Path, run: Run, epochs: int) -> None:
    """Put `run`, which has not begun yet, where `save_checkpoint` found it. An `InputError` if that can't be."""
    if not path.exists():
        raise InputError(f"--resume found no checkpoint {path}: without it, training starts from the beginning")
    state = checkpoint(run)  # the very tensors of the run, but for its losses, of which there are none yet
    saved = load(path, like=state)
    losses, validation = saved.pop("losses").tolist(), saved.pop("validation").tolist()
    count = len(losses)
    validated = math.ceil(count / VALIDATE_EVERY) if count == epochs else count // VALIDATE_EVERY
    if count > epochs or len(validation) != validated or min(losses + validation, default=0.0) < 0.0:
        raise InputError(f"{path} holds {count} losses and {len(validation)} validations that are no such run's")
    for name, tensor in saved.items():
        state[name].copy_(tensor.detach())
    for moments in run.meta.outer_optim.state.values():
        moments["step"].fill_(count)
    run.losses.extend(losses)
    run.validation.extend(validation)


def check_writable(*paths: Path) -> None:
    """Find out now, rather than after the work, that one of `paths` can't be written. Makes folders if need be."""
    for path in paths:
        try:
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp"):
                pass
        except OSError as error:
            raise OSError(f"{path.parent} must be a folder that can be written to: {error.strerror}") from error
        if path.is_dir():
            raise InputError(f"{path} is a folder: a file is to be written there")


def test(args: argparse.Namespace, device: torch.device) -> None:
    """The evaluation: one drawn task, then TEST_TASKS test tasks, with 0 to MAX_STEPS gradient steps."""
    name = run_name(args)
    weights_file = args.weights or Path("weights", f"w({name}).pt")
    if not weights_file.exists():
        begun = ["--resume"] * Path("weights", f"checkpoint({name}).pt").exists()
        hint = "check --weights" if args.weights else f"{command(args, *begun)} makes them"
        raise InputError(f"there are no weights {weights_file}: {hint}")
    trained_as = PRETRAINED if args.inner_steps == 0 else "FOMAML" if args.first_order else "MAML"
    files = [(weights_file.name if args.weights else trained_as, weights_file)]
    baseline = argparse.Namespace(**{**vars(args), "inner_steps": 0, "first_order": False})
    baseline_file = Path("weights", f"w({run_name(baseline)}).pt")
    if args.inner_steps and baseline_file.exists():
        files.append((PRETRAINED, baseline_file))
    shown = f"{name},weights={weights_file.stem}" if args.weights else name
    graph_file, steps_file = Path("res", f"graph({shown}).png"), Path("res", f"steps({shown}).png")
    check_writable(graph_file, steps_file)
    learners = [Meta(args.inner_lr, loss=args.loss, device=device) for _ in files]
    for meta, (_, file) in zip(learners, files, strict=True):
        meta.load_weights(file)

    drawn = Sinusoid(args.k_shot, num_tasks=1, seed=(DRAWN, args.seed))
    k_x, k_y, _, _ = drawn[0]
    truth = torch.from_numpy(drawn.target([0], GRID)[0])  # (50, 1)
    predictions = [predict(meta, k_x.to(device), k_y.to(device)).cpu() for meta in learners]
    errors = [(pred - truth).square().sum((1, 2)).sqrt().tolist() for pred in predictions]  # √SSE after 0, 1, … steps
    print(f"| pre loss: {errors[0][0]:.3f} | post loss: {errors[0][1]:.3f} |")

    scores = []
    for meta, (label, file) in zip(learners, files, strict=True):
        tasks = Sinusoid(args.k_shot, q_query=0, num_tasks=TEST_TASKS, seed=(TEST,))
        scores.append(summarize(evaluate(meta, tasks, device)))
        print(f"\n{label}, {file}, on {TEST_TASKS} test tasks with K = {args.k_shot}:")
        print_scores(scores[-1])
    labels = [label.replace("$", r"\$") for label, _ in files]  # a $ begins a formula
    draw_graph(graph_file, k_x, k_y, truth, labels, predictions, errors)
    draw_steps(steps_file, args.k_shot, labels, scores)
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


def evaluate(meta: Meta, tasks: Sinusoid, device: torch.device) -> Tensor:
    """Sum of squared errors over GRID of every task after 0 to MAX_STEPS steps: (MAX_STEPS + 1, tasks)."""
    sse = []
    for start in tqdm(range(0, len(tasks), CHUNK), unit="chunk", leave=False):
        indices = range(start, min(start + CHUNK, len(tasks)))
        k_x, k_y, _, _ = tasks.batch(indices)
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


def print_scores(scores: dict[str, Tensor]) -> None:
    """A table of means ± 95 % confidence intervals, a row for each of TABLE_STEPS."""
    print("gradient steps   √SSE of 50 points               MSE   median MSE   diverged")
    for step in TABLE_STEPS:
        row = "{rsse:9.3f} ± {rsse_ci:5.3f}   {mse:6.3f} ± {mse_ci:5.3f}   {median:10.3f}   {diverged} of {tasks}"
        values = {name: score[step].item() for name, score in scores.items()}
        print(f"{step:14}  ", row.format(**values, tasks=TEST_TASKS))


def draw_losses(path: Path, args: argparse.Namespace, run: Run) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    count = len(run.losses)
    window = min(VALIDATE_EVERY, count)
    smoothed = np.convolve(run.losses, np.full(window, 1 / window), mode="valid")
    validated = np.minimum(np.arange(1, len(run.validation) + 1) * VALIDATE_EVERY, count)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, count + 1), run.losses, "C0", alpha=0.25, linewidth=0.5, label="training, each meta-batch")
    axes.plot(range(window, count + 1), smoothed, "C0", label=f"training, mean of the last {window:,} iterations")
    axes.plot(validated, run.validation, "C1.-", markersize=3, label=f"validation, {VALIDATION_TASKS:,} tasks")
    unit = {"rsse": "√SSE of 15 query points", "mse": "MSE of the query points"}[args.loss]
    axes.set(title=f"Training, {run_name(args)}", yscale="log")
    axes.set(xlabel="iteration of the outer loop", ylabel=f"query loss ({unit})")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3, which="both")
    write(path, figure.savefig)


def draw_graph(
    path: Path,
    k_x: Tensor,
    k_y: Tensor,
    truth: Tensor,
    labels: list[str],
    predictions: list[Tensor],
    errors: list[list[float]],
) -> None:
    """The drawn task before and after adaptation, the first learner large (the paper's Figure 2)."""
    width = [2] + [1] * (len(labels) - 1)
    figure = Figure(figsize=(4 * sum(width), 5.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(labels), sharey=True, squeeze=False, width_ratios=width)[0]
    for axes, label, pred, error in zip(panels, labels, predictions, errors, strict=True):
        axes.plot(GRID, truth, "C0", label="Ground Truth")
        axes.plot(GRID, pred[0], "C1:", label="Pre Update")
        axes.plot(GRID, pred[1], "C2", linewidth=2.5, label="One Grad Step")
        axes.plot(GRID, pred[10], "C3--", label="Ten Grad Steps")
        axes.plot(k_x, k_y, "k^", label=f"K = {len(k_x)} Support Points")
        title = f"{label}\n√SSE after 0 → 1 → 10 steps: {error[0]:.2f} → {error[1]:.2f} → {error[10]:.2f}"
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel="x")
        axes.grid(alpha=0.3)
        if axes is panels[0]:  # the others may leave its frame
            axes.set(ylabel="y", ylim=axes.get_ylim())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3 + 2 * (len(labels) > 1))
    write(path, figure.savefig)


def draw_steps(path: Path, k_shot: int, labels: list[str], scores: list[dict[str, Tensor]]) -> None:
    """MSE on the test tasks against the number of gradient steps (the paper's Figure 3)."""
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    steps = range(MAX_STEPS + 1)
    for label, score in zip(labels, scores, strict=True):
        mse, ci, diverged = score["mse"], score["mse_ci"], int(score["diverged"].max())
        axes.plot(steps, mse, marker=".", label=f"{label}, without {diverged} diverged" if diverged else label)
        axes.fill_between(steps, mse - ci, mse + ci, alpha=0.3)
    axes.set(title=f"{TEST_TASKS:,} test tasks, K = {k_shot}, mean and 95 % confidence interval")
    axes.set(xlabel="gradient steps", ylabel="MSE of 50 points", xticks=steps, ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    write(path, figure.savefig)


if __name__ == "__main__":
    main()
