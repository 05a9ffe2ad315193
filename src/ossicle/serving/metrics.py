"""The Prometheus metrics of one server; it knows no requests."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

__all__ = ["CONTENT_TYPE", "Metrics"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "ossicle_requests",
            "Finished requests, by path and status.",
            ["path", "status"],
            registry=registry,
        )
        self.active = Gauge(
            "ossicle_requests_active", "Requests that wait or are being answered.", registry=registry
        )
        self.sessions = Gauge(
            "ossicle_realtime_sessions", "Open sessions of the Realtime protocol.", registry=registry
        )
        self.waiting = Gauge(
            "ossicle_queue_length", "Completions that wait for room in the decoding batch.", registry=registry
        )
        self.decode_batch_size = Histogram(
            "ossicle_decode_batch_size",
            "Completions in one decoding step.",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self.audio_batch_size = Histogram(
            "ossicle_audio_batch_size",
            "Sounds in one encoder batch.",
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self.first_token = Histogram(
            "ossicle_time_to_first_token_seconds",
            "Time from the arrival of a streamed request to its first chunk.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.output_tokens_per_s = Histogram(
            "ossicle_output_tokens_per_second",
            "Decoding speed of a completion, from its first token to its last.",
            buckets=_RATES,
            registry=registry,
        )
        self.tokens = Counter(
            "ossicle_tokens",
            "Tokens of finished completions, by kind: text and audio tokens of prompts, output tokens.",
            ["kind"],
            registry=registry,
        )
        self.audio_s = Counter("ossicle_audio_seconds", "Seconds of audio received.", registry=registry)
        self.audio_cache_hits = Counter(
            "ossicle_audio_cache_hits",
            "Sounds whose audio tokens were cached, so that they were not encoded again.",
            registry=registry,
        )

    def count_requests(self) -> tuple[int, int]:
        """Returns the number of finished requests, and of those that failed here, with a status from 500."""
        counts = [
            (sample.labels["status"], int(sample.value))
            for metric in self.requests.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        ]
        return sum(n for _, n in counts), sum(n for status, n in counts if status >= "500")

    def to_text(self) -> bytes:
        """Returns all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
