"""J by its definition: sample by sample and token by token, with the whole model's own logits in float64."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from entrostat.learner.batching import Sample
from entrostat.learner.entropy import clamped_entropy
from entrostat.learner.objective import Objective
from entrostat.learner.policy import Policy
from entrostat.protocol.entropy_settings import ClampedEntropy, SmoothedTokens, TopEntropyTokens
from entrostat.protocol.learner_settings import Cispo, ClipCov, Gspo, KlCov, PpoClip

Token = tuple[int, int]  # sample of the order, place in its response


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a policy says of one sample's response, `[T]` each."""

    logprob: Tensor
    entropy: Tensor
    clamped: Tensor


def said(policy: Policy, sample: Sample, wanted: Objective) -> Said:
    assert isinstance(wanted.estimator, ClampedEntropy)
    ids = torch.tensor(sample.tokens[None], dtype=torch.int64)
    table = policy.model(input_ids=ids).logits[0].double() / wanted.temperature
    table = table[sample.prompt_length - 1 : -1]
    logs = table.log_softmax(-1)
    drawn = ids[0, sample.prompt_length :]
    return Said(
        logprob=logs[torch.arange(len(drawn)), drawn],
        entropy=-(logs.exp() * logs).sum(-1),
        clamped=clamped_entropy(table, wanted.estimator.drop_fraction),
    )


def said_of_all(policy: Policy, samples: Sequence[Sample], wanted: Objective) -> dict[int, Said]:
    """Without gradient, by sample."""
    with torch.no_grad():
        return {one.index: said(policy, one, wanted) for one in samples}


def objective_by_definition(
    policy: Policy,
    old: dict[int, Said],
    pulled: dict[int, Said],
    order: Sequence[Sample],
    part: Sequence[Sample],
    wanted: Objective,
    seed: int,
) -> Tensor:
    """J of one step on the samples `part` of the order.

    `old` is what the policy before the order's first update says, `pulled` what the reference does.
    """
    settings = wanted.learner
    new = {one.index: said(policy, one, wanted) for one in part}
    counting = [one for one in order if one.counts and not too_far(one, old[one.index], settings.sequence_mask)]
    tokens = chosen(counting, old, settings.policy_tokens)
    singled = singled_out(counting, old, tokens, wanted, seed)
    with_bonus = bonus_tokens(order, old, wanted)
    here = {one.index for one in part}
    mine = sorted(token for token in tokens if token[0] in here)
    of_sample = {i: [t for s, t in mine if s == i] for i in here if any(s == i for s, _ in mine)}
    total = torch.zeros((), dtype=torch.float64)
    samples = {one.index: one for one in order}
    for i, places in of_sample.items():
        for t in places:
            now = new[i].logprob[t]
            value = policy_value(samples[i], old[i], new[i], t, (i, t) in singled, wanted)
            if settings.kl_coefficient:
                gap = pulled[i].logprob[t] - now
                value = value - settings.kl_coefficient * (torch.exp(gap) - gap - 1)
            if settings.aggregation == "token_mean":
                total = total + value / len(mine)
            elif settings.aggregation == "sequence_mean":
                total = total + value / (len(of_sample) * len(places))
            else:
                total = total + value / (len(of_sample) * wanted.response_limit)
    every = sum(one.response_length for one in part)
    for one in counting:
        for t in range(one.response_length):
            if one.index in here and (one.index, t) in with_bonus:
                total = total + one.coefficient * bonus_value(new[one.index].clamped[t], wanted) / every
    return total


def policy_value(one: Sample, old: Said, new: Said, t: int, singled: bool, wanted: Objective) -> Tensor:
    """ω · balance · loss of one token."""
    settings, loss = wanted.learner, wanted.learner.loss
    behaviour = torch.tensor(one.behaviour, dtype=torch.float64)
    proximal = old.logprob if settings.proximal == "learner" else behaviour
    advantage = shaped(one, old, t, wanted)
    ratio = torch.exp(new.logprob[t] - proximal[t])
    weight = 1.0
    if settings.proximal == "learner" and settings.importance_cap:
        weight = min(math.exp(float(proximal[t] - behaviour[t])), settings.importance_cap)
    if isinstance(loss, KlCov):
        value = ratio * advantage
        if singled:
            value = value - loss.strength * (new.logprob[t] - proximal[t]).abs()
    elif isinstance(loss, Cispo):
        cut = min(max(float(ratio.detach()), 1 - loss.clip_low), 1 + loss.clip_high)
        value = cut * advantage * new.logprob[t]
    else:
        if isinstance(loss, Gspo):
            whole = math.exp(float((new.logprob.detach() - proximal).mean()))
            ratio = whole * new.logprob[t].exp() / new.logprob[t].detach().exp()
        cut = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
        value = torch.minimum(ratio * advantage, cut * advantage)
        if isinstance(loss, PpoClip) and loss.dual_clip and advantage < 0:
            value = torch.maximum(value, torch.tensor(loss.dual_clip * advantage, dtype=torch.float64))
        if isinstance(loss, ClipCov) and singled:
            value = 0.0 * value.detach()
    return weight * one.balance * value


def shaped(one: Sample, old: Said, t: int, wanted: Objective) -> float:
    settings = wanted.learner
    if not settings.entropy_advantage:
        return one.advantage
    gain = min(
        settings.entropy_advantage * float(old.entropy[t]), abs(one.advantage) / settings.entropy_advantage_bound
    )
    return one.advantage + gain


def too_far(one: Sample, old: Said, limit: float) -> bool:
    return bool(limit) and float(np.abs(old.logprob.numpy() - one.behaviour).mean()) > limit


def chosen(counting: Sequence[Sample], old: dict[int, Said], share: float) -> set[Token]:
    tokens = [(one.index, t) for one in counting if one.in_policy for t in range(one.response_length)]
    ranked = sorted(tokens, key=lambda token: -float(old[token[0]].entropy[token[1]]))
    return set(ranked[: math.ceil(share * len(tokens))])


def singled_out(
    counting: Sequence[Sample], old: dict[int, Said], tokens: set[Token], wanted: Objective, seed: int
) -> set[Token]:
    loss = wanted.learner.loss
    if not isinstance(loss, ClipCov | KlCov):
        return set()
    samples, ordered = {one.index: one for one in counting}, sorted(tokens)
    advantage = {(i, t): shaped(samples[i], old[i], t, wanted) for i, t in ordered}
    logprob = {(i, t): float(old[i].logprob[t]) for i, t in ordered}
    mean_a, mean_l = np.mean(list(advantage.values())), np.mean(list(logprob.values()))
    covariance = {token: (advantage[token] - mean_a) * (logprob[token] - mean_l) for token in ordered}
    count = math.ceil(loss.share * len(ordered))
    if isinstance(loss, KlCov):
        return set(sorted(ordered, key=lambda token: -covariance[token])[:count])
    within = [token for token in ordered if loss.covariance_low < covariance[token] < loss.covariance_high]
    if wanted.learner.proximal == "behaviour":
        ratio = {(i, t): math.exp(logprob[i, t] - samples[i].behaviour[t]) for i, t in within}
        clipped = {
            token
            for token in within
            if (ratio[token] > 1 + loss.clip_high and advantage[token] > 0)
            or (ratio[token] < 1 - loss.clip_low and advantage[token] < 0)
        }
        within = [token for token in within if token not in clipped]
    lot = np.random.default_rng(seed).permutation(len(within))[:count]
    return {within[i] for i in lot}


def bonus_tokens(order: Sequence[Sample], old: dict[int, Said], wanted: Objective) -> set[Token]:
    tokens = [(one.index, t) for one in order for t in range(one.response_length)]
    if not isinstance(wanted.tokens, TopEntropyTokens):
        return set(tokens)
    ranked = sorted(tokens, key=lambda token: -float(old[token[0]].entropy[token[1]]))
    return set(ranked[: math.ceil(wanted.tokens.share * len(tokens))])


def bonus_value(entropy: Tensor, wanted: Objective) -> Tensor:
    if not isinstance(wanted.tokens, SmoothedTokens) or math.isnan(wanted.usual_entropy):
        return entropy
    low, high = wanted.tokens.low * wanted.usual_entropy, wanted.tokens.high * wanted.usual_entropy
    return entropy if low <= float(entropy.detach()) <= high else entropy - wanted.tokens.penalty
