"""The meta-gradient is the exact second-order one, and the inner loop treats every task as if it were alone."""

import copy
import itertools
import shutil
import weakref

import pytest
import reference
import torch

from data import Sinusoid, meta_batches
from meta import Meta

EXACT = {"rtol": 0, "atol": 1e-10}


def make(tasks=4, k_shot=10, **settings):
    """A Meta with fixed random weights, and a meta-batch."""
    torch.manual_seed(0)
    return Meta(**settings), Sinusoid(k_shot, num_tasks=tasks, seed=1).batch(range(tasks))


def state(meta):
    """A copy of all that an outer step changes: two state_dicts."""
    return copy.deepcopy((meta.net.state_dict(), meta.outer_optim.state_dict()))


def restored(state, **settings):
    """Another Meta in that state."""
    torch.manual_seed(1)
    meta = Meta(**settings)
    meta.net.load_state_dict(state[0])
    meta.outer_optim.load_state_dict(copy.deepcopy(state[1]))  # of which it would keep the tensors
    return meta


def tensors(meta):
    """The parameters and Adam's moments and step counts, by name."""
    moments = {
        f"{key}_{i}": w for i, p in enumerate(meta.net.parameters()) for key, w in meta.outer_optim.state[p].items()
    }
    return {name: w.detach() for name, w in {**meta.net.Param, **moments}.items()}


def assert_equal(left, right):
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_same(left, right):
    left_loss, left_gradients = left
    right_loss, right_gradients = right
    assert torch.allclose(left_loss, right_loss, **EXACT)
    for a, b in zip(left_gradients, right_gradients, strict=True):
        assert torch.allclose(a, b, **EXACT)


@pytest.mark.parametrize("loss", ["rsse", "mse"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_meta_gradient_equals_that_of_a_loop_over_tasks(loss, first_order, steps):
    meta, batch = make(loss=loss, inner_steps=steps, first_order=first_order)
    expected = reference.loop(meta.net.Param, *batch, steps=steps, loss=loss, first_order=first_order)
    assert_same(meta.meta_gradient(*batch), expected)


@pytest.mark.parametrize(("loss", "first_order", "steps"), [("rsse", False, 1), ("mse", False, 2), ("rsse", True, 2)])
def test_the_meta_gradient_equals_that_of_jax(loss, first_order, steps):
    pytest.importorskip("jax")
    meta, batch = make(loss=loss, inner_steps=steps, first_order=first_order)
    expected = reference.in_jax(meta.net.Param, *batch, steps=steps, loss=loss, first_order=first_order)
    assert_same(meta.meta_gradient(*batch), expected)


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
            meta.net.load_state_dict({name: w + sign * 1e-6 * direction[name] for name, w in theta.items()})
            objective[sign] = meta.query_loss(*batch).sum().item()
        numeric = (objective[1] - objective[-1]) / 2e-6
        exact = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True)).item()
        assert numeric == pytest.approx(exact, rel=1e-6)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_learners_do_what_eager_ones_do():
    """Two in one process, each with a graph of its own, in turn: new data and new weights all the time.

    The first takes up a state from the middle of a run. Each state is then taken up by an eager learner.
    """
    batches = meta_batches(Sinusoid(10, num_tasks=200, seed=2), 10)
    several = [{}, {"loss": "mse", "first_order": True, "inner_lr": 0.02, "outer_lr": 0.005}]
    pairs = []
    for settings, begun in zip(several, (2, 0), strict=True):
        eager, _ = make(**settings)
        for batch in itertools.islice(batches, begun):
            eager(*batch)
        compiled = restored(state(eager), **settings)
        compiled.compile()
        pairs.append((compiled, eager))
    for batch in itertools.islice(batches, 5):
        for compiled, eager in pairs:
            assert compiled(*batch) == pytest.approx(eager(*batch), abs=1e-10)
    for settings, (compiled, eager) in zip(several, pairs, strict=True):
        assert set(tensors(compiled)) == set(tensors(eager))
        for name, expected in tensors(eager).items():
            assert torch.allclose(tensors(compiled)[name], expected, rtol=0, atol=1e-9), name
        assert restored(state(compiled), **settings)(*batch) == pytest.approx(compiled(*batch), abs=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_learns_what_the_cpu_learns(compile):
    cpu, batch = make()
    cuda, _ = make(device="cuda")
    if compile:
        cuda.compile()
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
    meta.net.load_state_dict(weights)
    k_x, k_y, q_x, q_y = (torch.tensor([[[value]]], dtype=torch.float64) for value in (1.0, 0.0, 1.0, 5.0))
    fast = meta.adapt(k_x, k_y, 1)
    assert (fast["b_2"][0, 0].item(), fast["w_3"][0, 0, 0].item(), fast["b_3"][0, 0].item()) == (0.5, 1.75, -0.25)
    loss, (_, _, _, b_2, w_3, b_3) = meta.meta_gradient(k_x, k_y, q_x, q_y)
    assert loss.item() == pytest.approx(4.375, abs=1e-10)
    assert (b_2[0].item(), w_3[0, 0].item(), b_3[0].item()) == pytest.approx((-1.625, -0.0625, -1.0), abs=1e-10)


def test_adapt_gives_each_task_what_it_gets_alone():
    meta, (k_x, k_y, _, _) = make()
    fast = meta.adapt(k_x, k_y, 3)
    for task in range(len(k_x)):
        alone = reference.adapt_task(meta.net.Param, k_x[task], k_y[task], 1e-2, 3, "rsse", first_order=False)
        for name, w in fast.items():
            assert torch.allclose(w[task], alone[name], **EXACT)


def test_adapt_goes_on_from_fast_weights():
    meta, (k_x, k_y, _, _) = make()
    assert_equal(meta.adapt(k_x, k_y, 5), meta.adapt(k_x, k_y, 3, meta.adapt(k_x, k_y, 2)))


def test_a_first_order_step_keeps_no_graph_of_the_steps_before():
    """Else the evaluation, which takes them one by one, would hold the activations of all steps in memory."""

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            kept.add(self)

    kept, weights = weakref.WeakSet(), None
    meta, (k_x, k_y, _, _) = make(first_order=True)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        for _ in range(3):
            weights = meta.adapt(k_x, k_y, 1, weights)
            assert not kept
        second_order, _ = make()
        weights = second_order.adapt(k_x, k_y, 1)
        assert kept  # here they are what is differentiated again


def test_adapt_leaves_the_parameters_and_given_fast_weights_untouched():
    meta, (k_x, k_y, _, _) = make()
    fast = meta.adapt(k_x, k_y, 1)
    before = copy.deepcopy([{name: w.detach() for name, w in weights.items()} for weights in (meta.net.Param, fast)])
    meta.adapt(k_x, k_y, 2, fast)
    assert_equal(meta.net.Param, before[0])
    assert_equal(fast, before[1])
    assert all(parameter.grad is None for parameter in meta.net.parameters())


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
        assert_equal(weights, meta.net.Param)
    for w, parameter in zip(weights.values(), meta.net.Param.values(), strict=True):
        assert_equal(adam.state[w], meta.outer_optim.state[parameter])
