"""What the shell completes after `dragoman config` is written down twice, as reading the settings takes too long."""

import pytest

from dragoman.cli.config import _SECTIONS, Subject
from dragoman.common.settings import Settings
from dragoman.common.settings_reference import sections_of
from dragoman.model.recipe import Recipe
from dragoman.server.config import ServerSettings


@pytest.mark.parametrize(("subject", "settings"), [("server", ServerSettings), ("recipe", Recipe)])
def test_the_completed_sections_are_those_of_the_settings(subject: str, settings: type[Settings]) -> None:
    names = dict.fromkeys(section.name for section in sections_of(settings) if section.name)
    assert _SECTIONS[subject] == tuple(names)


def test_every_subject_has_sections() -> None:
    assert set(_SECTIONS) == {subject.value for subject in Subject}
