"""The lease book: one end for every lease, bounded staleness, and no prompt twice or never."""

from collections import Counter

import pytest

from entrostat.controller.lease_rules import LeaseRules
from entrostat.controller.leases import LeaseBook, derived_seed
from entrostat.controller.prompts import PromptOrder
from entrostat.protocol.messages import LeaseCounts
from tests.made_leases import ACTOR, book, granted, later_book
from tests.made_messages import group_of, sums_up, version


def test_an_actor_gets_no_more_than_its_room() -> None:
    assert len(granted(book(), room=3)) == 3
    assert granted(book(), room=0) == []


def test_grants_stop_at_the_allowance_of_the_version_the_actor_serves() -> None:
    leases = book(batch=4, staleness=1)
    assert len(granted(leases, room=99, serves=0)) == 8
    assert granted(leases, room=99, serves=0, newest=3) == []
    assert len(granted(leases, room=99, serves=1, newest=3)) == 4
    # An actor can't serve what nobody published.
    assert granted(leases, room=99, serves=5, newest=1) == []


def test_an_actor_on_another_branch_gets_nothing() -> None:
    leases = book(branch=1, start=3)
    assert leases.grant(ACTOR, room=9, serves=version(4, 0), newest=version(3, 1), at=0.0) == ()
    assert len(leases.grant(ACTOR, room=99, serves=version(3, 1), newest=version(3, 1), at=0.0)) == 8


def test_nothing_is_sampled_for_steps_after_the_last() -> None:
    rules = LeaseRules(batch=4, max_staleness=9, last_step=2, samples=8, lease_seconds=10.0, seed=7)
    leases = LeaseBook(rules, PromptOrder(100, 7, shuffle=True), branch=0, start=0)
    assert len(granted(leases, room=99)) == 8


def test_a_lease_that_is_renewed_does_not_expire() -> None:
    leases = book()
    kept, forgotten = granted(leases, room=2)
    assert leases.renew(ACTOR, (kept.id,), at=8.0) == ()
    assert leases.expire(9.9) == ()
    assert leases.expire(10.0) == (forgotten.id,)
    assert leases.expire(18.0) == (kept.id,)


def test_an_actor_learns_which_of_its_leases_ended_without_it() -> None:
    leases = book()
    lease = granted(leases, room=1)[0]
    leases.expire(10.0)
    assert leases.renew(ACTOR, (lease.id, 999), at=11.0) == (lease.id, 999)
    other = granted(leases, room=1, at=11.0)[0]
    assert leases.renew((5, 1), (other.id,), at=12.0) == (other.id,)


def test_a_lease_ends_exactly_one_way() -> None:
    leases = book(batch=1, staleness=0)
    lease = granted(leases, room=1)[0]
    assert leases.accept(group_of(lease), 0.0)
    assert not leases.accept(group_of(lease), 0.0)  # said twice
    assert leases.expire(1e9) == ()  # ready leases have no deadline
    assert [report.lease_id for report in leases.order(0, 0.0)] == [lease.id]
    assert leases.drop_stale(99) == ()
    assert leases.train() == (lease.id,)
    assert leases.train() == ()
    assert leases.counts() == LeaseCounts(granted=1, trained=1)


def test_a_report_of_an_expired_lease_is_late() -> None:
    leases = book()
    lease = granted(leases, room=1)[0]
    leases.expire(10.0)
    assert not leases.accept(group_of(lease), 0.0)
    assert not leases.holds(lease.id)


def test_a_report_from_someone_else_is_refused() -> None:
    leases = book()
    lease = granted(leases, room=1)[0]
    assert not leases.accept(group_of(lease, incarnation=2), 0.0)
    assert not leases.accept(group_of(lease, slot=1), 0.0)
    assert leases.holds(lease.id)
    assert leases.accept(group_of(lease), 0.0)


def test_what_came_back_is_leased_first() -> None:
    leases = book()
    first = granted(leases, room=2)
    leases.expire(10.0)
    again = granted(leases, room=3, at=10.0)
    assert [lease.prompt_id for lease in again[:2]] == [lease.prompt_id for lease in first]
    assert {lease.id for lease in again}.isdisjoint(lease.id for lease in first)


def test_too_old_groups_are_dropped_and_their_prompts_leased_again() -> None:
    leases = book(batch=2, staleness=1)
    old, fresh = granted(leases, room=2)
    assert leases.accept(group_of(old, started=0), 0.0)
    assert leases.accept(group_of(fresh, started=1), 0.0)
    assert leases.drop_stale(1) == ()
    assert leases.drop_stale(2) == (old.id,)
    assert leases.counts() == LeaseCounts(granted=2, ready=1, stale=1)
    assert granted(leases, room=1, serves=1)[0].prompt_id == old.prompt_id


def test_a_batch_takes_the_oldest_start_first_then_the_first_lease() -> None:
    leases = book(batch=2, staleness=2)
    a, b, c, d = granted(leases, room=4)
    for lease, started in ((d, 1), (b, 0), (c, 1), (a, 2)):
        leases.accept(group_of(lease, started=started), 0.0)
    assert [report.lease_id for report in leases.order(0, 0.0)] == [b.id, c.id]


def test_a_batch_is_made_only_when_it_is_whole() -> None:
    leases = book(batch=3)
    for lease in granted(leases, room=2):
        leases.accept(group_of(lease), 0.0)
    assert leases.order(0, 0.0) == ()
    assert leases.counts().ready == 2


def test_a_batch_waits_for_older_groups_that_are_on_their_way() -> None:
    leases = book(batch=2)
    first, slow, second, third = granted(leases, 4)
    leases.accept(group_of(first), 1.0)
    leases.accept(group_of(second), 1.0)
    assert leases.order(0, 1.5) == ()  # `slow` was granted before `second`
    leases.accept(group_of(slow), 1.6)
    assert [report.lease_id for report in leases.order(0, 1.6)] == [first.id, slow.id]
    assert third.id > second.id


def test_a_batch_does_not_wait_for_a_group_that_takes_twice_as_long_as_others() -> None:
    leases = book(batch=2)
    first, dead, second = granted(leases, 3)
    leases.accept(group_of(first), 1.0)
    leases.accept(group_of(second), 1.0)
    assert leases.order(0, 1.9) == ()
    assert [report.lease_id for report in leases.order(0, 2.1)] == [first.id, second.id]
    assert dead.id < second.id


def test_a_prompt_is_twice_in_a_batch_only_where_there_is_no_other() -> None:
    leases = book(batch=4, staleness=3, prompts=6)
    for lease in granted(leases, room=12):
        leases.accept(group_of(lease), 0.0)
    assert len({report.prompt_id for report in leases.order(0, 0.0)}) == 4
    pair = book(batch=4, staleness=0, prompts=2)
    for lease in granted(pair, room=4):
        pair.accept(group_of(lease), 0.0)
    assert Counter(report.prompt_id for report in pair.order(0, 0.0)) == {0: 2, 1: 2}


def test_an_order_given_up_loses_only_the_missing_groups() -> None:
    leases = book(batch=3, staleness=0)
    first = granted(leases, room=3)
    for lease in first:
        leases.accept(group_of(lease), 0.0)
    leases.order(0, 0.0)
    leases.give_up((first[1].id, 12345))
    assert leases.counts() == LeaseCounts(granted=3, ready=2, lost=1)
    assert granted(leases, room=9)[0].prompt_id == first[1].prompt_id
    assert sums_up(leases.counts())


def test_a_new_life_of_a_slot_ends_the_leases_of_the_old_one() -> None:
    leases = book()
    mine = granted(leases, room=2)
    others = leases.grant((1, 1), room=2, serves=version(0), newest=version(0), at=0.0)
    assert leases.evict(0) == tuple(lease.id for lease in mine)
    assert all(leases.holds(lease.id) for lease in others)


def test_a_lease_says_all_that_an_actor_needs_and_seeds_follow_from_the_run() -> None:
    lease = granted(book(), room=1)[0]
    assert (lease.samples, lease.version, lease.deadline_seconds) == (8, version(0), 10.0)
    assert lease.seed == granted(book(), room=1)[0].seed == derived_seed(7, "lease", 0)
    seeds = {derived_seed(run, "lease", number) for run in range(20) for number in range(500)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**48 for seed in seeds)


def test_leases_of_two_branches_never_share_an_id() -> None:
    before = granted(book(), room=5)
    after = book(branch=1).grant(ACTOR, room=5, serves=version(0, 1), newest=version(0, 1), at=0.0)
    assert {lease.id for lease in before}.isdisjoint(lease.id for lease in after)


def test_leases_of_an_abandoned_branch_count_as_rewound() -> None:
    leases = book(batch=3)
    running = granted(leases, room=5)
    for lease in running[:3]:
        leases.accept(group_of(lease), 0.0)
    leases.order(0, 0.0)
    later, _ = later_book(leases)
    assert later.counts() == LeaseCounts(granted=5, rewound=5)
    assert sums_up(later.counts())


def test_every_way_to_end_untrained_is_a_warning_with_its_prompts(caplog: pytest.LogCaptureFixture) -> None:
    leases = book(batch=2, staleness=0)
    lost, kept = granted(leases, 2)
    for lease in (lost, kept):
        leases.accept(group_of(lease), 1.0)
    assert leases.order(0, 1.0)
    leases.give_up([lost.id, lost.id, 99])
    leases.drop_stale(1)
    late = granted(leases, 1, at=1.0)[0]
    leases.expire(5.0)
    leases.expire(11.0)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"1 leases ended as {outcome}; their prompts are leased again: [{lease.prompt_id}]")
        for outcome, lease in (("lost", lost), ("stale", kept), ("expired", late))
    ]


def test_a_prompt_whose_turn_came_while_it_was_sampled_is_leased_as_soon_as_it_is_free() -> None:
    rules = LeaseRules(batch=1, max_staleness=9, last_step=99, samples=8, lease_seconds=10.0, seed=7)
    leases = LeaseBook(rules, PromptOrder(3, 7, shuffle=False), branch=0, start=0)
    slow, *quick = granted(leases, room=3)
    for lease in quick:
        leases.accept(group_of(lease), 0.0)
        leases.order(0, 0.0)
        leases.train()
    # The second epoch: prompt 0 is still being sampled when its turn comes.
    assert [lease.prompt_id for lease in granted(leases, room=1, serves=2)] == [1]
    leases.accept(group_of(slow), 0.0)
    leases.order(0, 0.0)
    assert [lease.prompt_id for lease in granted(leases, room=2, serves=2)] == [0, 2]
