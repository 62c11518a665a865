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


def test_shapes_and_type():
    tasks = Sinusoid(10, num_tasks=20)
    assert len(tasks) == 20
    assert len(Sinusoid(10)) == 1_000_000
    assert [tuple(t.shape) for t in tasks[3]] == [(10, 1), (10, 1), (15, 1), (15, 1)]
    assert [tuple(t.shape) for t in Sinusoid(5, 7, 20)[3]] == [(5, 1), (5, 1), (7, 1), (7, 1)]
    batch = tasks.batch([3, 1, 3])
    assert [tuple(t.shape) for t in batch] == [(3, 10, 1), (3, 10, 1), (3, 15, 1), (3, 15, 1)]
    meta_batch = next(meta_batches(tasks, 3))
    assert [tuple(t.shape) for t in meta_batch] == [(3, 10, 1), (3, 10, 1), (3, 15, 1), (3, 15, 1)]
    assert all(t.dtype == torch.float64 for t in (*tasks[3], *batch, *meta_batch))


def test_ranges_are_those_of_the_paper_and_are_filled():
    """Of 10,000 uniform draws, none within 1 % of an end would be a chance of 1e-43."""
    tasks = Sinusoid(10, num_tasks=10_000)
    x = torch.cat(tasks.batch(range(10_000))[::2], dim=1).numpy()
    block_x = torch.cat([torch.cat(batch[::2], dim=1) for batch in first(50, meta_batches(tasks, 200))]).numpy()
    ranges = ((tasks.amplitude, 0.1, 5.0), (tasks.phase, 0.0, math.pi), (x, -5.0, 5.0), (block_x, -5.0, 5.0))
    for values, low, high in ranges:
        margin = 0.01 * (high - low)
        assert low <= values.min() < low + margin
        assert high - margin < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=5 * (high - low) / math.sqrt(12 * 10_000))


def test_targets_are_the_sinusoid_of_the_task():
    tasks = Sinusoid(10, num_tasks=20)
    batch = tasks.batch([4, 7])
    for x, y in (batch[:2], batch[2:]):
        for row, task in enumerate((4, 7)):
            expected = tasks.amplitude[task].item() * np.sin(x[row].numpy() + tasks.phase[task].item())
            assert np.abs(y[row].numpy() - expected).max() < 1e-14
    grid = np.linspace(-5, 5, 50)[:, None]
    assert tasks.target([4, 7], grid).shape == (2, 50, 1)
    assert (tasks.target([7], grid)[0] == tasks.amplitude[7] * np.sin(grid + tasks.phase[7])).all()


def test_inputs_are_drawn_anew_while_the_task_stays():
    tasks = Sinusoid(10, num_tasks=20)
    one, two = tasks[5], tasks[5]
    assert not same(one, two)
    for _, y, _, _ in (one, two):
        assert y.abs().max() <= tasks.amplitude[5].item()


def test_same_seed_same_stream():
    assert same(Sinusoid(10, seed=3)[5], Sinusoid(10, seed=3)[5])
    assert not same(Sinusoid(10, seed=3)[5], Sinusoid(10, seed=4)[5])
    assert not same(Sinusoid(10, seed=(1, 0))[5], Sinusoid(10, seed=(2, 0))[5])


def test_the_stream_is_its_own():
    """Other random generators, and drawing from them, change nothing."""

    def draw():
        tasks = Sinusoid(10, num_tasks=20, seed=3)
        return *tasks[5], *next(meta_batches(tasks, 4))

    torch.manual_seed(9)
    np.random.seed(9)
    expected = draw()
    torch.rand(5)
    np.random.rand(5)
    assert same(draw(), expected)


def test_the_random_state_can_be_read_and_restored():
    tasks = Sinusoid(10, num_tasks=20)
    tasks.batch(range(7))
    state = tasks.rng.bit_generator.state
    expected = tasks.batch([4, 2])
    tasks.rng.bit_generator.state = state
    assert same(tasks.batch([4, 2]), expected)


def test_a_batch_equals_its_tasks_one_by_one():
    indices = [4, 0, 4, 19]
    batch = Sinusoid(10, num_tasks=20).batch(indices)
    tasks = Sinusoid(10, num_tasks=20)
    assert same(batch, [torch.stack(column) for column in zip(*(tasks[i] for i in indices), strict=True)])


# Meta-batches


@pytest.mark.parametrize("start", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 7])
def test_a_run_that_starts_at_any_iteration_gets_the_batches_of_one_that_came_there(start):
    whole = first(4 * BLOCK + 3, meta_batches(Sinusoid(10, num_tasks=1000, seed=(1, 0)), 3))
    rest = first(4 * BLOCK + 3 - start, meta_batches(Sinusoid(10, num_tasks=1000, seed=(1, 0)), 3, start))
    assert all(same(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_meta_batches_depend_on_nothing_that_was_drawn_before():
    tasks = Sinusoid(10, num_tasks=1000, seed=(1, 0))
    expected = first(3, meta_batches(tasks, 3))
    tasks.batch(range(9))
    other = meta_batches(tasks, 3, 7)
    next(other)
    assert all(same(a, b) for a, b in zip(expected, first(3, meta_batches(tasks, 3)), strict=True))


@pytest.mark.parametrize("other", [(1, 1), (1, 0, 1), (2, 0), 0])
def test_other_seeds_give_other_tasks_and_other_inputs(other):
    batches = [first(BLOCK + 1, meta_batches(Sinusoid(10, num_tasks=1000, seed=seed), 3)) for seed in ((1, 0), other)]
    inputs = [{x for batch in some for x in torch.cat(batch[::2], dim=1).flatten().tolist()} for some in batches]
    targets = [{y for batch in some for y in torch.cat(batch[1::2], dim=1).flatten().tolist()} for some in batches]
    assert not inputs[0] & inputs[1]
    assert not targets[0] & targets[1]


def test_no_input_of_any_iteration_comes_twice():
    batches = first(4 * BLOCK, meta_batches(Sinusoid(10, num_tasks=10, seed=(1, 0)), 3))
    inputs = torch.cat([torch.cat(batch[::2], dim=1) for batch in batches]).flatten().tolist()
    assert len(set(inputs)) == len(inputs) == 4 * BLOCK * 3 * 25


@pytest.mark.parametrize("seed", [0, 1, (1,), (1, 0), (1, 5), (0, 0, 0)])
def test_no_block_repeats_the_draws_of_the_tasks(seed):
    """To NumPy, the seeds (1, 0) and (1, 0, 0) are one stream: inputs seeded with them would follow the amplitudes."""
    tasks = Sinusoid(10, num_tasks=5000, seed=seed)
    own = torch.cat(tasks.batch(range(100))[::2], dim=1).numpy()
    drawn = [(tasks.amplitude - 0.1) / 4.9, tasks.phase / math.pi, (own + 5) / 10]
    drawn = {round(u, 9) for values in drawn for u in values.flatten().tolist()}
    batches = first(2 * BLOCK, meta_batches(tasks, 3))
    inputs = [round((x + 5) / 10, 9) for batch in batches for x in torch.cat(batch[::2], dim=1).flatten().tolist()]
    assert sum(u in drawn for u in inputs) < 5  # 15,000 values among a billion: now and then two are equal by chance


def test_the_tasks_come_in_order_and_after_the_last_the_first():
    """Seven tasks in meta-batches of three: 0 1 2, 3 4 5, 6 0 1, … as the targets of each iteration show."""
    tasks = Sinusoid(10, num_tasks=7)
    for start in (0, 3 * 51):
        for iteration, (k_x, k_y, q_x, q_y) in enumerate(first(BLOCK + 9, meta_batches(tasks, 3, start)), start):
            indices = [(3 * iteration + i) % 7 for i in range(3)]
            for x, y in ((k_x, k_y), (q_x, q_y)):
                assert np.array_equal(y.numpy(), tasks.target(indices, x.numpy()))


def test_support_and_query_points_are_not_the_same():
    k_x, _, q_x, _ = next(meta_batches(Sinusoid(10, num_tasks=20), 3))
    assert not set(k_x.flatten().tolist()) & set(q_x.flatten().tolist())


def test_inputs_are_drawn_in_few_calls():
    """A call for every iteration costs more than the numbers do."""
    calls = []

    class Recorded(Sinusoid):
        def batch(self, indices, rng):
            calls.append(len(indices))
            return super().batch(indices, rng)

    first(2 * BLOCK, meta_batches(Recorded(10, num_tasks=7), 3))
    assert calls == [3 * BLOCK, 3 * BLOCK]
