"""The multiple-choice reward: the ways of naming a choice, and the ways of not settling on one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import build

VERIFIER = build("multiple_choice", {})
CITIES = ["London", "Paris", "Rome", "Madrid"]


def value_of(completion: str, *, choices: object = CITIES, answer: object = "B") -> float | None:
    reward = VERIFIER(completion, {"answer": answer, "choices": choices})
    assert reward.status == "scored", reward.detail
    return reward.value


def detail_of(completion: str, *, choices: object = CITIES, answer: object = "B") -> str:
    return VERIFIER(completion, {"answer": answer, "choices": choices}).detail


PLAIN = [
    "B",
    "b",
    "B.",
    "B)",
    "(B)",
    "(b)",
    "[B]",
    "**B**",
    "__B__",
    "`B`",
    '"B"',
    " B \n",
    "Ｂ",
    "（Ｂ）",
    "Ⓑ",
    "Option B",
    "option b",
    "Choice (B)",
    "B) Paris",
    "B. Paris",
    "B: Paris",
    "B - Paris",
    "B — Paris",
    "(B) Paris",
    "**B) Paris**",
    "**B** Paris",
    "B Paris",
    "Paris",
    "paris",
    "PARIS.",
    "**Paris**",
    "Paris (B)",
    "Paris, option B",
    '"Paris"',
    "- B",
    "B. It is the capital of France.",
    "B) because the Seine flows through it",
    "B\n\nThe capital of France is Paris.",
    "B\n\nA) is in England.\nC) is in Italy.",
    "Let us see. London is in England, Rome in Italy.\n\nB",
    "Reasoning about A, C and D.\n\n**B**",
    "Reasoning.\n\nB) Paris",
    "<think>A or C?</think>B",
    "<think>The answer is A.</think>\n\nThe answer is B.",
    "the prompt opened this thought</think> B",
]

ENGLISH = [
    "The answer is B.",
    "The answer is (B).",
    "The answer is (b).",
    "The answer is b.",
    "the answer is B",
    "The answer is: B",
    "The answer is **B**.",
    "The answer is **(B) Paris**.",
    "The answer is option B.",
    "The answer is choice (B).",
    "The answer is letter B",
    "The answer is Paris.",
    "The answer is B, Paris.",
    "The answer is B because the Seine flows there.",
    "The answer is B since A and C are elsewhere.",
    "The answer is B. A is wrong, and so is C.",
    "The answer is B. London is in England.",
    "The answer is B, not A.",
    "The answer is B rather than A.",
    "The answer is not A but B.",
    "The answer is not A, it's B.",
    "The answer is clearly B.",
    "The answer is most likely B.",
    "The answer to this question is B.",
    "The answer should be B.",
    "The answer must be B",
    "The answer would be (B)",
    "The correct answer is B",
    "The correct answer is: **B. Paris**",
    "The correct option is B.",
    "The correct choice is (B).",
    "The best answer is B",
    "So the final answer is B.",
    "Therefore, the answer is (B) Paris.",
    "Answer: B",
    "answer: b",
    "Answer: (B)",
    "Answer:B",
    "**Answer: B**",
    "**Answer:** B",
    "**Answer**: B",
    "Answer - B",
    "Answer = B",
    "Answer → B",
    "ANSWER: B",
    "Ans: B",
    "Ans. B",
    "Answer B",
    "Answer (B)",
    "Answer: Paris",
    "Answer:\nB",
    "Answer:\n\nB) Paris",
    "## Answer\n\nB",
    "### Final Answer\n**B**",
    "### Final Answer\n\nParis",
    "Final answer: B",
    "Final Answer: The final answer is B. I hope it is correct.",
    "My answer: B",
    "My choice is B.",
    "Choice: B",
    "Option: B",
    "Solution: B",
    "The answer is B. I hope this answer is helpful.",
    "The answer is ~~A~~ B.",
    "The answer is \u201cB\u201d.",
    "The answer is $B$.",
    r"The answer is $\text{B}$.",
    r"The answer is \(B\).",
    "B is correct.",
    "B is the correct answer.",
    "(B) is the right choice.",
    "Option B is correct because the Seine flows there.",
    "Paris is the correct answer.",
    "Paris is the answer.",
    "A is incorrect. C is incorrect. B is correct.",
    "It's B.",
    "It must be Paris.",
    "I think it's B.",
    "I would go with B.",
    "I'd say B.",
    "I choose B.",
    "not A, so B",
    "Not A, so B.",
    "A does not fit, therefore B.",
    "I first thought the answer is A. But the Thames is in England, so the answer is B.",
]

BOXES = [
    r"\boxed{B}",
    r"$\boxed{B}$",
    r"\boxed{b}",
    r"\boxed{(B)}",
    r"\boxed{B.}",
    r"\boxed{\text{B}}",
    r"\boxed{\textbf{B}}",
    r"\boxed{\mathrm{B}}",
    r"\boxed{\mathbf{(B)}}",
    r"\boxed{\text{(B) Paris}}",
    r"\boxed{\textbf{(B)}\ \text{Paris}}",
    r"\boxed{B. Paris}",
    r"\boxed{\text{Paris}}",
    r"\boxed{\text{Option B}}",
    r"\boxed B",
    r"\boxed{B}.",
    r"\fbox{B}",
    r"**\boxed{B}**",
    r"\[\boxed{B}\]",
    r"The answer is \boxed{B}.",
    r"The answer is $\boxed{\text{B}}$. A is wrong.",
    r"Perhaps \boxed{A}? No: the Thames is in England. So \boxed{B}",
    r"The answer is A... no, that is in England, so \boxed{B}",
    r"Answer: B. $\boxed{B}$",
    "<answer>B</answer>",
    "<answer> (B) </answer>",
    "<answer>\nB\n</answer>",
    "<answer>B. Paris</answer>",
    "<answer>Paris</answer>",
    "<answer>The answer is B.</answer>",
    "<ANSWER>b</ANSWER>",
    r"<answer>\boxed{B}</answer>",
    "<think>A?</think><answer>B</answer>",
    "<answer>B",
]

LANGUAGES = [
    # Chinese
    "答案是B",
    "答案是 B。",
    "答案：B",
    "答案为B",
    "答案: (B)",
    "答案B",
    "正确答案是B。",
    "正确答案是选项B",
    "本题的答案是B",
    "所以答案应该是B。",
    "因此，正确选项是B",
    "故选B",
    "故选：B",
    "因此选择B。",
    "B是正确答案。",
    "选项B正确。",
    "答案是Paris",
    "正確答案為 B",
    # Japanese
    "答えはBです。",
    "答えはB",
    "答え：B",
    "正解はBです",
    "正解: B",
    "正解は選択肢Bです。",
    "答えはAではなくBです。",
    "Bが正解です。",
    # Korean
    "정답은 B입니다.",
    "정답: B",
    "정답은 B",
    "답은 B이다.",
    "정답은 (B)입니다.",
    "정답 B",
    "B가 정답입니다.",
    # French
    "Réponse : B",
    "La réponse est B.",
    "La réponse est la B.",
    "La bonne réponse est B.",
    "La réponse correcte est l'option B.",
    "La bonne réponse est (B) Paris.",
    "La réponse n'est pas A mais B.",
    "B est la bonne réponse.",
    # German
    "Die Antwort ist B.",
    "Antwort: B",
    "Die richtige Antwort ist B.",
    "Die richtige Antwort lautet B.",
    "Richtige Antwort: Option B",
    "Die Antwort ist nicht A, sondern B.",
    "B ist richtig.",
    "Antwort B",
    # Spanish
    "La respuesta es B.",
    "La respuesta correcta es la B.",
    "La respuesta correcta es la opción B.",
    "Respuesta: B",
    "La opción correcta es B.",
    "B es la respuesta correcta.",
    "La respuesta no es A, sino B.",
    # Portuguese
    "A resposta é B.",
    "A resposta correta é a letra B.",
    "A resposta correta é a B.",
    "Resposta: B",
    "A alternativa correta é B.",
    "Gabarito: B",
    # Italian
    "La risposta è B.",
    "La risposta corretta è la B.",
    "Risposta: B",
    "La risposta giusta è l'opzione B",
    # Dutch, Swedish, Danish
    "Het antwoord is B.",
    "Antwoord: B",
    "Het juiste antwoord is optie B.",
    "Svaret är B.",
    "Svar: B",
    "Svaret er B.",
    # Russian, Ukrainian, Polish, Czech
    "Ответ: B",
    "Ответ — B.",
    "Правильный ответ: B",
    "Правильный ответ — вариант B.",
    "Правильный ответ - B.",
    "Ответ: **B**",
    "Відповідь: B",
    "Правильна відповідь — B.",
    "Odpowiedź: B",
    "Poprawna odpowiedź to B.",
    "Odpověď: B",
    "Správná odpověď je B.",
    # Turkish, Greek, Hungarian, Romanian, Finnish
    "Cevap: B",
    "Doğru cevap B.",
    "Doğru cevap B'dir.",
    "Doğru yanıt: B",
    "Η απάντηση είναι B.",
    "Απάντηση: B",
    "A helyes válasz: B",
    "Răspunsul este B.",
    "Răspuns: B",
    "Vastaus: B",
    "Oikea vastaus on B.",
    # Vietnamese, Indonesian, Thai
    "Đáp án: B",
    "Đáp án là B.",
    "Đáp án đúng là B.",
    "Câu trả lời là B.",
    "Jawaban: B",
    "Jawabannya adalah B.",
    "Jawaban yang benar adalah B.",
    "คำตอบคือ B",
    "คำตอบ: B",
    "คำตอบที่ถูกต้องคือ B",
    # Arabic, Persian, Hebrew, Hindi, Bengali
    "الإجابة هي B",
    "الإجابة: B",
    "الإجابة الصحيحة هي B.",
    "الإجابة الصحيحة: (B)",
    "الجواب هو B",
    "پاسخ: B",
    "پاسخ صحیح B است.",
    "התשובה היא B.",
    "תשובה: B",
    "उत्तर: B",
    "सही उत्तर B है।",
    "सही उत्तर है B",
    "उत्तर B है",
    "উত্তর: B",
]


@pytest.mark.parametrize("completion", [*PLAIN, *ENGLISH, *BOXES, *LANGUAGES])
def test_a_completion_that_names_the_right_choice_is_right(completion):
    assert value_of(completion) == 1.0, detail_of(completion)


@pytest.mark.parametrize("completion", [*PLAIN, *ENGLISH, *BOXES, *LANGUAGES])
@pytest.mark.parametrize("answer", ["A", "C", "D"])
def test_a_completion_that_names_another_choice_is_wrong(completion, answer):
    assert value_of(completion, answer=answer) == 0.0, detail_of(completion)


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


NESTED = ["York", "New York", "New York City", "City"]
DOGS = ["cat", "dog", "a bird", "the cow"]
LETTERS = {"A": "B", "B": "A", "C": "D", "D": "C"}
BOTH = ["alpha", "beta", "Both A and B", "None of the above"]
CODE = ["Java", "C++", "Python", "Go"]
FORMULAS = [r"$\frac{1}{2}$", r"$\frac{1}{3}$", "$x^2$", "$x_1$"]
NUMBERED = {"1": "red", "2": "green", "3": "blue"}
CYRILLIC = {"А": "Лондон", "Б": "Париж", "В": "Рим"}
KANA = {"ア": "東京", "イ": "京都"}
ARABIC = {"أ": "لندن", "ب": "باريس"}
HAN = ["北京", "上海", "广州"]


@pytest.mark.parametrize(
    ("choices", "completion", "label"),
    [
        (NESTED, "The answer is York.", "A"),
        (NESTED, "The answer is New York.", "B"),
        (NESTED, "New York City", "C"),
        (NESTED, r"\boxed{\text{City}}", "D"),
        (NESTED, "The answer is New Yorkshire.", None),
        (DOGS, "A dog", "B"),
        (DOGS, "The answer is a dog.", "B"),
        (DOGS, "Answer: A bird", "C"),
        (DOGS, "cow", "D"),
        (DOGS, "The answer is A.", "A"),
        (DOGS, "A) cat", "A"),
        (BOTH, "Both A and B", "C"),
        (BOTH, "The answer is both A and B.", "C"),
        (BOTH, "The answer is none of the above.", "D"),
        (BOTH, "The answer is A and B.", None),
        (CODE, "The answer is C++.", "B"),
        (CODE, "C", "C"),
        (CODE, "C) Python", "C"),
        (FORMULAS, r"\boxed{\dfrac{1}{2}}", "A"),
        (FORMULAS, r"The answer is $x^{2}$.", "C"),
        (FORMULAS, "x_1", "D"),
        (["1", "2", "3", "12"], "The answer is 2.", "B"),
        (["1", "2", "3", "12"], "B", "B"),
        (["1", "2", "3", "12"], r"\boxed{12}", "D"),
        (["1", "2", "3", "12"], "The answer is 2.5", None),
        (["1", "2", "3", "12"], "The answer is -2", None),
        (["1", "2", "3", "12"], "The answer is 2%", None),
        (["1", "2", "3", "12"], "The answer is 1/2", None),
        (NUMBERED, "The answer is 2.", "2"),
        (NUMBERED, "(2)", "2"),
        (NUMBERED, "②", "2"),
        (NUMBERED, "2) green", "2"),
        (NUMBERED, "green", "2"),
        (NUMBERED, "Answer: 20", None),
        (CYRILLIC, "Ответ: Б", "Б"),
        (CYRILLIC, "Правильный ответ — б) Париж", "Б"),
        (CYRILLIC, "Париж", "Б"),
        (KANA, "答えはイです", "イ"),
        (KANA, "答えは京都です。", "イ"),
        (ARABIC, "الإجابة: ب", "ب"),
        (ARABIC, "باريس", "ب"),
        (HAN, "答案是上海", "B"),
        (HAN, "答案：B（上海）", "B"),
        (HAN, "答案是B. 上海。", "B"),
        (HAN, "答案是B. 北京。", None),
    ],
)
def test_texts_and_labels_are_told_apart_whatever_they_are(choices, completion, label):
    for answer in choices if isinstance(choices, dict) else "ABCDEFGH"[: len(choices)]:
        is_right = value_of(completion, choices=choices, answer=answer) == 1.0
        assert is_right == (answer == label), detail_of(completion, choices=choices, answer=answer)


@pytest.mark.parametrize(("completion", "number"), [("B) A", 1), ("A) B", 0), ("option B", 1), ("(D)", 3), ("B", None)])
def test_where_texts_are_letters_only_what_shows_which_is_meant_counts(completion, number):
    for index in range(4):
        reward = VERIFIER(completion, {"answer": index, "choices": list(LETTERS.values())})
        assert reward.value == float(index == number), reward.detail


def test_each_of_twenty_six_choices_has_its_letter():
    choices = [f"thing {number}" for number in range(26)]
    for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        for written in (
            letter,
            f"Answer: {letter.lower()}",
            f"\\boxed{{{letter}}}",
            f"The answer is {letter}.",
            f"({letter})",
        ):
            assert value_of(written, choices=choices, answer=letter) == 1.0
            assert value_of(written, choices=choices, answer="A" if number else "B") == 0.0


def test_the_pronoun_is_no_answer():
    choices = [f"thing {number}" for number in range(9)]
    assert value_of("The answer is: I do not know.", choices=choices, answer="I") == 0.0
    assert value_of("I think it's C.", choices=choices, answer="C") == 1.0


@pytest.mark.parametrize(
    ("choices", "answer"),
    [
        (CITIES, "B"),
        (CITIES, "b"),
        (CITIES, "(B)"),
        (CITIES, "B."),
        (CITIES, 1),
        (CITIES, "1"),
        (CITIES, "Paris"),
        (CITIES, "paris"),
        (CITIES, "B. Paris"),
        (tuple(CITIES), "B"),
        (dict(zip("ABCD", CITIES, strict=True)), "B"),
        (dict(zip("abcd", CITIES, strict=True)), "B"),
        ({"(A)": "London", "(B)": "Paris"}, "B"),
        ({"label": list("ABCD"), "text": CITIES}, "B"),
        ({"text": CITIES, "label": list("ABCD")}, 1),
        (["A. London", "B. Paris", "C. Rome"], "B"),
        (["(A) London", "(B) Paris"], "Paris"),
        (["London", "Paris", "Paris"], "B"),
    ],
)
def test_a_row_may_hold_its_answer_and_choices_in_many_ways(choices, answer):
    assert value_of("B", choices=choices, answer=answer) == 1.0
    assert value_of("The answer is A.", choices=choices, answer=answer) == 0.0


def test_an_index_counts_from_zero_unless_the_option_says_one():
    row = {"answer": 1, "choices": CITIES}
    assert VERIFIER("B", row).value == 1.0
    assert build("multiple_choice", {"first_index": 1})("A", row).value == 1.0


def test_the_option_decides_what_an_answer_is_that_could_be_two_things():
    row = {"answer": 2, "choices": ["1", "2", "3", "4"]}
    assert VERIFIER("B", row).status == "error"
    assert build("multiple_choice", {"answer_is": "index"})("C) 3", row).value == 1.0
    assert build("multiple_choice", {"answer_is": "text"})("B) 2", row).value == 1.0


def test_the_keys_have_the_names_of_the_options():
    verifier = build("multiple_choice", {"answer_key": "answerKey", "choices_key": "options"})
    assert verifier("B", {"answerKey": "B", "options": CITIES}).value == 1.0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"choices": CITIES}, "no 'answer'"),
        ({"answer": "B"}, "no 'choices'"),
        ({"answer": "E", "choices": CITIES}, "fits none"),
        ({"answer": 4, "choices": CITIES}, "fits none"),
        ({"answer": -1, "choices": CITIES}, "fits none"),
        ({"answer": "", "choices": CITIES}, "fits none"),
        ({"answer": "Berlin", "choices": CITIES}, "fits none"),
        ({"answer": True, "choices": CITIES}, "bool"),
        ({"answer": None, "choices": CITIES}, "NoneType"),
        ({"answer": ["B"], "choices": CITIES}, "list"),
        ({"answer": "B", "choices": ["B", "A"]}, "different choices"),
        ({"answer": "x", "choices": ["x", "x"]}, "different choices"),
        ({"answer": "A", "choices": ["x"]}, "1 choices"),
        ({"answer": "A", "choices": []}, "0 choices"),
        ({"answer": "A", "choices": ["x"] * 27}, "27 choices"),
        ({"answer": "A", "choices": "xy"}, "list or a mapping"),
        ({"answer": "A", "choices": ["x", None]}, "text or a number"),
        ({"answer": "A", "choices": {"A": "x", "a": "y"}}, "must differ"),
        ({"answer": "A", "choices": {"first": "x", "second": "y"}}, "no label"),
        ({"answer": "A", "choices": {"label": ["A"], "text": ["x", "y"]}}, "same length"),
    ],
)
def test_a_row_that_cannot_be_used_is_an_error_that_says_why(row, words):
    reward = VERIFIER("A", row)
    assert reward.status == "error"
    assert words in reward.detail
    assert "raised" not in reward.detail


def test_the_parts_tell_a_wrong_answer_from_none_and_from_two():
    row = {"answer": "B", "choices": CITIES}
    assert VERIFIER("B", row).parts == {"correct": 1.0, "answered": 1.0, "ambiguous": 0.0}
    assert VERIFIER("A", row).parts == {"correct": 0.0, "answered": 1.0, "ambiguous": 0.0}
    assert VERIFIER("A or B", row).parts == {"correct": 0.0, "answered": 0.0, "ambiguous": 1.0}
    assert VERIFIER("Hm.", row).parts == {"correct": 0.0, "answered": 0.0, "ambiguous": 0.0}


@pytest.mark.parametrize(
    "options", [{"first_index": 2}, {"answer_is": "number"}, {"anwser_key": "x"}, {"answer_key": 3}, {"answer_key": ""}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match="reward multiple_choice"):
        build("multiple_choice", options)


@pytest.mark.parametrize(
    "piece",
    [
        *(r"\boxed{", "answer ", "The answer is (", "answer is not ", "B ", "B or ", "答案", "A) London\n", "[", "~~"),
        *(
            "<answer>",
            "wait, ",
            "so ",
            "B is correct. ",
            "London or ",
            "London or\n",
            "not ",
            "{",
            "是",
            "é",
            " ",
            "\n",
        ),
        *("x", "answer é ", "\n.", " -", "- ", "\t\n", "...", "n't "),
    ],
)
def test_text_that_is_made_to_be_slow_is_judged_soon(piece):
    start = time.perf_counter()
    reward = VERIFIER("answer " + piece * (60_000 // len(piece)), {"answer": "B", "choices": CITIES})
    assert reward.status == "scored", reward.detail
    assert time.perf_counter() - start < 2.0


@given(st.text(alphabet="ABCDabcd()[]{}*.:,;?!\n '-\\$<>orntaeswi答案是是はイ", max_size=80))
def test_no_text_is_right_for_two_answers_and_none_crashes(text):
    rewards = [VERIFIER(text, {"answer": answer, "choices": CITIES}) for answer in "ABCD"]
    assert {reward.status for reward in rewards} == {"scored"}
    assert sum(reward.value for reward in rewards) <= 1.0
