"""The reward `language`, what it takes for prose, and the detection of languages beneath it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Pool, RewardSpec, build
from rewards.language import SCRIPTS
from rewards.prose.detection import LANGUAGES, codes_of, detect_language
from rewards.prose.words import count_words, prose_of

TEXTS = {
    "en": "The farmer has twelve cows and sells five of them at the market. He keeps the other seven, because his "
    "children like their milk. In the evening he counts the money and puts it into a small wooden box.",
    "de": "Der Bauer hat zwölf Kühe und verkauft fünf davon auf dem Markt. Die anderen sieben behält er, weil seine "
    "Kinder die Milch mögen. Am Abend zählt er das Geld und legt es in eine kleine Kiste aus Holz.",
    "fr": "Le fermier a douze vaches et il en vend cinq au marché. Il garde les sept autres, parce que ses enfants "
    "aiment leur lait. Le soir, il compte son argent et le met dans une petite boîte en bois.",
    "es": "El granjero tiene doce vacas y vende cinco de ellas en el mercado. Se queda con las otras siete, porque a "
    "sus hijos les gusta la leche. Por la noche cuenta el dinero y lo guarda en una pequeña caja de madera.",
    "ru": "У фермера двенадцать коров, и пять из них он продаёт на рынке. Остальных семь он оставляет себе, потому что "
    "его дети любят молоко. Вечером он считает деньги и кладёт их в маленькую деревянную коробку.",
    "zh": "农夫有十二头奶牛，他在市场上卖掉了其中的五头。剩下的七头他自己留着，因为他的孩子们喜欢喝牛奶。"
    "晚上他数了数钱，把钱放进一个小木盒子里。",
    "ja": "農夫は牛を十二頭飼っていて、そのうちの五頭を市場で売ります。子供たちが牛乳を好きなので、残りの七頭は"
    "手元に残します。夜になるとお金を数えて、小さな木の箱に入れます。",
    "ko": "농부에게는 소가 열두 마리 있는데 그중 다섯 마리를 시장에서 팝니다. "
    "아이들이 우유를 좋아해서 나머지 일곱 마리는 그대로 둡니다. 저녁이 되면 돈을 세어 작은 나무 상자에 넣습니다.",
    "ar": "يملك المزارع اثنتي عشرة بقرة ويبيع خمسا منها في السوق. ويحتفظ بالسبع الأخرى لأن أطفاله يحبون الحليب. "
    "وفي المساء يعد المال ويضعه في صندوق خشبي صغير.",
    "hi": "किसान के पास बारह गायें हैं और वह उनमें से पाँच बाज़ार में बेचता है। बाकी सात गायें वह अपने पास रखता है "
    "क्योंकि उसके बच्चों को दूध पसंद है। शाम को वह पैसे गिनता है और उन्हें लकड़ी के एक छोटे डिब्बे में रखता है।",
    "el": "Ο αγρότης έχει δώδεκα αγελάδες και πουλάει πέντε από αυτές στην αγορά. Τις άλλες επτά τις κρατάει, γιατί "
    "στα παιδιά του αρέσει το γάλα. Το βράδυ μετράει τα χρήματα και τα βάζει σε ένα μικρό ξύλινο κουτί.",
    "th": "ชาวนามีวัวสิบสองตัว และขายไปห้าตัวที่ตลาด เขาเก็บอีกเจ็ดตัวที่เหลือไว้ "
    "เพราะลูก ๆ ของเขาชอบดื่มนม ตอนเย็นเขานับเงินแล้วใส่ไว้ในกล่องไม้ใบเล็ก",
}


def judge(completion, language, **options):
    return build("language", options)(completion, {"language": language})


@pytest.mark.parametrize("wanted", TEXTS)
@pytest.mark.parametrize("written", TEXTS)
def test_a_text_is_in_its_own_language_and_in_no_other(written, wanted):
    reward = judge(TEXTS[written], wanted)
    assert reward.value == float(written == wanted), reward.detail


MIXED = [
    ("en", f"{TEXTS['en']} 所以我们需要计算。 {TEXTS['en']}"),
    ("en", f"<think>{TEXTS['zh']}</think>\n{TEXTS['en']}"),
    ("de", f"<think>{TEXTS['en']}</think>\n{TEXTS['de']}"),
    ("de", f"{TEXTS['de']}\n\n{TEXTS['en']}"),
    ("zh", f"{TEXTS['zh']}\n\n{TEXTS['en']}"),
    ("zh", f"{TEXTS['zh']} {TEXTS['ja']}"),
    ("ru", f"{TEXTS['ru']} {TEXTS['en']}"),
    ("en", TEXTS["en"].replace("cows", "коров").replace("money", "деньги").replace("milk", "молоко")),
]


@pytest.mark.parametrize(("wanted", "completion"), MIXED)
def test_a_text_that_mixes_languages_is_not_in_one(wanted, completion):
    assert judge(completion, wanted).value == 0.0
    assert judge(completion, wanted, score="fraction").value < 0.99


CODE = """```python
def total(items):
    # the sum of all prices that the customer has to pay today
    return sum(items)
```"""
PURE = [
    ("de", f"{TEXTS['de']}\n{CODE}\n{TEXTS['de']}"),
    ("de", f"{TEXTS['de']}\n~~~\nthis is never closed and goes on and on for very many English words\n"),
    ("zh", f"{TEXTS['zh']}我用 Python 和 NumPy 在 GPU 上算过了。{TEXTS['zh']}"),
    (
        "zh",
        rf"{TEXTS['zh']} 设 $\text{{the number of cows}} = n$，则 $$n = \frac{{a}}{{b}} \text{{ for all}}$$",
    ),
    (
        "zh",
        rf"{TEXTS['zh']} \[ x = \text{{what is left}} \] \begin{{align}} \text{{price of one}} \end{{align}}",
    ),
    ("ru", f"{TEXTS['ru']} См. https://example.com/why-the-cows-are-sold-at-the-market и mail@example.com."),
    ("ru", f"<think>{TEXTS['ru']}</think><answer>{TEXTS['ru']}</answer>"),
    ("en", f"{TEXTS['en']} The angle α is smaller than β. It costs $5, not $6. {TEXTS['en']}"),
    ("en", f"{TEXTS['en']} Møller, Nuñez and Dvořák came from Łódź to São Paulo. {TEXTS['en']}"),
    ("de", TEXTS["de"].upper()),
    ("en", f"# Cows\n\n* **{TEXTS['en']}**\n* _{TEXTS['en']}_\n\n| a | b |\n|---|---|\n"),
    ("ja", f"{TEXTS['ja']}「{TEXTS['ja']}」"),
]


@pytest.mark.parametrize(("wanted", "completion"), PURE)
def test_code_maths_addresses_tags_and_names_do_not_make_a_text_mixed(wanted, completion):
    reward = judge(completion, wanted)
    assert reward.value == 1.0, reward.detail


@pytest.mark.parametrize(
    "completion", ["42", r"\boxed{42}", "Ja.", CODE, "$$x = y$$", "a b c d e f g h i j k l m n", "1 2 3 " * 50]
)
@pytest.mark.parametrize(("too_short", "value"), [("abstain", None), ("pass", 1.0), ("fail", 0.0)])
def test_too_little_prose_is_what_the_option_says(completion, too_short, value):
    assert judge(completion, "de", too_short=too_short).value == value


def test_min_words_is_how_many_words_are_enough():
    text = "Der Bauer hat zwölf Kühe auf der Wiese"
    assert judge(text, "de", min_words=8).value == 1.0
    assert judge(text, "de", min_words=9).status == "abstained"
    assert judge("农夫有十二头奶牛和五只羊在草地上", "zh", min_words=8).value == 1.0


@pytest.mark.parametrize("completion", ["", "  \n", "\u3000"])
def test_an_empty_completion_is_in_no_language(completion):
    assert judge(completion, "de").value == 0.0


def test_the_value_is_the_smaller_share_and_the_parts_are_both():
    reward = judge(f"{TEXTS['de']}\n\n{TEXTS['de']}\n\n{TEXTS['de']}\n\n{TEXTS['ru']}", "de", score="fraction")
    words = count_words(TEXTS["de"])["LATIN"] * 3
    assert reward.parts["script"] == pytest.approx(words / (words + count_words(TEXTS["ru"])["CYRILLIC"]))
    assert reward.value == min(reward.parts["script"], reward.parts["language"])
    assert reward.parts["prose"] == 1.0


def test_a_language_of_another_script_may_borrow_some_latin_words():
    text = TEXTS["ru"] + " Python Numpy Torch Linux"
    assert judge(text, "ru").value == 1.0
    assert judge(text, "ru", borrowed_fraction=0.0).value == 0.0
    assert judge(text, "ru", borrowed_fraction=0.0, min_script_fraction=0.8).value == 1.0


def test_words_in_code_count_for_the_part_prose():
    reward = judge(f"{TEXTS['de']}\n{CODE}", "de")
    assert 0.6 < reward.parts["prose"] < 0.9


def test_only_the_answer_is_judged_where_the_option_says_what_it_follows():
    completion = f"<think>{TEXTS['en']}</think>{TEXTS['de']}"
    assert judge(completion, "de", answer_after="</think>").value == 1.0
    assert judge(completion, "en", answer_after="</think>").value == 0.0
    assert judge(TEXTS["de"], "de", answer_after="</think>").value == 0.0


def test_the_option_goes_before_the_row_and_the_row_may_have_another_key():
    assert build("language", {"language": "de"})(TEXTS["de"], {"language": "fr"}).value == 1.0
    assert build("language", {"language_key": "lang"})(TEXTS["de"], {"lang": "de", "language": "fr"}).value == 1.0


@pytest.mark.parametrize("code", ["DE", "de-AT", "de_CH", " de "])
def test_a_code_may_have_a_region(code):
    assert judge(TEXTS["de"], code).value == 1.0


@pytest.mark.parametrize(
    "row", [{}, {"language": None}, {"language": ""}, {"language": "German"}, {"language": 5}, {"language": ["de"]}]
)
def test_a_row_without_a_language_that_can_be_told_is_an_error_that_names_the_key(row):
    reward = build("language", {})(TEXTS["de"], row)
    assert reward.status == "error"
    assert "problem['language']" in reward.detail
    assert repr(row.get("language")) in reward.detail


@pytest.mark.parametrize(
    "options",
    [
        *({"language": "German"}, {"min_script_fraction": 1.1}, {"min_language_fraction": -0.1}, {"min_words": 0}),
        *({"borrowed_fraction": float("nan")}, {"answer_after": ""}, {"too_short": "zero"}),
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        build("language", options)


@pytest.mark.parametrize(
    "text",
    ["\0" * 99, "\ud800 " * 99, "\u202e" * 99, "ǅ ǆ " * 99, "𝐇𝐞𝐥𝐥𝐨 " * 99, "e\u0301 x" * 99, "```" * 99, "$" * 99],
)
def test_a_hostile_completion_is_judged_like_any_other(text):
    for completion in (text, text + TEXTS["de"], TEXTS["de"] + text):
        assert judge(completion, "de").status in ("scored", "abstained")
    assert judge(text + TEXTS["en"], "de", too_short="fail").value == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a b ",
        "the cat sat. ",
        "我",
        "`a",
        "$a ",
        "<a ",
        "\\(",
        "\\begin{",
        "a@",
        "http://",
        "क्",
        "İ ",
        "\n",
        "x1y_",
    ],
)
def test_a_million_characters_cost_less_than_a_second_or_two(piece):
    verifier = build("language", {"language": "de", "score": "fraction"})
    verifier(TEXTS["de"], {})
    start = time.process_time()
    assert verifier(piece * (1_000_000 // len(piece)), {}).status in ("scored", "abstained")
    assert time.process_time() - start < 2.0


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_no_text_makes_an_error(text):
    assert judge(text, "en", min_words=1).status in ("scored", "abstained")


# Prose


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("one `two` three", "one three"),
        ("one ```two``` three", "one `` `` three"),
        ("one $two$ three", "one three"),
        ("one $5 and $6 two", "one and two"),
        ("one $ two $ three", "one $ two $ three"),
        (r"one \(two\) \[three\] $$four$$ five", "one five"),
        (r"one \begin{cases}two\end{cases} three", "one three"),
        (r"one \boxed{two}", "one"),
        ("one <b>two</b>", "one two"),
        ("one < two > three", "one two three"),
        ("看https://a.b/c看", "看 看"),
        ("one two_three fourFive a@b.c six7 eight/nine ten", "one ten"),
        ("one\n```\ntwo\n```\nthree", "one three"),
        ("one\n```\ntwo", "one"),
        ("one\n~~~\ntwo\n```\nthree\n~~~\nfour", "one four"),
        ('don\'t well-known (so) "that"', 'don\'t well-known (so) "that"'),
    ],
)
def test_prose_is_what_is_left_without_code_maths_tags_and_addresses(text, prose):
    assert prose_of(text).split() == prose.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one two", {"LATIN": 2}),
        ("a 1 b", {}),
        ("你好世界", {"CJK": 2}),
        ("你好世", {"CJK": 2}),
        ("Ｈｅｌｌｏ", {"LATIN": 1}),
        ("мир one", {"CYRILLIC": 1, "LATIN": 1}),
        ("оne", {"LATIN": 1}),  # the first letter is Cyrillic and alone
        ("हिन्दी भाषा", {"DEVANAGARI": 2}),
        ("カレー々", {"KATAKANA": 2, "CJK": 1}),
    ],
)
def test_words_are_counted_by_script(text, words):
    assert dict(count_words(text)) == words


# Detection


def test_every_language_of_langdetect_has_a_script():
    from langdetect import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    assert set(factory.get_lang_list()) == LANGUAGES == set(SCRIPTS)


@pytest.mark.parametrize(
    ("code", "codes"),
    [
        ("en", {"en"}),
        ("zh", {"zh-cn", "zh-tw"}),
        ("ZH-TW", {"zh-tw"}),
        ("pt_BR", {"pt"}),
        ("xx", set()),
        ("", set()),
        ("zh-hans", set()),
    ],
)
def test_codes_are_those_of_langdetect(code, codes):
    assert codes_of(code) == codes


@pytest.mark.parametrize("text", ["", " ", "123", "!?", "😀", "\0", "\ud800"])
def test_a_text_without_letters_is_in_no_language(text):
    assert detect_language(text) is None


# Short and torn between languages: where langdetect's own verdict changes from call to call.
TORN = [
    "ja no se",
    "ok super",
    "data model info",
    "a la carte menu",
    "the der die das",
    "no es un test",
    "alt om det her",
]
SCRIPT = """
import json, sys
import langdetect
langdetect.DetectorFactory.seed = int(sys.argv[1])
from rewards.prose.detection import detect_language
texts = json.loads(sys.argv[2])
[detect_language(text) for text in reversed(texts)]
print(json.dumps([detect_language(text) for text in texts]))
"""


def test_a_verdict_depends_on_no_process_no_order_and_no_global_seed():
    found = [detect_language(text) for text in TORN]
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, "1", json.dumps(TORN)]
    there = subprocess.run(command, capture_output=True, check=True, env=environment).stdout
    assert json.loads(there) == found
    assert [detect_language(text) for text in TORN] == found


def test_the_global_seed_of_langdetect_is_left_alone():
    from langdetect import DetectorFactory

    before = DetectorFactory.seed
    detect_language(TEXTS["de"])
    assert DetectorFactory.seed == before


def test_a_pool_judges_as_this_process_does():
    spec = RewardSpec("language", options={"score": "fraction"})
    with Pool(workers=1) as pool:
        there = pool.submit(spec, MIXED[3][1], {"language": "de"}).result()
    assert there == judge(MIXED[3][1], "de", score="fraction")
