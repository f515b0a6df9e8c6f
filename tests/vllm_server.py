"""vLLM's own server, as a user starts it, on a folder and a port of a test."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from grpo.policy import Policy
from grpo.sampling import handover
from grpo.tasks.list_machine import tokenizer
from tests.launch import free_port

START_SECONDS = 300.0
OPTIONS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "64"),
    *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--enable-scale-out"),
    *("--kv-cache-memory-bytes", str(2**27), "--max-num-batched-tokens", "512"),
)
VARIABLES = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


class RealServer:
    """A process that serves the model in `folder`; `kill` and `start` again keep its address."""

    def __init__(self, policy: Policy, folder: Path, *options: str) -> None:
        self._folder, self._options = folder / "model", options
        self._folder.mkdir(parents=True)
        handover.write_weights(policy, self._folder)
        handover.write_shape(policy.model, self._folder, tokenizer=tokenizer())
        self._port = free_port()
        self._log = folder / "server.log"
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and return at once."""
        # What `vllm serve` starts; the command itself asks for a version that the CPU build's package does not name.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._folder)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self._port), *OPTIONS, *self._options],
                env=os.environ | VARIABLES,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> "RealServer":
        """Until it answers."""
        started = time.monotonic()
        while True:
            assert self._process is not None
            is_late = time.monotonic() - started > START_SECONDS
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert not is_late, self._log.read_text()[-4000:]
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)

    def kill(self) -> None:
        """Kill it and its workers, in the middle of whatever they do."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None
