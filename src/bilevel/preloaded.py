"""Commands as forks of a process that has imported everything: to import torch takes longer than most jobs do.

`serve` is that process. A pipeline starts one beside itself (`bilevel preload`) and names its socket in the environment
variable `BILEVEL_PRELOADED`; `python -m bilevel` then first lets it `run` the command there. The fork has the caller's
arguments, folder, environment and standard streams, and lives as long as the caller does; the caller passes signals on
to it and ends as it ends. Wherever a fork would not be the same as a process of its own (another Python, code that was
edited, other variables that libraries read when they are imported), and wherever there is nobody to ask, the command
runs as ever.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from bilevel.errors import UserError
from bilevel.progress import say

ADDRESS = "BILEVEL_PRELOADED"
"""Environment variable with the path of the socket."""

_READ_AT_IMPORT = ("CUDA", "GOMP", "KMP", "LD_", "MKL", "OMP", "OPENBLAS", "PYTHON", "TORCH")
"""Beginnings of environment variables that come too late after a fork."""

_LENGTH = struct.Struct("!I")
_STREAMS = (0, 1, 2)
_LONGEST_WAIT = 10.0
"""Seconds for a request to arrive whole."""


# --- the caller


def run(arguments: Sequence[str]) -> int | None:
    """Exit status of the command, run by a fork; None where it has yet to be run.

    A fork that a signal ended ends this process likewise.
    """
    place = os.environ.get(ADDRESS)
    if place is None:
        return None
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile("r") as answers:
        try:
            connection.connect(place)
            _send(connection, arguments)
            pid = answers.readline()
            if not pid:
                return None
        except OSError:
            return None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, partial(_pass_on, int(pid)))
        status = answers.readline()
    if not status:
        say("error: the process that ran this command was ended; run it again")
        return 1
    if int(status) < 0:
        _end_by(-int(status))
    return int(status)


def _send(connection: socket.socket, arguments: Sequence[str]) -> None:
    request = {
        "arguments": list(arguments),
        "folder": str(Path.cwd()),
        "environment": dict(os.environ),
        "python": _python(),
    }
    text = json.dumps(request).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(text))], _STREAMS)
    connection.sendall(text)


def _pass_on(pid: int, number: int, frame: object) -> None:
    os.kill(pid, number)


def _end_by(number: int) -> None:
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


# --- the process that is asked

_loaded_mb = 0.0
"""In a fork: what the process that it is a fork of held of the files it had loaded."""


def shared_mb() -> float:
    """Megabytes that a process of its own would hold, and this fork does not, since it has not touched them yet."""
    return max(0.0, _loaded_mb - _files_mb()) if _loaded_mb else 0.0


def _files_mb() -> float:
    from bilevel import peak_memory  # which imports torch

    return peak_memory.status("RssFile") / 1e6


def serve(place: Path, master: int, command: Callable[[list[str]], None]) -> NoReturn:
    """Fork for every request at the socket `place`, to have the fork run `command` with the request's arguments.

    Ends with the process `master`, and its forks with it.

    Raises: UserError where the system has no such thing, where there is no such process, or where the socket cannot be
    made; SystemExit at the end.
    """
    if sys.platform != "linux":
        raise UserError("preload: this needs Linux; commands run without it")
    try:
        end = os.pidfd_open(master)
    except OSError as error:
        raise UserError(f"preload: process {master}: {error.strerror}") from None
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(place))
    except OSError as error:
        raise UserError(f"preload: {place}: no socket can be made there: {error.strerror or error}") from None
    listener.listen(1024)
    # before the imports, so that an edit meanwhile is seen, and nothing that these do to the environment
    code, environment = _code(), _read_at_import(os.environ)
    _import_all()
    _Server(place, listener, end, code, environment, command).answer()


def _import_all() -> None:
    # torch does so when it first records, and needs a part of it at the first derivative
    import torch._dynamo  # noqa: F401

    import bilevel.config
    import bilevel.data
    import bilevel.results
    import bilevel.tasks
    import bilevel.teachers  # noqa: F401
    from bilevel import registry

    for task in registry.task_names():
        registry.run_code_hash(task, "none")  # reads the modules of all tasks
    gc.freeze()  # or the collector would write to pages that the forks share
    global _loaded_mb
    _loaded_mb = _files_mb()


class _Server:
    """What `serve` does once everything is there. Descriptors it waits for: of processes, and of sockets."""

    def __init__(
        self,
        place: Path,
        listener: socket.socket,
        end: int,
        code: dict[str, int],
        environment: dict[str, str],
        command: Callable[[list[str]], None],
    ) -> None:
        self._place = place
        self._listener, self._code, self._environment, self._command = listener, code, environment, command
        self._callers: dict[int, socket.socket] = {}  # of each fork that has not ended
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(end, selectors.EVENT_READ, self._end)
        self._waiting.register(listener, selectors.EVENT_READ, self._accept)

    def answer(self) -> NoReturn:
        while True:
            for key, _ in self._waiting.select():
                key.data()

    def _end(self) -> None:
        self._place.unlink(missing_ok=True)
        raise SystemExit

    def _accept(self) -> None:
        """Begin what a caller asks for."""
        caller, _ = self._listener.accept()
        streams: list[int] = []
        try:
            request = _receive(caller, streams)
            same = self._is_as_here(request)
            if same and self._fork(caller):
                _run_and_end(self._command, request, streams)
            if not same:
                caller.close()
        except (OSError, ValueError):  # it is gone, or nothing of ours
            caller.close()
        for stream in streams:
            os.close(stream)

    def _is_as_here(self, request: Mapping[str, Any]) -> bool:
        environment = _read_at_import(request["environment"])
        return request["python"] == _python() and environment == self._environment and _code() == self._code

    def _fork(self, caller: socket.socket) -> bool:
        """Whether this is the fork."""
        pid = os.fork()
        if pid == 0:
            self._close()
            caller.close()
            return True
        process = os.pidfd_open(pid)
        self._callers[pid] = caller
        self._waiting.register(process, selectors.EVENT_READ, partial(self._fork_ended, process, pid))
        self._waiting.register(caller, selectors.EVENT_READ, partial(self._caller_gone, caller, pid))
        _tell(caller, pid)
        return False

    def _close(self) -> None:
        """Nothing of this is for a fork."""
        for key in list(self._waiting.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._waiting.close()

    def _fork_ended(self, process: int, pid: int) -> None:
        caller = self._callers.pop(pid)
        self._waiting.unregister(process)
        os.close(process)
        _, status = os.waitpid(pid, 0)
        if caller in self._waiting.get_map():
            self._waiting.unregister(caller)
        _tell(caller, os.waitstatus_to_exitcode(status))
        caller.close()

    def _caller_gone(self, caller: socket.socket, pid: int) -> None:
        """It never says more than its request: to be read from, its socket must have been closed."""
        if pid in self._callers:
            self._waiting.unregister(caller)
            os.kill(pid, signal.SIGKILL)


def _receive(caller: socket.socket, streams: list[int]) -> dict[str, Any]:
    """A request; `streams` receives the caller's standard streams."""
    caller.settimeout(_LONGEST_WAIT)
    head, received, _, _ = socket.recv_fds(caller, _LENGTH.size, len(_STREAMS))
    streams.extend(received)
    if len(head) < _LENGTH.size:
        raise ValueError("no request")
    with caller.makefile("rb") as file:
        request: dict[str, Any] = json.loads(file.read(_LENGTH.unpack(head)[0]))
    caller.settimeout(None)
    return request


def _become(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    """Make this fork what the caller is."""
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)  # at the death of the process it is a fork of
    for stream, number in zip(streams, _STREAMS, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    del os.environ[ADDRESS]
    os.chdir(request["folder"])


def _run_and_end(command: Callable[[list[str]], None], request: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    """As Python ends, but that nothing is torn down, which would touch, and so copy, all memory that forks share."""
    status = 1
    try:
        _become(request, streams)
        command(request["arguments"])
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)


def _tell(caller: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it may be gone
        caller.sendall(f"{number}\n".encode())


def _python() -> list[str]:
    """What makes one Python the same as another."""
    return [sys.executable, sys.version, *sys.path[1:]]


def _code() -> dict[str, int]:
    """Time of the last change of every module of the package."""
    return {str(path): path.stat().st_mtime_ns for path in Path(__file__).parent.rglob("*.py")}


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}
