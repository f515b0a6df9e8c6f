"""How languages say "the answer is": the words around the answer to a question with choices, as patterns.

Only words stand here; what a choice is and which one is meant is for `choice_reading`."""

from __future__ import annotations

import re
import unicodedata


def _compiled(pattern: str) -> re.Pattern[str]:
    """The pattern in the spelling of normalized text (NFKC takes some letters of Thai and others apart)."""
    return re.compile(unicodedata.normalize("NFKC", pattern), re.IGNORECASE | re.MULTILINE)


_NOUNS = "|".join(
    (
        # English, German, Dutch, Swedish, Danish, Norwegian
        r"answer|ans\b\.?|solution|antwort|lösung|antwoord|svaret|svar",
        # French, Spanish, Portuguese, Italian, Romanian
        r"réponse|reponse|respuesta|resposta|gabarito|risposta|răspunsul|răspuns",
        # Russian, Ukrainian, Polish, Czech, Greek, Turkish, Hungarian, Finnish
        r"ответ|відповідь|odpowiedź(?:\s+to)?|odpověď(?:\s+je)?|απάντηση|cevap|yanıt|válasz|vastaus(?:\s+on)?",
        # Vietnamese, Indonesian, Thai, Arabic, Persian, Hebrew, Hindi, Bengali
        r"đáp án|câu trả lời|jawabannya|jawaban|คำตอบ|(?:الإجابة|الاجابة|الجواب)(?:\s+الصحيحة?)?",
        r"(?:پاسخ|جواب)(?:\s+صحیح|\s+درست)?|התשובה|תשובה|उत्तर|जवाब|উত্তর",
        # An option is an answer where it is called the right one: "option A: Paris" states nothing.
        r"(?:correct|right|best|final|chosen|my|richtige|juiste|bonne|правильный|верный)\s+"
        r"(?:choice|option|letter|statement|selection|optie|proposition|вариант)",
        r"(?:opción|alternativa|opção|opzione|option|proposition)\s+(?:correcta|correta|corretta|correcte|juste|giusta|certa)",
        r"الخيار الصحيح|सही विकल्प|phương án đúng|pilihan yang benar",
    )
)
_JOINED_NOUNS = r"答案|正确选项|正確選項|正解|答え|回答|解答|정답|답"  # written without spaces around them
_NOUN = rf"(?:(?<![^\W\d_])(?:{_NOUNS})|(?:{_JOINED_NOUNS})|^\W{{0,8}}(?:choice|option|selection|correct)(?=\s*[:=]))"

_COPULAS = (
    r"is|are|was|be|remains|ist|lautet|luidt|är|er|est|serait|es|sería|é|seria|è|sarebbe|este|это|является|це|є|jest|"
    r"είναι|là|adalah|ialah|هي|هو|היא|הוא|है|হলো|হল"
)
_JOINED_COPULAS = r"คือ|是|为|為|は|が|은|는|이"  # written without a space around them
_SIGNS = r"[:=>→⇒-]+"

_NEGATION = (
    r"(?:not|never|cannot|\w+n't|neither|nicht|kein\w*|niet|inte|ikke|ne|n'est|pas|no|non|não|nu|не|нет|ні|nie|není|δεν|"
    r"değil|không|phải không|bukan|tidak|ليس|ليست|لا|نیست|לא|नहीं)(?!\w)|不|非|ไม่"
)
NEGATION = _compiled(_NEGATION)
"""What rules out the choice that follows."""

# Up to seven words between the noun and its verb ("the answer to this question is"), none of them a negation.
_WORDS = rf"(?:,?\s+(?!{_NEGATION})[^\W\d_][\w'’]*){{0,7}}?"
_JOINED_WORDS = r"[^\s\d_A-Za-z.,;:!?。、不非]{0,16}?"

ANSWER_IS = _compiled(
    rf"{_NOUN}{_WORDS}{_JOINED_WORDS}(?:,?\s*(?:{_SIGNS}|(?<!\w)(?:{_COPULAS})(?!\w)|{_JOINED_COPULAS})\s*(?:{_SIGNS})?"
    rf"|\s+(?={_NEGATION}))"
)
"""The noun with its verb or sign; the answer follows."""

ANSWER_BARE = _compiled(rf"(?<![^\W\d_])(?:{_NOUNS})\s+|(?:{_JOINED_NOUNS})[】\]]?\s*")
"""The noun alone, as in a heading or in a language that needs no verb."""

SUPPOSED = _compiled(
    r"(?:(?<!\w)(?:if|suppose|supposing|assume|assuming|whether|unless|say|si|wenn|falls|se|если|jeśli|eğer|nếu|jika)"
    r"(?:\s+that)?(?:\s+(?:the|la|le|die|a|el))?|如果|假设|假如|もし|만약)\s*\Z"
)
"""What stands before an answer that is only supposed."""

WEAK = _compiled(
    r"\b(?:so(?!\s+(?:is|are|was|does|do)\b)|thus|therefore|hence|it's|it is|it must be|must be|that's|go with|"
    r"going with|i'd say|i would say|i'll say|i guess|my guess is|i think|i believe|choose|pick|select|je choisis|"
    r"elijo|escojo|ich wähle|escolho|marque|scelgo|выбираю|pilih|chọn|seçiyorum|wybieram)\b[\s,:]*|"
    r"(?:故|应|應|所以|因此)?(?:选择|選擇|选|選)\s*"
)
"""What announces an answer when the answer ends the sentence."""

RETRACTION = _compiled(
    r"(?:\b(?:no,?\s+)?wait\b(?=\s*[,.!;:\n-]|\s+(?:no|actually|it)\b)|\b(?:hold on|scratch that|correction|"
    r"on second thought|let me re-?(?:consider|think|check)|i made a mistake|i was wrong|espera|attends|warte|"
    r"moment mal|aspetta|подожди|стоп)\b|等等|不对|待って|잠깐)[\s,.!;:-]*"
)
"""What takes back all that was said before it."""

CORRECTION = _compiled(r"\b(?:no|actually|sorry|or rather|rather|hmm|oops|i mean|make that)\b[\s,:.-]*")
"""What takes back what was said before it when an answer follows that ends the sentence."""

_CORRECT_AFTER = (
    r"\s*\b(?:is|are|seems|must be)\s+(?:clearly\s+|indeed\s+)?(?:the\s+)?(?:only\s+|most\s+)?"
    r"(?:(?:correct|right|best|true|accurate|appropriate)(?:\s+(?:answer|choice|option|one|statement))?|answer)\b",
    r"\s*\best\s+(?:la\s+(?:bonne|seule)\s+réponse|la réponse(?:\s+correcte)?|correcte?|juste)\b",
    r"\s*\bes\s+(?:la\s+)?(?:(?:respuesta|opción|alternativa)\s*)?(?:correcta|correcto|la respuesta)\b",
    r"\s*\bist\s+(?:die\s+)?(?:richtige?|korrekte?)(?:\s+antwort)?\b",
    r"\s*\bé\s+(?:a\s+)?(?:(?:resposta|alternativa|opção)\s+)?(?:correta|certa|correto|certo)\b",
    r"\s*\bè\s+(?:la\s+)?(?:(?:risposta|opzione)\s+)?(?:corretta|giusta|esatta)\b",
    r"\s*[—–-]?\s*(?:это\s+)?(?:правильный|верный)(?:\s+ответ)?\b",
    r"\s*(?:选项|選項)?(?:是|为|為)?(?:正确|正確|对的|對的|正解|答案)(?:的|选项|答案)?",
    r"\s*(?:が|は)(?:正解|正しい|答え)(?:です)?",
    r"\s*(?:이|가)\s*(?:정답|맞)\w*",
)
IS_CORRECT = _compiled("|".join(_CORRECT_AFTER))
"""What follows the answer instead of going before it."""

DENIED_AFTER = _compiled(
    r"\s*(?:(?:is|are)\s+(?:not|wrong|incorrect|false)\b|isn't\b|ではな|じゃな|(?:이|가|은|는)?\s*아니|değil\b|नहीं|不对|不正确|是错|错)"
)
"""What follows a choice that is ruled out."""

DENIED_BEFORE = _compiled(
    r"\b(?:neither|nor|not|only if|if|whether|nicht|pas|no|não|non|не)\s+(?:the\s+|la\s+)?(?:option|choice)?\s*\Z|不\Z"
)
"""What stands before a choice of which nothing is claimed."""

NO_CHOICE = _compiled(
    r"\s*(?:none of|neither|both|all of|unknown|unclear|undetermined|not (?:given|listed)|impossible|aucune?\b|"
    r"ninguna?\b|keine\b|nessuna\b|nenhuma\b|ни один|都不|以上都|どれも|없)"
)
"""An answer that names no single choice."""

OPTION_WORDS = (
    r"(?:option|choice|letter|buchstabe|optie|opción|letra|lettre|proposition|opção|alternativa|"
    r"opzione|lettera|вариант|буква|opcja|seçenek|lựa chọn|phương án|pilihan|ตัวเลือก|ข้อ|الخيار|الحرف|विकल्प|गزینه|"
    r"选项|選項|選択肢|보기|선택지)"
)

FILLER = _compiled(
    rf"[\s\"'«»„“”「」『』:=>·*(\[<#'-]|(?:{_COPULAS}|the|la|le|les|el|los|il|lo|gli|die|der|das|den|de|het|a|o|os|as|az|în|probably|likely|"
    r"most|more|clearly|definitely|therefore|thus|hence|simply|just|donc|pues|portanto|quindi|dunque|actually|surely|indeed|either|between|be|is|only|should|"
    rf"must|would|in|fact|number)(?!\w)|l'|{OPTION_WORDS}"
)
"""What may stand between "the answer is" and the answer."""

_OR = (
    r"or|and|nor|maybe|perhaps|possibly|alternatively|either|also|both|otherwise|but|as well as|"
    r"(?:it\s+)?(?:could|might|may)(?:\s+(?:also|even|well))*(?:\s+be)?|"
    r"bien|auch|anche|aussi|también|também|quizá|tal vez|возможно|может быть|belki|mungkin|"
    r"oder|und|vielleicht|ou|et|peut-être|o|u|y|e|quizás|oppure|forse|talvez|of|en|eller|och|или|и|або|lub|albo|i|nebo|ή|"
    r"veya|ya da|ve|hoặc|và|atau|dan|أو|أم|و|یا|או|या|और|বা"
)
JOINT = _compiled(
    rf"(?:[\s,;/|&+·•\"'«»()\[\]{{}}~、?-]|\.{{2,}}|\(?\d{{1,3}} ?%\)?|(?<![^\W\d_])(?:{_OR})(?![^\W\d_])|"
    r"也可能是|也可能|也有可能是|可能是|或者|或是|或|和|与|以及|及|または|もしくは|それとも|か|と|또는|혹은|이나|หรือ|และ)*"
)
"""What joins two answers to one that is left open."""

INSTEAD = _compiled(
    r"(?:[\s,;.、:-]|(?<!\w)(?:but|rather|instead|it's|it|is|so|sondern|sino|mais|mas|ma|а|но|lecz|ale)(?!\w)|而是|く|て|라|の|は)*"
)
"""What stands between a choice that is ruled out and the one that takes its place."""

SENTENCE_ENDS = _compiled(
    r"[)\]\"']*\s*(?:[.。!;,]?\s*(?:\n|\Z|\ue001)|[.。!;](?=\s|[^\x00-\x7f])|,?\s*(?:because|since|due to)\b|"
    r",\s+(?:not|while|whereas)\b|です|입니다)"
)
"""What stands after an answer that ends its sentence."""

CONDITION = _compiled(r"[)\]\"']*,?\s*(?:if|unless|otherwise|depending)(?!\w)|,?(?:如果|除非)")
"""What makes an answer one of several cases."""

BETWEEN = _compiled(
    r"(?:[\s.,;:!*#()\[\]{}\"'\ue000\ue001—–-]|(?<![^\W\d_])(?:or|and|so|the|thus|therefore|hence|final|correct|right|my|is|also|"
    r"maybe|perhaps|possibly|alternatively|la|le|die|el|bonne|richtige|correcta|正确|最终|最終)(?![^\W\d_]))*"
)
"""What stands between two statements that are made in one breath."""

BECAUSE = _compiled(
    r"\s*(?:[.。!,;:)\]}\ue001\n(-]|\Z|'(?!\w)|(?:because|since|as|for|due|which|that|based|given|so|and|with|is|was|by|weil|"
    r"da|denn|parce|car|porque|pois|perché|poiché|потому|так|है|است|'?[td][iıuü]r)(?![^\W\d_])|です|だ|で|입니다|이다|이에요|"
    r"ครับ|ค่ะ|因为|因為)"
)
"""What may follow the text of a choice when that text is the whole of the answer."""
