"""A one-node SLURM cluster on the loopback interface, for tests: up for as long as a command takes.

    python tests/slurm/cluster.py COMMAND ...

runs COMMAND, or a shell, with the cluster in its environment. It takes the programs of Debian's `slurm-wlm` and
`munge`, no service manager and no file outside a folder of its own under /tmp; two GPUs are pretended. Should this
process be killed, the kernel tells its daemons to end.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = (
    "munged",
    "munge",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scancel",
    "scontrol",
    "sinfo",
    "setpriv",
)

CONFIGURATION = """\
ClusterName=bilevel
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={folder}/task_prolog
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobs
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

# what files of GPUs are is of no concern to SLURM here
GPUS = "NodeName={host} Name=gpu File=/dev/null,/dev/zero\n"

# a line for each task that SLURM starts: its job and the GPUs that it was given
TASK_PROLOG = """\
#!/bin/sh
echo "$SLURM_JOB_ID ${{CUDA_VISIBLE_DEVICES:-none}}" >> {folder}/gpus
"""

# the plugin takes SLURM_CONF away from the srun that it calls inside a job
SRUN = """\
#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""


def find(program: str) -> str | None:
    """Path of a program, also where those of the administrator are not in PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def missing() -> list[str]:
    """What has to be installed before there can be a cluster."""
    return [program for program in PROGRAMS if find(program) is None]


class Cluster:
    """The cluster, up inside a `with` block.

    environment: variables of processes that are to use it. folder: its files and logs, removed in the end.

    Raises RuntimeError, with the ends of its logs, where it does not come up.
    """

    def __init__(self, cpus: int = 2, memory: int = 32_000) -> None:
        # sockets have short names only, and munge wants a folder that all can enter
        self.folder = Path(tempfile.mkdtemp(prefix="bilevel-slurm-", dir="/tmp"))
        self.folder.chmod(0o755)
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._cpus, self._memory = cpus, memory
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._write_files()
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def call(self, *command: str) -> str:
        """Output of one of SLURM's programs. Raises subprocess.CalledProcessError."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def finished(self) -> dict[str, dict[str, str]]:
        """SLURM's own words on each job that has ended, by its number: JobState, TimeLimit, Tres and others."""
        path = self.folder / "jobs"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = (dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines)
        return {row["JobId"]: row for row in rows}

    def gpus(self) -> dict[str, set[str]]:
        """CUDA_VISIBLE_DEVICES of each job's tasks, by its number."""
        found: dict[str, set[str]] = {}
        path = self.folder / "gpus"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            job, devices = line.split()
            found.setdefault(job, set()).add(devices)
        return found

    def _write_files(self) -> None:
        for name in ("munge", "controller", "node", "bin"):
            (self.folder / name).mkdir()
        key = self.folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        ports = _free_ports(2)
        values = {
            "folder": self.folder,
            "host": _host(),
            "user": self.call("id", "-un").strip(),
            "controller_port": ports[0],
            "node_port": ports[1],
            "cpus": self._cpus,
            "memory": self._memory,
            "srun": find("srun"),
        }
        for name, text in (
            ("slurm.conf", CONFIGURATION),
            ("gres.conf", GPUS),
            ("task_prolog", TASK_PROLOG),
            ("bin/srun", SRUN),
        ):
            path = self.folder / name
            path.write_text(text.format(**values), encoding="utf-8")
            path.chmod(0o755)

    def _start(self) -> None:
        folder = self.folder / "munge"
        files = {name: str(folder / name) for name in ("socket", "pid", "log", "seed")}
        options = [f"--{name}{'' if name == 'socket' else '-file'}={path}" for name, path in files.items()]
        self._daemon("munged", "--foreground", "--force", f"--key-file={folder / 'key'}", *options)
        self._await("munge", lambda: self.call("munge", "--no-input", f"--socket={files['socket']}"))
        self._daemon("slurmctld", "-D", "-i")
        self._daemon("slurmd", "-D", "-N", _host())
        self._await("a node", lambda: "idle" in self.call("sinfo", "--noheader", "--format=%T"))

    def _daemon(self, name: str, *options: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [str(find("setpriv")), "--pdeathsig", "TERM", str(find(name)), *options]
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )

    def _await(self, what: str, ready: Callable[[], object]) -> None:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                if ready():
                    return
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                pass
            time.sleep(0.2)
        logs = "\n".join(
            f"{path.name}:\n{path.read_text(errors='replace')[-2000:]}" for path in self.folder.glob("*.log")
        )
        raise RuntimeError(f"the test cluster has not come up: {what} is missing\n{logs}")

    def _stop(self) -> None:
        if len(self._daemons) > 1:
            self._cancel_all()
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _cancel_all(self) -> None:
        try:
            if jobs := self.call("squeue", "--noheader", "--format=%i").split():
                self.call("scancel", *jobs)
            end = time.monotonic() + 15
            while self.call("squeue", "--noheader", "--format=%i").split() and time.monotonic() < end:
                time.sleep(0.5)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            pass  # no controller any more; what runs ends with its daemons


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def main() -> None:
    """Run the command of the command line with a cluster of two CPUs."""
    if programs := missing():
        sys.exit(f"not installed: {', '.join(programs)}; Debian: apt-get install slurm-wlm munge")
    with Cluster() as cluster:
        print(cluster.call("sinfo"), end="", file=sys.stderr)
        command = sys.argv[1:] or [os.environ.get("SHELL", "sh")]
        raise SystemExit(subprocess.run(command, env=cluster.environment, check=False).returncode)


if __name__ == "__main__":
    main()
