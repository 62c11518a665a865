"""MAML (Finn, Abbeel and Levine, ICML 2017): Algorithm 1 with the exact second-order gradient.

`Meta.adapt` is the inner loop and calling a `Meta` is one iteration of the outer loop. Both work on a
whole meta-batch at once: every task has fast weights of its own, stacked along a leading dimension.
"""

import gc
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim.adam import adam

from net import InputError, Net, load, save


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
        for parameter in self.net.parameters():  # Adam makes this in its first step: too late to load it, or to compile
            moments = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            self.outer_optim.state[parameter] = {"step": torch.zeros((), device=device), **moments}

    def adapt(
        self, k_x: Tensor, k_y: Tensor, steps: int, weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The inner loop: `steps` gradient steps on the support loss of every task in the batch.

        Args:
            k_x, k_y: support points, (tasks, K, 1), or of one task, (K, 1).
            steps: number of gradient steps.
            weights: fast weights to go on from; the parameters themselves unless given.

        Returns:
            The fast weights of every task: w_1 (tasks, 40, 1), b_1 (tasks, 40), and so on. Gradients flow
            through them to the parameters; under `torch.no_grad` they are plain tensors.
        """
        recording = torch.is_grad_enabled()
        weights = dict(weights or self.net.expand(*k_x.shape[:-2]))  # line 4, for all tasks at once
        for _ in range(steps):
            if not recording:
                weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
            # Line 5. A task's loss depends on its own fast weights alone, so that one call gives every task
            # its own gradient. −α goes in as the factor of the losses: scaling the gradients costs more.
            with torch.enable_grad():
                loss, _ = self.net(k_x, k_y, weights)  # (tasks,)
                factor = torch.full_like(loss, -self.inner_lr)
                second_order = recording and not self.first_order
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

    @torch.no_grad()
    def outer_step(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> Tensor:
        """Line 8: an Adam step on the meta-gradient. Returns the sum of the query losses as it was before."""
        with torch.enable_grad():
            loss, gradients = self.meta_gradient(k_x, k_y, q_x, q_y)
        (parameters, exp_avgs, exp_avg_sqs, steps), settings = self._adam_arguments()
        adam(parameters, gradients, exp_avgs, exp_avg_sqs, [], steps, fused=True, **settings)
        return loss

    def __call__(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> float:
        """One iteration of the outer loop.

        Args:
            k_x, k_y: support points, (tasks, K, 1).
            q_x, q_y: query points, (tasks, Q, 1).

        Returns:
            The mean over tasks of the query loss after adaptation, as it was before the outer step.
        """
        return self.outer_step(k_x, k_y, q_x, q_y).item() / k_x.shape[0]

    def compile(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> None:
        """Put one compiled graph, for meta-batches of the shapes of this one, in the place of `outer_step`.

        `torch.compile` can't differentiate twice through what it compiles. So `make_fx` runs `meta_gradient` once and
        records its operations, those of both gradients included; what gets compiled needs no autograd any more.
        The settings and the state tensors of `outer_optim` are fixed from here on.

        Raises:
            InputError: this machine can't compile, for want of a working C++ compiler, say.
        """
        batch = k_x, k_y, q_x, q_y
        products = {torch.ops.aten.bmm.default: _bmm, torch.ops.aten.baddbmm.default: _baddbmm}
        graph = make_fx(lambda *batch: self.meta_gradient(*batch), {} if k_x.is_cuda else products)(*batch)
        (parameters, exp_avgs, exp_avg_sqs, steps), settings = self._adam_arguments()

        def outer_step(*batch: Tensor) -> Tensor:
            loss, gradients = graph(*batch)
            # The fused kernel can't be traced, and the other corrects the bias in the type of the step counts: float32.
            counts = [step.double() for step in steps]
            adam(parameters, gradients, exp_avgs, exp_avg_sqs, [], counts, foreach=False, **settings)
            torch._foreach_copy_(steps, counts)
            return loss

        state = [*parameters, *exp_avgs, *exp_avg_sqs, *steps]
        before = [tensor.detach().clone() for tensor in state]
        for tensor in state:
            torch._dynamo.mark_static_address(tensor)  # else what is changed in place keeps CUDA graphs from being used
        # Without Dynamo's guards it would be 7 % faster, and take the graph of one `Meta` for that of another.
        options = {"triton.cudagraphs": True} if k_x.is_cuda else {"cpp_wrapper": True}
        compiled = torch.compile(torch.no_grad()(outer_step), fullgraph=True, dynamic=False, options=options)
        try:
            compiled(*batch)
        except RuntimeError as error:  # what PyTorch's compilers raise, whatever failed
            raise InputError(f"--compile failed: {' '.join(str(error).splitlines()[:2])}") from error
        with torch.no_grad():
            torch._foreach_copy_(state, before)
        self.outer_step = compiled
        gc.freeze()  # the compiler leaves many objects: to look through them again and again takes 5 % of the time

    def save_weights(self, path: str | Path) -> None:
        """Write the parameters to `path`, a `torch.save` of the `state_dict`. An `OSError` if that can't be done."""
        save(path, self.net.Param)

    def load_weights(self, path: str | Path) -> None:
        """Copy the weights in `path` into the parameters, which stay the same objects.

        Raises:
            OSError: the file can't be read.
            InputError: it does not hold finite weights of this net. The parameters are as they were.
        """
        self.net.set_Param(load(path, like=self.net.Param))

    def _adam_arguments(self) -> tuple[list[list[Tensor]], dict[str, float]]:
        """The parameters with their state in `outer_optim`, and its settings, for PyTorch's `adam`.

        That is the function behind `outer_optim.step`. It is called without the bookkeeping around it, which takes
        5 % of an iteration, and would break a compiled graph in two.
        """
        (group,) = self.outer_optim.param_groups
        states = [self.outer_optim.state[parameter] for parameter in group["params"]]
        tensors = [group["params"], *([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))]
        settings = {key: group[key] for key in ("lr", "eps", "weight_decay", "amsgrad", "maximize")}
        return tensors, {"beta1": group["betas"][0], "beta2": group["betas"][1], **settings}


def _bmm(a: Tensor, b: Tensor) -> Tensor:
    """(tasks, n, m), (tasks, m, p) -> (tasks, n, p) in the form that compiles to the fastest code on a CPU."""
    if b.stride(0) == 0:  # θ serves all tasks: one product over all their points
        return (a.flatten(0, 1) @ b[0]).unflatten(0, a.shape[:2])
    if a.shape[2] < 40 or b.shape[2] == 1:  # fewer terms than units, or a column: becomes part of the loops around it
        return (a.unsqueeze(-1) * b.unsqueeze(1)).sum(2)
    return NotImplemented  # as it is


def _baddbmm(c: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return c + torch.bmm(a, b)
