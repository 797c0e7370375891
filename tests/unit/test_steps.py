"""An order in several optimizer steps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from entrostat.learner.minibatches import minibatches
from entrostat.learner.optimizer import Optimizer
from entrostat.learner.steps import take
from entrostat.learner.survey import survey
from entrostat.learner.update import accumulate
from entrostat.protocol.learner_settings import Gspo
from tests.tiny_orders import PARTS, RATE, groups_of_all_kinds, objective, ordered, samples_of, taken_by, weights_of
from tests.tiny_policy import in_float64, loaded, make_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("changes", [{}, {"proximal": "behaviour"}, {"loss": Gspo()}, {"policy_tokens": 0.5}])
def test_minibatches_and_epochs_are_a_loop_over_parts_with_one_survey(folder: Path, changes: dict[str, Any]) -> None:
    wanted = objective(**PARTS, **changes)
    ours, theirs, before = (in_float64(loaded(folder)) for _ in range(3))
    found = taken_by(ours, wanted)
    optimizer = Optimizer(theirs.model.named_parameters(), wanted.learner)
    seen = survey(before, None, samples_of(wanted), wanted, 11, "by hand")
    parts = list(minibatches(samples_of(wanted), 3, 2, 11))
    for part, step in zip(parts, found.steps, strict=True):
        measured = accumulate(theirs, None, part, wanted, "by hand", seen)
        norm = optimizer.step(RATE, "by hand")
        assert step.measured.terms.objective == pytest.approx(measured.terms.objective, abs=1e-12)
        assert step.gradient_norm == pytest.approx(norm, rel=1e-9)
    torch.testing.assert_close(weights_of(ours), weights_of(theirs), atol=1e-12, rtol=0)
    assert len({step.measured.terms.objective for step in found.steps}) > 2


def test_the_ratio_is_against_the_policy_before_the_orders_first_update(folder: Path) -> None:
    # An update large enough that the second epoch's ratios leave the bounds: against the policy before each step none
    # would.
    wanted = objective(epochs=2)
    policy = in_float64(loaded(folder))
    optimizer = Optimizer(policy.model.named_parameters(), wanted.learner)
    order = ordered(groups_of_all_kinds())
    found = take(policy, None, optimizer, samples_of(wanted), wanted, order, 0.05, "step 1")
    assert found.steps[0].measured.cuts.clipped == 0
    assert found.steps[1].measured.cuts.clipped > 5


def test_one_step_for_the_whole_order_needs_no_survey_and_is_what_it_was(folder: Path) -> None:
    wanted = objective()
    ours, theirs = loaded(folder), loaded(folder)
    taken_by(ours, wanted)
    accumulate(theirs, None, samples_of(wanted), wanted, "by hand")
    Optimizer(theirs.model.named_parameters(), wanted.learner).step(RATE, "by hand")
    assert all(torch.equal(one, other) for one, other in zip(weights_of(ours), weights_of(theirs), strict=True))
