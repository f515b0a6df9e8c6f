"""The process that lives as long as its Sandbox: for each request it forks a keeper, which makes the box.

Learns nothing that a program must not know: what a program is given passes by as a descriptor that is never read here,
for each program is a fork of this process and could look through its memory."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys

import keeper
import namespaces
import seccomp

MAX_REQUEST_BYTES, MAX_DESCRIPTORS = 65536, 64

# What many programs import: they find it loaded instead of reading it from disk, each for itself.
COMMON = (
    "abc argparse array ast base64 bisect calendar cmath collections.abc contextlib copy csv dataclasses datetime "
    "decimal enum fractions functools hashlib heapq inspect io itertools json math numbers operator pathlib pprint "
    "queue random re statistics string struct tempfile textwrap threading time traceback types typing unicodedata "
    "uuid warnings weakref"
).split()


def main() -> None:
    """Serve until the host hangs up. Arguments: confined or unsafe, and the descriptor of the socket to the host."""
    confined, control = sys.argv[1] == "confined", socket.socket(fileno=int(sys.argv[2]))
    if confined:
        namespaces.be_second_user()
    namespaces.prctl(namespaces.PR_SET_PDEATHSIG, signal.SIGKILL)
    # Keepers are never waited for, and what process 1 of a namespace has no handler for cannot reach it.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in COMMON:
        importlib.import_module(name)
    system_call_filter = seccomp.for_this_machine() if confined else b""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    gc.collect()
    gc.freeze()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, MAX_DESCRIPTORS)
        if not message:
            os._exit(0)
        leash = socket.socket(fileno=descriptors[0])
        try:
            request = _understand(
                message, descriptors, leash=leash, system_call_filter=system_call_filter, confined=confined
            )
            process = namespaces.fork_into_namespaces() if confined else os.fork()
        except Exception as error:
            leash.send(f"failed {type(error).__name__}: {error}".encode())
        else:
            if process == 0:
                control.close()
                keeper.keep(request)
        leash.close()
        for descriptor in descriptors[1:]:
            os.close(descriptor)


def _understand(
    message: bytes, descriptors: list[int], *, leash: socket.socket, system_call_filter: bytes, confined: bool
) -> keeper.Request:
    """The request, its task imported. Its descriptors come in the order of `keeper.Request`."""
    told = json.loads(message)
    _, payload, stdin, *others = descriptors
    stdout, stderr = (others.pop(0), others.pop(0)) if told["capture"] else (1, 2)
    return keeper.Request(
        main=importlib.import_module(told["task"]).main,
        limits=told["limits"],
        confined=confined,
        user=os.getuid(),
        group=os.getgid(),
        system_call_filter=system_call_filter,
        leash=leash,
        payload=payload,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cgroups=others[: told["num_cgroups"]],
        pipes=others[told["num_cgroups"] :],
    )


if __name__ == "__main__":
    main()
