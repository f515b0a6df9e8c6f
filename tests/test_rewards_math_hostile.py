"""The mathematics reward under attack: nothing is evaluated, nothing crashes, little is spent, nothing is right."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rewards import Pool, RewardSpec, build
from rewards.math_answer import prepare_math_answer

VERIFIER = build("math_answer", {})
GOLDS = ("18", r"\sqrt{2}", "x^2+1", "(3, 4)", r"\{1, 2\}", "x > 3", "Tuesday")


def box(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


EVALUATED = [
    *("__import__('os').system('touch pwned')", "open('pwned','w')", "exec(\"open('pwned','w')\")", "().__class__"),
    *(
        r"\operatorname{exec}(\text{open('pwned','w')})",
        "lambda: open('pwned','w')",
        "f'{open(chr(112))}'",
        "eval('18')",
    ),
    *(
        "sympify(\"open('pwned','w')\")",
        "parse_expr('18')",
        r"\text{__import__('pathlib').Path('pwned').touch()}",
        "@pwned",
    ),
    *(
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned",
        r"\input{/etc/passwd}",
        r"\write18{touch pwned}",
        "{{17}}",
        "%s%n",
    ),
]
HOSTILE = {
    "long number": box("9" * 100_000),
    "long number in range": box("9" * 900 + "x"),
    "kilometre of digits": "9" * 1_000_000,
    "long decimal": box("0." + "3" * 900 + "x"),
    "long exponent": box("1e" + "9" * 500),
    "largest exponent": box("1e999"),
    "tower": box("9^{9^{9^{9}}}"),
    "tower of stars": box("10**10**10"),
    "tower of roots": box(r"\sqrt{9^{9^{9^{9^{9}}}}}"),
    "tower in an interval": box("[0, 9^{9^{9^{9}}})"),
    "tower in a domain": box(r"x \in [0, 9^{9^{9}})"),
    "tower in a maximum": box(r"\max(9^{9^{9}}, 1)"),
    "tower in a floor": box(r"\lfloor 9^{9^{9}} \rfloor"),
    "powers of powers": box("[0, ((9^{999})^{999})^{999})"),
    "factorials in a set": box(r"\{(10^9)!, 1\}"),
    "binomial of binomials": box(r"\binom{{1}+\binom{9999}{5000}}{5000}"),
    "chosen": box(r"{2000000 \choose 1000000}"),
    "remainder": box(r"9^{9^{9}} \mod 7"),
    "logarithm": box(r"\log_{2}(9^{9^{9^{9}}})"),
    "sine": box(r"\sin(9^{9^{9^{9}}})"),
    "between": box("|9^{9^{9}}|"),
    "tower in a matrix": box(r"\begin{pmatrix}9^{9^{9^{9}}}\\1\end{pmatrix}"),
    "tower in an equation": box("x = 9^{9^{9^{9}}}"),
    "tower below": box(r"\frac{1}{9^{9^{9^{9}}}}"),
    "power": box("2^{99999999999}"),
    "symbolic power": box("(x+1)^{99999999}"),
    "symbolic tower": box("x^{x^{x^{x^{x}}}}"),
    "factorial": box("1000000000!"),
    "factorials": box("100!!!!!!!"),
    "double factorial": box("(10^9)!!"),
    "binomial": box(r"\binom{10^9}{10^8}"),
    "binomial of thousands": box(r"\binom{2000000}{1000000}"),
    "gamma": box(r"\Gamma(10^{10})"),
    "exponential": box("e^{e^{e^{e^{10}}}}"),
    "sum": box(r"\sum_{k=1}^{10^{12}} \frac{1}{k}"),
    "product": box(r"\prod_{k=1}^{10^{9}} k"),
    "integral": box(r"\int_0^1 e^{e^{e^x}} dx"),
    "limit": box(r"\lim_{x \to 0} \frac{\sin(x^{x})}{x}"),
    "deep brackets": box("(" * 300 + "1" + ")" * 300),
    "deep braces": box("{" * 1_000 + "1" + "}" * 1_000),
    "deep roots": box(r"\sqrt{" * 100 + "4" + "}" * 100),
    "deeper roots": box(r"\sqrt{" * 1_000 + "4" + "}" * 1_000),
    "deep fractions": box(r"\frac{1}{" * 1_000 + "4" + "}" * 1_000),
    "flat roots": box(r"\sqrt " * 150 + "4"),
    "flat fractions": box(r"\frac1" * 150 + "4"),
    "many signs": box("-" * 400 + "1"),
    "many terms": box("+".join(["x"] * 400)),
    "many factors": box("".join(["(x+1)"] * 190)),
    "many symbols": box("+".join(f"x_{{{k}}}" for k in range(140))),
    "many commas": box(",".join(["1"] * 450)),
    "many intervals": box(r"\cup".join(["[0,1)"] * 80)),
    "many plus-minus": box(r"\pm".join(["1"] * 100)),
    "huge matrix": box(r"\begin{pmatrix}" + r"\\".join(["1&" * 20 + "1"] * 20) + r"\end{pmatrix}"),
    "ragged matrix": box(r"\begin{pmatrix}1&2\\3\end{pmatrix}"),
    "matrix of nothing": box(r"\begin{pmatrix}\end{pmatrix}"),
    "division by zero": box(r"\frac{1}{0}"),
    "nothing by nothing": box("0/0"),
    "infinity": box(r"\infty"),
    "not a number": box("nan"),
    "nul bytes": "\\boxed{1\x008}",
    "surrogates": "\\boxed{\ud800\udfff}",
    "only surrogates": "\ud800" * 1_000,
    "other digits": box("١٨"),
    "superscript digits": box("¹⁸"),
    "combining marks": box("1\u03358\u0335" + "\u0335" * 500),
    "mirrored digits": "\\boxed{\u202e81}",
    "boxes": r"\boxed{" * 20_000,
    "closed boxes": r"\boxed{1} " * 20_000,
    "boxes in boxes": r"\boxed{" * 200 + "1" + "}" * 200,
    "phrases": "answer is " * 20_000,
    "separators": r"\boxed{1}" + " , " * 20_000 + r"\boxed{2}",
    "commas": "1,111" * 20_000,
    "ors": "1 or " * 20_000,
    "slashes": "1/" * 50_000,
    "dollars": "The answer is " + "$" * 20_000,
    "open formulas": "The answer is " + r"\(" * 20_000,
    "open blocks": r"\[" * 20_000 + "1",
    "stars": "The answer is " + "*" * 20_000,
    "spaces": box(" " * 900) + " " * 100_000,
    "hashes": "####" * 50_000,
    "letters": "The answer is " + "a" * 100_000,
    "ten megabytes": "so 1 + 1 = 2, " * 750_000,
    "ten megabytes of one line of nothing": "\u200b" * 5_000_000,
    "no answer": "",
} | {text: box(text) for text in EVALUATED}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=[name[:40] for name in HOSTILE])
def test_hostile_text_is_not_right_and_costs_little(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare_math_answer()
    start = time.process_time()
    for gold in GOLDS[:3]:
        reward = VERIFIER(text, {"answer": gold})
        assert reward.value == 0.0, reward
    assert time.process_time() - start < 3.0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_hostile_text_comes_back_from_a_pool_with_a_gigabyte_and_leaves_its_neighbours_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = RewardSpec("math_answer")
    calls = [(spec, text, {"answer": gold}) for text in HOSTILE.values() for gold in GOLDS]
    fine = (spec, r"\boxed{x+x}", {"answer": "2x"})
    with Pool(2, timeout_seconds=5.0, memory_limit_mb=1024) as pool:
        rewards = pool.score_all([fine, *calls, fine])
    unscored = {
        (call[1][:60], call[2]["answer"]): reward
        for call, reward in zip(calls, rewards[1:-1], strict=True)
        if reward.value != 0.0
    }
    assert unscored == {}
    assert [rewards[0].value, rewards[-1].value] == [1.0, 1.0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", [text for text in HOSTILE.values() if len(text) < 2_000])
def test_a_hostile_gold_is_used_or_refused_and_never_raises(text):
    reward = VERIFIER(r"\boxed{23}", {"answer": text})
    assert (reward.status, reward.value) in [("scored", 0.0), ("error", None)]
    assert "raised" not in reward.detail


FRAGMENTS = (
    *(
        "1",
        "2",
        "0",
        "10",
        "x",
        "y",
        "e",
        "i",
        "3.5",
        ".",
        ",",
        ";",
        "-",
        "+",
        "=",
        "<",
        ">",
        "!",
        "^",
        "_",
        "/",
        "*",
        "%",
    ),
    *(
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        r"\{",
        r"\}",
        "&",
        r"\\",
        "$",
        "|",
        " ",
        "\n",
        "or",
        "and",
        "cm",
        "π",
        "√",
        "²",
        "½",
    ),
    *(
        r"\frac",
        r"\sqrt",
        r"\pm",
        r"\cup",
        r"\in",
        r"\infty",
        r"\pi",
        r"\sin",
        r"\log",
        r"\binom",
        r"\text{ cm}",
        r"\leq",
    ),
    *(
        r"\sum_{k=1}^{n}",
        r"\int",
        r"\lim",
        r"\begin{pmatrix}",
        r"\end{pmatrix}",
        r"\boxed{",
        r"\left(",
        r"\right)",
        "#### ",
    ),
    *(
        "The answer is ",
        "^{10}",
        "_{2}",
        "{1}",
        "{x}",
        "\x00",
        "\u200b",
        "\ud800",
        "９",
        r"\%",
        r"\$",
        r"\!",
        r"\circ",
        "''",
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=st.lists(st.sampled_from(FRAGMENTS), max_size=14), gold=st.sampled_from(GOLDS), boxed=st.booleans())
def test_no_string_of_fragments_makes_the_reward_raise(pieces, gold, boxed):
    text = "".join(pieces)
    reward = VERIFIER(box(text) if boxed else text, {"answer": gold})
    assert reward.status == "scored", reward
    as_gold = VERIFIER(r"\boxed{23}", {"answer": text})
    assert "raised" not in as_gold.detail


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_no_text_makes_the_reward_raise(text):
    assert VERIFIER(text, {"answer": r"\sqrt{2}"}).status == "scored"
    assert VERIFIER(box(text), {"answer": "18"}).status == "scored"


def test_what_slips_past_the_refusals_is_ended_by_the_pool(tmp_path):
    file = Path(tmp_path) / "slow.py"
    file.write_text("def slow(completion, problem):\n    while True: pass\n")
    slow, quick = RewardSpec(file=str(file), function="slow"), RewardSpec("math_answer")
    problem = {"answer": "2x"}
    with Pool(1, timeout_seconds=0.5) as pool:
        calls = [(quick, r"\boxed{x+x}", problem), (slow, "", problem), (quick, r"\boxed{x\cdot 2}", problem)]
        rewards = pool.score_all(calls)
    assert [reward.value for reward in rewards] == [1.0, None, 1.0]
    assert rewards[1].status == "timeout"
