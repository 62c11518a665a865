"""The tasks: their ranges, their targets, and a stream of inputs that the seed alone decides."""

import math

import numpy as np
import pytest
import torch

from data import Sinusoid, meta_batches


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_shapes_and_type():
    tasks = Sinusoid(10, num_tasks=20)
    assert len(tasks) == 20
    assert len(Sinusoid(10)) == 1_000_000
    assert [tuple(t.shape) for t in tasks[3]] == [(10, 1), (10, 1), (15, 1), (15, 1)]
    assert [tuple(t.shape) for t in Sinusoid(5, 7, 20)[3]] == [(5, 1), (5, 1), (7, 1), (7, 1)]
    batch = tasks.__getitems__([3, 1, 3])
    assert [tuple(t.shape) for t in batch] == [(3, 10, 1), (3, 10, 1), (3, 15, 1), (3, 15, 1)]
    assert all(t.dtype == torch.float64 for t in (*tasks[3], *batch))


def test_ranges_are_those_of_the_paper_and_are_filled():
    """Of 10,000 uniform draws, none within 1 % of an end would be a chance of 1e-43."""
    tasks = Sinusoid(10, num_tasks=10_000)
    k_x, _, q_x, _ = tasks.__getitems__(range(10_000))
    x = torch.cat([k_x, q_x], dim=1).numpy()
    for values, low, high in ((tasks.amplitude, 0.1, 5.0), (tasks.phase, 0.0, math.pi), (x, -5.0, 5.0)):
        margin = 0.01 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=5 * (high - low) / math.sqrt(12 * 10_000))


def test_targets_are_the_sinusoid_of_the_task():
    tasks = Sinusoid(10, num_tasks=20)
    batch = tasks.__getitems__([4, 7])
    for x, y in (batch[:2], batch[2:]):
        for row, task in enumerate((4, 7)):
            expected = tasks.amplitude[task].item() * np.sin(x[row].numpy() + tasks.phase[task].item())
            assert np.abs(y[row].numpy() - expected).max() < 1e-14
    grid = np.linspace(-5, 5, 50)[:, None]
    assert tasks.target([4, 7], grid).shape == (2, 50, 1)
    assert (tasks.target([7], grid)[0] == tasks.amplitude[7] * np.sin(grid + tasks.phase[7])).all()


def test_inputs_are_drawn_anew_while_the_task_stays():
    tasks = Sinusoid(10, num_tasks=20)
    first, second = tasks[5], tasks[5]
    assert not same(first, second)
    for _, y, _, _ in (first, second):
        assert y.abs().max() <= tasks.amplitude[5].item()


def test_same_seed_same_stream():
    assert same(Sinusoid(10, seed=3)[5], Sinusoid(10, seed=3)[5])
    assert not same(Sinusoid(10, seed=3)[5], Sinusoid(10, seed=4)[5])
    assert not same(Sinusoid(10, seed=(1, 0))[5], Sinusoid(10, seed=(2, 0))[5])


def test_the_stream_is_its_own():
    """Other random generators, and drawing from them, change nothing."""
    tasks = Sinusoid(10, num_tasks=20, seed=3)
    torch.manual_seed(9)
    np.random.seed(9)
    expected = tasks[5]
    tasks = Sinusoid(10, num_tasks=20, seed=3)
    torch.rand(5)
    np.random.rand(5)
    assert same(tasks[5], expected)


def test_the_random_state_can_be_read_and_restored():
    tasks = Sinusoid(10, num_tasks=20)
    tasks.__getitems__(range(7))
    state = tasks.rng.bit_generator.state
    expected = tasks.__getitems__([4, 2])
    tasks.rng.bit_generator.state = state
    assert same(tasks.__getitems__([4, 2]), expected)


def test_a_batch_equals_its_tasks_one_by_one():
    indices = [4, 0, 4, 19]
    batch = Sinusoid(10, num_tasks=20).__getitems__(indices)
    tasks = Sinusoid(10, num_tasks=20)
    assert same(batch, [torch.stack(column) for column in zip(*(tasks[i] for i in indices), strict=True)])


def test_the_dataloader_takes_whole_batches_from_one_call_and_as_many_passes_as_it_takes():
    calls = []

    class Recorded(Sinusoid):
        def __getitems__(self, indices):
            calls.append(list(indices))
            return super().__getitems__(indices)

    tasks = Recorded(10, num_tasks=7)
    batches = meta_batches(tasks, 3)
    shapes = {tuple(next(batches)[0].shape) for _ in range(50)}
    assert shapes == {(3, 10, 1)}
    assert len(calls) == 50
    assert calls[:4] == [[0, 1, 2], [3, 4, 5], [6, 0, 1], [2, 3, 4]]
    next(meta_batches(tasks, 3, start=3 * 51))
    assert calls[-1] == [(3 * 51 + i) % 7 for i in range(3)]  # as a run that is resumed goes on
