"""What an order's optimizer steps maximise, and whether all of the order must be seen before the first of them."""

from dataclasses import dataclass
from math import nan

from entrostat.protocol.entropy_settings import EntropySettings, EstimatorSettings, TokenSettings, TopEntropyTokens
from entrostat.protocol.learner_settings import ClipCov, KlCov, LearnerSettings
from entrostat.protocol.settings import RolloutSettings

EVERY_TOKEN = EntropySettings().tokens
# float32 logits that are held at once: 128 MiB and 1 GiB of them.
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**25, 2**28
RESPONSE_LIMIT = RolloutSettings().max_response_tokens


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is maximised."""

    learner: LearnerSettings
    estimator: EstimatorSettings
    temperature: float  # the rollout's: log-probs and entropies are those of the distribution that was drawn from
    tokens: TokenSettings = EVERY_TOKEN  # which have a bonus
    usual_entropy: float = nan  # nats: what `SmoothedTokens` holds a token's entropy against; NaN: nothing yet
    response_limit: int = RESPONSE_LIMIT  # tokens, what `fixed_length` takes each response for


def steps_per_order(settings: LearnerSettings) -> int:
    """Optimizer steps that an order is taken in, each of its tokens `epochs` times."""
    return settings.minibatches * settings.epochs


def chunk_tokens(settings: LearnerSettings, vocabulary: int, *, on_gpu: bool) -> int:
    """Rows of logits that the head holds at once."""
    return settings.head_chunk_tokens or max(1, (LOGITS_ON_GPU if on_gpu else LOGITS_ON_CPU) // vocabulary)


def needs_survey(objective: Objective) -> bool:
    """Whether something must be known of all tokens before the first update.

    With several steps the proximal log-probs and the reported measurements are those before the first; a share of the
    order's tokens, or a mean over them, can't be known while it passes by; nor which samples N_A counts, when they are
    rejected for what the policy says of them.
    """
    settings = objective.learner
    return (
        steps_per_order(settings) > 1
        or settings.policy_tokens < 1.0
        or settings.sequence_mask > 0.0
        or isinstance(settings.loss, ClipCov | KlCov)
        or isinstance(objective.tokens, TopEntropyTokens)
    )
