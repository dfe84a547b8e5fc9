"""The profile of a machine: fits, predictions, and when it is not valid. Nothing here is timed."""

from pathlib import Path

import pytest
import torch

from mtsk.inference.engine import Engine
from mtsk.inference.policy import Known, ms_budget
from mtsk.inference.profile import STAGES, Profile, StageTime, describe_machine, measure_ms
from mtsk.inference.profiling import measure_profile
from mtsk.model.cost import CostModel
from mtsk.scale import Scale
from tests.tiny import tiny_model

MACHINE = {"device": "cpu", "precision": "float32", "hardware": "abacus", "threads": "1", "torch": "1.0"}
PROFILE = Profile(
    {
        "face": StageTime(0.0, 2.0),
        "audio_encoder": StageTime(1.0, 0.1),
        "video_encoder": StageTime(3.0, 0.2),
        "llm": StageTime(5.0, 0.5),
    },
    MACHINE,
)


@pytest.fixture(scope="module")
def costs() -> CostModel:
    return CostModel.of_model(tiny_model())


def test_a_line_is_found() -> None:
    fit = StageTime.fit([10, 50, 200], [3.0, 7.0, 22.0])
    assert fit.fixed_ms == pytest.approx(2.0)
    assert fit.position_ms == pytest.approx(0.1)
    assert fit.ms(0) == 0.0
    assert fit.ms(100) == pytest.approx(12.0)


def test_no_part_of_a_time_is_negative() -> None:
    falling = StageTime.fit([10, 100], [8.0, 4.0])
    assert (falling.position_ms, 4.0 < falling.fixed_ms < 8.0) == (0.0, True)
    steep = StageTime.fit([10, 100], [1.0, 20.0])
    assert steep.fixed_ms == 0.0
    assert 0.1 < steep.position_ms < 0.2
    assert StageTime.fit([5, 5], [2.0, 4.0]) == StageTime(3.0, 0.0)


def test_times_are_summed_over_stages_and_passes(costs: CostModel) -> None:
    num_prompt = costs.cost(Scale(4, 2), 2.0).stages["prefill"].num_tokens
    text = 7  # 2 s at 3.5 tokens a second
    encoders = 50 * 2.0 + (1.0 + 100 * 0.1) + (3.0 + 50 * 0.2)
    assert PROFILE.ms(costs, Scale(4, 2), 2.0) == pytest.approx(encoders + 5.0 + 0.5 * num_prompt + text * 5.5)
    alone = costs.cost(Scale(16), 2.0).stages["prefill"].num_tokens
    assert PROFILE.ms(costs, Scale(16), 2.0) == pytest.approx(11.0 + 5.0 + 0.5 * alone + text * 5.5)


def test_a_budget_of_milliseconds(costs: CostModel) -> None:
    grid = tiny_model().grid
    known = Known(2.0, 2.0, 20.0)
    for limit, scale in ((1000.0, Scale(4, 2)), (PROFILE.ms(costs, Scale(4), 2.0), Scale(4)), (1.0, Scale(16))):
        choice = ms_budget(grid, costs, PROFILE, limit).first(known)
        assert choice is not None
        assert choice.scale == scale
        assert choice.why.startswith("over" if limit == 1.0 else "budget")


def test_a_profile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "profile.json"
    PROFILE.save(path)
    assert Profile.load(path, MACHINE) == PROFILE


def test_what_does_not_fit_says_how_to_measure(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ValueError, match=r"no profile of this machine.*mtsk bench --calibrate"):
        Profile.load(path, MACHINE)
    PROFILE.save(path)
    with pytest.raises(ValueError, match=r"threads 1 instead of 8.*mtsk bench --calibrate"):
        Profile.load(path, MACHINE | {"threads": "8"})
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"is no profile.*mtsk bench --calibrate"):
        Profile.load(path, MACHINE)


def test_the_first_run_is_not_counted() -> None:
    times = iter([0.0, 0.5, 1.0, 1.2, 2.0, 2.3])  # start and end of three runs
    runs: list[int] = []
    assert measure_ms(lambda: runs.append(1), lambda: next(times)) == pytest.approx(300.0)
    assert len(runs) == 4


def test_every_stage_of_a_model_is_measured() -> None:
    engine = Engine(tiny_model(), device="cpu", dtype=torch.float32)
    profile = measure_profile(engine, None)
    assert set(profile.stages) == set(STAGES)
    assert profile.stages["face"] == StageTime(0.0, 0.0)
    assert all(profile.stages[name].ms(50) > 0 for name in STAGES if name != "face")
    assert profile.machine == describe_machine(torch.device("cpu"), "float32")
    assert profile.ms(engine.costs, Scale(4, 2), 2.0) > 0
