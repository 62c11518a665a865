"""Tasks and points are those of the paper, and seed, iteration and sizes alone decide them."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import ROOT

import main
from data import BLOCK, Sinusoid, meta_batches


def draws(tasks, iterations, batch_size):
    """All amplitudes, phases and inputs of a run, as parts of the ranges of the paper: 0 to 1."""
    batches = itertools.islice(meta_batches(tasks, batch_size), iterations)
    x = torch.cat([torch.cat((k_x, q_x), dim=1) for k_x, _, q_x, _ in batches]).numpy()
    return (tasks.amplitude - 0.1) / 4.9, tasks.phase / math.pi, (x + 5) / 10


def test_shapes_and_type():
    for k_shot, q_query, tasks in ((10, 15, Sinusoid(10)), (5, 7, Sinusoid(5, 7))):
        assert len(tasks) == 1_000_000
        for batch in (tasks.batch([3, 1, 3]), next(meta_batches(tasks, 3))):
            sizes = [(3, points, 1) for points in (k_shot, k_shot, q_query, q_query)]
            assert [tuple(points.shape) for points in batch] == sizes
            assert all(points.dtype == torch.float64 and points.is_contiguous() for points in batch)
    for name in ("k_shot", "num_tasks"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            Sinusoid(**{"k_shot": 5, name: 0})
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        next(meta_batches(Sinusoid(5), 0))
    assert all(points.is_meta for points in next(meta_batches(Sinusoid(5), 3, device="meta")))


def test_the_ranges_of_the_paper_are_filled():
    """Of 10,000 uniform draws, none within 1 % of an end would be a chance of 1e-43."""
    for values in draws(Sinusoid(10, num_tasks=10_000), 50, 200):
        assert 0 <= values.min() < 0.01
        assert 0.99 < values.max() <= 1
        assert values.mean() == pytest.approx(0.5, abs=0.015)


def test_a_subclass_has_a_range_of_its_own():
    """Training and test keep to it."""
    source, line = (ROOT / "main.py").read_text(encoding="utf-8"), "Tasks = Sinusoid"
    program = {"__name__": "main with other tasks"}
    exec(source.replace(line, "class Tasks(Sinusoid):\n    x_range = 2.0, 3.0\n\n"), program)
    for points in (program["Tasks"](10).batch(range(200))[0], program["GRID"]):
        assert 2 <= points.min() < 2.01
        assert 2.99 < points.max() <= 3


STREAMS = [(main.DRAWN, 0), (main.DRAWN, 1), (main.TRAIN, 0), (main.TRAIN, 1)]
STREAMS += [(main.VALIDATION,), (main.TEST,), (1, 0, 1), 0, 1, np.int64(2), 3]


def test_no_number_is_drawn_twice():
    """Neither in a run, for tasks and inputs, nor with another seed, even one like a block's.

    An integer, also one of NumPy's, is none of the seeds of main.py.
    """
    drawn = []
    for seed in STREAMS:
        drawn += draws(Sinusoid(10, num_tasks=200, seed=seed), 4 * BLOCK, 3)
    drawn = np.concatenate([values.ravel() for values in drawn]).round(12)
    assert len(np.unique(drawn)) == len(drawn)


def test_targets_are_the_sinusoid_of_the_task():
    """At the points of each task, or at a grid for all tasks."""
    tasks, grid = Sinusoid(10, num_tasks=20), np.linspace(-5, 5, 50)[:, None]
    k_x, k_y, q_x, q_y = tasks.batch([4, 7])
    on_grid = tasks.target([4, 7], grid)
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


STARTS = [(3, 1), (3, BLOCK - 1), (3, BLOCK), (3, 3 * BLOCK + 7), (300, 25), (300, 30), (8001, 2)]


@pytest.mark.parametrize(("size", "start"), STARTS)
def test_a_run_may_start_at_any_iteration(size, start):
    """It gets what a run gets that came there: of eleven tasks 0 1 2, then 3 4 5, … 9 10 0, …

    The more tasks a meta-batch has, the fewer are drawn at once.
    """
    tasks, end = Sinusoid(10, num_tasks=11, seed=(1, 0)), start + 30 // size + 3
    whole = itertools.islice(meta_batches(tasks, size), start, end)
    tasks.batch(range(5))
    rest = itertools.islice(meta_batches(tasks, size, start), end - start)
    for iteration, batch, expected in zip(range(start, end), rest, whole, strict=True):
        assert all(map(torch.equal, batch, expected))
        indices = (size * iteration + np.arange(size)) % 11
        assert torch.equal(batch[1], tasks.target(indices, batch[0]))
