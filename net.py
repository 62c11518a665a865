"""The network of the paper's sinusoid experiment (Section 5.1): an MLP 1 → 40 → 40 → 1 with ReLU.

Its six parameters are declared by hand, so that a forward pass can use other values in their place:
the fast weights of every task in a meta-batch. `AnyNet` does the same for any module.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Fast weights, a set for each task: w_1 (tasks, 40, 1), b_1 (tasks, 40), and so on.
Fast = Mapping[str, Tensor]


def rsse(pred: Tensor, y: Tensor) -> Tensor:
    """√Σ(pred − y)², the root of the summed squared error: two (tasks, N, 1) -> (tasks,)."""
    sse = (pred - y).square().sum((1, 2))
    # The root has no derivative at 0. So an SSE below 1e-24 counts as 1e-24, a constant, which has
    # the derivative 0. A loss of 1e-12 is as good as none, and float32 has far smaller numbers.
    return torch.threshold(sse, 1e-24, 1e-24).sqrt()


def mse(pred: Tensor, y: Tensor) -> Tensor:
    """The mean squared error (the paper's Equation 2, as a mean): two (tasks, N, 1) -> (tasks,)."""
    return (pred - y).square().mean((1, 2))


LOSSES = {"rsse": rsse, "mse": mse}  # by their names on the command line


class Net(nn.Module):
    """MLP 1 → 40 → 40 → 1 in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.w_1, self.b_1 = layer(1, 40)
        self.w_2, self.b_2 = layer(40, 40)
        self.w_3, self.b_3 = layer(40, 1)

    @property
    def Param(self) -> dict[str, nn.Parameter]:
        """The parameters by name: w_1, b_1, w_2, b_2, w_3, b_3."""
        return dict(self.named_parameters(recurse=False))

    def expand(self, tasks: int) -> dict[str, Tensor]:
        """The parameters repeated for every task, without a copy: w_1 (tasks, 40, 1), …"""
        return {name: p.expand(tasks, *p.shape) for name, p in self.Param.items()}

    def forward(self, x: Tensor, fast: Fast | None = None) -> Tensor:
        """The prediction at x: (tasks, N, 1) -> (tasks, N, 1). Fast weights replace parameters."""
        w = self.expand(len(x)) if fast is None else fast
        h = torch.relu_(linear(x, w["w_1"], w["b_1"]))  # (tasks, N, 40)
        h = torch.relu_(linear(h, w["w_2"], w["b_2"]))  # (tasks, N, 40)
        return linear(h, w["w_3"], w["b_3"])  # (tasks, N, 1)


class AnyNet(nn.Module):
    """Any module that maps (N, inputs) to (N, outputs), as a network for `Meta`.

    The module keeps its own initial weights, which are PyTorch's, not those of `Net`. The network
    of `Net` takes about 1.6 times as long this way (10 tasks, not compiled).

    Points have to be of the module's precision. These end in an error of PyTorch: running
    statistics, as `BatchNorm1d` has by default; recurrent layers and control flow that depends on
    the data, which `torch.vmap` does not know; parameters that are frozen or change no output.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def Param(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the module."""
        return dict(self.module.named_parameters())

    expand = Net.expand

    def forward(self, x: Tensor, fast: Fast | None = None) -> Tensor:
        """The prediction at x, (tasks, N, inputs) -> (tasks, N, outputs), as in `Net`."""
        fast = self.expand(len(x)) if fast is None else fast

        def predict(weights: Fast, x: Tensor) -> Tensor:  # for one task
            return torch.func.functional_call(self.module, weights, x)

        return torch.vmap(predict, randomness="different")(fast, x)


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
