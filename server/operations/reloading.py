"""Credentials are read again when their files change: a renewed certificate needs no restart."""

import asyncio

import structlog

from dragoman.server.operations.metrics import Metrics
from dragoman.server.security.credentials import Credentials

__all__ = ["RELOAD_INTERVAL_S", "CredentialReloader"]

RELOAD_INTERVAL_S = 1.0
"""How often files are looked at. Looking takes microseconds, and finds also what no file system notifies of: a mounted
secret is replaced by a link to another folder."""

_log = structlog.get_logger(__name__)


class CredentialReloader:
    """Keeps `credentials` as their files are. In each front: fronts share nothing but the files."""

    def __init__(self, credentials: Credentials, metrics: Metrics) -> None:
        self._credentials = credentials
        self._metrics = metrics
        self._show_expiry()
        self._warn_of_permissions()

    async def run(self) -> None:
        """Look at the files until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_INTERVAL_S)
            self.reload()

    def reload(self, *, at_once: bool = False) -> None:
        """Take up what has changed; `at_once`: read all files. What is not right is not used, and logged."""
        for reload in self._credentials.reload(at_once=at_once):
            result = "ok" if reload.error is None else "failed"
            self._metrics.credential_reloads.labels(reload.kind, result).inc()
            if reload.error is not None:
                _log.error("credentials_not_reloaded", kind=reload.kind, error=str(reload.error))
                continue
            _log.info("credentials_reloaded", kind=reload.kind)
            self._show_expiry()
            self._warn_of_permissions()

    def _show_expiry(self) -> None:
        if (certificates := self._credentials.certificates) is not None:
            self._metrics.certificate_expiry.labels("server").set(certificates.expires_s)

    def _warn_of_permissions(self) -> None:
        for problem in self._credentials.loose_permissions():
            _log.warning("loose_permissions", problem=problem)
