"""When requests are read coarser, and when they are refused. Numbers only: no clock, no threads, no model.

All costs are seconds that the server is predicted to need, see `mtsk.serving.predict`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_PATIENCE = 4.0  # who was served for a second stands in the queue as if it had come so many seconds later
_LEARNING = 0.2  # weight of a measurement; the first ones of a kind weigh more
_MAX_SURPRISE = 8.0  # a measurement counts as if it were at most this many times off


@dataclass(frozen=True)
class LoadRules:
    """Of a `Degrader`.

    Attributes:
        target_s: a longer predicted wait makes new requests coarser.
        limit_s: a longer one refuses them.
        step_s: between one step coarser and the next, so that the effect of one can show.
        calm_share: of the target; a wait below it is calm.
        calm_s: how long it has to be calm for each step back.
        max_level: most steps.
    """

    target_s: float = 1.0
    limit_s: float = 4.0
    step_s: float = 0.1
    calm_share: float = 0.5
    calm_s: float = 1.0
    max_level: int = 16


class Degrader:
    """How many steps coarser new requests are read: up while the queue is too long, down after it was short for a
    while. Times never go back.
    """

    def __init__(self, rules: LoadRules) -> None:
        self.rules = rules
        self.level = 0
        """Steps, at present."""
        self._changed_s = -math.inf
        self._calm_since_s: float | None = 0.0

    def observe(self, now_s: float, wait_s: float) -> None:
        """Takes the predicted wait at a time; alone it only leads back. To be called when a queue may have become
        short."""
        if wait_s > self.rules.calm_share * self.rules.target_s:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        else:
            num_steps = int((now_s - self._calm_since_s) / self.rules.calm_s)
            self.level = max(0, self.level - num_steps)
            self._calm_since_s += num_steps * self.rules.calm_s

    def press(self, now_s: float, wait_s: float) -> None:
        """Takes the predicted wait when a request comes, also one that is refused unseen: it may lead a step up."""
        self.observe(now_s, wait_s)
        if wait_s > self.rules.target_s and now_s - self._changed_s >= self.rules.step_s:
            self.level = min(self.rules.max_level, self.level + 1)
            self._changed_s = now_s

    def admit(self, now_s: float, wait_s: float, costs_s: Sequence[float]) -> int | None:
        """Which way a new request is read.

        Args:
            now_s: when it comes.
            wait_s: the predicted wait.
            costs_s: of its first segment, for each way that it allows, as it was asked first.

        Returns:
            The index of the way; None if it is refused. It is refused only if the last way does not fit.
        """
        assert costs_s
        self.press(now_s, wait_s)
        first = min(self.level, len(costs_s) - 1)
        return next((i for i in range(first, len(costs_s)) if self._fits(wait_s, costs_s[i])), None)

    def _fits(self, wait_s: float, cost_s: float) -> bool:
        # However large a segment is, it fits a queue that is short.
        return wait_s + min(cost_s, self.rules.limit_s - self.rules.target_s) <= self.rules.limit_s


@dataclass(eq=False)
class Share:
    """What one request has had, and will want, of a resource that requests take turns at, a unit of work each.

    Who was served stands further back: a long recording does not keep short ones waiting, and is not starved by them.
    """

    arrived_s: float
    unit_s: float
    remaining_s: float
    served_s: float = 0.0

    @property
    def place(self) -> float:
        """In the queue; the lowest is served next."""
        return self.arrived_s + _PATIENCE * self.served_s

    def serve(self, cost_s: float) -> None:
        """Notes that so much was done."""
        self.served_s += cost_s
        self.remaining_s = max(0.0, self.remaining_s - cost_s)

    def before(self, now_s: float) -> float:
        """How much of it is served before what comes now."""
        return min(self.remaining_s, max(0.0, now_s - self.place) / _PATIENCE + self.unit_s)


def predicted_wait_s(shares: Iterable[Share], now_s: float) -> float:
    """Until something that comes now has its turn."""
    return sum(share.before(now_s) for share in shares)


class Corrections:
    """Factors between what was predicted and what is measured, one for each kind of work."""

    def __init__(self) -> None:
        self._logs: dict[str, float] = {}
        self._nums: Counter[str] = Counter()  # measurements

    def factor(self, kind: str) -> float:
        """Of a kind; of one that was never measured the mean of the others."""
        if kind not in self._logs and self._logs:
            logs = tuple(self._logs.values())  # other threads may add some
            return math.exp(sum(logs) / len(logs))
        return math.exp(self._logs.get(kind, 0.0))

    def set(self, kind: str, factor: float) -> None:
        """Begins with a factor, as from a warm-up."""
        self._logs[kind] = math.log(factor)
        self._nums[kind] = 1

    def learn(self, predicted_s: Mapping[str, float], measured_s: float) -> None:
        """Takes a measurement of work of several kinds together, each by its share.

        Args:
            predicted_s: kind -> seconds, without factor.
        """
        corrected = {kind: seconds * self.factor(kind) for kind, seconds in predicted_s.items()}
        total_s = sum(corrected.values())
        if total_s <= 0 or measured_s <= 0:
            return
        surprise = min(max(measured_s / total_s, 1 / _MAX_SURPRISE), _MAX_SURPRISE)
        for kind, seconds in corrected.items():
            weight = max(_LEARNING, 1 / (1 + self._nums[kind])) * seconds / total_s
            self._logs[kind] = math.log(self.factor(kind)) + weight * math.log(surprise)
            self._nums[kind] += 1
