"""Degrading, refusing and recovering, on a simulated clock."""

import heapq
import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtsk.serving.load import Corrections, Degrader, LoadRules, Share, predicted_wait_s

RULES = LoadRules(target_s=1.0, limit_s=3.0, max_level=8)
COSTS_S = [1.0, 0.5, 0.2]  # of a request, at each of its ways

moments = st.lists(st.tuples(st.floats(0.001, 5.0), st.floats(0.0, 10.0)), max_size=60)  # until the next one; wait


@dataclass
class Outcome:
    """Of a simulation: of each request when it came, which way it was read (None: refused), and its latency."""

    times_s: list[float]
    ways: list[int | None]
    latencies_s: list[float]
    levels: list[int]


def simulate(times_s: list[float], costs_s: list[float], degrader: Degrader) -> Outcome:
    """One server that works off a queue, and predicts rightly."""
    free_s, outcome = 0.0, Outcome(times_s, [], [], [])
    for now_s in times_s:
        way = degrader.admit(now_s, max(0.0, free_s - now_s), costs_s)
        outcome.ways.append(way)
        outcome.levels.append(degrader.level)
        if way is not None:
            free_s = max(free_s, now_s) + costs_s[way]
            outcome.latencies_s.append(free_s - now_s)
    return outcome


def steady(rate: float, from_s: float, to_s: float) -> list[float]:
    return [from_s + i / rate for i in range(round((to_s - from_s) * rate))]


def test_a_light_load_is_served_as_asked() -> None:
    assert set(simulate(steady(0.9, 0, 60), COSTS_S, Degrader(RULES)).ways) == {0}


def test_three_times_capacity_is_served_coarser_and_not_refused() -> None:
    outcome = simulate(steady(3.0, 0, 60), COSTS_S, Degrader(RULES))
    assert None not in outcome.ways
    assert max(outcome.latencies_s) < 2.0
    fixed = simulate(steady(3.0, 0, 60), COSTS_S[:1], Degrader(RULES))
    assert fixed.ways.count(None) > 100


def test_what_is_too_much_for_the_coarsest_is_refused() -> None:
    outcome = simulate(steady(20.0, 0, 60), COSTS_S, Degrader(RULES))
    assert outcome.ways.count(None) > 0.5 * len(outcome.ways)
    assert max(outcome.latencies_s) <= RULES.limit_s + 1e-6
    served_after = outcome.ways[100:]
    assert set(served_after) == {None, 2}


def test_it_recovers_step_by_step() -> None:
    times_s = [*steady(4.5, 0, 10), *steady(0.5, 14, 60)]
    outcome = simulate(times_s, COSTS_S, Degrader(RULES))
    assert outcome.ways[44] == 2
    assert outcome.ways[-1] == 0
    later = outcome.levels[45:]
    assert later == sorted(later, reverse=True)


def test_a_long_silence_is_recovery_too() -> None:
    degrader = Degrader(RULES)
    simulate(steady(10.0, 0, 10), COSTS_S, degrader)
    assert degrader.level >= 2
    degrader.observe(13.0, 0.0)  # the queue is empty
    assert degrader.admit(1000.0, 0.0, COSTS_S) == 0


def test_a_short_calm_is_none() -> None:
    """Hysteresis: one lull between two waves does not bring back what could not be kept."""
    degrader = Degrader(RULES)
    simulate(steady(10.0, 0, 10), COSTS_S, degrader)
    level = degrader.level
    degrader.observe(20.0, 0.1)
    degrader.observe(20.0 + 0.9 * RULES.calm_s, 0.1)
    degrader.observe(21.0, 0.8)  # not calm, not too long either
    degrader.observe(21.5, 0.1)
    assert degrader.level == level


def test_a_large_request_fits_an_idle_server() -> None:
    assert Degrader(RULES).admit(0.0, 0.0, [1000.0]) == 0
    assert Degrader(RULES).admit(0.0, RULES.limit_s + 0.1, [0.001]) is None


@given(moments, st.lists(st.floats(0.01, 5.0), min_size=1, max_size=6))
def test_never_coarser_than_allowed_and_refused_only_at_the_coarsest(
    moments: list[tuple[float, float]], costs_s: list[float]
) -> None:
    costs_s = sorted(costs_s, reverse=True)
    degrader, now_s = Degrader(RULES), 0.0
    for pause_s, wait_s in moments:
        now_s += pause_s
        way = degrader.admit(now_s, wait_s, costs_s)
        assert 0 <= degrader.level <= RULES.max_level
        if way is None:
            assert wait_s + costs_s[-1] > RULES.limit_s
        else:
            assert 0 <= way < len(costs_s)
            assert wait_s <= RULES.limit_s


@given(moments)
def test_it_always_recovers(moments: list[tuple[float, float]]) -> None:
    degrader, now_s = Degrader(RULES), 0.0
    for pause_s, wait_s in moments:
        now_s += pause_s
        degrader.admit(now_s, wait_s, COSTS_S)
    degrader.observe(now_s, 0.0)
    degrader.observe(now_s + (RULES.max_level + 1) * RULES.calm_s, 0.0)
    assert degrader.level == 0


@given(moments)
def test_a_step_at_a_time(moments: list[tuple[float, float]]) -> None:
    degrader, now_s, before = Degrader(RULES), 0.0, 0
    for pause_s, wait_s in moments:
        now_s += pause_s
        degrader.admit(now_s, wait_s, COSTS_S)
        assert degrader.level <= before + 1
        assert wait_s > RULES.target_s or degrader.level <= before
        before = degrader.level


def test_short_requests_pass_a_long_one_that_is_not_starved() -> None:
    """Served is always who has the lowest place; a short one comes each second, and takes 0.9 of it."""
    long = Share(0.0, 1.0, 30.0)
    queue: list[tuple[float, int, Share]] = []
    now_s, waits_s, long_served_s = 0.0, [], []
    coming = [Share(float(t) + 0.5, 0.9, 0.9) for t in range(300)]
    while now_s < 250.0:
        queue += [(share.place, i, share) for i, share in enumerate(coming) if share.arrived_s <= now_s]
        coming = [share for share in coming if share.arrived_s > now_s]
        heapq.heapify(queue)
        if long.remaining_s and (not queue or long.place < queue[0][0]):
            long.serve(1.0)
            long_served_s.append(now_s)
            now_s += 1.0
        elif queue:
            share = heapq.heappop(queue)[2]
            waits_s.append(now_s - share.arrived_s)
            share.serve(0.9)
            now_s += 0.9
        else:
            now_s = min(share.arrived_s for share in coming)
    assert long.remaining_s == 0
    assert waits_s[0] <= 1.0
    assert long_served_s[5] < 60.0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 3)), min_size=1, max_size=30))
def test_requests_of_one_segment_are_served_in_their_order(requests: list[tuple[float, float]]) -> None:
    shares = [Share(arrived_s, cost_s, cost_s) for arrived_s, cost_s in sorted(requests)]
    assert [share.place for share in sorted(shares, key=lambda share: share.place)] == [s.arrived_s for s in shares]


def test_the_predicted_wait_counts_what_comes_before() -> None:
    short, long = Share(0.0, 0.5, 0.5), Share(0.0, 1.0, 100.0)
    assert predicted_wait_s([short], 10.0) == pytest.approx(0.5)
    assert predicted_wait_s([short, long], 0.0) == pytest.approx(1.5)
    long.serve(1.0)
    assert long.remaining_s == pytest.approx(99.0)
    assert predicted_wait_s([long], 0.0) == pytest.approx(1.0)  # the part that may have begun
    assert predicted_wait_s([], 0.0) == 0


def test_corrections_learn_what_is_measured() -> None:
    corrections = Corrections()
    for _ in range(500):
        corrections.learn({"a4": 1.0}, 3.0)
        corrections.learn({"a4": 1.0, "a16": 1.0}, 4.0)
    assert corrections.factor("a4") == pytest.approx(3.0, rel=0.02)
    assert corrections.factor("a16") == pytest.approx(1.0, rel=0.05)
    assert corrections.factor("v2") == pytest.approx(math.sqrt(3.0), rel=0.05)  # between those that are known
    corrections.set("v2", 7.0)
    assert corrections.factor("v2") == pytest.approx(7.0)


def test_the_first_measurements_weigh_most() -> None:
    corrections = Corrections()
    corrections.learn({"a4": 1.0}, 5.0)
    assert corrections.factor("a4") == pytest.approx(5.0)
    corrections.set("a16", 4.0)
    corrections.learn({"a16": 1.0}, 1.0)
    assert corrections.factor("a16") == pytest.approx(2.0)  # between the warm-up and what came, as factors go
    for _ in range(20):
        corrections.learn({"a16": 1.0}, 1.0)
    corrections.learn({"a16": 1.0}, 2.0)
    assert corrections.factor("a16") < 1.3


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1e6)), max_size=50))
def test_no_measurement_breaks_them(measured: list[tuple[float, float]]) -> None:
    corrections = Corrections()
    for predicted_s, seconds in measured:
        corrections.learn({"a4": predicted_s}, seconds)
    assert 0 < corrections.factor("a4") < math.inf
