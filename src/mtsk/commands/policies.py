"""What a user asks for instead of a scale, and the policy that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtsk.inference.engine import Engine
    from mtsk.inference.policy import Policy


@dataclass(frozen=True)
class Wish:
    """Options of the command line; at most one is set.

    Raises:
        ValueError: if several are, or a budget is not above 0.
    """

    policy: str | None = None
    tokens: float | None = None
    tflops: float | None = None
    ms: float | None = None

    def __post_init__(self) -> None:
        budgets = {"tokens": self.tokens, "tflops": self.tflops, "ms": self.ms}
        given = [f"--budget-{name}" for name, limit in budgets.items() if limit is not None]
        given += ["--policy"] if self.policy is not None else []
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} given; one of them is allowed")
        for name, limit in budgets.items():
            if limit is not None and not limit > 0:
                raise ValueError(f"--budget-{name} {limit:g}: more than 0 is needed")

    def __bool__(self) -> bool:
        return any(each is not None for each in (self.policy, self.tokens, self.tflops, self.ms))

    def policy_of(self, engine: Engine, model: str) -> Policy:
        """The policy for a loaded model.

        Raises:
            ValueError: if the model was not calibrated, or this machine was not measured.
        """
        import mtsk
        from mtsk.inference.policy import ms_budget, tflops_budget, token_budget
        from mtsk.inference.profile import Profile, describe_machine, profile_path

        if self.tokens is not None:
            return token_budget(engine.grid, self.tokens)
        if self.tflops is not None:
            return tflops_budget(engine.grid, engine.costs, self.tflops)
        if self.ms is not None:
            machine = describe_machine(engine.device, engine.precision)
            profile = Profile.load(profile_path(mtsk.model_folder(model), machine), machine)
            return ms_budget(engine.grid, engine.costs, profile, self.ms)
        return engine.auto
