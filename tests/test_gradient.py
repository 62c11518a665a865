"""The meta-gradient is the exact one for any network, and compiled learners do the same."""

import contextlib
import copy
import functools
import math
import re

import pytest
import reference
import torch
from conftest import dropout, needs_compiler
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from data import Sinusoid
from meta import CHUNK, Meta
from net import LOSSES, AnyNet, Net, mse, rsse

SHAPES = {"w_1": (40, 1), "b_1": (40,), "w_2": (40, 40), "b_2": (40,), "w_3": (1, 40), "b_3": (1,)}
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

assert_close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-10)
assert_equal = functools.partial(torch.testing.assert_close, rtol=0, atol=0)


def three_layers():
    """A module of another shape than `Net`: two inputs, three layers, tanh."""
    layers = nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 1)
    return AnyNet(nn.Sequential(*layers).double())


def make(net=Net, tasks=4, loss="rsse", steps=1, **settings):
    """A learner with fixed random weights, and a meta-batch. More inputs are powers of x."""
    torch.manual_seed(0)
    k_x, k_y, q_x, q_y = Sinusoid(10, num_tasks=tasks, seed=1).batch(range(tasks))
    if net is three_layers:
        k_x, q_x = torch.cat((k_x, k_x**2), dim=2), torch.cat((q_x, q_x**2), dim=2)
    meta = Meta(net(), LOSSES[loss], inner_steps=steps, **settings)
    return meta, (k_x, k_y, q_x, q_y)


def state(meta):
    """A copy of all that training changes."""
    return copy.deepcopy((meta.state_dict(), meta.outer_optim.state_dict()))


def assert_in_step(one, other, batch):
    """Both learners do the same in the next iteration."""
    assert one(*batch) == pytest.approx(other(*batch), abs=1e-10)
    assert_close(state(one), state(other), atol=1e-9)


def refused(words):
    return pytest.raises(ValueError, match=re.escape(words))


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


def test_adapt_gives_the_fast_weights_after_every_step():
    """It changes no parameter. Under `torch.no_grad` only the second derivatives are left out."""
    meta, (k_x, k_y, _, _) = make()
    before, theta = state(meta), meta.net.expand(4)
    expected = [theta, *(meta.adapt(k_x, k_y, steps)[-1] for steps in (1, 2, 3))]
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert_equal(trajectory := meta.adapt(k_x, k_y, 3), expected)
            assert_equal(meta.adapt(k_x, k_y, 0), [theta])
    total = sum(w.sum() for w in trajectory[-1].values())
    for gradient in torch.autograd.grad(total, list(meta.parameters())):
        assert (gradient == 4).all()  # one from each task
    assert_equal(state(meta), before)


def test_the_losses_by_hand():
    """Two tasks with two points and two outputs."""
    pred = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert rsse(pred, torch.zeros_like(pred)).tolist() == [5, 2]
    assert mse(pred, torch.zeros_like(pred)).tolist() == [25 / 4, 1]


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
    First order: v.
    """
    meta = Meta(Net(), inner_lr=0.25)
    weights = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    weights["b_2"][0] = 1
    weights["w_3"][0, 0] = 2
    meta.net.load_state_dict(weights)
    k_x, k_y, q_x, q_y = torch.tensor([1, 0, 1, 5]).double().reshape(4, 1, 1, 1)
    _, fast = meta.adapt(k_x, k_y, 1)
    assert (fast["b_2"][0, 0], fast["w_3"][0, 0, 0], fast["b_3"][0, 0]) == (0.5, 1.75, -0.25)
    assert meta.net(q_x, fast) == 0.625
    expected = {False: [4.375, -1.625, -0.0625, -1], True: [4.375, -1.75, -0.5, -1]}
    for meta.first_order in (False, True):
        loss, (_, _, _, b_2, w_3, b_3) = meta.meta_gradient(k_x, k_y, q_x, q_y)
        results = [value.item() for value in (loss, b_2[0], w_3[0, 0], b_3[0])]
        assert results == pytest.approx(expected[meta.first_order], abs=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", ["rsse", "mse"])
@pytest.mark.parametrize(("steps", "first_order"), [(0, False), (2, False), (2, True)])
def test_training_takes_the_meta_gradient_of_jax(device, loss, steps, first_order):
    """In every setting, for more tasks than are computed at once, whatever `grad` was before."""
    pytest.importorskip("jax")
    settings = {"loss": loss, "first_order": first_order, "steps": steps}
    meta, batch = make(tasks=2 * CHUNK + 50, **settings)
    total, gradients = reference.in_jax(meta.net.Param, *batch, **settings)
    meta.to(device)
    for p in meta.parameters():
        p.grad = torch.ones_like(p)
    mean = meta(*(points.to(device) for points in batch))
    assert mean == pytest.approx(total.item() / len(batch[0]), abs=1e-10)
    assert_close(tuple(p.grad.cpu() for p in meta.parameters()), gradients, atol=1e-9)


@pytest.mark.parametrize("loss", ["rsse", "mse"])
@pytest.mark.parametrize("steps", [1, 3])
def test_any_network_has_an_exact_meta_gradient(loss, steps):
    """It is the finite difference in a random direction, (F(θ + εd) − F(θ − εd)) / 2ε."""
    meta, batch = make(three_layers, loss=loss, steps=steps)
    meta.eval()  # where it is adapted, too
    _, gradients = meta.meta_gradient(*batch)
    theta = parameters_to_vector(meta.net.parameters()).detach()
    direction, losses = torch.randn_like(theta), []
    for epsilon in (1e-6, -1e-6):
        vector_to_parameters(theta + epsilon * direction, meta.net.parameters())
        losses.append(meta.query_loss(*batch).sum().item())
    exact = (parameters_to_vector(gradients) @ direction).item()
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(exact, rel=1e-6)


def test_each_task_has_random_numbers_of_its_own():
    pred = dropout()(torch.ones(2, 5, 1).double())
    assert not torch.equal(pred[0], pred[1])


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_added_later_is_trained(traced, compiled):
    """By any optimizer; here a step size is learned. A parameter without gradient is an error."""
    _, batch = make(tasks=CHUNK + 3)
    meta = Meta(Net(), mse)
    if compiled:
        meta.compile_gradient(*batch)
    meta.inner_lr = nn.Parameter(torch.tensor(0.01).double())
    meta.outer_optim = torch.optim.SGD(meta.parameters(), lr=0.1)
    before = copy.deepcopy(list(meta.parameters()))
    _, gradients = meta.meta_gradient(*batch)
    meta(*batch)
    for p, old, gradient in zip(meta.parameters(), before, gradients, strict=True):
        assert gradient.any()
        assert_close(p, old - 0.1 * gradient)
    meta.net.alpha = nn.ParameterDict({"w_1": torch.ones(1)})  # a part of its own: not adapted
    assert list(meta.net.expand(1)) == list(SHAPES)
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        meta.meta_gradient(*batch)


def test_adam_follows_the_gradient_in_any_layout_of_the_weights():
    meta, batch = make(three_layers, outer_lr=0.02)
    weight = meta.net.module[2].weight
    weight.data = weight.data.T.contiguous().T
    expected = copy.deepcopy(meta)
    expected.outer_optim = torch.optim.Adam(expected.parameters(), lr=0.02, fused=False)
    for _ in range(3):
        assert meta(*batch) == pytest.approx(expected(*batch), abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_of_zero_spoils_nothing(dtype):
    """There the root has no derivative. The task adds nothing to the gradient, in any precision."""
    meta = Meta(Net().to(dtype))
    x = torch.randn(1, 10, 1, dtype=dtype)
    y = meta.net(x).detach()
    assert 0 <= rsse(y, y) < 1e-10
    _, spoiled = meta.meta_gradient(x, y, x, y)
    assert not any(gradient.any() for gradient in spoiled)
    _, exact = meta.meta_gradient(x, y, x, torch.ones_like(x))
    meta.inner_steps = 0  # the support loss is as low as it can be
    _, expected = meta.meta_gradient(x, y, x, torch.ones_like(x))
    assert_close(exact, expected)


def test_what_would_train_on_something_else_is_refused():
    """The sentence has the shapes, and nothing is trained."""
    meta, (k_x, k_y, q_x, q_y) = make()
    before, many = state(meta), torch.ones(2 * CHUNK, 10, 1).double()
    with refused("predictions are (4, 10, 1), targets (4, 10)"):
        meta(k_x, k_y[..., 0], q_x, q_y)
    with refused("predictions are (4, 15, 1), targets (15, 1)"):
        meta(k_x, k_y, q_x, q_y[0])
    for few in (q_x[:2], q_y[:2]), (many[:CHUNK], many[:CHUNK]):
        with pytest.raises((ValueError, RuntimeError)):  # Python's or PyTorch's
            meta(many, many, *few)
    with refused("steps must be at least 0, not -1"):
        meta.adapt(k_x, k_y, -1)
    for dimensions in ((), (0, 2), (1,)):  # over which a loss takes the mean
        meta.loss = lambda pred, y, dims=dimensions: (pred - y).abs().mean(dims)
        with refused("the loss must be (tasks,), one number a task: ("):
            meta(k_x, k_y, q_x, q_y)
    assert_equal(state(meta), before)


@needs_compiler
def test_compiled_learners_do_what_eager_ones_do():
    """From the middle of a run, and with new points all the time."""
    eager, batch = make(three_layers)
    eager(*batch)
    compiled = copy.deepcopy(eager)
    compiled.compile_gradient(*batch)
    for shift in range(3):
        assert_in_step(compiled, eager, [points.roll(shift, 0) for points in batch])


class Tanh(torch.autograd.Function):
    """A derivative written by hand, which can be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


class ByHand(Net):
    def forward(self, x, fast=None):
        return Tanh.apply(super().forward(x, fast))


@pytest.mark.parametrize(("net", "scale"), [(ByHand, 1.0), (ByHand, 1e-6), (dropout, 1.0)])
def test_a_compiled_gradient_that_is_another_is_refused(traced, net, scale):
    """Without second derivatives, or with other random numbers, however small the loss is."""
    meta, batch = make(net, inner_lr=0.01 / scale)
    meta.loss = lambda pred, y: scale * rsse(pred, y)
    before = state(meta), torch.get_rng_state()
    with refused("the compiled gradient has an error of "):
        meta.compile_gradient(*batch)
    with refused("the plain gradient is not finite"):
        meta.compile_gradient(*(points * math.nan for points in batch))
    assert_equal((state(meta), torch.get_rng_state()), before)
    assert not meta.compiled


def test_compiling_changes_nothing_else(traced):
    """Neither what the network keeps, nor random numbers; and a gradient of 0 is equal to 0."""

    class Counting(Net):
        def forward(self, x, fast=None):
            self.calls += 1
            return super().forward(x, fast)

    meta, (k_x, _, q_x, _) = make(Counting)
    meta.net.register_buffer("calls", torch.zeros(1))
    batch = (k_x, meta.net(k_x).detach(), q_x, meta.net(q_x).detach())
    assert not any(g.any() for g in meta.meta_gradient(*batch)[1])
    before = state(meta), torch.get_rng_state()
    meta.compile_gradient(*batch)
    assert_equal((state(meta), torch.get_rng_state()), before)


@pytest.mark.parametrize("number", [float, torch.tensor])
def test_numbers_that_change_are_tensors_or_end_in_a_sentence(traced, monkeypatch, number):
    """Each other number is compiled, up to a limit."""
    compile, fewer = torch.compile, {"recompile_limit": 3}
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile(f, **options | fewer))
    torch.compiler.reset()  # other tests count, too
    meta, batch = make(inner_lr=number(0.01))
    meta.compile_gradient(*batch)
    words = "compilations were not enough: keep a number that changes"
    with refused(words) if number is float else contextlib.nullcontext():
        for step in range(1, 4):
            meta.inner_lr = number(0.01 * 0.9**step)
            meta(*batch)


def test_an_older_version_does_not_compile(monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.12.1"))
    meta, batch = make()
    with refused("needs PyTorch 2.13 or newer, not 2.12.1"):
        meta.compile_gradient(*batch)


class Twice(Meta):
    def meta_gradient(self, *batch):
        loss, gradient = super().meta_gradient(*batch)
        return loss, tuple(2 * g for g in gradient)


def test_a_compiled_learner_follows_its_class_settings_and_shapes(traced):
    """More often than PyTorch's own limit of 8. And a copy of it is trained in its place."""
    _, batch = make(three_layers)
    eager = Twice(three_layers())
    compiled = copy.deepcopy(eager)
    compiled.compile_gradient(*batch)
    changes = {"first_order": True, "inner_steps": 2, "inner_lr": 0.02, "loss": mse}
    for points, (name, value) in enumerate(changes.items(), start=1):
        for learner in (eager, compiled):
            setattr(learner, name, value)
        assert_in_step(compiled, eager, batch)
        assert_in_step(compiled, eager, [x[:, :points] for x in batch])
    before, copied = state(compiled), copy.deepcopy(compiled)
    assert_in_step(copied, eager, batch)
    assert_equal(state(compiled), before)
