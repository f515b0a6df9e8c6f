"""What goes into a run: where it lives, the model, the text, the rows, how completions are drawn and judged.

A field has its unit in its name, a default, and one sentence. Rules between fields stand in validators at the end of
the section that holds both; a conflict is an error, never a silent rewrite."""

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from grpo.config.base import Section

VLLM_LEAST_TEMPERATURE = 0.01
"""vLLM draws at this temperature where a lower one is asked for, and says so in its own log alone."""


class RunSection(Section):
    """Where the run lives and what makes it repeatable."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run's folder."""
    folder: str = "runs"
    """Folder that holds the folders of runs."""
    seed: int = Field(0, ge=0)
    """The one seed: initial weights, problem order, every sampled token and every split follow from it."""
    threads: int | None = Field(None, ge=1)
    """Torch threads; null leaves torch's choice. A resume is bit for bit on the same number of threads only."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the policy lives; auto takes a GPU when there is one."""


class LoraConfig(Section):
    """Low-rank adapters through peft. Dropout is not offered: the sampler and the trainer would disagree."""

    rank: int = Field(16, ge=1)
    """Rank of the update of each adapted matrix."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """Module names to adapt, or all linear layers but the head."""


class ModelConfig(Section):
    """The policy: any causal language model of transformers."""

    path: str | None = None
    """Hub id or local folder of a pretrained model. Exactly one of path and architecture is set."""
    architecture: dict[str, Any] | None = None
    """Fields of a transformers config, model_type among them, for a model that is drawn from the run's seed."""
    tokenizer: str | None = None
    """Hub id, local folder or task:NAME; null takes the tokenizer in model.path."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Type of weights and activations; float16 is trained with loss scaling, and not on the CPU. Log-probs and losses
    are always computed in float32."""
    float32_head: bool = False
    """Compute the logits in float32 from hidden states in dtype, in sampling and training: sampler and trainer agree
    better, and runs end higher (ScaleRL: 0.52 to 0.61)."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation, the same in sampling and training."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory for about a third more time in training."""
    initial_embedding_std: float | None = Field(None, gt=0)
    """Standard deviation of the embeddings of a model drawn from architecture; null keeps the architecture's own."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and keep the base weights as they are; null trains every weight."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.architecture is None):
            raise ValueError(
                "set exactly one of path (a pretrained model) and architecture (a model drawn from the seed)"
            )
        if self.architecture is not None and "model_type" not in self.architecture:
            raise ValueError("architecture has no model_type; add one, such as model_type: qwen3")
        if self.architecture is not None and self.tokenizer is None:
            raise ValueError(
                "a model from architecture brings no tokenizer; set tokenizer to a hub id, a folder or task:NAME"
            )
        if self.path is not None and self.initial_embedding_std is not None:
            raise ValueError(
                "initial_embedding_std is for a model from architecture; model.path brings its own embeddings"
            )
        return self


class ChatConfig(Section):
    """How messages become prompt tokens."""

    style: Literal["template", "plain"] = "template"
    """template: the tokenizer's chat template; plain: the text of the messages as it stands, for base models."""
    template_file: str | None = None
    """A Jinja file used instead of the tokenizer's own chat template."""
    system_prompt: str | None = None
    """Put before each problem that has no system message of its own."""

    @model_validator(mode="after")
    def _template_needs_style(self) -> Self:
        if self.style == "plain" and self.template_file is not None:
            raise ValueError("template_file is set but style is plain; set style: template or drop template_file")
        return self


class Source(Section):
    """Rows and how to read them."""

    path: str
    """Hub id, local folder, .jsonl or .parquet file, or task:NAME for a task that makes its own rows."""
    subset: str | None = None
    """Name of the configuration of a hub data set that has several, such as main of openai/gsm8k."""
    split: str = "train"
    """Split to read from a hub id or a folder; with format mbpp also of its one file, by task_id (test, train+test)."""
    format: Literal["rows", "gsm8k", "mbpp", "humaneval", "ifeval", "bfcl"] = "rows"
    """rows: the columns below say what is what; any other: a benchmark's rows in their published form, of which the
    prompt, the answer and the judge are known."""
    options: dict[str, Any] = {}
    """Options of a task:NAME source; none for files."""
    prompt_column: str = "prompt"
    """Column with the prompt as text; not read where messages_column is set."""
    messages_column: str | None = None
    """Column with the prompt as a list of {role, content}."""
    answer_column: str | None = "answer"
    """Column with the right answer, as the reward wants it; null where the reward reads other columns instead."""
    answer_pattern: str | None = None
    """Regular expression for the answer column, with a group named answer and, for a cold start, others such as
    solution; named groups become fields of the problem."""
    drop_pattern: str | None = None
    """Regular expression whose matches are deleted from the named groups of answer_pattern."""
    prompt_suffix: str = ""
    """Text added to the end of the last user message, such as an instruction to box the answer."""
    max_problems: int | None = Field(None, ge=1)
    """Take at most this many rows, chosen by the run's seed; null takes all."""

    @model_validator(mode="after")
    def _columns_are_read(self) -> Self:
        if self.format != "rows":
            self.refuse_unread(
                *("prompt_column", "messages_column", "answer_column", "answer_pattern", "drop_pattern"),
                because=f"format is {self.format}",
                remedy="set format: rows",
            )
        return self

    @model_validator(mode="after")
    def _patterns(self) -> Self:
        for name, pattern in (("answer_pattern", self.answer_pattern), ("drop_pattern", self.drop_pattern)):
            try:
                groups = re.compile(pattern or "").groupindex
            except re.error as error:
                raise ValueError(f"{name} = {pattern!r}: is no regular expression ({error}); correct it") from error
            if name == "answer_pattern" and pattern is not None and "answer" not in groups:
                raise ValueError(
                    f"{name} = {pattern!r}: has no group (?P<answer>...); name the part that is the answer"
                )
        if self.answer_pattern is not None and self.answer_column is None:
            raise ValueError(
                f"answer_pattern = {self.answer_pattern!r} reads the answer column, and answer_column is null; name it"
            )
        if self.drop_pattern is not None and self.answer_pattern is None:
            raise ValueError(
                f"drop_pattern = {self.drop_pattern!r} edits the groups of answer_pattern, which is not set; set it too"
            )
        return self


class DataConfig(Section):
    """What is practised and what is held out."""

    train: Source
    """Problems to practise."""
    heldout: Source | None = None
    """Problems for the final evaluation; null splits them off train. Training never asks one of their
    questions: what the user says, with whatever system message or prompt_suffix."""
    heldout_problems: int = Field(256, ge=1)
    """Problems of the final evaluation (at most, where a heldout source is given)."""
    validation_problems: int = Field(128, ge=2)
    """Problems split off train to decide on: the gate, the best checkpoint, early stop, temperature. Never practised,
    and no part of the final evaluation, so that no choice flatters it."""
    max_prompt_tokens: int = Field(2048, ge=1)
    """A longer prompt is an error unless overlong_prompts is drop."""
    overlong_prompts: Literal["error", "drop"] = "error"
    """drop: leave problems with longer prompts out, and count them."""


class VllmConfig(Section):
    """vLLM as the engine: where it runs, what it may hold, and how the policy's weights come to it."""

    mode: Literal["colocated", "server"] = "colocated"
    """colocated: an engine in each process of the run, beside the policy; server: vLLM's own, which you start."""
    memory_fraction: float = Field(0.4, gt=0, lt=1)
    """Share of the device's memory for a colocated engine on a GPU: its copy of the weights, and keys and values."""
    cache_gib: float | None = Field(None, gt=0)
    """Memory for keys and values of a colocated engine, in GiB; null takes what memory_fraction leaves (a CPU: 1)."""
    eager: bool = False
    """Run the model without CUDA graphs and compilation: a shorter start, slower decoding. For a colocated engine."""
    sleep: bool = True
    """Let a colocated engine on a GPU give its memory back while nothing is sampled; a CPU's cannot."""
    seeds: Literal["request", "engine"] = "request"
    """request: each completion has a seed of its own, from the run's; engine: one generator draws for all, as on a CPU,
    where vLLM cannot do otherwise."""
    urls: list[str] = []
    """Addresses of the servers, such as http://node1:8000; each of them serves some of the ranks."""
    exchange_folder: str | None = None
    """Folder that the run and the servers see under this path, in which weights are handed over."""
    check_every_syncs: int = Field(20, ge=0)
    """Hand-overs of weights between comparisons of what the engine holds with the policy's own; 0 compares never."""
    timeout_seconds: float = Field(300.0, gt=0)
    """How long a server may be gone or silent before the run ends with its name."""

    @model_validator(mode="after")
    def _of_one_mode(self) -> Self:
        if self.mode == "server":
            names = ("memory_fraction", "cache_gib", "eager", "sleep")
            self.refuse_unread(*names, because="mode is server", remedy="give it to the server")
            if not self.urls:
                raise ValueError("mode = 'server' needs the servers' addresses; set urls: [http://HOST:PORT]")
            if self.exchange_folder is None:
                raise ValueError(
                    "mode = 'server' hands weights over in files; set exchange_folder: a folder that servers see too"
                )
        else:
            of_servers = ("urls", "exchange_folder", "timeout_seconds")
            self.refuse_unread(*of_servers, because="mode is colocated", remedy="set mode: server")
        wrong = [url for url in self.urls if not re.fullmatch(r"https?://[^/\s]+/?", url)]
        if wrong:
            raise ValueError(f"urls has {wrong[0]!r}: must be an address such as http://node1:8000, without a path")
        return self


class SamplingConfig(Section):
    """How completions are drawn. The temperature has a section of its own."""

    engine: Literal["native", "vllm"] = "native"
    """native: the policy's own modules draw, exactly as training scores; vllm: a copy of the policy in vLLM draws
    (docs/vllm.md)."""
    vllm: VllmConfig = VllmConfig()
    """How vLLM runs, where it is the engine."""
    max_completion_tokens: int = Field(1024, ge=1)
    """Limit of a completion, the end token included."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the smallest set of tokens with at least this probability; 1 is off."""
    top_k: int = Field(0, ge=0)
    """Draw from this many of the likeliest tokens; 0 is off."""
    min_p: float = Field(0.0, ge=0, lt=1)
    """Leave out tokens below this share of the likeliest one's probability; 0 is off."""
    stop_strings: list[str] = []
    """Texts that end a completion; they stay in it."""
    max_rows: int = Field(256, ge=8)
    """Completions decoded at once, 8 at least (fewer round differently). Lower it when sampling runs out of memory."""
    prefill_tokens: int = Field(16384, ge=1)
    """Prompt tokens of one prefill, padding included. Prompts of like length share one; a longer prompt is alone."""

    @model_validator(mode="after")
    def _stops_on_something(self) -> Self:
        if "" in self.stop_strings:
            raise ValueError(f"stop_strings = {self.stop_strings!r}: an empty text would end nothing; leave it out")
        return self

    @model_validator(mode="after")
    def _fits_the_engine(self) -> Self:
        if self.engine == "native":
            self.refuse_unread("vllm", because="engine is native", remedy="set engine: vllm")
            return self
        off: dict[str, float] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        for name, value in off.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} = {getattr(self, name)} and engine = 'vllm', which does not tell what tokens were left "
                    f"for each draw, so that training could not score them alike; set {name}: {value} or engine: native"
                )
        return self


class RewardConfig(Section):
    """Who judges a completion: a reward of this package, or a function in your own Python file."""

    name: str | None = None
    """A reward of the package `rewards`, such as math_answer. Exactly one of name and file is set."""
    file: str | None = None
    """Your own Python file."""
    function: str | None = None
    """The function in that file: (completion, problem) to a number, None (no verdict) or a Reward."""
    options: dict[str, Any] = {}
    """Options of the reward."""
    success_threshold: float = 1.0
    """A value at or above it counts as correct, for pass rates and tiers."""
    max_error_fraction: float = Field(0.05, ge=0, le=1)
    """Share of a step's verdicts that may be lost to errors and timeouts before the run ends."""
    timeout_seconds: float = Field(5.0, gt=0)
    """Hard limit of one verdict; the worker that breaks it is killed and the rollout has no value."""
    memory_limit_mb: int = Field(4096, ge=0)
    """Address space of a verifier process; 0 has no limit. A reward that imports torch needs more than the default."""
    workers: int = Field(2, ge=0)
    """Verifier processes; 0 runs rewards inside the trainer, without a limit, for rewards that cannot hang."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.name is None) == (self.file is None):
            raise ValueError("set exactly one of name (a built-in reward) and file (your own Python file)")
        if (self.file is None) != (self.function is None):
            raise ValueError("file and function go together: the file, and the function in it")
        return self
