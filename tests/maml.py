"""MAML in forty lines: the paper's Algorithm 1 on sine curves, y = A sin(x + φ)."""

import torch
from torch.nn.functional import linear, relu


def sample_task(k=10, q=10):  # K support points and Q query points of a new curve
    amplitude, phase = 0.1 + 4.9 * torch.rand(1), torch.pi * torch.rand(1)
    x = 10 * torch.rand(k + q, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return x[:k], y[:k], x[k:], y[k:]


def predict(weights, x):
    w_1, b_1, w_2, b_2, w_3, b_3 = weights
    h = relu(linear(x, w_1, b_1))
    h = relu(linear(h, w_2, b_2))
    return linear(h, w_3, b_3)


def mse(pred, y):
    return (pred - y).square().mean()


def adapted_loss(theta, k_x, k_y, q_x, q_y, loss=mse, alpha=0.01):
    # Line 5: the gradient on the support points. `create_graph` records how it depends on θ.
    gradient = torch.autograd.grad(loss(predict(theta, k_x), k_y), theta, create_graph=True)
    # Line 6: the task's own weights, θ' = θ − α ∇L(θ)
    fast = [w - alpha * g for w, g in zip(theta, gradient, strict=True)]
    return loss(predict(fast, q_x), q_y)


if __name__ == "__main__":
    torch.manual_seed(0)
    layers = torch.nn.Linear(1, 40), torch.nn.Linear(40, 40), torch.nn.Linear(40, 1)
    theta = [weight for layer in layers for weight in layer.parameters()]  # Line 1
    adam = torch.optim.Adam(theta, lr=0.001)
    new = [sample_task() for _ in range(300)]  # curves to test on
    for iteration in range(1601):  # Line 2
        if iteration % 400 == 0:
            before = sum(adapted_loss(theta, *task, alpha=0).item() for task in new) / len(new)
            after = sum(adapted_loss(theta, *task).item() for task in new) / len(new)
            print(f"{iteration}: MSE {before:.2f} before the step, {after:.2f} one step later")
        tasks = [sample_task() for _ in range(10)]  # Line 3
        total = sum(adapted_loss(theta, *task) for task in tasks)  # Line 4: for all tasks
        adam.zero_grad()
        total.backward()  # Line 8: ∇ with respect to θ, through lines 6 and 5
        adam.step()
