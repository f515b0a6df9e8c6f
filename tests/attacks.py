"""Small programs that attack the machine they run on: what each tries, and what is to be seen when it fails.

A program prints SUCCESS when its attack works; `control` says that it does so where nothing confines it, which shows
that the attack is one. `seen` stands in its output in any case: the attack was tried. Programs find what the test has
planted on the host in `told`, from stdin."""

from __future__ import annotations

from dataclasses import dataclass, field
from textwrap import dedent

from rewards.sandbox import Ended, Limits

PRELUDE = """
import contextlib, ctypes, json, os, signal, socket, subprocess, sys, threading, time
told = json.loads(sys.stdin.read() or "{}")
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(action):
    try:
        print("SUCCESS", action(), flush=True)
    except BaseException as error:
        print("refused:", type(error).__name__, error, flush=True)
"""
QUICK = Limits(wall_seconds=2.0)
EXITED = frozenset({Ended.EXITED})


@dataclass(frozen=True)
class Attack:
    """One attack. `calls_x86`: it names system calls by their x86_64 numbers."""

    name: str
    source: str
    seen: str = "refused"
    ended: frozenset[Ended] = EXITED
    limits: Limits = field(default=QUICK)
    control: bool = False
    calls_x86: bool = False


def attempts(name: str, *actions: str, control: bool = False, calls_x86: bool = False) -> Attack:
    source = "\n".join(f"attempt(lambda: {action})" for action in actions)
    return Attack(name, source, control=control, calls_x86=calls_x86)


def program(name: str, source: str, seen: str, *, ended: str = "exited", **limits: float) -> Attack:
    """An attack on the limits: it must end in one of the ways `ended` names, with `seen` in its output."""
    ways = frozenset(Ended(way) for way in ended.split())
    return Attack(name, dedent(source), seen=seen, ended=ways, limits=Limits(**{"wall_seconds": 2.0, **limits}))


SYSTEM_CALLS = [
    attempts("trace process 1", "call(101, 16, 1, 0, 0)", calls_x86=True),
    attempts("let oneself be traced", "call(101, 0, 0, 0, 0)", control=True, calls_x86=True),
    attempts("seize process 1", "call(101, 0x4206, 1, 0, 0)", calls_x86=True),
    attempts("read another process's memory", "call(310, os.getppid(), 0, 0, 0, 0, 0)", control=True, calls_x86=True),
    attempts("write another process's memory", "call(311, os.getppid(), 0, 0, 0, 0, 0)", control=True, calls_x86=True),
    attempts("compare processes", "call(312, os.getpid(), os.getpid(), 2, 0, 0)", control=True, calls_x86=True),
    attempts(
        "take a descriptor of a process", "call(438, os.pidfd_open(os.getpid()), 1, 0)", control=True, calls_x86=True
    ),
    attempts("a user namespace", "call(272, 0x10000000)", control=True, calls_x86=True),
    attempts("a mount namespace", "call(272, 0x20000)", control=True, calls_x86=True),
    attempts("a network namespace by clone", "call(56, 0x40000000 | 17, 0, 0, 0, 0) or os._exit(0)", calls_x86=True),
    attempts("a user namespace by clone", "call(56, 0x10000000 | 17, 0, 0, 0, 0) or os._exit(0)", calls_x86=True),
    attempts("clone3, whose flags no filter sees", "call(435, ctypes.create_string_buffer(88), 88) or os._exit(0)"),
    attempts("enter process 1's namespaces", "call(308, os.pidfd_open(1), 0x20000)", calls_x86=True),
    attempts("mount a tmpfs", "call(165, b'x', b'/tmp', b'tmpfs', 0, 0)", calls_x86=True),
    attempts("mount proc", "call(165, b'proc', b'/tmp', b'proc', 0, 0)", calls_x86=True),
    attempts("uncover /proc", "call(166, b'/proc', 2)", "call(166, b'/proc', 0)", calls_x86=True),
    attempts("make /usr writable", "call(165, b'none', b'/usr/bin', b'', 4096 | 32, 0)", calls_x86=True),
    attempts("pivot the root", "call(155, b'/tmp', b'/tmp')", calls_x86=True),
    attempts("change the root", "os.chroot('/tmp')"),
    attempts("the other mount interface", "call(430, b'tmpfs', 0)", "call(428, -100, b'/', 1)", calls_x86=True),
    attempts("bpf", "call(321, 0, ctypes.create_string_buffer(128), 128)", calls_x86=True),
    attempts("performance counters", "call(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)", calls_x86=True),
    attempts("userfaultfd", "call(323, 1)", control=True, calls_x86=True),
    attempts("io_uring", "call(425, 4, ctypes.create_string_buffer(120))", control=True, calls_x86=True),
    attempts("keys of the session", "call(250, 0, -3, 0)", "call(250, 11, -3, 0, 0)", control=True, calls_x86=True),
    attempts("leave a key", "call(248, b'user', b'left', b'x', 1, -4)", calls_x86=True),
    attempts("load a module", "call(313, 0, b'', 0)", "call(175, b'', 0, b'')", calls_x86=True),
    attempts("another kernel", "call(246, 0, 0, 0, 0)", calls_x86=True),
    attempts("reboot", "call(169, 0xFEE1DEAD, 672274793, 0x01234567, 0)", calls_x86=True),
    attempts("the kernel's log", "call(103, 3, ctypes.create_string_buffer(99), 99)", control=True, calls_x86=True),
    attempts(
        "files by handle",
        "call(303, -100, b'/', (ctypes.c_uint * 34)(128), (ctypes.c_int * 1)(), 0)",
        control=True,
        calls_x86=True,
    ),
    attempts("a file in memory", "os.memfd_create('x')", control=True),
    attempts("shared memory of System V", "call(29, 0, 4096, 0)", calls_x86=True),
    attempts("message queues", "call(68, 0, 0)", "call(240, b'left', 0x42, 0o600, 0)", calls_x86=True),
    attempts("another personality", "call(135, 0x0040000)", control=True, calls_x86=True),
    attempts("the clock", "time.clock_settime(time.CLOCK_REALTIME, 0)"),
    attempts("the host's name", "socket.sethostname('mine')"),
    attempts("a call that is younger than the filter", "call(457, 0, 0, 0, 0)", "call(451, 0, 0, 0, 0)"),
    attempts("weaken process 1's limits", "__import__('resource').prlimit(1, 0, (1, 1))"),
    attempts("starve process 1", "os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0))", "os.nice(5)"),
    program(
        "calls of the 32-bit kind",
        """
        import mmap
        code = mmap.mmap(-1, 4096, prot=7)
        code.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20 (getpid); int 0x80; ret
        print("tried", flush=True)
        print("SUCCESS", ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
        """,
        "tried",
        ended="signalled",
    ),
    program(
        "calls of the x32 kind",
        "print('tried', flush=True); print('SUCCESS', libc.syscall(ctypes.c_long(0x40000000 + 39)))",
        "tried",
        ended="signalled",
    ),
]

PRIVILEGES = [
    attempts("become root", "os.setuid(0)", "os.setgid(0)", "os.setresuid(0, 0, 0)", control=True),
    attempts("other groups", "os.setgroups([0])", control=True),
    attempts(
        "capabilities",
        "call(126, (ctypes.c_uint * 2)(0x20080522, 0), (ctypes.c_uint * 6)(1, 1, 1, 0, 0, 0))",
        "call(157, 47, 2, 0, 0, 0)",
        calls_x86=True,
    ),
    program(
        "programs that are set-user-id",
        """
        done = subprocess.run(["/usr/bin/su", "-c", "id -u"], capture_output=True, text=True)
        print("SUCCESS" if done.stdout.strip() == "0" else "refused")
        print("SUCCESS" if subprocess.run(["id", "-u"], capture_output=True).stdout.strip() == b"0" else "refused")
        """,
        "refused",
    ),
    program(
        "unshare by its own program",
        """
        done = subprocess.run(["unshare", "--user", "--map-root-user", "id", "-u"], capture_output=True, text=True)
        print("SUCCESS" if done.stdout.strip() == "0" else "refused")
        """,
        "refused",
    ),
    attempts("a device of one's own", "os.mknod('/tmp/disk', 0o60600, os.makedev(254, 0))"),
    attempts("devices", "open('/dev/mem', 'rb')", "open('/dev/kmsg', 'rb')", "open('/dev/vda', 'rb')", "os.openpty()"),
    attempts("type into a terminal", "__import__('fcntl').ioctl(0, 0x5412, b'x')", "open('/dev/tty', 'w')"),
]

FILES = [
    attempts("a user's file", "open(told['secret_file']).read()", control=True),
    attempts("a user's file by detours", "open('/tmp/../' + told['secret_file']).read()", control=True),
    attempts("write a user's file", "open(told['secret_file'], 'a').write('x')"),
    attempts("a file of the repository", "open(told['repository'] + '/pyproject.toml').read()[:9]", control=True),
    attempts("the users", "open('/etc/passwd').read()[:9]", control=True),
    attempts("the passwords", "open('/etc/shadow').read()[:9]"),
    attempts("the hosts", "open('/etc/hosts').read()[:9]", "open('/etc/resolv.conf').read()[:9]", control=True),
    attempts("processes' environments", *(f"open('/proc/{pid}/environ').read()" for pid in ("self", 1, 2))),
    attempts(
        "processes' memory", "open('/proc/self/mem')", "open('/proc/self/maps')", "open('/proc/1/maps')", control=True
    ),
    attempts("processes' roots", "os.listdir('/proc/1/root')", "os.listdir('/proc/self/fd')", control=True),
    attempts("the kernel's settings", "os.listdir('/sys')[0]", "os.listdir('/proc/sys')[0]", control=True),
    attempts("cgroups", "os.listdir('/sys/fs/cgroup')", control=True),
    attempts(
        "write where nothing may be written",
        *(
            f"open({path}, 'w')"
            for path in ("'/x'", "'/usr/bin/x'", "'/usr/lib/x'", "'/inside/x'", "'/inside/keeper.py'", "'/dev/x'")
        ),
        *(f"open({path}, 'w')" for path in ("'/proc/x'", "'/proc/stdin'", "'/etc/x'", "os.__file__", "sys.executable")),
    ),
    program(
        "every name in the box outside the system's own folders",
        """
        names = []
        for folder, folders, files in os.walk("/"):
            folders[:] = [name for name in folders if name not in ("usr", "lib", "bin")]
            names += folders + files
        print("SUCCESS" if any("planted" in name for name in names) else f"looked at {len(names) > 9}")
        """,
        "looked at True",
    ),
    program(
        "the environment",
        """
        block = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, "environ")
        entries, place = [], 0
        while block and block[place] is not None:
            entries.append(block[place])
            place += 1
        print("SUCCESS" if b"planted" in b"".join(entries) or "planted" in str(os.environ) else f"refused: {entries}")
        """,
        "refused",
    ),
    program(
        "descriptors of others",
        """
        found = []
        for number in range(65536):
            with contextlib.suppress(OSError):
                os.fstat(number)
                found.append(number)
        print("SUCCESS" if found != [0, 1, 2] else "only the three", found)
        """,
        "only the three",
    ),
]

NETWORK = [
    attempts("a server on this machine", "socket.create_connection(('127.0.0.1', told['port']), 1)", control=True),
    attempts("the network", "socket.create_connection(('192.0.2.1', 80), 1)", "socket.getaddrinfo('example.org', 80)"),
    attempts("a datagram", "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))"),
    attempts("an abstract socket", "socket.socket(socket.AF_UNIX).connect('\\0' + told['abstract'])", control=True),
    attempts("a socket in a folder", "socket.socket(socket.AF_UNIX).connect(told['socket'])", control=True),
    attempts("the virtual machine's host", "socket.socket(40, socket.SOCK_STREAM).connect((2, 1))"),
    attempts("the kernel's own sockets", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", control=True),
    attempts("raw packets", "socket.socket(17, socket.SOCK_RAW)", "socket.socket(2, socket.SOCK_RAW, 1)", control=True),
    attempts("the kernel's cryptography", "socket.socket(38, socket.SOCK_SEQPACKET)"),
]

ATTACKS: list[Attack] = [*SYSTEM_CALLS, *PRIVILEGES, *FILES, *NETWORK]
