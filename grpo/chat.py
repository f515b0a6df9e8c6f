"""Between text and token ids: the only file that tokenises, and it does so once for each text.

A completion follows the prompt's ids as sampled; it is decoded for readers and verifiers, never encoded again. A
cold-start trace is encoded apart from its prompt, so that a model learns on the ids that it will be asked with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from grpo.config import ChatConfig
from grpo.errors import ConfigError, DataError
from grpo.types import Message, Problem

PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""What style plain is, as a chat template."""


class Chat:
    """Encodes prompts and traces, decodes completions, and knows which tokens end one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: ChatConfig, *, end_token_ids: Sequence[int]) -> None:
        """Raises ConfigError where style is template and there is none."""
        self.tokenizer = tokenizer
        self.end_token_ids = tuple(end_token_ids)
        self._config = config
        self._template = _template(tokenizer, config)
        # A tokenizer that puts a token before every text (Gemma's, Llama's) belongs to a model that expects it there.
        start = tokenizer.bos_token_id
        self._start = [start] if start is not None and start in tokenizer.encode("")[:1] else []
        self._prompts: dict[str, tuple[int, ...]] = {}

    @property
    def template(self) -> str:
        """The Jinja template that makes the prompts of `prompt_ids` from their messages."""
        start = "{{ bos_token }}" if self._start else ""
        return self._template if self._template is not None else start + PLAIN_TEMPLATE

    def prompt_ids(self, problem: Problem) -> tuple[int, ...]:
        """The prompt in token ids, up to where the policy goes on. Encoded once for each problem."""
        if problem.id not in self._prompts:
            try:
                self._prompts[problem.id] = self.conversation_ids(problem.messages)
            except ValueError as error:
                raise DataError(f"problem {problem.id}: {error}") from error
        return self._prompts[problem.id]

    def trace_ids(self, problem: Problem, completion: str) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """A trace to learn from: ids of prompt, completion and end token, and a mask that is True after the prompt."""
        prompt = self.prompt_ids(problem)
        body = self.tokenizer.encode(completion, add_special_tokens=False)
        ids = (*prompt, *body, self.end_token_ids[0])
        return ids, (False,) * len(prompt) + (True,) * (len(ids) - len(prompt))

    def text(self, completion_ids: Sequence[int]) -> str:
        """The text of a completion, without its end token."""
        ids = list(completion_ids)
        if ids and ids[-1] in self.end_token_ids:
            ids.pop()
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def token_texts(self) -> list[str]:
        """What each token id reads as behind another token: with its leading space, where it has one.

        A token that is part of a character reads as U+FFFD."""
        (before, *_) = self.tokenizer.encode("a", add_special_tokens=False) or (self.end_token_ids[0],)
        pairs = [[before, token] for token in range(len(self.tokenizer))]
        texts = [str(self.tokenizer.decode(pair, clean_up_tokenization_spaces=False)) for pair in ([before], *pairs)]
        return [text[len(texts[0]) :] for text in texts[1:]]

    def conversation_ids(self, conversation: Sequence[Message]) -> tuple[int, ...]:
        """Messages in token ids, up to where the policy goes on. Raises ValueError for what cannot be a prompt."""
        messages = [{"role": message.role, "content": message.content} for message in conversation]
        if self._config.system_prompt is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._config.system_prompt})
        if self._template is None:
            text = "".join(message["content"] for message in messages)
            ids: Any = [*self._start, *self.tokenizer.encode(text, add_special_tokens=False)]
        else:
            try:
                ids = self.tokenizer.apply_chat_template(
                    messages, chat_template=self._template, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            except (TemplateError, TypeError, ValueError) as error:
                raise ValueError(f"the chat template refuses its messages: {error}") from error
        if not ids:
            raise ValueError(f"its prompt is empty ({conversation[-1].content!r}); drop the row")
        return tuple(ids)


def _template(tokenizer: PreTrainedTokenizerBase, config: ChatConfig) -> str | None:
    if config.style == "plain":
        return None
    if config.template_file is not None:
        path = Path(config.template_file)
        if not path.is_file():
            raise ConfigError(f"chat.template_file = {config.template_file!r}: no such file")
        return path.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise ConfigError(
            f"chat.style = 'template', but the tokenizer {tokenizer.name_or_path!r} has no chat template; set "
            "chat.template_file to a Jinja file, or chat.style: plain for a base model"
        )
    return str(tokenizer.chat_template)
