"""MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017, Section 5.1).

python3 main.py           trains, in two to four minutes on a CPU
python3 main.py --test    measures the trained weights on 10,000 test tasks and draws res/graph(k=10).png
"""

import argparse
import math
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from tqdm import tqdm

from data import Sinusoid, meta_batches
from meta import Meta, load, write
from net import LOSSES

# Independent random streams, told apart by the first word of their seeds. Training tasks and the drawn
# task follow --seed, as the initial weights do; validation and test tasks are the same in every run.
DRAWN, TRAIN, VALIDATION, TEST = range(4)

VALIDATE_EVERY = 500  # iterations
MAX_STEPS = 10  # gradient steps in the evaluation,
TABLE_STEPS = [0, 1, 2, 3, 5, 10]  # and those that its table shows
GRID = np.linspace(-5.0, 5.0, 50)[:, None]  # (50, 1), the inputs that are scored in the evaluation
PRETRAINED = "pretrained on all tasks"  # the paper's baseline
DIVERGED = 100.0  # an MSE above this has diverged; to answer 0 everywhere costs less than 14


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"main.py: {message}\n")


def integer(low: int, high: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return convert


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive, finite number")
    return value


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--epochs", type=integer(1, 10**7), default=70_000, help="iterations of the outer loop")
    add("--batch_size", type=integer(1, 10**4), default=10, help="tasks in a meta-batch")
    add("--k_shot", type=integer(1, 10**3), default=10, help="support points of a task, K")
    add("--inner_lr", type=positive, default=1e-2, help="step size of the inner loop, α")
    add("--outer_lr", type=positive, default=1e-3, help="learning rate of Adam in the outer loop, β")
    add("--seed", type=integer(0, 2**32 - 1), default=0, help="seed of the run: of weights, tasks, the drawn task")
    add("--loss", choices=LOSSES, default="rsse", help="√Σ of the squared errors, or their mean, in both loops")
    add("--inner_steps", type=integer(0, 100), default=1, help="gradient steps in training; 0: plain pretraining")
    add("--first_order", action="store_true", help="drop the second derivatives: FOMAML")
    add("--compile", action="store_true", help="compile the meta-gradient: slower to start, then about twice as fast")
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    add("--test", action="store_true", help="measure trained weights and draw graphs of them")
    add("--later_lr", type=positive, help="with --test: step size after the first step, if not --inner_lr")
    add("--weights", type=Path, help="with --test: the weights to measure, if not those that these flags train")
    args = parser.parse_args()
    if args.test and (args.resume or args.compile):
        parser.error(f"{'--resume' if args.resume else '--compile'} is for training: leave it out, or leave out --test")
    if (args.weights or args.later_lr) and not args.test:
        given = f"--weights {args.weights}" if args.weights else f"--later_lr {args.later_lr}"
        parser.error(f"{given} is for --test: add that, or leave it out")
    return args


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the description as it is written."""


def run_name(args: argparse.Namespace, inner_steps: int) -> str:
    """What tells one kind of run from another, for file names: K, and each setting that is not its default."""
    parts = [f"k={args.k_shot}"]
    if args.loss != "rsse":
        parts.append(f"loss={args.loss}")
    if inner_steps != 1:
        parts.append(f"inner_steps={inner_steps}")
    if args.first_order and inner_steps > 0:
        parts.append("first_order")
    return ",".join(parts)


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Algorithm 1 of the paper, with validation, checkpoints and a loss graph."""
    name = run_name(args, args.inner_steps)
    weights_file = Path("weights", f"w({name}).pt")
    checkpoint_file = Path("weights", f"checkpoint({name}).pt")
    graph_file = Path("res", "loss_final.png" if name == "k=10" else f"loss_final({name}).png")
    for path in (weights_file, checkpoint_file, graph_file):
        check_writable(path)

    if args.batch_size < 25:  # a second core gains little here, and costs much where it is not free
        torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    meta = Meta(args.inner_lr, args.outer_lr, args.loss, args.inner_steps, args.first_order, device)  # line 1
    tasks = Sinusoid(args.k_shot, seed=(TRAIN, args.seed))
    validation_tasks = Sinusoid(args.k_shot, num_tasks=1000, seed=(VALIDATION,))
    validation_batch = [tensor.to(device) for tensor in validation_tasks.__getitems__(range(1000))]
    iteration, losses, validation, best = 0, [], [], math.inf
    if args.resume:
        iteration, losses, validation, best = restore(checkpoint_file, args, meta, tasks)
    elif checkpoint_file.exists():
        raise ValueError(f"{checkpoint_file} is of a run that was interrupted: add --resume to go on, or delete it")

    if args.compile:
        print("compiling …", flush=True)
        example = Sinusoid(args.k_shot, num_tasks=args.batch_size).__getitems__(range(args.batch_size))
        try:
            meta.compile(*(tensor.to(device) for tensor in example))
        except RuntimeError as error:
            raise ValueError(f"--compile: {error}") from error

    batches = meta_batches(tasks, args.batch_size, iteration * args.batch_size)
    signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    stopped = False
    with tqdm(total=args.epochs, initial=iteration, unit="it") as bar:
        while iteration < args.epochs and not stopped:  # line 2
            batch = [tensor.to(device) for tensor in next(batches)]  # line 3
            loss = meta(*batch)  # lines 4 to 8
            iteration += 1
            losses.append(loss)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()

            check_finite(loss, iteration)
            validate = iteration % VALIDATE_EVERY == 0 or iteration == args.epochs
            if validate:
                with torch.no_grad():
                    loss = meta.query_loss(*validation_batch).mean().item()
                check_finite(loss, iteration)
                validation.append((iteration, loss))
                if loss < best:
                    best = loss
                    meta.save_weights(weights_file)
            stopped = bool(signals)
            if (validate or stopped) and iteration < args.epochs:
                checkpoint = {
                    "settings": settings(args),
                    "iteration": iteration,
                    "net": meta.net.state_dict(),
                    "outer_optim": meta.outer_optim.state_dict(),
                    "tasks": tasks.rng.bit_generator.state,
                    "losses": torch.tensor(losses, dtype=torch.float64),
                    "validation": validation,
                    "best": best,
                }
                write(checkpoint_file, lambda file: torch.save(checkpoint, file))  # noqa: B023

    draw_losses(graph_file, f"Training, {name}", args.loss, losses, validation)
    if iteration < args.epochs:
        command = shlex.join(["python3", *sys.argv] + ["--resume"] * (not args.resume))
        print(f"interrupted after {iteration} of {args.epochs} iterations; to go on: {command}")
        sys.exit(128 + signals[0])
    checkpoint_file.unlink(missing_ok=True)
    print(f"loss graph: {graph_file}")
    print(f"weights: {weights_file}, best validation loss: {best:.4f}")


def settings(args: argparse.Namespace) -> dict[str, int | float | str | bool]:
    """The settings that training depends on."""
    return {key: value for key, value in vars(args).items() if key not in ("resume", "test", "later_lr", "weights")}


def restore(
    path: Path, args: argparse.Namespace, meta: Meta, tasks: Sinusoid
) -> tuple[int, list[float], list[tuple[int, float]], float]:
    """Put the net, the optimizer and the data back to where the checkpoint left them.

    Returns:
        iteration, losses, validation and best, as in `train`.

    Raises:
        OSError: there is no checkpoint, or it can't be read.
        ValueError: it is not a checkpoint, or of a run with other settings.
    """
    if not path.exists():
        raise FileNotFoundError(f"--resume found no checkpoint {path}: without it, training starts from the beginning")
    checkpoint = load(path)
    try:
        saved = checkpoint["settings"]
        differing = [
            f"{key} is {value}, but was {saved[key]}"
            for key, value in settings(args).items()
            if (value < saved[key] if key == "epochs" else value != saved[key])
        ]
        if differing:
            raise ValueError(f"--resume can't go on with {path}: {'; '.join(differing)}")
        meta.net.load_state_dict(checkpoint["net"])
        meta.outer_optim.load_state_dict(checkpoint["outer_optim"])
        tasks.rng.bit_generator.state = checkpoint["tasks"]
        return checkpoint["iteration"], checkpoint["losses"].tolist(), checkpoint["validation"], checkpoint["best"]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this program") from error


def check_finite(loss: float, iteration: int) -> None:
    if not math.isfinite(loss):
        raise ValueError(
            f"the loss is {loss} at iteration {iteration}: "
            "try a smaller --inner_lr or --outer_lr, or fewer --inner_steps"
        )


def check_writable(path: Path) -> None:
    """Find out now, rather than after training, that `path` can't be written. Makes its folder if need be."""
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(f"{path.parent} must be a folder that can be written to: {error.strerror}") from error
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: a file is to be written there")


class Scores(NamedTuple):
    """Scores over test tasks, for each number of gradient steps: tensors of shape (MAX_STEPS + 1,)."""

    rsse: Tensor  # mean √SSE over the 50 points of GRID
    rsse_ci: Tensor  # half the width of its 95 % confidence interval
    mse: Tensor  # mean MSE over GRID
    mse_ci: Tensor
    median: Tensor  # median MSE, over all tasks
    diverged: Tensor  # number of tasks that the means leave out


def test(args: argparse.Namespace, device: torch.device) -> None:
    """The evaluation: one drawn task, then 10,000 test tasks, with 0 to 10 gradient steps."""
    name = run_name(args, args.inner_steps)
    weights_file = args.weights or Path("weights", f"w({name}).pt")
    baseline_file = Path("weights", f"w({run_name(args, inner_steps=0)}).pt")
    if not weights_file.exists():
        command = shlex.join(["python3"] + [word for word in sys.argv if word != "--test"])
        hint = "check --weights" if args.weights else f"{command} makes them"
        raise FileNotFoundError(f"there are no weights {weights_file}: {hint}")
    suffix = f",later_lr={args.later_lr}" * (args.later_lr is not None)
    if weights_file.name != f"w({name}).pt":
        suffix += f",weights={weights_file.stem}"
    files = {PRETRAINED if args.inner_steps == 0 else "FOMAML" if args.first_order else "MAML": weights_file}
    if args.inner_steps and baseline_file.exists():
        files[PRETRAINED] = baseline_file
    learners = {learner: Meta(args.inner_lr, loss=args.loss, device=device) for learner in files}
    later_lr = args.later_lr or args.inner_lr
    for learner, file in files.items():
        learners[learner].load_weights(file)
    graph_file, steps_file = (Path("res", f"{kind}({name}{suffix}).png") for kind in ("graph", "steps"))
    for path in (graph_file, steps_file):
        check_writable(path)

    drawn = Sinusoid(args.k_shot, num_tasks=1, seed=(DRAWN, args.seed))
    k_x, k_y, _, _ = drawn.__getitems__([0])
    truth = torch.from_numpy(drawn.target([0], GRID))  # (1, 50, 1)
    predictions = {
        learner: predict(meta, k_x.to(device), k_y.to(device), later_lr).cpu() for learner, meta in learners.items()
    }
    pre, post = rsse(next(iter(predictions.values())), truth)[:2]
    print(f"| pre loss: {pre:.3f} | post loss: {post:.3f} |")

    scores = {}
    for learner, meta in learners.items():
        tasks = Sinusoid(args.k_shot, q_query=0, num_tasks=10_000, seed=(TEST,))
        scores[learner] = summarize(evaluate(meta, tasks, device, later_lr))
        print(f"\n{learner}, {files[learner]}, on {len(tasks)} test tasks with K = {args.k_shot}:")
        print_scores(scores[learner], len(tasks))
    draw_graph(graph_file, k_x, k_y, truth, predictions)
    draw_steps(steps_file, args.k_shot, scores)
    print(f"\ngraphs: {graph_file}, {steps_file}")


@torch.no_grad()
def predict(meta: Meta, k_x: Tensor, k_y: Tensor, later_lr: float) -> Tensor:
    """Predictions at GRID after 0 to MAX_STEPS gradient steps, those after the first of step size `later_lr`.

    Args:
        k_x, k_y: support points, (tasks, K, 1).

    Returns:
        (MAX_STEPS + 1, tasks, 50, 1)
    """
    x = torch.from_numpy(GRID).to(k_x.device).expand(len(k_x), -1, -1)
    weights, predictions = None, []
    for step in range(MAX_STEPS + 1):
        weights = meta.adapt(k_x, k_y, min(step, 1), weights, later_lr if step > 1 else meta.inner_lr)
        _, pred = meta.net(x, x, weights)
        predictions.append(pred)
    return torch.stack(predictions)


def evaluate(meta: Meta, tasks: Sinusoid, device: torch.device, later_lr: float, chunk: int = 1000) -> Tensor:
    """Sum of squared errors over GRID of every task after 0 to MAX_STEPS steps: (MAX_STEPS + 1, tasks).

    The tasks are taken in chunks, which bounds the memory and changes nothing else.
    """
    sse = []
    for start in range(0, len(tasks), chunk):
        indices = range(start, min(start + chunk, len(tasks)))
        k_x, k_y, _, _ = tasks.__getitems__(indices)
        pred = predict(meta, k_x.to(device), k_y.to(device), later_lr).cpu()
        sse.append((pred - torch.from_numpy(tasks.target(indices, GRID))).square().sum((-2, -1)))
    return torch.cat(sse, dim=1)


def summarize(sse: Tensor) -> Scores:
    """Scores from sums of squared errors over GRID, (MAX_STEPS + 1, tasks)."""
    mse = sse / len(GRID)
    kept = mse <= DIVERGED  # False for nan, too
    count = kept.sum(1)

    def mean(values: Tensor) -> tuple[Tensor, Tensor]:
        average = values.where(kept, 0).sum(1) / count
        variance = (values - average[:, None]).where(kept, 0).square().sum(1) / (count - 1)
        return average, 1.96 * (variance / count).sqrt()

    return Scores(*mean(sse.sqrt()), *mean(mse), mse.nan_to_num(nan=math.inf).median(1).values, (~kept).sum(1))


def rsse(pred: Tensor, truth: Tensor) -> list[float]:
    """√SSE over GRID for each number of gradient steps: (MAX_STEPS + 1, 1, 50, 1), (1, 50, 1) -> (MAX_STEPS + 1,)."""
    return (pred - truth).square().sum((1, 2, 3)).sqrt().tolist()


def print_scores(scores: Scores, tasks: int) -> None:
    """A table of means ± 95 % confidence intervals, a row for each of TABLE_STEPS."""
    print("gradient steps   √SSE of 50 points               MSE   median MSE   diverged")
    for step in TABLE_STEPS:
        rsse, rsse_ci, mse, mse_ci, median, diverged = (score[step].item() for score in scores)
        row = f"{step:14}   {rsse:9.3f} ± {rsse_ci:5.3f}   {mse:6.3f} ± {mse_ci:5.3f}   {median:10.3f}"
        print(f"{row}   {diverged} of {tasks}")


def draw_losses(path: Path, title: str, loss: str, losses: list[float], validation: list[tuple[int, float]]) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    window = min(VALIDATE_EVERY, len(losses))
    smoothed = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, "C0", alpha=0.25, linewidth=0.5, label="training, each meta-batch")
    axes.plot(range(window, len(losses) + 1), smoothed, "C0", label=f"training, mean of the last {window} iterations")
    axes.plot(*np.reshape(validation, (-1, 2)).T, "C1", label="validation, 1,000 tasks")
    unit = {"rsse": "√SSE of 15 query points", "mse": "MSE of the query points"}[loss]
    axes.set(title=title, xlabel="iteration of the outer loop", yscale="log")
    axes.set_ylabel(f"query loss ({unit})")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    write(path, lambda file: figure.savefig(file, dpi=150))


def draw_graph(path: Path, k_x: Tensor, k_y: Tensor, truth: Tensor, predictions: dict[str, Tensor]) -> None:
    """The drawn task before and after adaptation, a panel for each learner (the paper's Figure 2)."""
    figure = Figure(figsize=(6.4 * len(predictions), 5.4), layout="constrained")
    panels = figure.subplots(1, len(predictions), sharey=True, squeeze=False)
    for axes, (learner, pred) in zip(panels[0], predictions.items(), strict=True):
        errors = rsse(pred, truth)
        axes.plot(GRID, truth.flatten(), "C0", label="Ground Truth")
        axes.plot(GRID, pred[0].flatten(), "C1:", label="Pre Update")
        axes.plot(GRID, pred[1].flatten(), "C2", label="One Grad Step")
        axes.plot(GRID, pred[10].flatten(), "C3--", label="Ten Grad Steps")
        axes.plot(k_x.flatten(), k_y.flatten(), "k^", label=f"K = {k_x.shape[1]} Support Points")
        title = (
            f"{learner}\n√SSE: {errors[0]:.2f} pre update, {errors[1]:.2f} after one step, {errors[10]:.2f} after ten"
        )
        axes.set_title(title, fontsize="medium")
        axes.set(xlabel="x", ylabel="y")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write(path, lambda file: figure.savefig(file, dpi=120))


def draw_steps(path: Path, k_shot: int, scores: dict[str, Scores]) -> None:
    """MSE on the test tasks against the number of gradient steps (the paper's Figure 3)."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    steps = range(MAX_STEPS + 1)
    for learner, score in scores.items():
        axes.plot(steps, score.mse, marker=".", label=learner)
        axes.fill_between(steps, score.mse - score.mse_ci, score.mse + score.mse_ci, alpha=0.3)
    axes.set(title=f"10,000 test tasks, K = {k_shot}, mean and 95 % confidence interval", xlabel="gradient steps")
    axes.set(ylabel="MSE of 50 points", xticks=steps, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    write(path, lambda file: figure.savefig(file, dpi=120))


def main() -> None:
    args = parse()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(*(f"{key}={value}" for key, value in vars(args).items()), f"device={device}")
    try:
        (test if args.test else train)(args, device)
    except (OSError, ValueError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
