"""Which version of a model a call gets: pure, the same in every front.

A call names a version by its number, by an alias, or not at all. Without a version, a call goes where the shares of
the aliases send it: an alias with a share of 10 percent gets 10 of 100 such calls. The rest of these calls goes to the
highest version to which no alias with a share points.
"""

import hashlib
import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

__all__ = ["MAX_ALIAS_CHARACTERS", "Alias", "Routes", "alias_problem", "version_order"]

MAX_ALIAS_CHARACTERS = 64

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
_WHOLE_PERCENT = 100.0
_DIGEST_BYTES = 7
"""As many bits as a float holds, and three more."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a version.

    Attributes:
        version: the version that the alias names.
        traffic_percent: share of the calls without a version that this version gets for the alias.
    """

    version: str
    traffic_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Routes:
    """The aliases of one model, by name."""

    aliases: Mapping[str, Alias] = field(default_factory=dict)

    def choose(
        self, requested: str, served: Collection[str], model: str, sticky_key: str | None
    ) -> str | None:
        """The version of a call, or None where no version fits.

        Args:
            requested: what the call says: a number, an alias or "".
            served: numbers of the versions that take calls.
            model: the model's name. One key may fall to an alias of one model and not to that of another.
            sticky_key: calls with the same key get the same version as long as shares and versions stay the same;
                None: each call is drawn anew.
        """
        if requested in served:
            return requested
        if alias := self.aliases.get(requested):
            return alias.version if alias.version in served else None
        if requested or not served:
            return None
        shares = [each for _, each in sorted(self.aliases.items()) if each.traffic_percent > 0]
        shares = [each for each in shares if each.version in served]
        if shares:
            fraction = random.random() if sticky_key is None else _fraction(model, sticky_key)  # noqa: S311  no secret
            point = _WHOLE_PERCENT * fraction
            for each in shares:
                if point < each.traffic_percent:
                    return each.version
                point -= each.traffic_percent
        return max(set(served) - {each.version for each in shares} or served, key=version_order)

    @property
    def versions(self) -> frozenset[str]:
        """The versions that aliases name."""
        return frozenset(alias.version for alias in self.aliases.values())

    def names_of(self, version: str) -> list[str]:
        """The aliases of `version`, sorted."""
        return sorted(name for name, alias in self.aliases.items() if alias.version == version)


def alias_problem(name: str) -> str | None:
    """What keeps `name` from being an alias, or None. An alias is never a number: that is a version."""
    if len(name) > MAX_ALIAS_CHARACTERS:
        return f"an alias has at most {MAX_ALIAS_CHARACTERS} characters"
    if not _ALIAS.fullmatch(name):
        return "an alias begins with a letter from A to Z; letters, digits, '.', '_' and '-' follow"
    return None


def version_order(version: str) -> tuple[int, str]:
    """A key that sorts versions by their numbers. A bundle used without a server may lie in a folder without one."""
    return (int(version), version) if version.isascii() and version.isdecimal() else (-1, version)


def _fraction(model: str, key: str) -> float:
    """A number from 0 up to 1 that depends on the two texts alone: the same in every process."""
    digest = hashlib.blake2b(f"{model}\0{key}".encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES)
    return int.from_bytes(digest.digest()) / 256.0**_DIGEST_BYTES
