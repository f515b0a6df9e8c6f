"""The list machine: five digits, some one-letter list operations, and the list after each of them.

The prompt ``>lr?>13431`` is answered by ``l34311r11343``: each operation and the list after it. The reward checks
only the last list, so a policy is free in how it gets there, and guessing is hopeless (one list in 100,000). The
interpreter and the reward are in `rewards.list_machine`; here are the generator, the cold-start traces (the column
`trace`) and the tokenizer. More operations make a harder problem, and the number of problems is practically endless.

A trace may echo its operations in upper case (`L34311R11343`), which the reward takes as well. With `styles` a cold
start teaches both, and which of them a tag in the system turn asks for."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rewards.list_machine import OPERATIONS, prompt_of, run, trace

NUM_DIGITS = 5
END_TOKEN = "<end>"
PRINTABLE = [chr(code) for code in range(32, 127)]


OPTIONS = ("num_rows", "operations", "styles")


@dataclass(frozen=True, slots=True)
class _Style:
    """What the tags of one style ask for."""

    tags: tuple[str, ...]  # "" is no system turn
    upper: float  # share of the traces in upper case
    weight: float  # of the style among all


def rows(options: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Distinct rows {prompt, answer, trace, num_operations}, a pure function of options and seed.

    Options: `num_rows`; `operations`, a mapping from the number of operations (1 to 9) to its weight; and `styles`, a
    list of {tags, upper, weight}: each row gets a style by weight, one of its tags, and by the share `upper` a trace in
    upper case. Rows have columns `messages`, the tag as a system turn before the prompt, and `tag` then. No operation
    stands twice in a program. The programs do not depend on the styles.
    Raises ValueError on other options or impossible values."""
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise ValueError(f"task:list_machine has no option {sorted(unknown)[0]!r}; it has {', '.join(OPTIONS)}")
    num_rows, weights = options.get("num_rows", 1000), _weights(options.get("operations", {2: 1, 3: 1, 4: 1, 5: 1}))
    styles = _styles(options.get("styles", []))
    # Five digits and one operation make a million prompts; half of them is as far as rejection stays quick.
    if not isinstance(num_rows, int) or isinstance(num_rows, bool) or not 1 <= num_rows <= 500_000:
        raise ValueError(f"task:list_machine: num_rows must be from 1 to 500,000; got {num_rows!r}")
    rng = random.Random(seed)
    letters = sorted(OPERATIONS)
    made: dict[str, dict[str, Any]] = {}
    while len(made) < num_rows:
        (count,) = rng.choices(list(weights), weights=list(weights.values()))
        digits = "".join(rng.choices("0123456789", k=NUM_DIGITS))
        # No operation twice: what follows an operation in the program is then a question with one answer.
        operations = "".join(rng.sample(letters, k=count))
        prompt = prompt_of(digits, operations)
        made[prompt] = {
            "prompt": prompt,
            "answer": run(digits, operations)[-1],
            "trace": trace(digits, operations),
            "num_operations": count,
        }
    plain = list(made.values())
    return _styled(plain, styles, rng=random.Random(f"styles {seed}")) if styles else plain


def tokenizer() -> PreTrainedTokenizerBase:
    """One token a printable ASCII character, and an end token: a vocabulary of 96."""
    vocabulary = {token: index for index, token in enumerate([*PRINTABLE, END_TOKEN])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=characters, eos_token=END_TOKEN, pad_token=END_TOKEN)


def _styled(made: Sequence[Mapping[str, Any]], styles: Sequence[_Style], *, rng: random.Random) -> list[dict[str, Any]]:
    styled = []
    for row in made:
        (style,) = rng.choices(styles, weights=[style.weight for style in styles])
        tag = rng.choice(style.tags)
        in_upper = rng.random() < style.upper
        asked = [{"role": "system", "content": tag}] if tag else []
        styled.append(
            {
                **row,
                "trace": row["trace"].upper() if in_upper else row["trace"],
                "messages": [*asked, {"role": "user", "content": row["prompt"]}],
                "tag": tag,
            }
        )
    return styled


def _styles(styles: Any) -> list[_Style]:
    read = []
    for style in styles if isinstance(styles, list) else [styles]:
        wrong = (
            "task:list_machine: styles is a list of {tags: a list of printable ASCII texts, upper: 0 to 1, weight: "
            f"above 0}}; got {style!r}"
        )
        if not isinstance(style, Mapping) or set(style) - {"tags", "upper", "weight"} or not style.get("tags"):
            raise ValueError(wrong)
        tags = tuple(map(str, style["tags"]))
        try:
            upper, weight = float(style.get("upper", 0.0)), float(style.get("weight", 1.0))
        except (TypeError, ValueError) as error:
            raise ValueError(wrong) from error
        if not 0 <= upper <= 1 or not weight > 0 or set("".join(tags)) - set(PRINTABLE):
            raise ValueError(wrong)
        read.append(_Style(tags=tags, upper=upper, weight=weight))
    return read


def _weights(operations: Any) -> dict[int, float]:
    """Number of operations to its weight, from the option; YAML and command lines give numbers as texts too."""
    wrong = f"task:list_machine: operations maps 1..9 to weights above 0; got {operations!r}"
    if not isinstance(operations, Mapping) or not operations:
        raise ValueError(wrong)
    try:
        weights = {int(count): float(weight) for count, weight in operations.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(wrong) from error
    if not all(1 <= count <= 9 and weight > 0 for count, weight in weights.items()):
        raise ValueError(wrong)
    return weights
