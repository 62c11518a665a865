"""Which step sizes serve best at test, by the 1,000 validation tasks: python3 tests/step_sizes.py, about 20 seconds.

MSE after 1, 5 and 10 gradient steps, with the weights in weights/; no test task is looked at.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from data import Sinusoid
from main import VALIDATION, evaluate, summarize
from meta import Meta

WEIGHTS = Path(__file__).parent.parent / "weights"
MAML, PRETRAINED = "w(k=10,loss=mse).pt", "w(k=10,loss=mse,inner_steps=0).pt"


def main() -> None:
    candidates = [(MAML, 5, 0.01, later_lr) for later_lr in (0.01, 0.007, 0.005, 0.003, 0.002)]
    candidates += [(PRETRAINED, k, lr, lr) for k in (5, 10) for lr in (0.001, 0.002, 0.005, 0.01, 0.02)]
    print("weights                           K   first   later   1 step   5 steps   10 steps   diverged in 10")
    for file, k_shot, inner_lr, later_lr in candidates:
        meta = Meta(inner_lr, loss="mse")
        meta.load_weights(WEIGHTS / file)
        tasks = Sinusoid(k_shot, q_query=0, num_tasks=1000, seed=(VALIDATION,))
        scores = summarize(evaluate(meta, tasks, torch.device("cpu"), later_lr))
        one, five, ten = scores.mse[[1, 5, 10]].tolist()
        print(
            f"{file:31}  {k_shot:2}   {inner_lr:<5}   {later_lr:<5}   {one:6.3f}   {five:7.3f}   {ten:8.3f}", end="   "
        )
        print(scores.diverged[10].item())


if __name__ == "__main__":
    main()
