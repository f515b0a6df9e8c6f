"""The model and the problems of a case: a Qwen3 whose completions have geometric lengths of a chosen mean.

Speed does not depend on what a model knows, but on how long its completions are. So the weights are random, and one
coordinate of the hidden state is held constant, from which the head gives the end token the same probability at every
position: lengths are geometric, cut at the limit, for whoever samples."""

import json
import math
import random
import shutil
from pathlib import Path

import torch
from cases import Case, Shape, policy_path, rows_path
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

END = "<end>"
CONSTANT = 16.0
"""The held coordinate, far above the others, whose standard deviation is 0.02: normalising moves it by < 1 %."""
NEVER = -50.0  # nats below the other tokens
NUM_STEPS_OF_ROWS = 4  # after which a problem comes again


def make_policy(case: Case, *, folder: Path) -> None:
    """Write the model and tokenizer of a case as a Hugging Face folder, unless they are there."""
    target = policy_path(case, folder=folder)
    if target.is_dir():
        return
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(_config(case.shape))
    _hold_a_coordinate(model)
    _set_end(model, probability=end_probability(case.mean_tokens, limit_tokens=case.limit_tokens))
    model.generation_config.eos_token_id = 0
    part = target.with_name(f"{target.name}.part")
    model.to(getattr(torch, case.shape.dtype)).save_pretrained(part)
    _tokenizer(case.shape.vocabulary).save_pretrained(part)
    shutil.move(part, target)


def make_rows(case: Case, *, folder: Path) -> None:
    """Write the problems of a case as JSONL: prompts of random words, a token each."""
    target = rows_path(case, folder=folder)
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    words = random.Random(0)
    rows = [
        {
            "prompt": " ".join(f"w{words.randrange(1, case.shape.vocabulary)}" for _ in range(case.prompt_tokens)),
            "answer": "none",
        }
        for _ in range(NUM_STEPS_OF_ROWS * case.num_problems + 3)  # 1 is held out, 2 are for validation
    ]
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def end_probability(mean_tokens: float, *, limit_tokens: int) -> float:
    """Of the end token at each position, so that completions cut at the limit have this mean; 0 where it is the limit.

    The mean of min(X, L) for a geometric X is (1 − (1 − p)^L) / p, which falls with p: solved by bisection."""
    if not 1 <= mean_tokens <= limit_tokens:
        raise ValueError(f"mean_tokens = {mean_tokens}: must be from 1 to limit_tokens = {limit_tokens}")
    if mean_tokens == limit_tokens:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 - (1 - middle) ** limit_tokens) / middle > mean_tokens:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _config(shape: Shape) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_size,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )


@torch.no_grad()
def _hold_a_coordinate(model: Qwen3ForCausalLM) -> None:
    """Coordinate 0 of every hidden state is `CONSTANT` before the last norm: no block adds to it."""
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    for block in model.model.layers:
        block.self_attn.o_proj.weight[0] = 0
        block.mlp.down_proj.weight[0] = 0
    model.lm_head.weight[:, 0] = 0


@torch.no_grad()
def _set_end(model: Qwen3ForCausalLM, *, probability: float) -> None:
    """Have the head give token 0 this probability everywhere, through the held coordinate."""
    ids = torch.randint(1, model.config.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    hidden = model.model(input_ids=ids).last_hidden_state  # [4, 16, D]
    others = _logsumexp_of_others(model.lm_head(hidden))  # []
    log_odds = math.log(probability / (1 - probability)) if probability else NEVER
    model.lm_head.weight[0] = 0
    model.lm_head.weight[0, 0] = (others + log_odds) / hidden[..., 0].mean()


def _logsumexp_of_others(logits: Tensor) -> Tensor:
    return logits[..., 1:].float().logsumexp(dim=-1).mean()


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    words = {END: 0, **{f"w{index}": index for index in range(1, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
