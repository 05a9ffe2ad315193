"""What a server counts, in Prometheus' terms; it knows no requests."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Meters"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Meters:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "ossicle_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self.active = Gauge(
            "ossicle_requests_active", "Requests that are being answered or wait for it.", registry=registry
        )
        self.waiting = Gauge(
            "ossicle_queue_length", "Answers that wait for their first token.", registry=registry
        )
        self.batch = Histogram(
            "ossicle_batch_rows",
            "Answers decoded side by side, by token.",
            buckets=_ROWS,
            registry=registry,
        )
        self.heard_together = Histogram(
            "ossicle_sounds_heard_together", "Sounds encoded in one batch.", buckets=_ROWS, registry=registry
        )
        self.first_token = Histogram(
            "ossicle_time_to_first_token_seconds",
            "From a streamed request's arrival to its first piece.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rate = Histogram(
            "ossicle_answer_tokens_per_second",
            "Tokens of an answer by the seconds from its first to its last.",
            buckets=_RATES,
            registry=registry,
        )
        self.tokens = Counter("ossicle_tokens", "Tokens read and said.", ["kind"], registry=registry)
        self.audio_s = Counter("ossicle_audio_seconds", "Sound that came in, in seconds.", registry=registry)
        self.heard_again = Counter(
            "ossicle_sounds_known",
            "Sounds that had been heard before and were not encoded again.",
            registry=registry,
        )

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
