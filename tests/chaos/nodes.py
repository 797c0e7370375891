"""A Ray cluster of two nodes, one of which dies with the rollout actor that lives on it."""

from pathlib import Path

from tests.chaos.outcome import Outcome


def node_dies(folder: Path, steps: int) -> Outcome:
    """x"""
    raise PermissionError("later")
