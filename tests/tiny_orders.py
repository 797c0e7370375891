"""An order of groups of all kinds for the tiny policy, and the steps it is taken in."""

from typing import Any

import msgspec
import torch

from entrostat.learner.batching import Sample, flatten
from entrostat.learner.objective import Objective
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.policy import Policy
from entrostat.learner.steps import take
from entrostat.protocol.entropy_settings import ClampedEntropy
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import Group, PolicyVersion, TrainOrder
from tests.tiny_policy import make_group, make_order

VERSION = PolicyVersion(branch=0, step=0)
RATE = 1e-3
PARTS = {"minibatches": 3, "epochs": 2}


def objective(**changes: object) -> Objective:
    """Clamped entropy at temperature 0.8, in microbatches that part the groups."""
    learner = msgspec.structs.replace(LearnerSettings(lr=RATE, microbatch_tokens=60), **changes)
    return Objective(learner=learner, estimator=ClampedEntropy(drop_fraction=0.25), temperature=0.8)


def groups_of_all_kinds() -> list[Group]:
    """Mixed rewards, all wrong, one sample truncated; begun at versions 0, 1, 0 and 3."""
    return [
        make_group(0),
        make_group(1, rewards=(0.0, 0.0), started=1),
        make_group(2, rewards=(1.0, 0.0, 0.5), truncated=1),
        make_group(3, rewards=(0.0, 1.0), started=3),
    ]


def ordered(groups: list[Group], version: PolicyVersion = VERSION, **changes: Any) -> TrainOrder:
    """An order for these groups at the coefficient 0.3, with other weights for each."""
    return make_order(groups, version, 0.3, weights=(1.0, 2.0, 0.5, 0.25), seed=11, **changes)


def samples_of(wanted: Objective) -> tuple[Sample, ...]:
    """The samples of the groups of all kinds, as the learner sees them."""
    groups = groups_of_all_kinds()
    return tuple(flatten(ordered(groups).groups, groups, wanted.learner))


def taken_by(policy: Policy, wanted: Objective, optimizer: Optimizer | None = None) -> Any:
    """What the steps of the order found that this policy took."""
    optimizer = optimizer or Optimizer(policy.model.named_parameters(), wanted.learner)
    order = ordered(groups_of_all_kinds())
    return take(policy, None, optimizer, samples_of(wanted), wanted, order, RATE, "step 1")


def weights_of(policy: Policy) -> list[torch.Tensor]:
    """A copy of the policy's weights."""
    return [weight.detach().clone() for weight in policy.model.parameters()]
