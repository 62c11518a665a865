"""Tasks and points are those of the paper, and the seed and the iteration alone decide them."""

import itertools
import math

import numpy as np
import pytest
import torch

from data import BLOCK, BLOCK_POINTS, Sinusoid, meta_batches


def inputs(count, batches):
    """All x of the first meta-batches, one after the other."""
    batches = itertools.islice(batches, count)
    return torch.cat([torch.cat((k_x, q_x), dim=1) for k_x, _, q_x, _ in batches]).flatten()


def test_shapes_and_type():
    for k_shot, q_query, tasks in ((10, 15, Sinusoid(10)), (5, 7, Sinusoid(5, 7))):
        assert len(tasks) == 1_000_000
        for batch in (tasks.batch([3, 1, 3]), next(meta_batches(tasks, 3))):
            sizes = [(3, points, 1) for points in (k_shot, k_shot, q_query, q_query)]
            assert [tuple(points.shape) for points in batch] == sizes
            assert all(points.dtype == torch.float64 and points.is_contiguous() for points in batch)


def test_the_ranges_of_the_paper_are_filled():
    """Of 10,000 uniform draws, none within 1 % of an end would be a chance of 1e-43."""
    tasks = Sinusoid(10, num_tasks=10_000)
    x, block_x = inputs(1, [tasks.batch(range(10_000))]), inputs(50, meta_batches(tasks, 200))
    ranges = ((tasks.amplitude, 0.1, 5), (tasks.phase, 0, math.pi), (x, -5, 5), (block_x, -5, 5))
    for values, low, high in ranges:
        margin = 0.01 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=1.5 * margin)


def test_targets_are_the_sinusoid_of_the_task():
    """At the points of each task, or at a grid for all tasks, which is a tensor or an array."""
    tasks, grid = Sinusoid(10, num_tasks=20), np.linspace(-5, 5, 50)[:, None]
    k_x, k_y, q_x, q_y = tasks.batch([4, 7])
    on_grid = tasks.target([4, 7], grid)
    assert torch.equal(tasks.target([4, 7], torch.from_numpy(grid)), on_grid)
    for row, task in enumerate((4, 7)):
        for x, y in ((k_x[row], k_y[row]), (q_x[row], q_y[row]), (grid, on_grid[row])):
            expected = tasks.amplitude[task] * np.sin(np.asarray(x) + tasks.phase[task])
            assert np.abs(y.numpy() - expected).max() < 1e-14


def test_a_batch_has_the_points_its_tasks_get_one_by_one():
    """A task has new inputs at every call, and the same support points without query points."""
    indices, tasks = [4, 0, 4, 19], Sinusoid(10, num_tasks=20)
    parts = zip(*(tasks.batch([index]) for index in indices), strict=True)
    batch = Sinusoid(10, num_tasks=20).batch(indices)
    assert all(map(torch.equal, batch, map(torch.cat, parts)))
    assert not torch.isin(batch[0][0], batch[0][2]).any()
    assert torch.equal(Sinusoid(10, 0, 20).batch([4])[0], batch[0][:1])


@pytest.mark.parametrize("block_points", [BLOCK_POINTS, 600])
@pytest.mark.parametrize("start", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 7])
def test_a_run_may_start_at_any_iteration(monkeypatch, start, block_points):
    """It gets what a run gets that came there: of seven tasks 0 1 2, then 3 4 5, 6 0 1, …"""
    monkeypatch.setattr("data.BLOCK_POINTS", block_points)
    tasks, end = Sinusoid(10, num_tasks=7, seed=(1, 0)), 4 * BLOCK
    whole = itertools.islice(meta_batches(tasks, 3), start, end)
    tasks.batch(range(5))
    rest = itertools.islice(meta_batches(tasks, 3, start), end - start)
    for iteration, batch, expected in zip(range(start, end), rest, whole, strict=True):
        assert all(map(torch.equal, batch, expected))
        indices = [(3 * iteration + i) % 7 for i in range(3)]
        for x, y in (batch[:2], batch[2:]):
            assert torch.equal(y, tasks.target(indices, x))


@pytest.mark.parametrize(("k_shot", "batch_size"), [(5, 10), (10, 25), (10, 250), (1000, 10_000)])
def test_a_block_has_a_bounded_number_of_points(monkeypatch, k_shot, batch_size):
    """It is one iteration at least, and 50 with the settings of the weights that ship."""

    def check(tasks, indices, rng):
        iterations, points = len(indices) / batch_size, len(indices) * (k_shot + 15)
        assert iterations == 1 or points <= BLOCK_POINTS
        assert iterations == 50 or batch_size > 25
        return [torch.zeros(len(indices), 1, 1)] * 4  # instead of gigabytes

    monkeypatch.setattr(Sinusoid, "batch", check)
    next(meta_batches(Sinusoid(k_shot, num_tasks=9), batch_size))


@pytest.mark.parametrize("seed", [(1, 1), (1, 0, 1), (2, 0), 0])
def test_another_seed_gives_other_tasks_and_other_inputs(seed):
    """Also (1, 0, 1) and (1, 0), as the streams of two blocks are told apart by a number."""
    tasks, others = Sinusoid(10, num_tasks=200, seed=(1, 0)), Sinusoid(10, num_tasks=200, seed=seed)
    assert not np.isin(tasks.amplitude, others.amplitude).any()
    x, other_x = (inputs(BLOCK + 1, meta_batches(some, 3)) for some in (tasks, others))
    assert not torch.isin(x, other_x).any()


def test_no_input_comes_twice_in_a_run():
    """Nor was one drawn for the tasks. Of 15,000 in a billion places, two may be the same."""
    tasks = Sinusoid(10, num_tasks=10, seed=(1, 0))
    places = (inputs(4 * BLOCK, meta_batches(tasks, 3)) / 10 + 0.5).numpy().round(9)
    drawn = np.random.default_rng((1, 0)).uniform(size=20_000).round(9)
    assert len(np.unique(places)) > len(places) - 5
    assert np.isin(places, drawn).sum() < 5


@pytest.mark.parametrize("name", ["k_shot", "num_tasks", "batch_size"])
def test_no_points_and_no_tasks_are_refused(name):
    sizes = {"k_shot": 5, "num_tasks": 9, "batch_size": 3, name: 0}
    batch_size = sizes.pop("batch_size")
    with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
        next(meta_batches(Sinusoid(**sizes), batch_size))
