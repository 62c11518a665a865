"""MAML (Finn, Abbeel and Levine, ICML 2017): Algorithm 1 with the exact second-order gradient.

`Meta.adapt` is the inner loop, and calling a `Meta` is one iteration of the outer loop. Both work
on a whole meta-batch at once: each task has its own fast weights, stacked in a first dimension.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from net import Fast, Net

CHUNK = 100  # tasks that are computed at once: more leave the processor's caches
MAX_COMPILED_STEPS = 30  # inner steps: with 34, the compiler exceeds Python's recursion limit
NO_LIMIT = 10**6  # compilations in a process, for all learners and shapes
ADAM = dict(beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)


class CompileError(Exception):
    """Compilation failed, for example because there is no C++ compiler."""


class Meta:
    """A meta-learner: a network, whose parameters are the initialization θ, and Adam to move it.

    Calling it trains: one iteration of the outer loop.

    Args:
        net: the network, `Net()` unless given. Loss, device and precision are those of the network.
            Any module that has the `Param`, `expand`, `predict` and `forward` of `Net` will do.
        inner_lr: step size α of the inner loop.
        outer_lr: step size β of the outer loop.
        inner_steps: gradient steps of the inner loop in training; 0 trains without adaptation,
            the paper's baseline "pretrained on all tasks".
        first_order: drop the second derivatives (FOMAML, Section 5.2 of the paper).

    Raises a `ValueError` if a step size is not positive and finite, if `inner_steps` is negative,
    or if a parameter is not in `Param`, as those of submodules are not: it would not be trained.
    """

    def __init__(
        self,
        net: Net | None = None,
        inner_lr: float = 1e-2,
        outer_lr: float = 1e-3,
        inner_steps: int = 1,
        first_order: bool = False,
    ) -> None:
        for name, lr in (("inner_lr", inner_lr), ("outer_lr", outer_lr)):
            if not 0 < lr < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {lr}")
        if inner_steps < 0:
            raise ValueError(f"inner_steps must be at least 0, not {inner_steps}")
        self.inner_lr, self.outer_lr = inner_lr, outer_lr
        self.inner_steps, self.first_order = inner_steps, first_order
        self.net = Net() if net is None else net
        # The state of Adam: for each parameter its two moments and a count of steps.
        params = self.net.Param
        if len(params) != len(list(self.net.parameters())):
            raise ValueError("the network has parameters that are not in its Param")
        self.exp_avg = {name: torch.zeros_like(p) for name, p in params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in params.items()}
        self.steps = [p.new_zeros((), dtype=torch.float32) for p in params.values()]
        self._is_compiled = False

    def __call__(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> float:
        """Train: one iteration of the outer loop.

        Support points k_x and k_y are (tasks, K, 1), query points q_x and q_y (tasks, Q, 1).
        Returns the mean over tasks of the query losses before the outer step.
        """
        return self.outer_step(k_x, k_y, q_x, q_y).item() / len(k_x)

    def adapt(self, k_x: Tensor, k_y: Tensor, steps: int, weights: Fast | None = None) -> Fast:
        """The inner loop: `steps` gradient steps on the support loss of every task.

        Args:
            k_x, k_y: support points, (tasks, K, 1).
            weights: fast weights of an earlier call, to continue from them instead of θ.

        Returns the fast weights: w_1 (tasks, 40, 1), b_1 (tasks, 40), and so on. Gradients flow
        through them to θ; with `first_order`, or under `torch.no_grad`, no second derivatives do.
        """
        if steps < 0:
            raise ValueError(f"steps must be at least 0, not {steps}")
        second_order = torch.is_grad_enabled() and not self.first_order
        with torch.enable_grad():
            if weights is None:
                weights = self.net.expand(len(k_x))  # line 4, for all tasks at once
            for _ in range(steps):
                loss, _ = self.net(k_x, k_y, weights)  # (tasks,)
                # Line 5. Tasks share no fast weights: one call gives the gradient of every task.
                # `create_graph` lets line 8 differentiate through it.
                fast = list(weights.values())
                gradients = torch.autograd.grad(loss.sum(), fast, create_graph=second_order)
                # Line 6: θ' = θ − α ∇L(θ)
                pairs = zip(weights.items(), gradients, strict=True)
                weights = {name: w - self.inner_lr * g for (name, w), g in pairs}
        return weights

    def query_loss(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> Tensor:
        """L(θ'), the query loss of every task after adaptation to its support points: (tasks,)."""
        weights = self.adapt(k_x, k_y, self.inner_steps)
        loss, _ = self.net(q_x, q_y, weights)
        return loss

    def meta_gradient(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sum over tasks of the query losses of k_x, k_y, q_x, q_y, and its gradient in θ."""
        if len(batch[0]) > CHUNK:
            gradient = _compiled(Meta.meta_gradient) if self._is_compiled else Meta.meta_gradient
            parts = [gradient(self, *chunk) for chunk in chunks(*batch)]
            losses, gradients = zip(*parts, strict=True)
            return sum(losses), tuple(map(sum, zip(*gradients, strict=True)))
        loss = self.query_loss(*batch).sum()
        return loss.detach(), torch.autograd.grad(loss, list(self.net.Param.values()))

    def outer_step(self, *batch: Tensor) -> Tensor:
        """Line 8: a step of Adam. Returns the sum over tasks of the query losses before it."""
        if self._is_compiled and len(batch[0]) <= CHUNK:
            return _compiled(Meta._adam_step)(self, *batch)
        return self._adam_step(*batch)

    def trajectory(self, k_x: Tensor, k_y: Tensor, x: Tensor, steps: int) -> Iterator[Tensor]:
        """The predictions at x after 0, 1, … `steps` gradient steps: each (tasks, N, 1)."""
        weights = self.adapt(k_x, k_y, 0)
        yield self.net.predict(x, weights)
        for _ in range(steps):
            weights = self.adapt(k_x, k_y, 1, weights)
            yield self.net.predict(x, weights)

    def state(self) -> dict[str, Tensor]:
        """The parameters and Adam's moments, not copied: net.w_1, exp_avg.w_1, exp_avg_sq.w_1, …"""
        state = {}
        for name, p in self.net.Param.items():
            state[f"net.{name}"] = p.detach()
            state[f"exp_avg.{name}"] = self.exp_avg[name]
            state[f"exp_avg_sq.{name}"] = self.exp_avg_sq[name]
        return state

    def restore(self, state: Mapping[str, Tensor], iterations: int) -> None:
        """Continue from a copy of what `state` gave after so many iterations."""
        for name, tensor in self.state().items():
            if state[name].shape != tensor.shape:  # `copy_` would broadcast
                raise ValueError(f"{name} has the shape {tuple(state[name].shape)}")
            tensor.copy_(state[name])
        for step in self.steps:
            step.fill_(iterations)

    def compile(self) -> None:
        """Compile the outer step of up to CHUNK tasks; of more tasks, the meta-gradient of a chunk.

        Compilation happens in the next iteration, and again when shapes or settings change. More
        inner steps take longer to compile. Raises a `CompileError` if there are more than
        MAX_COMPILED_STEPS, and in the next iteration if compilation fails.
        """
        if self.inner_steps > MAX_COMPILED_STEPS:
            limit = f"at most {MAX_COMPILED_STEPS} inner steps, not {self.inner_steps}"
            raise CompileError(f"compilation allows {limit}")
        self._is_compiled = True

    def _adam_step(self, *batch: Tensor) -> Tensor:
        """The outer step, as it runs and as it is compiled."""
        loss, gradients = self.meta_gradient(*batch)
        params = list(self.net.Param.values())
        moments = list(self.exp_avg.values()), list(self.exp_avg_sq.values())
        # The fused kernel can't be compiled. The others need more than float32 to count.
        fused = not torch.compiler.is_compiling()
        steps = self.steps if fused else [step.double() for step in self.steps]
        options = {"lr": self.outer_lr, "fused": fused, "foreach": False, **ADAM}
        with torch.no_grad():
            adam(params, list(gradients), *moments, [], steps, **options)
            torch._foreach_copy_(self.steps, steps)
        return loss


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same tensors in parts of at most CHUNK tasks; they must have the same number of tasks."""
    if len({len(tensor) for tensor in tensors}) > 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"points must be of the same number of tasks, not of shapes {shapes}")
    return zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)


@functools.cache
def _compiled(method: Callable) -> Callable:
    """A method of `Meta`, compiled as a whole."""
    # On a CPU, these options make it a sixth faster.
    options = {} if torch.cuda.is_available() else {"cpp_wrapper": True, "memory_planning": True}
    limits = {"recompile_limit": NO_LIMIT, "accumulated_recompile_limit": NO_LIMIT}
    # The first setting compiles `torch.autograd.grad` as a part of the whole.
    settings = torch._dynamo.config.patch(trace_autograd_ops=True, **limits)
    compiled = torch.compile(method, fullgraph=True, dynamic=False, options=options)

    def call(meta: Meta, *batch: Tensor) -> object:
        try:
            with settings:
                return compiled(meta, *batch)
        except Exception as error:
            meta.query_loss(*batch)  # points that don't fit raise their own error
            lines = str(error).splitlines() or [repr(error)]
            reason = next((line for line in lines if " error: " in line), lines[0])
            raise CompileError(f"the compiler failed: {reason}") from error

    return call
