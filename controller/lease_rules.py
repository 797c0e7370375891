"""What the lease book grants by."""

import msgspec

from entrostat.controller.coefficient import gives_bonus
from entrostat.protocol.settings import Stations


class LeaseRules(msgspec.Struct, frozen=True, kw_only=True):
    """What the book grants by."""

    batch: int  # B, groups an order consumes
    max_staleness: int  # S, versions
    last_step: int  # of the run: nothing is sampled that no order would consume
    samples: int  # G
    lease_seconds: float
    seed: int
    left_out: int = 0  # at most so many groups without a signal for one order; 0: no filter
    kept: int = 0  # of all-wrong groups that are left out, for their bonus
    fixed: bool = False  # a deterministic run's places
    every: int = 1  # steps between checkpoints


def lease_rules(settings: Stations) -> LeaseRules:
    """A run's rules; all-wrong groups are kept, half a batch of them, where its law has a bonus for them."""
    batch, bonus = settings.batch, gives_bonus(settings.entropy.law)
    return LeaseRules(
        batch=batch.prompts,
        max_staleness=settings.rollout.max_staleness,
        last_step=settings.total_steps,
        samples=settings.rollout.samples_per_prompt,
        lease_seconds=settings.rollout.lease_seconds,
        seed=settings.seed,
        left_out=0 if batch.filter == "none" else int((batch.refill - 1.0) * batch.prompts),
        kept=batch.prompts // 2 if bonus and settings.entropy.weight.all_wrong_share > 0.0 else 0,
        fixed=settings.deterministic,
        every=settings.checkpoint_every,
    )
