"""The chosen methods in words: entropy estimator, law, prompts' weights, filter, policy loss and corrections.

Of settings that stand at their defaults only those are said that name a method.
"""

from collections.abc import Iterator
from typing import TypeAlias

from entrostat.config import RunConfig
from entrostat.controller.coefficient import gives_bonus
from entrostat.protocol.entropy_settings import (
    AllTokens,
    AnchoredLaw,
    BandLaw,
    BangBangLaw,
    ClampedEntropy,
    EntropySettings,
    EstimatorSettings,
    FixedLaw,
    FullEntropy,
    LawSettings,
    NucleusEntropy,
    PiLaw,
    QuadraticLaw,
    SampleBalanceLaw,
    SmoothedTokens,
    ThermostatLaw,
    TokenSettings,
    TopEntropyTokens,
    TopKEntropy,
    WeightSettings,
)
from entrostat.protocol.learner_settings import Cispo, ClipCov, Gspo, KlCov, LearnerSettings, PolicyLoss, PpoClip

Line: TypeAlias = tuple[str, str]  # what, and what about it


def entropy_lines(entropy: EntropySettings) -> Iterator[Line]:
    """What holds the entropy."""
    name = "bonus on" if gives_bonus(entropy.law) else "reported"
    yield name, _estimator(entropy.estimator)
    if entropy.measured == "full":
        yield "law measures", "H over the whole vocabulary, whatever the bonus is on"
    elif entropy.measured == "sampled":
        yield (
            "law measures",
            "the mean −log π of the drawn tokens, π the current policy: unbiased for H on-policy, and noisier",
        )
    yield "law", _law(entropy.law)
    if not gives_bonus(entropy.law):
        return
    if not isinstance(entropy.tokens, AllTokens):
        yield "tokens", _tokens(entropy.tokens)
    yield from _weights(entropy.weight)


def _estimator(estimator: EstimatorSettings) -> str:
    match estimator:
        case ClampedEntropy(drop_fraction=share):
            return f"H̃: entropy without the {share:.0%} of the vocabulary with the smallest logits"
        case FullEntropy():
            return "H: entropy over the whole vocabulary"
        case TopKEntropy(k=k):
            return f"H̃: entropy over the {k:,} most likely tokens, renormalised"
        case NucleusEntropy(mass=mass):
            return f"H̃: entropy over the fewest tokens that hold {mass:.0%} of the probability, renormalised"


def _tokens(tokens: TokenSettings) -> str:
    match tokens:
        case AllTokens():
            return "all"
        case TopEntropyTokens(share=share):
            return f"the bonus is on the {share:.0%} of an order's response tokens with the highest entropy alone"
        case SmoothedTokens(low=low, high=high, penalty=penalty):
            return (
                f"smoothed (EPO): a token outside {low:g} … {high:g} times the usual entropy loses {penalty:g} nats of "
                "its bonus"
            )


def _law(law: LawSettings) -> str:
    match law:
        case FixedLaw(coefficient=0.0):
            return "fixed at 0: no entropy control; expect the entropy to fall as the policy learns"
        case FixedLaw(coefficient=coefficient):
            return f"fixed: a coefficient of {coefficient:g}, whatever the entropy does"
        case BandLaw():
            return (
                f"band (AEnt): from {law.initial:g}, moved only while the entropy is outside "
                f"{law.low:g} … {law.high:g} nats, within {law.floor:g} … {law.ceiling:g}"
            )
        case AnchoredLaw():
            return f"anchored (AER): an integral law towards {law.anchor:g} · H_0, within 0 … {law.ceiling:g}"
        case ThermostatLaw():
            low, high = law.balance * law.floor_ratio, law.balance * law.ceiling_ratio
            return (
                f"thermostat: measures H_0 over {law.anchor_orders} steps without a bonus, then holds "
                f"{law.anchor:g} · H_0 with a coefficient around {law.balance:g}, within {low:g} … {high:g}"
                + _release(law)
            )
        case BangBangLaw():
            return (
                f"bang-bang (Skywork-OR1): {law.delta:g} up below {_target(law)} and down above it, within "
                f"{law.floor:g} … {law.ceiling:g}; the bonus acts only below it"
            )
        case PiLaw():
            return (
                f"pi: {law.proportional:g} × (H* − H) + {law.integral:g} × its sum, H* = {_target(law)}, within "
                f"{law.floor:g} … {law.ceiling:g}; the sum stands still at the ends"
            )
        case QuadraticLaw():
            return (
                f"quadratic (SIREN): a coefficient of {2 * law.strength:g} × (H* − H), H* = {_target(law)}; negative "
                "above it; H is one step old"
            )
        case SampleBalanceLaw():
            return (
                "sample balance (EntroPIC): no bonus; the losses of samples with positive and negative advantage are "
                f"scaled by 1 ± clip({law.proportional:g} × e + {law.integral:g} × its sum, −1, 1), e = H − "
                f"{_target(law)}"
            )


def _release(law: ThermostatLaw) -> str:
    if not law.release_after:
        return ""
    first, last = law.anchor_orders + law.release_after, law.anchor_orders + law.release_after + law.release_orders
    return f"; from step {first} to {last} the target falls to {law.final_anchor:g} · H_0"


def _target(law: BangBangLaw | PiLaw | QuadraticLaw | SampleBalanceLaw) -> str:
    return f"{law.target:g} nats" if law.target else f"{law.anchor:g} · H_0"


def _weights(weight: WeightSettings) -> Iterator[Line]:
    usual = WeightSettings()
    whose = "prompts" if weight.difficulty == "streaming" else "groups"
    if weight.form == "uniform":
        yield "prompts' weights", "all the same"
    else:
        yield (
            "prompts' weights",
            f"{weight.form}: {whose} solved less often than {weight.threshold:.0%} get more",
        )
        if weight.difficulty == "group":
            yield "difficulty", "of the group's own pass rate, at once (AER): minimum, prior and half-life have no part"
        elif weight.minimum != usual.minimum:
            yield "least weight", f"{weight.minimum:g} of the largest"
    if not weight.normalise:
        yield "scale", "raw: the bonus as a whole fades as prompts get solved (AER)"
    if weight.cap != usual.cap:
        yield "largest weight", f"{weight.cap:g}"
    if weight.all_wrong_share != usual.all_wrong_share:
        yield "all-wrong groups", _all_wrong(weight.all_wrong_share)


def _all_wrong(share: float) -> str:
    if share == 0:
        return "get no bonus"
    return "get all of their bonus" if share == 1 else f"get at most {share:.0%} of the bonus"


def filter_lines(config: RunConfig) -> Iterator[Line]:
    """What becomes of groups without an advantage signal."""
    batch = config.batch
    if batch.filter == "none":
        return
    yield (
        "filter",
        f"groups whose rewards are all equal are left out and others sampled: at most {batch.refill:g} × "
        f"{batch.prompts} groups for one step, which is then filled up with them",
    )
    if gives_bonus(config.entropy.law) and config.entropy.weight.all_wrong_share > 0 and batch.prompts > 1:
        yield "all-wrong groups", f"the newest {batch.prompts // 2} all-wrong groups at most come along for their bonus"


def loss_lines(learner: LearnerSettings) -> Iterator[Line]:
    """The policy term, and how it is corrected for samples of other policies."""
    usual = LearnerSettings()
    yield "ratio clipped to" if isinstance(learner.loss, PpoClip) else "policy loss", _loss(learner.loss)
    if learner.advantages == "centred":
        yield "advantages", "reward − the group's mean, not divided by its deviation (Dr.GRPO)"
    elif learner.advantages == "leave_one_out":
        yield "advantages", "reward − the mean of the group's others (RLOO)"
    if learner.aggregation == "sequence_mean":
        yield "policy term", "mean over each sample's tokens, then over samples"
    elif learner.aggregation == "fixed_length":
        yield "policy term", "sum over each sample's tokens over the length limit, then mean over samples"
    if learner.policy_tokens < 1:
        yield "policy tokens", f"the {learner.policy_tokens:.0%} with the highest entropy alone have a policy gradient"
    if learner.entropy_advantage:
        yield (
            "entropy advantage",
            f"A + min({learner.entropy_advantage:g} × H, |A| / {learner.entropy_advantage_bound:g})",
        )
    if learner.minibatches * learner.epochs > 1:
        yield (
            "optimizer steps",
            f"{learner.minibatches * learner.epochs} for each order: {learner.minibatches} minibatches, "
            f"{learner.epochs} times over",
        )
    if learner.proximal == "behaviour":
        yield "ratio against", "the policy that drew the samples, not the one the order starts from"
    if learner.importance_cap == 0:
        yield "importance weight", "none, though the samples are of an older policy"
    elif learner.importance_cap != usual.importance_cap:
        yield "importance weight", f"at most {learner.importance_cap:g}"
    if learner.sequence_mask:
        yield "samples rejected", f"whose mean |log π_prox − log μ| exceeds {learner.sequence_mask:g} nats"
    if learner.measure_balance:
        yield "balance", "the gradients of policy term and bonus are measured apart: a step takes twice the time"


def _loss(loss: PolicyLoss) -> str:
    match loss:
        case PpoClip():
            dual = f"; at most {loss.dual_clip:g} × |A| where A < 0" if loss.dual_clip else ""
            return f"{1 - loss.clip_low:g} … {1 + loss.clip_high:g}{dual}"
        case Gspo():
            return f"GSPO: one ratio for a sequence, clipped to {1 - loss.clip_low:g} … {1 + loss.clip_high:g}"
        case Cispo():
            lower = "" if loss.clip_low >= 1 else f"at least {1 - loss.clip_low:g} and "
            return f"CISPO: the ratio is a weight of {lower}at most {1 + loss.clip_high:g}"
        case ClipCov():
            return (
                f"Clip-Cov: clipped to {1 - loss.clip_low:g} … {1 + loss.clip_high:g}, without the gradient of a "
                f"random {loss.share:g} of tokens, of covariance {loss.covariance_low:g} … {loss.covariance_high:g}"
            )
        case KlCov():
            return f"KL-Cov: {loss.strength:g} × KL on the {loss.share:g} of tokens with the highest covariance"


def method_notes(config: RunConfig) -> Iterator[str]:
    """What of the chosen methods does nothing, or not what one would think."""
    learner, law, entropy = config.learner, config.entropy.law, config.entropy
    if learner.minibatches * learner.epochs == 1 and learner.proximal == "learner":
        idle = _idle(learner.loss)
        if idle:
            yield f"one optimizer step for each order: the ratio is 1 everywhere, so {idle} nothing"
    if not gives_bonus(law) and (entropy.weight != WeightSettings() or not isinstance(entropy.tokens, AllTokens)):
        yield "the law gives no bonus: entropy.weight and entropy.tokens have nothing to share out"
    if isinstance(entropy.tokens, SmoothedTokens):
        yield "EPO's penalty is a constant: it lowers the reported bonus, has no gradient, and does not move the policy"
    if isinstance(entropy.tokens, TopEntropyTokens) and gives_bonus(law) and not isinstance(law, FixedLaw):
        yield (
            "the law is told the mean over all response tokens, and the bonus is on "
            f"{entropy.tokens.share:.0%} of them: what is held at its target is not what carries the bonus (unlike "
            "SIREN)"
        )
    if _anchor(law) > 1:
        yield f"anchor = {_anchor(law):g} sets the target above the entropy the policy starts with"
    if isinstance(law, BangBangLaw):
        yield "a bang-bang law moves by the same step for any error: expect the entropy to swing around its target"
    if config.batch.filter != "none" and learner.truncated == "penalise":
        yield "the filter looks at rewards before truncation_penalty: a group that differs by it alone is left out"


def _anchor(law: LawSettings) -> float:
    """The share of H_0 that a law aims at; 0 for one that does not."""
    match law:
        case FixedLaw() | BandLaw():
            return 0.0
        case ThermostatLaw() | AnchoredLaw():
            return law.anchor
        case _:
            return 0.0 if law.target else law.anchor


def _idle(loss: PolicyLoss) -> str:
    """What of a loss acts on ratios other than 1 alone; empty where the loss is plain clipping."""
    if isinstance(loss, KlCov):
        return "KL-Cov's penalty does"
    if isinstance(loss, Gspo | Cispo):
        return f"{'GSPO' if isinstance(loss, Gspo) else 'CISPO'}'s ratio and its bounds do"
    if isinstance(loss, PpoClip):
        parts = ["clip-higher"] if loss.clip_high > loss.clip_low else []
        parts += ["dual clip"] if loss.dual_clip else []
        return f"{' and '.join(parts)} {'do' if len(parts) > 1 else 'does'}" if parts else ""
    return ""
