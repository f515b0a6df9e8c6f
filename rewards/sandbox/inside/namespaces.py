"""The system calls that Python has no function for: namespaces, mounts, capabilities. Knows no request and no task."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220}
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 8, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
CAPABILITY_VERSION_3 = 0x20080522
NUM_CAPABILITIES_AT_MOST = 64

BOX_USER = 65534
"""The user, and the group, that a program is in its own user namespace."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc_holding_the_lock = ctypes.PyDLL(None, use_errno=True)  # a forked child must not have to ask for the lock


def prctl(option: int, *arguments: int) -> None:
    """prctl(2), with what is left of its five arguments zero. Raises OSError, as everything here does."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    _check(_libc.prctl(ctypes.c_int(option), *map(ctypes.c_ulong, padded)), f"prctl {option}")


def be_second_user() -> None:
    """Become user 1, where this namespace has one, and keep every capability.

    It is the host's way to have programs be nobody on the machine: no limit on the number of processes holds for what
    stands behind the machine's root."""
    with open("/proc/self/uid_map") as file:
        if len(file.readlines()) < 2:
            return
    os.setgroups([])
    os.setresgid(1, 1, 1)
    prctl(PR_SET_KEEPCAPS, 1)
    os.setresuid(1, 1, 1)
    _set_capabilities(0xFFFFFFFF)
    prctl(PR_SET_DUMPABLE, 1)  # a change of user makes /proc/self root's own


def fork_into_namespaces() -> int:
    """As os.fork, but the child is process 1 of user, pid, ipc, mount and network namespaces of its own.

    The C library does not know of it: the child may only use what is loaded and fork in its turn."""
    flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS | CLONE_NEWNET | signal.SIGCHLD
    number = CLONE_NUMBERS[os.uname().machine]
    process: int = _libc_holding_the_lock.syscall(*map(ctypes.c_ulong, (number, flags, 0, 0, 0, 0)))
    if process < 0:
        _check(process, "clone into new namespaces")
    return process


def settle(*, user: int, group: int) -> None:
    """In the child: name the user and group that it came as, and close the way to user namespaces below this one."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{BOX_USER} {user} 1")
    _write("/proc/self/gid_map", f"{BOX_USER} {group} 1")
    # The number belongs to the namespace of whoever writes it.
    _write("/proc/sys/user/max_user_namespaces", "0")


def mount_scratch(*, scratch_mb: int, scratch_files: int, stdin: int) -> None:
    """The writable folder, as /dev/shm and as /tmp; over /proc nothing but a copy of stdin, for /dev/stdin."""
    flags = MS_NOSUID | MS_NODEV | MS_NOEXEC
    _mount("tmpfs", "/dev/shm", flags=flags, data=f"size={scratch_mb}m,nr_inodes={scratch_files},mode=1777")
    _mount("/dev/shm", "/tmp", flags=MS_BIND)
    num_bytes = os.fstat(stdin).st_size
    _mount("tmpfs", "/proc", flags=flags, data=f"size={num_bytes // 1024 + 64}k,nr_inodes=8,mode=755")
    copy = os.open("/proc/stdin", os.O_WRONLY | os.O_CREAT, 0o444)
    offset = 0
    while offset < num_bytes:
        offset += os.sendfile(copy, stdin, offset, num_bytes - offset)
    os.close(copy)
    _mount("tmpfs", "/proc", flags=flags | MS_REMOUNT | MS_RDONLY)


def drop_capabilities() -> None:
    """Every capability from every set, and no way back to one through a program that is executed."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(NUM_CAPABILITIES_AT_MOST):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break  # the kernel's last one was the one before
    _set_capabilities(0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def _set_capabilities(bits: int) -> None:
    """Effective and permitted as far as they are permitted, none inheritable."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)(bits, bits, 0, bits, bits, 0)), "capset")


def _mount(source: str, target: str, *, flags: int, data: str = "") -> None:
    """A mount of a tmpfs, or of what is at `source` with MS_BIND."""
    arguments = source.encode(), target.encode(), b"tmpfs", ctypes.c_ulong(flags), data.encode()
    _check(_libc.mount(*arguments), f"mount {target}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
