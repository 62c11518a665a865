"""The meta-gradient is the exact one, Adam follows it, and compiled learners do the same."""

import copy
import functools
import itertools
import math
import re

import pytest
import reference
import torch
from conftest import needs_compiler
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from data import Sinusoid, meta_batches
from meta import CHUNK, Meta, _compiled
from net import LOSSES, Net, layer, linear, rsse

SHAPES = {"w_1": (40, 1), "b_1": (40,), "w_2": (40, 40), "b_2": (40,), "w_3": (1, 40), "b_3": (1,)}

assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)
assert_equal = functools.partial(torch.testing.assert_close, rtol=0, atol=0)


class TanhNet(Net):
    """Another network: 1 → 40 → 40 → 5 → 1 with tanh."""

    def __init__(self, loss):
        super().__init__(loss)
        self.w_3, self.b_3 = layer(40, 5)
        self.w_4, self.b_4 = layer(5, 1)

    def predict(self, x, weights=None):
        weights = weights or self.expand(len(x))
        for number in (1, 2, 3):
            x = linear(x, weights[f"w_{number}"], weights[f"b_{number}"]).tanh()
        return linear(x, weights["w_4"], weights["b_4"])


def make(loss="rsse", steps=1, net=Net, tasks=4, **settings):
    """A learner with fixed random weights, and a meta-batch."""
    torch.manual_seed(0)
    batch = Sinusoid(10, num_tasks=tasks, seed=1).batch(range(tasks))
    return Meta(net(loss), inner_steps=steps, **settings), batch


def all_of(meta):
    """A copy of all that an outer step changes."""
    return copy.deepcopy((meta.state(), meta.steps))


def compiled_copy(meta):
    compiled = copy.deepcopy(meta)
    compiled.compile()
    return compiled


def assert_in_step(one, other, batch):
    """Both learners do the same in the next iteration."""
    assert one(*batch) == pytest.approx(other(*batch), abs=1e-10)
    assert_close(all_of(one), all_of(other), atol=1e-9)


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


@pytest.fixture
def graphs(monkeypatch):
    """What is compiled, but only traced: that needs no C++ compiler and a twentieth of the time."""
    graphs = []

    def trace(graph, inputs, **options):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=trace))
    _compiled.cache_clear()
    yield graphs
    _compiled.cache_clear()


def test_initial_parameters_are_those_of_the_original():
    """Weights are Kaiming-uniform, U(±√(6/inputs)), biases U(±1/√inputs)."""
    nets = [Net() for _ in range(200)]
    assert [(name, tuple(p.shape)) for name, p in nets[0].Param.items()] == list(SHAPES.items())
    for name in SHAPES:
        values = torch.stack([getattr(net, name).detach() for net in nets])
        inputs = 1 if name.endswith("1") else 40
        bound = math.sqrt((6 if name.startswith("w") else 1) / inputs)
        assert 0.95 * bound < values.abs().max() <= bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)
        assert values.dtype == torch.float64


@pytest.mark.parametrize("grad", [True, False])
def test_adapt_continues_from_fast_weights(grad):
    """It changes neither them nor the parameters, and does the same under `torch.no_grad`."""
    meta, (k_x, k_y, _, _) = make()
    fast, expected = meta.adapt(k_x, k_y, 2), meta.adapt(k_x, k_y, 5)
    before = all_of(meta), {name: w.detach().clone() for name, w in fast.items()}
    with torch.set_grad_enabled(grad):
        assert_equal(meta.adapt(k_x, k_y, 5), expected)
        assert_equal(meta.adapt(k_x, k_y, 3, fast), expected)
    assert_equal((all_of(meta), fast), before)


def test_a_case_worked_by_hand():
    """A support point (x, y) = (1, 0), a query point (1, 5), the loss rsse, and α = 0.25.

    All weights are 0 but b_2 = (1, 0, 0, …) and w_3 = (2, 0, 0, …): one hidden unit is alive. With
    b = b_2[0], c = w_3[0] and d = b_3 the prediction is c b + d, here 2·1 + 0 = 2.

    Support: the loss |c b + d − 0| = 2 has the sign s = 1 and, in (b, c, d), the gradient
             s (c, b, 1) = (2, 1, 1).
    Step:    (b', c', d') = (1, 2, 0) − 0.25 (2, 1, 1) = (0.5, 1.75, −0.25).
    Query:   the prediction is 1.75·0.5 − 0.25 = 0.625, the loss |0.625 − 5| = 4.375, with the sign
             s' = −1. Its gradient there is v = s' (c', b', 1) = (−1.75, −0.5, −1).
    Hessian: of s (c b + d), only ∂²/∂b∂c = s = 1 is not 0: H v = (v_c, v_b, 0) = (−0.5, −1.75, 0).
    Meta-gradient: v − α H v = (−1.75 + 0.125, −0.5 + 0.4375, −1) = (−1.625, −0.0625, −1).
    """
    meta = Meta(inner_lr=0.25)
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    weights["b_2"][0] = 1
    weights["w_3"][0, 0] = 2
    meta.net.load_state_dict(weights)
    batch = torch.tensor([1, 0, 1, 5]).double().reshape(4, 1, 1, 1)
    fast = meta.adapt(*batch[:2], 1)
    assert (fast["b_2"][0, 0], fast["w_3"][0, 0, 0], fast["b_3"][0, 0]) == (0.5, 1.75, -0.25)
    assert meta.net(*batch[2:], fast) == (4.375, 0.625)
    loss, (_, _, _, b_2, w_3, b_3) = meta.meta_gradient(*batch)
    results = [value.item() for value in (loss, b_2[0], w_3[0, 0], b_3[0])]
    assert results == pytest.approx([4.375, -1.625, -0.0625, -1.0], abs=1e-10)


@pytest.mark.parametrize("derivation", [reference.loop, reference.in_jax])
@pytest.mark.parametrize("loss", ["rsse", "mse"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_the_meta_gradient_is_exact_in_every_setting(derivation, loss, first_order, steps):
    if derivation is reference.in_jax:
        pytest.importorskip("jax")
    settings = {"loss": loss, "first_order": first_order, "steps": steps}
    meta, batch = make(**settings)
    assert_close(meta.meta_gradient(*batch), derivation(meta.net.Param, *batch, **settings))


@pytest.mark.parametrize("derivation", [reference.functional, reference.by_hand])
@pytest.mark.parametrize("tasks", [4, 2 * CHUNK + 50])
def test_the_meta_gradient_is_exact_for_any_number_of_tasks(derivation, tasks):
    meta, batch = make(tasks=tasks)
    assert_close(meta.meta_gradient(*batch), derivation(meta.net.Param, *batch))


@pytest.mark.parametrize("net", [Net, TanhNet])
@pytest.mark.parametrize("loss", ["rsse", "mse"])
@pytest.mark.parametrize("steps", [1, 3])
def test_any_network_has_an_exact_meta_gradient(net, loss, steps):
    """It is the finite difference in a random direction, (F(θ + εd) − F(θ − εd)) / 2ε."""
    meta, batch = make(loss, steps, net)
    _, gradients = meta.meta_gradient(*batch)
    theta = parameters_to_vector(meta.net.parameters()).detach()
    direction, losses = torch.randn_like(theta), []
    for epsilon in (1e-6, -1e-6):
        vector_to_parameters(theta + epsilon * direction, meta.net.parameters())
        losses.append(meta.query_loss(*batch).sum().item())
    exact = (parameters_to_vector(gradients) @ direction).item()
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_of_zero_spoils_no_weights(dtype):
    """In any precision, although the root has no derivative there."""
    meta = Meta(Net().to(dtype))
    x = torch.randn(1, 10, 1, dtype=dtype)
    y = meta.net.predict(x).detach()
    assert 0 <= rsse(y, y) < 1e-10
    meta(x, y, x, torch.ones_like(x))
    assert all(p.isfinite().all() for p in meta.net.parameters())


CUDA = [lambda loss: Net(loss).cuda()] if torch.cuda.is_available() else []


@pytest.mark.parametrize("net", [Net, lambda loss: TanhNet(loss).float(), *CUDA])
@pytest.mark.parametrize("outer_lr", [1e-3, 0.02])
def test_an_outer_step_is_bit_for_bit_that_of_pytorchs_adam(net, outer_lr):
    """On its device and in its precision, too. The mean loss before the step is returned."""
    meta, _ = make(net=net, outer_lr=outer_lr)
    weights = copy.deepcopy(meta.net.Param)
    adam = torch.optim.Adam(weights.values(), lr=outer_lr, fused=True)
    for batch in itertools.islice(meta_batches(Sinusoid(10, num_tasks=100), 5), 20):
        batch = [points.to(meta.net.w_1) for points in batch]
        total, gradients = meta.meta_gradient(*batch)
        for w, gradient in zip(weights.values(), gradients, strict=True):
            w.grad = gradient
        adam.step()
        assert meta(*batch) == total.item() / 5
        assert_equal(meta.net.Param, weights)


def test_a_restored_learner_continues_bit_for_bit():
    """It has a copy of the state: the other learner goes on, too."""
    meta, batch = make()
    for _ in range(3):
        meta(*batch)
    other = Meta(Net())
    other.restore(meta.state(), 3)
    assert [meta(*batch) for _ in range(3)] == [other(*batch) for _ in range(3)]
    assert_equal(all_of(meta), all_of(other))


def test_what_cannot_be_trained_is_refused():
    for name, value in itertools.product(("inner_lr", "outer_lr"), (0, -0.1, math.inf, math.nan)):
        with refused(f"{name} must be positive and finite, not {value}"):
            Meta(**{name: value})
    with refused("inner_steps must be at least 0, not -1"):
        Meta(inner_steps=-1)
    with refused("loss must be one of rsse, mse, not 'MSE'"):
        Net("MSE")
    net, meta = Net(), Meta()
    net.more = torch.nn.Linear(1, 1)
    with refused("the network has parameters that are not in its Param"):
        Meta(net)
    with refused("net.b_1 has the shape (1,)"):
        meta.restore({**meta.state(), "net.b_1": torch.ones(1)}, 1)


def test_a_loss_that_is_not_one_for_each_task_is_refused(monkeypatch):
    """Its inner gradient would not be that of the task."""
    for reduction in ("mean", "none"):
        loss = functools.partial(torch.nn.functional.l1_loss, reduction=reduction)
        monkeypatch.setitem(LOSSES, "l1", loss)
        meta, batch = make("l1")
        with refused("the loss must have the shape (tasks,), not ("):
            meta(*batch)


@pytest.mark.parametrize("compiled", [False, True])
def test_points_that_do_not_fit_are_refused(graphs, compiled):
    """The sentence has the shapes, and nothing is trained."""
    meta, (k_x, k_y, q_x, q_y) = make()
    meta = compiled_copy(meta) if compiled else meta
    before, many = all_of(meta), torch.ones(250, 10, 1).double()
    with refused("x and y differ in shape: (4, 10, 1) and (4, 10)"):
        meta(k_x, k_y[..., 0], q_x, q_y)
    with refused("the same number of tasks, not (2, 15, 1) and (4, 40, 1)"):
        meta(k_x, k_y, q_x[:2], q_y[:2])
    with refused("shapes (250, 10, 1), (250, 10, 1), (4, 15, 1), (4, 15, 1)"):
        meta(many, many, q_x, q_y)
    with refused("steps must be at least 0, not -2"):
        meta.adapt(k_x, k_y, -2)
    assert_equal(all_of(meta), before)


@needs_compiler
def test_compiled_learners_do_what_eager_ones_do():
    """Two in turn, one of them from the middle of a run, with new points all the time."""
    one, batch = make()
    one(*batch)
    two, _ = make("mse", first_order=True, inner_lr=0.02, outer_lr=0.005)
    compiled_one, compiled_two = compiled_copy(one), compiled_copy(two)
    batches = meta_batches(Sinusoid(10, num_tasks=200, seed=2), 10)
    for batch in itertools.islice(batches, 5):
        assert_in_step(compiled_one, one, batch)
        assert_in_step(compiled_two, two, batch)


@pytest.mark.parametrize("compiled", [False, True])
def test_assigned_weights_are_followed(graphs, compiled):
    """Those of `load_state_dict(assign=True)` are trained from then on."""
    expected, batch = make()
    meta = compiled_copy(expected) if compiled else copy.deepcopy(expected)
    assert_in_step(meta, expected, batch)
    weights = Net().state_dict()
    expected.net.load_state_dict(weights)
    meta.net.load_state_dict(weights, assign=True)
    assert_in_step(meta, expected, batch)


def test_a_compiled_learner_follows_its_settings(graphs):
    """Whatever network it has. And a copy of it is trained in its place."""
    eager, batch = make(net=TanhNet)
    compiled = compiled_copy(eager)
    changes = {"first_order": True, "inner_steps": 2, "inner_lr": 0.02, "outer_lr": 0.005}
    for name, value in changes.items():
        assert_in_step(compiled, eager, batch)
        setattr(eager, name, value)
        setattr(compiled, name, value)
    before, copied = all_of(compiled), copy.deepcopy(compiled)
    assert_in_step(copied, eager, batch)
    assert_equal(all_of(compiled), before)


def test_ten_learners_and_batch_sizes_are_compiled(graphs):
    """By itself, PyTorch compiles a function eight times. Its settings stay as they are."""
    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 8}
    with torch._dynamo.config.patch(trace_autograd_ops=False, **limits):
        before = torch._dynamo.config.get_config_copy()
        for tasks in (*range(1, 10), 2 * CHUNK):
            eager, batch = make(steps=0, tasks=tasks, outer_lr=1e-3 * tasks)
            assert_in_step(compiled_copy(eager), eager, batch)
        assert torch._dynamo.config.get_config_copy() == before
    assert len(graphs) == 10
