from __future__ import annotations

import pytest
import torch

from virtue_pl.cli.run.trainer import AutoPrecisionTrainer
from virtue_pl.engine.precision import check_precision, choose_precision
from virtue_pl.types import VirtueError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "fits"),
    [
        ({}, False),
        ({"avx2": True, "amx_bf16": False}, False),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
    ],
)
def test_bfloat16_wants_a_cpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], fits: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    for setting in ("bf16-mixed", "bf16-true", "bf16"):
        if fits:
            check_precision(setting, CPU)
        else:
            with pytest.raises(
                VirtueError,
                match=rf"trainer\.precision is {setting}, but this cpu has no bfloat16 arithmetic .*: set 32-true",
            ):
                check_precision(setting, CPU)
    check_precision("32-true", CPU)


@pytest.mark.parametrize("setting", ["64-true", "64"])
def test_nothing_is_prepared_in_64_bits(setting: str) -> None:
    with pytest.raises(VirtueError, match=rf"trainer\.precision is {setting}, but .* in 32 bits.*: set 32-true"):
        check_precision(setting, CPU)


def test_float16_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VirtueError, match="no float16 arithmetic"):
        check_precision("16-mixed", CPU)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    check_precision("16-mixed", torch.device("cuda"))
    with pytest.raises(VirtueError, match=r"this cuda has no bfloat16 arithmetic .*: set 16-mixed"):
        check_precision("bf16-mixed", torch.device("cuda"))


def test_other_devices_decide_for_themselves() -> None:
    check_precision("16-mixed", torch.device("mps"))


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_bfloat16_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert choose_precision("auto") == expected


def test_a_named_precision_is_taken_as_it_is() -> None:
    assert choose_precision("64-true") == "64-true"


def test_a_gpu_counts_unless_the_cpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert (choose_precision("auto"), choose_precision("auto", "cpu")) == ("32-true", "bf16-mixed")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_the_trainer_takes_auto(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    assert AutoPrecisionTrainer(precision="auto", **options).precision == expected
    assert AutoPrecisionTrainer(**options).precision == "32-true"
