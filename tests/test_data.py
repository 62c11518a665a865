"""The tasks: their ranges, their targets, and inputs that the seed and the number of the iteration alone decide."""

import itertools
import math

import numpy as np
import pytest
import torch

from data import BLOCK, Sinusoid, meta_batches


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def first(number, batches):
    return list(itertools.islice(batches, number))


def inputs(batches):
    """All x of these batches, one after the other."""
    return torch.cat([torch.cat(batch[::2], dim=1) for batch in batches]).flatten().tolist()


def test_shapes_and_type():
    assert len(Sinusoid(10)) == 1_000_000
    for k_shot, q_query in ((10, 15), (5, 7)):
        tasks = Sinusoid(k_shot, q_query, num_tasks=20)
        for batch in (tasks.batch([3, 1, 3]), next(meta_batches(tasks, 3))):
            sizes = [(3, points, 1) for points in (k_shot, k_shot, q_query, q_query)]
            assert [tuple(points.shape) for points in batch] == sizes
            assert all(points.dtype == torch.float64 and points.is_contiguous() for points in batch)
    assert Sinusoid(10).q_query == 15


def test_ranges_are_those_of_the_paper_and_are_filled():
    """Of 10,000 uniform draws, none within 1 % of an end would be a chance of 1e-43."""
    tasks = Sinusoid(10, num_tasks=10_000)
    x, block_x = inputs([tasks.batch(range(10_000))]), inputs(first(50, meta_batches(tasks, 200)))
    ranges = ((tasks.amplitude, 0.1, 5.0), (tasks.phase, 0.0, math.pi), (x, -5.0, 5.0), (block_x, -5.0, 5.0))
    for values, low, high in ranges:
        margin = 0.01 * (high - low)
        assert low <= np.min(values) < low + margin
        assert high - margin < np.max(values) <= high
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=5 * (high - low) / math.sqrt(12 * 10_000))


def test_targets_are_the_sinusoid_of_the_task():
    tasks = Sinusoid(10, num_tasks=20)
    batch = tasks.batch([4, 7])
    for x, y in (batch[:2], batch[2:]):
        for row, task in enumerate((4, 7)):
            expected = tasks.amplitude[task].item() * np.sin(x[row].numpy() + tasks.phase[task].item())
            assert np.abs(y[row].numpy() - expected).max() < 1e-14


def test_target_takes_tensors_and_arrays():
    """Inputs of each task, as `batch` gives them, or the same for all."""
    tasks, grid = Sinusoid(10, num_tasks=20), np.linspace(-5, 5, 50)[:, None]
    k_x, k_y, _, _ = tasks.batch([4, 7])
    assert torch.equal(tasks.target([4, 7], k_x), k_y)
    for x in (grid, torch.from_numpy(grid)):
        assert tasks.target([4, 7], x).shape == (2, 50, 1)
        assert (tasks.target([7], x)[0].numpy() == tasks.amplitude[7] * np.sin(grid + tasks.phase[7])).all()


def test_inputs_are_drawn_anew_while_the_task_stays():
    tasks = Sinusoid(10, num_tasks=20)
    one, two = tasks.batch([5]), tasks.batch([5])
    assert not set(inputs([one])) & set(inputs([two]))
    for _, y, _, _ in (one, two):
        assert y.abs().max() <= tasks.amplitude[5].item()


def test_the_seed_decides_tasks_and_inputs():
    assert same(Sinusoid(10, seed=3).batch([5]), Sinusoid(10, seed=3).batch([5]))
    assert not same(Sinusoid(10, seed=3).batch([5]), Sinusoid(10, seed=4).batch([5]))
    assert not same(Sinusoid(10, seed=(1, 0)).batch([5]), Sinusoid(10, seed=(2, 0)).batch([5]))


def test_the_stream_is_its_own():
    """Other random generators, and drawing from them, change nothing."""

    def draw():
        tasks = Sinusoid(10, num_tasks=20, seed=3)
        return *tasks.batch([5]), *next(meta_batches(tasks, 4))

    expected = draw()
    torch.manual_seed(9)
    np.random.seed(9)
    assert same(draw(), expected)


def test_a_batch_has_the_points_that_its_tasks_get_one_by_one():
    """So the drawn task of `--test` has the same points with and without query points behind them."""
    indices = [4, 0, 4, 19]
    batch, tasks = Sinusoid(10, num_tasks=20).batch(indices), Sinusoid(10, num_tasks=20)
    assert same(batch, [torch.cat(column) for column in zip(*(tasks.batch([i]) for i in indices), strict=True)])
    assert torch.equal(Sinusoid(10, 0, 20).batch([4])[0], Sinusoid(10, 15, 20).batch([4])[0])


# Meta-batches


@pytest.mark.parametrize("start", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 7])
def test_a_run_that_starts_at_any_iteration_gets_the_batches_of_one_that_came_there(start):
    """Whatever else was drawn from the same tasks before."""
    tasks = Sinusoid(10, num_tasks=1000, seed=(1, 0))
    whole = first(4 * BLOCK + 3, meta_batches(tasks, 3))
    tasks.batch(range(9))
    rest = first(4 * BLOCK + 3 - start, meta_batches(tasks, 3, start))
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


@pytest.mark.parametrize("other", [(1, 1), (1, 0, 1), (2, 0), 0])
def test_other_seeds_give_other_tasks_and_other_inputs(other):
    """Also (1, 0) and (1, 0, 1), as the streams of two blocks are told apart by a number at the end."""
    ours, others = (first(BLOCK + 1, meta_batches(Sinusoid(10, num_tasks=1000, seed=s), 3)) for s in ((1, 0), other))
    assert not set(inputs(ours)) & set(inputs(others))
    targets = [
        torch.cat([torch.cat(batch[1::2], dim=1) for batch in some]).flatten().tolist() for some in (ours, others)
    ]
    assert not set(targets[0]) & set(targets[1])


def test_no_input_of_any_iteration_comes_twice_and_none_was_drawn_for_the_tasks():
    """Support and query points are apart, too. Among 15,000 of a billion places two may be the same by chance."""
    tasks = Sinusoid(10, num_tasks=10, seed=(1, 0))
    uniform = [round((x + 5) / 10, 9) for x in inputs(first(4 * BLOCK, meta_batches(tasks, 3)))]
    drawn = {round(float(u), 9) for u in np.random.default_rng((1, 0)).uniform(size=20_000)}
    assert len(set(uniform)) > len(uniform) - 5
    assert sum(u in drawn for u in uniform) < 5


def test_the_tasks_come_in_order_and_after_the_last_the_first():
    """Seven tasks in meta-batches of three: 0 1 2, 3 4 5, 6 0 1, … as the targets of each iteration show."""
    tasks = Sinusoid(10, num_tasks=7)
    for start in (0, 3 * 51):
        for iteration, (k_x, k_y, q_x, q_y) in enumerate(first(BLOCK + 9, meta_batches(tasks, 3, start)), start):
            indices = [(3 * iteration + i) % 7 for i in range(3)]
            for x, y in ((k_x, k_y), (q_x, q_y)):
                assert torch.equal(y, tasks.target(indices, x))
