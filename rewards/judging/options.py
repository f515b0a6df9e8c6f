"""Options of the reward `judge`, each checked before anything is sent. Knows no network and no disk but the rubric."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

SETTLE_SECONDS = 2.0
"""What a call may take beyond its timeout: writing down what it cost and what the judge said, a second each."""

_OWN_FIELDS = ("model", "messages", "stream", "n", "logprobs")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


@dataclass(frozen=True)
class JudgeOptions:
    """Where the judge is, what it is asked, how its answer is read, what it may cost: docs/verifiers.md has the list.

    The API key is not among them: `api_key_env` names the environment variable that holds it."""

    base_url: str
    model: str
    rubric: str = ""
    rubric_file: str = ""
    columns: tuple[str, ...] = ()
    system: str = ""
    api_key_env: str = ""
    read: Literal["logprobs", "text"] = "logprobs"
    pattern: str = ""
    lowest: int = 0
    highest: int = 100
    minimum_mass: float = 0.25
    value: Literal["fraction", "score"] = "fraction"
    max_answer_tokens: int = 512
    extra: dict[str, Any] = field(default_factory=dict)
    max_completion_characters: int = 200_000
    timeout_seconds: float = 60.0
    request_timeout_seconds: float = 20.0
    max_retries: int = 4
    retry_wait_seconds: float = 1.0
    cache_folder: str = ""
    run: str = "default"
    requests_per_minute: int | None = None
    budget_requests: int | None = None
    budget_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_base_url(self.base_url)
        if not self.model or not self.run:
            raise ValueError(f"model = {self.model!r} and run = {self.run!r}: neither may be empty")
        if self.api_key_env and not _VARIABLE.fullmatch(self.api_key_env):
            # Without the value: whoever gets this wrong has often put the key itself here.
            raise ValueError(
                "api_key_env must be the NAME of an environment variable (A-Z, 0-9, _), such as OPENAI_API_KEY; "
                "a key never stands in a config"
            )
        self._check_scale()
        self._check_extra()
        self._check_limits()

    @property
    def url(self) -> str:
        """Where requests go."""
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def files(self) -> tuple[str, ...]:
        """The user's own files that are read."""
        return (self.rubric_file,) if self.rubric_file else ()

    def read_rubric(self) -> str:
        """The rubric's text. Raises ValueError unless exactly one of rubric and rubric_file is given and readable."""
        if bool(self.rubric) == bool(self.rubric_file):
            raise ValueError("give exactly one of rubric (the text) and rubric_file (its path)")
        if self.rubric:
            return self.rubric
        try:
            return Path(self.rubric_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"rubric_file = {self.rubric_file!r}: cannot be read as UTF-8 text: {error}") from error

    def _check_scale(self) -> None:
        if not 0 <= self.lowest < self.highest <= 999:
            raise ValueError(
                f"lowest = {self.lowest}, highest = {self.highest}: a scale needs 0 <= lowest < highest <= 999"
            )
        if not 0 < self.minimum_mass <= 1:
            raise ValueError(
                f"minimum_mass = {self.minimum_mass}: must be above 0 and at most 1, a share of probability"
            )
        if self.pattern and self.read == "logprobs":
            raise ValueError(f"pattern = {self.pattern!r}: is for read = 'text'; log-probs are read without one")
        try:
            num_groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"pattern = {self.pattern!r}: is no regular expression: {error}") from error
        if num_groups > 1:
            raise ValueError(f"pattern = {self.pattern!r}: has {num_groups} groups; one, or none, holds the number")

    def _check_extra(self) -> None:
        own = [name for name in self.extra if name in _OWN_FIELDS]
        if own:
            raise ValueError(f"extra = {self.extra!r}: {own} are set by other options or always; leave them out")
        try:
            json.dumps(self.extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"extra = {self.extra!r}: must hold plain JSON values ({error})") from error

    def _check_limits(self) -> None:
        for name in ("timeout_seconds", "request_timeout_seconds", "retry_wait_seconds"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} = {getattr(self, name)}: must be a number of seconds above 0")
        for name, least in (("max_answer_tokens", 1), ("max_completion_characters", 1), ("max_retries", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")
        limits = {"requests_per_minute": 1, "budget_requests": 0, "budget_tokens": 0}
        for name, least in limits.items():
            limit = getattr(self, name)
            if limit is not None and limit < least:
                raise ValueError(f"{name} = {limit}: must be at least {least}, or null for no limit")
            if limit is not None and not self.cache_folder:
                raise ValueError(f"{name} = {limit}: needs cache_folder, where all processes count together; set it")


def worst_case_seconds(options: JudgeOptions) -> float:
    """The longest that one call can take, retries and waits included; a pool's limit belongs above it.

    The time of the system's name resolver, which has a clock of its own, may come on top."""
    return options.timeout_seconds + SETTLE_SECONDS


def _check_base_url(base_url: str) -> None:
    try:
        parts = urlsplit(base_url)
        port = parts.port  # raises ValueError where it is none
    except ValueError as error:
        raise ValueError(f"base_url is no address: {error}") from None
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url holds a user or a password; name an environment variable in api_key_env instead")
    fault = ""
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        fault = "must be http:// or https:// and a host"
    elif re.search(r"[^!-~]", base_url):
        fault = "must be plain ASCII without spaces"
    elif parts.query or parts.fragment:
        fault = "must end with its path, without ? and #"
    elif base_url.rstrip("/").endswith("/chat/completions"):
        fault = "must stop before /chat/completions, which is added"
    if fault:
        raise ValueError(f"base_url = {base_url!r}: {fault}, as in http://localhost:8000/v1")
