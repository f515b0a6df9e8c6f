"""A program in the sandbox ends as it does under Python itself: same output, same exit code, same last words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.sandbox import Ended, Limits, Sandbox

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


PROGRAMS = {
    "a line": "print('a', 1)",
    "nothing": "",
    "an exit code": "import sys; sys.exit(3)",
    "an exit code below zero": "raise SystemExit(-1)",
    "an exit with a text": "import sys; sys.exit('why')",
    "an exit with a number of its own": "class A(int):\n  def __and__(self, o): 1 / 0\nraise SystemExit(A(5))",
    "an exit with what cannot be shown": "class A:\n  def __str__(self): raise SystemExit(0)\nraise SystemExit(A())",
    "an exit with nothing": "exit()",
    "an exception": "print('before'); 1 / 0",
    "a syntax error": "print('before'\n",
    "a null byte": "print('a\0b')",
    "an unknown encoding": "# coding: klingon\nprint(1)",
    "another encoding": "# coding: latin-1\nprint('ä' == 'Ã¤')",
    "an exception that cannot be shown": "class E(Exception):\n  def __str__(self): 1 / 0\nraise E",
    "a hook for exceptions": "import sys\nsys.excepthook = lambda *a: print('hook', a[0].__name__)\n1 / 0",
    "exit functions": "import atexit; atexit.register(print, 'end'); print('body')",
    "an exit function that fails": "import atexit; atexit.register(lambda: 1 / 0); print('body')",
    "an exit in an exit function": "import atexit, os; atexit.register(os._exit, 7); print('body', flush=True)",
    "a thread at the end": "import threading; threading.Timer(0.1, print, ['later']).start(); print('body')",
    "an exit in a thread": "import threading, sys; threading.Thread(target=sys.exit, args=[3]).start()",
    "a destructor at the end": "class A:\n  def __del__(self): print('gone')\na = A(); print('body')",
    "stdout closed": "import sys; print('a'); sys.stdout.close()",
    "stdout replaced": "import io, sys; print('a'); sys.stdout = io.StringIO(); print('b')",
    "no output": "import sys; sys.stdout = None; print('a')",
    "bytes": "import sys; sys.stdout.buffer.write(bytes(range(256)))",
    "surrogates": "print('a\\udcff')",
    "the name": "print(__name__, __file__, __doc__)",
    "the arguments": "import sys; print(sys.argv)",
    "own class by name": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))) is A)",
    "source of a function": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f))",
    "a data class": "from dataclasses import dataclass\n@dataclass\nclass A:\n  a: int\nprint(A(1))",
    "input": "print(input(), input())\ntry: input()\nexcept EOFError: print('end')",
    "lines of input": "import sys\nfor line in sys.stdin: print(repr(line))",
    "input as bytes": "import sys; print(sys.stdin.buffer.read())",
    "input by descriptor": "print(open(0).read())",
    "input by name": "print(open('/dev/stdin').read())",
    "input and output fast": "import os; os.write(1, os.read(0, 99))",
    "as deep as may be": "def f(n): return n and 1 + f(n - 1)\nprint(f(990))",
    "a signal": "import os; os.kill(os.getpid(), 15)",
    "an abort": "import os; os.abort()",
    "a child": "import subprocess; print(subprocess.run(['echo', 'a'], capture_output=True).stdout)",
    "a pool": "import multiprocessing as m\nprint(m.get_context('fork').Pool(2).map(abs, [-1, -2]))",
    "an event loop": "import asyncio\nasync def f(): await asyncio.sleep(0.01); return 5\nprint(asyncio.run(f()))",
    "a deep thread": "import sys, threading\nsys.setrecursionlimit(10**5)\nthreading.stack_size(1 << 28)\n"
    "def f(n): return n and 1 + f(n - 1)\nt = threading.Thread(target=lambda: print(f(50000))); t.start(); t.join()",
    "a raised limit of the stack": "from resource import *\nsetrlimit(RLIMIT_STACK, (RLIM_INFINITY,) * 2); print(1)",
    "globals of its own": "import sys; print(vars() is vars(sys.modules['__main__']), 'main' in vars())",
    "file in its folder": "open('x.py', 'w').write('a = 5'); import x; print(x.a)",
}
STDIN = "eins\nzwei ü".encode()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_ends_as_it_does_under_python_itself(name: str, sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_bytes(PROGRAMS[name].encode())
    own = subprocess.run(
        [sys.executable, "-X", "utf8", "main.py"], cwd=tmp_path, input=STDIN, capture_output=True, check=False
    )
    finished = sandbox.run(PROGRAMS[name], stdin=STDIN, limits=Limits(memory_mb=1024))
    code = finished.exit_code if finished.ended is Ended.EXITED else -(finished.signal or 0)
    stdout = own.stdout.replace(str(tmp_path).encode() + b"/", b"")
    assert (code, finished.stdout) == (own.returncode, stdout), finished
    assert bool(finished.stderr.strip()) == bool(own.stderr.strip()), finished
