"""Small programs that try to use everything up, to outlive their end or to end others; see tests/attacks.py."""

from __future__ import annotations

from tests.attacks import Attack, attempts, program

TIME = [
    program("a loop", "print('tried', flush=True)\nwhile True: pass", "tried", ended="deadline", wall_seconds=1.0),
    program("a sleep", "print('tried', flush=True); time.sleep(99)", "tried", ended="deadline", wall_seconds=1.0),
    program(
        "a loop past its CPU time",
        "print('tried', flush=True)\nwhile True: pass",
        "tried",
        ended="signalled",
        cpu_seconds=1,
        wall_seconds=30.0,
    ),
    program(
        "a loop that ignores the signal at the end of its CPU time",
        "signal.signal(signal.SIGXCPU, signal.SIG_IGN); print('tried', flush=True)\nwhile True: pass",
        "tried",
        ended="signalled",
        cpu_seconds=1,
        wall_seconds=30.0,
    ),
    program(
        "every signal ignored",
        """
        for number in signal.valid_signals():
            with contextlib.suppress(OSError):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        print("tried", flush=True)
        time.sleep(99)
        """,
        "tried",
        ended="deadline",
        wall_seconds=1.0,
    ),
    program("a stop", "print('tried', flush=True); os.kill(0, 19)", "tried", ended="deadline", wall_seconds=1.0),
    program(
        "an integer that fills the memory",
        "print('tried', flush=True); 10 ** 10 ** 10",
        "tried",
        ended="deadline exited signalled",
        wall_seconds=1.0,
    ),
    program("an integer's digits", "print('tried', len(str(1 << 10**5)) )", "ValueError"),
    program(
        "a regular expression",
        "import re; print('tried', flush=True); re.match('(a+)+$', 'a' * 99 + 'b')",
        "tried",
        ended="deadline",
        wall_seconds=1.0,
    ),
    program("a recursion", "def f(): f()\ntry: f()\nexcept RecursionError: print('held')", "held"),
    program(
        "a recursion without a limit",
        "sys.setrecursionlimit(10**9)\nprint('tried', flush=True)\nclass A:\n def __eq__(a, b): return a == b\n"
        "A() == A()",
        "tried",
        ended="signalled exited",
        wall_seconds=5.0,
    ),
    program("a nest of brackets", "attempt(lambda: eval('(' * 10**6))", "refused", ended="exited signalled"),
    program(
        "an exit that hangs",
        "import atexit; atexit.register(time.sleep, 99); print('tried')",
        "",
        ended="deadline",
        wall_seconds=1.0,
    ),
    program(
        "an exit that waits for a thread",
        "threading.Thread(target=time.sleep, args=(99,)).start(); print('tried', flush=True)",
        "tried",
        ended="deadline",
        wall_seconds=1.0,
    ),
]

MEMORY = [
    program(
        "a list without end",
        "held = []\ntry:\n  while True: held.append(bytearray(1 << 20))\n"
        "except MemoryError: print('held', len(held) < 500)",
        "held True",
        wall_seconds=9.0,
    ),
    program("one great block", "try: bytearray(1 << 40)\nexcept MemoryError: print('held')", "held"),
    program("a great mapping", "import mmap\nattempt(lambda: mmap.mmap(-1, 1 << 30))", "refused"),
    program("locked memory", "attempt(lambda: call(151, 1) or os._exit(9))", "refused"),
    program(
        "a string that doubles",
        "try:\n  text = 'x'\n  while True: text += text\nexcept MemoryError: print('held')",
        "held",
        wall_seconds=9.0,
    ),
    program(
        "descriptors",
        "held = []\ntry:\n  while True: held.append(open('/dev/null'))\nexcept OSError: print('held', len(held))",
        "held 61",
    ),
    program(
        "buffers of sockets",
        """
        held = []
        with contextlib.suppress(OSError):
            while True:
                held += socket.socketpair()
        for one in held:
            one.setblocking(False)
            with contextlib.suppress(OSError):
                while True:
                    one.send(bytes(65536))
        print("held", len(held))
        """,
        "held 60",
    ),
    program(
        "signals in a queue",
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, [40])
        try:
            for number in range(10**5):
                call(129, os.getpid(), 40, (ctypes.c_int * 32)(40, 0, -1))
        except OSError:
            print("held", number <= 256)
        """,
        "held True",
    ),
]

DISK = [
    program(
        "a great file",
        "try:\n  with open('/tmp/x', 'wb') as file:\n    while True: file.write(bytes(1 << 20))\n"
        "except OSError as error: print('held', error.errno, os.stat('/tmp/x').st_size >> 20)",
        "held 27 16",
    ),
    program(
        "many great files",
        """
        try:
            for number in range(99):
                with open(f"/tmp/{number}", "wb") as file:
                    file.write(bytes(8 << 20))
        except OSError as error:
            print("held", error.errno, number)
        """,
        "held 28 4",
    ),
    program(
        "many files",
        "try:\n  for number in range(10**6): open(f'/tmp/{number}', 'w').close()\n"
        "except OSError as error: print('held', error.errno, number)",
        "held 28 1023",
    ),
    program(
        "folders within folders",
        "try:\n  while True: os.mkdir('x'); os.chdir('x')\nexcept OSError as error: print('held', error.errno)",
        "held 28",
    ),
    program("a file with a hole", "attempt(lambda: os.truncate(open('/tmp/x', 'w').fileno(), 1 << 40))", "refused"),
    program("a file kept free", "attempt(lambda: os.posix_fallocate(os.open('/tmp/x', 66), 0, 1 << 30))", "refused"),
    program(
        "the other writable folder",
        "open('/dev/shm/x', 'w').close(); print('the same', os.listdir('/tmp'))",
        "the same ['x']",
    ),
]

OUTPUT = [
    program("output without end", "while True: print('tried' * 999)", "tried", ended="output_limit"),
    program("errors without end", "while True: print('tried' * 999, file=sys.stderr)", "tried", ended="output_limit"),
    program(
        "output in both at once",
        "while True:\n  os.write(1, b'tried' * 99)\n  os.write(2, b'tried' * 99)",
        "tried",
        ended="output_limit",
    ),
    program(
        "output of many",
        "for _ in range(3): os.fork()\nwhile True: os.write(1, b'tried' * 999)",
        "tried",
        ended="output_limit",
    ),
    program("one great line", "print('tried', flush=True); print('x' * 10**8)", "tried", ended="output_limit"),
    program(
        "output by a child after the end",
        "print('tried', flush=True)\nif os.fork() == 0:\n  os.setsid(); time.sleep(0.5); os.write(1, b'SUCCESS')",
        "tried",
    ),
    program(
        "output that nobody reads, for it is stdin",
        "os.write(1, b'tried'); attempt(lambda: os.write(0, b'x'))",
        "refused",
    ),
    program("no output left", "print('tried', flush=True)\nfor d in range(9):\n  os.close(d) if d < 3 else 0", "tried"),
]

PROCESSES = [
    program(
        "forks",
        "print('tried', flush=True)\nwhile True:\n  with contextlib.suppress(OSError): os.fork()",
        "tried",
        ended="deadline",
        wall_seconds=1.0,
    ),
    program(
        "forks that leave their parents and ignore signals",
        """
        print("tried", flush=True)
        while True:
            with contextlib.suppress(OSError):
                if os.fork() == 0:
                    os.setsid()
                    for number in set(signal.valid_signals()) - {9, 19, 32, 33}:
                        signal.signal(number, signal.SIG_IGN)
        """,
        "tried",
        ended="deadline",
        wall_seconds=1.0,
    ),
    program(
        "as many processes as there may be",
        """
        count = 1
        with contextlib.suppress(OSError):
            while True:
                if os.fork() == 0:
                    time.sleep(99)
                count += 1
        print("held", count)
        """,
        "held 16",
    ),
    program(
        "threads",
        """
        count = 1
        try:
            while True:
                threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
                count += 1
        except RuntimeError:
            print("held", count, flush=True)
        os._exit(0)
        """,
        "held 16",
    ),
    program(
        "a shell's fork bomb",
        "print('tried', flush=True); os.execv('/bin/sh', ['sh', '-c', 'b() { b | b & }; b; sleep 99'])",
        "tried",
        ended="deadline exited signalled",
        wall_seconds=1.0,
    ),
    program(
        "a daemon",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in set(signal.valid_signals()) - {9, 19, 32, 33}:
                    signal.signal(number, signal.SIG_IGN)
                for descriptor in range(3):
                    os.close(descriptor)
                time.sleep(99)
            os._exit(0)
        time.sleep(0.1)
        print("tried")
        """,
        "tried",
    ),
    program(
        "orphans without end",
        """
        for _ in range(60):
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.wait()
            time.sleep(0.005)
        print("reaped")
        """,
        "reaped",
        wall_seconds=30.0,
    ),
]

KILLERS = [
    program("kill everyone", "os.kill(-1, 9); print('alone')", "alone"),
    program(
        "kill process 1",
        "for number in signal.valid_signals():\n  with contextlib.suppress(OSError): os.kill(1, number)\n"
        "print('it lives')",
        "it lives",
    ),
    program("kill the parent", "os.kill(os.getppid(), 9); time.sleep(0.1); print('it lives')", "it lives"),
    program(
        "kill every number",
        "for number in range(2, 99999):\n  if number != os.getpid():\n    with contextlib.suppress(OSError):\n"
        "      os.kill(number, 9); print('SUCCESS')\nprint('nobody there')",
        "nobody there",
    ),
    program("kill oneself", "print('tried', flush=True); os.kill(os.getpid(), 9)", "tried", ended="signalled"),
    program("kill one's group", "print('tried', flush=True); os.killpg(0, 9)", "tried", ended="signalled"),
    attempts("kill the test", "os.kill(told['runner'], 0)", control=True),
    program(
        "a signal to process 1 by a file's owner",
        """
        import fcntl
        one, other = socket.socketpair()
        fcntl.fcntl(one, fcntl.F_SETOWN, 1)
        fcntl.fcntl(one, 10, 9)  # F_SETSIG, SIGKILL
        fcntl.fcntl(one, fcntl.F_SETFL, os.O_ASYNC)
        other.send(b"x")
        time.sleep(0.1)
        print("it lives")
        """,
        "it lives",
    ),
]

ENDS = [
    program("an exit at once", "print('tried', flush=True); os._exit(0)", "tried"),
    program("an exit by another program", "os.execv('/bin/echo', ['echo', 'tried'])", "tried"),
    program("an abort", "print('tried', flush=True); os.abort()", "tried", ended="signalled"),
    program("a wrong address", "print('tried', flush=True); ctypes.string_at(1)", "tried", ended="signalled"),
    program(
        "the supervisor's modules",
        """
        frame, names = sys._getframe(), []
        while frame is not None:
            names.append(frame.f_code.co_name)
            request = frame.f_locals.get("request")
            if request is not None:
                attempt(lambda: request.leash.send(b"exited 0 0"))
                attempt(lambda: os.read(request.payload, 9))
            frame = frame.f_back
        for name in ("keeper", "supervisor", "ending"):
            if name in sys.modules:
                vars(sys.modules[name]).clear()
        print(names)
        """,
        "refused",
    ),
]

BOMBS: list[Attack] = [*TIME, *MEMORY, *DISK, *OUTPUT, *PROCESSES, *KILLERS, *ENDS]
