"""The schedule's shape, and progress on disk."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from mtsk.config import OptimConfig
from mtsk.training import progress
from mtsk.training.optim import ParameterGroup, build_optimizer, rate_factor, set_rates
from mtsk.training.progress import load_progress, save_progress


@pytest.mark.parametrize(("num_steps", "warmup_share"), [(100, 0.1), (7, 0.0), (10, 1.0), (1, 0.1)])
def test_schedule(num_steps: int, warmup_share: float) -> None:
    config = OptimConfig(num_steps, 1e-3, warmup_share=warmup_share)
    factors = [rate_factor(step, config) for step in range(num_steps)]
    num_warmup = max(1, round(num_steps * warmup_share))
    assert factors[:num_warmup] == pytest.approx([(i + 1) / num_warmup for i in range(num_warmup)])
    assert max(factors) == 1.0
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors[num_warmup - 1 :]))
    assert rate_factor(num_steps, config) == pytest.approx(0.0 if num_warmup < num_steps else 1.0, abs=1e-12)
    if num_steps == 100:
        assert factors[55] == pytest.approx(0.5)  # half way down


def test_groups_have_rates_and_decay_of_their_own() -> None:
    fast, slow = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    config = OptimConfig(10, 1e-3, weight_decay=0.5, warmup_share=0.2)
    groups = [ParameterGroup({"fast": fast}, 0.4, decay=False), ParameterGroup({"slow": slow}, 0.1)]
    optimizer = build_optimizer(groups, config)
    for step in (0, 1, 5, 1):  # the rate is a function of the step alone
        set_rates(optimizer, step, config)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.4 * rate_factor(step, config), 0.1 * rate_factor(step, config)])
    fast.grad, slow.grad = torch.zeros(2), torch.zeros(2)
    optimizer.step()
    assert fast.tolist() == [1.0, 1.0]
    assert slow.tolist() == pytest.approx([0.95, 0.95])


class _Net(nn.Module):
    """A layer that is trained, one that is not, one that gets no gradients, and a buffer."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.trained = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Linear(width, width)
        self.idle = nn.Linear(width, width)
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def parameters_to_train(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if not name.startswith("frozen")}

    def optimizer(self) -> torch.optim.AdamW:
        group = ParameterGroup(self.parameters_to_train(), 0.1)
        return build_optimizer([group], OptimConfig(4, 0.1))


def _steps(net: _Net, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        net.frozen(net.norm(net.trained(x))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _net(seed: int) -> _Net:
    torch.manual_seed(seed)
    return _Net()


def test_progress_round_trip(tmp_path: Path) -> None:
    """A loaded net goes on as the saved one does, to the bit."""
    path = tmp_path / "stages" / "stage.safetensors"
    net = _net(0)
    optimizer = net.optimizer()
    _steps(net, optimizer, range(3))
    save_progress(path, net, net.parameters_to_train(), optimizer, 3)
    other = _net(1)
    other.frozen.load_state_dict(net.frozen.state_dict())  # what is frozen is not saved
    its_optimizer = other.optimizer()
    assert load_progress(path, other, other.parameters_to_train(), its_optimizer) == 3
    _steps(net, optimizer, range(3, 5))
    _steps(other, its_optimizer, range(3, 5))
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_no_file_is_no_progress(tmp_path: Path) -> None:
    net = _net(0)
    assert load_progress(tmp_path / "none.safetensors", net, net.parameters_to_train(), net.optimizer()) == 0


def test_other_parameters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "stage.safetensors"
    net = _net(0)
    save_progress(path, net, net.parameters_to_train(), net.optimizer(), 1)
    fewer = dict(list(net.parameters_to_train().items())[1:])
    wider = _Net(width=5)
    for modules, parameters in ((net, fewer), (wider, wider.parameters_to_train())):
        before = {name: value.clone() for name, value in modules.state_dict().items()}
        with pytest.raises(ValueError, match="other parameters"):
            load_progress(path, modules, parameters, modules.optimizer())
        assert all(torch.equal(value, before[name]) for name, value in modules.state_dict().items())


def test_a_broken_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stage.safetensors"
    net = _net(0)
    optimizer = net.optimizer()
    save_progress(path, net, net.parameters_to_train(), optimizer, 1)
    saved = path.read_bytes()
    _steps(net, optimizer, range(1))

    def broken(tensors: object, where: Path, **_: object) -> None:
        where.write_bytes(saved[: len(saved) // 2])
        raise OSError("the disk is full")

    monkeypatch.setattr(progress, "save_file", broken)
    with pytest.raises(OSError, match="full"):
        save_progress(path, net, net.parameters_to_train(), optimizer, 2)
    assert path.read_bytes() == saved
    other = _net(1)
    assert load_progress(path, other, other.parameters_to_train(), other.optimizer()) == 1
