"""The multiple-choice reward: the ways of not settling on one choice, and of settling after all."""

from __future__ import annotations

import pytest

from rewards import build

VERIFIER = build("multiple_choice", {})
CITIES = ["London", "Paris", "Rome", "Madrid"]


def value_of(completion: str, *, choices: object = CITIES, answer: object = "B") -> float | None:
    reward = VERIFIER(completion, {"answer": answer, "choices": choices})
    assert reward.status == "scored", reward.detail
    return reward.value


def detail_of(completion: str, *, choices: object = CITIES, answer: object = "B") -> str:
    return VERIFIER(completion, {"answer": answer, "choices": choices}).detail


OPEN = [
    "",
    " ",
    "...",
    "I do not know.",
    "B or C",
    "B and C",
    "B, C",
    "B/C",
    "B & C",
    "B|C",
    "A B C D",
    "A, B, C, D",
    "(A)(B)(C)(D)",
    "ABCD",
    "B C",
    "A or B or C or D",
    "either B or C",
    "Paris or Rome",
    "Paris and Rome",
    "B or Rome",
    "The answer is B or C.",
    "The answer is B/C.",
    "The answer is either B or C.",
    "The answer is B, C.",
    "The answer is B and C.",
    "The answer is both B and C.",
    "The answer is B, or possibly C.",
    "The answer is B (or maybe C).",
    "The answer is B, but could also be C.",
    "The answer is between B and C.",
    "The answer is B as well as C.",
    "The answer is Paris or Rome.",
    "The answer is B) Paris or C) Rome.",
    "Answer: B\nAnswer: C",
    "Answer: C\nAnswer: B",
    "The answer is B. The answer is C.",
    "The answer is C. The answer is B.",
    "Answer:\nA\nB\nC\nD",
    "Answer:\nA) London\nB) Paris\nC) Rome\nD) Madrid",
    "A) London\nB) Paris\nC) Rome\nD) Madrid",
    "A\nB",
    "B\nC",
    "B) Rome",
    "B. Rome",
    "Rome (B)",
    "The answer is B) Rome.",
    "The answer is B: Rome.",
    "The answer is B, Rome.",
    r"\boxed{B, C}",
    r"\boxed{B \text{ or } C}",
    r"\boxed{B} or \boxed{C}",
    r"\boxed{B}\boxed{C}",
    r"\boxed{C} \boxed{B}",
    r"\boxed{A}\boxed{B}\boxed{C}\boxed{D}",
    r"\boxed{BC}",
    r"\boxed{}",
    r"\boxed{B",
    r"\boxed{E}",
    r"\boxed{42}",
    r"\boxed{\text{Berlin}}",
    r"The answer is B. \boxed{C}",
    r"\boxed{B} \boxed{\text{none}}",
    "<answer>B</answer><answer>C</answer>",
    "<answer>B or C</answer>",
    "<answer></answer>",
    "The answer is B?",
    "Is the answer B?",
    "The answer is not B.",
    "The answer isn't B.",
    "B is not correct.",
    "B is incorrect.",
    "Not B.",
    "Neither A nor B is correct.",
    "The answer is neither A nor B.",
    "The answer is none of the above.",
    "The answer is B. Hmm, in fact the answer is none of the above.",
    "The answer is B. Wait, no, that is wrong.",
    "B. Wait, let me reconsider.",
    "The answer is B. Actually, C.",
    "The answer is B... no wait, C",
    "The answer is B. Hold on. It's C.",
    "The answer is B. No, the answer is not B.",
    "B... no wait, C",
    "The answer is everything but B.",
    "The answer is E.",
    "The answer is Berlin.",
    "The answer is Parisian life.",
    "The answer is B-52.",
    "The answer is Bb.",
    "The answer is B+.",
    "Because Paris is nice, and Bob likes it.",
    "Option A: London. Option B: Paris. Option C: Rome.",
    "A) London is in England.\nB) Paris is in France.\nThese are cities.",
    "<think>The answer is B.",
    "<think>The answer is B.</think>",
    "答案是B或C",
    "答案是B和C",
    "答案不是B",
    "答えはBかCです",
    "答えはBではない",
    "정답은 B 또는 C입니다.",
    "La réponse est B ou C.",
    "La réponse n'est pas B.",
    "Die Antwort ist B oder C.",
    "Die Antwort ist nicht B.",
    "La respuesta es B o C.",
    "La respuesta no es B.",
    "A resposta é B ou C.",
    "La risposta è B o C.",
    "Ответ: B или C",
    "Ответ не B.",
    "Cevap: B veya C",
    "Đáp án là B hoặc C.",
    "Jawaban: B atau C",
    "الإجابة هي B أو C",
    "उत्तर B या C है",
]


@pytest.mark.parametrize("completion", OPEN)
def test_what_does_not_settle_on_one_choice_is_not_right(completion):
    assert value_of(completion) == 0.0, detail_of(completion)


@pytest.mark.parametrize(
    "completion",
    [
        "A... no wait, B",
        "A. No wait, B.",
        "The answer is A... no wait, B",
        "The answer is A. Wait, no, it's B.",
        "The answer is A. Actually, B.",
        "The answer is A. Hold on. The answer is B.",
        r"\boxed{A} Wait, that is wrong. Let me reconsider. The Seine... \boxed{B}",
    ],
)
def test_a_correction_replaces_what_it_corrects(completion):
    assert value_of(completion, answer="B") == 1.0, detail_of(completion)
    assert value_of(completion, answer="A") == 0.0, detail_of(completion)


@pytest.mark.parametrize(
    ("completion", "label"),
    [
        ("If the answer is A, the Seine would be in England.\n\nB", "B"),
        ("Suppose the answer is A. Then the Seine is in England, which is wrong. So it must be B.", "B"),
        ("The answer choices are: A) London B) Paris C) Rome.\nThe Seine flows through Paris.\n\nB", "B"),
        ("The answer is B.\n\nWhy not the others:\nA) London\nC) Rome", "B"),
        ("A) London: no.\nB) Paris: yes.\nC) Rome: no.\n\nSo the answer is B.\n\nAnything else?", "B"),
        ("B) Paris.\n\nExplanation: A) London is in the UK.", "B"),
        ("Answer: B; A is wrong.", "B"),
        ("Thus B is the correct answer, not A.", "B"),
        ('{"answer": "B"}', "B"),
        ("B<|im_end|>", "B"),
        ("The answer is D: Madrid, which is no capital of France, unlike B.", "D"),
        ("The answer, then, is B.", "B"),
        ("【答案】B", "B"),
        ("La bonne réponse est donc la B.", "B"),
        ("따라서 정답은 B번입니다.", "B"),
        ("The answer is not A. B is the correct answer.", "B"),
        ("The answer is not B. B is the correct answer.", None),
        ("My answer: B (60%) / C (40%)", None),
        ("A: no. B: maybe. C: no. D: no.", None),
        ("The answer is B if it is in France, otherwise C.", None),
        ("答案是B，也可能是C", None),
        ("La réponse est B, ou bien C.", None),
        ("The answer is A.\nB", None),
        ("The answer is C. Then again, A is correct.", None),
    ],
)
def test_the_last_word_of_a_longer_text_counts(completion, label):
    for answer in "ABCD":
        assert value_of(completion, answer=answer) == float(answer == label), detail_of(completion)
