"""Device and precision."""

import ctypes
import sys

import pytest
import torch

from mtsk.device import best_device, give_back_memory, has_bf16


def test_best_device_computes() -> None:
    assert float(torch.ones(2, device=best_device()).sum()) == 2.0


@pytest.mark.parametrize(("name", "expected"), [("mps", False), ("meta", False)])
def test_bf16_by_kind_of_device(name: str, expected: bool) -> None:
    assert has_bf16(torch.device(name)) == expected


@pytest.mark.parametrize(("avx512", "amx", "expected"), [(0, 0, False), (1, 0, True), (0, 1, True)])
def test_bf16_of_a_processor_is_what_it_has_in_hardware(
    monkeypatch: pytest.MonkeyPatch, avx512: int, amx: int, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(amx))
    assert has_bf16(torch.device("cpu")) is expected


def test_memory_is_given_back_wherever_that_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    give_back_memory()
    monkeypatch.setattr(sys, "platform", "win32")  # where nothing is asked of the C library
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked"))
    give_back_memory()
