"""MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017, Section 5.1).

python3 main.py           trains, in a few minutes on a CPU
python3 main.py --test    measures the trained weights on 10,000 test tasks and
                          draws res/graph(k=10).png and res/steps(k=10).png
"""

import argparse
import copy
import io
import math
import os
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor
from tqdm import tqdm

from data import Batch, Sinusoid, meta_batches
from meta import Meta
from net import LOSSES, Net

# Independent random streams, told apart by the first word of their seeds. Training tasks and the drawn
# task follow --seed, as the initial weights do; validation and test tasks are the same in every run.
DRAWN, TRAIN, VALIDATION, TEST = range(4)

VALIDATION_TASKS, TEST_TASKS = 1_000, 10_000
VALIDATE_EVERY = 1_000  # iterations
CHECKPOINT_EVERY = 5  # seconds: about what a run loses, however it is stopped
CHUNK = 100  # tasks that are evaluated at once: more or fewer take up to twice as long
MAX_STEPS = 10  # gradient steps in the evaluation,
TABLE_STEPS = [0, 1, 2, 3, 5, MAX_STEPS]  # and those that its table shows
GRID = np.linspace(-5.0, 5.0, 50)[:, None]  # (50, 1), the inputs that are scored in the evaluation
PRETRAINED = "pretrained on all tasks"  # the paper's baseline
DIVERGED = 100.0  # an MSE above this has diverged; to answer 0 everywhere costs less than 14


class InputError(Exception):
    """What the user gave can't be used; the message is one sentence that says why."""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Exits with 2 where it can't do what it is asked, and with 130 after Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)  # there are terminals that know no √
    args = parse(argv)
    # A second thread makes one run a little faster, and two runs at once on two cores many times slower.
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        print(*(f"{key}={value}" for key, value in vars(args).items()), f"device={device}")
        (test if args.test else train)(args, device)
    except (OSError, InputError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("main.py: interrupted; --resume goes on from the last checkpoint, if there is one", file=sys.stderr)
        sys.exit(130)
    except torch._dynamo.exc.TorchDynamoException as error:
        print(f"main.py: --compile failed: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        sys.exit(2)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument_group("training settings, which name the files of a run").add_argument
    rate = between(1e-300, 1e300)
    add("--epochs", metavar="N", type=between(1, 10**7), default=70_000, help="iterations of the outer loop")
    add("--batch_size", metavar="N", type=between(1, 10**4), default=10, help="tasks in a meta-batch")
    add("--k_shot", metavar="K", type=between(1, 10**3), default=10, help="support points of a task")
    add("--inner_lr", metavar="LR", type=rate, default=1e-2, help="step size of the inner loop, α")
    add("--outer_lr", metavar="LR", type=rate, default=1e-3, help="learning rate of Adam, outer loop, β")
    add("--seed", metavar="N", type=between(0, 2**32 - 1), default=0, help="of weights, training tasks, drawn task")
    add("--loss", choices=LOSSES, default="rsse", help="√Σ of squared errors or their mean, both loops")
    add("--inner_steps", metavar="N", type=between(0, 100), default=1, help="in training; 0 is plain pretraining")
    add("--first_order", action="store_true", help="drop the second derivatives: FOMAML")
    add = parser.add_argument_group("what to do").add_argument
    add("--compile", action="store_true", help="slower to start, then three times as fast with few tasks")
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add("--test", action="store_true", help="measure the trained weights and draw graphs")
    add("--weights", metavar="FILE", type=Path, help="with --test: those in FILE instead")
    args = parser.parse_args(argv)
    if args.test and (args.resume or args.compile):
        parser.error("--test measures weights: leave out --resume and --compile, which are for training")
    if args.weights and not args.test:
        parser.error(f"--weights {args.weights} is for --test: add that, or leave it out")
    return args


def between(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`, and of their type."""

    def number(text: str) -> float:
        if not low <= type(low)(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return type(low)(text)

    number.__name__ = type(low).__name__  # argparse says "invalid int value" where there is none
    return number


def run_name(args: argparse.Namespace) -> str:
    """What tells a run from every other, for the names of its files: K, then the settings that are not the defaults."""
    defaults, others = vars(parse([])), ("k_shot", "compile", "resume", "test", "weights")
    settings = {key: value for key, value in vars(args).items() if key not in others and value != defaults[key]}
    return ",".join([f"k={args.k_shot}", *(key if v is True else f"{key}={v}" for key, v in settings.items())])


def train(args: argparse.Namespace, device: torch.device) -> None:
    """Algorithm 1 of the paper, with validation and checkpoints. What comes of it is written when it has finished."""
    name = run_name(args)
    weights_file, checkpoint_file = Path("weights", f"w({name}).pt"), Path("weights", f"checkpoint({name}).pt")
    graph_file = Path("res", "loss_final.png" if name == "k=10" else f"loss_final({name}).png")

    torch.manual_seed(args.seed)
    meta = Meta(args.inner_lr, args.outer_lr, args.loss, args.inner_steps, args.first_order, device)  # line 1
    run = Run(meta)
    if args.resume and not checkpoint_file.exists():
        raise InputError(f"--resume found no checkpoint {checkpoint_file}: leave it out to start from the beginning")
    if args.resume:
        run.load(checkpoint_file)
    elif checkpoint_file.exists():
        raise InputError(f"{checkpoint_file} is of a run that has not ended: add --resume to go on, or delete it")
    if len(run.losses) > args.epochs:
        raise InputError(f"{checkpoint_file} is of a longer run: it has {len(run.losses)} iterations")
    if args.compile:
        print("compiling …")
        meta.compile()
    tasks = Sinusoid(args.k_shot, seed=(TRAIN, args.seed))
    batches = meta_batches(tasks, args.batch_size, len(run.losses), device)
    validation_tasks = Sinusoid(args.k_shot, num_tasks=VALIDATION_TASKS, seed=(VALIDATION,))
    validation_batch = tuple(tensor.to(device) for tensor in validation_tasks.batch(range(VALIDATION_TASKS)))

    saved = time.monotonic()
    with tqdm(total=args.epochs, initial=len(run.losses), unit="it") as bar:
        while len(run.losses) < args.epochs:  # line 2
            batch = next(batches)  # line 3
            loss = meta(*batch)  # lines 4 to 8
            run.losses.append(loss)
            if not math.isfinite(loss):
                advice = "try a smaller --inner_lr or --outer_lr, or fewer --inner_steps"
                raise InputError(f"the loss is {loss} at iteration {len(run.losses)}: {advice}")
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
            finished = len(run.losses) == args.epochs
            if finished or len(run.losses) % VALIDATE_EVERY == 0:
                run.validate(validation_batch)
            if finished or time.monotonic() - saved > CHECKPOINT_EVERY:
                run.save(checkpoint_file)
                saved = time.monotonic()

    write(weights_file, lambda file: torch.save(dict(run.best_weights), file))
    draw_losses(graph_file, args, run)
    checkpoint_file.unlink(missing_ok=True)
    print(f"weights: {weights_file}, best validation loss: {min(run.validation_losses):.5g}")
    print(f"loss graph: {graph_file}; the same command with --test measures the weights")


class Run:
    """What training changes. Its checkpoint is a file of weights, the best so far, with what it takes to go on."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.losses: list[float] = []  # of every iteration
        self.validation_losses: list[float] = []  # after every VALIDATE_EVERY iterations, and after the last
        self.best_weights = copy.deepcopy(meta.net).cpu().state_dict()

    def validate(self, batch: Batch) -> None:
        """Record the loss on the validation tasks, and the weights if it is the lowest so far."""
        learner = copy.copy(self.meta)
        learner.first_order = True  # second derivatives are for training
        chunks = zip(*(tensor.split(CHUNK) for tensor in batch), strict=True)
        loss = torch.cat([learner.query_loss(*chunk).detach() for chunk in chunks]).mean().item()
        if loss < min(self.validation_losses, default=math.inf):
            self.best_weights = copy.deepcopy(self.meta.net).cpu().state_dict()
        self.validation_losses.append(min(math.inf, loss))  # inf for nan, which can't be compared

    def save(self, path: Path) -> None:
        """Write a checkpoint. An `OSError` if that can't be done."""
        state = {"net": self.meta.net.state_dict(), "outer_optim": self.meta.outer_optim.state_dict()}
        state["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state["validation_losses"] = torch.tensor(self.validation_losses, dtype=torch.float64)
        write(path, lambda file: torch.save({**self.best_weights, **state}, file))

    def load(self, path: Path) -> None:
        """Go on from a checkpoint, bit for bit. An `InputError` if it is none."""
        state = load(path)
        try:
            self.best_weights = {name: state[name] for name in self.best_weights}
            self.meta.net.load_state_dict(state["net"])
            self.meta.outer_optim.load_state_dict(state["outer_optim"])
            self.losses, self.validation_losses = state["losses"].tolist(), state["validation_losses"].tolist()
        except Exception as error:  # a field that is missing or of another type can lead to almost anything
            raise InputError(f"{path} is a file of weights, but no checkpoint to go on from") from error


def load(path: Path) -> dict:
    """What `path` holds, on the CPU: the six weights of a `Net`, and in a checkpoint more. No code in it is ever run.

    Raises an `OSError` if it can't be read, and an `InputError` if it is damaged, or has no six sound weights.
    """
    file = io.BytesIO(path.read_bytes())
    try:
        if zipfile.ZipFile(file).testzip():  # PyTorch doesn't look at the checksums
            raise zipfile.BadZipFile
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
        for name, parameter in Net().Param.items():
            values = content[name].detach().numpy()  # which a sparse tensor, say, can't do
            if values.shape != parameter.shape or values.dtype != np.float64 or not np.isfinite(values).all():
                raise ValueError(name)
    except Exception as error:  # a damaged file can make its reader raise almost anything
        raise InputError(f"{path} is damaged, or no file of this net's weights, finite and in float64") from error
    return content


def write(path: Path, save: Callable[[BinaryIO], object]) -> None:
    """Write with `save` beside `path`, then move it there: all of it or, with an `OSError`, nothing."""
    buffer = io.BytesIO()
    save(buffer)
    temporary = Path(f"{path}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("xb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # else a power cut after the move may leave an empty file
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror}") from error
    finally:
        if os.path.exists(temporary):
            temporary.unlink()


def test(args: argparse.Namespace, device: torch.device) -> None:
    """The evaluation: one drawn task, then TEST_TASKS test tasks, with 0 to MAX_STEPS gradient steps."""
    name = run_name(args)
    weights_file = args.weights or Path("weights", f"w({name}).pt")
    if not weights_file.exists():
        raise InputError(f"there are no weights {weights_file}: check --weights, or train some, without --test")
    label = PRETRAINED if args.inner_steps == 0 else "FOMAML" if args.first_order else "MAML"
    files = {ascii(args.weights.name) if args.weights else label: weights_file}  # in quotes: like no other label
    baseline = argparse.Namespace(**{**vars(args), "inner_steps": 0, "first_order": False})
    baseline_file = Path("weights", f"w({run_name(baseline)}).pt")
    if args.inner_steps and baseline_file.exists():
        files[PRETRAINED] = baseline_file

    drawn = Sinusoid(args.k_shot, num_tasks=1, seed=(DRAWN, args.seed))
    k_x, k_y, _, _ = drawn.batch([0])
    truth = torch.from_numpy(drawn.target([0], GRID))  # (1, 50, 1)
    results, scores = {}, {}
    for label, file in files.items():
        meta = Meta(args.inner_lr, loss=args.loss, first_order=True, device=device)  # no second derivatives here
        meta.net.load_state_dict({name: w for name, w in load(file).items() if name in meta.net.Param})
        pred, sse = predict(meta, k_x, k_y, truth)
        results[label] = pred[:, 0], sse[:, 0].sqrt()
        print(f"\n{label}, {file}, on a drawn task and {TEST_TASKS} test tasks with K = {args.k_shot}:")
        print("| pre loss: {:.3f} | post loss: {:.3f} |".format(*sse[:2, 0].sqrt()))
        scores[label] = summarize(evaluate(meta, Sinusoid(args.k_shot, 0, TEST_TASKS, seed=(TEST,))))
        print(f"gradient steps   √SSE of {len(GRID)} points               MSE   median MSE   diverged")
        for step in TABLE_STEPS:
            row = "{rsse:9.3f} ± {rsse_ci:5.3f}   {mse:6.3f} ± {mse_ci:5.3f}   {median:10.3f}   {diverged} of {tasks}"
            values = {name: score[step].item() for name, score in scores[label].items()}
            print(f"{step:14}  ", row.format(**values, tasks=TEST_TASKS))

    matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a file begins no formula
    shown = f"{name},weights={weights_file.stem}" if args.weights else name
    graph_file, steps_file = Path("res", f"graph({shown}).png"), Path("res", f"steps({shown}).png")
    draw_graph(graph_file, k_x[0], k_y[0], truth[0], results)
    draw_steps(steps_file, args.k_shot, scores)
    print(f"\ngraphs: {graph_file}, {steps_file}")


def predict(meta: Meta, k_x: Tensor, k_y: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions over GRID and their sums of squared errors, after 0 to MAX_STEPS gradient steps.

    (tasks, K, 1), (tasks, K, 1), (tasks, 50, 1) -> (MAX_STEPS + 1, tasks, 50, 1) and (MAX_STEPS + 1, tasks).
    """
    k_x, k_y, y = (tensor.to(meta.net.w_1.device) for tensor in (k_x, k_y, truth))
    x = torch.from_numpy(GRID).to(y.device).expand_as(y)
    weights, predictions = None, []
    for step in range(MAX_STEPS + 1):
        weights = meta.adapt(k_x, k_y, min(step, 1), weights)
        _, pred = meta.net(x, y, weights)
        predictions.append(pred.detach().cpu())  # without its graph
    predictions = torch.stack(predictions)
    return predictions, (predictions - truth).square().sum((2, 3))


def evaluate(meta: Meta, tasks: Sinusoid) -> Tensor:
    """Sum of squared errors over GRID of every task after 0 to MAX_STEPS steps: (MAX_STEPS + 1, tasks)."""
    sse = []
    for start in tqdm(range(0, len(tasks), CHUNK), unit="chunk", leave=False):
        indices = range(start, min(start + CHUNK, len(tasks)))
        k_x, k_y, _, _ = tasks.batch(indices)
        sse.append(predict(meta, k_x, k_y, torch.from_numpy(tasks.target(indices, GRID)))[1])
    return torch.cat(sse, dim=1)


def summarize(sse: Tensor) -> dict[str, Tensor]:
    """Scores, each (MAX_STEPS + 1,), from the sums of squared errors over GRID, (MAX_STEPS + 1, tasks).

    They are the means "rsse", √SSE, and "mse", with half the widths of their 95 % confidence intervals, "rsse_ci" and
    "mse_ci"; the number of tasks that have "diverged", which the means leave out; and the "median" MSE of all tasks.
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


def draw_losses(path: Path, args: argparse.Namespace, run: Run) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    count = len(run.losses)
    window = min(VALIDATE_EVERY, count)
    smoothed = np.convolve(run.losses, np.full(window, 1 / window), mode="valid")
    validated = np.minimum(np.arange(1, len(run.validation_losses) + 1) * VALIDATE_EVERY, count)
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, count + 1), run.losses, "C0", alpha=0.25, linewidth=0.5, label="training, each meta-batch")
    axes.plot(range(window, count + 1), smoothed, "C0", label=f"training, mean of the last {window:,} iterations")
    axes.plot(validated, run.validation_losses, "C1.-", markersize=3, label=f"validation, {VALIDATION_TASKS:,} tasks")
    axes.set(title=f"Training, {run_name(args)}", yscale="log", xlabel="iteration of the outer loop")
    axes.set(ylabel={"rsse": "query loss (√SSE of the query points)", "mse": "query loss (MSE)"}[args.loss])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3, which="both")
    write(path, figure.savefig)


def draw_graph(path: Path, k_x: Tensor, k_y: Tensor, truth: Tensor, results: dict[str, tuple[Tensor, Tensor]]) -> None:
    """The drawn task before and after adaptation, the first learner large (the paper's Figure 2)."""
    width = [2] + [1] * (len(results) - 1)
    figure = Figure(figsize=(4 * sum(width), 5.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False, width_ratios=width)[0]
    for axes, (label, (pred, rsse)) in zip(panels, results.items(), strict=True):
        axes.plot(GRID, truth, "C0", label="Ground Truth")
        axes.plot(GRID, pred[0], "C1:", label="Pre Update")
        axes.plot(GRID, pred[1], "C2", linewidth=2.5, label="One Grad Step")
        axes.plot(GRID, pred[-1], "C3--", linewidth=1, alpha=0.6, label=f"{MAX_STEPS} Grad Steps")
        axes.plot(k_x, k_y, "k^", label=f"K = {len(k_x)} Support Points")
        errors = f"{rsse[0]:.2f} → {rsse[1]:.2f} → {rsse[-1]:.2f}"
        axes.set_title(f"{label}\n√SSE after 0 → 1 → {MAX_STEPS} steps: {errors}", fontsize="medium")
        axes.set(xlabel="x")
        axes.grid(alpha=0.3)
        if axes is panels[0]:  # the others may leave its frame
            axes.set(ylabel="y", ylim=axes.get_ylim())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3 + 2 * (len(panels) > 1))
    write(path, figure.savefig)


def draw_steps(path: Path, k_shot: int, scores: dict[str, dict[str, Tensor]]) -> None:
    """MSE on the test tasks against the number of gradient steps (the paper's Figure 3)."""
    figure = Figure(figsize=(6.4, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    steps = range(MAX_STEPS + 1)
    for label, score in scores.items():
        mse, ci, diverged = score["mse"], score["mse_ci"], int(score["diverged"].max())
        axes.plot(steps, mse, marker=".", label=f"{label}, without {diverged} diverged" if diverged else label)
        axes.fill_between(steps, mse - ci, mse + ci, alpha=0.3)
    axes.set(title=f"{TEST_TASKS:,} test tasks, K = {k_shot}, mean and 95 % confidence interval")
    axes.set(xlabel="gradient steps", ylabel=f"MSE of {len(GRID)} points", xticks=steps, ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    write(path, figure.savefig)


if __name__ == "__main__":
    main()
