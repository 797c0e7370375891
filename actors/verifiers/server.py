"""The fork server: `python -m entrostat.actors.verifiers.server`, started by the pool, which has the other end of fd 0.

It imports the verifiers once and forks a worker in milliseconds whenever it is asked to. It judges nothing itself and
has one thread. It adopts whatever its workers leave behind, so that no process outlives them and no zombie stays. When
the pool's process ends, in whatever way, it ends its workers and removes their folders.
"""

import contextlib
import ctypes
import gc
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec

from entrostat.actors.verifiers import worker
from entrostat.actors.verifiers.frames import LENGTH, Ended, Fork, Forked, Hello, Kill, Order, Ready, pack, take
from entrostat.actors.verifiers.judge import Judge
from entrostat.actors.verifiers.scratch import remove
from entrostat.actors.verifiers.warm import warm_up

LARGEST_ORDER_BYTES = 1 << 26
TICK_SECONDS = 1.0
END_SECONDS = 3.0  # for its workers' deaths
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(parent: int) -> int:
    """Serves the pool in process `parent` until it goes."""
    control = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # a library that prints writes nowhere
    if not _tie(signal.SIGTERM, parent):
        return 0
    hello = _hello(control)
    if hello is None:
        return 0
    try:
        judge = Judge(hello.tasks)
        warm_up(hello.tasks)
    except Exception as error:  # noqa: BLE001 — a user's module may raise anything: it becomes the run's reason to end
        control.sendall(pack(Ready(failure=f"{type(error).__name__}: {error}"[:10_000])))
        return 1
    os.dup2(null, 2)
    os.close(null)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    gc.collect()
    gc.freeze()  # what all workers share is not touched by their collections, and so not copied
    server = Server(judge, hello, control)
    control.sendall(pack(Ready(threads=len(list(Path("/proc/self/task").iterdir())))))
    try:
        server.serve()
    finally:
        server.end()
    return 0


class Server:
    """Forks, kills, reaps."""

    def __init__(self, judge: Judge, hello: Hello, control: socket.socket) -> None:
        self._judge, self._hello, self._control = judge, hello, control
        self._pid = os.getpid()
        self._received = bytearray()
        self._sockets: list[int] = []  # received and not yet given to a worker
        self._orders = msgspec.msgpack.Decoder(Order)
        self._workers: dict[int, Fork] = {}  # by process id
        self._sweepers: set[int] = set()
        self._heard, self._told = os.pipe()
        for end in (self._heard, self._told):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, _noted)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def serve(self) -> None:
        """Obeys until the pool goes or asks to end."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._heard, select.POLLIN)
        with contextlib.suppress(ConnectionError):
            while True:
                ready = {descriptor for descriptor, _ in poll.poll(TICK_SECONDS * 1000)}
                if self._heard in ready and signal.SIGTERM in os.read(self._heard, 4096):
                    return
                if self._control.fileno() in ready and not self._obey():
                    return
                self._reap()

    def end(self) -> None:
        """Ends all workers and what they started, and removes their folders."""
        self._control.close()
        for pid in self._workers:
            _kill_group(pid)
        end = time.monotonic() + END_SECONDS
        while time.monotonic() < end:
            self._kill_strays()
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                break
            time.sleep(0.005)
        remove(Path(self._hello.root))

    def _obey(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 64)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._sockets += descriptors
        self._received += data
        while (order := take(self._received, self._orders, LARGEST_ORDER_BYTES)) is not None:
            if isinstance(order, Fork):
                self._fork(order, self._sockets.pop(0))
            else:
                self._kill(order)
        return bool(data)

    def _fork(self, order: Fork, descriptor: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._control.sendall(pack(Ended(number=order.number, code=0, failure=f"fork: {error}")))
            self._sweep(order.scratch)
            return
        if pid == 0:
            self._leave()
            with socket.socket(fileno=descriptor) as end, _at_last_exit():
                worker.run(self._judge, self._hello, end, Path(order.scratch))
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)  # the child does the same: whoever comes first
        os.close(descriptor)
        self._workers[pid] = order
        self._control.sendall(pack(Forked(number=order.number, pid=pid)))

    def _leave(self) -> None:
        """In a child: nothing of the server is kept, and the child ends with it."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        if not _tie(signal.SIGKILL, self._pid):
            os._exit(0)
        self._control.close()
        os.close(self._heard)
        os.close(self._told)

    def _kill(self, order: Kill) -> None:
        for pid, made in self._workers.items():
            if made.number == order.number:
                _kill_group(pid)

    def _reap(self) -> None:
        """Waits for whatever ended; until then nobody else has its number, so that its group can be killed by it."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                break
            pid = ended.si_pid
            made = self._workers.pop(pid, None)
            if made is not None:
                _kill_group(pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            self._sweepers.discard(pid)
            if made is not None:
                self._sweep(made.scratch)
                self._control.sendall(pack(Ended(number=made.number, code=code)))
        self._kill_strays()

    def _kill_strays(self) -> None:
        """Ends processes that a worker left behind, and that became children of this one, as a subreaper's do."""
        with contextlib.suppress(OSError):  # a kernel without this list: their groups were killed
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            for pid in {int(child) for child in children} - self._workers.keys() - self._sweepers:
                os.kill(pid, signal.SIGKILL)

    def _sweep(self, scratch: str) -> None:
        """Removes a folder in a process of its own: it may hold a million files."""
        with contextlib.suppress(OSError):  # no process can be had: `end` removes it with the others
            pid = os.fork()
            if pid == 0:
                self._leave()
                with _at_last_exit():
                    remove(Path(scratch))
            self._sweepers.add(pid)


@contextlib.contextmanager
def _at_last_exit():  # type: ignore[no-untyped-def]
    """In a child: whatever happens, nothing of the server's code runs on."""
    try:
        yield
        os._exit(0)
    finally:
        os._exit(1)


def _noted(number: int, frame: object) -> None:
    """The signal stands in the wake-up pipe."""


def _tie(number: signal.Signals, parent: int) -> bool:
    """Asks Linux for a signal when the thread that started this process ends; False if the process `parent` has."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    return os.getppid() == parent


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _hello(control: socket.socket) -> Hello | None:
    with control.makefile("rb") as source:
        header = source.read(LENGTH.size)
        if len(header) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack(header)
        body = source.read(length)
    return msgspec.msgpack.decode(body, type=Hello) if len(body) == length else None


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
