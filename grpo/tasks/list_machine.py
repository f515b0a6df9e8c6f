"""The list machine: five digits, some one-letter list operations, and the list after each of them.

The prompt ``>lr?>13431`` is answered by ``l34311r11343``: each operation and the list after it. The reward checks
only the last list, so a policy is free in how it gets there, and guessing is hopeless (one list in 100,000). The
interpreter and the reward are in `rewards.list_machine`; here are the generator, the cold-start traces (the column
`trace`) and the tokenizer. More operations make a harder problem, and the number of problems is practically endless."""

import random
from collections.abc import Mapping
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rewards.list_machine import OPERATIONS, prompt_of, run, trace

NUM_DIGITS = 5
END_TOKEN = "<end>"
PRINTABLE = [chr(code) for code in range(32, 127)]


def rows(options: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Distinct rows {prompt, answer, trace, num_operations}, a pure function of options and seed.

    Options: `num_rows`, and `operations`, a mapping from the number of operations (1 to 9) to its weight. No operation
    stands twice in a program.
    Raises ValueError on other options or impossible values."""
    unknown = set(options) - {"num_rows", "operations"}
    if unknown:
        raise ValueError(f"task:list_machine has no option {sorted(unknown)[0]!r}; it has num_rows and operations")
    num_rows, weights = options.get("num_rows", 1000), _weights(options.get("operations", {2: 1, 3: 1, 4: 1, 5: 1}))
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
    return list(made.values())


def tokenizer() -> PreTrainedTokenizerBase:
    """One token a printable ASCII character, and an end token: a vocabulary of 96."""
    vocabulary = {token: index for index, token in enumerate([*PRINTABLE, END_TOKEN])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=characters, eos_token=END_TOKEN, pad_token=END_TOKEN)


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
