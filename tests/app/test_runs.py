from __future__ import annotations

import pytest
import torch

from virtue_pl.app.runs import has_bf16, precision_here


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False), ({}, False)]
)
def test_processors_that_multiply_in_bfloat16(capabilities: dict[str, bool], expected: bool) -> None:
    assert has_bf16(capabilities) is expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_bfloat16_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert precision_here("auto") == expected


def test_a_named_precision_is_taken_as_it_is() -> None:
    assert precision_here("64-true") == "64-true"
