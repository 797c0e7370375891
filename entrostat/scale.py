"""`entrostat scale RUN --actors N`: asks a living run's controller for another number of rollout actors."""

import http.client
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import msgspec

from entrostat.directory import RunInfo
from entrostat.protocol.errors import ConfigError, RunDirectoryError, Stalled, StationLost
from entrostat.protocol.scaling import SCHEME, ScaleRequest, Scaling, find_token

ANSWER_SECONDS = 20.0
POLL_SECONDS = 0.2
REFUSED = (400, 401, 403, 404, 409)


def run(directory: Path, actors: int, *, wait: float | None) -> int:
    """Asks, says what will happen, and with `wait` returns only when so many serve.

    Raises:
        RunDirectoryError: no run lives there, or its token can't be read.
        ConfigError: the run refuses.
        StationLost: its controller could not do it.
        Stalled: there were not so many within `wait` seconds.
    """
    info = read_info(directory)
    answer = ask(info, find_token(directory), actors)
    print(sentence(answer))
    if wait is not None:
        _wait(info, directory, answer.actors, wait)
    return 0


def read_info(directory: Path) -> RunInfo:
    """Where the run in `directory` can be asked.

    Raises:
        RunDirectoryError: no run lives there.
    """
    path = directory / "run.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except FileNotFoundError as error:
        raise RunDirectoryError(
            f"no run lives in {directory}: expected {path}, which is there from a run's start to its end"
        ) from error
    except msgspec.MsgspecError as error:
        raise RunDirectoryError(
            f"{path} is not what a living run writes ({error}): was it begun by this version?"
        ) from (error)


def ask(info: RunInfo, token: str, actors: int) -> Scaling:
    """One `POST /scale`.

    Raises:
        RunDirectoryError: nobody answers: the run has ended without taking its `run.json` along.
        ConfigError: the run refuses.
        StationLost: its controller could not do it.
    """
    body = msgspec.json.encode(ScaleRequest(actors=actors))
    headers = {"Authorization": f"{SCHEME}{token}", "Content-Type": "application/json"}
    request = urllib.request.Request(info.scale, data=body, headers=headers, method="POST")
    try:
        return msgspec.json.decode(_read(request), type=Scaling)
    except urllib.error.HTTPError as error:
        said = f"{info.scale} answered {error.code}: {error.read().decode(errors='replace').strip()}"
        if error.code in REFUSED:
            raise ConfigError(said) from error
        raise StationLost(said) from error
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise _nobody(info, error) from error


def ready(info: RunInfo) -> int:
    """How many rollout actors the run lists as up.

    Raises:
        RunDirectoryError: nobody answers.
    """
    try:
        groups = json.loads(_read(urllib.request.Request(info.targets)))
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise _nobody(info, error) from error
    return sum(group["labels"]["station"] == "rollout" for group in groups)


def sentence(answer: Scaling) -> str:
    """What happens now."""
    before, actors = answer.before, answer.actors
    if before == actors:
        return f"{actors} rollout actors, as before"
    what = f"{before} → {actors} rollout actors"
    if actors > before:
        return f"{what}; they join when their engines are up"
    return f"{what}; the others finish what they began, or hand it back, and go"


def _wait(info: RunInfo, directory: Path, actors: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while (found := ready(info)) != actors:
        if time.monotonic() >= deadline:
            raise Stalled(
                f"{found} of {actors} rollout actors were up after {seconds:g} s; the run goes on, and so does the "
                f"change: {directory}/logs says what they wait for"
            )
        time.sleep(POLL_SECONDS)
    print(f"{actors} rollout actors are up")


def _read(request: urllib.request.Request) -> bytes:
    """The answer of the run itself.

    Raises:
        OSError: there is none.
    """
    # The token is for the run alone: no proxy, and nowhere that an answer sends on to.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            content: bytes = answer.read()
    except (http.client.HTTPException, UnicodeError) as error:
        raise OSError(f"what answers there is no run of Entrostat: {error}") from error
    return content


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes an answer that names another address for what it is: a refusal."""

    def redirect_request(self, *arguments: object) -> None:
        """None: nothing is asked there."""


def _nobody(info: RunInfo, error: Exception) -> RunDirectoryError:
    return RunDirectoryError(
        f"nobody answers at {info.targets} ({error}): the run (process {info.process}) has ended, or is on another host"
    )
