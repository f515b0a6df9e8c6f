"""The filter of system calls and the cgroups, on their own: neither needs bubblewrap or a certain machine."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import re
import shutil
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rewards.sandbox import Limits, Sandbox, bubblewrap
from rewards.sandbox.cgroup import NAME, find_cgroups

LIMITS = Limits(memory_mb=100, scratch_mb=20, processes=5)


@pytest.fixture(scope="module")
def seccomp() -> ModuleType:
    """The module as it is loaded inside, where its neighbours have no package."""
    sys.path.insert(0, str(bubblewrap.INSIDE))
    try:
        spec = importlib.util.spec_from_file_location("inside_seccomp", bubblewrap.INSIDE / "seccomp.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(bubblewrap.INSIDE))
        sys.modules.pop("namespaces", None)
    return module


MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOWED, KILLED = 0x7FFF0000, 0x80000000


def verdict(program: bytes, number: int, *arguments: int, machine: int) -> int | str:
    """What the kernel would answer: a small machine for the instructions that the filter is made of."""
    data = struct.pack("=IIQ6Q", number, machine, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    steps = [struct.unpack("=HBBI", program[place : place + 8]) for place in range(0, len(program), 8)]
    place = held = 0
    while True:
        code, yes, no, operand = steps[place]
        place += 1
        if code == 0x20:
            (held,) = struct.unpack_from("=I", data, operand)
        elif code == 0x06:
            return {ALLOWED: "allowed", KILLED: "killed"}.get(operand, errno.errorcode.get(operand & 0xFFFF, "?"))
        else:
            holds = {0x15: held == operand, 0x35: held >= operand, 0x45: bool(held & operand)}[code]
            place += yes if holds else no


@pytest.mark.parametrize("name", MACHINES)
def test_filter_refuses_each_call_of_its_list_and_lets_others_pass(name: str, seccomp: ModuleType) -> None:
    program, machine = seccomp.assemble(name), MACHINES[name]
    column = list(MACHINES).index(name)
    special = {row[column] for row in (*seccomp.JUDGED_BY_ARGUMENT.values(), *seccomp.ON_ITSELF_ONLY.values())}
    refused = {row[column] for row in seccomp.REFUSED.values()}
    for number in range(seccomp.LAST_KNOWN + 1):
        if number in refused:
            assert verdict(program, number, machine=machine) == "EPERM"
        elif number not in special:
            assert verdict(program, number, machine=machine) == "allowed"
    assert verdict(program, seccomp.LAST_KNOWN + 1, machine=machine) == "ENOSYS"
    assert verdict(program, 0x3FFFFFFF, machine=machine) == "ENOSYS"


@pytest.mark.parametrize("name", MACHINES)
def test_filter_judges_by_the_argument_where_it_must(name: str, seccomp: ModuleType) -> None:
    program, machine = seccomp.assemble(name), MACHINES[name]
    column = list(MACHINES).index(name)
    clone, clone3, open_socket, _ = (row[column] for row in seccomp.JUDGED_BY_ARGUMENT.values())
    assert verdict(program, clone, 17, machine=machine) == "allowed"
    assert verdict(program, clone, 0x3D0F00, machine=machine) == "allowed"  # a thread, as the C library makes it
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, clone, flag | 17, machine=machine) == "EPERM"
    assert verdict(program, clone3, machine=machine) == "ENOSYS"
    families = {family: verdict(program, open_socket, family, machine=machine) for family in range(50)}
    assert {family for family, answer in families.items() if answer == "allowed"} == {1, 2, 10}
    assert set(families.values()) == {"allowed", "EAFNOSUPPORT"}
    for row in seccomp.ON_ITSELF_ONLY.values():
        assert verdict(program, row[column], 0, machine=machine) == "allowed"
        assert verdict(program, row[column], 1, machine=machine) == "EPERM"


@pytest.mark.parametrize("name", MACHINES)
def test_filter_kills_what_calls_by_another_machines_numbers(name: str, seccomp: ModuleType) -> None:
    program = seccomp.assemble(name)
    assert verdict(program, 1, machine=0x40000003) == "killed"  # i386
    assert verdict(program, 0x40000001, machine=MACHINES[name]) == "killed"  # x32


def test_machine_without_numbers_is_refused(seccomp: ModuleType) -> None:
    with pytest.raises(OSError, match="no system call filter for riscv64"):
        seccomp.assemble("riscv64")


@pytest.mark.parametrize(
    ("column", "header", "pattern"),
    [
        (0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+) (\d+)"),
        (1, "/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
    ],
    ids=MACHINES,
)
def test_numbers_are_those_of_the_kernels_headers(column: int, header: str, pattern: str, seccomp: ModuleType) -> None:
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    numbers = {name: int(number) for name, number in re.findall(pattern, Path(header).read_text())}
    for table in (seccomp.REFUSED, seccomp.ON_ITSELF_ONLY, seccomp.JUDGED_BY_ARGUMENT):
        for name, row in table.items():
            assert row[column] == numbers.get(name), name


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_kernel_holds_to_the_filter_for_every_call_of_the_list(seccomp: ModuleType) -> None:
    column = list(MACHINES).index(platform.machine())
    numbers = [row[column] for row in seccomp.REFUSED.values() if row[column] is not None]
    source = (
        f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nfor number in {numbers}:\n"
        "  print(libc.syscall(number, -1, -1, -1, -1, -1, -1), ctypes.get_errno())"
    )
    with Sandbox() as sandbox:
        answers = sandbox.run(source).stdout.decode().splitlines()
    assert answers == [f"-1 {errno.EPERM}"] * len(numbers)


def version_2(folder: Path, *, own: str, controllers: str) -> tuple[str, str]:
    """A tree as version 2 has it, and the two texts of /proc that speak of it."""
    (folder / own).mkdir(parents=True)
    (folder / own).parent.joinpath("cgroup.subtree_control").write_text(controllers)
    return f"30 23 0:26 / {folder} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", f"0::/{own}\n"


def test_version_2_is_used_beside_this_process_where_both_controllers_are(tmp_path: Path) -> None:
    mounts, memberships = version_2(tmp_path, own="user/session", controllers="cpu memory pids\n")
    cgroups = find_cgroups(mounts=mounts, memberships=memberships)
    assert cgroups is not None
    assert cgroups.parents == [tmp_path / "user"]


def test_version_2_without_both_controllers_is_left_alone(tmp_path: Path) -> None:
    mounts, memberships = version_2(tmp_path, own="user/session", controllers="memory\n")
    assert find_cgroups(mounts=mounts, memberships=memberships) is None


def test_version_1_is_used_below_this_process_in_each_hierarchy(tmp_path: Path) -> None:
    for path in ("memory/box/own", "pids"):
        (tmp_path / path).mkdir(parents=True)
    mounts = (
        f"31 23 0:27 /box {tmp_path}/memory/box rw shared:5 - cgroup cgroup rw,memory\n"
        f"32 23 0:28 / {tmp_path}/pids rw - cgroup cgroup rw,pids\n"
        f"33 23 0:29 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n"
    )
    cgroups = find_cgroups(mounts=mounts, memberships="8:pids:/\n4:memory:/box/own\n1:cpu:/\n0::/\n")
    assert cgroups is not None
    assert cgroups.parents == [tmp_path / "memory/box/own", tmp_path / "pids"]


def test_there_are_no_cgroups_where_none_are_mounted() -> None:
    assert find_cgroups(mounts="22 1 0:20 / /proc rw - proc proc rw\n", memberships="0::/\n") is None


def test_cgroup_of_a_killed_process_is_removed_and_one_in_use_is_not(tmp_path: Path) -> None:
    mounts, memberships = version_2(tmp_path, own="user/session", controllers="memory pids")
    left = tmp_path / "user" / f"{NAME}-1-0-0"
    left.mkdir()
    cgroups = find_cgroups(mounts=mounts, memberships=memberships)
    assert cgroups is not None
    assert not left.exists()
    held = tmp_path / "user" / f"{NAME}-{os.getpid()}-{id(cgroups):x}-0"
    with pytest.raises(FileNotFoundError, match=r"cgroup\.procs"):  # a folder that is no cgroup has no such file
        cgroups.take(LIMITS)
    assert not held.exists()
