"""The meta-gradient in three other ways, to hold the project's own against.

None of them shares code with net.py and meta.py. `pytest tests/test_gradient.py` compares them.

- `loop` is Algorithm 1 of the paper as one would write it down, one task at a time: start here.
- `in_jax` is the same in JAX, whose automatic differentiation is not PyTorch's.
- `by_hand` uses no automatic differentiation at all.

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


@torch.no_grad()
def by_hand(
    weights: Weights, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor, inner_lr: float = 1e-2
) -> Result:
    """The derivatives written out, for one inner step and the loss "rsse".

    With v = ∇L_query(θ') and H the Hessian of the support loss at θ, the gradient of
    L_query(θ − α ∇L_support(θ)) is v − α H v, summed over tasks. H v is the derivative of the
    backward pass in the direction v (Pearlmutter, 1994): below, `t_a` is the derivative of `a` in
    that direction.
    """
    w_1, b_1, w_2, b_2, w_3, b_3 = weights.values()

    # Support: forward and backward. θ is the same for all tasks.
    a_1 = k_x @ w_1.mT + b_1  # (tasks, K, 40)
    h_1 = a_1.relu()
    a_2 = h_1 @ w_2.mT + b_2
    h_2 = a_2.relu()
    residual = h_2 @ w_3.mT + b_3 - k_y  # (tasks, K, 1)
    norm = residual.square().sum((1, 2), keepdim=True).sqrt()
    m_1, m_2 = (a_1 > 0).double(), (a_2 > 0).double()
    d_3 = residual / norm
    d_2 = d_3 * w_3 * m_2
    d_1 = d_2 @ w_2 * m_1

    # The step: every task's own weights f and biases c.
    f_1 = w_1 - inner_lr * (d_1.mT @ k_x)
    f_2 = w_2 - inner_lr * (d_2.mT @ h_1)
    f_3 = w_3 - inner_lr * (d_3.mT @ h_2)
    c_1 = b_1 - inner_lr * d_1.sum(1, keepdim=True)
    c_2 = b_2 - inner_lr * d_2.sum(1, keepdim=True)
    c_3 = b_3 - inner_lr * d_3.sum(1, keepdim=True)

    # Query: forward and backward give v for the weights and u for the biases.
    p_1 = torch.baddbmm(c_1, q_x, f_1.mT)
    g_1 = p_1.relu()
    p_2 = torch.baddbmm(c_2, g_1, f_2.mT)
    g_2 = p_2.relu()
    q_residual = torch.baddbmm(c_3, g_2, f_3.mT) - q_y
    q_norm = q_residual.square().sum((1, 2), keepdim=True).sqrt()
    e_3 = q_residual / q_norm
    e_2 = e_3 * f_3 * (p_2 > 0)
    e_1 = e_2.bmm(f_2) * (p_1 > 0)
    v_1, v_2, v_3 = e_1.mT.bmm(q_x), e_2.mT.bmm(g_1), e_3.mT.bmm(g_2)
    u_1, u_2, u_3 = (e.sum(1, keepdim=True) for e in (e_1, e_2, e_3))

    # The support passes, differentiated in the direction v.
    t_h_1 = torch.baddbmm(u_1, k_x, v_1.mT) * m_1
    t_h_2 = (t_h_1 @ w_2.mT + torch.baddbmm(u_2, h_1, v_2.mT)) * m_2
    t_residual = t_h_2 @ w_3.mT + torch.baddbmm(u_3, h_2, v_3.mT)
    t_d_3 = (t_residual - d_3 * (d_3 * t_residual).sum((1, 2), keepdim=True)) / norm
    t_d_2 = (t_d_3 * w_3 + d_3 * v_3) * m_2
    t_d_1 = (t_d_2 @ w_2 + d_2.bmm(v_2)) * m_1

    def over_tasks(left: Tensor, right: Tensor) -> Tensor:
        """The sum over tasks and points, as one matrix product."""
        return left.flatten(0, 1).mT @ right.flatten(0, 1)

    return q_norm.sum(), (
        v_1.sum(0) - inner_lr * over_tasks(t_d_1, k_x),
        (u_1.sum(0) - inner_lr * t_d_1.sum((0, 1))).flatten(),
        v_2.sum(0) - inner_lr * (over_tasks(t_d_2, h_1) + over_tasks(d_2, t_h_1)),
        (u_2.sum(0) - inner_lr * t_d_2.sum((0, 1))).flatten(),
        v_3.sum(0) - inner_lr * (over_tasks(t_d_3, h_2) + over_tasks(d_3, t_h_2)),
        (u_3.sum(0) - inner_lr * t_d_3.sum((0, 1))).flatten(),
    )
