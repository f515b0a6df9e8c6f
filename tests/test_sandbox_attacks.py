"""Programs that attack the sandbox: none gets anywhere, none outlives its end, none spoils the next one's run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.sandbox import Ended, Finished, Sandbox
from tests.attacks import ATTACKS, PRELUDE, Attack
from tests.bombs import BOMBS

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
ALL = [*ATTACKS, *BOMBS]


class Host:
    """What programs are told of, and what must be as it was when they have ended."""

    def __init__(self, folder: Path) -> None:
        self.secret_file = folder / "planted.txt"
        self.secret_file.write_text("planted")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0planted-{os.getpid()}")
        self.in_folder = socket.socket(socket.AF_UNIX)
        self.in_folder.bind(str(folder / "planted.socket"))
        for listener in (self.abstract, self.in_folder):
            listener.listen(1000)
        self.canary = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(9999)"])
        self.told = json.dumps(
            {
                "secret_file": str(self.secret_file),
                "repository": str(Path(__file__).parents[1]),
                "port": self.server.getsockname()[1],
                "abstract": f"planted-{os.getpid()}",
                "socket": str(folder / "planted.socket"),
                "runner": os.getpid(),
            }
        ).encode()

    def is_intact(self) -> bool:
        return self.canary.poll() is None and self.secret_file.read_text() == "planted"

    def close(self) -> None:
        for listener in (self.server, self.abstract, self.in_folder):
            listener.close()
        self.canary.kill()
        self.canary.wait()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    host = Host(tmp_path_factory.mktemp("host"))
    yield host
    host.close()


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    os.environ["PLANTED"] = "planted"
    with Sandbox() as sandbox:
        del os.environ["PLANTED"]
        yield sandbox


@pytest.fixture(scope="module")
def unsafe() -> Iterator[Sandbox]:
    with Sandbox(unsafe=True) as sandbox:
        yield sandbox


def descendants() -> set[int]:
    """Every process that this one, or one that it started, has started; zombies too."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found = {os.getpid()}
    while grown := {process for process, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {os.getpid()}


def leftovers(before: set[int]) -> set[int]:
    """The processes that there are more, as soon as there are none or after a second."""
    for _ in range(50):
        more = descendants() - before
        if not more:
            break
        time.sleep(0.02)
    return more


def run(sandbox: Sandbox, attack: Attack, host: Host) -> Finished:
    return sandbox.run(PRELUDE + attack.source, stdin=host.told, limits=attack.limits)


def needs_machine(attack: Attack) -> None:
    if attack.calls_x86 and platform.machine() != "x86_64":
        pytest.skip("the attack names system calls by their x86_64 numbers")


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: attack.name)
def test_attack_fails_within_its_limit_and_leaves_nothing(attack: Attack, sandbox: Sandbox, host: Host) -> None:
    needs_machine(attack)
    before = descendants()
    start_seconds = time.monotonic()
    finished = run(sandbox, attack, host)
    assert time.monotonic() - start_seconds < attack.limits.wall_seconds + 2.0
    output = finished.stdout + finished.stderr
    assert b"SUCCESS" not in output, output[-2000:]
    assert attack.seen.encode() in output, output[-2000:]
    assert finished.ended in attack.ended, finished
    assert len(output) <= attack.limits.output_kb * 1024
    assert leftovers(before) == set()
    assert host.is_intact()
    following = sandbox.run("import os; print(sorted(os.listdir('/tmp')), 6 * 7)")
    assert (following.ended, following.stdout) == (Ended.EXITED, b"[] 42\n"), following


@pytest.mark.skipif(os.geteuid() != 0, reason="as a user many of them fail anyway")
@pytest.mark.parametrize("attack", [attack for attack in ALL if attack.control], ids=lambda attack: attack.name)
def test_attack_succeeds_where_nothing_confines_it(attack: Attack, unsafe: Sandbox, host: Host) -> None:
    needs_machine(attack)
    assert b"SUCCESS" in run(unsafe, attack, host).stdout


def test_there_are_at_least_eighty_attacks_each_of_its_own_name() -> None:
    assert len({attack.name for attack in ALL}) == len(ALL) >= 80
