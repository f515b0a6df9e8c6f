"""A tokenizer and a causal language model from a hub id, a folder or an architecture, with adapters where asked."""

from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo import recompute, tasks
from grpo.config import LoraConfig, ModelConfig
from grpo.errors import ConfigError
from grpo.linears import quicken_linears
from grpo.norms import quicken_norms
from grpo.seeds import torch_seed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What transformers and torch raise for the fields of a wrong config, and for files that hold no model.
CANNOT_BUILD = (
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    LookupError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)
CANNOT_LOAD = (OSError, SafetensorError, *CANNOT_BUILD)
ATTENTION_LAYERS = ("full_attention", "sliding_attention")
ALIBI_MODELS = ("bloom", "mpt")  # Falcon says so in its config


class Float32Head(nn.Linear):
    """A linear head whose logits are a float32 product, whatever the type of hidden states and weight.

    It holds the parameter of the head that it replaces, so that names, tying and type of the weight stay. A float32
    copy of the weight lives for the length of a call. Source: ScaleRL (Khatri et al., 2025), arXiv 2510.13786."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
        self.weight, self.bias = head.weight, head.bias

    def forward(self, input: Tensor) -> Tensor:
        """Logits [..., V] float32 of hidden states [..., D]."""
        # The cold start of bfloat16 runs under autocast, which would round both sides again.
        with torch.autocast(device_type=input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return functional.linear(input.float(), self.weight.float(), bias)


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that model.tokenizer names, or that comes with model.path. Raises ConfigError."""
    name = config.tokenizer or config.path
    assert name is not None  # ModelConfig refuses an architecture without a tokenizer
    try:
        task = tasks.find(name)
        return task.tokenizer() if task is not None else AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        field = "model.tokenizer" if config.tokenizer else "model.path"
        raise ConfigError(f"{field} = {name!r}: no tokenizer could be loaded from it: {error}") from error


def load_model(
    config: ModelConfig, *, tokenizer: PreTrainedTokenizerBase, seed: int, device: torch.device
) -> nn.Module:
    """The model in its dtype on its device, adapters attached; weights that are not pretrained follow from `seed`.

    Raises ConfigError where the model cannot be loaded, is too small for the tokenizer, cannot be sampled from, or is
    of a dtype that the device is not for."""
    if config.dtype == "float16" and device.type == "cpu":
        raise ConfigError(
            "model.dtype = 'float16' on the CPU: float16 is for GPUs, a CPU computes it by way of float32, slowly; set "
            "model.dtype: float32 or bfloat16, or run.device: cuda"
        )
    model = initial_model(config, tokenizer=tokenizer, seed=seed).to(device)
    quicken_norms(model)
    quicken_linears(model)
    return model


def initial_model(config: ModelConfig, *, tokenizer: PreTrainedTokenizerBase, seed: int) -> nn.Module:
    """As `load_model`, on the CPU whatever its dtype: to read weights from. Raises ConfigError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "model"))
        model = _pretrained(config) if config.path is not None else _from_architecture(config, tokenizer)
        _check(model, tokenizer)
        model.config.use_cache = False
        if config.float32_head:
            _give_float32_head(model)
        if config.activation_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": recompute.contexts}
            )
        with_adapters = model if config.lora is None else _adapted(model, config.lora)
    # Evaluation mode for good: dropout would make the trainer's log-probs differ from the sampler's.
    return with_adapters.eval()


def skeleton(config: ModelConfig, *, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model on torch's meta device: name, shape and type of every weight, in no memory. Raises ConfigError."""
    with torch.device("meta"):
        architecture = _published(config.path) if config.path is not None else _architecture(config, tokenizer)
        model = _built(architecture, config)
        _check(model, tokenizer)
        if config.float32_head:
            _give_float32_head(model)
        return model if config.lora is None else _adapted(model, config.lora)


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model, whether or not adapters wrap it."""
    wrapper: Any = model
    unwrapped: PreTrainedModel = wrapper.get_base_model() if hasattr(model, "peft_config") else wrapper
    return unwrapped


def end_token_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end a completion: the tokenizer's own first, then those of the model's generation config."""
    generation = base_of(model).generation_config
    others = generation.eos_token_id if generation is not None else None
    listed = [tokenizer.eos_token_id, *(others if isinstance(others, Sequence) else [others])]
    ids = tuple(dict.fromkeys(token for token in listed if token is not None))
    if not ids:
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path!r} has no end token, so no completion would ever end")
    return ids


def max_positions(model: nn.Module) -> int | None:
    """Tokens that a sequence may have, or None where the config does not say."""
    value = getattr(base_of(model).config.get_text_config(), "max_position_embeddings", None)
    return int(value) if value else None


def _pretrained(config: ModelConfig) -> PreTrainedModel:
    assert config.path is not None
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            config.path,
            dtype=DTYPES[config.dtype],
            attn_implementation=config.attention,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    except CANNOT_LOAD as error:
        raise ConfigError(f"model.path = {config.path!r}: no causal language model could be loaded: {error}") from error
    model, report = loaded  # a pair, which the types of transformers do not say
    # transformers draws what a checkpoint lacks at random, and goes on; a tied head is not missing to it.
    foreign = [f"{name} (missing)" for name in sorted(report["missing_keys"])]
    foreign += [f"{name} ({list(of)}, not {list(to)})" for name, of, to in sorted(report["mismatched_keys"])]
    if foreign:
        raise ConfigError(
            f"model.path = {config.path!r}: the checkpoint does not fill {type(model).__name__}: {_listed(foreign)}; "
            "take the folder of a causal language model, whole and with its own config.json"
        )
    filled: PreTrainedModel = model
    return filled


def _listed(names: Sequence[str], *, most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _published(path: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path)
    except CANNOT_LOAD as error:
        raise ConfigError(f"model.path = {path!r}: no model's config could be loaded: {error}") from error


def _from_architecture(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    model = _built(_architecture(config, tokenizer), config)
    if config.initial_embedding_std is not None:
        nn.init.normal_(_embeddings(model).weight, std=config.initial_embedding_std)
    return model


def _architecture(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    assert config.architecture is not None
    fields = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    fields |= {"pad_token_id": tokenizer.pad_token_id} | config.architecture
    try:
        architecture = AutoConfig.for_model(fields.pop("model_type"), **fields)
    except CANNOT_BUILD as error:
        raise ConfigError(f"model.architecture: transformers takes no such config: {error}") from error
    _check_vocabulary(architecture.get_text_config().vocab_size, tokenizer)
    return architecture


def _built(architecture: PreTrainedConfig, config: ModelConfig) -> PreTrainedModel:
    """A model of that architecture, drawn from torch's generator."""
    try:
        return AutoModelForCausalLM.from_config(
            architecture, dtype=DTYPES[config.dtype], attn_implementation=config.attention
        )
    except CANNOT_BUILD as error:
        field = "architecture" if config.path is None else "path"
        raise ConfigError(f"model.{field}: transformers cannot build it: {error}") from error


def _check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    _check_vocabulary(_embeddings(model).num_embeddings, tokenizer)
    config, name = model.config.get_text_config(), type(model).__name__
    if "local" in (getattr(config, "attention_layers", None) or []):
        raise ConfigError(
            f"model: {name} has local attention layers, whose window the native sampler does not know; take a model "
            "whose attention layers are all global"
        )
    if getattr(config, "alibi", False) or config.model_type in ALIBI_MODELS:
        raise ConfigError(
            f"model: {name} weighs attention by distance (alibi), which the native sampler cannot; take a model with "
            "rotary or learned positions"
        )
    layers = getattr(config, "layer_types", None) or []
    foreign = sorted(set(layers) - set(ATTENTION_LAYERS))
    if foreign or model._is_stateful:
        raise ConfigError(
            f"model: {name}'s layers ({', '.join(foreign) or 'recurrent'}) keep a state that the "
            f"native sampler cannot hold; take a model with layers of type {' or '.join(ATTENTION_LAYERS)} alone"
        )


def _check_vocabulary(num_embeddings: int, tokenizer: PreTrainedTokenizerBase) -> None:
    if num_embeddings < len(tokenizer):
        raise ConfigError(
            f"model: {num_embeddings} embeddings for a tokenizer of {len(tokenizer)} tokens; set model.tokenizer to "
            "the one that belongs to it, or leave vocab_size out of model.architecture"
        )


def _embeddings(model: PreTrainedModel) -> nn.Embedding:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)  # of every causal language model of transformers
    return embeddings


def _give_float32_head(model: PreTrainedModel) -> None:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"model.float32_head = true: the head of {type(model).__name__} is a {type(head).__name__}, not a linear "
            "layer; set it to false"
        )
    model.set_output_embeddings(Float32Head(head))
    assert isinstance(model.get_output_embeddings(), Float32Head)


def _adapted(model: PreTrainedModel, config: LoraConfig) -> nn.Module:
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft takes a float too
        lora_dropout=0.0,
        target_modules=config.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(f"model.lora.target_modules = {config.target_modules!r}: {error}") from error
