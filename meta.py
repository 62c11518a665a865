"""MAML (Finn, Abbeel and Levine, ICML 2017): Algorithm 1 with the exact second-order gradient.

`Meta.adapt` is the inner loop and calling a `Meta` is one iteration of the outer loop. Both work on a
whole meta-batch at once: every task has fast weights of its own, stacked along a leading dimension.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from net import Net


class Meta:
    """A meta-learner: an initialization θ for `Net` and the Adam that moves it.

    Args:
        inner_lr: step size α of the inner loop.
        outer_lr: step size β of the outer loop, Adam's learning rate.
        loss: loss of both loops, "rsse" or "mse" (see `Net`).
        inner_steps: gradient steps of the inner loop in training; 0 trains without adaptation,
            the paper's baseline "pretrained on all tasks".
        first_order: drop the second derivatives (FOMAML, Section 5.2 of the paper).
        device: where the net lives.
    """

    def __init__(
        self,
        inner_lr: float = 1e-2,
        outer_lr: float = 1e-3,
        loss: str = "rsse",
        inner_steps: int = 1,
        first_order: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.first_order = first_order
        self.net = Net(loss).to(device)
        self.outer_optim = torch.optim.Adam(self.net.parameters(), lr=outer_lr, fused=True)

    def adapt(
        self,
        k_x: Tensor,
        k_y: Tensor,
        steps: int,
        weights: Mapping[str, Tensor] | None = None,
        inner_lr: float | None = None,
    ) -> dict[str, Tensor]:
        """The inner loop: `steps` gradient steps on the support loss of every task in the batch.

        Args:
            k_x, k_y: support points, (tasks, K, 1).
            steps: number of gradient steps.
            weights: fast weights to go on from; the parameters themselves unless given.
            inner_lr: step size; α, the one of training, unless given.

        Returns:
            The fast weights of every task: w_1 (tasks, 40, 1), b_1 (tasks, 40), and so on. Gradients
            flow through them to the parameters, unless the caller has switched gradients off.
        """
        inner_lr = self.inner_lr if inner_lr is None else inner_lr
        second_order = torch.is_grad_enabled() and not self.first_order
        with torch.enable_grad():
            weights = dict(weights or self.net.expand(*k_x.shape[:-2]))  # line 4, for all tasks at once
            for _ in range(steps):
                # Line 5. A task's loss depends on its own fast weights alone, so that one call gives every task
                # its own gradient. −α goes in as the factor of the losses: scaling the gradients costs more.
                loss, _ = self.net(k_x, k_y, weights)  # (tasks,)
                factor = torch.full_like(loss, -inner_lr)
                updates = torch.autograd.grad(loss, list(weights.values()), factor, create_graph=second_order)
                # Line 6: θ' = θ − α ∇L(θ)
                weights = {name: w + update for (name, w), update in zip(weights.items(), updates, strict=True)}
        return weights

    def query_loss(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> Tensor:
        """L(θ'), the query loss of every task after adaptation to its support points: (tasks,)."""
        weights = self.adapt(k_x, k_y, self.inner_steps)
        loss, _ = self.net(q_x, q_y, weights)
        return loss

    def meta_gradient(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sum over tasks of the query losses, and its gradient in the parameters θ."""
        loss = self.query_loss(k_x, k_y, q_x, q_y).sum()
        return loss, torch.autograd.grad(loss, list(self.net.Param.values()))

    def compile(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> None:
        """Put one compiled graph, for meta-batches of the shapes of this one, in the place of `meta_gradient`.

        `torch.compile` can't differentiate twice through what it compiles. So `make_fx` runs `meta_gradient` once and
        records its operations, those of both gradients included; what gets compiled needs no autograd any more.

        Raises:
            RuntimeError: there is no working C++ compiler.
        """
        graph = make_fx(lambda *batch: self.meta_gradient(*batch))(k_x, k_y, q_x, q_y)
        if k_x.is_cuda:
            compiled = torch.compile(graph, fullgraph=True, dynamic=False, mode="reduce-overhead")  # CUDA graphs
        else:
            compiled = torch.compile(graph, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
        self.meta_gradient = torch.no_grad()(compiled)
        try:
            self.meta_gradient(k_x, k_y, q_x, q_y)
        except Exception as error:  # the backend wraps whatever the compiler's failure was
            raise RuntimeError("torch.compile failed: on the CPU it needs a C++ compiler that works") from error

    def __call__(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> float:
        """One iteration of the outer loop: an Adam step on the meta-gradient of the meta-batch.

        Args:
            k_x, k_y: support points, (tasks, K, 1).
            q_x, q_y: query points, (tasks, Q, 1).

        Returns:
            The mean over tasks of the query loss after adaptation, as it was before the outer step.
        """
        loss, gradients = self.meta_gradient(k_x, k_y, q_x, q_y)
        for parameter, gradient in zip(self.net.Param.values(), gradients, strict=True):
            parameter.grad = gradient
        self.outer_optim.step()  # Algorithm 1, line 8
        return loss.item() / len(k_x)

    def save_weights(self, path: str | Path) -> None:
        """Write the parameters to `path`: `torch.save` of the `state_dict`, on the CPU.

        Raises:
            OSError: the file can't be written; one that was there before is untouched.
        """
        weights = {name: parameter.detach().cpu() for name, parameter in self.net.Param.items()}
        write(path, lambda file: torch.save(weights, file))

    def load_weights(self, path: str | Path) -> None:
        """Copy the weights in `path` into the parameters, which stay the same objects.

        Raises:
            OSError: the file can't be read.
            ValueError: it does not hold finite weights of this net. The parameters are as they were.
        """
        weights = load(path)
        names = list(self.net.Param)
        if not isinstance(weights, dict) or set(weights) != set(names):
            raise ValueError(f"{path} does not hold the weights {', '.join(names)} and no others")
        for name, parameter in self.net.Param.items():
            w = weights[name]
            if not isinstance(w, Tensor) or w.layout != torch.strided or w.is_nested or w.is_meta:
                raise ValueError(f"{path}: {name} is not a plain tensor")
            if w.shape != parameter.shape or w.dtype != parameter.dtype:
                raise ValueError(
                    f"{path}: {name} is {tuple(w.shape)} {w.dtype}, not {tuple(parameter.shape)} {parameter.dtype}"
                )
            if not w.isfinite().all():
                raise ValueError(f"{path}: {name} has values that are not finite")
        self.net.set_Param(weights)


def load(path: str | Path) -> object:
    """What `torch.save` wrote to `path`, on the CPU. Only plain data and tensors are read; no code is run.

    Raises:
        OSError: the file can't be read.
        ValueError: it isn't such a file, it is damaged, or it holds anything else.
    """
    content = Path(path).read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oddities in a file that is refused, or sound all the same
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the reader raise almost anything
        raise ValueError(f"{path} can't be loaded: it isn't a file of plain tensors, or it is damaged") from error


def write(path: str | Path, save: Callable[[BinaryIO], object]) -> None:
    """Write with `save` to a temporary file beside `path`, then move it there: all of it or nothing.

    Raises:
        OSError: the file can't be written; one that was there before is untouched.
    """
    buffer = io.BytesIO()
    save(buffer)
    temporary = Path(f"{path}.tmp")
    try:
        temporary.write_bytes(buffer.getbuffer())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(f"{path} can't be written: {error.strerror}") from error
