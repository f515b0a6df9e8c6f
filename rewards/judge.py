"""The reward `judge`: a language model behind an OpenAI-compatible endpoint scores a completion by a rubric.

`Judge.ask` is the core, useful without a rubric: a prompt in, a verdict out, with retries, cache, rate and budget.
httpx is imported here and nowhere else. Every request has a connection of its own: a broken one spoils no other."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic, sleep, time
from typing import Any, TypeVar

from rewards.judging.budget import Budget, BudgetError
from rewards.judging.cache import AnswerCache
from rewards.judging.http import MAX_BODY_BYTES, Reply, RequestError, read_reply, used_tokens
from rewards.judging.options import JudgeOptions, worst_case_seconds
from rewards.judging.rubric import RowError, Rubric
from rewards.judging.scale import Answer, NoAnswerError, Verdict, parse_answer, score_of_logprobs, score_of_text
from rewards.types import Reward, Verifier

__all__ = ["Judge", "JudgeError", "JudgeOptions", "Verdict", "build_judge", "prepare_judge", "worst_case_seconds"]

CONNECT_SECONDS = 5.0
MAX_RETRY_WAIT_SECONDS = 30.0
CHAT_TEMPLATE_TOKENS = 64
"""What a chat template may add to a prompt, in the bound on the tokens of a request."""
MIN_SECRET_CHARACTERS = 8
"""A key shorter than this (`EMPTY`, `none`) is no secret, and too likely to be part of a text to be blotted out."""

Result = TypeVar("Result")


class JudgeError(Exception):
    """There is no verdict; the message says why, and never holds the API key."""


class Judge:
    """A judge model: `ask` gives the verdict on a prompt. Raises ValueError when the API key's variable is not set or
    the cache folder cannot be made."""

    def __init__(self, options: JudgeOptions) -> None:
        self._options = options
        self._key = _read_key(options.api_key_env)
        self._cache: AnswerCache | None = None
        self._budget: Budget | None = None
        self._random = random.Random()
        self._tls: Any = None
        self._settings = _settings(options)
        self._max_answer_tokens = _max_answer_tokens(self._settings)
        if self._max_answer_tokens is None and options.budget_tokens is not None:
            raise ValueError(
                f"budget_tokens = {options.budget_tokens}: needs a limit on each answer; extra takes max_tokens "
                "out, so let it set max_completion_tokens"
            )
        if options.cache_folder:
            folder = Path(options.cache_folder).absolute()
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"cache_folder = {options.cache_folder!r}: cannot be made: {error}") from error
            self._cache = AnswerCache(folder)
            limits = (options.budget_requests, options.budget_tokens, options.requests_per_minute)
            if limits != (None, None, None):
                self._budget = Budget(folder, options.run, options.base_url.rstrip("/"), *limits)

    def ask(self, prompt: str) -> Verdict:
        """The judge's verdict on the prompt, from the cache where it has been asked before.

        Takes at most `worst_case_seconds`. Raises JudgeError when there is none."""
        deadline = monotonic() + self._options.timeout_seconds
        prompt = prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates are no text
        system = [{"role": "system", "content": self._options.system}] if self._options.system else []
        body = {**self._settings, "messages": [*system, {"role": "user", "content": prompt}]}
        # Everything that determines the answer, and nothing else: not the key, the limits or the scale.
        key = hashlib.sha256(json.dumps([self._options.url, body], sort_keys=True).encode()).hexdigest()
        remarks = []
        if self._cache is not None:
            stored, remark = self._cache.get(key)
            remarks.append(remark)
            if stored is not None:
                try:
                    return self._verdict(Answer.from_json(stored), ["from the cache", remark])
                except ValueError as error:
                    remarks.append(f"the cache held no answer: {error}")
        answer, remark = self._fetch(json.dumps(body).encode(), deadline=deadline)
        remarks.append(remark)
        try:
            verdict = self._verdict(answer, remarks)
        except NoAnswerError as error:
            raise JudgeError(f"{self._options.model} at {self._options.url}: {error}") from None
        remark = self._cache.put(key, answer.to_json()) if self._cache is not None else ""
        return Verdict(verdict.score, verdict.mass, _joined(verdict.detail, remark))

    def write(self, prompt: str) -> str:
        """What the judge writes to the prompt, unread and uncached; for options with read = "text", whose
        `max_answer_tokens` it may fill.

        Takes at most `worst_case_seconds`. Raises JudgeError when nothing comes, or not the whole of it."""
        assert self._options.read == "text", "log-probs come with one token or two"
        deadline = monotonic() + self._options.timeout_seconds
        body = {**self._settings, "messages": [{"role": "user", "content": prompt}]}
        answer, _ = self._fetch(json.dumps(body).encode(), deadline=deadline)
        return answer.text

    def _verdict(self, answer: Answer, remarks: list[str]) -> Verdict:
        options = self._options
        score_of = (
            partial(score_of_logprobs, minimum_mass=options.minimum_mass)
            if options.read == "logprobs"
            else partial(score_of_text, pattern=options.pattern)
        )
        verdict = score_of(answer, lowest=options.lowest, highest=options.highest)
        return Verdict(verdict.score, verdict.mass, _joined(verdict.detail, *remarks))

    def _fetch(self, content: bytes, *, deadline: float) -> tuple[Answer, str]:
        """The answer to a request, tried until it comes, a fault is final, or the time is up; and a remark."""
        options = self._options
        for num_tries in count(1):
            try:
                return self._try(content, deadline=deadline)
            except BudgetError as error:
                raise JudgeError(str(error)) from None
            except RequestError as error:
                fault = error
            tried = f"{options.model} at {options.url}: {fault} (tries: {num_tries})"
            if not fault.retry or num_tries > options.max_retries:
                raise JudgeError(tried)
            wait_seconds = min(options.retry_wait_seconds * 2.0 ** min(num_tries - 1, 16), MAX_RETRY_WAIT_SECONDS)
            # Jitter spreads the workers that failed together.
            wait_seconds = max(wait_seconds * self._random.uniform(0.5, 1.0), fault.retry_after_seconds)
            if monotonic() + wait_seconds >= deadline:
                raise JudgeError(
                    f"{tried}; another try in {wait_seconds:.1f} s would pass timeout_seconds = "
                    f"{options.timeout_seconds:g}"
                )
            sleep(wait_seconds)
        raise AssertionError("count() does not end")

    def _try(self, content: bytes, *, deadline: float) -> tuple[Answer, str]:
        """One request, counted and sent in its turn. Raises RequestError and BudgetError."""
        # A token is a byte at least, so this bounds what the request can cost.
        bound = len(content) + CHAT_TEMPLATE_TOKENS + (self._max_answer_tokens or 0)
        if self._budget is not None:
            wait_seconds = self._budget.reserve(bound, now=time(), patience_seconds=deadline - monotonic())
            sleep(wait_seconds)
        billed: int | None = None
        try:
            limit_seconds = min(self._options.request_timeout_seconds, deadline - monotonic())
            if limit_seconds <= 0:
                raise RequestError("not sent: its turn came after timeout_seconds", retry=False)
            reply = _run(self._send(content, limit_seconds=limit_seconds))
            decoded = read_reply(reply, now=datetime.now(UTC))
            billed = used_tokens(decoded)
            answer = parse_answer(decoded, logprobs=self._options.read == "logprobs")
        except NoAnswerError as error:
            raise RequestError(f"HTTP 200, but {error}", retry=False, billed=True) from None
        except RequestError as error:
            billed = None if error.billed else 0
            raise
        finally:
            remark = ""
            if self._budget is not None and billed is not None:
                remark = self._budget.settle(reserved=bound, used=billed)
        return answer, remark

    async def _send(self, content: bytes, *, limit_seconds: float) -> Reply:
        """Post the body and read the reply, within the limit however slowly it drips. Raises RequestError."""
        import httpx

        if self._tls is None:
            self._tls = httpx.create_ssl_context()
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        body = bytearray()
        try:
            async with (
                # httpx's own limits hold for each read; this one holds for all of them together.
                asyncio.timeout(limit_seconds),
                httpx.AsyncClient(
                    verify=self._tls, timeout=httpx.Timeout(limit_seconds, connect=CONNECT_SECONDS)
                ) as client,
                client.stream("POST", self._options.url, content=content, headers=headers) as reply,
            ):
                async for chunk in reply.aiter_bytes():
                    body += chunk[: MAX_BODY_BYTES + 1 - len(body)]
                    if len(body) > MAX_BODY_BYTES:
                        break
                kept = {name: self._without_key(text) for name, text in reply.headers.items()}
                text = self._without_key(body.decode("utf-8-sig", "replace"))
                return Reply(reply.status_code, kept, text, is_whole=len(body) <= MAX_BODY_BYTES)
        except TimeoutError:
            raise RequestError(f"no whole answer within {limit_seconds:.1f} s", retry=True, billed=True) from None
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise RequestError(f"no connection: {self._words(error)}", retry=True) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise RequestError(f"the connection broke: {self._words(error)}", retry=True, billed=True) from None

    def _words(self, error: Exception) -> str:
        return self._without_key(f"{type(error).__name__}: {error}")[:300]

    def _without_key(self, text: str) -> str:
        """The text with the API key blotted out: some servers repeat it in their messages."""
        return text if len(self._key) < MIN_SECRET_CHARACTERS else text.replace(self._key, "[api key]")


def build_judge(options: JudgeOptions) -> Verifier:
    """The verifier: the judge's score of the completion by the rubric, from 0.0 (lowest) to 1.0 (highest), or as it is
    with `value: score`; abstained when the judge names no number; an error when there is no verdict.

    A completion longer than `max_completion_characters` has the lowest score, unasked. Reads problem["prompt"] and the
    columns that the rubric names."""
    rubric = Rubric(options.read_rubric(), columns=options.columns)
    judge = Judge(options)

    def verifier(completion: str, problem: Mapping[str, Any], /) -> Reward:
        if len(completion) > options.max_completion_characters:
            verdict = Verdict(
                float(options.lowest),
                None,
                f"not asked: {len(completion)} characters, above max_completion_characters = "
                f"{options.max_completion_characters}",
            )
        else:
            try:
                verdict = judge.ask(rubric.fill(completion, problem))
            except (RowError, JudgeError) as error:
                return Reward.error(str(error))
        if verdict.score is None:
            return Reward.abstained(verdict.detail)
        fraction = (verdict.score - options.lowest) / (options.highest - options.lowest)
        mass = {} if verdict.mass is None else {"judge_mass": verdict.mass}
        return Reward.scored(
            fraction if options.value == "fraction" else verdict.score,
            parts={"judge_score": verdict.score, **mass},
            detail=verdict.detail,
        )

    return verifier


def prepare_judge() -> None:
    """Import httpx and what it imports late: half a second's work that no call should pay for."""
    import httpx

    httpx.AsyncClient(verify=False)


def _settings(options: JudgeOptions) -> dict[str, Any]:
    """The body of a request but for its messages; a null in `extra` takes a field out."""
    # Two tokens show whether a number of two digits is one token, as its expected value needs.
    num_tokens = 1 if options.highest <= 9 else 2
    settings: dict[str, Any] = {"model": options.model, "temperature": 0}
    if options.read == "logprobs":
        settings |= {"max_tokens": num_tokens, "logprobs": True, "top_logprobs": 20}
    else:
        settings |= {"max_tokens": options.max_answer_tokens}
    return {name: value for name, value in (settings | options.extra).items() if value is not None}


def _max_answer_tokens(settings: Mapping[str, Any]) -> int | None:
    """The most tokens that an answer to such a request can have, None where nothing says."""
    limits = [settings[name] for name in ("max_tokens", "max_completion_tokens") if type(settings.get(name)) is int]
    return max(limits, default=None)


def _read_key(variable: str) -> str:
    """The API key; empty when no variable is named."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(f"api_key_env: the environment variable {variable} is not set; export it where the run starts")
    if not all("!" <= character <= "~" for character in key):
        raise ValueError(f"api_key_env: the environment variable {variable} holds what no key can: spaces or non-ASCII")
    return key


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """The coroutine's result. In a notebook, whose thread runs a loop already, another thread waits for it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, work).result()


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)
