"""The mathematics reward: what counts as the same answer, what counts as hedging, and where the answer is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewards import Pool, RewardSpec, build

GSM8K = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "gsm8k"
DATA = Path(__file__).resolve().parent / "data"
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
        ("40/9", "4 4/9"),
        ("2.74", "2,74"),
        ("0,125", "0.125"),
        ("0.00000000363", r"3.63\times10^{-9}"),
        ("1.5e3", "1500"),
        ("2\\pi", "2π"),
        (r"\sqrt{2}", "√2"),
        (r"\sqrt{12}", "2sqrt(3)"),
        (r"\sin x", "sin(x)"),
        ("18", "１８"),
        ("18", "1\u200b8"),
        ("18", "\u200f18"),
        (r"\frac{1}{2}", "½"),
        (r"3\sqrt{2}", r"3\sqrt{2} \text{ cm}"),
        (r"3\sqrt{2}", r"3\sqrt{2} cm"),
        ("$125$ miles", r"125\textnormal{ miles}"),
        ("C", "C. 42"),
        ("(C) 42", "C"),
        (r"\frac{-1 \pm \sqrt{5}}{2}", r"\frac{-1-\sqrt{5}}{2}, \frac{-1+\sqrt{5}}{2}"),
        ("19, 46, and 82", r"46, 19 \text{ and } 82"),
        ("(2,1),(3,1)", "(3,1), (2,1)"),
        ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"),
        (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix} 1 & 2 \\ 3 & \frac{8}{2} \end{bmatrix}"),
        (r"(1,2]\cup[5,6)", r"[5, 6) \cup (1, \frac{4}{2}]"),
        ("x^2+y^2=1", "1-x^2-y^2=0"),
        ("0 < x < 1", "(0, 1)"),
        (r"\sum_{k=0}^{n} a_k b_k", r"\sum_{k=0}^{n} b_k a_k"),
        (r"\\frac{1}{2}", "0.5"),
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
        ("4", "4 4/9"),
        ("1", "11 6/6"),
        ("10", "1,0"),
        ("1000", "1,0"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        (r"\frac{1}{200!}", r"\frac{1}{202!}"),
        ("0.00000000363", "0"),
        ("2", "2c"),
        ("x", "|x|"),
        (r"\sqrt{2}", "1.41"),
        ("C", "D. 42"),
        ("1,1", "1"),
        ("3", r"\{3, 3\}"),
        ("5", "x + y = 5"),
        ("(x+1)(x-2)", "(x+1)(x+2)"),
        ("(1,2),(3,4)", "(1,2),(4,3)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
        (r"(1,2]\cup[5,6)", "(1,2]"),
        ("y=2x+1", "y=2x"),
        ("x^2+y^2=1", "x^2-y^2=1"),
        (r"\sum_{k=0}^{n} a_k", r"\sum_{k=0}^{m} a_k"),
        (r"\sum_{k=0}^{n} k", r"\frac{n(n+1)}{2}"),
        ("not 3", "3"),
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
        (r"\boxed{\boxed{3}}", "3", 1.0, "boxed"),
        (r"\boxed{3 or \boxed{4}}", "4", 0.0, "boxed"),
        (r"The answer is not 3.", "4", 0.0, "no answer"),
        (r"The answer is not 3.", "3", 0.0, "no answer"),
        ("It is not 3", "3", 0.0, "no answer"),
        ("3 is wrong", "3", 0.0, "no answer"),
        ("It is x^2.", "2", 0.0, "number"),
        ("It is x^2.", "x^2", 1.0, "number"),
        ("It is 10^5.", "5", 0.0, "number"),
        ("It is n/2.", "2", 0.0, "number"),
        (r"It is **\frac{1}{2}**.", "2", 0.0, "number"),
        (r"It is **\frac{1}{2}**.", "1/2", 1.0, "number"),
        ("So it is 18/3 = 6 km/h", "6", 1.0, "number"),
        ("Answer: 18 (6*3=18)", "18", 1.0, "phrase"),
        ("**Answer: 18** (because 3/4 × 24 = 18)", "18", 1.0, "phrase"),
        ("Answer: 18 — since 6 × 3 = 18", "18", 1.0, "phrase"),
        ("所以答案是 **18**。共24个。", "18", 1.0, "phrase"),
        ("答案：18", "18", 1.0, "phrase"),
        ("答えは18です。", "18", 1.0, "phrase"),
        ("Evelyn", "Evelyn", 1.0, "number"),
        ("**Evelyn**.", "Evelyn", 1.0, "number"),
        ("Not Evelyn", "Evelyn", 0.0, "number"),
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
        ("no idea", "4", 0.0, "number"),
        ("I have really no idea what that could possibly be", "4", 0.0, "no answer"),
        ("", "4", 0.0, "no answer"),
        (r"\frac{10}{9}", "10/9", 1.0, "number"),
        (r"\frac{10}{9}", "9", 0.0, "number"),
        ("so it is $\\frac{1}{2}$", "2", 0.0, "number"),
        ("so it is $\\frac{1}{2}$, they say", "0.5", 1.0, "number"),
        ("x^2 + 2x + 1", "(x+1)^2", 1.0, "number"),
        ("She has $18 a day and pays $5, so $13", "13", 1.0, "number"),
        ("it falls from $18 to -$5", "-5", 1.0, "number"),
        ("so $x=3$ or $x=4$", "4", 0.0, "number"),
        ("so $x=3$ and $y=4$", "(3, 4)", 1.0, "number"),
        ("It takes 4 4/9 hours", "4/9", 0.0, "number"),
        ("Final Answer: The number of points of $f(x)$ is 19.", "19", 1.0, "phrase"),
        ("Answer: 40 + 2 = 42 apples", "42", 1.0, "phrase"),
        ("The answer is 12 apples from 3 trees.", "12", 1.0, "phrase"),
        ("The answer is $3$ or $4$.", "3", 0.0, "phrase"),
        ("The answer is 3, or maybe it is 4.", "3", 0.0, "phrase"),
        ("✅ Final Answer: **73**", "73", 1.0, "phrase"),
        (r"The answer is \[ \frac{1}{2} \]", "0.5", 1.0, "phrase"),
        (r"\boxed{3}. Alternatively, it is \boxed{4}", "4", 0.0, "boxed"),
        ("a) \\boxed{8}\n\nb) \\boxed{32}", "8, 32", 1.0, "boxed"),
        (r"\boxed{1} papers and \boxed{2} bins", "1, 2", 1.0, "boxed"),
    ],
)
def test_the_final_answer_is_found_where_the_completion_states_it(completion, gold, value, source):
    reward = VERIFIER(completion, {"answer": gold})
    assert (reward.value, source in reward.detail) == (value, True)
    assert reward.parts == {"correct": value, "boxed": float(source == "boxed")}


def test_the_sources_are_tried_in_the_order_of_the_option_and_no_others():
    completion = r"\boxed{3}" + "\n#### 4\nThe answer is 5. It is 6"
    for source, gold in [("boxed", "3"), ("hash", "4"), ("phrase", "5"), ("number", "6")]:
        assert build("math_answer", {"extract": [source]})(completion, {"answer": gold}).value == 1.0
    assert build("math_answer", {"extract": ["hash", "boxed"]})(completion, {"answer": "4"}).value == 1.0
    assert build("math_answer", {"extract": ["boxed"]})("#### 4", {"answer": "4"}).value == 0.0


def test_the_gold_is_read_from_the_key_of_the_option_and_out_of_a_worked_solution():
    verifier = build("math_answer", {"answer_key": "solution"})
    assert verifier(r"\boxed{18}", {"solution": "16 - 3 = 13\n#### 18"}).value == 1.0
    assert verifier(r"\boxed{18}", {"solution": r"Then $x = \boxed{18}$."}).value == 1.0


@pytest.mark.parametrize(
    "gold",
    ["", "  ", r"\frac{1}{", "9" * 2000, "9^{9^{9^9}}", None, True, {}, [], ["1", ""], ["1"] * 65, "#### ", "@@ ??"],
)
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


def test_a_list_of_golds_asks_for_any_one_of_them():
    golds = ["0.5", r"\frac{3}{4}", "one half"]
    for answer, value in [("1/2", 1.0), ("0.75", 1.0), ("One half", 1.0), ("1/3", 0.0), (r"1/2 \text{ or } 3/4", 0.0)]:
        assert value_of(rf"\boxed{{{answer}}}", golds) == value
    assert "problem['answer'][1]" in VERIFIER(r"\boxed{1}", {"answer": ["1", ""]}).detail


def test_a_gold_of_several_boxes_is_all_of_them():
    gold = r"Thus \(\boxed{1}\) and \(\boxed{-2}\)."
    assert value_of(r"\boxed{-2, 1}", gold) == 1.0
    assert value_of(r"\boxed{-2}", gold) == 0.0


def cases() -> list[dict]:
    return [json.loads(line) for line in (DATA / "math_cases.jsonl").read_text(encoding="utf-8").splitlines()]


def disagreements(rows: list[dict]) -> list[dict]:
    rewards = [VERIFIER(row["completion"], {"answer": row["gold"]}) for row in rows]
    return [row for row, reward in zip(rows, rewards, strict=True) if (reward.value == 1.0) != bool(row["expected"])]


def test_a_tenth_of_the_public_suites_rows_is_judged_as_they_say():
    rows = [row for row in cases()[::10] if "note" not in row]
    assert len(rows) >= 48
    assert disagreements(rows) == []


@pytest.mark.slow
def test_at_least_96_of_100_of_the_public_suites_rows_are_judged_as_they_say():
    rows = cases()
    assert len(rows) >= 300
    assert min(sum(row["expected"] == label for row in rows) for label in (0, 1)) >= 100
    wrong = disagreements(rows)
    assert len(wrong) <= 0.04 * len(rows)
    assert [row for row in wrong if "note" not in row] == []


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


@pytest.mark.parametrize(
    ("completion", "gold", "value"),
    [
        (r"<think>so</think>\n<answer>\frac{1}{2}</answer>", "1/2", 1.0),
        (r"<think>so</think><answer>\frac{1}{2}</answer>", "2", 0.0),
        (r"<answer> $2\sqrt{3}$ </answer>", r"2\sqrt{3}", 1.0),
        ("<answer>2√3</answer>", "3", 0.0),
        ("<answer>(1, 2)</answer>", "(1,2)", 1.0),
        ("<answer>[1,2)</answer>", "[1, 2)", 1.0),
        ("<answer>Evelyn</answer>", "Evelyn", 1.0),
        ("<answer>C</answer>", "C", 1.0),
        (r"<answer>\boxed{17}</answer>", "17", 1.0),
        ("<answer>The answer is 17.</answer>", "17", 1.0),
        (r"<think>or \boxed{18}</think><answer>17</answer>", "18", 0.0),
        ("<think>the answer is 18</think><answer>17</answer>", "18", 0.0),
        ("<answer>17</answer><answer>18</answer>", "17", 0.0),
        ("<answer></answer> 18", "18", 0.0),
        ("<answer>18", "18", 1.0),
        ("no tag, but 18", "18", 0.0),
    ],
)
def test_the_answer_tag_alone_is_read_where_that_is_asked_for(completion, gold, value):
    assert build("math_answer", {"extract": ["tag"]})(completion, {"answer": gold}).value == value
