"""A server that speaks as vLLM's does as far as a run asks it, without a model: it draws the end token alone.

It counts what it was handed, can forget it as a restart does, and can be told to hold on to weights of its own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

END, LOGPROB = 95, -0.5


class RefusedError(Exception):
    """An answer that is not 200: its code and what it says."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


class Held:
    """What the server knows. Its handlers run in threads of their own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version = "default"
        self.paths: list[Path] = []  # of weights that were read, when they were there
        self.adapters: dict[str, Path] = {}  # those that it knows, by name
        self.num_dropped_caches = 0
        self.drops_that_fail = 0
        self.num_answers = 0
        self.restart_after: int | None = None  # answers, after which it knows nothing any more
        self.stubborn = False

    def forget(self) -> None:
        self.version = "default"
        self.adapters.clear()

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        with self.lock:
            return self._answers()[path.split("?")[0]](body)

    def _answers(self) -> Any:
        return {
            "/v1/models": lambda body: {"data": [{"id": "model", "max_model_len": 64}]},
            "/weight_info": lambda body: {"weight_version": self.version},
            "/collective_rpc": self._read,
            "/reset_prefix_cache": self._drop,
            "/update_weight_version": self._name,
            "/v1/load_lora_adapter": self._load_adapter,
            "/v1/unload_lora_adapter": self._unload_adapter,
            "/inference/v1/generate": self._draw,
        }

    def _read(self, body: dict[str, Any]) -> Any:
        path = Path(body["kwargs"]["weights_path"])
        assert (path / "model.safetensors").is_file()
        self.paths.append(path)
        return {"results": [None]}

    def _load_adapter(self, body: dict[str, Any]) -> str:
        path = Path(body["lora_path"])
        assert (path / "adapter_model.safetensors").is_file()
        assert not (path / "model.safetensors").exists()
        if body["lora_name"] in self.adapters and not body["load_inplace"]:
            raise RefusedError(400, "has already been loaded")
        self.adapters[body["lora_name"]] = path
        return "Success: it is added."

    def _unload_adapter(self, body: dict[str, Any]) -> str:
        if self.adapters.pop(body["lora_name"], None) is None:
            raise RefusedError(404, "cannot be found")
        return "Success: it is removed."

    def _drop(self, body: dict[str, Any]) -> Any:
        if self.drops_that_fail:
            self.drops_that_fail -= 1
            return {"success": False}
        self.num_dropped_caches += 1
        return {"success": True}

    def _name(self, body: dict[str, Any]) -> Any:
        if not self.stubborn:
            self.version = body["new_version"]
        return {"success": True}

    def _draw(self, body: dict[str, Any]) -> Any:
        self.num_answers += 1
        if self.restart_after is not None and self.num_answers > self.restart_after:
            self.restart_after = None
            self.forget()
        if "model" in body and body["model"] not in self.adapters:
            raise RefusedError(404, "no such model")
        spans = [{"version": self.version, "start": 0, "end": 1}]
        drawn = {"content": [{"token_id": END, "logprob": LOGPROB}]}
        choice = {"token_ids": [END], "logprobs": drawn, "finish_reason": "stop", "stop_reason": END}
        return {"choices": [choice | {"weight_versions": spans}]}


@contextmanager
def weight_server() -> Iterator[tuple[str, Held]]:
    """Address of a server on a thread of this process, and what it holds."""
    held = Held()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, body: dict[str, Any]) -> None:
            try:
                answer, code = held.answer(self.path, body), 200
            except RefusedError as refused:
                answer, code = str(refused), refused.code
            # As vLLM's: a sentence where there is nothing to tell.
            is_json = not isinstance(answer, str)
            content = (json.dumps(answer) if is_json else answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json" if is_json else "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", held
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
