"""Which models a front has, by name."""

from collections.abc import Iterable, Sequence

from dragoman.server.errors import ModelNotFound
from dragoman.server.models.discovery import NotLoaded, log_not_loaded
from dragoman.server.models.served_model import ServedModel
from dragoman.server.operations.metrics import Metrics

__all__ = ["Registry", "announce_not_loaded"]


class Registry:
    """The models being served, one version of each name.

    Attributes:
        not_loaded: what lies in the models folder and is not served, by name and version.
    """

    def __init__(self, models: Iterable[ServedModel], not_loaded: Iterable[NotLoaded] = ()) -> None:
        self.not_loaded = tuple(sorted(not_loaded, key=lambda each: (each.name, each.version)))
        self._models = {model.name: model for model in sorted(models, key=lambda model: model.name)}

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model called `name`; `version` "" is whichever is served.

        Raises:
            ModelNotFound: listing what there is.
        """
        model = self._models.get(name)
        if model is None or version not in {"", model.version}:
            requested = f"{name}/{version}" if version else name
            available = [f"{each.name}/{each.version}" for each in self.models]
            raise ModelNotFound(requested, available, self._why_not(name, version))
        return model

    def _why_not(self, name: str, version: str) -> str:
        """What keeps the model from being served, if it is there."""
        for each in self.not_loaded:
            if each.name == name and (not version or each.version in {"", version}):
                return f"{each.description} ({each.reason})"
        return ""

    @property
    def models(self) -> Sequence[ServedModel]:
        """All models, by name."""
        return tuple(self._models.values())

    def __contains__(self, name: object) -> bool:
        return name in self._models


def announce_not_loaded(not_loaded: Sequence[NotLoaded], metrics: Metrics) -> None:
    """Count and log what lies in the models folder and is not served."""
    for each in not_loaded:
        metrics.models_not_loaded.labels(each.reason).inc()
    log_not_loaded(not_loaded)
