"""The pool's processes, under a verifier that does what a response says: what a taken-over worker could do."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from entrostat.actors.verifiers import process, tally
from entrostat.actors.verifiers.pool import VerifierPool
from entrostat.protocol.errors import StationLost
from entrostat.protocol.messages import Prompt, Verdict
from entrostat.protocol.settings import VerifierSettings
from entrostat.protocol.task_settings import Jsonl
from entrostat.protocol.verifier_settings import Code
from tests.fake_stations import FakeMeter
from tests.verifier_processes import judged, servers, soon, workers

DEADLINE = 0.5
ASK = Prompt(id=0, name="asked:1", level="", task=0, text="", answer="", entry="")
MATHS, PROGRAMS = Jsonl(path="not read"), Jsonl(path="not read", verifier=Code())
HANGS = "while True: pass"
# A child in its worker's group, and one that leaves both group and session; both sleep for longer than any test.
STARTS_CHILDREN = "import subprocess; [subprocess.Popen(['sleep', '{}'], start_new_session=new) for new in (0, 1)]"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the pools of a test have their scratch folders."""
    monkeypatch.setattr(process, "SERVER", "tests.obedient_server")
    monkeypatch.setenv("ENTROSTAT_SCRATCH", str(tmp_path))
    return tmp_path


@pytest.fixture
def meter() -> FakeMeter:
    return FakeMeter()


@pytest.fixture
def pool(scratch: Path, meter: FakeMeter) -> Iterator[VerifierPool]:
    made = VerifierPool(VerifierSettings(processes=2, deadline_seconds=DEADLINE), [MATHS], meter)
    yield made
    made.close()
    assert list(scratch.iterdir()) == []


@pytest.fixture
def patient(scratch: Path) -> Iterator[VerifierPool]:
    """One whose deadline leaves time for a gibibyte."""
    made = VerifierPool(VerifierSettings(processes=1, deadline_seconds=10), [MATHS])
    yield made
    made.close()


def asked(pool: VerifierPool, *texts: str) -> list[tuple[str, float, str]]:
    """Status, reward and detail of each text."""
    verdicts = judged(pool, [(ASK, text) for text in texts], seconds=20)
    return [(verdicts[n].status, verdicts[n].reward, verdicts[n].detail) for n in range(len(texts))]


def sleepers(mark: str) -> list[psutil.Process]:
    """Processes that `STARTS_CHILDREN` started, anywhere."""
    return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", mark]]


def test_submitting_and_collecting_never_wait_for_a_hanging_verifier(pool: VerifierPool) -> None:
    asked(pool, "")
    start = time.monotonic()
    for number in range(1000):
        pool.submit(number, ASK, HANGS)
    assert pool.collect() == []
    assert pool.pending == 1000
    assert time.monotonic() - start < DEADLINE


def test_a_process_that_hangs_is_replaced_by_one_that_need_not_import_anything(
    pool: VerifierPool, meter: FakeMeter
) -> None:
    asked(pool, "")
    [server] = servers()
    start = time.monotonic()
    verdicts = asked(pool, HANGS, HANGS, *["reward = 0.5"] * 10)
    assert [status for status, _, _ in verdicts] == ["timeout"] * 2 + ["correct"] * 10
    assert time.monotonic() - start < 2 * DEADLINE
    assert servers() == [server]
    assert pool.replaced == 2
    assert meter.counts["entrostat_verify_processes_replaced_total", "worker"] == 2


def test_what_is_behind_a_slow_item_goes_to_another_process(pool: VerifierPool) -> None:
    asked(pool, *["reward = 1"] * 200)  # it has learned that items take no time, and hands out many at once
    start = time.monotonic()
    for number, text in enumerate(["import time; time.sleep(0.45)", *["reward = 1"] * 40]):
        pool.submit(number, ASK, text)
    verdicts: dict[object, float] = {}
    while pool.pending and pool.wait(5):
        verdicts |= {ticket: time.monotonic() - start for ticket, _ in pool.collect()}
    assert len(verdicts) == 41
    assert all(verdicts[number] < verdicts[0] for number in range(1, 41))
    assert pool.replaced == 0


def test_the_deadline_is_of_each_item_and_not_of_what_was_handed_over_with_it(scratch: Path) -> None:
    pool = VerifierPool(VerifierSettings(processes=1, deadline_seconds=DEADLINE), [MATHS])
    verdicts = asked(pool, *[f"import time; time.sleep({DEADLINE / 2})"] * 4)
    pool.close()
    assert [status for status, _, _ in verdicts] == ["correct"] * 4


def test_a_batch_that_fills_slowly_is_looked_at(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "LEAST", 2)
    monkeypatch.setattr(tally, "LONGEST_SECONDS", 0.0)
    meter = FakeMeter()
    pool = VerifierPool(VerifierSettings(processes=1, deadline_seconds=DEADLINE), [MATHS], meter)
    asked(pool, "1 / 0", "1 / 0", "1 / 0")
    assert soon(lambda: meter.counts["entrostat_verify_alarms_total", "failures"] > 0)
    pool.close()


def test_every_process_below_a_worker_ends_with_it(pool: VerifierPool) -> None:
    mark = str(100_000 + os.getpid())
    script = STARTS_CHILDREN.format(mark)
    hung, ended, _ = asked(pool, f"{script}\n{HANGS}", f"{script}\nimport os; os._exit(3)", "")
    assert (hung[0], ended[0]) == ("timeout", "error")
    assert "it ended with code 3" in ended[2]
    assert soon(lambda: not sleepers(mark))
    assert soon(lambda: len(workers()) == 2)
    assert all(worker.status() != psutil.STATUS_ZOMBIE for worker in workers())


def test_each_worker_has_a_private_folder_that_is_removed_with_it(pool: VerifierPool, scratch: Path) -> None:
    fill = "import os; path = scratch\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\n"
    [(_, _, first)] = asked(pool, "import os; detail = f'{scratch} {oct(os.stat(scratch).st_mode & 0o777)}'")
    folder, mode = first.split()
    assert Path(folder).is_relative_to(scratch)
    assert mode == "0o700"
    asked(pool, f"import os; os.chdir(scratch)\n{fill}os.chmod(scratch, 0)\n{HANGS}")
    [root] = scratch.iterdir()
    assert soon(lambda: {path.name for path in root.iterdir()} in ({"worker-1", "worker-3"}, {"worker-2", "worker-3"}))


def test_a_worker_that_has_grown_too_large_goes_and_costs_nothing(patient: VerifierPool) -> None:
    texts = ["reward = 1"] * 10
    verdicts = asked(patient, *texts, "kept = bytearray(1100 << 20)", *texts)
    assert [status for status, _, _ in verdicts] == ["correct"] * 21
    assert soon(lambda: patient.replaced == 1)


def test_a_worker_that_takes_all_memory_costs_its_item_alone(patient: VerifierPool) -> None:
    verdicts = asked(patient, "kept = []\nwhile True: kept.append(bytes(64 << 20))", "reward = 1")
    assert [status for status, _, _ in verdicts] == ["error", "correct"]


def test_a_fork_server_that_is_killed_is_replaced_and_nothing_is_lost(
    pool: VerifierPool, meter: FakeMeter, caplog: pytest.LogCaptureFixture
) -> None:
    asked(pool, "")
    [server] = servers()
    for number in range(200):
        pool.submit(number, ASK, "import time; time.sleep(0.002)")
    time.sleep(0.05)
    server.kill()
    verdicts: dict[object, Verdict] = {}
    while pool.pending and pool.wait(10):
        verdicts |= dict(pool.collect())
    assert {verdict.status for verdict in verdicts.values()} == {"correct"}
    assert len(verdicts) == 200
    assert meter.counts["entrostat_verify_processes_replaced_total", "server"] == 1
    assert "the fork server of the verifiers is replaced: it ended; it ended by SIGKILL" in caplog.text


def test_an_item_that_always_kills_the_fork_server_is_given_up(pool: VerifierPool) -> None:
    verdicts = asked(pool, "import os, time; os.kill(os.getppid(), 9); time.sleep(9)", "reward = 1")
    assert verdicts[0][0] == "error"
    assert "3 times in a row" in verdicts[0][2]
    assert verdicts[1][0] == "correct"


def test_what_a_worker_sends_beside_verdicts_costs_it_its_life(pool: VerifierPool) -> None:
    sends = "import os\nfor fd in range(3, 20):\n  try: os.write(fd, b'\\xff' * 100)\n  except OSError: pass\n"
    verdicts = asked(pool, sends, "reward = 1")
    assert [status for status, _, _ in verdicts] == ["error", "correct"]
    assert "it sent what is no reply" in verdicts[0][2]


def test_a_child_that_runs_on_in_a_verifier_gives_no_verdict_of_its_own(pool: VerifierPool) -> None:
    forks = "import os, time\nif os.fork() == 0: reward = 0.5\nelse: time.sleep(0.1)"
    rewards = [reward for _, reward, _ in asked(pool, *["reward = 1", forks] * 5, *["reward = 0.25"] * 40)]
    assert rewards == [1.0] * 10 + [0.25] * 40


def test_a_verdict_that_says_too_much_is_cut_short(pool: VerifierPool) -> None:
    [(status, _, detail)] = asked(pool, "detail = 'x' * 1_000_000")
    assert (status, set(detail)) == ("correct", {"x"})
    assert pool.replaced == 0


def test_half_a_surrogate_pair_anywhere_in_a_prompt_costs_nothing(pool: VerifierPool) -> None:
    odd = Prompt(id=0, name="a\ud800", level="\ud800", task=0, text="\ud800", answer="\udc00", entry="\udfff")
    verdicts = judged(pool, [(odd, "reward = 1"), (ASK, "reward = 1")], seconds=10)
    assert [verdicts[number].status for number in range(2)] == ["correct"] * 2


def test_closing_leaves_no_process_no_thread_and_no_file(scratch: Path) -> None:
    before, descriptors = set(threading.enumerate()), psutil.Process().num_fds()
    pool = VerifierPool(VerifierSettings(processes=2, deadline_seconds=30), [MATHS])
    asked(pool, "")
    mark = str(200_000 + os.getpid())
    pool.submit("hangs", ASK, f"{STARTS_CHILDREN.format(mark)}\n{HANGS}")
    assert soon(lambda: len(sleepers(mark)) == 2)
    start = time.monotonic()
    pool.close()
    pool.close()
    assert time.monotonic() - start < 3
    assert (servers(), workers(), sleepers(mark)) == ([], [], [])
    assert set(threading.enumerate()) == before
    assert psutil.Process().num_fds() == descriptors
    assert list(scratch.iterdir()) == []
    with pytest.raises(StationLost, match="closed"):
        pool.submit(0, ASK, "")


OWNER = """
import sys, time
from entrostat.actors.verifiers import process, tally
from tests.integration.test_verifier_processes import *
process.SERVER = "tests.obedient_server"
pool = VerifierPool(VerifierSettings(processes=2, deadline_seconds=30), [MATHS])
asked(pool, "")
pool.submit("hangs", ASK, sys.argv[1])
print("started", flush=True)
time.sleep(60)
"""


def owner_of_a_pool(repository: Path, text: str) -> "subprocess.Popen[bytes]":
    """A process with a pool that hangs over a text."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, text],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(repository)},
    )
    assert owner.stdout is not None
    with owner.stdout:
        assert owner.stdout.readline() == b"started\n"
    return owner


def test_a_hung_worker_ends_even_where_the_pools_process_and_the_server_are_both_killed(
    scratch: Path, repository: Path
) -> None:
    owner = owner_of_a_pool(repository, f"open('/proc/self/comm', 'w').write('hung')\n{HANGS}")
    below = psutil.Process(owner.pid).children(recursive=True)
    [server] = [one for one in below if one.ppid() == owner.pid]
    server.suspend()  # it can't tidy up
    owner.kill()
    owner.wait()
    server.kill()
    assert soon(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in below))


def test_nothing_outlives_the_pools_process_even_one_that_is_killed(scratch: Path, repository: Path) -> None:
    mark = str(300_000 + os.getpid())
    owner = owner_of_a_pool(repository, f"{STARTS_CHILDREN.format(mark)}\n{HANGS}")
    assert soon(lambda: len(sleepers(mark)) == 2)
    below = psutil.Process(owner.pid).children(recursive=True)
    assert len(below) >= 5
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert soon(lambda: not any(one.is_running() for one in below))
    assert soon(lambda: list(scratch.iterdir()) == [])


@pytest.mark.parametrize("task", [MATHS, PROGRAMS], ids=["math", "code"])
def test_only_where_a_verifier_has_children_may_limits_on_files_be_raised(scratch: Path, task: Jsonl) -> None:
    pool = VerifierPool(VerifierSettings(deadline_seconds=5), [task])
    reads = "import resource as r; detail = str([r.getrlimit(w) for w in (r.RLIMIT_FSIZE, r.RLIMIT_NOFILE)])"
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'pass'], check=True)"
    [(_, _, detail), (status, _, _)] = asked(pool, reads, child)
    pool.close()
    (size, most_size), (files, most_files) = eval(detail)
    assert (size, files) == (0, 64)
    assert (most_size == 0, most_files == 64) == ((True, True) if task is MATHS else (False, False))
    assert status == "correct"
