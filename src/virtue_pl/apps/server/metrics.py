"""Counters of a server, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server.

    Args:
        queued_rows: returns the rows that are accepted and not answered yet.
        cached_images: returns the images whose features are cached.

    Example:
        >>> metrics = Metrics(lambda: 3, lambda: 0)
        >>> b"virtue_queued_rows 3.0" in metrics.to_text()
        True
    """

    def __init__(self, queued_rows: Callable[[], float], cached_images: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "virtue_requests", "Requests by path and status", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "virtue_request_seconds", "Seconds of a request", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.batch_rows = Histogram(
            "virtue_batch_rows", "Rows of a batch", ["task"], buckets=ROWS, registry=self.registry
        )
        self.batch_seconds = Histogram(
            "virtue_batch_seconds", "Seconds of a batch", ["task"], buckets=SECONDS, registry=self.registry
        )
        self.admitted = Counter("virtue_admitted_requests", "Requests for which there was room", registry=self.registry)
        self.tokens = Counter("virtue_tokens", "Tokens that the language model has read", registry=self.registry)
        queued = Gauge("virtue_queued_rows", "Rows accepted and not answered yet", registry=self.registry)
        queued.set_function(queued_rows)
        cached = Gauge("virtue_cached_images", "Images whose features are cached", registry=self.registry)
        cached.set_function(cached_images)

    def observe_batch(self, task: str, rows: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_rows.labels(task).observe(rows)
        self.batch_seconds.labels(task).observe(seconds)

    def observe_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request. path: of a route, so that there are only as many as routes."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def to_text(self) -> bytes:
        """Return all counters as text."""
        return generate_latest(self.registry)
