"""Events from a journal applied again: they must lead to what was recorded, byte for byte."""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import cast

import msgspec

from entrostat.controller.events import Command, Event
from entrostat.controller.journal import Opened, Record, Recorded
from entrostat.controller.state import Controller
from entrostat.protocol import wire
from entrostat.protocol.errors import JournalDamaged, JournalDiffers


def replay(
    controller: Controller, records: Iterable[tuple[int, Record, memoryview]], name: str
) -> Iterator[tuple[int, Event, tuple[Command, ...]]]:
    """Applies the events of a segment after its first record, one by one; yields offset, event and commands of each.

    Raises:
        JournalDiffers: one does not lead to the commands that were recorded; says which, and where they differ.
        JournalDamaged: there is a record that does not belong there.
    """
    for offset, record, frame in records:
        if isinstance(record, Opened):
            raise JournalDamaged(f"{name} was opened a second time at byte {offset:,}; expected an event there")
        if not isinstance(record, Recorded):
            continue
        again = Recorded(event=record.event, commands=controller.apply(record.event))
        if wire.encode(again).data != frame:
            where, before, now = _difference(record.commands, again.commands)
            raise JournalDiffers(
                f"{name}, byte {offset:,}: the event {type(record.event).__name__} at version {controller.version} led "
                f"to {where} = {before}, applied again it leads to {now}"
            )
        yield offset, record.event, again.commands


def _difference(before: tuple[Command, ...], now: tuple[Command, ...]) -> tuple[str, object, object]:
    """The first place where two values differ, and what is there in each."""
    pairs = zip_longest(_leaves(before, "commands"), _leaves(now, "commands"), fillvalue=("the end", "nothing"))
    for (place, one), (other_place, other) in pairs:
        if place != other_place or repr(one) != repr(other):  # a NaN is like another
            return place if place == other_place else f"{place} or {other_place}", one, other
    return "commands", before, now


def _leaves(value: object, place: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _leaves(getattr(value, name), f"{place}.{name}")
    elif isinstance(value, tuple):
        for index, one in enumerate(cast(tuple[object, ...], value)):
            yield from _leaves(one, f"{place}[{index}]")
    else:
        yield place, value
