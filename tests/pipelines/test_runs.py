from __future__ import annotations

import pytest
import torch

from virtue_pl.pipelines.runs import precision_here


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_bfloat16_where_it_is_native(monkeypatch: pytest.MonkeyPatch, native: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": native})
    assert precision_here("auto") == expected


def test_a_named_precision_is_taken_as_it_is() -> None:
    assert precision_here("64-true") == "64-true"
