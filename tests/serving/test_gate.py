"""Who may pass, and how often."""

from hypothesis import given
from hypothesis import strategies as st

from mtsk.serving.gate import Keys, RateLimiter


def test_keys() -> None:
    keys = Keys(["one", "zwei ä"])
    assert keys.owner_of("Bearer one") != keys.owner_of("bearer zwei ä")
    assert "one" not in str(keys.owner_of("Bearer one"))
    for wrong in (None, "", "one", "Basic one", "Bearer", "Bearer on", "Bearer onee", "Bearer \udcff"):
        assert keys.owner_of(wrong) is None
    assert not Keys([])
    assert Keys([]).owner_of("Bearer ") is None


def test_a_rate_is_kept_for_each_client() -> None:
    now_s = 100.0
    limiter = RateLimiter(6.0, clock=lambda: now_s)
    assert [limiter.wait_s("a") for _ in range(6)] == [0.0] * 6
    assert 9.9 < limiter.wait_s("a") <= 10.0
    assert limiter.wait_s("b") == 0.0
    now_s += 9.0
    assert 0 < limiter.wait_s("a") < 1.5
    now_s += 1.5
    assert limiter.wait_s("a") == 0.0
    assert limiter.wait_s("a") > 0
    assert RateLimiter(0.0).wait_s("a") == 0.0


@given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.floats(0.5, 20))
def test_never_more_than_the_burst_and_the_rate(pauses_s: list[float], per_minute: float) -> None:
    now_s = 0.0
    limiter = RateLimiter(per_minute, clock=lambda: now_s)
    num_passed = 0
    for pause_s in pauses_s:
        now_s += pause_s
        num_passed += not limiter.wait_s("a")
    assert num_passed <= max(1.0, per_minute) + now_s * per_minute / 60 + 1e-6
