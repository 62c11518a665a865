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
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator
from torch import Tensor
from tqdm import tqdm

from data import Batch, Sinusoid, meta_batches
from meta import Meta
from net import LOSSES

# Independent random streams, told apart by the first word of their seeds. Training tasks and the drawn
# task follow --seed, as the initial weights do; validation and test tasks are the same in every run.
DRAWN, TRAIN, VALIDATION, TEST = range(4)

VALIDATION_TASKS, TEST_TASKS = 1_000, 10_000
VALIDATE_EVERY = 1_000  # iterations
CHECKPOINT_EVERY = 5  # seconds: about the most that a stopped run loses
CHUNK = 100  # tasks that are evaluated at once; other sizes take up to twice as long
MAX_STEPS = 10  # gradient steps in the evaluation
GRID = torch.from_numpy(np.linspace(-5.0, 5.0, 50)[:, None])  # (50, 1), the inputs that are scored in the evaluation
PRETRAINED = "pretrained on all tasks"  # the paper's baseline
WORST = 100.0  # a larger MSE counts as this, so that the mean is finite; predicting 0 everywhere gives less than 14


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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        print(*(f"{key}={value}" for key, value in vars(args).items()), f"device={device}")
        (test if args.test else train)(args, device)
    except (OSError, InputError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        advice = "" if args.test else "; --resume goes on from the last checkpoint, if there is one"
        print(f"main.py: interrupted{advice}", file=sys.stderr)
        sys.exit(130)
    except torch._dynamo.exc.TorchDynamoException as error:
        from torch._inductor.codecache import cache_dir  # which takes a second to import

        reason = " ".join(str(error).split("Output:\n")[-1].split("error: ", 1)[-1].split("Set TORCH")[0].split())[:300]
        print(f"main.py: --compile failed: {reason}; if the cache is damaged, delete {cache_dir()}", file=sys.stderr)
        sys.exit(2)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    formatter = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=formatter, allow_abbrev=False)
    add = parser.add_argument_group("training settings, which name the files of a run").add_argument
    add("--epochs", metavar="N", type=between(1, 10**7), default=70_000, help="iterations of the outer loop")
    add("--batch_size", metavar="N", type=between(1, 10**4), default=10, help="tasks in a meta-batch")
    add("--k_shot", metavar="K", type=between(1, 10**3), default=10, help="support points of a task")
    add("--inner_lr", metavar="LR", type=between(1e-300, 1e300), default=1e-2, help="step size in the inner loop, α")
    add("--outer_lr", metavar="LR", type=between(1e-300, 1e300), default=1e-3, help="Adam's step size, outer loop, β")
    add("--seed", metavar="N", type=between(0, 2**32 - 1), default=0, help="seeds weights, training and drawn tasks")
    add("--loss", choices=LOSSES, default="rsse", help="loss of both loops: root of the summed squared error, or mean")
    add("--inner_steps", metavar="N", type=between(0, 100), default=1, help="gradient steps in training; 0 pretrains")
    add("--first_order", action="store_true", help="drop the second derivatives: FOMAML")
    add = parser.add_argument_group("what to do").add_argument
    add("--compile", action="store_true", help="slow to start, then up to three times as fast")
    add("--resume", action="store_true", help="go on with a run that was stopped")
    add("--test", action="store_true", help="measure the trained weights and draw graphs")
    add("--test_shots", metavar="K", type=between(1, 10**3), help="with --test: support points, if not --k_shot")
    add("--weights", metavar="FILE", type=Path, help="with --test: measure the weights in FILE instead")
    args = parser.parse_args(argv)
    for flag in ("compile", "resume") if args.test else ("test_shots", "weights"):
        if value := vars(args)[flag]:
            parser.error(f"--{flag} is not for --test" if args.test else f"--{flag} {value} needs --test")
    return args


def between(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number of the type of `low`, from `low` to `high`."""

    def number(text: str) -> float:
        if not low <= type(low)(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return type(low)(text)

    number.__name__ = type(low).__name__  # argparse takes it for its message "invalid int value: 'ten'"
    return number


def run_name(args: argparse.Namespace) -> str:
    """The name of a run, for its files: K, then the settings that are not the defaults."""
    defaults, others = vars(parse([])), ("k_shot", "compile", "resume", "test", "test_shots", "weights")
    settings = {key: value for key, value in vars(args).items() if key not in others and value != defaults[key]}
    return ",".join([f"k={args.k_shot}", *(key if v is True else f"{key}={v}" for key, v in settings.items())])


def in_words(name: str) -> str:
    """A `run_name` as the title of a graph."""
    return name.replace(",", ", ").replace("_", " ").replace("=", " = ").replace("k =", "K =", 1)


def train(args: argparse.Namespace, device: str) -> None:
    """Algorithm 1 of the paper, with validation and checkpoints. Its results are written when it has finished."""
    name = run_name(args)
    weights_file, checkpoint_file = Path("weights", f"w({name}).pt"), Path("weights", f"checkpoint({name}).pt")
    graph_file = Path("res", "loss_final.png" if name == "k=10" else f"loss_final({name}).png")
    advice = "try a smaller --inner_lr or --outer_lr, or fewer --inner_steps"
    advice += f". If {checkpoint_file} exists, measure it with --test --weights, or delete it to start again"

    torch.manual_seed(args.seed)
    meta = Meta(args.inner_lr, args.outer_lr, args.loss, args.inner_steps, args.first_order, device)  # line 1
    run = Run(meta, args.epochs)
    if args.resume and not checkpoint_file.exists():
        raise InputError(f"--resume found no checkpoint {checkpoint_file}: leave it out to start from the beginning")
    if args.resume:
        run.load(checkpoint_file)
    elif checkpoint_file.exists():
        raise InputError(f"{checkpoint_file} belongs to an unfinished run: add --resume to go on, or delete it")
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
                raise InputError(f"the loss is {loss} at iteration {len(run.losses)}: {advice}")
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
            if len(run.losses) % VALIDATE_EVERY == 0 or len(run.losses) == args.epochs:
                run.validate(validation_batch)
            if time.monotonic() - saved > CHECKPOINT_EVERY:
                write(checkpoint_file, lambda file: torch.save(run.state(), file))
                saved = time.monotonic()

    if run.lowest() == math.inf:
        raise InputError(f"no validation loss was finite: {advice}")
    write(checkpoint_file, lambda file: torch.save(run.state(), file))  # to go on from if what follows fails
    write(weights_file, lambda file: torch.save(dict(run.best.state_dict()), file))
    draw_losses(graph_file, args, run)
    checkpoint_file.unlink(missing_ok=True)
    print(f"weights: {weights_file}, best validation loss: {run.lowest():.5g}")
    print(f"loss graph: {graph_file}; the same command with --test measures the weights")


class Run:
    """The state of training. A checkpoint is a file of the best weights and of what resuming needs."""

    def __init__(self, meta: Meta, epochs: int) -> None:
        self.meta, self.epochs = meta, epochs
        self.best = copy.deepcopy(meta.net).cpu()
        self.losses: list[float] = []  # of every iteration
        self.validation_losses: list[float] = []  # after every VALIDATE_EVERY-th iteration, and after the last

    def lowest(self) -> float:
        """The lowest validation loss, inf if none was finite."""
        return min(self.validation_losses, default=math.inf)

    def validate(self, batch: Batch) -> None:
        """Record the loss on the validation tasks, and the weights if it is the lowest so far."""
        learner = copy.copy(self.meta)
        learner.first_order = True  # second derivatives are for training
        chunks = zip(*(tensor.split(CHUNK) for tensor in batch), strict=True)
        loss = torch.cat([learner.query_loss(*chunk).detach() for chunk in chunks]).mean().item()
        if loss < self.lowest():
            self.best.load_state_dict(self.meta.net.state_dict())
        self.validation_losses.append(min(math.inf, loss))  # inf for nan, which can't be compared

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds, by name: the tensors themselves, and copies of the lists."""
        if self.lowest() == math.inf:  # no finite validation yet
            self.best.load_state_dict(self.meta.net.state_dict())
        state = dict(self.best.state_dict())
        for name, parameter in self.meta.net.Param.items():
            now = {"net": parameter.detach(), **self.meta.outer_optim.state[parameter]}
            state |= {f"{key}.{name}": now[key] for key in ("net", "exp_avg", "exp_avg_sq")}
        for name in ("losses", "validation_losses"):
            state[name] = torch.tensor(getattr(self, name), dtype=torch.float64)
        return state

    def load(self, path: Path) -> None:
        """Go on from a checkpoint, bit for bit. An `InputError` if it is damaged or does not fit this run."""
        state = self.state()
        load(path, state)
        self.losses, self.validation_losses = state["losses"].tolist(), state["validation_losses"].tolist()
        done, validations = len(self.losses), len(self.validation_losses)
        last = done == self.epochs and done % VALIDATE_EVERY > 0  # one more, after the last iteration
        if done > self.epochs or validations != done // VALIDATE_EVERY + last:
            raise InputError(f"{path} does not fit this run: it has {done} iterations and {validations} validations")
        for adam in self.meta.outer_optim.state.values():
            adam["step"].fill_(done)


@torch.no_grad()
def load(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors` from a file, by name: `load(path, meta.net.Param)`. No code in the file is run.

    An empty tensor is resized to fit. Raises an `OSError` if the file can't be read, and an `InputError` if it is
    damaged or its tensors do not fit.
    """
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parts = zipfile.ZipFile(file)  # PyTorch ignores checksums, and a large pickle can crash it
            odd = [p for p in parts.infolist() if p.compress_type or "pkl" in p.filename.lower() and p.file_size > 1e4]
            if odd or parts.testzip():
                raise zipfile.BadZipFile
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            for name, tensor in tensors.items():
                found = content[name]
                shape = tensor.shape if tensor.numel() else (len(found),)
                sound = found.dtype == torch.float64 and found.shape == shape and found.is_contiguous()
                if not sound or not (found.isfinite() | (found == math.inf) & (name == "validation_losses")).all():
                    raise ValueError(name)
        except Exception as error:  # a damaged file can make its reader raise almost anything
            raise InputError(f"{path} is damaged, or lacks some of {len(tensors)} sound float64 tensors") from error
    for name, tensor in tensors.items():
        (tensor if tensor.numel() else tensor.resize_(content[name].shape)).copy_(content[name])


def write(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Write a file beside `path`, then move it there. If that fails, an `OSError` is raised and the old file stays."""
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
        if os.path.exists(temporary):  # to unlink a name that is too long raises
            temporary.unlink()


def test(args: argparse.Namespace, device: str) -> None:
    """The evaluation: one drawn task, then TEST_TASKS test tasks, with 0 to MAX_STEPS gradient steps."""
    name, shots = run_name(args), args.test_shots or args.k_shot
    weights_file = args.weights or Path("weights", f"w({name}).pt")
    if not weights_file.exists():
        raise InputError(f"there are no weights {weights_file}: check --weights, or train some, without --test")
    label = PRETRAINED if args.inner_steps == 0 else "FOMAML" if args.first_order else "MAML"
    if args.weights:  # quotes tell it from the other labels, escapes suit any font
        label = "the original's weights" if args.weights.stem.startswith("original(") else ascii(args.weights.name)
    files = {label: weights_file}
    baseline = argparse.Namespace(**{**vars(args), "inner_steps": 0, "first_order": False})
    baseline_file = Path("weights", f"w({run_name(baseline)}).pt")
    if args.inner_steps and baseline_file.exists():
        files[PRETRAINED] = baseline_file

    results, scores = {}, {}
    for label, file in files.items():
        meta = Meta(args.inner_lr, loss=args.loss, first_order=True, device=device)  # no second derivatives here
        load(file, meta.net.Param)
        drawn = Sinusoid(shots, 0, num_tasks=1, seed=(DRAWN, args.seed))  # anew: the same points for every learner
        points, pred, sse = fine_tune(meta, drawn, [0])
        results[label] = pred[:, 0], sse[:, 0].sqrt()
        print(f"\n{label}, {file}, on a drawn task and {TEST_TASKS} test tasks with K = {shots}:")
        print("| pre loss: {:.3f} | post loss: {:.3f} |".format(*sse[:2, 0].sqrt()))
        scores[label] = summarize(evaluate(meta, Sinusoid(shots, 0, TEST_TASKS, seed=(TEST,))))
        print(f"gradient steps   √SSE of {len(GRID)} points               MSE   median MSE")
        for step in (0, 1, 2, 3, 5, MAX_STEPS):
            row = "{rsse:9.3f} ± {rsse_ci:5.3f}   {mse:7.3f} ± {mse_ci:5.3f}   {median:10.3f}"
            print(f"{step:14}  ", row.format(**{key: score[step].item() for key, score in scores[label].items()}))
        worst = int(scores[label]["worst"].max())
        print(f"MSE ≥ {WORST:g}, counted as that: at most {worst} of {TEST_TASKS} tasks after 0 to {MAX_STEPS} steps")

    matplotlib.rcParams["text.parse_math"] = False  # a $ in the name of a file begins no formula
    shown = name if shots == args.k_shot else f"{name},test_shots={shots}"
    title = in_words(shown)
    shown += f",weights={args.weights.stem}" if args.weights else ""
    graph_file, steps_file = Path("res", f"graph({shown}).png"), Path("res", f"steps({shown}).png")
    draw_graph(graph_file, title, points, drawn.target([0], GRID)[0], results)
    draw_steps(steps_file, title, scores)
    print(f"\ngraphs: {graph_file}, {steps_file}")


def fine_tune(meta: Meta, tasks: Sinusoid, indices: Sequence[int]) -> tuple[Batch, Tensor, Tensor]:
    """The points, and for 0 to 10 steps predictions over GRID, (11, tasks, 50, 1), and their SSE, (11, tasks)."""
    points, truth = tasks.batch(indices), tasks.target(indices, GRID)
    k_x, k_y, x = (tensor.to(meta.net.w_1) for tensor in (*points[:2], GRID.expand_as(truth)))
    weights, predictions = None, []
    for step in range(MAX_STEPS + 1):
        if step > 0:
            weights = meta.adapt(k_x, k_y, 1, weights)
        predictions.append(meta.net.predict(x, weights).detach().cpu())  # without its graph
    predictions = torch.stack(predictions)
    return points, predictions, (predictions - truth).square().sum((2, 3))


def evaluate(meta: Meta, tasks: Sinusoid) -> Tensor:
    """Sum of squared errors over GRID of every task after 0 to MAX_STEPS steps: (MAX_STEPS + 1, tasks)."""
    with tqdm(torch.arange(len(tasks)).split(CHUNK), unit="chunk", leave=False) as chunks:
        return torch.cat([fine_tune(meta, tasks, chunk.tolist())[2] for chunk in chunks], dim=1)


def summarize(sse: Tensor) -> dict[str, Tensor]:
    """Scores, each (MAX_STEPS + 1,), from the sums of squared errors over GRID, (MAX_STEPS + 1, tasks).

    An MSE above WORST, or not a number, counts as WORST. The scores are the means "rsse", √SSE, and "mse", half of
    their 95 % confidence intervals, "rsse_ci" and "mse_ci", the "median" MSE, and how many tasks count as the "worst".
    """
    mse = torch.fmin(sse / len(GRID), torch.tensor(WORST))  # `clamp` would keep what is not a number
    scores = {"median": mse.median(1).values, "worst": (mse >= WORST).sum(1)}
    for name, values in (("rsse", (mse * len(GRID)).sqrt()), ("mse", mse)):
        scores |= {name: values.mean(1), f"{name}_ci": 1.96 * values.std(1) / math.sqrt(values.shape[1])}
    return scores


def draw_losses(path: Path, args: argparse.Namespace, run: Run) -> None:
    """Loss against iterations: every meta-batch, their moving average, and the validation tasks."""
    count, kept = len(run.losses), int(np.argmin(run.validation_losses))
    window = min(VALIDATE_EVERY, (count + 1) // 2)
    smoothed = np.convolve(run.losses, np.full(window, 1 / window), mode="valid")
    validated = np.minimum(np.arange(1, len(run.validation_losses) + 1) * VALIDATE_EVERY, count)
    axes = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()
    style = "C0-" if count > 1 else "C0."  # a line of one point can't be seen
    axes.semilogy(range(1, count + 1), run.losses, style, alpha=0.25, linewidth=0.5, label="each meta-batch")
    axes.plot(range(window, count + 1), smoothed, style, label=f"mean of the last {window:,} iterations")
    axes.plot(validated, run.validation_losses, "C1.-", markersize=3, label=f"validation, {VALIDATION_TASKS:,} tasks")
    axes.plot(validated[kept], run.lowest(), "k*", label=f"weights kept, iteration {validated[kept]:,}")
    axes.set_title(f"Training, {in_words(run_name(args))}", fontsize="medium")
    axes.set(xlabel="iteration of the outer loop", ylabel=f"query loss ({'√SSE' if args.loss == 'rsse' else 'MSE'})")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(0.5, 0.5)))  # for axes below half a decade
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="upper right").get_lines()[0].set(linewidth=6)
    axes.grid(which="both", alpha=0.3)
    write(path, axes.figure.savefig)


def draw_graph(path: Path, title: str, points: Batch, truth: Tensor, results: dict[str, tuple[Tensor, Tensor]]) -> None:
    """The drawn task before and after adaptation, by every learner (the paper's Figure 2)."""
    figure = Figure(figsize=(3.2 + 3.2 * len(results), 4.8), dpi=150, layout="constrained")
    figure.suptitle(title, fontsize="medium")
    panels = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axes, (label, (pred, rsse)) in zip(panels, results.items(), strict=True):
        axes.plot(GRID, truth, "k", alpha=0.4, linewidth=4, label="Ground Truth")
        axes.plot(GRID, pred[0], color="#E69F00", linestyle=":", linewidth=2, label="Pre Update")
        axes.plot(GRID, pred[1], color="#0072B2", linewidth=2, label="One Grad Step")
        axes.plot(GRID, pred[-1], color="#CC79A7", linestyle="--", label=f"{MAX_STEPS} Grad Steps")
        axes.plot(points[0][0], points[1][0], "k^", label=f"K = {points[0].shape[1]} Support Points")
        errors = f"{rsse[0]:.2f} → {rsse[1]:.2f} → {rsse[-1]:.2f}"
        axes.set_title(f"{label}\n√SSE after 0 → 1 → {MAX_STEPS} steps: {errors}", fontsize="medium")
        axes.set(xlabel="x")
        axes.grid(alpha=0.3)
        if axes is panels[0]:  # the first sets the frame, which other curves may leave
            axes.set(ylabel="y", ylim=axes.get_ylim())
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    write(path, figure.savefig)


def draw_steps(path: Path, title: str, scores: dict[str, dict[str, Tensor]]) -> None:
    """MSE on the test tasks against the number of gradient steps (the paper's Figure 3)."""
    axes = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained").subplots()
    steps = range(MAX_STEPS + 1)
    for label, score in scores.items():
        mse, ci, worst = score["mse"], score["mse_ci"], score["worst"].max()
        axes.plot(steps, mse, marker=".", label=f"{label}, MSE ≥ {WORST:g}: {worst} tasks" if worst else label)
        axes.fill_between(steps, mse - ci, mse + ci, alpha=0.3)
    axes.set_title(f"{title}\n{TEST_TASKS:,} test tasks, mean and 95 % confidence interval", fontsize="medium")
    axes.set(xlabel="gradient steps", ylabel=f"MSE of {len(GRID)} points", xticks=steps, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.figure.legend(loc="outside lower center", ncols=2)
    write(path, axes.figure.savefig)


if __name__ == "__main__":
    main()
