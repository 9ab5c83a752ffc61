"""The forms a date takes in a language: CLDR's patterns (Unicode TR 35, part 4) and what people make of them.

A pattern such as `EEEE, d. MMMM y` becomes many forms: with and without the comma, `5.` and `05.`, the month
declined and as it stands alone, four digits of the year or two. A form is a row of literals and of tables
looked up by day, month, weekday and year, so that writing a date takes microseconds.

Which day an all-numeric date means depends on where it was written. Such a spelling carries its locale's tag
(`en-US: 3/4/05`) unless it can be read in one way only: see `Form.needs_tag`.
"""

import dataclasses
import datetime as dt
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from babel import Locale

__all__ = ["LOCALES", "TWO_DIGIT_YEARS", "Form", "locale_forms"]

# Two digits mean the year within this window, as one reads a birthday today: 50 is 1950, 49 is 2049.
TWO_DIGIT_YEARS: Final = range(1950, 2050)

# Spellings that are common but not among CLDR's patterns; `o` stands for the day as an ordinal.
_FURTHER_PATTERNS: Final[dict[str, tuple[str, ...]]] = {
    "en-US": ("MMMM o, y", "EEEE, MMMM o, y", "MMM o y", "d MMM y", "dd-MMM-y", "o 'of' MMMM, y"),
    "en-GB": ("o MMMM y", "'the' o 'of' MMMM, y", "EEEE, o 'of' MMMM y", "o MMM y", "dd-MMM-y", "MMMM d, y"),
    "cs": (),
    "da": ("'den' d. MMMM y",),
    "de": ("'den' d. MMMM y", "EEEE, 'den' d. MMMM y", "'am' d. MMM y"),
    "el": ("o MMMM y", "EEEE, d MMMM y"),
    "es": ("d MMMM y", "'el' d 'de' MMMM 'de' y", "EEEE d 'de' MMMM 'del' y"),
    "fi": (),
    "fr": ("'le' o MMMM y", "EEEE o MMMM y", "o MMM y"),
    "hu": (),
    "it": ("o MMMM y", "'il' d MMMM y", "EEEE o MMMM y"),
    "ja": (),
    "ko": (),
    "nl": ("EEEE, d MMMM y",),
    "pl": ("d MMMM y 'r'.", "EEEE, d MMMM y 'r'."),
    "pt": ("o 'de' MMMM 'de' y", "d MMMM y", "EEEE, d 'de' MMMM, y"),
    "ro": (),
    "ru": ("d MMMM y", "EEEE, d MMMM y", "o MMMM y", "d MMM y"),
    "sv": ("'den' d MMMM y", "EEEE 'den' d MMMM y"),
    "tr": (),
    "uk": ("d MMMM y", "EEEE, d MMMM y", "o MMMM y", "d MMM y"),
    "zh": (),
}
LOCALES: Final = tuple(_FURTHER_PATTERNS)

_ORDINALS: Final[dict[str, Callable[[int], str]]] = {
    "el": lambda n: f"{n}η",
    "en": lambda n: f"{n}{'th' if 10 < n < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}",
    "fr": lambda n: "1er" if n == 1 else str(n),
    "it": lambda n: "1º" if n == 1 else str(n),
    "pt": lambda n: "1º" if n == 1 else str(n),
    "ru": lambda n: f"{n}-го",
    "uk": lambda n: f"{n}-го",
}

_APOSTROPHE_YEARS: Final = {"de", "en", "it", "nl"}  # languages that write '24
_SKELETONS: Final = ("yMd", "yMEd", "yMMMd", "yMMMEd", "yMMMMd", "yMMMMEEEEd")
_TOKEN: Final = re.compile(r"'(?P<quoted>[^']*)'|(?P<field>([a-zA-Z])\3*)|(?P<literal>[^a-zA-Z']+)")
_PLAIN: Final = tuple(str(n) for n in range(100))
_PADDED: Final = tuple(f"{n:02d}" for n in range(100))
_DAY, _MONTH, _WEEKDAY, _CENTURY, _YEAR = range(5)


class _Lookup(NamedTuple):
    field: int
    table: tuple[str, ...]


_Parts = tuple[str | _Lookup, ...]
_Choices = list[tuple[_Parts, float]]  # what may stand in one place, with weights


@dataclasses.dataclass(frozen=True)
class Form:
    """One way to write any date.

    Attributes:
        tag: BCP 47 tag of the locale that writes so.
        parts: literals and lookups, in the order of writing.
        order: day, month and year in the order of writing, e.g. `dMy`.
        separator: what stands between the numbers of an all-numeric form; empty where the month has a name
            or each number has its mark (`3月5日`).
        short_year: the year has two digits.
        weight: how often it is chosen among the forms of its pattern.
    """

    tag: str
    parts: _Parts
    order: str
    separator: str
    short_year: bool
    weight: float

    def write(self, day: dt.date) -> str:
        """The date in this form, untagged."""
        century, year = divmod(day.year, 100)
        numbers = (day.day, day.month, day.weekday(), century, year)
        return "".join([p if isinstance(p, str) else p.table[numbers[p.field]] for p in self.parts])

    def fits(self, day: dt.date) -> bool:
        """Whether the form says which century `day` is in."""
        return not self.short_year or day.year in TWO_DIGIT_YEARS

    def needs_tag(self, day: dt.date) -> bool:
        """Whether what `write` gives is another day, or may be, somewhere else."""
        if not self.separator:
            return False
        if self.short_year:
            return True  # any of the three numbers may be the year
        if self.order == "yMd":
            return False  # nobody writes y-d-M
        if self.separator == "." and self.order == "dMy":
            return False  # dots are written where the day comes first
        return day.day <= 12 and day.day != day.month


@functools.cache
def locale_forms(tag: str) -> tuple[tuple[Form, ...], ...]:
    """All forms of a locale, grouped by the pattern they come from."""
    locale = Locale.parse(tag, sep="-")
    return tuple(tuple(_variants(locale, tag, pattern)) for pattern in dict.fromkeys(_patterns(locale, tag)))


def _patterns(locale: Locale, tag: str) -> Iterator[str]:
    named = [locale.date_formats[width].pattern for width in ("full", "long", "medium", "short")]
    skeletons = [locale.datetime_skeletons[s].pattern for s in _SKELETONS if s in locale.datetime_skeletons]
    numeric = [re.sub(r"(?<=\w)[/.-] ?(?=\w)", separator, named[-1]).rstrip(". ") for separator in "/-"]
    for pattern in [*named, *skeletons, *_FURTHER_PATTERNS[tag], *numeric]:
        yield re.sub(r"\s", " ", pattern).replace("yy", "y")  # no-break spaces are for typesetting


def _variants(locale: Locale, tag: str, pattern: str) -> Iterator[Form]:
    """Every combination of what can vary in `pattern`."""
    unquoted = re.sub(r"'[^']*'", "", pattern)
    order = re.sub(r"[^dMy]|(.)(?=\1)", "", unquoted.replace("o", "d").replace("L", "M"))
    is_numeric = re.search(r"(?<!M)MM?(?![M月])", unquoted)
    separator = re.findall(r"[dMy]([/.-])", unquoted)[0] if is_numeric else ""
    # With the year first, two digits look like a day: only a mark (24年) or a tag tells them apart.
    may_shorten = bool(separator) or order.endswith("y") or bool(re.search("y[年년]", unquoted))
    places = [_choices(locale, token, is_numeric=bool(separator)) for token in _TOKEN.finditer(pattern)]
    seen = set()
    for combination in itertools.product(*places):
        parts = tuple(itertools.chain.from_iterable(choice for choice, _ in combination))
        short_year = not any(isinstance(part, _Lookup) and part.field == _CENTURY for part in parts)
        if parts not in seen and (may_shorten or not short_year):
            seen.add(parts)
            weight = math.prod(weight for _, weight in combination)
            yield Form(tag, parts, order, separator, short_year, weight)


def _choices(locale: Locale, token: re.Match[str], *, is_numeric: bool) -> _Choices:
    """What may stand for one token of a pattern, the pattern's own choice first and heaviest."""
    field = token["field"]
    if field is None:
        text = token["literal"] or token["quoted"]
        droppable = not is_numeric and text in {", ", ". "}  # "March 5 2024", "5 März 2024"
        return [((text,), 3), ((" ",), 1)] if droppable else [((text,), 1)]
    match field:
        case "y":
            long, short = (_Lookup(_CENTURY, _PADDED), _Lookup(_YEAR, _PADDED)), _Lookup(_YEAR, _PADDED)
            has_apostrophe = locale.language in _APOSTROPHE_YEARS and not is_numeric
            apostrophe: _Choices = [(("'", short), 0.3)] if has_apostrophe else []
            return [(long, 4), ((short,), 1), *apostrophe]
        case "d" | "M":
            number = _DAY if field == "d" else _MONTH
            return [((_Lookup(number, _PLAIN),), 3), ((_Lookup(number, _PADDED),), 1)]
        case "dd" | "MM":
            number = _DAY if field == "dd" else _MONTH
            return [((_Lookup(number, _PADDED),), 3), ((_Lookup(number, _PLAIN),), 1)]
        case "o":
            ordinal = _ORDINALS[locale.language]
            return [((_Lookup(_DAY, tuple(ordinal(n) for n in range(32))),), 1)]
        case _:
            return [((lookup,), weight) for lookup, weight in _names(locale, field)]


def _names(locale: Locale, field: str) -> Iterator[tuple[_Lookup, float]]:
    """Months and weekdays, as declined in a date, as they stand alone, and without an abbreviation's dot."""
    kind, number, names = {
        "M": ("format", _MONTH, locale.months),
        "E": ("format", _WEEKDAY, locale.days),
        "c": ("stand-alone", _WEEKDAY, locale.days),
    }[field[0]]
    width = "wide" if len(field) == 4 else "abbreviated"
    other = "stand-alone" if kind == "format" else "format"
    for context, weight in ((kind, 6.0), (other, 1.0)):
        by_number = names[context][width]
        table = tuple(by_number.get(n, "") for n in range(max(by_number) + 1))
        yield _Lookup(number, table), weight
        yield _Lookup(number, tuple(name.removesuffix(".") for name in table)), weight / 3
