"""A journal held against itself: what was altered is found and named."""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from entrostat.controller import history
from entrostat.controller.events import Order
from entrostat.controller.journal import Frames, Opened, Record, Recorded
from entrostat.protocol import wire
from entrostat.protocol.errors import JournalDamaged, JournalDiffers, SchemaMismatch
from entrostat.protocol.messages import PolicyVersion
from tests.made_journal import LEVELS, Memory, Office


def lived() -> Office:
    """A run of two branches: killed once in the first, and resumed from a checkpoint at step 2."""
    office = Office()
    office.step()
    office.killed()
    office.step()
    state = office.desk.checkpoint()
    office.step()
    office.step()
    office.resumed(state)
    office.step()
    office.desk.close()
    return office


def altered(storage: Memory, branch: int, segment: int, change: Callable[[Record], Record]) -> None:
    """Writes a segment anew, each record changed: every checksum is right."""
    frames = [wire.encode(change(record)).tobytes() for _, record, _ in Frames(storage.read(branch, segment), "x")]
    storage.files[branch, segment].content[:] = b"".join(frames)


def test_a_journal_leads_to_what_it_says() -> None:
    first, second = history.read(lived().storage)
    assert (first.number, first.segments, len(first.trained), first.closed) == (0, 3, 4, False)
    assert (second.start, second.parent, len(second.trained), second.closed) == (
        2,
        PolicyVersion(branch=0, step=2),
        1,
        True,
    )
    assert all(one.checksum is not None for one in first.trained)


def test_every_flipped_byte_is_found() -> None:
    office = lived()
    content = office.storage.files[0, 0].content
    frames = Frames(bytes(content), "0.0.journal")
    last = [offset for offset, _, _ in frames][-1]
    for place in range(0, last, 61):
        content[place] ^= 0x20
        with pytest.raises((JournalDamaged, JournalDiffers)):
            history.read(office.storage)
        content[place] ^= 0x20
    assert history.read(office.storage)


def test_an_altered_coefficient_is_named_with_its_place() -> None:
    office = lived()

    def bent(record: Record) -> Record:
        if not isinstance(record, Recorded) or not record.commands or not isinstance(record.commands[-1], Order):
            return record
        bend = {"coefficient": record.commands[-1].order.coefficient + 1e-12}
        return replace(
            record, commands=(*record.commands[:-1], Order(order=replace(record.commands[-1].order, **bend)))
        )

    altered(office.storage, 0, 2, bent)
    with pytest.raises(
        JournalDiffers, match=r"0\.2\.journal, byte [\d,]+: the event OrderRequested .*order\.coefficient = "
    ):
        history.read(office.storage)


def test_an_altered_state_at_a_segments_start_is_found() -> None:
    office = lived()

    def bent(record: Record) -> Record:
        if not isinstance(record, Opened) or record.state is None:
            return record
        return replace(record, state=replace(record.state, late_reports=99))

    altered(office.storage, 0, 1, bent)
    with pytest.raises(JournalDiffers, match=r"0\.1\.journal does not begin with the state"):
        history.read(office.storage)


def test_a_branch_that_begins_with_another_state_than_was_saved_is_found() -> None:
    office = Office()
    office.step()
    state = office.desk.checkpoint()
    office.resumed(replace(state, fenced_pulses=5))
    with pytest.raises(JournalDiffers, match=r"branch 1 begins with another state of version 0\.1"):
        history.read(office.storage)


def test_a_record_that_was_taken_out_is_missed() -> None:
    office = lived()
    content = office.storage.files[0, 1].content
    offsets = [offset for offset, _, _ in Frames(bytes(content), "x")]
    del content[offsets[3] : offsets[4]]
    with pytest.raises((JournalDamaged, JournalDiffers)):
        history.read(office.storage)


def test_a_torn_end_is_told_and_is_no_error() -> None:
    office = Office()
    office.step()
    office.storage.last.content += b"ENTR half a record"
    (branch,) = history.read(office.storage)
    assert branch.notes == ["0.0.journal: the last 18 bytes are no whole record: a torn end, void"]


def test_what_a_replaced_process_added_is_void() -> None:
    office = Office()
    office.step()
    old = office.desk
    office.killed()
    old.tick()  # it did not know that it was replaced
    office.step()
    (branch,) = history.read(office.storage)
    assert len(branch.trained) == 2
    assert "its process was replaced" in branch.notes[0]


def test_a_missing_segment_is_found() -> None:
    office = lived()
    del office.storage.files[0, 1]
    with pytest.raises((JournalDamaged, JournalDiffers)):
        history.read(office.storage)
    del office.storage.files[0, 0]
    with pytest.raises(JournalDamaged, match="one before is missing"):
        history.read(office.storage)


def test_the_orders_since_a_checkpoint_are_those_of_the_surviving_history() -> None:
    branches = history.read(lived().storage)
    found = history.since(branches, PolicyVersion(branch=0, step=1))
    assert [str(one.order.version) for one in found] == ["0.1", "1.2"]
    assert history.since(branches, PolicyVersion(branch=7, step=1)) == []
    assert history.since([], PolicyVersion(branch=0, step=0)) == []


def test_a_run_that_began_anew_before_its_first_checkpoint_keeps_what_it_trained_since() -> None:
    office = Office()
    office.branch = 1
    office.desk = office.opened(LEVELS, 1, 0, None)
    office.step()
    office.step()
    found = history.since(history.read(office.storage), PolicyVersion(branch=0, step=0))
    assert [str(one.order.version) for one in found] == ["1.0", "1.1"]
    assert history.since(history.read(office.storage), PolicyVersion(branch=0, step=1)) == []


def test_a_branch_whose_process_died_before_it_began_hides_nothing() -> None:
    office = Office()
    office.step()
    office.step()
    before = history.since(history.read(office.storage), PolicyVersion(branch=0, step=0))
    office.resumed(office.desk.controller.state())
    content = office.storage.files[1, 0].content
    _, (rewound, _, _), *_ = Frames(bytes(content), "x")
    del content[rewound:]
    branches = history.read(office.storage)
    assert len(branches) == 2
    assert len(history.since(branches, PolicyVersion(branch=0, step=0))) == len(before) == 2
    newest = history.newest(branches)
    assert newest is not None
    assert newest.number == 0


def test_a_branch_that_goes_on_from_one_that_is_gone_is_refused() -> None:
    office = lived()
    for name in [name for name in office.storage.files if name[0] == 0]:
        del office.storage.files[name]
    with pytest.raises(JournalDamaged, match=r"the journal has no branch 0: its files are gone"):
        history.read(office.storage)


def test_a_journal_of_another_release_is_refused_and_not_taken_for_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office()
    office.step()
    monkeypatch.setattr(wire, "SCHEMA_VERSION", wire.SCHEMA_VERSION + 1)
    with pytest.raises(SchemaMismatch, match="the same release"):
        history.read(office.storage)
