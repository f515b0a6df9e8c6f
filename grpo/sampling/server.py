"""One vLLM server: its addresses, what it says when something is wrong, and how long it may be gone."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from grpo.errors import ConfigError, RunError, StalledError

T = TypeVar("T")
AGAIN_SECONDS = 1.0
"""Between two tries of a server that does not answer."""
NOT_THERE, LEAST_SERVER_FAULT = 404, 500
DEV_MODE = "start it with VLLM_SERVER_DEV_MODE=1"


class GoneError(Exception):
    """A try failed in a way that another one may not."""


class NotThereError(Exception):
    """The server knows no such address, or no such model."""


class RefusedError(RunError):
    """The server understood what it was asked, and will not do it."""


class ServerGoneError(StalledError):
    """A server of sampling.vllm.urls has not answered for sampling.vllm.timeout_seconds, or answers for another run."""


class Server:
    """Safe to use from several threads: nothing is kept between two calls."""

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        self._timeout_seconds = timeout_seconds

    def check(self, *, context_tokens: int) -> None:
        """Raises ConfigError where the server lacks what a run needs of it, ServerGoneError where it is not there."""
        try:
            model = self.retried(lambda: self.get("/v1/models"))["data"][0]
            self.retried(lambda: self.get("/weight_info"))
        except NotThereError as error:
            raise ConfigError(
                f"sampling.vllm.urls: {self.url} takes no weights ({error}); {DEV_MODE}, and vLLM of the release that "
                "docs/vllm.md names"
            ) from error
        longest = model["max_model_len"]
        if longest < context_tokens:
            raise ConfigError(
                f"sampling.vllm.urls: {self.url} takes {longest} tokens, and data.max_prompt_tokens and "
                f"sampling.max_completion_tokens make {context_tokens}; start it with --max-model-len {context_tokens}"
            )

    def retried(self, call: Callable[[], T]) -> T:
        """What `call` returns; called again while it raises GoneError. Raises ServerGoneError after the time limit."""
        started = time.monotonic()
        while True:
            try:
                return call()
            except GoneError as error:
                if time.monotonic() - started > self._timeout_seconds:
                    raise ServerGoneError(
                        f"sampling.vllm.urls: {self.url} has not answered for {self._timeout_seconds:g} seconds "
                        f"({error}); start it again and add --resume, or name another server"
                    ) from error
            time.sleep(AGAIN_SECONDS)

    def get(self, path: str) -> Any:
        """The JSON at `path`. Raises GoneError, NotThereError and RefusedError as `post` does."""
        return self._asked(urllib.request.Request(self.url + path))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the server answers to `body`, or None where that is no JSON.

        Raises GoneError where it cannot be reached or has failed, NotThereError, and RefusedError."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._asked(urllib.request.Request(self.url + path, data=content, headers=headers, method="POST"))

    def forget_adapter(self, name: str) -> None:
        """Have the adapters of that name leave the server's memory, if it has them."""
        try:
            self.post("/v1/unload_lora_adapter", {"lora_name": name})
        except NotThereError:
            return

    def _asked(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_seconds) as answer:
                text, kind = answer.read().decode("utf-8", "replace"), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")[:500]
            if error.code == NOT_THERE:
                raise NotThereError(f"{request.selector}: {said}") from error
            if error.code >= LEAST_SERVER_FAULT:
                raise GoneError(f"HTTP {error.code}: {said}") from error
            raise RefusedError(
                f"sampling.vllm.urls: {self.url}{request.selector} refused with HTTP {error.code}: {said}; "
                "docs/vllm.md says how a server is started"
            ) from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, timed out, broken off
            raise GoneError(f"{type(error).__name__}: {error}") from error
        # What has nothing to tell answers nothing, or with a sentence for people.
        return json.loads(text) if kind == "application/json" and text.strip() else None
