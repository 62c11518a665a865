"""The sinusoid tasks of the paper (Section 5.1): regress y = A sin(x + φ) from K points.

A task is an amplitude A ~ U[0.1, 5] and a phase φ ~ U[0, π]; its inputs are x ~ U[-5, 5].
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # k_x, k_y, q_x, q_y

BLOCK = 50  # iterations whose inputs are drawn at once: 15 µs a meta-batch, against 90 one by one


class Sinusoid:
    """Sinusoid tasks with K support points and Q query points each.

    Amplitude and phase belong to the task. Its inputs are drawn anew at every call of `batch`, from a generator that
    belongs to the dataset. The same seed gives the same tasks and the same stream of inputs.

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

    def batch(self, indices: Sequence[int], rng: np.random.Generator | None = None) -> Batch:
        """Several tasks at once: k_x (tasks, K, 1), k_y (tasks, K, 1), q_x (tasks, Q, 1), q_y (tasks, Q, 1).

        Their inputs come from `rng` if it is given, and else from the generator of the dataset.
        """
        x = torch.from_numpy((rng or self.rng).uniform(-5.0, 5.0, (len(indices), self.k_shot + self.q_query, 1)))
        y = self.target(indices, x)
        (k_x, q_x), (k_y, q_y) = (points.split([self.k_shot, self.q_query], dim=1) for points in (x, y))
        return k_x.contiguous(), k_y.contiguous(), q_x.contiguous(), q_y.contiguous()

    def target(self, indices: Sequence[int], x: Tensor | np.ndarray) -> Tensor:
        """The true y of the tasks `indices` at x, on the CPU, (N, 1) or (tasks, N, 1) -> (tasks, N, 1)."""
        return torch.from_numpy(self.amplitude[indices] * np.sin(np.asarray(x) + self.phase[indices]))


def meta_batches(tasks: Sinusoid, batch_size: int, start: int = 0, device: str = "cpu") -> Iterator[Batch]:
    """The meta-batches of iterations `start`, `start` + 1, and so on without end.

    A meta-batch depends on the seed of `tasks` and on the number of its iteration alone. The tasks are i.i.d., so
    their own order is as good as a shuffled one. After the last task comes the first.
    """
    for block in itertools.count(start // BLOCK):
        # NumPy takes the seeds (1, 0) and (1, 0, 0) for the same; a spawn key names a stream of its own.
        rng = np.random.default_rng(np.random.SeedSequence(tasks.seed, spawn_key=(block,)))
        indices = np.arange(block * BLOCK * batch_size, (block + 1) * BLOCK * batch_size) % len(tasks)
        points = [tensor.to(device).unflatten(0, (BLOCK, batch_size)).unbind() for tensor in tasks.batch(indices, rng)]
        yield from itertools.islice(zip(*points, strict=True), max(0, start - block * BLOCK), None)
