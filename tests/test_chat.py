"""What a policy is asked, in token ids: one template, applied once, up to where the policy goes on."""

from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grpo.chat import Chat
from grpo.config import ChatConfig, ModelConfig
from grpo.errors import ConfigError, DataError
from grpo.model import end_token_ids, load_tokenizer
from grpo.types import Message, Problem
from rewards import RewardSpec
from tests.chatml import chatml_tokenizer
from tests.conftest import tiny_policy

TEXTS = ["user assistant system Be brief. What is 1 + 1? The answer is 2, naïve café 你好 🙂\n"]
REFUSING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}"
)


def problem(*turns: tuple[str, str], identity: str = "p") -> Problem:
    messages = tuple(Message(role=role, content=content) for role, content in turns)
    return Problem(id=identity, messages=messages, answer="2", reward=RewardSpec("list_machine"))


SUM = problem(("user", "What is 1 + 1?"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> PreTrainedTokenizerBase:
    """Saved and loaded again, as a model's own tokenizer is."""
    folder = tmp_path_factory.mktemp("tokenizer")
    chatml_tokenizer(TEXTS).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def chat_of(tokenizer: PreTrainedTokenizerBase, **fields: object) -> Chat:
    return Chat(tokenizer, ChatConfig.model_validate(fields), end_token_ids=[tokenizer.eos_token_id])


def test_a_prompt_is_the_template_applied_once_up_to_the_policys_turn(tokenizer):
    ids = chat_of(tokenizer).prompt_ids(SUM)
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    special = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [token for token in ids if token in special] == [special[0], special[1], special[0]]


def test_a_system_prompt_stands_first_unless_the_row_brings_its_own(tokenizer):
    chat = chat_of(tokenizer, system_prompt="Be brief.")
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(chat.prompt_ids(SUM)).startswith(start)
    own = problem(("system", "Be kind."), ("user", "Hi"), identity="own")
    text = tokenizer.decode(chat.prompt_ids(own))
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi")
    assert "Be brief." not in text


def test_a_conversation_of_several_turns_is_asked_as_a_whole(tokenizer):
    turns = problem(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    assert tokenizer.decode(chat_of(tokenizer).prompt_ids(turns)) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_trace_is_prompt_completion_and_end_token_and_the_mask_covers_what_is_learned(tokenizer):
    chat = chat_of(tokenizer)
    completion = "The answer is 2, naïve 🙂"
    ids, mask = chat.trace_ids(SUM, completion)
    prompt = chat.prompt_ids(SUM)
    body = tuple(tokenizer.encode(completion, add_special_tokens=False))
    assert ids == (*prompt, *body, tokenizer.eos_token_id)
    assert mask == (False,) * len(prompt) + (True,) * (len(body) + 1)
    assert chat.text(ids[len(prompt) :]) == completion


def test_a_completion_of_nothing_is_learned_as_its_end(tokenizer):
    chat = chat_of(tokenizer)
    ids, mask = chat.trace_ids(SUM, "")
    assert ids == (*chat.prompt_ids(SUM), tokenizer.eos_token_id)
    assert sum(mask) == 1


@pytest.mark.parametrize(
    "text", ["The answer is 2.", " leading and trailing ", "a\n\nb", "naïve café 你好 🙂", "x , y ."]
)
def test_the_text_of_a_completion_is_what_was_written_without_the_end_token(tokenizer, text):
    chat = chat_of(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert chat.text([*ids, tokenizer.eos_token_id]) == text
    assert chat.text(ids) == text  # cut by the limit: there is no end token


def test_the_text_of_a_completion_that_is_only_an_end_token_is_empty(tokenizer):
    chat = chat_of(tokenizer)
    assert chat.text([tokenizer.eos_token_id]) == ""
    assert chat.text([]) == ""


def test_plain_style_is_the_text_of_the_messages_as_it_stands(tokenizer):
    chat = chat_of(tokenizer, style="plain")
    assert tokenizer.decode(chat.prompt_ids(SUM)) == "What is 1 + 1?"
    with_system = chat_of(tokenizer, style="plain", system_prompt="Q: ")
    assert tokenizer.decode(with_system.prompt_ids(SUM)) == "Q: What is 1 + 1?"


def test_plain_style_needs_no_template_and_adds_no_special_token(tokenizer):
    bare = chatml_tokenizer(TEXTS)
    bare.chat_template = None
    ids = chat_of(bare, style="plain").prompt_ids(SUM)
    assert not set(ids) & set(bare.all_special_ids)


def with_start(*, adds_it: bool) -> PreTrainedTokenizerBase:
    """A tokenizer with a start token, which it puts before every text or leaves to a template."""
    made = chatml_tokenizer(TEXTS)
    made.bos_token = "<|im_start|>"
    if adds_it:
        start = (made.bos_token, made.bos_token_id)
        made.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start[0]} $A", special_tokens=[start])
    return made


def test_plain_style_begins_with_the_start_token_once_where_the_tokenizer_puts_one_before_a_text():
    tokenizer = with_start(adds_it=True)
    body = tokenizer.encode("What is 1 + 1?", add_special_tokens=False)
    chat = chat_of(tokenizer, style="plain")
    assert chat.prompt_ids(SUM) == (tokenizer.bos_token_id, *body)
    system = chat_of(tokenizer, style="plain", system_prompt="Q: ")  # one text, so one start
    assert system.prompt_ids(SUM).count(tokenizer.bos_token_id) == 1
    ids, _ = chat.trace_ids(SUM, "2")
    assert ids.count(tokenizer.bos_token_id) == 1


def test_plain_style_begins_with_no_start_token_where_the_tokenizer_has_one_and_adds_none():
    tokenizer = with_start(adds_it=False)
    assert tokenizer.bos_token_id is not None
    expected = tuple(tokenizer.encode("What is 1 + 1?", add_special_tokens=False))
    assert chat_of(tokenizer, style="plain").prompt_ids(SUM) == expected


def test_a_template_writes_its_own_start_token_and_none_is_put_before_it():
    ids = chat_of(with_start(adds_it=True)).prompt_ids(SUM)
    assert ids.count(ids[0]) == 2  # of ChatML's user and assistant turns


def test_a_template_file_stands_in_for_the_tokenizers_own(tokenizer, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %} ->{% endif %}"
    )
    ids = chat_of(tokenizer, template_file=str(file)).prompt_ids(SUM)
    assert tokenizer.decode(ids) == "[user] What is 1 + 1? ->"


def test_a_template_file_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"chat.template_file = 'none.jinja': no such file"):
        chat_of(chatml_tokenizer(TEXTS), template_file="none.jinja")


def test_a_tokenizer_without_a_chat_template_is_refused_with_both_remedies():
    bare = chatml_tokenizer(TEXTS)
    bare.chat_template = None
    with pytest.raises(ConfigError) as error:
        chat_of(bare)
    assert "has no chat template; set chat.template_file to a Jinja file, or chat.style: plain" in str(error.value)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (REFUSING, "problem p: the chat template refuses its messages: no system turn"),
        ("{% for m in messages %}{{ m.content }}", "problem p: the chat template refuses its messages: "),
        ("{{ messages[7].content.upper() }}", "problem p: the chat template refuses its messages: "),
        ("{{ 1 + messages[0].content }}", "problem p: the chat template refuses its messages: unsupported operand"),
        ("", "problem p: its prompt is empty ('Hi'); drop the row"),
    ],
)
def test_a_template_that_makes_no_prompt_is_named_with_the_problem(tokenizer, tmp_path, template, expected):
    (tmp_path / "mine.jinja").write_text(template)
    chat = chat_of(tokenizer, template_file=str(tmp_path / "mine.jinja"))
    with pytest.raises(DataError) as error:
        chat.prompt_ids(problem(("system", "Be brief."), ("user", "Hi")))
    assert expected in str(error.value)


def test_an_empty_prompt_is_named_with_the_remedy(tokenizer):
    with pytest.raises(DataError, match=r"problem p: its prompt is empty \(''\); drop the row"):
        chat_of(tokenizer, style="plain").prompt_ids(problem(("user", "")))


def test_a_prompt_is_encoded_once(tokenizer, monkeypatch):
    chat = chat_of(tokenizer)
    first = chat.prompt_ids(SUM)
    monkeypatch.setattr(type(tokenizer), "apply_chat_template", None)
    assert chat.prompt_ids(SUM) is first


def test_end_tokens_are_the_tokenizers_own_first_and_then_the_models(tokenizer):
    model = tiny_policy("llama").model
    model.generation_config.eos_token_id = [7, tokenizer.eos_token_id, 9]
    assert end_token_ids(model, tokenizer) == (tokenizer.eos_token_id, 7, 9)
    model.generation_config.eos_token_id = None
    assert end_token_ids(model, tokenizer) == (tokenizer.eos_token_id,)
    bare = chatml_tokenizer(TEXTS)
    bare.eos_token = None
    with pytest.raises(ConfigError, match="has no end token, so no completion would ever end"):
        end_token_ids(model, bare)


def test_a_tokenizer_that_cannot_be_loaded_is_named_by_its_field(tmp_path):
    with pytest.raises(ConfigError, match=r"model.path = '.*': no tokenizer could be loaded from it"):
        load_tokenizer(ModelConfig(path=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"model.tokenizer = '.*': no tokenizer could be loaded from it"):
        load_tokenizer(ModelConfig(path="x", tokenizer=str(Path(tmp_path))))
