"""The arrows between the folders: protocol ← {actors, controller, learner} ← entrostat."""

import ast
from pathlib import Path

import pytest

STATIONS = ("actors", "controller", "learner")
MAY_IMPORT = {"protocol": (), "actors": ("protocol",), "controller": ("protocol",), "learner": ("protocol",)}
# Which files may import a heavy library, by folder or by file.
HOMES = {
    "vllm": ("actors/", "learner/nccl.py"),
    "torch": ("learner/", "actors/weight_plugin.py", "actors/nccl_buffer.py", "entrostat/sinks.py"),
    "ray": (
        *("actors/handles.py", "actors/remote.py", "controller/remote.py", "learner/remote.py", "learner/followers.py"),
        "entrostat/ray_calls.py",
    ),
    "peft": ("learner/adapters.py",),
    "pyarrow": ("actors/tasks/",),
    "datasets": ("actors/tasks/",),
    "prometheus_client": ("protocol/metrics.py",),
}


def imports(source: str) -> set[str]:
    """Every module a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_arrows(path: str, source: str) -> list[str]:
    """What a file at `path` (from the root) imports and may not."""
    folder = path.split("/")[0]
    wrong = []
    for module in sorted(imports(source)):
        parts = module.split(".")
        ours = parts[0] == "entrostat" and folder in MAY_IMPORT and len(parts) > 1 and parts[1] != folder
        if ours and parts[1] not in MAY_IMPORT[folder]:
            wrong.append(f"{path} imports {module}: {folder}/ may import {MAY_IMPORT[folder] or 'none of ours'}")
        homes = HOMES.get(parts[0])
        if homes is not None and not path.startswith(homes):
            wrong.append(f"{path} imports {module}: only {', '.join(homes)} may")
    return wrong


def test_every_import_follows_the_arrows(repository: Path) -> None:
    files = [
        file
        for folder in (*MAY_IMPORT, "entrostat")
        for file in (repository / folder).rglob("*.py")
        if not (folder == "entrostat" and file.relative_to(repository).parts[1] in MAY_IMPORT)
    ]
    assert len(files) > 40
    wrong = [
        text
        for file in files
        for text in wrong_arrows(str(file.relative_to(repository)), file.read_text(encoding="utf-8"))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("actors/rollout.py", "from entrostat.learner.update import step"),
        ("controller/state.py", "import entrostat.actors.rollout"),
        ("protocol/wire.py", "from entrostat.controller import state"),
        ("protocol/wire.py", "from entrostat.config import RunConfig"),
        ("learner/update.py", "import ray"),
        ("learner/head.py", "from vllm import LLM"),
        ("controller/state.py", "import torch.nn"),
        ("actors/rollout.py", "def f():\n    import prometheus_client"),
    ],
)
def test_a_wrong_arrow_is_found(path: str, source: str) -> None:
    assert wrong_arrows(path, source)


@pytest.mark.parametrize("station", STATIONS)
def test_a_station_may_import_the_protocol(station: str) -> None:
    assert not wrong_arrows(f"{station}/x.py", "from entrostat.protocol.messages import Lease")
