"""MAML (Finn, Abbeel and Levine, ICML 2017): Algorithm 1 with the exact second-order gradient.

`Meta.adapt` is the inner loop, and calling a `Meta` is one iteration of the outer loop. Both work on a
whole meta-batch at once: every task has fast weights of its own, stacked along a leading dimension.
"""

import torch
from torch import Tensor
from torch.optim.adam import adam

from net import Net, Weights


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
        device: str = "cpu",
    ) -> None:
        self.inner_lr, self.inner_steps, self.first_order = inner_lr, inner_steps, first_order
        self.net = Net(loss).to(device)
        self.outer_optim = torch.optim.Adam(self.net.parameters(), lr=outer_lr, fused=True)
        for parameter in self.net.parameters():  # the state that Adam would make in its first step
            state = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            self.outer_optim.state[parameter] = {"step": torch.zeros((), dtype=torch.float32, device=device), **state}

    def adapt(self, k_x: Tensor, k_y: Tensor, steps: int, weights: Weights | None = None) -> Weights:
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
            # Line 5. No fast weights are shared, so one call gives the gradient of every task.
            # `create_graph` lets line 8 differentiate through it; `expand` sums the tasks up.
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
        """Line 8: an Adam step on the meta-gradient. Returns the sum of the query losses before the step."""
        loss, gradients = self.meta_gradient(k_x, k_y, q_x, q_y)
        for parameter, gradient in zip(self.net.Param.values(), gradients, strict=True):
            parameter.grad = gradient
        self.outer_optim.step()
        return loss

    def __call__(self, k_x: Tensor, k_y: Tensor, q_x: Tensor, q_y: Tensor) -> float:
        """One iteration of the outer loop. Returns the mean over tasks of the query losses before its outer step."""
        return self.outer_step(k_x, k_y, q_x, q_y).item() / len(k_x)

    def compile(self) -> None:
        """Compile the outer step, Adam included. The next iteration does it, and takes longer with more inner steps.

        If that fails, for example without a C++ compiler, it raises a `torch._dynamo.exc.TorchDynamoException`. The
        learning rates and the tensors of Adam's state are compiled in: load Adam's state before the call.
        """
        torch._dynamo.config.trace_autograd_ops = True  # compile `torch.autograd.grad` as part of the whole
        (group,) = self.outer_optim.param_groups
        settings = {name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")}
        settings["beta1"], settings["beta2"] = group["betas"]
        parameters = list(self.net.Param.values())
        states = [self.outer_optim.state[parameter] for parameter in parameters]
        exp_avgs, exp_avg_sqs, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))

        def outer_step(*batch: Tensor) -> Tensor:
            loss, gradients = self.meta_gradient(*batch)
            with torch.no_grad():  # `outer_optim.step` can't be compiled as a part of this, the function behind it can
                counts = [step.double() for step in steps]  # float32 is too coarse for Adam's bias correction
                adam(parameters, gradients, exp_avgs, exp_avg_sqs, [], counts, foreach=False, **settings)
                torch._foreach_copy_(steps, counts)
            return loss

        options = {} if self.net.w_1.is_cuda else {"cpp_wrapper": True, "memory_planning": True}  # a sixth faster
        self.outer_step = torch.compile(outer_step, fullgraph=True, dynamic=False, options=options)
