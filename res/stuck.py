"""Which runs get stuck? What --seed sets, taken apart: initial weights and training tasks.

python3 res/stuck.py    trains 60 times, within an hour on two cores, and writes res/stuck.csv

Every run is the default one, compiled: with the initial weights of one seed and the training tasks
of another, first-order and with the exact gradient. A run is stuck if its lowest validation loss is
above STUCK. A good run ends at about 2.9.
"""

import csv
import itertools
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["MPLBACKEND"] = "agg"

import torch
from tqdm import tqdm

import main
from data import Sinusoid, meta_batches
from meta import Meta
from net import Net

CSV = Path(__file__).with_suffix(".csv")
STUCK = 3.5
WEIGHTS_SEEDS, TASKS_SEEDS = (0, 5, 7), range(10)
GRADIENTS = ("exact", "first-order")


def lowest_validation(run: tuple[int, int, str]) -> float:
    """The lowest validation loss of a run: of these initial weights, these tasks, this gradient."""
    weights_seed, tasks_seed, gradient = run
    torch.set_num_threads(1)
    torch._dynamo.reset()  # else a process may compile eight learners
    torch.manual_seed(weights_seed)
    meta = Meta(Net(), first_order=gradient == "first-order")
    meta.compile()
    batches = meta_batches(Sinusoid(10, seed=(main.TRAIN, tasks_seed)), batch_size=10)
    losses = []
    for iteration in range(1, main.SETTINGS["epochs"] + 1):
        meta(*next(batches))
        if iteration % main.VALIDATE_EVERY == 0:
            losses.append(main.validate(meta, 10, "cpu"))
    return min(losses)


def command() -> None:
    runs = list(itertools.product(WEIGHTS_SEEDS, TASKS_SEEDS, GRADIENTS))
    with ProcessPoolExecutor(max_workers=2) as pool:
        losses = list(tqdm(pool.map(lowest_validation, runs), total=len(runs), unit="run"))
    with CSV.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["weights_seed", "tasks_seed", "gradient", "validation_loss"])
        for run, loss in zip(runs, losses, strict=True):
            writer.writerow([*run, f"{loss:.6g}"])


if __name__ == "__main__":
    command()
