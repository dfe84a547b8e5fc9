"""What a server tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0)
_REAL_TIME = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """Of one server. Safe to use from any thread."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"mtsk_{name}", text, buckets=buckets, registry=registry)

        self.requests = Counter(
            "mtsk_requests", "Answers, by route and status.", ["route", "status"], registry=registry
        )
        self.running = Gauge(
            "mtsk_requests_running", "Requests of which the model has read something.", registry=registry
        )
        self.waiting = Gauge("mtsk_requests_waiting", "Requests that wait for the model.", registry=registry)
        self.rejections = Counter("mtsk_rejections", "Requests refused, by reason.", ["reason"], registry=registry)
        self.degradations = Counter("mtsk_degradations", "Requests read coarser than asked.", registry=registry)
        self.cancellations = Counter(
            "mtsk_cancellations", "Requests given up, by reason.", ["reason"], registry=registry
        )
        self.scales = Counter("mtsk_requests_by_scale", "Requests, by the scale chosen.", ["scale"], registry=registry)
        self.level = Gauge("mtsk_degradation_level", "Steps that new requests are read coarser.", registry=registry)
        self.wait = Gauge("mtsk_predicted_wait_seconds", "Predicted wait of a new request.", registry=registry)
        self.tokens = Counter("mtsk_llm_tokens", "LLM tokens that media became.", registry=registry)
        self.flops = Counter("mtsk_tflops", "10^12 operations of what was recognised.", registry=registry)
        self.audio = Counter("mtsk_media_seconds", "Seconds of recordings transcribed.", registry=registry)
        self.first_text = histogram("time_to_first_text_seconds", "From the upload's end to the first text.", _SECONDS)
        self.latency = histogram("latency_seconds", "From the upload's end to the last text.", _SECONDS)
        self.queued = histogram("queue_seconds", "From the upload's end until the model begins.", _SECONDS)
        self.real_time_factor = histogram("real_time_factor", "Latency over the recording's duration.", _REAL_TIME)
        self.batch = histogram("batch_segments", "Segments read together.", (1, 2, 3, 4, 6, 8, 12, 16, 32))

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        return generate_latest(self.registry)
