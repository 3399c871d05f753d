"""Keeps what Elastic's agent would send; the agent imports it by its name."""

from __future__ import annotations

from typing import Any

from elasticapm.transport.base import Transport


class Kept(Transport):
    """Keeps transactions and spans, and starts no thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept: list[dict[str, Any]] = []

    def queue(self, event_type: str, data: Any, flush: bool = False) -> None:
        """Keep what is queued for sending."""
        if event_type in ("transaction", "span"):
            self.kept.append(data)

    def start_thread(self, pid: int | None = None) -> None:
        """Start nothing."""
