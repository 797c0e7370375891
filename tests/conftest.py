"""Settings for every test: no telemetry, no cluster but the test's own, real test data only where it is."""

import importlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says more of the machine than of the code.
settings.register_profile("entrostat", deadline=None)
settings.load_profile("entrostat")

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

# Triton's own functions are for its interpreter, or not, from its first import on: here they are.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    importlib.import_module("triton.language")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def quickstart() -> Path:
    """The shipped configuration that `make demo` trains."""
    return REPOSITORY / "deploy/runs/quickstart.toml"


@pytest.fixture(scope="session")
def starter() -> Path:
    """The committed starter policy."""
    return REPOSITORY / "examples/starter/policy"


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Real problem sets, where ENTROSTAT_TEST_DATA names their folder."""
    folder = os.environ.get("ENTROSTAT_TEST_DATA")
    if not folder:
        pytest.skip("real problem sets: set ENTROSTAT_TEST_DATA to the folder that holds data/gsm8k_test.jsonl")
    return Path(folder) / "data"


@pytest.fixture
def logs() -> Iterator[None]:
    """Closes the log files that a test opens."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
