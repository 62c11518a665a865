"""The sinusoid tasks of the paper (Section 5.1): regress y = A sin(x + φ) from K points.

A task is an amplitude A ~ U[0.1, 5] and a phase φ ~ U[0, π]; its inputs are x ~ U[-5, 5].
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # k_x, k_y, q_x, q_y

BLOCK = 50  # iterations whose inputs are drawn in one call, since calls cost more here than numbers do


class Sinusoid(Dataset):
    """Sinusoid tasks with K support points and Q query points each.

    Amplitude and phase belong to the task, its inputs are drawn anew at every access. The dataset
    draws from a generator of its own: the same seed gives the same tasks and the same stream of
    inputs, whether tasks are asked for one by one or many at once.

    Args:
        k_shot: support points of a task, K.
        q_query: query points of a task, Q.
        num_tasks: number of tasks.
        seed: an integer, or several that together name a stream, as in `numpy.random.default_rng`.
    """

    def __init__(self, k_shot: int, q_query: int = 15, num_tasks: int = 10**6, seed: int | Sequence[int] = 0) -> None:
        self.k_shot, self.q_query, self.seed = k_shot, q_query, seed
        self.rng = np.random.default_rng(seed)
        self.amplitude = self.rng.uniform(0.1, 5.0, (num_tasks, 1, 1))
        self.phase = self.rng.uniform(0.0, math.pi, (num_tasks, 1, 1))

    def __len__(self) -> int:
        return len(self.amplitude)

    def __getitem__(self, index: int) -> Batch:
        """Task `index`: k_x (K, 1), k_y (K, 1), q_x (Q, 1), q_y (Q, 1), float64."""
        k_x, k_y, q_x, q_y = self.batch([index])
        return k_x[0], k_y[0], q_x[0], q_y[0]

    def batch(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> Batch:
        """Several tasks at once: k_x (tasks, K, 1), k_y (tasks, K, 1), q_x (tasks, Q, 1), q_y (tasks, Q, 1).

        Their inputs come from `rng` if it is given, and else from the generator of the dataset.
        """
        x = (rng or self.rng).uniform(-5.0, 5.0, (len(indices), self.k_shot + self.q_query, 1))
        x, y = torch.from_numpy(x), torch.from_numpy(self.target(indices, x))
        support, query = slice(None, self.k_shot), slice(self.k_shot, None)
        return tuple(points.contiguous() for points in (x[:, support], y[:, support], x[:, query], y[:, query]))

    def target(self, indices: Sequence[int], x: np.ndarray) -> np.ndarray:
        """The true y of the tasks `indices` at x, (N, 1) or (tasks, N, 1) -> (tasks, N, 1)."""
        return self.amplitude[indices] * np.sin(x + self.phase[indices])


def meta_batches(
    tasks: Sinusoid, batch_size: int, start: int = 0, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """The meta-batches of iterations `start`, `start` + 1, and so on without end.

    A meta-batch depends on the seed of `tasks` and on the number of its iteration alone. The tasks are
    i.i.d., so the order in which they stand is as good as a shuffled one; after the last comes the first.
    """
    for block in itertools.count(start // BLOCK):
        # The spawn key makes a stream of its own; a longer seed need not: (1, 0) and (1, 0, 0) are the same to NumPy.
        rng = np.random.default_rng(np.random.SeedSequence(tasks.seed, spawn_key=(block,)))
        indices = np.arange(block * BLOCK * batch_size, (block + 1) * BLOCK * batch_size) % len(tasks)
        points = [tensor.to(device).unflatten(0, (BLOCK, batch_size)).unbind() for tensor in tasks.batch(indices, rng)]
        yield from itertools.islice(zip(*points, strict=True), max(0, start - block * BLOCK), None)
