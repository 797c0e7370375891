"""The controller with a filter: groups without a signal are seen, counted and left out of the policy term."""

import pytest

from entrostat.controller.events import Missing, StepReported
from entrostat.controller.snapshot import ControllerState
from entrostat.protocol import wire
from entrostat.protocol.entropy_settings import FixedLaw
from entrostat.protocol.messages import GroupsMissing, LeaseCounts, TrainOrder
from tests.made_messages import Scene, published, resumed, run_of, sample, scene, step_of, sums_up


def trained(s: Scene) -> TrainOrder:
    order = s.order()
    assert order is not None
    s.apply(StepReported(report=step_of(order), at=s.at))
    return order


def test_what_is_filtered_is_discarded_at_once_and_yet_observed_and_summed_up() -> None:
    s = scene(batch=2, staleness=0, law=FixedLaw(), refill=3.0)
    leases = sample(s, [4, 0, 1, 4, 3])
    silent = [leases[0].id, leases[1].id, leases[3].id]
    assert s.discarded == silent
    order = trained(s)
    assert [(group.lease_id, group.in_policy) for group in order.groups] == [
        (leases[2].id, True),
        (leases[4].id, True),
    ]
    view = s.controller.view()
    # Over all five groups: a mean over the two that taught something would be 0.5 whatever the policy does.
    assert (view.reward, view.pass_rate, view.statuses) == (0.6, 0.6, (12, 8, 0, 0, 0))
    assert (view.response_tokens, view.truncated) == (5 * 12, 5)
    assert view.staleness == (2,)
    assert view.leases == LeaseCounts(granted=5, trained=2, filtered=3)
    assert sum(view.difficulty) == 5


def test_each_filtered_group_counts_in_one_summary() -> None:
    s = scene(batch=1, staleness=1, law=FixedLaw(), refill=3.0, prompts=20)
    sample(s, [4, 1])
    order = s.order()
    sample(s, [0])  # while the learner is busy
    assert order is not None
    assert s.controller.view().pass_rate == 5 / 8
    s.apply(Missing(missing=GroupsMissing(version=order.version, lease_ids=(order.groups[0].lease_id,)), at=0.0))
    sample(s, [3])
    trained(s)
    assert s.controller.view().pass_rate == (4 + 0 + 3) / 12
    s.serves = 1
    s.apply(published(1))
    sample(s, [2])
    order = s.order()
    assert order is not None
    sample(s, [4])  # while the learner is busy
    s.apply(StepReported(report=step_of(order), at=0.0))
    assert s.controller.view().pass_rate == 0.5
    sample(s, [1])
    trained(s)
    assert s.controller.view().pass_rate == (4 + 1) / 8


def test_all_wrong_groups_come_along_outside_the_policy_term() -> None:
    s = scene(batch=2, staleness=0, law=FixedLaw(coefficient=0.1), refill=3.0)
    older, newer, first, second = sample(s, [0, 0, 1, 3])
    assert s.discarded == [older.id]
    order = trained(s)
    assert [(group.lease_id, group.in_policy) for group in order.groups] == [
        (first.id, True),
        (second.id, True),
        (newer.id, False),
    ]
    along = order.groups[2]
    assert 0.0 < along.weight <= 0.25 * sum(group.weight for group in order.groups) * (1 + 1e-9)
    assert along.coefficient == pytest.approx(0.1 * along.weight)
    assert newer.id in s.discarded
    assert s.controller.counts == LeaseCounts(granted=4, trained=3, filtered=1)


def test_all_wrong_groups_stay_behind_while_the_law_gives_no_bonus() -> None:
    s = scene(batch=2, staleness=0, refill=3.0)  # the thermostat measures H_0 first
    wrong, *_ = sample(s, [0, 1, 3])
    assert s.discarded == []
    assert all(group.in_policy for group in trained(s).groups)
    assert s.discarded[0] == wrong.id
    assert s.controller.counts.filtered == 1


def test_a_run_without_any_signal_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    s = scene(batch=2, staleness=0, refill=2.0, prompts=40)
    for step in range(5):
        sample(s, [4, 0, 4, 0])
        order = trained(s)
        assert [group.weight for group in order.groups] == [0.0, 0.0]
        s.serves = step + 1
        s.apply(published(s.serves))
    assert s.controller.counts == LeaseCounts(granted=20, trained=10, filtered=10)
    assert s.controller.filled_up == 10
    told = [record.getMessage() for record in caplog.records if record.name.endswith("rounds")]
    assert [message.split("(")[1] for message in told] == ["1 orders so far)", "2 orders so far)", "4 orders so far)"]


def test_without_a_filter_equal_rewards_are_trained_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    s = scene(batch=2, staleness=0)
    sample(s, [4, 0])
    assert len(trained(s).groups) == 2
    assert (s.controller.filled_up, s.controller.counts.filtered, caplog.records) == (0, 0, [])


def test_a_later_branch_goes_on_from_the_counts_of_a_filtered_run() -> None:
    s = scene(batch=4, staleness=0, law=FixedLaw(coefficient=0.1), refill=1.5, prompts=40)
    sample(s, [4, 4, 4, 1, 1, 1])
    trained(s)
    s.serves = 1
    s.apply(published(1))
    wrong, solved = sample(s, [0, 4])
    snapshot = wire.decode(wire.encode(s.controller.state()), ControllerState)
    run = run_of(batch=4, staleness=0, law=FixedLaw(coefficient=0.1), refill=1.5)
    later = Scene(resumed(run, ["easy", "hard"] * 20, snapshot, 1, 1), branch=1, step=1)
    # The all-wrong group waited: its lease is rewound, and its prompt leased again; the solved one is consumed.
    assert later.controller.counts == LeaseCounts(granted=8, trained=4, filtered=3, rewound=1)
    assert sums_up(later.controller.counts)
    assert later.controller.filled_up == 1
    assert [lease.prompt_id for lease in later.pulse(room=1).leases] == [wrong.prompt_id]
    assert solved.prompt_id not in later.controller.state().position.returned.tolist()


def test_the_tokens_of_filtered_groups_count_in_the_mix_of_levels() -> None:
    s = scene(batch=1, staleness=0, law=FixedLaw(), refill=4.0, prompts=40)
    leases = sample(s, [4, 4, 0, 1])
    hard = sum(lease.prompt_id % 2 for lease in leases)
    trained(s)
    assert s.controller.state().mix.shares.get("hard", 0.0) == hard / 4
    assert 0 < hard < 4
