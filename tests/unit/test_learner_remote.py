"""The Ray shells of the learner's station, without Ray: where the buffer's log goes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from entrostat.learner.remote import BufferActor
from entrostat.protocol import wire
from tests.made_messages import run_of


@pytest.fixture
def buffer(tmp_path: Path, logs: None) -> Iterator[BufferActor]:
    made = BufferActor(wire.encode(run_of(directory=str(tmp_path))))
    yield made
    made._exporter.close()


def test_the_buffers_log_is_a_file_of_the_run_and_tells_everything_once(buffer: BufferActor, tmp_path: Path) -> None:
    for lease in (1, 2):
        assert buffer.put(lease, np.zeros(4, np.uint8)) == lease
    logging.getLogger("entrostat.learner.buffer").warning("something is wrong")
    assert (tmp_path / "logs/buffer.log").read_text().count("something is wrong") == 1
