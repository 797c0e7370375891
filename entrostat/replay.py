"""`entrostat replay`: a run's journal applied again from its first event, and the state at any step."""

import logging
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from entrostat.controller.events import Event, Rewound
from entrostat.controller.history import Branch, read
from entrostat.controller.journal import Folder
from entrostat.controller.state import Controller
from entrostat.protocol.errors import BadInput, RunDirectoryError
from entrostat.protocol.messages import ControllerView


def run(path: Path, *, to_step: int | None, as_json: bool, console: Console) -> int:
    """Applies a run's journal again and says what it found.

    Raises:
        RunDirectoryError: there is no journal.
        BadInput: the run was never at that step.
        JournalDamaged, JournalDiffers: the journal is not what the run wrote.
    """
    # What the controller warned of is in the run's log; here it would come up a second time, beside the tables.
    logging.getLogger("entrostat.controller").addHandler(logging.NullHandler())
    storage = Folder(path / "journal")
    if not storage.segments():
        raise RunDirectoryError(f"{path} has no journal: expected a run directory, as entrostat train makes it")
    at_step: dict[int, ControllerView] = {}

    def watch(event: Event, controller: Controller) -> None:
        if isinstance(event, Rewound):
            for void in [step for step in at_step if step >= event.step]:
                del at_step[void]
        if controller.version.step not in at_step:
            at_step[controller.version.step] = controller.view()

    branches = read(storage, watch)
    if to_step is not None:
        if to_step not in at_step:
            steps = f"{min(at_step)} to {max(at_step)}" if at_step else "none"
            raise BadInput(f"{path} has no state at step {to_step}: the journal has steps {steps}")
        _show_view(console, at_step[to_step], as_json=as_json)
        return 0
    if as_json:
        print(msgspec.json.encode([_summary(branch) for branch in branches]).decode())
        return 0
    _show(console, path, branches)
    return 0


def _summary(branch: Branch) -> dict[str, object]:
    return {
        "branch": branch.number,
        "start": branch.start,
        "parent": None if branch.parent is None else str(branch.parent),
        "segments": branch.segments,
        "bytes": branch.bytes,
        "events": dict(branch.events),
        "orders": branch.orders,
        "steps": len(branch.trained),
        "closed": branch.closed,
        "notes": branch.notes,
    }


def _show(console: Console, path: Path, branches: list[Branch]) -> None:
    table = Table("branch", "from", "to", "segments", "events", "orders", "bytes")
    for branch in branches:
        end = "—" if branch.end is None else str(branch.end.version)
        events = sum(branch.events.values())
        table.add_row(
            str(branch.number),
            str(branch.parent or f"{branch.number}.{branch.start}"),
            end,
            str(branch.segments),
            f"{events:,}",
            f"{branch.orders:,}",
            f"{branch.bytes:,}",
        )
    console.print(table)
    for note in (note for branch in branches for note in branch.notes):
        console.print(f"void: {note}", highlight=False)
    events = sum(sum(branch.events.values()) for branch in branches)
    orders = sum(branch.orders for branch in branches)
    console.print(
        f"{path}: {events:,} events and {orders:,} orders, every command and coefficient as recorded", highlight=False
    )


def _show_view(console: Console, view: ControllerView, *, as_json: bool) -> None:
    found = msgspec.to_builtins(view)
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    del found["type"]
    table = Table("state", str(view.version), show_lines=False)
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {one}" for key, one in value.items())
        table.add_row(name.replace("_", " "), str(value))
    console.print(table)
