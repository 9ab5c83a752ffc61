import datetime as dt
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import babel.dates
import pytest

from dragoman.model.corpora.corpus import Corpus, Pair
from dragoman.model.corpora.date_forms import LOCALES, TWO_DIGIT_YEARS, Form, locale_forms
from dragoman.model.corpora.dates import make_dates, restyle, spellings, split_of
from dragoman.model.corpora.settings import DatesSettings
from dragoman.model.recipe import load_recipe
from dragoman.model.tokenizer import train_tokenizer


@functools.cache
def corpus() -> Corpus[Pair]:
    recipe = load_recipe("dates")
    assert isinstance(recipe.corpus, DatesSettings)
    return make_dates(recipe.corpus, recipe.seed)


def forms(tag: str) -> Iterator[Form]:
    return itertools.chain.from_iterable(locale_forms(tag))


def untagged(source: str) -> tuple[str | None, str]:
    tag, colon, text = source.partition(": ")
    return (tag, text) if colon else (None, source)


def test_at_least_twenty_languages() -> None:
    assert len({tag.split("-")[0] for tag in LOCALES}) >= 20


def folded(texts: Iterable[str]) -> list[str]:
    """The texts without what the recipe's tokenizer folds away (case, accents), so as the model sees them."""
    tokenizer = train_tokenizer(load_recipe("dates").tokenizer, ["1 May 2024"], "translation")
    normalizer = tokenizer.normalizer
    assert normalizer is not None
    return [str(normalizer.normalize_str(text)) for text in texts]


def assert_one_target(sources: Sequence[str], targets: Sequence[str]) -> None:
    known: dict[str, str] = {}
    for source, target in zip(sources, targets, strict=True):
        assert known.setdefault(source, target) == target, (source, target)


def test_no_source_of_the_corpus_has_two_targets() -> None:
    pairs = [*corpus().train, *corpus().validation, *corpus().test]
    sources, targets = [pair.source for pair in pairs], [pair.target for pair in pairs]
    assert_one_target(sources, targets)
    assert_one_target(folded(sources), targets)


def test_no_spelling_of_any_form_in_any_style_has_two_readings() -> None:
    """All forms, styles and tags, on days whose day, month and year can be taken for each other."""
    numbers = (1, 3, 12)
    days = [dt.date(2000 + y, m, d) for y, m, d in itertools.product(numbers, numbers, numbers)]
    days += [dt.date(2011, 11, 10), dt.date(2011, 10, 11), dt.date(1911, 10, 11), dt.date(2025, 2, 1)]
    days += [dt.date(2013, 12, 25), dt.date(2025, 12, 13), dt.date(2012, 12, 31), dt.date(2031, 12, 12)]
    meanings: dict[str, dt.date] = {}
    for tag in LOCALES:
        for form in forms(tag):
            for day in days:
                if form.fits(day):
                    for text in spellings(form, day):
                        assert meanings.setdefault(text, day) == day, (text, tag)
    assert len(meanings) > 100_000
    assert_one_target(folded(meanings), [day.isoformat() for day in meanings.values()])


def readings(text: str) -> set[dt.date]:
    """Every day an all-numeric date with a four-digit year means somewhere; knows no forms."""
    separator = r"([/.-]) ?"
    year_last = re.search(rf"(?<!\d)(\d{{1,2}}){separator}(\d{{1,2}}){separator}(\d{{4}})(?!\d)", text)
    year_first = re.search(rf"(?<!\d)(\d{{4}}){separator}(\d{{1,2}}){separator}(\d{{1,2}})(?!\d)", text)
    orders: list[tuple[int, int, int]] = []
    if year_first:
        orders.append((int(year_first[1]), int(year_first[3]), int(year_first[5])))
    if year_last:
        first, second, year = int(year_last[1]), int(year_last[3]), int(year_last[5])
        orders.append((year, second, first))
        if year_last[2] != ".":  # no locale writes dots with the month first, see the next test
            orders.append((year, first, second))
    days = set()
    for year, month, day in orders:
        try:
            days.add(dt.date(year, month, day))
        except ValueError:
            continue
    return days


def test_an_untagged_numeric_date_can_be_read_in_one_way_only() -> None:
    num_checked = 0
    for pair in corpus().train:
        tag, text = untagged(pair.source)
        if tag is None and re.search(r"\d[/.-] ?\d{1,2}[/.-]", text):
            assert readings(text) == {dt.date.fromisoformat(pair.target)}, pair
            num_checked += 1
    assert num_checked > 1_000


def test_a_numeric_date_with_a_two_digit_year_is_always_tagged() -> None:
    for pair in corpus().train:
        tag, text = untagged(pair.source)
        if re.search(r"(?<!\d)\d{1,2}[/.-] ?\d{1,2}[/.-] ?\d{1,2}(?!\d)", text):
            assert tag in LOCALES, pair


def test_cldr_writes_dots_with_the_day_first_or_the_year_first_only() -> None:
    for tag in LOCALES:
        for style in ("short", "medium"):
            pattern = babel.dates.get_date_format(style, locale=tag.replace("-", "_")).pattern
            if re.search(r"M\.", pattern) or re.search(r"d\.", pattern):
                assert not re.match(r"M", pattern), (tag, pattern)


def test_a_tag_gives_one_order_of_numbers() -> None:
    for tag in LOCALES:
        orders = {form.order for form in forms(tag) if form.separator}
        assert len(orders) == 1, (tag, orders)


@pytest.mark.parametrize("style", ["full", "long", "medium", "short"])
def test_forms_hold_what_babel_itself_writes(style: str) -> None:
    for day in (dt.date(2024, 3, 5), dt.date(1999, 12, 31)):
        for tag in LOCALES:
            expected = babel.dates.format_date(day, style, locale=tag.replace("-", "_"))
            written = {form.write(day) for form in forms(tag) if form.fits(day)}
            assert re.sub(r"\s", " ", expected) in written, tag


def test_splits_share_no_day() -> None:
    days = [{pair.target for pair in split} for split in (corpus().train, corpus().validation, corpus().test)]
    assert all(not a & b for a, b in itertools.combinations(days, 2))
    for name, targets in zip(("train", "validation", "test"), days, strict=True):
        assert {split_of(dt.date.fromisoformat(target)) for target in targets} == {name}


def test_the_split_of_a_day_never_changes() -> None:
    """Fixed values: a change would let published test dates leak into training."""
    january = [dt.date(2024, 1, 1 + n) for n in range(31)]
    held_out = {day.day: split_of(day) for day in january if split_of(day) != "train"}
    assert held_out == {
        2: "validation",
        3: "validation",
        8: "test",
        16: "test",
        22: "validation",
        25: "validation",
        27: "validation",
        29: "test",
    }
    assert split_of(dt.date(2024, 1, 1)) == "train"


def test_targets_are_valid_days_within_the_years_and_sources_say_the_weekday_rightly() -> None:
    english = {name.lower(): n for n, name in babel.dates.get_day_names(locale="en").items()}
    for pair in list(corpus().train)[:20_000]:
        day = dt.date.fromisoformat(pair.target)
        assert 1600 <= day.year <= 2199
        for word in re.findall(r"[a-z]+day", pair.source.lower()):
            assert english[word] == day.weekday()


def test_two_digit_years_mean_the_documented_window() -> None:
    assert (TWO_DIGIT_YEARS[0], TWO_DIGIT_YEARS[-1]) == (1950, 2049)
    for form in itertools.chain.from_iterable(forms(tag) for tag in LOCALES):
        assert form.fits(dt.date(1950, 1, 1))
        assert form.fits(dt.date(2049, 12, 31))
        assert form.fits(dt.date(1949, 12, 31)) != form.short_year
        assert form.fits(dt.date(2050, 1, 1)) != form.short_year


def test_all_that_can_vary_varies() -> None:
    text = "\n".join(pair.source for pair in corpus().train)
    for sample in (
        r"\d(st|nd|rd|th) of ",  # ordinals
        r"1er ",
        r"'\d\d\n",  # two-digit years
        r"[A-Z]{5}",  # capitals
        r"\n[a-z]{6,}day",
        r"(?m)^0\d ",  # leading zeros, and none
        r"(?m)^[1-9] ",
        r"марта|март ",  # declined and as it stands alone
        r"年\d+月\d+日",
        r"\d\.\d+\.\d{4}",
        r"fevrier|aout|decembre",  # without diacritics
    ):
        assert re.search(sample, text), sample


@pytest.mark.parametrize(
    ("text", "style", "tag", "expected"),
    [
        ("3 Nisan 2024", "upper", "tr", "3 NİSAN 2024"),
        ("5 Μαρτίου 2024", "upper", "el", "5 ΜΑΡΤΙΟΥ 2024"),
        ("1er août 2024", "plain", "fr", "1er aout 2024"),
        ("5 Kasım 2024", "plain", "tr", "5 Kasim 2024"),
        ("5 мая 2024 й", "plain", "ru", "5 мая 2024 й"),
        ("mardi 5 mars", "capitalised", "fr", "Mardi 5 mars"),
    ],
)
def test_styles_follow_the_language(text: str, style: str, tag: str, expected: str) -> None:
    assert restyle(text, style, tag) == expected  # type: ignore[arg-type]


def test_the_seed_decides() -> None:
    settings = DatesSettings(kind="dates", num_train=500, num_validation=10, num_test=10)
    assert make_dates(settings, 1) == make_dates(settings, 1)
    assert make_dates(settings, 1).train != make_dates(settings, 2).train


def test_one_year_is_enough() -> None:
    settings = DatesSettings(
        kind="dates", num_train=100, num_validation=10, num_test=10, first_year=1888, last_year=1888
    )
    made = make_dates(settings, 1)
    assert {pair.target[:4] for pair in (*made.train, *made.validation, *made.test)} == {"1888"}
