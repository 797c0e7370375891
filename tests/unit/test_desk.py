"""The controller's desk: what leaves it is in the journal, and whoever comes after goes on from there."""

import pytest
from msgspec.structs import replace

from entrostat.controller.events import Order, Rewound
from entrostat.controller.journal import Frames, Opened, Recorded
from entrostat.protocol import wire
from entrostat.protocol.errors import JournalDamaged, ResourceError, StationLost
from entrostat.protocol.messages import GroupsMissing, Pulse, TrainOrder
from tests.made_journal import LEVELS, Memory, Office
from tests.made_messages import manifest, published, run_of, step_of, version


def _given(order: TrainOrder | None) -> TrainOrder:
    assert order is not None
    return order


def test_an_order_leaves_only_when_all_that_led_to_it_is_on_disk() -> None:
    office = Office()
    office.pulse(done=office.pulse(room=99).leases)
    assert office.desk.order() is not None
    before = office.desk.synced
    office.desk.sync()
    assert (before, office.desk.synced) == (False, True)
    assert office.storage.last.synced == len(office.storage.last.content)


def test_what_is_recorded_while_a_sync_is_under_way_is_not_taken_for_synced() -> None:
    office = Office()

    office.storage.last.meanwhile = office.pulse  # another thread's event, too late for this sync
    office.pulse()
    office.desk.sync()
    assert not office.desk.synced


def test_another_process_goes_on_with_the_order_under_way_and_its_leases() -> None:
    office = Office()
    office.step()
    *done, running = office.pulse(room=3).leases
    office.pulse(done=done, running=[running.id])
    order = office.desk.order()
    before, at = office.desk.controller.counts, office.desk.controller.now
    assert (before.running, before.ordered) == (1, 2)
    office.killed()
    assert office.desk.controller.counts == before
    assert office.desk.controller.term == 1
    assert office.desk.controller.now >= at
    assert wire.encode(Order(order=_given(office.desk.order()))).data == wire.encode(Order(order=_given(order))).data
    assert office.pulse(running=[running.id]).ended == ()


def test_leases_of_two_processes_never_share_an_id_though_the_end_of_the_journal_was_lost() -> None:
    office = Office()
    office.desk.sync()
    kept = office.storage.last.synced
    before = office.pulse(room=2).leases
    del office.storage.last.content[kept:]
    office.killed()
    after = office.pulse(room=2).leases
    assert {lease.id for lease in before}.isdisjoint(lease.id for lease in after)


def test_a_restart_gives_every_lease_a_whole_deadline() -> None:
    office = Office()
    leases = office.pulse(room=2).leases
    office.now += 9.0
    office.desk.tick()
    office.killed()
    office.now += 9.0
    office.desk.tick()
    assert office.desk.controller.counts.expired == 0
    office.now += 2.0
    office.desk.tick()
    assert office.desk.controller.counts.expired == len(leases)


def test_a_lease_in_a_reply_that_got_lost_is_granted_again_with_the_next_pulse() -> None:
    office = Office(settings=run_of(batch=1, staleness=0))
    (lost,) = office.pulse(room=1).leases
    (again,) = office.pulse(room=1).leases
    assert again.prompt_id == lost.prompt_id
    assert again.id != lost.id
    assert office.desk.controller.counts.expired == 1


def test_a_pulse_that_was_overtaken_ends_nothing() -> None:
    office = Office()
    office.pulse()
    leases = office.pulse(room=2).leases
    office.number -= 2  # the first pulse again, or an older one that comes late
    office.pulse()
    assert office.desk.controller.counts.expired == 0
    assert office.desk.controller.counts.running == len(leases)


def test_a_torn_end_is_void_and_the_next_segment_says_how_much_counts() -> None:
    office = Office()
    office.step()
    whole = len(office.storage.last.content)
    office.pulse()
    del office.storage.last.content[whole + 10 :]
    office.killed()
    (_, record, _) = next(iter(Frames(office.storage.read(0, 1), "0.1")))
    assert isinstance(record, Opened)
    assert record.follows == whole
    office.step()


def test_a_segment_that_was_not_begun_is_passed_over() -> None:
    office = Office()
    office.step()
    before = office.desk.controller.counts
    office.storage.create(0, 1)
    office.killed()
    assert office.desk.controller.counts == before
    assert max(office.storage.files) == (0, 2)


def test_a_process_that_died_before_it_began_leaves_nothing_to_go_on_from() -> None:
    storage = Memory()
    storage.create(0, 0)
    office = Office(storage)
    assert office.desk.controller.term == 0
    office.step()
    empty = Memory()
    empty.create(0, 0)
    office.storage = empty
    with pytest.raises(JournalDamaged, match="no segment of branch 0 was begun"):
        office.opened(None)


def test_damage_in_the_middle_is_refused_with_its_place() -> None:
    office = Office()
    office.step()
    records = [offset for offset, _, _ in Frames(office.storage.read(0, 0), "0.0")]
    office.storage.last.content[records[3] + 40] ^= 1
    with pytest.raises(JournalDamaged, match=f"0.0.journal is damaged at byte {records[3]:,}"):
        office.killed()


def test_recovery_starts_at_the_last_checkpoint() -> None:
    office = Office()
    for _ in range(3):
        office.step()
    office.desk.checkpoint()
    office.step()
    before = office.desk.controller.view()
    content = office.storage.read(0, 1)
    events = sum(isinstance(record, Recorded) for _, record, _ in Frames(content, "0.1"))
    assert events < 10
    del office.storage.files[0, 0].content[-100:]  # nobody reads on in what came before
    office.killed()
    assert office.desk.controller.term == 1
    assert wire.encode(replace(office.desk.controller.view(), term=0)).data == wire.encode(before).data


def test_a_full_disk_stops_the_desk_for_good() -> None:
    office = Office()
    office.storage.last.full = True
    with pytest.raises(ResourceError, match="No space"):
        office.pulse(room=1)
    office.storage.last.full = False
    with pytest.raises(ResourceError, match="No space"):
        office.pulse(room=1)


def test_a_resumed_run_begins_with_a_rewound_event() -> None:
    office = Office()
    office.step()
    state = office.desk.checkpoint()
    office.step()
    office.resumed(state)
    records = [record for _, record, _ in Frames(office.storage.read(1, 0), "1.0")]
    assert isinstance(records[1], Recorded)
    assert isinstance(records[1].event, Rewound)
    assert str(office.desk.controller.version) == "1.1"


def test_another_process_offers_what_was_published_before_it() -> None:
    office = Office()
    order = office.ordered()
    office.desk.report(step_of(order))
    office.desk.publish(manifest(1))
    office.killed()
    found = office.desk.pulse(_behind(office)).manifest
    assert found is not None
    assert found.version.step == 1


def test_an_offer_without_its_manifest_waits() -> None:
    office = Office()
    order = office.ordered()
    office.desk.report(step_of(order))
    office.desk.apply(published(1))  # its manifest is not here
    assert office.desk.pulse(_behind(office)).manifest is None
    office.desk.publish(manifest(1))
    assert office.desk.pulse(_behind(office)).manifest is not None


def _behind(office: Office) -> Pulse:
    office.number += 1
    return Pulse(slot=0, incarnation=1, version=version(0), room=0, running=(), reports=(), number=office.number)


def test_levels_come_from_the_journal_after_a_restart() -> None:
    office = Office()
    office.killed()
    assert office.desk.controller.state().difficulty.names == tuple(dict.fromkeys(LEVELS))


def test_nothing_is_written_after_the_end() -> None:
    office = Office()
    office.step()
    office.desk.close()
    written = len(office.storage.last.content)
    office.desk.close()
    with pytest.raises(StationLost, match="come to its end"):
        office.pulse()
    with pytest.raises(StationLost, match="come to its end"):
        office.desk.tick()
    assert len(office.storage.last.content) == written


def test_the_buffer_is_told_to_forget_the_groups_of_an_order_that_were_missing() -> None:
    office = Office()
    order = office.ordered()
    office.desk.discards()
    lost = order.groups[0].lease_id
    office.desk.missing(GroupsMissing(version=order.version, lease_ids=(lost,)))
    assert office.desk.discards() == [lost]
