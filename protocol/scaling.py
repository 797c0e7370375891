"""`POST /scale`: who may ask for another number of rollout actors, and what is answered. No sockets here."""

import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from entrostat.protocol.errors import EntrostatError, RunDirectoryError
from entrostat.protocol.settings import Stations

log = logging.getLogger(__name__)

VARIABLE = "ENTROSTAT_TOKEN"
FILE = "token"  # in the run directory, where the variable is not set
SCHEME = "Bearer "

Refused = Literal["no_token", "wrong_token", "body", "range", "closed", "failed"]
REFUSED: tuple[Refused, ...] = ("no_token", "wrong_token", "body", "range", "closed", "failed")


class ScaleRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request, JSON."""

    actors: int


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """The body of the answer, JSON: how many rollout actors there should have been, and how many there should be."""

    before: int
    actors: int


class Answer(msgspec.Struct, frozen=True):
    """What is sent back."""

    code: int
    body: bytes
    refused: Refused | None = None


class ScaleGate:
    """Lets those through who know the token.

    Args:
        token: of the run.
        most: rollout actors that may be asked for.
        scale: makes it so and returns how many there should have been; called from any thread.
        closed: why this run can't be scaled, a sentence; "" where it can.
    """

    def __init__(self, *, token: str, most: int, scale: Callable[[int], int], closed: str = "") -> None:
        self._token = token
        self._most = most
        self._scale = scale
        self._closed = closed

    def answer(self, authorization: str | None, body: bytes) -> Answer:
        """Judges one request and carries it out; whatever comes in, it answers."""
        if authorization is None or not authorization.startswith(SCHEME):
            return _refusal(401, "no_token", "expected the header Authorization: Bearer TOKEN; run.json names its file")
        if not same(authorization[len(SCHEME) :].strip(), self._token):
            return _refusal(403, "wrong_token", "the token is not this run's; run.json names the file that holds it")
        try:
            wanted = msgspec.json.decode(body, type=ScaleRequest).actors
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _refusal(400, "body", 'expected {"actors": N} as JSON, nothing else')
        if not 1 <= wanted <= self._most:
            return _refusal(400, "range", f"actors = {wanted}: expected 1 to {self._most} (rollout.max_actors)")
        if self._closed:
            return _refusal(409, "closed", self._closed)
        try:
            before = self._scale(wanted)
        except (EntrostatError, TimeoutError, OSError) as error:
            return _refusal(
                503, "failed", f"the controller did not take it in: {str(error) or 'it did not answer in time'}"
            )
        log.info("the run is scaled from %d to %d rollout actors", before, wanted)
        return Answer(200, msgspec.json.encode(Scaling(before=before, actors=wanted)))


def scale_gate(stations: Stations, scale: Callable[[int], int]) -> ScaleGate | None:
    """The gate of a run; None, and a warning, where this process is given no token."""
    closed = ""
    if stations.learner.transport == "nccl":
        closed = (
            'learner.transport = "nccl" sends to the GPUs of one rollout actor, so this run can\'t be scaled: use '
            'learner.transport = "shared_memory"'
        )
    try:
        token = find_token(stations.directory)
    except RunDirectoryError as error:
        log.warning("this run can't be scaled while it goes: %s", error)
        return None
    return ScaleGate(token=token, most=stations.rollout.max_actors, scale=scale, closed=closed)


def same(given: str, expected: str) -> bool:
    """Whether two tokens are equal, in a time that tells nothing about where they differ."""
    return hmac.compare_digest(given.encode(errors="surrogateescape"), expected.encode(errors="surrogateescape"))


def find_token(directory: str | Path) -> str:
    """A run's token: the environment's, or that of its directory.

    Raises:
        RunDirectoryError: there is neither.
    """
    token = os.environ.get(VARIABLE, "").strip()
    if token:
        return token
    path = Path(directory) / FILE
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RunDirectoryError(
            f"the run's token can't be read from {path} ({error.strerror}): set {VARIABLE}, or read it as the user who "
            "started the run"
        ) from error
    if not token:
        raise RunDirectoryError(f"{path} is empty: expected the run's token; set {VARIABLE} instead")
    return token


def _refusal(code: int, refused: Refused, sentence: str) -> Answer:
    return Answer(code, f"{sentence}\n".encode(), refused)
