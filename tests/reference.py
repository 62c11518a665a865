"""The meta-gradient in four other ways, to hold the project's own against.

None of them shares code with net.py and meta.py.

- `loop` is Algorithm 1 as a newcomer would write it, one task at a time.
- `functional` is the same in `torch.func`.
- `in_jax` is the same in JAX, whose automatic differentiation is not PyTorch's.
- `by_hand` uses no automatic differentiation at all.

Weights are dictionaries with the names of `Net.Param`, and batches are as `Meta` takes them. Each
function returns the sum over tasks of the query losses and its gradient, a tensor for each weight.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, mse_loss, relu

Weights = dict[str, Tensor]
Result = tuple[Tensor, tuple[Tensor, ...]]


def predict_task(weights: Weights, x: Tensor) -> Tensor:
    """The prediction for one task: (N, 1) -> (N, 1)."""
    h = relu(linear(x, weights["w_1"], weights["b_1"]))
    h = relu(linear(h, weights["w_2"], weights["b_2"]))
    return linear(h, weights["w_3"], weights["b_3"])


def task_loss(weights: Weights, x: Tensor, y: Tensor, loss: str = "rsse") -> Tensor:
    """The loss of one task: x, y (N, 1) -> ()."""
    pred = predict_task(weights, x)
    return mse_loss(pred, y, reduction="sum").sqrt() if loss == "rsse" else mse_loss(pred, y)


def adapt_task(
    weights: Weights,
    k_x: Tensor,
    k_y: Tensor,
    inner_lr: float,
    steps: int,
    loss: str,
    first_order: bool,
) -> Weights:
    """Algorithm 1, lines 5 and 6, for one task."""
    for _ in range(steps):
        support_loss = task_loss(weights, k_x, k_y, loss)
        values = list(weights.values())
        gradients = torch.autograd.grad(support_loss, values, create_graph=not first_order)
        pairs = zip(weights.items(), gradients, strict=True)
        weights = {name: w - inner_lr * g for (name, w), g in pairs}
    return weights


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
    """A Python loop over the tasks; `weights` must require gradients."""
    total = 0
    for task in range(len(k_x)):
        fast = adapt_task(weights, k_x[task], k_y[task], inner_lr, steps, loss, first_order)
        total = total + task_loss(fast, q_x[task], q_y[task], loss)
    return total, torch.autograd.grad(total, list(weights.values()))


def functional(
    weights: Weights,
    k_x: Tensor,
    k_y: Tensor,
    q_x: Tensor,
    q_y: Tensor,
    inner_lr: float = 1e-2,
    loss: str = "rsse",
) -> Result:
    """`torch.func`: the gradient of a vmap over tasks of the loss after one gradient step."""

    def adapted_loss(
        weights: Weights, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor
    ) -> Tensor:
        gradients = torch.func.grad(task_loss)(weights, k_x, k_y, loss)
        fast = {name: w - inner_lr * gradients[name] for name, w in weights.items()}
        return task_loss(fast, q_x, q_y, loss)

    def batch_loss(weights: Weights) -> Tensor:
        losses = torch.vmap(adapted_loss, in_dims=(None, 0, 0, 0, 0))(weights, k_x, k_y, q_x, q_y)
        return losses.sum()

    gradients, total = torch.func.grad_and_value(batch_loss)(weights)
    return total, tuple(gradients.values())


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
    """JAX: the gradient of a vmap over tasks of the loss after `steps` gradient steps."""
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

    def to_torch(array: Array) -> Tensor:
        return torch.tensor(array.tolist(), dtype=torch.float64)

    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(w.detach().numpy()) for name, w in weights.items()}
        batch = (jnp.asarray(points.numpy()) for points in (k_x, k_y, q_x, q_y))
        total, gradients = jax.jit(jax.value_and_grad(batch_loss))(arrays, *batch)
        # JAX sorts the names.
        return to_torch(total), tuple(to_torch(gradients[name]) for name in weights)


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
