"""The network of the paper's sinusoid experiment (Section 5.1), an MLP 1 → 40 → 40 → 1 with ReLU, and its files.

Its six parameters are declared by hand, so that a forward pass can use other values in their place:
the fast weights of one task, or of a whole meta-batch of tasks at once.
"""

import contextlib
import functools
import io
import os
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

LOSSES = ("rsse", "mse")


class InputError(Exception):
    """What the user gave can't be used; the message is one sentence that says why."""


class Net(nn.Module):
    """MLP 1 → 40 → 40 → 1 in float64 that returns its loss beside its prediction.

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
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new parameters: weights Kaiming-uniform, biases U(±1/√fan_in)."""
        for w, b in ((self.w_1, self.b_1), (self.w_2, self.b_2), (self.w_3, self.b_3)):
            nn.init.kaiming_uniform_(w)
            nn.init.uniform_(b, -(w.shape[1] ** -0.5), w.shape[1] ** -0.5)

    @torch.no_grad()
    def set_Param(self, weights: Mapping[str, Tensor]) -> None:
        """Copy `weights` into the parameters, which stay the same objects (an optimizer keeps them)."""
        for name, parameter in self.Param.items():
            parameter.copy_(weights[name])

    def expand(self, *tasks: int) -> dict[str, Tensor]:
        """The parameters repeated over a leading task dimension, without a copy: w_1 (tasks, 40, 1), …"""
        return {name: parameter.expand(*tasks, *parameter.shape) for name, parameter in self.Param.items()}

    def forward(self, x: Tensor, y: Tensor, weights: Mapping[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Predict y from x and measure the loss of each task.

        Args:
            x, y: inputs and targets of many tasks, (tasks, N, 1), or of one, (N, 1).
            weights: fast weights to use in place of the parameters: w_1 (tasks, 40, 1), b_1 (tasks, 40),
                and so on, or w_1 (40, 1), … for one task.

        Returns:
            The loss of each task, (tasks,) or (), and the prediction, of the shape of x.
        """
        weights = self.expand(*x.shape[:-2]) if weights is None else weights
        h = torch.relu(_linear(x, weights["w_1"], weights["b_1"]))  # (tasks, N, 40)
        h = torch.relu(_linear(h, weights["w_2"], weights["b_2"]))  # (tasks, N, 40)
        pred = _linear(h, weights["w_3"], weights["b_3"])  # (tasks, N, 1)
        sse = (pred - y).square().sum((-2, -1))  # (tasks,)
        if self.loss == "mse":
            return sse / x.shape[-2], pred
        # The clamp keeps the derivatives of the root finite (they are 0) where the residual is 0; `vector_norm` is
        # a little faster, but its second derivative is not a number there.
        return sse.clamp_min(1e-200).sqrt(), pred


def _linear(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x wᵀ + b, task by task: (tasks, N, in), (tasks, out, in), (tasks, out) -> (tasks, N, out)."""
    if x.dim() == 2:  # one task: (N, in), (out, in), (out,) -> (N, out)
        return torch.addmm(b, x, w.mT)
    return torch.baddbmm(b.unsqueeze(-2), x, w.mT)  # a matmul and a sum take a quarter longer


def load(path: str | Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in `path`, where `torch.save` put a dictionary of them, on the CPU. No code in it is ever run.

    Args:
        like: a float64 tensor of the shape of each; an empty one stands for any number of elements.

    Raises:
        OSError: the file can't be read.
        InputError: it isn't such a file, it is damaged, it holds anything else, or values that are not finite.
    """
    content = Path(path).read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in a file that is refused, or sound all the same
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise almost anything
        raise InputError(f"{path} can't be loaded: it isn't a file of plain tensors, or it is damaged") from error
    if not isinstance(tensors, dict) or set(tensors) != set(like):
        first, *_, last = like
        raise InputError(f"{path} does not hold the {len(like)} tensors from {first} to {last} and nothing else")
    for name, expected in like.items():
        tensor = tensors[name]
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_nested
        if not plain or tensor.is_meta or not tensor.is_contiguous():
            raise InputError(f"{path}: {name} is not a plain tensor")
        shape = expected.shape if expected.numel() else (tensor.numel(),)
        if tensor.shape != shape or tensor.dtype != torch.float64:
            raise InputError(f"{path}: {name} is {list(tensor.shape)} {tensor.dtype}, not {list(shape)} torch.float64")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} has values that are not finite")
    return tensors


def save(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` for `load` to read on any device. An `OSError` as of `write`."""
    write(path, functools.partial(torch.save, {name: tensor.detach().cpu() for name, tensor in tensors.items()}))


def write(path: str | Path, save: Callable[[BinaryIO], object]) -> None:
    """Write with `save` to a temporary file beside `path`, then move it there: all of it or nothing.

    Raises:
        OSError: the file can't be written; one that was there before is untouched.
    """
    buffer = io.BytesIO()
    save(buffer)
    temporary = Path(f"{path}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())  # else a power cut after the move may leave an empty file
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"{path} can't be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # it has been moved, or was never made
            temporary.unlink()
