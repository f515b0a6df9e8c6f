"""Sentences and words of English text, by nltk's Punkt and Treebank algorithms with parameters that stand here.

Nothing is downloaded: what nltk would learn from a corpus (abbreviations, words that begin a sentence) is listed below.
Knows nothing of rewards. Time is linear in the text's length."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

MAX_CHARACTERS = 20_000
"""nltk weighs the first characters, some three thousand words. Behind them a sentence ends at any mark before
white space, and words end at white space."""

ABBREVIATIONS = frozenset(
    """
    mr mrs ms messrs mme mlle dr drs prof rev hon st sr jr gen col lt capt cpt cmdr maj sgt cpl adm gov sen sens rep
    reps pres supt esq inc ltd co corp bros cie assn dept univ intl govt ave blvd rd hwy mt ft sq apt bldg
    jan feb apr aug sep sept oct nov dec tues wed thurs fri
    ala ariz ark calif colo conn fla ga kan ky md mich minn mont neb nev okla ore pa penn tenn tex va vt wis wyo
    vs viz etc cf al ca approx est fig figs vol vols eq ibid
    e.g i.e a.m p.m a.k.a u.s u.k u.n e.u d.c u.s.a u.s.s.r n.y n.j l.a ph.d m.d b.a m.a b.s m.s b.sc m.sc m.b.a ll.b
    ll.m b.c b.c.e c.e a.d s.a w.va
    """.split()
)
"""Written without their last period. Units are not among them: 5 kg. is far more often a sentence's end than not."""

STARTERS = frozenset(
    """
    a about above according across after again against all almost along already also although always am among an and
    another any are as at away back be because been before being below between both but by can could did do does doing
    down during each either else even ever every everyone everything few finally first for from further furthermore
    generally get give given had has have he hence her here his how however if in indeed instead into is it its itself
    just last lately later least less let like likewise look made make many may maybe me meanwhile might more moreover
    most much must my near neither never nevertheless next no nobody none nonetheless nor not nothing now of off often
    on once one only or other others otherwise our out over overall own people perhaps please rather really said same
    second see several shall she should similarly since so some someone something sometimes soon still such take than
    thank thanks that the their them then there therefore these they thing things this those though through thus to
    today together tomorrow too two under unfortunately unless unlike until up upon us use used using usually very was
    way we well were what when whenever where whereas wherever whether which while who whoever whose why will with
    within without would yes yesterday yet you your
    """.split()
)
"""Words that in the middle of a sentence are written small: with a capital behind an abbreviation they begin one."""


def count_sentences(text: str) -> int:
    """How many sentences the text has; 0 when it has nothing but white space."""
    cut = _cut(text)
    # A sentence that the cut divides is counted in the first part.
    return sum(1 for _ in _tokenizers()[0].span_tokenize(text[:cut])) + len(_PLAIN_END.findall(text, cut))


def count_capital_words(text: str) -> int:
    """How many Treebank words of the text are in capitals: a word with a hyphen is one, `CAN'T` is two."""
    cut = _cut(text)
    # Words without a capital are left out before nltk sees them; none of its rules joins two words.
    words = " ".join(word for word in text[:cut].split() if word != word.lower())
    return sum(map(str.isupper, _tokenizers()[1].tokenize(words))) + sum(map(str.isupper, text[cut:].split()))


def prepare_sentences() -> None:
    """Import nltk, which the first call would otherwise do."""
    _tokenizers()


_PLAIN_END = re.compile(r"[.?!](?=\s|\Z)")


def _cut(text: str) -> int:
    """Where nltk's part ends: at the end of a word, if that is near."""
    if len(text) <= MAX_CHARACTERS:
        return len(text)
    space = text.rfind(" ", 0, MAX_CHARACTERS)
    return space if space > 0 else MAX_CHARACTERS


@cache
def _tokenizers() -> tuple[Any, Any]:
    """Punkt's sentence tokenizer and the Treebank word tokenizer."""
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import _ORTHO_MID_LC, PunktParameters, PunktSentenceTokenizer

    parameters = PunktParameters()
    parameters.abbrev_types.update(ABBREVIATIONS)
    for word in STARTERS:
        parameters.add_ortho_context(word, _ORTHO_MID_LC)
    return PunktSentenceTokenizer(parameters), NLTKWordTokenizer()
