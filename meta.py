"""MAML (Finn, Abbeel and Levine, ICML 2017): Algorithm 1 with the exact second-order gradient.

Calling a `Meta` is one iteration of the outer loop. Its `forward` calls `meta_gradient`, this calls
`query_loss`, and this `adapt`, the inner loop. Tasks are computed at once: each has fast weights of
its own, stacked in a first dimension.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial, reduce

import torch
from torch import Tensor, nn

from net import Fast, rsse

CHUNK = 100  # tasks that are computed at once: more leave the processor's caches


class CompileError(ValueError):
    """The meta-gradient can't be compiled; the message is one sentence that says why."""


class Meta(nn.Module):
    """A meta-learner: a network, whose parameters are the initialization θ, and Adam to move it.

    Calling it trains: one iteration of the outer loop.

    Args:
        net: the network. Any module with the `expand` and `forward` of `Net` will do.
        loss: of predictions and targets, (tasks, N, 1) each; gives one number a task, (tasks,).
        inner_lr: step size α of the inner loop.
        outer_lr: step size β of the outer loop.
        inner_steps: gradient steps of the inner loop in training; 0 trains without adaptation,
            the paper's baseline "pretrained on all tasks".
        first_order: drop the second derivatives (FOMAML, Section 5.2 of the paper).
    """

    def __init__(
        self,
        net: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor] = rsse,
        inner_lr: float = 1e-2,
        outer_lr: float = 1e-3,
        inner_steps: int = 1,
        first_order: bool = False,
    ) -> None:
        super().__init__()
        self.net, self.loss, self.inner_lr = net, loss, inner_lr
        self.inner_steps, self.first_order = inner_steps, first_order
        self.outer_optim = torch.optim.Adam(self.parameters(), lr=outer_lr, fused=True)
        self.compiled = None  # `meta_gradient` of any learner: a deep copy trains itself with it

    def task_losses(self, x: Tensor, y: Tensor, fast: Fast) -> Tensor:
        """The loss of every task at its points x and y, with its own fast weights: (tasks,).

        Raises a `ValueError` for predictions that are not shaped like y, which PyTorch might
        broadcast, and for a loss that is not one number a task.
        """
        pred = self.net(x, fast)
        if pred.shape != y.shape:
            raise ValueError(f"predictions are {tuple(pred.shape)}, targets {tuple(y.shape)}")
        loss = self.loss(pred, y)
        if loss.shape != y.shape[:1]:
            raise ValueError(f"the loss must be (tasks,), one number a task: {tuple(loss.shape)}")
        return loss

    def adapt(self, k_x: Tensor, k_y: Tensor, steps: int) -> list[Fast]:
        """The inner loop: `steps` gradient steps on the support loss of every task.

        Support points k_x and k_y are (tasks, K, 1). Returns the fast weights after 0, 1, …,
        `steps` steps, each w_1 (tasks, 40, 1), b_1 (tasks, 40), and so on. Gradients flow through
        them to θ; with `first_order`, or under `torch.no_grad`, no second derivatives do.
        """
        if steps < 0:
            raise ValueError(f"steps must be at least 0, not {steps}")
        second_order = torch.is_grad_enabled() and not self.first_order
        with torch.enable_grad():
            fast = self.net.expand(len(k_x))  # line 4, for all tasks at once
            trajectory = [fast]
            for _ in range(steps):
                # Line 5. Tasks share no fast weights: one call gives the gradient of every task.
                # `create_graph` lets line 8 differentiate through it.
                loss = self.task_losses(k_x, k_y, fast).sum()
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=second_order)
                # Line 6: θ' = θ − α ∇L(θ)
                pairs = zip(fast.items(), grads, strict=True)
                fast = {name: w - self.inner_lr * g for (name, w), g in pairs}
                trajectory.append(fast)
        return trajectory

    def query_loss(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> Tensor:
        """L(θ'), the query loss of every task after adaptation to its support points: (tasks,)."""
        fast = self.adapt(k_x, k_y, self.inner_steps)[-1]
        return self.task_losses(q_x, q_y, fast)

    def meta_gradient(self, *batch: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sum over tasks of the query losses of k_x, k_y, q_x, q_y, and its gradient in θ.

        The gradient has the order of `parameters()`.
        """
        loss = self.query_loss(*batch).sum()
        return loss.detach(), torch.autograd.grad(loss, list(self.parameters()))

    def forward(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> float:
        """Train: one iteration of the outer loop.

        Support points k_x and k_y are (tasks, K, 1), query points q_x and q_y (tasks, Q, 1).
        Returns the mean over tasks of the query losses before the outer step.
        """
        gradient = partial(self.compiled, self) if self.compiled else self.meta_gradient
        results = [gradient(*chunk) for chunk in chunks(k_x, k_y, q_x, q_y)]
        losses, gradients = zip(*results, strict=True)
        for p, *parts in zip(self.parameters(), *gradients, strict=True):
            if not p.is_contiguous():  # the fused Adam pairs p and its gradient in memory
                p.data = p.data.contiguous()
            p.grad = reduce(torch.add, parts).contiguous()
        self.outer_optim.step()  # line 8
        return sum(loss.item() for loss in losses) / len(k_x)

    def compile_gradient(self, *batch: Tensor) -> None:
        """Compile the meta-gradient, which makes training faster.

        It is compiled now, and again when shapes or settings change, up to 256 times. On the first
        CHUNK tasks of `batch` (k_x, k_y, q_x, q_y), copies of this learner compare it with the
        plain one. Raises a `CompileError` if it can't be compiled, and if they differ by 0.1 %, as
        with random numbers, or a `torch.autograd.Function`, which loses second derivatives.
        """
        if torch.__version__ < (2, 13):
            raise CompileError(f"it needs PyTorch 2.13 or newer, not {torch.__version__}")
        torch._dynamo.config.trace_autograd_ops = True  # the gradients inside of it, too
        on_cpu = batch[0].device.type == "cpu"
        options = {"cpp_wrapper": True, "memory_planning": True} if on_cpu else {}  # a fifth faster
        settings = {"fullgraph": True, "dynamic": False, "recompile_limit": 256}
        plain = type(self).meta_gradient
        optimized = torch.compile(plain, options=options, **settings)

        def compiled(meta: Meta, *chunk: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            try:
                return optimized(meta, *chunk)
            except torch._dynamo.exc.FailOnRecompileLimitHit as error:
                why = "keep a number that changes, such as a step size, in a tensor or a buffer"
                raise CompileError(f"256 compilations were not enough: {why}") from error
            except torch._dynamo.exc.TorchDynamoException as error:  # no C++ compiler, for example
                raise CompileError(str(error).splitlines()[0]) from error

        chunk = next(chunks(*batch))
        with torch.random.fork_rng([] if on_cpu else [chunk[0].device]):
            expected, gradient = (
                torch.cat([g.flatten() for g in function(copy.deepcopy(self), *chunk)[1]])
                for function in (plain, compiled)
            )
        error, size = (gradient - expected).norm(), expected.norm()
        if not size.isfinite():
            raise CompileError("the plain gradient is not finite: nothing to compare with")
        if not error <= 1e-3 * size:
            raise CompileError(f"the compiled gradient has an error of {error / size:.1%}")
        self.compiled = compiled


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same tensors in parts of at most CHUNK tasks; they must have the same number of tasks."""
    if len(tensors[0]) <= CHUNK:
        return iter([tensors])  # sooner than by splitting
    return zip(*(tensor.split(CHUNK) for tensor in tensors), strict=True)
