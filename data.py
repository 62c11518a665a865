"""The sinusoid tasks of the paper (Section 5.1): regress y = A sin(x + φ) from K points.

A task is an amplitude A ~ U[0.1, 5] and a phase φ ~ U[0, π]; its inputs are x ~ U[-5, 5].
"""

import itertools
import math
import numbers
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # k_x, k_y, q_x, q_y
Indices = Sequence[int] | np.ndarray  # of tasks

# The inputs of several iterations are drawn at once: 15 µs a meta-batch, instead of 90 one by one.
# With other values, the same seed draws other inputs.
BLOCK = 50  # iterations
BLOCK_POINTS = 200_000  # or fewer iterations, so that a block has at most so many points


class Sinusoid:
    """Sinusoid tasks with K support points and Q query points each.

    Amplitude and phase belong to the task. Its inputs are drawn anew at every call of `batch`, from
    a generator that belongs to the dataset. The same seed gives the same tasks and the same inputs.

    Args:
        k_shot: support points of a task, K.
        q_query: query points of a task, Q.
        num_tasks: number of tasks.
        seed: an integer, or several that together name a stream, as for `np.random.default_rng`.
            The streams of main.py are sequences; no integer alone is one of them.

    Raises a `ValueError` if there is no support point or no task.
    """

    x_range = -5.0, 5.0  # of the inputs

    def __init__(
        self, k_shot: int, q_query: int = 15, num_tasks: int = 10**6, seed: int | Sequence[int] = 0
    ) -> None:
        for name, number in (("k_shot", k_shot), ("num_tasks", num_tasks)):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        self.k_shot, self.q_query = k_shot, q_query
        # To NumPy, the seeds 3, (3,) and (3, 0) are one, and those of main.py begin with 0 to 3.
        # So a plain 3 becomes (4, 3).
        self.seed = (4, seed) if isinstance(seed, numbers.Integral) else seed
        self.rng = np.random.default_rng(self.seed)
        self.amplitude = self.rng.uniform(0.1, 5.0, (num_tasks, 1, 1))
        self.phase = self.rng.uniform(0.0, math.pi, (num_tasks, 1, 1))

    def __len__(self) -> int:
        return len(self.amplitude)

    def batch(self, indices: Indices, rng: np.random.Generator | None = None) -> Batch:
        """The points of several tasks: k_x and k_y, (tasks, K, 1), and q_x and q_y, (tasks, Q, 1).

        The inputs come from `rng` if it is given, and else from the generator of the dataset.
        """
        size = (len(indices), self.k_shot + self.q_query, 1)
        x = torch.from_numpy((rng or self.rng).uniform(*self.x_range, size))
        y = self.target(indices, x)
        k_x, q_x = x.split([self.k_shot, self.q_query], dim=1)
        k_y, q_y = y.split([self.k_shot, self.q_query], dim=1)
        return k_x.contiguous(), k_y.contiguous(), q_x.contiguous(), q_y.contiguous()

    def target(self, indices: Indices, x: Tensor | np.ndarray) -> Tensor:
        """The true y of the tasks `indices` at x, on the CPU.

        (N, 1), the same x for all tasks, or (tasks, N, 1) -> (tasks, N, 1)
        """
        y = self.amplitude[indices] * np.sin(np.asarray(x) + self.phase[indices])
        return torch.from_numpy(y)


def meta_batches(
    tasks: Sinusoid, batch_size: int, start: int = 0, device: str = "cpu"
) -> Iterator[Batch]:
    """The meta-batches of iterations `start`, `start` + 1, and so on without end.

    A meta-batch depends on the seed of `tasks`, the number of its iteration and the sizes alone:
    `batch_size`, K, Q and how many tasks there are. The tasks are i.i.d., so their own order is as
    good as a shuffled one. After the last comes the first.
    Raises a `ValueError` if a meta-batch has no task.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    size = batch_size * (tasks.k_shot + tasks.q_query)  # points of an iteration
    length = min(BLOCK, max(1, BLOCK_POINTS // size))  # iterations of a block
    for block in itertools.count(start // length):
        # NumPy treats the seeds (1, 0) and (1, 0, 0) as equal; a spawn key names its own stream.
        rng = np.random.default_rng(np.random.SeedSequence(tasks.seed, spawn_key=(block,)))
        indices = (np.arange(length * batch_size) + block * length * batch_size) % len(tasks)
        points = [tensor.to(device) for tensor in tasks.batch(indices, rng)]
        stacks = [tensor.unflatten(0, (length, batch_size)) for tensor in points]
        batches = zip(*stacks, strict=True)
        # The first block may begin before `start`.
        yield from itertools.islice(batches, max(0, start - block * length), None)
