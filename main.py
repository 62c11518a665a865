"""MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017, Section 5.1).

python3 main.py           trains, in a few minutes on a CPU
python3 main.py --test    measures the trained weights on 10,000 test tasks and
                          draws res/graph(k=10).png and res/steps(k=10).png
"""

import argparse
import contextlib
import io
import math
import os
import signal
import sys
import time
import uuid
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # draws to files; a notebook's may not be installed here
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:  # which prints a traceback during the imports
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator
from torch import Tensor
from tqdm import tqdm

from data import Batch, Sinusoid, meta_batches
from meta import CompileError, Meta, chunks
from net import LOSSES, Net

# Independent random streams, told apart by the first word of their seeds. Training tasks and the
# drawn task follow --seed, as the initial weights do. All runs share validation and test tasks.
DRAWN, TRAIN, VALIDATION, TEST = range(4)

VALIDATION_TASKS, TEST_TASKS = 1_000, 10_000
VALIDATE_EVERY = 1_000  # iterations
CHECKPOINT_EVERY = 5  # seconds: about the most that a stopped run loses
MAX_STEPS = 10  # gradient steps in the evaluation
GRID = torch.from_numpy(np.linspace(-5.0, 5.0, 50)[:, None])  # (50, 1), the scored inputs
CAP = 100.0  # a larger MSE counts as this, so that the mean is finite; predicting 0 gives below 14
PRETRAINED = "pretrained on all tasks"  # the paper's baseline
STYLE = ["default", {"text.parse_math": False}]  # of pictures; a $ in a name is not math

# The settings that, after K, name the files of a run where they are not the defaults.
NAMING = (
    "epochs",
    "batch_size",
    "inner_lr",
    "outer_lr",
    "seed",
    "loss",
    "inner_steps",
    "first_order",
)


class InputError(Exception):
    """What the user gave can't be used; the message is one sentence that says why."""


# Command line -------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    """Train or test. Exits with 2 where it can't do what it is asked, and with 130 after Ctrl-C."""
    sys.stderr = sys.stderr or io.StringIO()  # it is closed after `2>&-`
    if hasattr(sys.stdout, "reconfigure"):  # some terminals can't print √
        sys.stdout.reconfigure(errors="replace", line_buffering=True)
    args = parse(argv)
    # A second thread makes one run a little faster, and two runs on two cores many times slower.
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = test if args.test else train
    try:
        print(*(f"{key}={value}" for key, value in vars(args).items()), f"device={device}")
        command(args, device)
    except BrokenPipeError:  # nobody reads on, as after `| head -1`
        sys.exit(128 + 13)  # as a program that ends by SIGPIPE
    except KeyboardInterrupt:
        advice = "" if args.test else "; --resume resumes from the last checkpoint, if there is one"
        fail(f"interrupted{advice}", code=130)
    except (InputError, CompileError, OSError) as error:
        fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "allocate" not in str(error):
            raise
        fail("not enough memory: try a smaller --batch_size, --k_shot or --inner_steps")


def fail(sentence: str, code: int = 2) -> None:
    print(f"main.py: {sentence}", file=sys.stderr)
    sys.exit(code)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags. What can't be used costs one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        description="MAML on K-shot sinusoid regression (Finn, Abbeel and Levine, ICML 2017).",
        allow_abbrev=False,
    )
    group = parser.add_argument_group("training settings, which name the files of a run")

    def setting(flag, default, help, **options):
        help += " (default: %(default)s)"
        group.add_argument(flag, default=default, help=help, **options)

    setting("--epochs", 70_000, "iterations of the outer loop", **whole(1, 10**7))
    setting("--batch_size", 10, "tasks in a meta-batch", **whole(1, 10**4))
    setting("--k_shot", 10, "support points of a task, K", **whole(1, 10**3))
    setting("--inner_lr", 0.01, "step size of the inner loop, α", type=positive, metavar="LR")
    setting("--outer_lr", 0.001, "Adam's step size, outer loop, β", type=positive, metavar="LR")
    setting("--seed", 0, "seed of weights, training tasks and drawn task", **whole(0, 2**32 - 1))
    norms = "rsse: √(sum of squared errors); mse: mean squared error"
    setting("--loss", "rsse", norms, choices=LOSSES)
    steps = "gradient steps in training; 0: the pretrained baseline"
    setting("--inner_steps", 1, steps, **whole(0, 100))
    setting("--first_order", False, "drop the second derivatives: FOMAML", action="store_true")

    add = parser.add_argument_group("what to do").add_argument
    add("--compile", action="store_true", help="train 1.6 to 3.7 times as fast, after a slow start")
    add("--resume", action="store_true", help="resume a run that was stopped")
    add("--test", action="store_true", help="measure the trained weights and draw graphs")
    shots = "with --test: support points in the test (default: --k_shot)"
    add("--test_shots", help=shots, **whole(1, 10**3))
    file = "with --test: measure the weights in FILE instead"
    add("--weights", help=file, type=Path, metavar="FILE")

    args = parser.parse_args(argv)
    if args.test and (args.compile or args.resume):
        parser.error("--test can't be combined with --compile or --resume")
    if not args.test and args.test_shots:
        parser.error(f"--test_shots {args.test_shots} needs --test")
    if not args.test and args.weights:
        parser.error(f"--weights {args.weights} needs --test")
    return args


def whole(low: int, high: int) -> dict:
    """What argparse needs to take a whole number from `low` to `high`."""

    def number(text: str) -> int:
        if not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {text}")
        return int(text)

    number.__name__ = "int"  # for argparse's own sentence, "invalid int value: 'ten'"
    return {"type": number, "metavar": "N"}


def positive(text: str) -> float:
    """An argparse type: a positive number."""
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, not {text}")
    return float(text)


def run_name(args: argparse.Namespace) -> str:
    """The name of a run, for its files: K, then the settings that are not the defaults."""
    defaults = parse([])
    words = [f"k={args.k_shot}"]
    for setting in NAMING:
        value = getattr(args, setting)
        if value != getattr(defaults, setting):
            words.append(setting if value is True else f"{setting}={value}")
    return ",".join(words)


def in_words(name: str) -> str:
    """A `run_name`, which begins with "k=", as the title of a graph."""
    return "K" + name[1:].replace(",", ", ").replace("_", " ").replace("=", " = ")


def weights_file(args: argparse.Namespace) -> Path:
    return Path("weights", f"w({run_name(args)}).pt")


# Training -----------------------------------------------------------------------------------------


def train(args: argparse.Namespace, device: str) -> None:
    """Algorithm 1 of the paper, with validation and checkpoints. Its results come at the end."""
    name = run_name(args)
    graph = "loss_final" if name == run_name(parse([])) else f"loss_final({name})"
    graph_file = Path("res", f"{graph}.png")
    checkpoint = Path("weights", f"checkpoint({name}).pt")
    advice = "try a smaller --inner_lr or --outer_lr, or fewer --inner_steps"

    torch.manual_seed(args.seed)
    net = Net(args.loss).to(device)  # line 1
    meta = Meta(net, args.inner_lr, args.outer_lr, args.inner_steps, args.first_order)
    run = Run(meta)
    if args.resume:
        run.load(checkpoint, args.epochs)
    elif checkpoint.exists():
        raise InputError(f"{checkpoint} belongs to an unfinished run: add --resume, or delete it")
    if args.compile:
        meta.compile()
        print("compiling …")
    tasks = Sinusoid(args.k_shot, seed=(TRAIN, args.seed))
    batches = meta_batches(tasks, args.batch_size, len(run.losses), device)
    validation_tasks = Sinusoid(args.k_shot, num_tasks=VALIDATION_TASKS, seed=(VALIDATION,))
    points = validation_tasks.batch(range(VALIDATION_TASKS))
    validation_batch = tuple(tensor.to(device) for tensor in points)

    saved = time.monotonic()
    with tqdm(total=args.epochs, initial=len(run.losses), unit="it") as bar:
        while len(run.losses) < args.epochs:  # line 2
            batch = next(batches)  # line 3
            loss = meta(*batch)  # lines 4 to 8
            run.losses.append(loss)
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at iteration {len(run.losses)}: {advice}")
            bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            bar.update()
            if len(run.losses) % VALIDATE_EVERY == 0 or len(run.losses) == args.epochs:
                run.validate(validation_batch)
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                write(checkpoint, lambda file: torch.save(run.state(), file))
                saved = time.monotonic()

    if not run.best:
        raise InputError(f"no validation loss was finite: {advice}")
    # To resume from if what follows fails.
    write(checkpoint, lambda file: torch.save(run.state(), file))
    write(weights_file(args), lambda file: torch.save(run.best, file))
    draw_losses(graph_file, args, run)
    checkpoint.unlink(missing_ok=True)
    print(f"weights: {weights_file(args)}, best validation loss: {run.lowest():.5g}")
    print(f"loss graph: {graph_file}; the same command with --test measures the weights")


class Run:
    """The state of a training run: its learner, its losses so far, and the best weights."""

    def __init__(self, meta: Meta) -> None:
        self.meta = meta
        self.losses: list[float] = []  # one for each iteration
        self.validation_losses: list[float] = []  # one for each VALIDATE_EVERY, and the last
        self.best: dict[str, Tensor] = {}  # empty until a validation loss is finite

    def lowest(self) -> float:
        """The lowest validation loss, inf if none was finite."""
        return min(self.validation_losses, default=math.inf)

    @torch.no_grad()
    def validate(self, batch: Batch) -> None:
        """Record the loss on the validation tasks, and the weights if it is the lowest so far."""
        losses = [self.meta.query_loss(*chunk) for chunk in chunks(*batch)]
        loss = torch.cat(losses).mean().item()
        if loss < self.lowest():
            weights = self.meta.net.state_dict().items()
            self.best = {name: w.to("cpu", copy=True) for name, w in weights}
        # NaN can't be compared.
        self.validation_losses.append(loss if math.isfinite(loss) else math.inf)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: a file of weights, the best ones, with more in it."""
        return {
            **(self.best or self.meta.net.state_dict()),
            **self.meta.state(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "validation_losses": torch.tensor(self.validation_losses, dtype=torch.float64),
        }

    def load(self, path: Path, epochs: int) -> None:
        """Continue from a checkpoint, bit for bit. An `InputError` if it does not fit this run."""
        if not path.exists():
            raise InputError(f"no checkpoint {path}: leave out --resume to start a run")
        content = read(path)
        self.losses = pick(path, content, "losses").flatten().tolist()
        self.validation_losses = pick(path, content, "validation_losses").flatten().tolist()
        done, validations = len(self.losses), len(self.validation_losses)
        last = done == epochs and done % VALIDATE_EVERY > 0  # which is validated anyway
        if done > epochs or validations != done // VALIDATE_EVERY + last:
            lengths = f"{done} iterations and {validations} validations"
            raise InputError(f"{path} does not fit this run: it has {lengths}")
        if self.lowest() < math.inf:
            self.best = pick_weights(path, content, self.meta.net)
        now = self.meta.state()
        state = {name: pick(path, content, name, tensor.shape) for name, tensor in now.items()}
        self.meta.restore(state, done)


# Files --------------------------------------------------------------------------------------------


def read(path: Path) -> dict:
    """What a file of `torch.save` holds, by name. No code in it is executed.

    Raises an `OSError` if the file can't be read, and an `InputError` if it is of another format,
    or damaged, down to a single bit.
    """
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if file.read(2) != b"PK":
            raise InputError(f"{path} is not in the format of torch.save since PyTorch 1.6")
        if not is_whole(file):
            raise InputError(f"{path} is damaged")
        try:
            refuse_odd_parts(file)
            file.seek(0)
            return dict(torch.load(file, map_location="cpu", weights_only=True))
        except Exception as error:  # such a file can make its reader raise almost anything
            raise InputError(f"{path} is not a plain dictionary of a few tensors") from error


def is_whole(file: BinaryIO) -> bool:
    """Whether the checksums of an archive are right, which PyTorch ignores."""
    try:
        archive = zipfile.ZipFile(file)
        # Of a part that is said to be a folder, PyTorch reads nothing.
        folders = [part for part in archive.infolist() if part.external_attr & 0x10]
        return not folders and archive.testzip() is None
    except Exception:  # a damaged file can make its reader raise almost anything
        return False


def refuse_odd_parts(file: BinaryIO) -> None:
    """Raise a `ValueError` for what crashes PyTorch: a compressed part, or a large pickle."""
    for part in zipfile.ZipFile(file).infolist():
        is_pickle = "pkl" in part.filename.lower()
        if part.compress_type or is_pickle and part.file_size > 10_000:
            raise ValueError(part.filename)


def pick(path: Path, content: Mapping, name: str, shape: Sequence | None = None) -> Tensor:
    """The tensor of this name, and of this shape if one is given. Else raises an `InputError`."""
    tensor = content.get(name)
    if not isinstance(tensor, Tensor):
        raise InputError(f"{path} has no tensor {name}")
    is_dense = tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_meta
    if not is_dense or not tensor.is_floating_point():
        raise InputError(f"{path}: {name} is not a dense tensor of floating-point numbers")
    if shape is not None and tensor.shape != shape:
        raise InputError(f"{path}: {name} has the shape {list(tensor.shape)}, not {list(shape)}")
    return tensor.detach()


def pick_weights(path: Path, content: Mapping, net: Net) -> dict[str, Tensor]:
    """The weights of the network by name, which have to be finite."""
    weights = {name: pick(path, content, name, p.shape) for name, p in net.Param.items()}
    for name, w in weights.items():
        if not w.double().isfinite().all():  # float8 has no `isfinite`
            raise InputError(f"{path}: {name} is not finite")
    return weights


def write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write a file beside `path`, then move it there.

    If that fails, the old file stays as it was, and an `OSError` is raised.
    """
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
        with contextlib.suppress(OSError):
            temporary.unlink()


# Evaluation ---------------------------------------------------------------------------------------


def test(args: argparse.Namespace, device: str) -> None:
    """One drawn task and TEST_TASKS test tasks, with 0 to MAX_STEPS gradient steps."""
    files = files_to_measure(args)
    learners = {label: load(file, args, device) for label, file in files.items()}

    shots = args.test_shots or args.k_shot
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

    name, title = picture_name(args)
    graph_file, steps_file = Path("res", f"graph({name}).png"), Path("res", f"steps({name}).png")
    draw_graph(graph_file, title, (k_x[0], k_y[0]), y, curves)
    draw_steps(steps_file, title, scores)
    print(f"\ngraphs: {graph_file}, {steps_file}")


def files_to_measure(args: argparse.Namespace) -> dict[str, Path]:
    """By label: the weights that are asked for, and the pretrained baseline if it is there."""
    file = args.weights or weights_file(args)
    if not file.exists():
        raise InputError(f"no file {file} in this folder: train first, or pass --weights")
    if args.weights:  # quotes tell it from the other labels, escapes suit any font
        label = ascii(file.name)
    elif args.inner_steps == 0:
        label = PRETRAINED
    else:
        label = "FOMAML" if args.first_order else "MAML"
    files = {label: file}
    pretraining = argparse.Namespace(**{**vars(args), "inner_steps": 0, "first_order": False})
    baseline = weights_file(pretraining)
    if args.inner_steps > 0 and baseline.exists():
        files[PRETRAINED] = baseline
    return files


def load(file: Path, args: argparse.Namespace, device: str) -> Meta:
    """A learner with the weights of a file."""
    net = Net(args.loss)
    net.load_state_dict(pick_weights(file, read(file), net))
    return Meta(net.to(device), args.inner_lr)


def picture_name(args: argparse.Namespace) -> tuple[str, str]:
    """The name of the pictures of a test, and their title. No two files of weights share a name."""
    name = run_name(args)
    if args.test_shots not in (None, args.k_shot):
        name += f",test_shots={args.test_shots}"
    title = in_words(name)
    if args.weights and args.weights.parent == Path("weights") and args.weights.suffix == ".pt":
        name += f",weights={args.weights.stem}"
    elif args.weights:
        name += ",file=" + str(args.weights).replace("%", "%25").replace("/", "%2F")
    return name, title


@torch.no_grad()
def predictions(meta: Meta, k_x: Tensor, k_y: Tensor) -> Tensor:
    """The predictions on GRID after 0 to MAX_STEPS steps: (MAX_STEPS + 1, tasks, 50, 1)."""
    weight = next(meta.net.parameters())
    x = GRID.expand(len(k_x), -1, -1)
    k_x, k_y, x = (points.to(weight) for points in (k_x, k_y, x))  # its device and precision
    steps = meta.trajectory(k_x, k_y, x, MAX_STEPS)
    return torch.stack([prediction.cpu() for prediction in steps])


def evaluate(meta: Meta, shots: int) -> Tensor:
    """The summed squared errors over GRID of the test tasks: (MAX_STEPS + 1, TEST_TASKS)."""
    tasks = Sinusoid(shots, 0, num_tasks=TEST_TASKS, seed=(TEST,))
    k_x, k_y, _, _ = tasks.batch(range(TEST_TASKS))
    y = tasks.target(range(TEST_TASKS), GRID)  # (TEST_TASKS, 50, 1)
    sse = []
    with tqdm(total=len(tasks), unit="task", leave=False) as bar:
        for chunk_x, chunk_y, target in chunks(k_x, k_y, y):
            errors = predictions(meta, chunk_x, chunk_y) - target
            sse.append(errors.square().sum((2, 3)))
            bar.update(len(target))
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
    lines = [f"gradient steps   √SSE of {len(GRID)} points               MSE   median MSE"]
    for step in (0, 1, 2, 3, 5, MAX_STEPS):
        rsse, rsse_ci, mse, mse_ci, median, _ = (values[step] for values in scores.values())
        means = f"{rsse:9.3f} ± {rsse_ci:5.3f}   {mse:7.3f} ± {mse_ci:5.3f}"
        lines.append(f"{step:14}   {means}   {median:10.3f}")
    capped = int(scores["capped"].max())
    lines.append(f"tasks capped at MSE {CAP:g}: at most {capped} of {TEST_TASKS} after any step")
    return "\n".join(lines)


# Graphs -------------------------------------------------------------------------------------------


@matplotlib.style.context(STYLE)
def draw_losses(path: Path, args: argparse.Namespace, run: Run) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    count = len(run.losses)
    window = min(VALIDATE_EVERY, (count + 1) // 2)
    smoothed = np.convolve(run.losses, np.full(window, 1 / window), mode="valid")
    validated = np.arange(1, len(run.validation_losses) + 1) * VALIDATE_EVERY
    validated = np.minimum(validated, count)  # the last comes earlier
    kept = validated[np.argmin(run.validation_losses)]
    unit = {"rsse": "√SSE", "mse": "MSE"}.get(args.loss, args.loss)

    axes = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()
    iterations = range(1, count + 1)
    axes.semilogy(iterations, run.losses, alpha=0.25, linewidth=0.5, label="each meta-batch")
    mean = f"mean of the last {window:,} iterations"
    axes.plot(iterations[window - 1 :], smoothed, "C0", label=mean)
    validation = f"validation, {VALIDATION_TASKS:,} tasks"
    axes.plot(validated, run.validation_losses, "C1.-", markersize=3, label=validation)
    axes.plot(kept, run.lowest(), "k*", label=f"weights kept, iteration {kept:,}")

    axes.set_title(f"Training, {in_words(run_name(args))}", fontsize="medium")
    axes.set(xlabel="iteration of the outer loop", ylabel=f"query loss ({unit})")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    # Axes below half a decade need more labels.
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(0.5, 0.5)))
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right").get_lines()[0].set(linewidth=6)
    axes.grid(which="both", alpha=0.3)
    write(path, axes.figure.savefig)


@matplotlib.style.context(STYLE)
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
        axes.set(xlabel="x")
        axes.grid(alpha=0.3)
        if axes is panels[0]:  # the first sets the frame, which other curves may leave
            axes.set(ylabel="y", ylim=axes.get_ylim())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write(path, figure.savefig)


@matplotlib.style.context(STYLE)
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
    signal.signal(signal.SIGINT, interrupt)
    main()
