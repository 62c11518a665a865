"""The meta-gradient is the exact second-order one, and the inner loop treats every task as if it were alone."""

import itertools
import math
import shutil

import pytest
import reference
import torch

from data import Sinusoid, meta_batches
from meta import Meta
from net import InputError

EXACT = {"rtol": 0, "atol": 1e-10}


def make(tasks=4, k_shot=10, **settings):
    """A Meta with fixed random weights, and a meta-batch."""
    torch.manual_seed(0)
    return Meta(**settings), Sinusoid(k_shot, num_tasks=tasks, seed=1).batch(range(tasks))


def state(meta):
    """A copy of all that an outer step changes."""
    tensors = dict(meta.net.Param)
    for name, parameter in meta.net.Param.items():
        tensors |= {f"{key}_{name}": tensor for key, tensor in meta.outer_optim.state[parameter].items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def restore(meta, tensors):
    meta.net.set_Param(tensors)
    for name, parameter in meta.net.Param.items():
        for key, tensor in meta.outer_optim.state[parameter].items():
            tensor.copy_(tensors[f"{key}_{name}"])


def assert_equal(left, right):
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def reference_gradient(meta, batch, inner_steps=1, loss="rsse", first_order=False):
    return reference.loop(meta.net.Param, *batch, steps=inner_steps, loss=loss, first_order=first_order)


def assert_same(left, right):
    left_loss, left_gradients = left
    right_loss, right_gradients = right
    assert torch.allclose(left_loss, right_loss, **EXACT)
    for a, b in zip(left_gradients, right_gradients, strict=True):
        assert torch.allclose(a, b, **EXACT)


@pytest.mark.parametrize("loss", ["rsse", "mse"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_meta_gradient_equals_the_per_task_loop(loss, first_order, steps):
    meta, batch = make(loss=loss, inner_steps=steps, first_order=first_order)
    assert_same(meta.meta_gradient(*batch), reference_gradient(meta, batch, steps, loss, first_order))


@pytest.mark.parametrize("loss", ["rsse", "mse"])
def test_the_meta_gradient_equals_that_of_torch_func(loss):
    meta, batch = make(loss=loss)
    weights = {name: parameter.detach() for name, parameter in meta.net.Param.items()}
    assert_same(meta.meta_gradient(*batch), reference.functional(weights, *batch, loss=loss))


def test_the_meta_gradient_equals_the_one_derived_by_hand():
    meta, batch = make()
    assert_same(meta.meta_gradient(*batch), reference.by_hand(meta.net.Param, *batch))


@pytest.mark.parametrize("loss", ["rsse", "mse"])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_meta_gradient_equals_finite_differences(loss, steps):
    """(F(θ + εd) − F(θ − εd)) / 2ε for random directions d; ReLU's kinks are not met at these weights."""
    meta, batch = make(loss=loss, inner_steps=steps)
    _, gradients = meta.meta_gradient(*batch)
    theta = {name: parameter.detach().clone() for name, parameter in meta.net.Param.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        direction = {n: torch.randn(w.shape, dtype=w.dtype, generator=generator) for n, w in theta.items()}
        objective = {}
        for sign in (1, -1):
            meta.net.set_Param({name: w + sign * 1e-6 * direction[name] for name, w in theta.items()})
            objective[sign] = meta.query_loss(*batch).sum().item()
        numeric = (objective[1] - objective[-1]) / 2e-6
        exact = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True)).item()
        assert numeric == pytest.approx(exact, rel=1e-6)


def test_the_meta_gradient_is_not_the_first_order_one():
    meta, batch = make()
    first, first_batch = make(first_order=True)
    _, second_order = meta.meta_gradient(*batch)
    _, first_order = first.meta_gradient(*first_batch)
    difference = math.sqrt(sum((a - b).square().sum() for a, b in zip(second_order, first_order, strict=True)))
    assert difference > 0.01 * math.sqrt(sum(a.square().sum() for a in second_order))


def test_first_order_is_the_query_gradient_at_the_fast_weights():
    meta, batch = make(first_order=True, inner_steps=2)
    k_x, k_y, q_x, q_y = batch
    fast = {name: w.detach().requires_grad_() for name, w in meta.adapt(k_x, k_y, 2).items()}
    loss, _ = meta.net(q_x, q_y, fast)
    expected = [g.sum(0) for g in torch.autograd.grad(loss.sum(), list(fast.values()))]
    assert_same(meta.meta_gradient(*batch), (loss.sum(), expected))


def test_no_inner_steps_is_plain_training_on_the_query_loss():
    meta, batch = make(inner_steps=0)
    _, _, q_x, q_y = batch
    loss, _ = meta.net(q_x, q_y)
    assert_same(meta.meta_gradient(*batch), (loss.sum(), torch.autograd.grad(loss.sum(), list(meta.net.parameters()))))


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("settings", [{}, {"loss": "mse", "inner_steps": 2, "first_order": True}])
def test_the_compiled_outer_step_equals_the_eager_one(settings):
    """On new data and new weights, too: nothing of the batch that was traced may stay in the graph, nor of Adam's
    state, which is not that of a beginning here. To compile changes nothing."""
    compiled, _ = make(**settings)
    eager, _ = make(**settings)
    batches = meta_batches(Sinusoid(10, num_tasks=200, seed=2), 10)
    for batch in itertools.islice(batches, 3):
        assert compiled(*batch) == eager(*batch)
    compiled.compile(*next(batches))
    assert_equal(state(compiled), state(eager))
    for batch in itertools.islice(batches, 10):
        assert compiled(*batch) == pytest.approx(eager(*batch), abs=1e-10)
    left, right = state(compiled), state(eager)
    assert all(torch.allclose(left[name], right[name], rtol=0, atol=1e-9) for name in right)
    assert all(left[name] == right[name] == 13 for name in right if name.startswith("step"))
    assert_same(compiled.meta_gradient(*batch), reference_gradient(compiled, batch, **settings))

    # One form of state: what one has, the other goes on with.
    restore(eager, left)
    batch = next(batches)
    assert compiled(*batch) == pytest.approx(eager(*batch), abs=1e-10)
    restore(compiled, right)
    restore(eager, right)
    batch = next(batches)
    assert compiled(*batch) == pytest.approx(eager(*batch), abs=1e-10)
    left, right = state(compiled), state(eager)
    assert all(torch.allclose(left[name], right[name], rtol=0, atol=1e-9) for name in right)


def test_a_compiler_that_fails_is_quoted(monkeypatch):
    """Whatever was the matter, a missing C++ compiler or something on a GPU, its own words say so, in one line."""

    def compile(function, **options):
        def fail(*batch):
            raise RuntimeError("no room on the GPU\nfor the graph\nand a page of details")

        return fail

    meta, batch = make()
    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(InputError) as refusal:
        meta.compile(*batch)
    assert "--compile failed: no room on the GPU" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "C++" not in str(refusal.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_learns_what_the_cpu_learns(compile):
    cpu, batch = make()
    cuda, _ = make(device="cuda")
    if compile:
        cuda.compile(*(tensor.cuda() for tensor in batch))
    for batch in itertools.islice(meta_batches(Sinusoid(10, num_tasks=40, seed=2), 4), 10):
        assert cuda(*(tensor.cuda() for tensor in batch)) == pytest.approx(cpu(*batch), abs=1e-8)


def test_a_case_worked_by_hand():
    """One task with one support point (x, y) = (1, 0) and one query point (1, 5), the loss rsse, α = 0.25.

    All weights are 0 but b_2 = (1, 0, 0, …) and w_3 = (2, 0, 0, …), so that one hidden unit is alive. With b = b_2[0],
    c = w_3[0] and d = b_3 the prediction is c b + d, here 2·1 + 0 = 2.

    Support: the loss is |c b + d − 0| = 2, with the sign s = 1. Its gradient in (b, c, d) is s (c, b, 1) = (2, 1, 1).
    Step:    (b', c', d') = (1, 2, 0) − 0.25 (2, 1, 1) = (0.5, 1.75, −0.25).
    Query:   the prediction is 1.75·0.5 − 0.25 = 0.625, the loss |0.625 − 5| = 4.375, with the sign s' = −1.
             Its gradient at the fast weights is v = s' (c', b', 1) = (−1.75, −0.5, −1).
    Hessian of the support loss s (c b + d): only ∂²/∂b∂c = s = 1 is not 0, so H v = (v_c, v_b, 0) = (−0.5, −1.75, 0).
    Meta-gradient: v − α H v = (−1.75 + 0.125, −0.5 + 0.4375, −1) = (−1.625, −0.0625, −1).
    """
    meta = Meta(inner_lr=0.25)
    weights = {name: torch.zeros_like(parameter) for name, parameter in meta.net.Param.items()}
    weights["b_2"][0] = 1.0
    weights["w_3"][0, 0] = 2.0
    meta.net.set_Param(weights)
    k_x, k_y, q_x, q_y = (torch.tensor([[[value]]], dtype=torch.float64) for value in (1.0, 0.0, 1.0, 5.0))
    fast = meta.adapt(k_x, k_y, 1)
    assert (fast["b_2"][0, 0].item(), fast["w_3"][0, 0, 0].item(), fast["b_3"][0, 0].item()) == (0.5, 1.75, -0.25)
    loss, (_, _, _, b_2, w_3, b_3) = meta.meta_gradient(k_x, k_y, q_x, q_y)
    assert loss.item() == pytest.approx(4.375, abs=1e-10)
    assert (b_2[0].item(), w_3[0, 0].item(), b_3[0].item()) == pytest.approx((-1.625, -0.0625, -1.0), abs=1e-10)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_adapt_gives_each_task_what_it_gets_alone(steps):
    meta, (k_x, k_y, _, _) = make()
    fast = meta.adapt(k_x, k_y, steps)
    for task in range(len(k_x)):
        alone = meta.adapt(k_x[task : task + 1], k_y[task : task + 1], steps)
        single = reference.adapt_task(meta.net.Param, k_x[task], k_y[task], 1e-2, steps, "rsse", first_order=False)
        for name, w in fast.items():
            assert torch.allclose(w[task], alone[name][0], **EXACT)
            assert torch.allclose(w[task], single[name], **EXACT)


def test_adapt_goes_on_from_fast_weights():
    meta, (k_x, k_y, _, _) = make()
    with torch.no_grad():
        two_and_three = meta.adapt(k_x, k_y, 3, meta.adapt(k_x, k_y, 2))
        five = meta.adapt(k_x, k_y, 5)
    assert_equal(five, two_and_three)
    # On a task alone, and with gradients recorded, it is the same.
    recorded = meta.adapt(k_x, k_y, 3, meta.adapt(k_x, k_y, 2))
    alone = meta.adapt(k_x[1], k_y[1], 3, meta.adapt(k_x[1], k_y[1], 2))
    for name, w in five.items():
        assert torch.allclose(recorded[name], w, **EXACT)
        assert torch.allclose(alone[name], w[1], **EXACT)


@pytest.mark.parametrize("first_order", [False, True])
def test_adapt_without_gradients_returns_plain_tensors(first_order):
    """A graph at the fast weights would keep every earlier step of a chain of calls in memory."""
    meta, (k_x, k_y, _, _) = make(first_order=first_order)
    weights = None
    with torch.no_grad():
        assert all(w.grad_fn is None for w in meta.adapt(k_x, k_y, 0).values())
        for steps in (1, 0, 2):
            weights = meta.adapt(k_x, k_y, steps, weights)
            assert all(w.grad_fn is None and not w.requires_grad for w in weights.values())
        assert not torch.is_grad_enabled()
        expected = meta.adapt(k_x, k_y, 3)
    assert_equal(weights, expected)
    for name, w in meta.adapt(k_x, k_y, 3).items():
        assert w.grad_fn is not None
        assert torch.allclose(w, expected[name], **EXACT)


def test_adapt_with_fast_weights_leaves_those_untouched():
    meta, (k_x, k_y, _, _) = make()
    fast = {name: w.detach().clone() for name, w in meta.adapt(k_x, k_y, 1).items()}
    before = {name: w.clone() for name, w in fast.items()}
    with torch.no_grad():
        meta.adapt(k_x, k_y, 2, fast)
    assert_equal(fast, before)
    assert not any(w.requires_grad for w in fast.values())


def test_adapt_leaves_the_parameters_untouched():
    meta, (k_x, k_y, _, _) = make()
    before = {name: parameter.detach().clone() for name, parameter in meta.net.Param.items()}
    for steps in (1, 10):
        meta.adapt(k_x, k_y, steps)
    for name, parameter in meta.net.Param.items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


def test_adapt_lowers_the_support_loss():
    meta, (k_x, k_y, _, _) = make(tasks=100, inner_lr=1e-4)
    before, _ = meta.net(k_x, k_y)
    after, _ = meta.net(k_x, k_y, meta.adapt(k_x, k_y, 1))
    assert (after < before).all()


def test_a_diverging_task_spoils_no_other():
    meta, (k_x, k_y, q_x, q_y) = make(loss="mse")
    expected = meta.query_loss(k_x, k_y, q_x, q_y)
    k_y = k_y.clone()
    k_y[2] = 1e200
    loss = meta.query_loss(k_x, k_y, q_x, q_y)
    assert not loss[2].isfinite()
    for task in (0, 1, 3):
        assert torch.equal(loss[task], expected[task])


def test_an_outer_step_is_adams_on_the_meta_gradient():
    """From its start, Adam moves every weight by β · g/(|g| + ε'), which is β against the sign of the gradient."""
    meta, batch = make()
    before = {name: parameter.detach().clone() for name, parameter in meta.net.Param.items()}
    total, gradients = meta.meta_gradient(*batch)
    mean = meta(*batch)
    assert isinstance(mean, float)
    assert mean == pytest.approx(total.item() / 4, abs=1e-10)
    for (name, parameter), g in zip(meta.net.Param.items(), gradients, strict=True):
        assert torch.allclose(before[name] - parameter, 1e-3 * g / (g.abs() + 1e-8), rtol=0, atol=1e-9)
        assert not torch.equal(before[name], parameter)


@pytest.mark.parametrize("settings", [{}, {"outer_lr": 0.02, "loss": "mse"}])
def test_an_outer_step_is_bit_for_bit_that_of_pytorchs_adam(settings):
    meta, _ = make(**settings)
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in meta.net.Param.items()}
    adam = torch.optim.Adam(weights.values(), lr=settings.get("outer_lr", 1e-3), fused=True)
    for batch in itertools.islice(meta_batches(Sinusoid(10, num_tasks=100), 5), 20):
        _, gradients = meta.meta_gradient(*batch)
        for w, g in zip(weights.values(), gradients, strict=True):
            w.grad = g
        adam.step()
        meta(*batch)
        assert_equal(
            {name: w.detach() for name, w in weights.items()}, {n: p.detach() for n, p in meta.net.Param.items()}
        )
    for w, parameter in zip(weights.values(), meta.net.Param.values(), strict=True):
        assert_equal(adam.state[w], meta.outer_optim.state[parameter])


def test_a_restored_state_goes_on_bit_for_bit():
    one, _ = make()
    torch.manual_seed(1)
    other = Meta()
    batches = meta_batches(Sinusoid(10, num_tasks=100), 5)
    for batch in itertools.islice(batches, 10):
        one(*batch)
    restore(other, state(one))
    for batch in itertools.islice(batches, 10):
        assert one(*batch) == other(*batch)
    assert_equal(state(one), state(other))
    other.net.set_Param(state(one))
    for moments in other.outer_optim.state.values():
        moments["exp_avg"].zero_()
    one(*batch)
    other(*batch)
    assert not torch.equal(one.net.w_2, other.net.w_2)  # Adam's state matters


def test_the_optimizer_owns_the_parameters_of_the_net():
    meta, _ = make(outer_lr=0.02)
    (group,) = meta.outer_optim.param_groups
    assert group["lr"] == 0.02
    assert all(p is parameter for p, parameter in zip(group["params"], meta.net.Param.values(), strict=True))


def test_training_steps_equal_those_of_the_per_task_loop():
    meta, _ = make()
    weights = {name: parameter.detach().clone().requires_grad_() for name, parameter in meta.net.Param.items()}
    adam = torch.optim.Adam(weights.values(), lr=1e-3, foreach=False)
    for batch in itertools.islice(meta_batches(Sinusoid(10, num_tasks=50), 5), 10):
        meta(*batch)
        _, gradients = reference.loop(weights, *batch)
        for w, g in zip(weights.values(), gradients, strict=True):
            w.grad = g
        adam.step()
    for name, parameter in meta.net.Param.items():
        assert torch.allclose(parameter, weights[name], rtol=0, atol=1e-9)


def test_learning():
    """2,000 iterations, measured on 1,000 held-out tasks: the query loss after one step.

    It ends near 0.35 of that of the untrained net. Plain fine-tuning, 10 steps from the same random weights, comes to
    about 0.8 of it. The margins below are far from both.
    """
    torch.manual_seed(0)
    meta = Meta()
    held_out = Sinusoid(10, num_tasks=1000, seed=99).batch(range(1000))
    k_x, k_y, q_x, q_y = held_out
    with torch.no_grad():
        untrained = meta.query_loss(*held_out).mean().item()
        fine_tuned = meta.net(q_x, q_y, meta.adapt(k_x, k_y, 10))[0].mean().item()
    for batch in itertools.islice(meta_batches(Sinusoid(10, num_tasks=20_000), 10), 2000):
        meta(*batch)
    with torch.no_grad():
        trained = meta.query_loss(*held_out).mean().item()
    assert trained < 0.6 * untrained
    assert trained < 0.75 * fine_tuned
