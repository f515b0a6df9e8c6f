"""The checkers by the names that IFEval gives them, each with the arguments it takes.

Semantics: Zhou et al. (2023), "Instruction-Following Evaluation for Large Language Models", arXiv 2311.07911, and
google-research/instruction_following_eval; docs/rewards.md lists where they are mended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from rewards.instructions import arguments, counting, layout, wording
from rewards.instructions.arguments import Kind, count, ordinal, relation


class Checker(NamedTuple):
    """A checker and its reader: the complaint about a text (empty when the instruction is followed), and the
    arguments that the checker takes from what the row gives. Both raise ValueError for what a row got wrong."""

    complaint: Callable[..., str]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]


def _checker(complaint: Callable[..., str], **kinds: Kind) -> Checker:
    return Checker(complaint, lambda given: arguments.read_arguments(kinds, given))


def _read_nth_paragraph(given: Mapping[str, Any]) -> dict[str, Any]:
    """Also that the paragraph whose first word is asked for is one of those asked for."""
    kinds: dict[str, Kind] = {"num_paragraphs": ordinal, "nth_paragraph": ordinal, "first_word": arguments.text}
    read = arguments.read_arguments(kinds, given)
    if read["nth_paragraph"] > read["num_paragraphs"]:
        raise ValueError(
            f"nth_paragraph = {read['nth_paragraph']}: must be at most num_paragraphs, {read['num_paragraphs']}"
        )
    return read


CHECKERS: Mapping[str, Checker] = MappingProxyType(
    {
        "keywords:existence": _checker(wording.existence, keywords=arguments.texts),
        "keywords:frequency": _checker(
            wording.keyword_frequency, keyword=arguments.text, frequency=count, relation=relation
        ),
        "keywords:forbidden_words": _checker(wording.forbidden_words, forbidden_words=arguments.texts),
        "keywords:letter_frequency": _checker(
            wording.letter_frequency, letter=arguments.letter, let_frequency=count, let_relation=relation
        ),
        "language:response_language": _checker(wording.response_language, language=arguments.language),
        "length_constraints:number_sentences": _checker(
            counting.number_sentences, num_sentences=count, relation=relation
        ),
        "length_constraints:number_paragraphs": _checker(counting.number_paragraphs, num_paragraphs=count),
        "length_constraints:number_words": _checker(counting.number_words, num_words=count, relation=relation),
        "length_constraints:nth_paragraph_first_word": Checker(counting.nth_paragraph_first_word, _read_nth_paragraph),
        "detectable_content:number_placeholders": _checker(layout.number_placeholders, num_placeholders=count),
        "detectable_content:postscript": _checker(layout.postscript, postscript_marker=arguments.text),
        "detectable_format:number_bullet_lists": _checker(layout.number_bullet_lists, num_bullets=count),
        "detectable_format:constrained_response": _checker(layout.constrained_response),
        "detectable_format:number_highlighted_sections": _checker(
            layout.number_highlighted_sections, num_highlights=count
        ),
        "detectable_format:multiple_sections": _checker(
            layout.multiple_sections, section_spliter=arguments.text, num_sections=count
        ),
        "detectable_format:json_format": _checker(layout.json_format),
        "detectable_format:title": _checker(layout.title),
        "combination:two_responses": _checker(layout.two_responses),
        "combination:repeat_prompt": _checker(layout.repeat_prompt, prompt_to_repeat=arguments.text),
        "startend:end_checker": _checker(layout.end_checker, end_phrase=arguments.text),
        "startend:quotation": _checker(layout.quotation),
        "change_case:capital_word_frequency": _checker(
            wording.capital_word_frequency, capital_frequency=count, capital_relation=relation
        ),
        "change_case:english_capital": _checker(wording.english_capital),
        "change_case:english_lowercase": _checker(wording.english_lowercase),
        "punctuation:no_comma": _checker(wording.no_comma),
    }
)
