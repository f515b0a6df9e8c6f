"""The host's end of the supervisor: started by bubblewrap in a read-only system of its own, spoken to, ended.

Knows the machine (its folders, its users, why it may refuse), no box and no program."""

from __future__ import annotations

import json
import os
import platform
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

INSIDE = Path(__file__).parent / "inside"
START_SECONDS = 30.0
END_SECONDS = 5.0
OLDEST_KERNEL = (5, 14)
"""Since then RLIMIT_NPROC counts within a user namespace; before, all programs of one user share one limit."""
NOBODY = 65534

# What a Python and its shared libraries need of a system: no home, no /sys, no folder in which users keep files.
SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
USR_FOLDERS = tuple(f"/usr{name}" for name in (*SYSTEM_FOLDERS, "/share/zoneinfo"))
SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
PREFIX_FOLDERS = ("bin", "lib", "lib32", "lib64")
DEVICES = ("null", "zero", "full", "random", "urandom")
NAMESPACES = ("user", "pid", "ipc", "net", "uts", "cgroup-try")

# No -I: it would ignore PYTHONHASHSEED, and one program must not be judged twice in two ways.
PYTHON_OPTIONS = ("-s", "-B", "-X", "utf8")
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1",  # or each thread would take 64 MB of the address space, which is limited
}


class SandboxUnavailableError(RuntimeError):
    """There is no sandbox here, or it broke: why, and what to do. It says nothing about any program."""


class Supervisor:
    """A running supervisor. It ends when `close` is called, when its socket closes and when this thread ends.

    Raises SandboxUnavailableError where it cannot be started."""

    def __init__(self, *, unsafe: bool) -> None:
        self._errors = os.fdopen(os.memfd_create("errors"), "r+b", buffering=0)
        self._process_one = -1
        self._process: subprocess.Popen[bytes] | None = None
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                if unsafe:
                    self._start_unsafe(theirs)
                else:
                    self._start(theirs)
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def send(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Ask for a box. Raises OSError when the supervisor is gone."""
        socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)

    def is_alive(self) -> bool:
        """Whether it holds its end of the socket: until after its own end no box of its ends for that reason."""
        if self._control.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self._control, select.POLLHUP)
        return not poll.poll(0)

    def close(self) -> None:
        """End it and every box; no process is left of them, and no zombie. May be called twice."""
        self._control.close()
        if self._process is not None:
            try:
                self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._release()

    def kill(self) -> None:
        """End it at once, whatever it does. Without this order bubblewrap's own child would be nobody's to wait for."""
        self._control.close()
        if self._process is not None:
            if self._process_one >= 0:
                _send_signal(self._process_one)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(END_SECONDS)
            self._process.kill()
            self._process.wait()
        self._release()

    def _release(self) -> None:
        self._errors.close()
        if self._process_one >= 0:
            os.close(self._process_one)
            self._process_one = -1

    def _start(self, control: socket.socket) -> None:
        """Under bubblewrap. As root the namespace gets a second user, nobody, for the programs to be: no limit on the
        number of processes holds for the machine's root."""
        bwrap = _find_bubblewrap()
        two_users = os.geteuid() == 0 and _is_mapped(NOBODY)
        info_read, info_write = os.pipe()
        block_read, block_write = os.pipe()
        passed = {control.fileno(), info_write}
        command = [bwrap, *(f"--unshare-{name}" for name in NAMESPACES), "--uid", "0", "--gid", "0"]
        command += ["--cap-add", "ALL", "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"]
        command += ["--info-fd", str(info_write)]
        if two_users:
            command += ["--userns-block-fd", str(block_read)]
            passed.add(block_read)
        for name, value in ENVIRONMENT.items():
            command += ["--setenv", name, value]
        command += [*_read_only_system(), "--", *_python(Path("/inside"), "confined", control)]
        try:
            self._spawn(command, passed)
            os.close(info_write)
            info_write = -1
            process_one = self._read_process_one(info_read)
            if two_users:
                for map_name in ("uid_map", "gid_map"):
                    _write_at_once(f"/proc/{process_one}/{map_name}", f"0 {os.geteuid()} 1\n1 {NOBODY} 1\n")
                os.write(block_write, b"1")
        except OSError as error:
            raise self._unavailable(str(error)) from None
        finally:
            for descriptor in (info_read, info_write, block_read, block_write):
                if descriptor >= 0:
                    os.close(descriptor)

    def _read_process_one(self, info: int) -> int:
        """The host's number of the namespace's first process, from what bubblewrap says of it; holds on to it."""
        text, deadline, poll = "", time.monotonic() + START_SECONDS, select.poll()
        poll.register(info, select.POLLIN)
        while not text.rstrip().endswith("}"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise self._unavailable("bubblewrap does not start")
            piece = os.read(info, 4096)
            if not piece:
                raise self._unavailable("bubblewrap ended")
            text += piece.decode()
        number = int(json.loads(text)["child-pid"])
        self._process_one = os.pidfd_open(number)
        return number

    def _start_unsafe(self, control: socket.socket) -> None:
        try:
            self._spawn(_python(INSIDE, "unsafe", control), {control.fileno()})
        except OSError as error:
            raise self._unavailable(str(error)) from None

    def _spawn(self, command: list[str], passed: set[int]) -> None:
        self._process = subprocess.Popen(
            command,
            env=ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=sorted(passed),
            start_new_session=True,
        )

    def _wait_until_ready(self) -> None:
        self._control.settimeout(START_SECONDS)
        try:
            answer = self._control.recv(64)
        except OSError as error:
            raise self._unavailable(f"the supervisor does not answer ({error})") from None
        if answer != b"ready":
            raise self._unavailable("the supervisor ended")

    def _unavailable(self, cause: str) -> SandboxUnavailableError:
        """The error, with what bubblewrap or Python had to say."""
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)  # its last words come before its end
        self._errors.seek(0)
        words = self._errors.read(2000).decode(errors="replace").strip()
        return unavailable(f"{cause}: {words}" if words else cause)


def unavailable(cause: str) -> SandboxUnavailableError:
    """The error for `cause`, with the remedies that fit this machine."""
    remedies = []
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        remedies.append("`sysctl -w kernel.apparmor_restrict_unprivileged_userns=0` (AppArmor holds namespaces back)")
    if _setting("kernel/unprivileged_userns_clone") == "0":
        remedies.append("`sysctl -w kernel.unprivileged_userns_clone=1`")
    if _setting("user/max_user_namespaces") == "0":
        remedies.append("`sysctl -w user.max_user_namespaces=15000`")
    if not remedies:
        remedies.append(
            "allow user namespaces; in a container run it with `--security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined`"
        )
    return SandboxUnavailableError(f"no sandbox: {cause}. Remedy: {'; '.join(remedies)}")


def _find_bubblewrap() -> str:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailableError(
            "no sandbox: bubblewrap (bwrap) is not installed. Remedy: `apt-get install bubblewrap`, 0.6 or newer; "
            "unsafe=True runs programs without any protection"
        )
    kernel = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    if kernel < OLDEST_KERNEL:
        raise SandboxUnavailableError(
            f"no sandbox: Linux {platform.release()} cannot limit the processes of one program. "
            f"Remedy: Linux {'.'.join(map(str, OLDEST_KERNEL))} or newer"
        )
    return bwrap


def _python(folder: Path, kind: str, control: socket.socket) -> list[str]:
    return [_interpreter(), *PYTHON_OPTIONS, str(folder / "supervisor.py"), kind, str(control.fileno())]


def _interpreter() -> str:
    """The Python that a virtual environment was made of: its packages are few, and all the world may read them."""
    return os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)


def _read_only_system() -> list[str]:
    """bubblewrap's arguments for a system in which nothing can be written and nothing of a user's is to be seen."""
    arguments: list[str] = []
    shown: set[Path] = set()

    def show(name: str) -> None:
        path = Path(name)
        if not os.path.lexists(path) or shown & {path, *path.parents}:
            return
        for folder in reversed(path.parents[:-1]):
            # Left to bubblewrap, a folder on the way would be as closed as the one of this name is.
            arguments.extend(["--perms", "0755", "--dir", str(folder)])
        if path.is_symlink():
            arguments.extend(["--symlink", os.readlink(path), name])
        else:
            arguments.extend(["--ro-bind", name, name])
            shown.add(path)

    for path in (*SYSTEM_FOLDERS, *USR_FOLDERS, *SYSTEM_FILES):
        show(path)
    for prefix in (os.path.realpath(sys.base_prefix), sys.base_prefix):
        for name in PREFIX_FOLDERS:
            show(f"{prefix}/{name}")
    show(_interpreter())
    arguments += ["--ro-bind", str(INSIDE), "/inside", "--proc", "/proc", "--tmpfs", "/dev", "--dir", "/dev/shm"]
    for name in DEVICES:
        arguments += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    arguments += ["--symlink", "/proc/stdin", "/dev/stdin", "--remount-ro", "/dev"]
    return [*arguments, "--dir", "/tmp", "--remount-ro", "/"]


def _is_mapped(user: int) -> bool:
    """Whether this process's user namespace has the user."""
    rows = [[int(number) for number in row.split()] for row in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= user < first + count for first, _, count in rows)


def _setting(name: str) -> str:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else ""


def _write_at_once(path: str, text: str) -> None:
    """In one write: the kernel takes a map whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _send_signal(process: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, signal.SIGKILL)
