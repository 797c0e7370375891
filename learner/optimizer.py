"""AdamW on float32 weights, with gradient clipping and a learning rate that is a function of the step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from entrostat.learner.ranks import ALONE, Ranks
from entrostat.protocol.errors import NumericsError
from entrostat.protocol.learner_settings import LearnerSettings

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, for each weight


def learning_rate(step: int, total_steps: int, settings: LearnerSettings) -> float:
    """The rate of the step that makes version `step` (the first makes 1).

    It rises linearly over `warmup_steps`, reaching `lr` at the last of them; then it is constant, or falls linearly or
    as half a cosine to `final_lr_ratio · lr` at `total_steps`, where it stays.
    """
    if step < settings.warmup_steps:
        return settings.lr * step / settings.warmup_steps
    span = max(total_steps - settings.warmup_steps, 1)
    progress = min((step - settings.warmup_steps) / span, 1.0)
    if settings.schedule == "linear":
        kept = 1.0 - progress
    elif settings.schedule == "cosine":
        kept = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        return settings.lr
    return settings.lr * (settings.final_lr_ratio + (1.0 - settings.final_lr_ratio) * kept)


class Optimizer:
    """AdamW over a model's parameters.

    Parameters in bfloat16 get a float32 master each: an update is often smaller than bfloat16 can resolve. The master
    takes the gradient of every micro-batch as it is made (so that they add up in float32) and is rounded into the
    parameter after the step: what is trained, published and scored are the same bfloat16 weights. Over several ranks
    each holds its part of weights, moments and gradients, all of them float32 (sharding.py).
    """

    def __init__(
        self, parameters: Iterable[tuple[str, Tensor]], settings: LearnerSettings, ranks: Ranks = ALONE
    ) -> None:
        self._ranks = ranks
        trained = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self._names = [name for name, _ in trained]
        self._parameters = [parameter for _, parameter in trained]
        self._weights = [_master(parameter) for parameter in self._parameters]
        self._clip = settings.gradient_clip
        self._adam = torch.optim.AdamW(
            self._weights,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def step(self, rate: float, where: str) -> float:
        """One step at learning rate `rate` with the gradients there are; returns their norm before clipping.

        Raises:
            NumericsError: a gradient is not finite. Weights and moments stay as they were.
        """
        norm_tensor = torch.nn.utils.get_total_norm([w.grad for w in self._weights if w.grad is not None])
        if isinstance(norm_tensor, DTensor):
            norm_tensor = norm_tensor.full_tensor()
        norm = float(norm_tensor)
        if not math.isfinite(norm):
            culprit = self._first_bad()
            self.clear()
            raise NumericsError(
                f"{where}: the gradient is not finite ({norm}), first in {culprit}. The weights are unchanged; "
                "lower learner.lr or the entropy coefficient's ceiling, and look at the samples of this step"
            )
        torch.nn.utils.clip_grads_with_norm_(self._weights, self._clip, norm_tensor)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        with torch.no_grad():
            for parameter, weight in zip(self._parameters, self._weights, strict=True):
                if weight is not parameter:
                    parameter.copy_(weight)
        self.clear()
        return norm

    def gradients(self) -> list[Tensor]:
        """Copies of the gradients there are, one for each parameter; zeros where there is none."""
        return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in self._weights]

    @property
    def has_moments(self) -> bool:
        """Whether a step was made: before the first there is no metric."""
        return any(float(state["step"]) > 0 for state in self._adam.state.values() if state)

    def inner(self, one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
        """`⟨P a, b⟩` with `P = 1 / (√v̂ + ε)`, v̂ the second moments, corrected for their start, before the next step.

        Momentum, learning rate, weight decay and clipping are left out: it is how far Adam's metric carries a step
        along `a` in the direction of `b`. `has_moments` must hold; a weight that never had a gradient takes no part.
        """
        total = 0.0
        beta, epsilon = self._adam.param_groups[0]["betas"][1], self._adam.param_groups[0]["eps"]
        for weight, a, b in zip(self._weights, one, other, strict=True):
            state = self._adam.state.get(weight)
            if not state or not float(state["step"]):
                continue
            moment = _part(state["exp_avg_sq"]).double() / (1.0 - beta ** float(state["step"]))
            total += float((_part(a).double() * _part(b).double() / (moment.sqrt() + epsilon)).sum())
        return float(self._ranks.total(torch.tensor(total, dtype=torch.float64)))

    def clear(self) -> None:
        """Forgets all gradients."""
        for tensor in (*self._weights, *self._parameters):
            tensor.grad = None

    def state(self) -> dict[str, Any]:
        """Moments and masters, as plain containers of tensors."""
        return {"adam": self._adam.state_dict(), "masters": [weight.detach() for weight in self._masters()]}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` returned for the same model."""
        self._adam.load_state_dict(state["adam"])
        with torch.no_grad():
            for weight, saved in zip(self._masters(), state["masters"], strict=True):
                weight.copy_(saved)

    def named(self) -> dict[str, Tensor]:
        """Weights and moments by their parameters' names, live: what is written into them is what the next step uses.

        Moments that no step has made yet are made, as zeros.
        """
        found: dict[str, Tensor] = {}
        for name, weight in zip(self._names, self._weights, strict=True):
            state = self._adam.state[weight]
            if not state:
                step = torch.zeros((), dtype=torch.float32, device=weight.device)
                state |= {"step": step, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            found[f"weight.{name}"] = weight.detach()
            found |= {f"{kind}.{name}": state[kind].detach() for kind in MOMENTS}
        return found

    def _masters(self) -> list[Tensor]:
        return [weight for weight, own in zip(self._weights, self._parameters, strict=True) if weight is not own]

    def _first_bad(self) -> str:
        for name, weight in zip(self._names, self._weights, strict=True):
            bad = weight.grad is not None and not bool(_part(weight.grad).isfinite().all())
            if self._ranks.total(torch.tensor(int(bad))):
                return name
        return "their sum"


def _part(tensor: Tensor) -> Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _master(parameter: Tensor) -> Tensor:
    """The parameter itself, or for half precision a float32 copy that collects the parameter's gradients."""
    if parameter.dtype not in (torch.bfloat16, torch.float16):
        return parameter
    master = parameter.detach().float().requires_grad_()

    def collect(made: Any) -> None:
        gradient = made.grad.float()
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        made.grad = None

    parameter.register_post_accumulate_grad_hook(collect)
    return master
