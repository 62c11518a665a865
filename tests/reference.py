"""The meta-gradient in JAX, whose automatic differentiation is not PyTorch's.

Nothing of net.py and meta.py is used. tests/maml.py is the same in PyTorch, to read.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Result = tuple[Tensor, tuple[Tensor, ...]]


def in_jax(
    weights: Mapping[str, Tensor],
    k_x: Tensor,
    k_y: Tensor,
    q_x: Tensor,
    q_y: Tensor,
    inner_lr: float = 1e-2,
    steps: int = 1,
    loss: str = "rsse",
    first_order: bool = False,
) -> Result:
    """The sum over tasks of the query losses, and its gradient, a tensor for each weight.

    Weights are w_1, b_1, w_2, b_2, w_3, b_3; points (tasks, K, 1) and (tasks, Q, 1).
    """
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
