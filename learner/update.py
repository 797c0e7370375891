"""The gradient of one optimizer step, and everything that is measured on the way.

    J = (1/N_A) Σ m ω b · L  +  (1/N_H) Σ m λ_q · H̃  −  β (1/N_A) Σ m · k3

summed over the response tokens of the step's samples. L is the policy loss of the settings (losses.py), ω the
importance weight, b the balance of positive and negative samples. m is 0 for rejected samples, which lose every term.
In the first and the last term it is 0 too for groups that came along for their bonus alone and for tokens that are not
chosen, and N_A counts the tokens with m = 1 there; in the entropy term it is 0 for tokens that the bonus leaves out.
N_H counts all tokens, so that the entropy term stays in step with the controller's weights, whose token-weighted mean
over the order is at most 1. Instead of 1/N_A the first and the last term may have another aggregation (terms.py); the
entropy term always is a token mean. It carries no importance weight and no clip: the right weight would be a ratio of
whole prefixes. ∇ of the state distribution is left out too, as in the papers.

The ratio in L is against π_prox, the policy before the order's first update: with one step per order it is 1 and
clipping never acts. In an order's first step π_prox is taken from the gradient pass itself and not from the survey,
whose log-probs differ from it by rounding: the penalty of KL-Cov, β|log π_θ − log π_prox|, would make of that a
gradient of ±β by chance.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from entrostat.learner.batching import Denominators, Sample, denominators, padding_share
from entrostat.learner.forward import PerToken, anchor, joined, learn, number, observed, plan, prompts_of
from entrostat.learner.microbatch import Responses, collate, part
from entrostat.learner.objective import Objective
from entrostat.learner.policy import Policy
from entrostat.learner.rows import HeadOutput
from entrostat.learner.survey import Settled, Survey, settled_by
from entrostat.learner.terms import Cuts, Terms, finite, shares_of, terms_of
from entrostat.protocol.errors import NumericsError


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What `accumulate` found."""

    terms: Terms
    cuts: Cuts
    tokens: PerToken  # the micro-batches one after another
    denominators: Denominators
    padding_share: float


def accumulate(
    policy: Policy,
    reference: Policy | None,
    samples: Sequence[Sample],
    objective: Objective,
    where: str,
    survey: Survey | None = None,
    *,
    unmoved: bool = False,
) -> Measured:
    """Adds the gradient of −J over all samples to the policy's parameters, micro-batch by micro-batch.

    Every rank is given all samples, counts the denominators of all and computes its share; what is found is of all.

    Args:
        policy: the one to be updated.
        reference: where the KL term pulls to; needed when `kl_coefficient` is above 0.
        samples: those of the step.
        objective: what is maximised.
        where: names the step in errors.
        survey: of the order that the samples are from, where the objective needs one.
        unmoved: no update of the order came before, so that the policy is π_prox.

    Raises:
        NumericsError: a coefficient or a term of J is not finite, or there is no response token.
    """
    count = denominators(samples) if survey is None else survey.denominators(samples)
    if not count.response_tokens:
        raise NumericsError(f"{where}: the order holds no response token, so there is nothing to learn from")
    _check_coefficients(samples, where)
    plans = plan(policy, reference, samples, objective)
    totals = torch.zeros(3, dtype=torch.float64, device=policy.device)
    cuts = torch.zeros(3, dtype=torch.int64, device=policy.device)
    pieces: list[PerToken] = []
    for block in plans[policy.ranks.number]:
        ours, theirs = prompts_of(policy, block), None if reference is None else prompts_of(reference, block)
        for chosen, counts in block.rounds():
            batch = collate(chosen, block, device=policy.device, dtype=number(policy.dtype))
            pulled = None if reference is None else anchor(reference, theirs, batch, objective)
            settled = None if survey is None else survey.settled_of(chosen, policy.device)
            loss = _Loss(objective, count, batch.responses, settled, pulled, unmoved=unmoved, counts=counts)
            now = learn(policy, ours, batch, objective, loss)
            totals += loss.terms
            cuts += loss.cuts
            pieces.append(observed(now, pulled, batch.responses, counts=counts))
        if ours is not None:
            ours.backward()
    tokens, clipped, capped = policy.ranks.total(cuts).tolist()
    return Measured(
        terms=finite(policy.ranks.total(totals).tolist(), where),
        cuts=Cuts(tokens=tokens, clipped=clipped, capped=capped),
        tokens=joined(pieces, policy.ranks),
        denominators=count,
        padding_share=padding_share(chain.from_iterable(plans)),
    )


class _Loss:
    """−J of a micro-batch, some of its response tokens at a time, and what its terms add up to."""

    def __init__(
        self,
        objective: Objective,
        count: Denominators,
        responses: Responses,
        settled: Settled | None,
        reference: Tensor | None,
        *,
        unmoved: bool,
        counts: bool,
    ) -> None:
        self._objective, self._count, self._responses = objective, count, responses
        self._settled, self._reference = settled, reference
        self._unmoved, self._counts = unmoved, counts
        mask = responses.policy if settled is None else settled.policy
        self._shares = shares_of(mask, responses.row, objective.learner, count, objective.response_limit)
        self.terms = torch.zeros(3, dtype=torch.float64, device=mask.device)
        self.cuts = torch.zeros(3, dtype=torch.int64, device=mask.device)

    def __call__(self, now: HeadOutput, tokens: slice) -> Tensor:
        """The loss of these tokens, summed."""
        responses = part(self._responses, tokens)
        settled = settled_by(now, responses) if self._settled is None else part(self._settled, tokens)
        if self._unmoved:
            settled = replace(settled, logprob=now.logprob.detach())
        reference = None if self._reference is None else self._reference[tokens]
        terms, cuts = terms_of(now, settled, reference, responses, self._shares[tokens], self._objective, self._count)
        if not self._counts:
            return 0.0 * terms.sum()
        self.terms += terms.detach()
        self.cuts += cuts
        return -terms.sum()


def _check_coefficients(samples: Sequence[Sample], where: str) -> None:
    for sample in samples:
        if not math.isfinite(sample.coefficient):
            raise NumericsError(
                f"{where}: the bonus term would be weighted by λ_q = {sample.coefficient} in sample {sample.index} of "
                "the order; expected a finite number. The weights are unchanged; look at the control law's last "
                "measurements in the step reports"
            )
