"""The meta-gradient in two other ways, to hold the project's own against.

None of them shares code with net.py and meta.py. `pytest tests/test_gradient.py` compares them.

- `loop` is Algorithm 1 of the paper as one would write it down, one task at a time: start here.
- `in_jax` is the same in JAX, whose automatic differentiation is not PyTorch's.

Weights are a dictionary: w_1, b_1, w_2, b_2, w_3, b_3. Support points k_x and k_y are
(tasks, K, 1), query points q_x and q_y are (tasks, Q, 1). Each function returns the sum over tasks
of the query losses and its gradient, a tensor for each weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, mse_loss, relu

Weights = dict[str, Tensor]
Result = tuple[Tensor, tuple[Tensor, ...]]


def loop(
    weights: Weights,
    k_x: Tensor,
    k_y: Tensor,
    q_x: Tensor,
    q_y: Tensor,
    inner_lr: float = 1e-2,
    steps: int = 1,
    loss: str = "rsse",
    first_order: bool = False,
) -> Result:
    """Lines 4 to 8 of Algorithm 1, one task at a time. The weights must require gradients."""
    theta = list(weights.values())
    total = 0

    # Line 4: for all tasks.
    for task in range(len(k_x)):
        fast = theta

        for _ in range(steps):
            # Line 5: evaluate the gradient of the loss on the K support points. `create_graph`
            # records how it depends on θ, because line 8 differentiates through it.
            support_loss = task_loss(fast, k_x[task], k_y[task], loss)
            gradient = torch.autograd.grad(support_loss, fast, create_graph=not first_order)

            # Line 6: θ' = θ − α ∇L(θ). These are the task's own weights.
            fast = [w - inner_lr * g for w, g in zip(fast, gradient, strict=True)]

        # Line 8: the sum over tasks of the losses of θ' on the query points, …
        total = total + task_loss(fast, q_x[task], q_y[task], loss)

    # … and its gradient with respect to θ, the meta-gradient.
    return total, torch.autograd.grad(total, theta)


def task_loss(weights: list[Tensor], x: Tensor, y: Tensor, loss: str = "rsse") -> Tensor:
    """The loss of one task: two (N, 1) -> ()."""
    pred = predict(weights, x)
    return mse_loss(pred, y, reduction="sum").sqrt() if loss == "rsse" else mse_loss(pred, y)


def predict(weights: list[Tensor], x: Tensor) -> Tensor:
    """The prediction for one task: (N, 1) -> (N, 1)."""
    w_1, b_1, w_2, b_2, w_3, b_3 = weights
    h = relu(linear(x, w_1, b_1))
    h = relu(linear(h, w_2, b_2))
    return linear(h, w_3, b_3)


def in_jax(
    weights: Weights,
    k_x: Tensor,
    k_y: Tensor,
    q_x: Tensor,
    q_y: Tensor,
    inner_lr: float = 1e-2,
    steps: int = 1,
    loss: str = "rsse",
    first_order: bool = False,
) -> Result:
    """JAX: the gradient of `jax_loss`."""
    import jax
    import jax.numpy as jnp

    def to_torch(array: jax.Array) -> Tensor:
        return torch.tensor(array.tolist(), dtype=torch.float64)

    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(w.detach().numpy()) for name, w in weights.items()}
        batch = (jnp.asarray(points.numpy()) for points in (k_x, k_y, q_x, q_y))
        batch_loss = jax_loss(inner_lr, steps, loss, first_order)
        total, gradients = jax.jit(jax.value_and_grad(batch_loss))(arrays, *batch)
        # JAX sorts the names.
        return to_torch(total), tuple(to_torch(gradients[name]) for name in weights)


def jax_loss(
    inner_lr: float = 1e-2, steps: int = 1, loss: str = "rsse", first_order: bool = False
) -> Callable:
    """A function of JAX: weights, k_x, k_y, q_x, q_y -> the sum over tasks of the query losses."""
    import jax
    import jax.numpy as jnp
    from jax import Array

    def task_loss(weights: dict, x: Array, y: Array) -> Array:
        h = jax.nn.relu(x @ weights["w_1"].T + weights["b_1"])
        h = jax.nn.relu(h @ weights["w_2"].T + weights["b_2"])
        squares = (h @ weights["w_3"].T + weights["b_3"] - y) ** 2
        return jnp.sqrt(squares.sum()) if loss == "rsse" else squares.mean()

    def adapted_loss(weights: dict, k_x: Array, k_y: Array, q_x: Array, q_y: Array) -> Array:
        for _ in range(steps):
            gradients = jax.grad(task_loss)(weights, k_x, k_y)
            if first_order:
                gradients = jax.lax.stop_gradient(gradients)
            weights = jax.tree.map(lambda w, g: w - inner_lr * g, weights, gradients)
        return task_loss(weights, q_x, q_y)

    def batch_loss(weights: dict, *batch: Array) -> Array:
        return jax.vmap(adapted_loss, in_axes=(None, 0, 0, 0, 0))(weights, *batch).sum()

    return batch_loss
