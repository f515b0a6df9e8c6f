"""Which language a text is in, by langdetect, the same in every process and after every other call.

langdetect draws n-grams at random. Here it has a detector of its own with a seed of its own, so that neither the global
seed of the package nor the order of calls changes a verdict. Knows nothing of rewards."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

SEED = 0
MAX_CHARACTERS = 12_000
"""langdetect looks at ten thousand characters at most; its search for addresses would take what it is given."""

MAX_DRAWS = 250
"""n-grams drawn in each of seven trials: where fewer than these have not decided, a thousand would not either."""

LANGUAGES = frozenset(
    "af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no pa pl pt ro "
    "ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw".split()
)
"""The codes that langdetect knows: ISO 639-1, and Chinese by its two scripts."""
CHINESE = frozenset({"zh-cn", "zh-tw"})


def codes_of(language: str) -> frozenset[str]:
    """langdetect's codes for a code: itself, both scripts for `zh`, the language for `pt-BR`; none when unknown."""
    code = language.strip().lower().replace("_", "-")
    if code == "zh":
        return CHINESE
    if code not in LANGUAGES:
        code = code.split("-", 1)[0]
    return frozenset({code}) & LANGUAGES


def detect_language(text: str, *, among: frozenset[str] = LANGUAGES) -> str | None:
    """The most likely language of the text; None when it has no feature of any, or no language is likely."""
    probabilities = language_probabilities(text, among=among)
    return max(probabilities, key=lambda code: probabilities[code], default=None)


def language_probabilities(text: str, *, among: frozenset[str] = LANGUAGES) -> dict[str, float]:
    """The languages with a probability above 0.1, all others being out of the question; none for a text without any."""
    from langdetect.lang_detect_exception import LangDetectException

    excerpt = text[:MAX_CHARACTERS]
    detector = _factory().create()
    detector.ITERATION_LIMIT = MAX_DRAWS
    if among != LANGUAGES:
        detector.set_prior_map(dict.fromkeys(among, 1.0))
    # langdetect skips words in capitals: of a text that has no others it would see nothing.
    detector.append(excerpt.lower() if excerpt.isupper() else excerpt)
    try:
        return {found.lang: found.prob for found in detector.get_probabilities()}
    except LangDetectException:
        return {}


def prepare_detection() -> None:
    """Load the profiles of all languages, which the first call would otherwise do."""
    _factory()


@cache
def _factory() -> Any:
    """langdetect's detectors over the profiles in alphabetical order (its own loader takes the file system's)."""
    from langdetect import PROFILES_DIRECTORY, DetectorFactory

    factory = DetectorFactory()
    paths = sorted(path for path in Path(PROFILES_DIRECTORY).iterdir() if path.name in LANGUAGES)
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in paths])
    factory.set_seed(SEED)
    return factory
