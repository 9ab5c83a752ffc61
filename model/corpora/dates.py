"""The `dates` corpus: dates as people write them, in many languages, to ISO 8601. Made here, no download.

A source determines its target: `date_forms` says how ambiguous spellings are told apart. The splits share no
day: a stable hash of the day decides where it belongs, so that a test date was never seen in any language.
"""

import datetime as dt
import itertools
import random
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from dragoman.model.corpora.corpus import Corpus, Pair, stable_share
from dragoman.model.corpora.date_forms import LOCALES, TWO_DIGIT_YEARS, Form, locale_forms
from dragoman.model.corpora.settings import DatesSettings

__all__ = ["STYLES", "make_dates", "restyle", "spellings", "split_of"]

Split = Literal["train", "validation", "test"]
Style = Literal["as_is", "lower", "upper", "capitalised", "plain"]

# How a date is typed, with how often.
STYLES: Final[dict[Style, float]] = {
    "as_is": 0.6,
    "lower": 0.18,
    "upper": 0.1,
    "capitalised": 0.06,
    "plain": 0.06,  # without diacritics, as on a foreign keyboard
}
_SHARE_RECENT: Final = 0.6  # of the days drawn, besides what falls there anyway: most dates people write
_SHARE_TAGGED: Final = 0.1  # of the spellings that need no tag: a tag is never wrong


def make_dates(settings: DatesSettings, seed: int) -> Corpus[Pair]:
    """Make the three splits; the same settings, seed and release of Babel give the same pairs.

    Raises:
        CorpusError: the years are too few for a split to hold a day.
    """
    first, last = dt.date(settings.first_year, 1, 1), dt.date(settings.last_year, 12, 31)
    days: dict[Split, list[dt.date]] = {"train": [], "validation": [], "test": []}
    for ordinal in range(first.toordinal(), last.toordinal() + 1):
        day = dt.date.fromordinal(ordinal)
        days[split_of(day)].append(day)

    def pairs(split: Split, count: int) -> Sequence[Pair]:
        if not days[split]:
            return ()
        return list(itertools.islice(_draw(days[split], random.Random(f"{seed} {split}")), count))  # noqa: S311

    return Corpus(
        "dates",
        train=pairs("train", settings.num_train),
        validation=pairs("validation", settings.num_validation),
        test=pairs("test", settings.num_test),
    )


def split_of(day: dt.date) -> Split:
    """90 % of all days are for training, 5 % for validation, 5 % for the test; never changes."""
    share = stable_share(f"dates {day.toordinal()}")
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def spellings(form: Form, day: dt.date) -> Iterator[str]:
    """Everything the generator can make of a form and a day."""
    for style in STYLES:
        text = restyle(form.write(day), style, form.tag)
        yield f"{form.tag}: {text}"
        if not form.needs_tag(day):
            yield text


def restyle(text: str, style: Style, tag: str) -> str:
    """`text` as typed in `style`, by the rules of the tag's language."""
    match style:
        case "as_is":
            return text
        case "lower":
            return text.lower()
        case "upper":
            return _upper(text, tag)
        case "capitalised":
            return _upper(text[0], tag) + text[1:]
        case "plain":
            return _without_diacritics(text, tag)


def _upper(text: str, tag: str) -> str:
    if tag == "tr":
        text = text.replace("i", "İ")
    if tag == "el":  # capitals carry no accent
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).replace("\u0301", ""))
    return text.upper()


def _without_diacritics(text: str, tag: str) -> str:
    text = text.replace("ʼ", "'").replace("ı", "i")
    if tag in {"ja", "ko", "ru", "uk", "zh"}:  # what decomposes there are letters of their own
        return text
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


def _draw(days: Sequence[dt.date], rng: random.Random) -> Iterator[Pair]:
    """Endless pairs of the days given: every locale as likely as the other, and every pattern within it."""
    recent = [day for day in days if day.year in TWO_DIGIT_YEARS] or days
    patterns = [
        [(forms, list(itertools.accumulate(form.weight for form in forms))) for forms in locale_forms(tag)]
        for tag in LOCALES
    ]
    styles, style_weights = list(STYLES), list(itertools.accumulate(STYLES.values()))
    while True:
        day = rng.choice(recent if rng.random() < _SHARE_RECENT else days)
        forms, weights = rng.choice(rng.choice(patterns))
        (form,) = rng.choices(forms, cum_weights=weights)
        if not form.fits(day):
            continue
        (style,) = rng.choices(styles, cum_weights=style_weights)
        text = restyle(form.write(day), style, form.tag)
        is_tagged = form.needs_tag(day) or rng.random() < _SHARE_TAGGED
        yield Pair(f"{form.tag}: {text}" if is_tagged else text, day.isoformat())
