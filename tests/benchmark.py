"""How fast one training iteration is, beside the alternatives: python3 tests/benchmark.py, two to three minutes.

Every row is timed in turn, again and again, so that whatever else the machine does hits all rows alike;
what is printed is the median, as a ratio to the original's loop and in microseconds.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

import reference

from data import Batch, Sinusoid, meta_batches
from meta import Meta

K_SHOT = 10
SECONDS = 4.0  # for each column of the tables
ORIGINAL = "the original's loop: task by task, a new DataLoader iterator every time"


class OneByOne(Dataset):
    """The tasks as the original serves them: no batch call, so a DataLoader asks for them one by one."""

    def __init__(self) -> None:
        self.tasks = Sinusoid(K_SHOT)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Batch:
        return self.tasks[index]


def endless(loader: DataLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def ours(tasks: int, device: torch.device, compiled: bool = False) -> Callable[[], None]:
    """An iteration as in main.py: data, transfer, meta-gradient, Adam, read-out of the loss."""
    meta, batches = Meta(device=device), meta_batches(Sinusoid(K_SHOT), tasks)
    if compiled:
        meta.compile(*(tensor.to(device) for tensor in next(batches)))

    def iteration() -> None:
        meta(*(tensor.to(device) for tensor in next(batches)))

    return iteration


def theirs(gradient: Callable, batches: Callable[[], Batch], device: torch.device, **adam) -> Callable[[], None]:
    """An iteration with one of the gradients of reference.py."""
    meta = Meta(device=device)
    weights, optim = meta.net.Param, torch.optim.Adam(meta.net.parameters(), lr=1e-3, **adam)

    def iteration() -> None:
        batch = [tensor.to(device) for tensor in batches()]
        loss, gradients = gradient(weights, *batch)
        for w, g in zip(weights.values(), gradients, strict=True):
            w.grad = g
        optim.step()
        loss.item()

    return iteration


def functional(weights: reference.Weights, *batch: torch.Tensor) -> tuple:
    return reference.functional({name: w.detach() for name, w in weights.items()}, *batch)


def iterations(tasks: int, device: torch.device) -> dict[str, Callable[[], None]]:
    loader = DataLoader(OneByOne(), tasks, shuffle=True)
    lasting, batches = endless(loader), meta_batches(Sinusoid(K_SHOT), tasks)
    return {
        ORIGINAL: theirs(reference.loop, lambda: next(iter(loader)), device),
        "the same with one lasting iterator": theirs(reference.loop, lambda: next(lasting), device),
        "`torch.func`, vmap of grad": theirs(functional, lambda: next(batches), device, fused=True),
        "**this project**": ours(tasks, device),
        "**this project, `--compile`**": ours(tasks, device, compiled=True),
    }


def parts(tasks: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """The parts of an iteration by themselves, and the hand-derived gradient beside ours."""
    meta, batches = Meta(device=device), meta_batches(Sinusoid(K_SHOT), tasks)
    batch = [tensor.to(device) for tensor in next(batches)]
    compiled = Meta(device=device)
    compiled.compile(*batch)
    meta(*batch)
    loss = meta.query_loss(*batch).sum().detach()
    validation = [tensor.to(device) for tensor in Sinusoid(K_SHOT, num_tasks=1000).__getitems__(range(1000))]
    bar = tqdm(file=open("/dev/null", "w"))  # noqa: SIM115

    def show() -> None:
        bar.set_postfix_str(f"loss {1.2345:.3f}", refresh=False)
        bar.update()

    def validate() -> None:
        with torch.no_grad():
            meta.query_loss(*validation).mean().item()

    return {
        "data": lambda: next(batches),
        "transfer to the device": lambda: [tensor.to(device) for tensor in batch],
        "meta-gradient": lambda: meta.meta_gradient(*batch),
        "meta-gradient, compiled": lambda: compiled.meta_gradient(*batch),
        "meta-gradient, derived by hand": lambda: reference.by_hand(meta.net.Param, *batch),
        "Adam": meta.outer_optim.step,
        "read-out of the loss": loss.item,
        "bar": show,
        "validation, every 500 iterations": validate,
    }


def medians(rows: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Microseconds of each row: rounds in which every row gets a slice of time, or one call if that takes longer."""
    times = {name: [] for name in rows}
    for row in rows.values():
        row()
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        for name, row in rows.items():
            until = time.perf_counter() + 0.02
            while True:
                start = time.perf_counter()
                row()
                stop = time.perf_counter()
                times[name].append(1e6 * (stop - start))
                if stop > until:
                    break
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cores = torch.get_num_threads()
    print(f"PyTorch {torch.__version__}, {device}, {cores} cores, K = {K_SHOT}, float64\n")
    sizes = (10, 25, 100, 1000)
    for threads in (1, cores):
        torch.set_num_threads(threads)
        columns = {tasks: medians(iterations(tasks, device)) for tasks in sizes}
        print(f"| whole iteration, threads: {threads} | " + " | ".join(f"{tasks} tasks" for tasks in sizes) + " |")
        print("|---" * (len(sizes) + 1) + "|")
        for name in columns[10]:
            cells = (f"{column[ORIGINAL] / column[name]:.1f}× ({column[name]:,.0f} µs)" for column in columns.values())
            print(f"| {name} | " + " | ".join(cells) + " |")
        print(flush=True)
    torch.set_num_threads(1)  # as main.py does for small meta-batches
    for tasks in (10, 25):
        print(f"| part of an iteration, {tasks} tasks, threads: 1 | µs |\n|---|---|")
        for name, time_of_part in medians(parts(tasks, device)).items():
            print(f"| {name} | {time_of_part:,.1f} |")
        print(flush=True)


if __name__ == "__main__":
    main()
