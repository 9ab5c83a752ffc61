"""SIGHUP: settings are read again, and what can change in a running server does. One log line says what did.

Whatever can change is registered by its owner, with the keys of the settings that it goes by:

    reloader.register("log level", use_level, keys={"logging.level"})
    reloader.register("credentials", read_files)  # each time: files may have changed
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import structlog

from dragoman.common.errors import DragomanError
from dragoman.common.settings import Settings
from dragoman.server.config import ServerSettings

__all__ = ["Reloader", "changed_keys"]

Apply = Callable[[ServerSettings], object]
"""Takes up settings. It must not fail: what can be wrong with a setting is found when it is read."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    apply: Apply
    keys: frozenset[str]


class Reloader:
    """The settings that a server goes by, and what of them can change while it runs.

    Attributes:
        settings: with what was reloaded. Other keys stay as they were at the start, whatever the file says.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._parts: list[_Part] = []

    def register(self, name: str, apply: Apply, *, keys: Collection[str] = ()) -> None:
        """Have `apply` called with new settings when one of `keys` (`section.key`) has changed; without keys always."""
        self._parts.append(_Part(name, apply, frozenset(keys)))

    def reload(self, read: Callable[[], ServerSettings]) -> None:
        """Take up what `read` returns. Where it raises, or its settings do not fit together, nothing changes."""
        try:
            wanted = read()
            changed = changed_keys(self.settings, wanted)
            reloadable = frozenset().union(*(part.keys for part in self._parts))
            settings = _merged(self.settings, wanted, changed & reloadable)
        except DragomanError as error:
            _log.error("not_reloaded", error=str(error))
            return
        self.settings = settings
        parts = [part for part in self._parts if not part.keys or part.keys & changed]
        for part in parts:
            part.apply(settings)
        _log.info(
            "reloaded",
            parts=[part.name for part in parts],
            changed=sorted(changed & reloadable),
            needs_restart=sorted(changed - reloadable),
        )


def changed_keys(before: ServerSettings, after: ServerSettings) -> frozenset[str]:
    """The keys, as `section.key`, whose values differ."""
    return frozenset(
        f"{section}.{key}"
        for section in type(before).model_fields
        for key in type(getattr(before, section)).model_fields
        if getattr(getattr(before, section), key) != getattr(getattr(after, section), key)
    )


def _merged(settings: ServerSettings, wanted: ServerSettings, keys: Collection[str]) -> ServerSettings:
    """`settings` with the values that `keys` have in `wanted`.

    Raises:
        SettingsError: these do not fit those that stay.
    """
    sections: dict[str, Settings] = {name: getattr(settings, name) for name in type(settings).model_fields}
    for dotted in keys:
        section, _, key = dotted.partition(".")
        value: Any = getattr(getattr(wanted, section), key)
        sections[section] = sections[section].model_copy(update={key: value})
    values = {name: each.model_dump() for name, each in sections.items()}
    return ServerSettings.load(values, source="settings that can change without a restart")
