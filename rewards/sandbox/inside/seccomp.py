"""The filter that refuses system calls no program of ours needs: our own assembler, no library. Knows no task.

A denylist: what is refused is what reaches into other processes, changes namespaces or mounts, or leads into parts of
the kernel with a bad record; the namespaces and limits do the rest."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import namespaces

REFUSED = {
    # Name: its numbers on x86_64 and aarch64 (None where the machine has no such call).
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "create_module": (174, None),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "personality": (135, 92),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "nfsservctl": (180, 42),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "mbind": (237, 235),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "remap_file_pages": (216, 234),
    "vmsplice": (278, 75),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
}
ON_ITSELF_ONLY = {
    # By their first argument they act on any process of the user; with 0, on the caller.
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}
JUDGED_BY_ARGUMENT = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199)}
LAST_KNOWN = 450
"""Calls that are younger than this list are answered as by a kernel that does not have them."""

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, the kernel's name for the machine
_FIRST_X32 = 0x40000000
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; among the others, AF_VSOCK would reach a virtual machine's host

SECCOMP_MODE_FILTER = 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # offsets into struct seccomp_data (the low word of an argument)


def assemble(machine: str) -> bytes:
    """The filter for `machine` (as uname -m says it), as an array of struct sock_filter.

    Raises OSError for a machine that the list has no numbers for."""
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"no system call filter for {machine}; there is one for {', '.join(_MACHINES)}")
    column, machine_number = _MACHINES[machine]
    number = {name: numbers[column] for name, numbers in JUDGED_BY_ARGUMENT.items()}
    steps: list[tuple[int, int, str, str]] = [  # code, operand, where to go when it holds, and when not ("": on)
        (_LOAD, _MACHINE, "", ""),
        (_EQUAL, machine_number, "", "kill"),
        (_LOAD, _NUMBER, "", ""),
        (_AT_LEAST, _FIRST_X32, "kill", ""),
        (_AT_LEAST, LAST_KNOWN + 1, "unknown", ""),
        (_EQUAL, number["clone3"] or 0, "unknown", ""),  # its flags lie in memory, where no filter can see them
        (_EQUAL, number["clone"] or 0, "clone", ""),
        (_EQUAL, number["socket"] or 0, "socket", ""),
        (_EQUAL, number["socketpair"] or 0, "socket", ""),
    ]
    steps += [(_EQUAL, row[column], "itself", "") for row in ON_ITSELF_ONLY.values()]
    steps += [(_EQUAL, row[column], "refuse", "") for row in REFUSED.values() if row[column] is not None]  # type: ignore[misc]
    steps.append((_RETURN, _ALLOW, "", ""))
    labels = {"clone": len(steps)}
    steps += [(_LOAD, _FIRST_ARGUMENT, "", ""), (_ANY_BIT, _NEW_NAMESPACES, "refuse", "allow")]
    labels["itself"] = len(steps)
    steps += [(_LOAD, _FIRST_ARGUMENT, "", ""), (_EQUAL, 0, "allow", "refuse")]
    labels["socket"] = len(steps)
    steps += [(_LOAD, _FIRST_ARGUMENT, "", ""), *((_EQUAL, family, "allow", "") for family in _FAMILIES)]
    endings = {"family": errno.EAFNOSUPPORT, "refuse": errno.EPERM, "unknown": errno.ENOSYS}
    for label, error in endings.items():
        labels[label] = len(steps)
        steps.append((_RETURN, _ERRNO | error, "", ""))
    for label, verdict in {"allow": _ALLOW, "kill": _KILL}.items():
        labels[label] = len(steps)
        steps.append((_RETURN, verdict, "", ""))
    return b"".join(
        struct.pack("=HBBI", code, *(labels[to] - place - 1 if to else 0 for to in (yes, no)), operand)
        for place, (code, operand, yes, no) in enumerate(steps)
    )


def install(program: bytes) -> None:
    """Put this process and all that it starts under the filter, for good. Raises OSError."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    namespaces.prctl(namespaces.PR_SET_NO_NEW_PRIVS, 1)
    described = Program(len(program) // 8, program)
    namespaces.prctl(namespaces.PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(described))


def for_this_machine() -> bytes:
    """The filter for the machine that this runs on."""
    return assemble(os.uname().machine)
