"""Events from a journal applied again: they must lead to what was recorded, byte for byte."""

from collections.abc import Iterable, Iterator
from typing import Any

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
            where, before, now = _difference(msgspec.to_builtins(record.commands), msgspec.to_builtins(again.commands))
            raise JournalDiffers(
                f"{name}, byte {offset:,}: the event {type(record.event).__name__} at version {controller.version} led "
                f"to {where} = {before}, applied again it leads to {now}"
            )
        yield offset, record.event, again.commands


def _difference(before: Any, now: Any, place: str = "commands") -> tuple[str, str, str]:
    """The first place where two values differ, and both."""
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in before:
            if _differ(before[key], now[key]):
                return _difference(before[key], now[key], f"{place}.{key}")
    if isinstance(before, list | tuple) and isinstance(now, list | tuple) and len(before) == len(now):
        for index, (one, other) in enumerate(zip(before, now, strict=True)):
            if _differ(one, other):
                return _difference(one, other, f"{place}[{index}]")
    return place, repr(before), repr(now)


def _differ(one: Any, other: Any) -> bool:
    return msgspec.msgpack.encode(one) != msgspec.msgpack.encode(other)
