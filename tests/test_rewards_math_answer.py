"""The mathematics reward: what counts as the same answer, what counts as hedging, and what hostile text cannot do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from rewards import Pool, RewardSpec, build

GSM8K = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "gsm8k"
VERIFIER = build("math_answer", {})


def value_of(completion: str, gold: object) -> float | None:
    reward = VERIFIER(completion, {"answer": gold})
    assert reward.status == "scored", reward.detail
    return reward.value


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18"),
        (18, "18"),
        (2.5, "2.5"),
        ("18", "18.0"),
        ("18", "18."),
        ("1,080", "1080"),
        ("1080", "1,080"),
        ("1080", "1{,}080"),
        ("1080", r"1\,080"),
        ("109200000", "109,200,000"),
        ("18", r"\$18"),
        ("18", "$18"),
        ("18", "$18$"),
        ("18", r"\text{18}"),
        ("18", "18 dollars"),
        ("18 dollars", "$18"),
        ("18", r"18\text{ apples}"),
        ("5", r"5 \text{ cm}^2"),
        ("5 km", "5"),
        ("-5", "-$5"),
        ("-5", "−5"),
        ("50", r"50\%"),
        ("50%", "0.5"),
        ("0.5", "50%"),
        (r"12.5\%", "12.5 percent"),
        ("5000000", "5 million"),
        ("90", r"90^\circ"),
        ("0.5", r"\frac{1}{2}"),
        (r"\frac{1}{2}", "1/2"),
        (r"\frac{1}{2}", "0.5"),
        (r"\frac12", r"\dfrac{2}{4}"),
        (r"\frac{1}{3}", "0.333333"),
        ("5/2", r"2\frac{1}{2}"),
        ("1500", r"1.5 \times 10^{3}"),
        ("18", "x = 18"),
        ("x = 18", "18"),
        ("x=18", "x = 18"),
        ("2", r"\sqrt{4}"),
        (r"2\sqrt{3}", r"\sqrt{12}"),
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"),
        (r"\pi", r"\pi"),
        (r"3\pi", r"\pi \cdot 3"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"2x+3", "3+2x"),
        ("(3,4)", r"\left(3, 4\right)"),
        ("(3,4)", "(3.0, 4)"),
        ("3, 4", "4, 3"),
        (r"\{1,2,3\}", r"\{3,2,1\}"),
        ("[0,1)", "[0, 1)"),
        (r"(-\infty,3)\cup(4,\infty)", r"(-\infty, 3) \cup (4, \infty)"),
        ("x > 3", "3 < x"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
        ("-1, 1", r"\pm 1"),
        ("x=1 or x=2", "x=1 or x=2"),
        ("1, 2", r"1 \text{ or } 2"),
        ("Tuesday", r"\text{tuesday}"),
        ("B", r"\text{(B)}"),
        ("yes", r"\textbf{Yes}"),
        ("e^{x^4}", "e^{x^4}"),
        ("2**3", "8"),
        ("8", "2^3"),
        ("1024", "2^{10}"),
        ("120", "5!"),
        ("3", r"\log_2 8"),
        ("5", "2+3"),
        ("y=2x+1", "2x+1"),
        ("25", r"25 \text{ cm}^2"),
        ("25 cm²", "25"),
    ],
)
def test_an_answer_that_says_the_same_is_right(gold, answer):
    assert value_of(rf"So it is \boxed{{{answer}}}.", gold) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "19"),
        ("18", "-18"),
        ("18", "1.8"),
        ("18", "180"),
        ("18", ""),
        ("18", "18x"),
        ("2", "2^3"),
        ("5", "5²"),
        ("2", "2!+1"),
        ("18", r"18\pi"),
        ("1080", "1,08"),
        ("5 km", "5 m"),
        ("5 dollars", "5 cents"),
        ("5", "5 million"),
        ("0.5", "0.5%x"),
        ("50%", "0.5%"),
        ("0.0000001", "0"),
        (r"\frac{1}{3}", "0.33"),
        (r"\frac{1}{23}", r"\frac{12}{3}"),
        ("2(3+4)", "23+4"),
        ("(3,4)", "(4,3)"),
        ("[0,1)", "[0,1]"),
        ("3, 4", "3"),
        ("3", "3, 4"),
        ("3", "3 or 4"),
        ("4", "3 or 4"),
        ("3", r"3 \text{ or } 4"),
        ("3", r"3 \text{ (or maybe 4)}"),
        ("3", "3 or x"),
        ("3", r"\pm 3"),
        ("3", r"\{3, 4\}"),
        ("x > 3", "x < 3"),
        ("x^2", "x^3"),
        ("Tuesday", "Wednesday"),
        ("Tuesday", "Tuesday or Wednesday"),
        ("B", "A"),
        ("B", "A, B"),
        ("18", r"\text{__import__('os')}"),
    ],
)
def test_an_answer_that_says_something_else_or_more_is_not_right(gold, answer):
    assert value_of(rf"So it is \boxed{{{answer}}}.", gold) == 0.0


@pytest.mark.parametrize(
    ("completion", "gold", "value", "source"),
    [
        (r"first \boxed{3}, so the sum is \boxed{4}", "4", 1.0, "boxed"),
        (r"first \boxed{3}, so the sum is \boxed{4}", "3", 0.0, "boxed"),
        (r"\boxed{4}. Hence \boxed{4}", "4", 1.0, "boxed"),
        (r"\boxed{3} or \boxed{4}", "3", 0.0, "boxed"),
        (r"\boxed{3} or \boxed{4}", "4", 0.0, "boxed"),
        (r"$\boxed{3}$" + "\n\n" + r"$\boxed{4}$", "4", 0.0, "boxed"),
        (r"$x=\boxed{3}$ and $y=\boxed{4}$", "(3, 4)", 1.0, "boxed"),
        (r"\boxed{0.5} = \boxed{\frac{1}{2}}", "1/2", 1.0, "boxed"),
        (r"#### 4 but \boxed{3}", "3", 1.0, "boxed"),
        (r"\boxed{3} and then \boxed{4", "3", 0.0, "boxed"),
        (r"\fbox{3}", "3", 1.0, "boxed"),
        (r"\boxed 42", "42", 1.0, "boxed"),
        ("So 3.\n#### 1,080\n", "1080", 1.0, "hash"),
        ("#### 3\n#### 4", "4", 1.0, "hash"),
        ("The answer is 3. No: the answer is 4.", "4", 1.0, "phrase"),
        ("**Final Answer:** $\\frac{1}{2}$", "0.5", 1.0, "phrase"),
        ("Answer: $18", "18", 1.0, "phrase"),
        ("The final answer is 42 apples because 40 + 2 = 42.", "42", 1.0, "phrase"),
        ("The answer is 3 or 4.", "3", 0.0, "phrase"),
        ("The answer is 3 or 4.", "4", 0.0, "phrase"),
        ("The answer is Tuesday.", "Tuesday", 1.0, "phrase"),
        ("The answer is x^2 + 1.", "1 + x^2", 1.0, "phrase"),
        ("She has 3 apples and 4 pears, 7 in all.", "7", 1.0, "number"),
        ("so 10-5 = 5", "5", 1.0, "number"),
        ("so it costs $1,234.50.", "1234.5", 1.0, "number"),
        ("it may be 3 or 4", "4", 0.0, "number"),
        ("it may be 3, or 4", "3", 0.0, "number"),
        ("no idea", "4", 0.0, "no answer"),
    ],
)
def test_the_final_answer_is_found_where_the_completion_states_it(completion, gold, value, source):
    reward = VERIFIER(completion, {"answer": gold})
    assert (reward.value, source in reward.detail) == (value, True)
    assert reward.parts == {"correct": value, "boxed": float(source == "boxed")}


def test_the_sources_are_tried_in_the_order_of_the_option_and_no_others():
    completion = r"\boxed{3}" + "\n#### 4\nThe answer is 5. Or 6"
    for source, gold in [("boxed", "3"), ("hash", "4"), ("phrase", "5"), ("number", "6")]:
        assert build("math_answer", {"extract": [source]})(completion, {"answer": gold}).value == 1.0
    assert build("math_answer", {"extract": ["hash", "boxed"]})(completion, {"answer": "4"}).value == 1.0
    assert build("math_answer", {"extract": ["boxed"]})("#### 4", {"answer": "4"}).value == 0.0


def test_the_gold_is_read_from_the_key_of_the_option_and_out_of_a_worked_solution():
    verifier = build("math_answer", {"answer_key": "solution"})
    assert verifier(r"\boxed{18}", {"solution": "16 - 3 = 13\n#### 18"}).value == 1.0
    assert verifier(r"\boxed{18}", {"solution": r"Then $x = \boxed{18}$."}).value == 1.0


@pytest.mark.parametrize("gold", ["", "  ", r"\frac{1}{", "9" * 2000, "9^{9^{9^9}}", None, True, [1], "#### ", "@@ ??"])
def test_a_gold_that_cannot_be_read_is_an_error_and_not_a_zero(gold):
    reward = VERIFIER(r"\boxed{1}", {"answer": gold})
    assert reward.status == "error"
    assert "gold" in reward.detail


def test_a_problem_without_the_key_is_an_error_that_names_it():
    assert "'answer'" in VERIFIER(r"\boxed{1}", {"id": "a"}).detail


@pytest.mark.parametrize(
    "options",
    [{"extract": []}, {"extract": ["box"]}, {"extract": ["boxed", "boxed"]}, {"extract": "boxed"}, {"answer_key": 3}],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="reward math_answer"):
        build("math_answer", options)


HOSTILE = {
    "long number": r"\boxed{" + "9" * 100_000 + "}",
    "long number in range": r"\boxed{" + "9" * 900 + "x}",
    "tower": r"\boxed{9^{9^{9^{9}}}}",
    "tower of roots": r"\boxed{\sqrt{9^{9^{9^{9^{9}}}}}}",
    "power": r"\boxed{2^{99999999999}}",
    "symbolic power": r"\boxed{(x+1)^{99999999}}",
    "factorial": r"\boxed{1000000000!}",
    "factorials": r"\boxed{100!!!!!!!}",
    "sum": r"\boxed{\sum_{k=1}^{10^{12}} \frac{1}{k}}",
    "integral": r"\boxed{\int_0^1 e^{e^{e^x}} dx}",
    "deep brackets": r"\boxed{" + "(" * 300 + "1" + ")" * 300 + "}",
    "deep roots": r"\boxed{" + r"\sqrt{" * 100 + "4" + "}" * 100 + "}",
    "nul bytes": "\\boxed{1\x008}",
    "surrogates": "\\boxed{\ud800\udfff}",
    "only surrogates": "\ud800" * 1000,
    "boxes": r"\boxed{" * 20_000,
    "closed boxes": r"\boxed{1} " * 20_000,
    "phrases": "answer is " * 20_000,
    "separators": r"\boxed{1}" + " , " * 20_000 + r"\boxed{2}",
    "commas": "1,111" * 20_000,
    "ors": "1 or " * 20_000,
    "slashes": "1/" * 50_000,
    "dollars": "The answer is " + "$" * 20_000,
    "code": "\\boxed{__import__('os').system('touch pwned')}",
    "call": r"\boxed{\operatorname{exec}(\text{open('pwned','w')})}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_not_right_and_costs_little(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    VERIFIER(r"\boxed{\sqrt{2}}", {"answer": r"\sqrt{2}+1"})
    start = time.monotonic()
    for gold in ("18", r"\sqrt{2}"):
        assert VERIFIER(text, {"answer": gold}).value == 0.0
    assert time.monotonic() - start < 2.0
    assert not list(tmp_path.iterdir())


def test_what_slips_past_the_refusals_is_ended_by_the_pool():
    spec = RewardSpec("math_answer")
    slow = r"\boxed{\binom{2000000}{1000000}}"
    with Pool(1, timeout_seconds=0.5) as pool:
        rewards = pool.score_all(
            [(spec, text, {"answer": "2x"}) for text in (r"\boxed{x+x}", slow, r"\boxed{x\cdot 2}")]
        )
    assert [reward.value for reward in rewards[::2]] == [1.0, 1.0]
    assert rewards[1].value in (None, 0.0)


def test_importing_the_package_and_checking_options_needs_no_mathematics_package(tmp_path):
    file = tmp_path / "loaded.py"
    file.write_text(
        "import sys\nfrom rewards import build\n"
        "def loaded(completion, problem):\n"
        "    build('math_answer', {'extract': ['boxed']})(r'\\boxed{3}', {'answer': '3'})\n"
        "    return float('sympy' not in sys.modules)\n"
    )
    with Pool(1) as pool:
        assert pool.submit(RewardSpec(file=str(file), function="loaded"), "", {}).result().value == 1.0


def gsm8k_golds() -> list[str]:
    lines = [line for name in ("train", "test") for line in (GSM8K / f"{name}.jsonl").read_text().splitlines()]
    return [json.loads(line)["answer"] for line in lines]


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"needs the GSM8K rows in {GSM8K}")
def test_every_gold_of_gsm8k_is_right_for_itself_and_wrong_for_its_neighbour():
    golds = gsm8k_golds()
    assert len(golds) == 8792
    for solution in golds:
        gold = solution.rsplit("####", 1)[1].strip()
        neighbour = int(gold.replace(",", "")) + 1
        assert value_of(rf"\boxed{{{gold}}}", solution) == 1.0, gold
        assert value_of(f"#### {gold.replace(',', '')}", gold) == 1.0, gold
        assert value_of(rf"\boxed{{{neighbour}}}", solution) == 0.0, gold
        assert value_of(solution, solution) == 1.0, gold
