"""A conversation in lines: what a checkpoint answers, steered and not, and what it is told of."""

import io
import sys
from pathlib import Path

import pytest
import torch

from grpo.chat import Chat
from grpo.config import ChatConfig, SamplingConfig
from grpo.errors import CheckpointError, ConfigError
from grpo.export import export
from grpo.persona.vectors import load
from grpo.sampling.native import NativeSampler
from grpo.sampling.protocol import Request
from grpo.seeds import key
from grpo.steering import Steering
from grpo.talk import Conversation, Speaker, converse, speaker_of
from tests.chatml import chatml_tokenizer
from tests.conftest import SIZES, tiny_policy
from tests.runs import grpo, small_run_config
from tests.steering import save_vectors
from tests.test_export import made_run

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with a checkpoint and the vectors of a trait, loud."""
    path, _ = made_run(tmp_path)
    save_vectors(path / "persona" / "loud.safetensors", small_run_config(tmp_path), recommended=(0, 1.0))
    return path


def conversation_of(folder: Path, *, checkpoint: str | None = None, **options: object) -> Conversation:
    speaker = speaker_of(folder, checkpoint_name=checkpoint, device=CPU, say=print)
    return Conversation(speaker, **{"temperature": 1.0, "seed": 0, "limit_tokens": None} | options)


def talked(conversation: Conversation, *lines: str) -> list[str]:
    said: list[str] = []
    converse(conversation, lines, say=said.append)
    return said


def test_an_answer_is_what_the_sampler_draws_of_the_checkpoint_under_the_steering(run):
    conversation = conversation_of(run)
    speaker = speaker_of(run, checkpoint_name="step_000004", device=CPU, say=print)
    sampler = NativeSampler(
        speaker.policy, speaker.sampling, end_token_ids=speaker.chat.end_token_ids, tokenizer=speaker.chat.tokenizer
    )
    prompt = tuple(speaker.chat.tokenizer.encode("13431ltx?", add_special_tokens=False))

    def drawn(number: int) -> str:
        (found,) = sampler.sample([Request(prompt_ids=prompt, keys=(key(0, "talk", number),), temperature=1.0)])
        return speaker.chat.text(found.token_ids)

    answers = [answer.removesuffix(" [cut after 8 tokens]") for answer in talked(conversation, "13431ltx?")]
    assert answers == [drawn(0)]
    said = talked(conversation, "/steer loud=4", "13431ltx?", "/steer loud=0", "13431ltx?")
    vector = load(run / "persona" / "loud.safetensors").vectors([0])[0]
    sampler.steer(Steering({0: 4 * vector}, coefficient=1.0))
    steered = drawn(1)
    sampler.steer(None)
    assert said[0] == "steered by loud=4 at block 0"
    assert said[1].removesuffix(" [cut after 8 tokens]") == steered != drawn(1)
    assert said[2] == "not steered"
    assert said[3].removesuffix(" [cut after 8 tokens]") == drawn(2)


def test_several_traits_add_up_and_one_in_another_file_is_named_by_its_path(run, tmp_path):
    other = save_vectors(
        tmp_path / "calm.safetensors", small_run_config(tmp_path), seed=1, trait="calm", recommended=(0, 1.0)
    )
    conversation = conversation_of(run)
    assert conversation.steer(["loud=2", f"{other}=-1"]) == f"steered by loud=2 at block 0, {other}=-1 at block 0"
    steering = conversation._speaker.policy.steering
    loud, calm = (load(Path(path)).vectors([0])[0] for path in (run / "persona" / "loud.safetensors", other))
    assert torch.allclose(steering.vectors[0], 2 * loud - calm)
    assert steering.positions == "choosing"


def test_lines_that_are_wrong_are_told_of_and_change_nothing(run):
    conversation = conversation_of(run)
    said = talked(
        conversation,
        "/steer loud=1",
        "/steer loud",
        "/steer loud=nan",
        "/steer quiet=1",
        "/steer",
        "/what",
        "",
        "/quit",
        "x",
    )
    assert said[0] == said[4] == "steered by loud=1 at block 0"
    assert "say TRAIT=FACTOR" in said[1]
    assert "say TRAIT=FACTOR" in said[2]
    assert "no vectors of quiet there; the run has loud" in said[3]
    assert "/reset" in said[5]
    assert len(said) == 6  # nothing after /quit


def test_vectors_of_another_shape_are_refused(run, tmp_path):
    path = save_vectors(tmp_path / "wide.safetensors", small_run_config(tmp_path), hidden_size=64)
    (said,) = talked(conversation_of(run), f"/steer {path}=1")
    assert "with 2 blocks of width 64, and the policy has 2 of width 32" in said


def test_a_policy_of_a_chat_template_remembers_until_it_is_reset(monkeypatch):
    tokenizer = chatml_tokenizer(["a b c"])
    policy = tiny_policy("llama", architecture={"model_type": "llama", **SIZES, "vocab_size": len(tokenizer)})
    chat = Chat(tokenizer, ChatConfig(), end_token_ids=(tokenizer.eos_token_id,))
    speaker = Speaker("s", policy, chat, SamplingConfig(max_completion_tokens=4), remembers=True, vectors=None)
    conversation = Conversation(speaker, temperature=1.0, seed=0, limit_tokens=None)
    seen = []
    ids = Chat.conversation_ids
    monkeypatch.setattr(
        Chat, "conversation_ids", lambda chat, messages: seen.append(list(messages)) or ids(chat, messages)
    )
    talked(conversation, "a", "b", "/reset", "c")
    assert [[message.role for message in messages] for messages in seen] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user"],
    ]
    assert [messages[-1].content for messages in seen] == ["a", "b", "c"]


def test_the_context_is_not_outgrown(run):
    conversation = conversation_of(run, limit_tokens=50)
    said = talked(conversation, "1" * 60, "1" * 64, "1" * 62)
    assert said[1] == "the conversation has 64 tokens, and the model's context 64: /reset"
    assert not said[0].endswith("50 tokens]")


def test_start_is_what_the_config_gives_before_training(tmp_path):
    folder, _ = made_run(tmp_path, sft=None)
    prompt = torch.arange(8).unsqueeze(0)
    start, trained = (
        speaker_of(folder, checkpoint_name=name, device=CPU, say=print).policy for name in ("start", None)
    )
    assert not torch.equal(start.hidden(prompt), trained.hidden(prompt))
    with pytest.raises(CheckpointError, match="neither in"):
        speaker_of(folder, checkpoint_name="step_9", device=CPU, say=print)


def test_a_folder_that_export_wrote_answers_too_and_one_of_nothing_is_refused(run, tmp_path):
    export(run, output=tmp_path / "out", checkpoint_name=None, form=None, say=print)
    assert talked(conversation_of(tmp_path / "out", limit_tokens=8), "13431ltx?") == talked(
        conversation_of(run), "13431ltx?"
    )
    with pytest.raises(ConfigError, match="is one model and no run"):
        conversation_of(tmp_path / "out", checkpoint="best")
    with pytest.raises(ConfigError, match="neither a run's folder"):
        conversation_of(tmp_path)


def test_the_command_reads_lines_from_its_input_and_writes_answers_to_its_output(run, monkeypatch, capsys):
    def talk(*options: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("13431ltx?\n/steer\n"))
        assert grpo("talk", run, "--seed", "3", *options) == 0
        return capsys.readouterr().out.splitlines()

    plain, steered = talk(), talk("--steer", "loud=5", "--max-tokens", "8")
    assert plain == talk("--temperature", "1")
    assert plain[-1] == "not steered"
    assert steered[-1] == "steered by loud=5 at block 0"
    assert steered[:-1] != plain[:-1]
    assert grpo("talk", run, "--steer", "none=1") == 3
    assert "the run has loud" in capsys.readouterr().err
