"""One state, |A| actions, a collapsed and suboptimal start: policy gradients with a full or a clamped entropy bonus.

The toy MDP of AEnt (arXiv 2509.03493) gives |A| = 1e5 and the number of optimal actions; the rest is chosen here. One
action, the trap, holds nearly all of the start's mass and is worth `trap_reward`; the optimal actions are worth 1, all
others 0. A chain of such states whose rewards add up and whose transitions don't depend on the action falls apart into
independent copies of this one, so the horizon is 1. The start is a policy that was trained before: the logits of the
tail are normal with a deviation of 3 nats, so that the lowest third holds 3e-4 of its mass, as measured on the
vocabulary of a language model, and the optimal actions are unlikely but well ranked.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from entrostat.learner.entropy import full_entropy
from entrostat.learner.token_sets import kept_tokens

CURVE_POINTS = 40
BLOCKS = 100
ADAM_BETAS = (0.9, 0.999)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """The MDP and where the policy starts. Action 0 is the trap, 1 … `optimal` are the optimal ones."""

    actions: int = 100_000
    optimal: int = 1
    trap_reward: float = 0.5
    trap_mass: float = 0.98
    spread: float = 3.0  # nats: deviation of the tail's logits
    optimal_rank: float = 0.005  # of |A|: the optimal actions start with the logit of this rank


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """How the policy is improved; the bonus's gradient is always exact, as it is in training."""

    gradient: Literal["exact", "sampled"]
    optimiser: Literal["plain", "adam"]
    rate: float
    steps: int
    samples: int = 32  # actions drawn per step; only with sampled gradients


@dataclass(frozen=True, kw_only=True)
class Bonus:
    """`coefficient · H̃` with the `drop_fraction` smallest logits dropped; a fraction of 0 is the full entropy."""

    coefficient: float = 0.0
    drop_fraction: float = 0.0


def start(problem: Problem, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The first logits and the rewards, `[A]` float32 each."""
    # An id has no meaning. Kept actions that lie together are found twice as fast as scattered ones, and blocks in a
    # random order spare the search for the cut its worst case.
    tail = (torch.randn(problem.actions, generator=generator) * problem.spread).sort(descending=True).values
    blocks = tail.tensor_split(BLOCKS)
    logits = torch.cat([blocks[block] for block in torch.randperm(BLOCKS, generator=generator)])
    optimal = slice(1, problem.optimal + 1)
    logits[optimal] = tail[int(problem.optimal_rank * problem.actions)].item()
    odds = problem.trap_mass / (1.0 - problem.trap_mass)
    logits[0] = logits[1:].logsumexp(0) + math.log(odds)
    rewards = torch.zeros_like(logits)
    rewards[0], rewards[optimal] = problem.trap_reward, 1.0
    return logits, rewards


def exact_gradient(logits: Tensor, rewards: Tensor) -> Tensor:
    """`∂J/∂z_a = π_a (r_a − J)` with `J = Σ π r`, `[A]`."""
    policy = logits.softmax(-1)
    return policy * (rewards - policy @ rewards)


def sampled_gradient(logits: Tensor, rewards: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """REINFORCE over drawn actions, `1/N Σ_i (r_i − b_i) ∇ log π(a_i)`, `[A]`, unbiased.

    `b_i` is the mean reward of the other samples. Then the advantages sum to 0 and with them the terms in −π.
    """
    drawn = torch.multinomial(logits.softmax(-1), samples, replacement=True, generator=generator)
    gained = rewards[drawn]
    advantages = (gained - gained.mean()) * (samples / (samples - 1))
    return torch.zeros_like(logits).index_add_(0, drawn, advantages / samples)


def bonus_gradient(logits: Tensor, drop_fraction: float) -> Tensor:
    """`∂H̃/∂z`, `[A]`: the gradient of `clamped_entropy`, worked out over the kept actions alone, which is faster."""
    keep = kept_tokens(logits[None], drop_fraction)
    actions = torch.arange(len(logits)) if keep is None else keep[0].nonzero().squeeze(1)
    kept = logits.detach().index_select(0, actions).requires_grad_()
    (gradient,) = torch.autograd.grad(full_entropy(kept[None]).sum(), kept)
    return torch.zeros_like(logits).index_copy_(0, actions, gradient)


def climb(problem: Problem, ascent: Ascent, bonus: Bonus, seed: int) -> list[float]:
    """J before the first step and after each of `CURVE_POINTS` equal parts of the steps."""
    generator = torch.Generator().manual_seed(seed)
    logits, rewards = start(problem, generator)
    optimiser = _optimiser(logits, ascent)
    every = ascent.steps // CURVE_POINTS
    curve = [_reward(logits, rewards)]
    for step in range(1, every * CURVE_POINTS + 1):
        if ascent.gradient == "exact":
            logits.grad = exact_gradient(logits, rewards)
        else:
            logits.grad = sampled_gradient(logits, rewards, ascent.samples, generator)
        if bonus.coefficient:
            logits.grad += bonus.coefficient * bonus_gradient(logits, bonus.drop_fraction)
        optimiser.step()
        if step % every == 0:
            curve.append(_reward(logits, rewards))
    return curve


def stationary_reward(problem: Problem, bonus: Bonus) -> float:
    """J where the bonus holds it in the end: `π ∝ exp(r/λ)` over the kept actions, nothing on the others."""
    kept = problem.actions - int(bonus.drop_fraction * problem.actions)
    # Weights relative to an optimal action: exp((r − 1)/λ).
    trap = math.exp((problem.trap_reward - 1.0) / bonus.coefficient)
    others = (kept - problem.optimal - 1) * math.exp(-1.0 / bonus.coefficient)
    return (problem.optimal + problem.trap_reward * trap) / (problem.optimal + trap + others)


def natural_climb(problem: Problem, bonus: Bonus, *, seed: int = 0, steps: int = 80) -> float:
    """J after natural ascent `z ← z + η ∇J_λ / π` in float64; as ηλ = ½, a step halves what is left of the start."""
    logits, rewards = (values.double() for values in start(problem, torch.Generator().manual_seed(seed)))
    rate = 0.5 / bonus.coefficient
    for _ in range(steps):
        gradient = exact_gradient(logits, rewards) + bonus.coefficient * bonus_gradient(logits, bonus.drop_fraction)
        logits = logits + rate * gradient / logits.softmax(-1)
        logits = logits - logits.logsumexp(-1)
    return _reward(logits, rewards)


def _reward(logits: Tensor, rewards: Tensor) -> float:
    return float(logits.softmax(-1) @ rewards)


def _optimiser(logits: Tensor, ascent: Ascent) -> torch.optim.Optimizer:
    if ascent.optimiser == "adam":
        return torch.optim.Adam([logits], lr=ascent.rate, betas=ADAM_BETAS, maximize=True)
    return torch.optim.SGD([logits], lr=ascent.rate, maximize=True)
