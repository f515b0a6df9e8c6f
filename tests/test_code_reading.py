"""Where the code of a completion is found, and when two outputs are the same."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.code.extract import bound_names, extract_code, fenced_blocks, parse
from rewards.code.output import same_output

# Where the code is


WANTED = "def f(x):\n    return 1"


@pytest.mark.parametrize(
    "completion",
    [
        WANTED,
        f"```python\n{WANTED}\n```",
        f"Text.\n```py\n{WANTED}\n```\nMore text.",
        f"```\n{WANTED}\n```",
        f"~~~python\n{WANTED}\n~~~",
        f"````python\n{WANTED}\n````",
        f"```python\r\n{WANTED}\r\n```\r\n".replace("x):\n", "x):\r\n"),
        f"```Python3\n{WANTED}",  # the end was cut off, or a stop string
        f"<answer>```python\n{WANTED}\n```</answer>",
        f"<answer>\n```python\n{WANTED}\n```\n</answer>",
        f"1. A list:\n   ```python\n   {WANTED.replace(chr(10), chr(10) + '   ')}\n   ```",
        f"```python\ndef f(x): return 2\n```\nBetter:\n```python\n{WANTED}\n```",
        f"```python\n{WANTED}\n```\nUse it:\n```python\nprint(f(3))\n```",
        f"```python\n{WANTED}\n```\n```bash\npython main.py\n```\n```text\n1\n```",
        f"```python\n{WANTED}\n```\n```python\ndef f(x) broken\n```",
        f"```bash\npip install x\n```\n{WANTED}"[:0] + WANTED,
    ],
)
def test_the_code_is_found(completion):
    code = extract_code(completion, ("last_block", "whole"), entry_point="f")
    assert code is not None
    assert code.strip() == WANTED


def test_a_fence_in_a_docstring_closes_nothing():
    code = 'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n    return 1'
    assert fenced_blocks(f"```python\n{code}\n```\nDone.") == [code]


def test_pieces_in_several_blocks_are_joined_when_asked_for():
    completion = "```python\nimport math\n```\nand\n```python\ndef f(x): return math.floor(x)\n```\n```text\n5\n```"
    assert extract_code(completion, ("last_block",), entry_point="f") == "def f(x): return math.floor(x)"
    assert extract_code(completion, ("all_blocks",), entry_point="f") == "import math\n\ndef f(x): return math.floor(x)"


@pytest.mark.parametrize("output", ["3", "1\n2", "5, 6", "hello", "O(1)", "numpy"])
def test_what_a_program_printed_is_not_taken_for_the_program(output):
    program = "a, b = map(int, input().split())\nprint(a + b)"
    completion = f"```python\n{program}\n```\nOutput:\n```\n{output}\n```\n```python\nassert 1 + 2 == 3\n```"
    assert extract_code(completion, ("last_block", "whole")) == program


def test_without_an_entry_point_the_last_block_that_parses_counts():
    assert (
        extract_code("```python\nprint(1)\n```\n```python\nprint(2)\n```\n```python\n1 +\n```", ("last_block",))
        == "print(2)"
    )
    assert extract_code("```python\n1 +\n```", ("last_block", "whole")) is None


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(): g = 1\nclass C:\n    x = 1", {"f", "C"}),
        ("f = g = 1\n(a, [b, *c]) = 1, 2\nd: int = 1", set("fgabcd")),
        ("import a.b, c as d\nfrom e import f", {"a", "d", "f"}),
        ("if x:\n    f = 1\nelse:\n    def g(): pass", {"f", "g"}),
        ("try:\n    import a\nexcept E:\n    a = 1\nfinally:\n    b = 2", {"a", "b"}),
        ("x[0] = 1\ny.z = 2\nprint(q)", set()),
        ("f = lambda: [h for h in k]", {"f"}),
    ],
)
def test_the_names_that_code_defines(source, names):
    assert bound_names(parse(source).body) == names


@pytest.mark.parametrize(
    "source",
    [
        "",
        "x\x00",
        "(" * 5000,
        "-" * 150_000 + "1",
        "1" + "+1" * 90_000,
        "x = " + "[" * 150 + "]" * 150,
        "a" * 300_000,
        "\ud800",
        "0" * 5000 + "1",
    ],
)
def test_code_made_to_break_the_parser_is_no_code(source):
    assert parse(source) is None or source.startswith("x = [")


@given(st.text(alphabet="`~ \npythonxdef():\t\"'", max_size=300))
@settings(max_examples=200, deadline=None)
def test_reading_fences_never_raises(text):
    extract_code(text, ("last_block", "all_blocks", "whole"), entry_point="f")


# Outputs


@pytest.mark.parametrize(
    ("actual", "expected", "lines", "tokens", "exact"),
    [
        ("1 2\n", "1 2\n", True, True, True),
        ("1 2", "1 2\n", True, True, False),
        (" 1   2 \r\n\n\n", "1 2\n", True, True, False),
        ("1\n2\n", "1 2\n", False, True, False),
        ("\n1\n", "1\n", False, True, False),
        ("1\n\n2\n", "1\n2\n", False, True, False),
        ("12\n", "1 2\n", False, False, False),
        ("1.0\n", "1\n", False, False, False),
        ("", "\n", True, True, False),
        ("Yes", "yes", False, False, False),
    ],
)
def test_outputs_are_compared_by_lines_by_words_or_exactly(actual, expected, lines, tokens, exact):
    for compare, same in (("lines", lines), ("tokens", tokens), ("exact", exact)):
        assert same_output(actual, expected, compare=compare, float_tolerance=None) is same, compare


@pytest.mark.parametrize(
    ("actual", "expected", "same"),
    [
        ("0.3000004", "0.3", True),
        ("0.31", "0.3", False),
        ("1000000.5", "1000000", True),  # relative to the expected value
        ("1000001", "1000000", False),  # two integers are the same or not
        ("+5", "5", True),
        ("1e-7", "0", True),
        ("3.0", "3", True),
        (".5", "0.5", True),
        ("nan", "0.5", False),
        ("inf", "1e308", False),
        ("1e9999", "1.0", False),
        ("1_0", "10", False),
        ("x 0.50", "x 0.5", True),
        ("x 0.50", "y 0.5", False),
        ("0.5 0.5", "0.5", False),
    ],
)
def test_a_tolerance_lets_numbers_differ_and_nothing_else(actual, expected, same):
    for compare in ("lines", "tokens"):
        assert same_output(actual, expected, compare=compare, float_tolerance=1e-6) is same
