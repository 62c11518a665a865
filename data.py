"""The sinusoid tasks of the paper (Section 5.1): regress y = A sin(x + φ) from K points.

A task is an amplitude A ~ U[0.1, 5] and a phase φ ~ U[0, π]; its inputs are x ~ U[-5, 5].
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # k_x, k_y, q_x, q_y


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

    def __init__(
        self, k_shot: int, q_query: int = 15, num_tasks: int = 1_000_000, seed: int | Sequence[int] = 0
    ) -> None:
        self.k_shot, self.q_query = k_shot, q_query
        self.rng = np.random.default_rng(seed)
        self.amplitude = self.rng.uniform(0.1, 5.0, (num_tasks, 1, 1))
        self.phase = self.rng.uniform(0.0, math.pi, (num_tasks, 1, 1))

    def __len__(self) -> int:
        return len(self.amplitude)

    def __getitem__(self, index: int) -> Batch:
        """Task `index`: k_x (K, 1), k_y (K, 1), q_x (Q, 1), q_y (Q, 1), float64."""
        k_x, k_y, q_x, q_y = self.__getitems__([index])
        return k_x[0], k_y[0], q_x[0], q_y[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole meta-batch: k_x (tasks, K, 1), k_y (tasks, K, 1), q_x (tasks, Q, 1), q_y (tasks, Q, 1).

        A DataLoader with automatic batching calls this once for each batch.
        """
        x = self.rng.uniform(-5.0, 5.0, (len(indices), self.k_shot + self.q_query, 1))
        x, y = torch.from_numpy(x), torch.from_numpy(self.target(indices, x))
        return x[:, : self.k_shot], y[:, : self.k_shot], x[:, self.k_shot :], y[:, self.k_shot :]

    def target(self, indices: Sequence[int], x: np.ndarray) -> np.ndarray:
        """The true y of the tasks `indices` at x, (N, 1) or (tasks, N, 1) -> (tasks, N, 1)."""
        return self.amplitude[indices] * np.sin(x + self.phase[indices])


def meta_batches(tasks: Sinusoid, batch_size: int, start: int = 0) -> Iterator[Batch]:
    """Meta-batches without end, from task `start` on, in as many passes over the tasks as it takes.

    The tasks are i.i.d., so the order in which they stand is as good as a shuffled one.
    """
    order = (i % len(tasks) for i in itertools.count(start))
    return iter(DataLoader(tasks, batch_size, sampler=order, collate_fn=lambda batch: batch))
