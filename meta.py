"""MAML (Finn, Abbeel and Levine, ICML 2017): Algorithm 1 with the exact second-order gradient.

`Meta.adapt` is the inner loop, and calling a `Meta` is one iteration of the outer loop. Both work on a
whole meta-batch at once: every task has fast weights of its own, stacked along a leading dimension.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

from net import Net


class Meta:
    """A meta-learner: an initialization θ for `Net`, and the Adam that moves it.

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
        self, k_x: Tensor, k_y: Tensor, steps: int, weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The inner loop: `steps` gradient steps on the support loss of every task.

        Args:
            k_x, k_y: support points, (tasks, K, 1).
            weights: fast weights from an earlier call to go on from; the parameters themselves unless given.

        Returns:
            The fast weights of every task: w_1 (tasks, 40, 1), b_1 (tasks, 40), and so on. Gradients flow
            through them to the parameters.
        """
        weights = weights or self.net.expand(len(k_x))  # line 4, for all tasks at once
        for _ in range(steps):
            loss, _ = self.net(k_x, k_y, weights)  # (tasks,)
            # Line 5. A task's loss depends on its own fast weights alone, so the gradient of
            # the sum is that of each. `create_graph` lets line 8 differentiate through it.
            fast = list(weights.values())
            gradients = torch.autograd.grad(loss.sum(), fast, create_graph=not self.first_order)
            # Line 6: θ' = θ − α ∇L(θ)
            pairs = zip(weights.items(), gradients, strict=True)
            weights = {name: w - self.inner_lr * g for (name, w), g in pairs}
        return weights

    def query_loss(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> Tensor:
        """L(θ'), the query loss of every task after adaptation to its support points: (tasks,)."""
        loss, _ = self.net(q_x, q_y, self.adapt(k_x, k_y, self.inner_steps))
        return loss

    def meta_gradient(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sum over tasks of the query losses, and its gradient in the parameters θ."""
        loss = self.query_loss(k_x, k_y, q_x, q_y).sum()
        return loss.detach(), torch.autograd.grad(loss, list(self.net.Param.values()))

    def outer_step(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> Tensor:
        """Line 8: an Adam step on the meta-gradient. Returns the sum of the query losses as it was before."""
        loss, gradients = self.meta_gradient(k_x, k_y, q_x, q_y)
        for parameter, gradient in zip(self.net.Param.values(), gradients, strict=True):
            parameter.grad = gradient
        self.outer_optim.step()
        return loss

    def __call__(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> float:
        """One iteration of the outer loop. Returns the mean over tasks of the query losses before its outer step."""
        return self.outer_step(k_x, k_y, q_x, q_y).item() / len(k_x)

    def compile(self) -> None:
        """Replace `outer_step` by one that the next iteration compiles, Adam inside: the more inner steps, the longer.

        That raises a `torch._dynamo.exc.TorchDynamoException` where it fails, for want of a C++ compiler, say.
        The settings and the state of `outer_optim` are built into it: one that is loaded later would be ignored.
        """
        torch._dynamo.config.trace_autograd_ops = True  # compile `torch.autograd.grad` as part of the whole
        (group,) = self.outer_optim.param_groups
        settings = {name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")}
        settings["beta1"], settings["beta2"] = group["betas"]
        states = [self.outer_optim.state[parameter] for parameter in self.net.Param.values()]
        for state, parameter in zip(states, self.net.Param.values(), strict=True):
            if not state:  # Adam makes it in its first step, which is to be compiled
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        exp_avgs, exp_avg_sqs, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))

        def outer_step(*batch: Tensor) -> Tensor:
            loss, gradients = self.meta_gradient(*batch)
            with torch.no_grad():  # `outer_optim.step` can't be compiled as a part of this, the function behind it can
                counts = [step.double() for step in steps]  # it corrects the bias in their type: float32 is too coarse
                parameters = list(self.net.Param.values())
                adam(parameters, gradients, exp_avgs, exp_avg_sqs, [], counts, foreach=False, **settings)
                torch._foreach_copy_(steps, counts)
            return loss

        options = {} if self.net.w_1.is_cuda else {"cpp_wrapper": True, "memory_planning": True}  # a sixth faster
        self.outer_step = torch.compile(outer_step, fullgraph=True, dynamic=False, options=options)
