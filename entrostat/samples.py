"""`entrostat samples`: what the policy wrote, and what became of it."""

import re
from pathlib import Path

import msgspec
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from entrostat.learner.samples import SampleRecord
from entrostat.protocol.errors import BadInput, RunDirectoryError


def read(run: Path, step: int | None) -> tuple[int, list[SampleRecord]]:
    """The samples of one optimizer step, the newest by default.

    Raises:
        RunDirectoryError: the folder holds no samples.
        BadInput: there are none of that step; names the steps there are.
    """
    files = {
        int(match[1]): file
        for file in (run / "samples").glob("step-*.jsonl")
        if (match := re.search(r"(\d+)", file.stem))
    }
    if not files:
        raise RunDirectoryError(
            f"{run} holds no samples: expected {run}/samples/step-N.jsonl, as a training run writes them"
        )
    chosen = max(files) if step is None else step
    if chosen not in files:
        raise BadInput(f"{run} has no samples of step {chosen}: it has steps {min(files)} to {max(files)}")
    return chosen, msgspec.json.Decoder(SampleRecord).decode_lines(files[chosen].read_bytes())


def show(console: Console, step: int, records: list[SampleRecord]) -> None:
    """One panel per sample."""
    colours = {"correct": "green", "wrong": "red"}
    for record in records:
        body = Text()
        body.append(record.prompt.rstrip() + "\n", style="dim")
        body.append(record.response)
        verdict = f"{record.status}, reward {record.reward:g}"
        if record.detail:
            verdict += f" ({record.detail})"
        foot = (
            f"entropy {record.entropy_nats:.3f} nats/token · coefficient {record.coefficient:.4f} · "
            f"{record.tokens} tokens · drawn by version {record.version}"
        )
        title = Text(f"{record.level} · {record.name}")
        colour = colours.get(record.status, "yellow")
        console.print(Panel(body, title=title, subtitle=Text(verdict, style=colour), border_style=colour))
        console.print(Text(foot, style="dim"), soft_wrap=True)
    console.print(f"{len(records)} samples of step {step}")
