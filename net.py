"""The network of the paper's sinusoid experiment (Section 5.1): an MLP 1 → 40 → 40 → 1 with ReLU.

Its six parameters are declared by hand, so that a forward pass can use other values in their place:
the fast weights of every task in a meta-batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

LOSSES = ("rsse", "mse")

Weights = Mapping[str, Tensor]  # fast weights, a set for each task: w_1 (tasks, 40, 1), b_1 (tasks, 40), …


class Net(nn.Module):
    """MLP 1 → 40 → 40 → 1 in float64, and its training loss.

    Args:
        loss: "rsse", the root of the summed squared error √Σ(prediction − y)² over the points of a
            task, or "mse", their mean squared error (the paper's Equation 2, as a mean).
    """

    def __init__(self, loss: str = "rsse") -> None:
        super().__init__()
        self.loss = loss
        self.w_1 = nn.Parameter(torch.empty(40, 1, dtype=torch.float64))
        self.b_1 = nn.Parameter(torch.empty(40, dtype=torch.float64))
        self.w_2 = nn.Parameter(torch.empty(40, 40, dtype=torch.float64))
        self.b_2 = nn.Parameter(torch.empty(40, dtype=torch.float64))
        self.w_3 = nn.Parameter(torch.empty(1, 40, dtype=torch.float64))
        self.b_3 = nn.Parameter(torch.empty(1, dtype=torch.float64))
        self.Param: dict[str, nn.Parameter] = dict(self.named_parameters())  # w_1, b_1, w_2, b_2, w_3, b_3
        for w, b in ((self.w_1, self.b_1), (self.w_2, self.b_2), (self.w_3, self.b_3)):
            nn.init.kaiming_uniform_(w)
            nn.init.uniform_(b, -(w.shape[1] ** -0.5), w.shape[1] ** -0.5)

    def expand(self, tasks: int) -> dict[str, Tensor]:
        """The parameters repeated over a leading task dimension, without a copy: w_1 (tasks, 40, 1), …"""
        return {name: parameter.expand(tasks, *parameter.shape) for name, parameter in self.Param.items()}

    def predict(self, x: Tensor, weights: Weights | None = None) -> Tensor:
        """The prediction at x, (tasks, N, 1) -> (tasks, N, 1). Fast weights, if given, replace the parameters."""
        weights = weights or self.expand(len(x))
        h = torch.relu_(_linear(x, weights["w_1"], weights["b_1"]))  # (tasks, N, 40)
        h = torch.relu_(_linear(h, weights["w_2"], weights["b_2"]))  # (tasks, N, 40)
        return _linear(h, weights["w_3"], weights["b_3"])  # (tasks, N, 1)

    def forward(self, x: Tensor, y: Tensor, weights: Weights | None = None) -> tuple[Tensor, Tensor]:
        """The loss of each task, (tasks,), and its prediction, (tasks, N, 1), for targets y, (tasks, N, 1)."""
        pred = self.predict(x, weights)
        sse = (pred - y).square().sum((1, 2))  # (tasks,)
        if self.loss == "mse":
            return sse / x.shape[1], pred
        # The clamp keeps the derivatives of the root finite (they are 0) where the residual is 0. `vector_norm` is
        # a little faster, but its second derivative is not a number there.
        return sse.clamp_min(1e-200).sqrt(), pred


def _linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x wᵀ + b, task by task: (tasks, N, in), (tasks, out, in), (tasks, out) -> (tasks, N, out)."""
    return torch.baddbmm(b.unsqueeze(1), x, w.mT)  # a matmul and a sum take a quarter longer
