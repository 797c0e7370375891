"""`POST /scale`: only who knows the token changes anything, and nothing that comes in does harm."""

import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from entrostat import scale
from entrostat.directory import RunInfo
from entrostat.protocol import endpoint
from entrostat.protocol.endpoint import Endpoint, Page
from entrostat.protocol.errors import ConfigError, RunDirectoryError, Stalled, StationLost
from entrostat.protocol.metrics import Exporter
from entrostat.protocol.scaling import ScaleGate, Scaling, scale_gate
from tests.made_messages import run_of

TOKEN = "a-token-that-nobody-guesses"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}


class Run:
    """A controller's endpoint, and what it was told."""

    def __init__(self, closed: str = "") -> None:
        self.actors = 3
        self.told: list[int] = []
        self.broken: Exception | None = None
        self.targets: list[object] = []
        gate = ScaleGate(token=TOKEN, most=8, scale=self._scale, closed=closed)
        self.exporter = Exporter("controller", targets=lambda: self.targets, scale=gate)  # type: ignore[arg-type,return-value]  # any JSON

    @property
    def info(self) -> RunInfo:
        url = f"http://127.0.0.1:{self.exporter.port}"
        return RunInfo(process=1, started_unix=0.0, targets=f"{url}/targets", health="", scale=f"{url}/scale", token="")

    def _scale(self, actors: int) -> int:
        if self.broken is not None:
            raise self.broken
        before, self.actors = self.actors, actors
        self.told.append(actors)
        return before

    def post(self, body: bytes, headers: dict[str, str], path: str = "/scale") -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.exporter.port}{path}"
        request = urllib.request.Request(url, data=body, headers=headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def refusals(self) -> dict[str, float]:
        found = {}
        for family in self.exporter.registry.collect():
            for sample in family.samples:
                if sample.name == "entrostat_http_refused_total" and sample.value:
                    found[sample.labels["reason"]] = sample.value
        return found


@pytest.fixture
def run() -> Iterator[Run]:
    made = Run()
    yield made
    threading.Thread(target=made.exporter.close).start()  # it takes half a second


def test_who_knows_the_token_scales(run: Run) -> None:
    assert run.post(b'{"actors": 5}', RIGHT) == (200, '{"before":3,"actors":5}')
    assert run.told == [5]
    assert run.refusals() == {}


@pytest.mark.parametrize(
    ("headers", "code", "reason"),
    [
        ({}, 401, "no_token"),
        ({"Authorization": "Basic abc"}, 401, "no_token"),
        ({"Authorization": "Bearer"}, 401, "no_token"),
        ({"Authorization": "Bearer "}, 403, "wrong_token"),
        ({"Authorization": "Bearer wrong"}, 403, "wrong_token"),
        ({"Authorization": f"Bearer {TOKEN}x"}, 403, "wrong_token"),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 403, "wrong_token"),
        ({"Authorization": "Bearer \xe9\xff"}, 403, "wrong_token"),
    ],
)
def test_who_does_not_know_it_is_refused_and_counted(run: Run, headers: dict[str, str], code: int, reason: str) -> None:
    answered, said = run.post(b'{"actors": 5}', headers)
    assert (answered, run.refusals(), run.told) == (code, {reason: 1.0}, [])
    assert TOKEN not in said


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00garbage",
        b"[" * 1000,
        b'{"actors": "5"}',
        b'{"actors": 5.5}',
        b'{"actors": true}',
        b'{"actors": null}',
        b'{"actors": 5, "more": 1}',
        b'{"actors": 1e400}',
        b"{}",
        b" " * 2000 + b'{"actors": 5}',  # longer than is read
        b"x" * 200_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_a_body_that_is_no_request_is_refused_and_changes_nothing(run: Run, body: bytes) -> None:
    try:
        code, said = run.post(body, RIGHT)
    except (ConnectionError, urllib.error.URLError):
        assert len(body) > endpoint.MOST_UNREAD_BYTES  # nobody reads on for so long
    else:
        assert (code, run.refusals()) == (400, {"body": 1.0})
        assert "expected" in said
    assert run.told == []
    assert run.post(b'{"actors": 5}', RIGHT)[0] == 200


@pytest.mark.parametrize("actors", [0, -1, 9, 10**30])
def test_a_number_out_of_range_is_refused_with_the_range(run: Run, actors: int) -> None:
    code, said = run.post(json.dumps({"actors": actors}).encode(), RIGHT)
    assert (code, run.told) == (400, [])
    assert "expected" in said


def test_another_path_changes_nothing(run: Run) -> None:
    assert run.post(b'{"actors": 5}', RIGHT, "/targets")[0] == 404
    assert run.told == []
    plain = Exporter("learner")
    request = urllib.request.Request(f"http://127.0.0.1:{plain.port}/scale", data=b'{"actors": 5}', headers=RIGHT)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request, timeout=5)
    plain.close()


def test_a_controller_that_fails_is_told_and_serves_on(run: Run) -> None:
    run.broken = StationLost("it was not started")
    code, said = run.post(b'{"actors": 5}', RIGHT)
    assert (code, run.refusals()) == (503, {"failed": 1.0})
    assert "it was not started" in said
    run.broken = None
    assert run.post(b'{"actors": 5}', RIGHT)[0] == 200


def test_a_request_that_drips_in_is_cut_off_at_its_deadline() -> None:
    bodies: list[bytes | None] = []

    def post(path: str, authorization: str | None, body: bytes | None) -> Page:
        bodies.append(body)
        return Page(200, "text/plain", b"")

    server = Endpoint("127.0.0.1", 0, lambda path: Page(200, "text/plain", b""), post, seconds=0.2)
    for sent in (b"X-Slow: ", b'Content-Length: 13\r\n\r\n{"actors": 5'):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
            slow.sendall(b"POST /scale HTTP/1.0\r\n" + sent)
            assert slow.recv(100) == b""
        assert time.monotonic() - began < 2.0
    server.close()
    assert set(bodies) <= {None}


def test_a_run_over_nccl_is_not_scaled_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    stations = run_of(directory=str(tmp_path))
    stations = replace(stations, learner=replace(stations.learner, transport="nccl"))
    gate = scale_gate(stations, lambda actors: pytest.fail("it was scaled"))
    assert gate is not None
    answer = gate.answer(RIGHT["Authorization"], b'{"actors": 1}')
    assert answer.code == 409
    assert b'learner.transport = "nccl"' in answer.body


def test_the_environments_token_comes_before_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stations = run_of(directory=str(tmp_path))
    monkeypatch.delenv("ENTROSTAT_TOKEN", raising=False)
    assert scale_gate(stations, lambda actors: 1) is None
    (tmp_path / "token").write_text("of the file")
    monkeypatch.setenv("ENTROSTAT_TOKEN", TOKEN)
    gate = scale_gate(stations, lambda actors: 1)
    assert gate is not None
    assert gate.answer("Bearer of the file", b'{"actors": 1}').code == 403
    assert gate.answer(RIGHT["Authorization"], b'{"actors": 1}').code == 200


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_says_what_happens(run: Run) -> None:
    assert scale.ask(run.info, TOKEN, 5) == Scaling(before=3, actors=5)
    assert scale.sentence(Scaling(before=3, actors=5)).startswith("3 → 5 rollout actors; they join")
    assert scale.sentence(Scaling(before=5, actors=3)).startswith("5 → 3 rollout actors; the others finish")
    assert scale.sentence(Scaling(before=3, actors=3)) == "3 rollout actors, as before"


def test_a_proxy_never_sees_the_token(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.delenv("no_proxy", raising=False)
    assert scale.ask(run.info, TOKEN, 4).actors == 4


def test_a_refusal_reaches_the_user_as_bad_input(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"403.*token"):
        scale.ask(run.info, "wrong", 5)
    with pytest.raises(ConfigError, match=r"actors = 9: expected 1 to 8"):
        scale.ask(run.info, TOKEN, 9)


def test_a_run_that_does_not_live_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"no run lives in .*run\.json"):
        scale.read_info(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirectoryError, match=r"not what a living run writes"):
        scale.read_info(tmp_path)
    ended = Run()
    ended.exporter.close()
    with pytest.raises(RunDirectoryError, match="nobody answers"):
        scale.ask(ended.info, TOKEN, 5)


def test_a_wait_ends_when_so_many_are_up_or_at_its_deadline(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_bytes(
        json.dumps({n: getattr(run.info, n) for n in RunInfo.__struct_fields__}).encode()
    )
    monkeypatch.setenv("ENTROSTAT_TOKEN", TOKEN)
    run.targets = [{"targets": ["x:1"], "labels": {"station": one}} for one in ("learner", "rollout", "rollout")]
    assert scale.run(tmp_path, 2, wait=0.0) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 rollout actors are up"
    with pytest.raises(Stalled, match=r"2 of 4 rollout actors were up after 0.1 s"):
        scale.run(tmp_path, 4, wait=0.1)
