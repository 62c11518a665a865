"""The network of the paper's sinusoid experiment (Section 5.1): an MLP 1 → 40 → 40 → 1 with ReLU.

Its six parameters are declared by hand, so that a forward pass can use other values in their place:
the fast weights of every task in a meta-batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Fast weights, a set for each task: w_1 (tasks, 40, 1), b_1 (tasks, 40), and so on.
Fast = Mapping[str, Tensor]


def rsse(pred: Tensor, y: Tensor) -> Tensor:
    """√Σ(pred − y)², the root of the summed squared error: two (tasks, N, 1) -> (tasks,)."""
    sse = (pred - y).square().sum((1, 2))
    # The clamp keeps the derivatives of the root finite (they are 0) where the residual is 0: a
    # floor whose power of -3/2 does not overflow, 1e-185 in float64. `vector_norm` is a little
    # faster, but its second derivative is NaN there.
    return sse.clamp_min(torch.finfo(sse.dtype).tiny ** 0.6).sqrt()


def mse(pred: Tensor, y: Tensor) -> Tensor:
    """The mean squared error (the paper's Equation 2, as a mean): two (tasks, N, 1) -> (tasks,)."""
    return (pred - y).square().sum((1, 2)) / y.shape[1]


LOSSES = {"rsse": rsse, "mse": mse}


class Net(nn.Module):
    """MLP 1 → 40 → 40 → 1 in float64, and its training loss, "rsse" or "mse" (see `LOSSES`)."""

    def __init__(self, loss: str = "rsse") -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        self.loss = loss
        self.w_1, self.b_1 = layer(1, 40)
        self.w_2, self.b_2 = layer(40, 40)
        self.w_3, self.b_3 = layer(40, 1)

    @property
    def Param(self) -> dict[str, nn.Parameter]:
        """The parameters by name: w_1, b_1, w_2, b_2, w_3, b_3."""
        return dict(self._parameters)  # `named_parameters` takes twenty times as long

    def expand(self, tasks: int) -> dict[str, Tensor]:
        """The parameters repeated for every task, without a copy: w_1 (tasks, 40, 1), …"""
        return {name: p.expand(tasks, *p.shape) for name, p in self.Param.items()}

    def predict(self, x: Tensor, weights: Fast | None = None) -> Tensor:
        """The prediction at x, (tasks, N, 1) -> (tasks, N, 1). Fast weights replace the parameters.

        Raises a `ValueError` if they are those of another number of tasks.
        """
        weights = self.expand(len(x)) if weights is None else weights
        if len(x) != len(weights["w_1"]):
            shapes = f"{tuple(x.shape)} and {tuple(weights['w_1'].shape)}"
            raise ValueError(f"x and w_1 must have the same number of tasks, not {shapes}")
        h = torch.relu_(linear(x, weights["w_1"], weights["b_1"]))  # (tasks, N, 40)
        h = torch.relu_(linear(h, weights["w_2"], weights["b_2"]))  # (tasks, N, 40)
        return linear(h, weights["w_3"], weights["b_3"])  # (tasks, N, 1)

    def forward(self, x: Tensor, y: Tensor, weights: Fast | None = None) -> tuple[Tensor, Tensor]:
        """The loss of each task, (tasks,), and the prediction at x; x and y are (tasks, N, 1).

        Raises a `ValueError` if their shapes differ, where PyTorch might broadcast, and for a loss
        that is not one number for each task.
        """
        if x.shape != y.shape:
            raise ValueError(f"x and y differ in shape: {tuple(x.shape)} and {tuple(y.shape)}")
        pred = self.predict(x, weights)
        loss = LOSSES[self.loss](pred, y)
        if loss.shape != x.shape[:1]:
            raise ValueError(f"the loss must have the shape (tasks,), not {tuple(loss.shape)}")
        return loss, pred


def layer(inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A weight, (outputs, inputs), Kaiming-uniform, and a bias, (outputs,), U(±1/√inputs)."""
    w = nn.Parameter(torch.empty(outputs, inputs, dtype=torch.float64))
    b = nn.Parameter(torch.empty(outputs, dtype=torch.float64))
    nn.init.kaiming_uniform_(w)
    nn.init.uniform_(b, -(inputs**-0.5), inputs**-0.5)
    return w, b


def linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x wᵀ + b, task by task: (tasks, N, in), (tasks, out, in), (tasks, out) -> (tasks, N, out)."""
    return torch.baddbmm(b.unsqueeze(1), x, w.mT)  # faster than matmul plus add
