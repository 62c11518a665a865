"""The network: its parameters, its losses, and one forward pass for any number of tasks."""

import math

import pytest
import torch

from net import Net

SHAPES = {"w_1": (40, 1), "b_1": (40,), "w_2": (40, 40), "b_2": (40,), "w_3": (1, 40), "b_3": (1,)}


def random_weights(*tasks):
    return {name: torch.randn(*tasks, *shape, dtype=torch.float64) for name, shape in SHAPES.items()}


def test_parameters_have_the_names_shapes_and_type_of_the_original():
    net = Net()
    assert {name: tuple(parameter.shape) for name, parameter in net.Param.items()} == SHAPES
    assert list(net.Param) == list(SHAPES)
    assert all(parameter.dtype == torch.float64 for parameter in net.Param.values())
    assert all(net.Param[name] is getattr(net, name) for name in SHAPES)


def test_initial_weights_fill_their_ranges():
    """Kaiming-uniform: U(±√(6/fan_in)); biases: U(±1/√fan_in). 200 nets come near the ends and have the spread."""
    nets = [Net() for _ in range(200)]
    for name, fan_in in (("w_1", 1), ("b_1", 1), ("w_2", 40), ("b_2", 40), ("w_3", 40), ("b_3", 40)):
        values = torch.stack([net.Param[name].detach() for net in nets])
        bound = math.sqrt(6 / fan_in) if name.startswith("w") else 1 / math.sqrt(fan_in)
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.95 * bound  # 200 draws or more: all miss the ends once in 30,000 runs
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2)  # 5 standard errors for b_3


def test_initial_weights_come_from_the_seed():
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(Net())
    for name in SHAPES:
        assert torch.equal(nets[0].Param[name], nets[1].Param[name])
        assert not torch.equal(nets[0].Param[name], nets[2].Param[name])


def test_loading_weights_copies_them_into_the_same_objects():
    """Those that an optimizer holds."""
    net, weights = Net(), random_weights()
    before = dict(net.Param)
    net.load_state_dict(weights)
    for name, parameter in net.named_parameters():
        assert parameter is before[name] is net.Param[name]
        assert torch.equal(parameter, weights[name])
        assert parameter.data_ptr() != weights[name].data_ptr()


def test_forward_by_hand():
    """With w_1 = w_3 = 1, w_2 = identity / 40 and all biases 0, the prediction is Σ relu(x)/40 = relu(x).

    For x = (1, −1, 2) and y = (4, 0, −2) the residuals are −3, 0 and 4: √SSE = 5, MSE = 25/3.
    """
    weights = {name: torch.zeros(1, *shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    weights["w_1"] += 1
    weights["w_2"] += torch.eye(40, dtype=torch.float64) / 40
    weights["w_3"] += 1
    x = torch.tensor([[[1.0], [-1.0], [2.0]]], dtype=torch.float64)
    y = torch.tensor([[[4.0], [0.0], [-2.0]]], dtype=torch.float64)
    for name, expected in (("rsse", 5.0), ("mse", 25 / 3)):
        loss, pred = Net(name)(x, y, weights)
        assert loss.shape == (1,)
        assert loss.item() == pytest.approx(expected, abs=1e-10)
        assert torch.allclose(pred, x.relu(), rtol=0, atol=1e-10)
        assert torch.equal(pred, Net(name).predict(x, weights))


@pytest.mark.parametrize("loss_name", ["rsse", "mse"])
@pytest.mark.parametrize("tasks", [1, 7])
def test_each_task_gets_what_it_gets_alone(tasks, loss_name):
    net, weights = Net(loss_name), random_weights(tasks)
    x, y = torch.randn(2, tasks, 5, 1, dtype=torch.float64)
    loss, pred = net(x, y, weights)
    assert loss.shape == (tasks,)
    assert pred.shape == (tasks, 5, 1)
    for index in range(tasks):
        one = slice(index, index + 1)
        alone, alone_pred = net(x[one], y[one], {name: w[one] for name, w in weights.items()})
        assert torch.allclose(loss[one], alone, rtol=0, atol=1e-10)
        assert torch.allclose(pred[one], alone_pred, rtol=0, atol=1e-10)


def test_without_weights_the_parameters_serve_every_task():
    net = Net()
    x, y = torch.randn(2, 3, 5, 1, dtype=torch.float64)
    loss, pred = net(x, y)
    expected, expected_pred = net(x, y, net.expand(3))
    assert loss.shape == (3,)
    assert torch.equal(loss, expected)
    assert torch.equal(pred, expected_pred)
    assert torch.equal(pred, net.predict(x))
    loss.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_rsse_is_smooth_enough_where_the_residual_is_zero():
    """The root has no derivative at 0: there, value, first and second derivatives must stay finite."""
    net, x = Net(), torch.randn(1, 10, 1, dtype=torch.float64)
    y = net(x, x)[1].detach()
    loss, _ = net(x, y)
    assert 0 <= loss.item() < 1e-50
    gradients = torch.autograd.grad(loss.sum(), list(net.parameters()), create_graph=True)
    seconds = torch.autograd.grad(sum(g.sum() for g in gradients), list(net.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in gradients)
    assert sum(g is not None for g in seconds) > 0
    assert all(g.isfinite().all() for g in seconds if g is not None)
