"""Two real processes: their gradients against those of one, their batch statistics, and a whole run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from mtsk.model.avsr import AvsrModel
from mtsk.scale import Scale
from mtsk.training import run as run_module
from mtsk.training.objective import backward_scales
from mtsk.training.run import TrainingData, train
from mtsk.training.trainer import Run, reduce_gradients, share_buffers
from tests.tiny import TEXTS, tiny_batch, tiny_model
from tests.training.prepared import EvenAligner, tiny_train_config, write_data

# Process 0 gets the rows 0 and 1, process 1 the row 2, which has no lips: there `v2` has no row at all.
DURATIONS_S, NUM_FRAMES = (1.31, 0.735, 2.0), (30, 19, None)
ROWS = ([0, 1], [2])
SCALES = [Scale.parse(text) for text in ("a4", "v2", "a4v2")]


def _backward(model: AvsrModel, rows: list[int], accelerator: Accelerator) -> None:
    batch = tiny_batch(TEXTS[:3], DURATIONS_S, NUM_FRAMES)
    encoded = model.encode(batch, model.grid).rows(rows)
    backward_scales(model, encoded, [TEXTS[row] for row in rows], dict.fromkeys(SCALES, 1.0), accelerator)


def _gradients(model: AvsrModel) -> dict[str, Tensor]:
    return {name: p.grad.contiguous() for name, p in model.trained_parameters().items() if p.grad is not None}


def _process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # Within this machine; 127.0.0.1 even where its name leads elsewhere.
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(settings, LOCAL_RANK=str(rank), GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true")
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    model = tiny_model("mss")
    _backward(model, ROWS[rank], accelerator)
    reduce_gradients(list(model.trained_parameters().values()), accelerator)
    save_file(_gradients(model), folder / f"gradients{rank}.safetensors")
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(8, 4, generator=torch.Generator().manual_seed(rank)))
    share_buffers(norm, accelerator)
    save_file(dict(norm.named_buffers()), folder / f"buffers{rank}.safetensors")
    _train(rank, accelerator, folder)
    accelerator.end_training()


def _train(rank: int, accelerator: Accelerator, folder: Path) -> None:
    """All stages, two steps each, interrupted once, on data where some lack lips, sound or word times."""
    vars(run_module)["WhisperAligner"] = EvenAligner if rank == 0 else None  # only the main process may align
    config = tiny_train_config(num_steps=2)
    data = TrainingData.load(folder / "data")
    validated: list[AvsrModel] = []
    for stop_after in (1, None):
        torch.manual_seed(config.seed)
        model = tiny_model("mss", adapted=False)
        run = Run(folder / "run", accelerator, config.seed, 1, stop_after)
        complete = train(config, model, data, run, lambda model: _keep(validated, model))
        assert complete == (stop_after is None)
        assert len(validated) == int(complete and rank == 0)
    save_file(
        {name: value.contiguous() for name, value in trained_state(model).items()}, folder / f"model{rank}.safetensors"
    )


def _keep(models: list[AvsrModel], model: AvsrModel) -> dict[str, float]:
    models.append(model)
    return {}


def trained_state(model: AvsrModel) -> dict[str, Tensor]:
    """What was trained, and batch statistics."""
    return {name: p.detach() for name, p in model.trained_parameters().items()} | {
        name: buffer for name, buffer in model.named_buffers() if name.startswith("video_encoder.")
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("processes")
    write_data(folder / "data", gaps=True)
    (folder / "run").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_process, (port, folder), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


def test_gradients_are_those_of_the_joined_batch(folder: Path, accelerator: Accelerator) -> None:
    model = tiny_model("mss")
    _backward(model, [0, 1, 2], accelerator)
    expected = _gradients(model)
    assert any(name not in expected for name in model.trained_parameters())  # the projectors of a16 and v5
    for rank in (0, 1):
        found = load_file(folder / f"gradients{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert float((found[name] - gradient).norm()) <= 1e-6 * float(gradient.norm()), name


def test_batch_statistics_are_those_of_the_main_process(folder: Path) -> None:
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    for rank in (0, 1):
        for name, value in load_file(folder / f"buffers{rank}.safetensors").items():
            torch.testing.assert_close(value, norm.get_buffer(name))


def test_all_processes_end_with_the_same_model(folder: Path) -> None:
    """Which is not that of one of them alone: each saw its own batches."""
    one, other = (load_file(folder / f"model{rank}.safetensors") for rank in (0, 1))
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []
    fresh = trained_state(tiny_model("mss", adapted=False))
    assert one.keys() == fresh.keys()
    assert [name for name, value in fresh.items() if torch.equal(value, one[name])] == []
    assert (folder / "run" / "word_times.jsonl").read_text().count("\n") == 1
