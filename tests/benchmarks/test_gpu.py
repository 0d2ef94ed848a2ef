"""benchmarks/gpu.py from its options to its report, with tiny networks on a CPU."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fixtures.pages import ROOT

TINY = ("--tiny", "--device", "cpu", "--seconds", "0.01", "--batch-size", "3", "--encoded", "2")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, without limits of time; the scripts beside it are found from there."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark_of_a_gpu", ROOT / "benchmarks" / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "TOTAL", math.inf)
    monkeypatch.setattr(module, "LIMITS", dict.fromkeys(module.LIMITS, math.inf))
    return module


def test_a_tiny_run_reports_ours_beside_the_baseline(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    assert gpu.main([*TINY, "--json", str(file)]) == 0, capsys.readouterr().err
    report = json.loads(file.read_text())
    assert report == json.loads(capsys.readouterr().out)
    assert set(report["sections"]) == set(gpu.LIMITS)
    sections, comparison = report["sections"], report["comparison"]
    assert sections["agreement"]["loss_difference"] < 1e-4 and sections["agreement"]["gradient_difference"] < 1e-3
    assert comparison["loss_difference"] < 0.1 * sections["ours: training"]["loss"]
    assert comparison["cosine"] > 0.999
    assert comparison["estimate_to_measured"]["chunk 2"]["operations"] == pytest.approx(1, abs=0.05)
    for whose in ("ours", "stock"):
        train, encode = sections[f"{whose}: training"], sections[f"{whose}: encoding"]
        (chunk,) = train["chunks"]
        for one in (chunk, encode["images"], encode["texts"]):
            assert one["tokens_per_second"] > 0 and one["peak_bytes"] > 0 and one["mfu"] is None
        assert chunk["samples_per_second"] == pytest.approx(3 / chunk["seconds_a_step"], rel=0.01)
        assert (
            train["gflop_a_step"] > 0
            and train["trained_parameters"] == sections["ours: training"]["trained_parameters"]
        )


def test_a_section_that_fails_leaves_the_others(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_sections

    def fail(setting: Any, found: dict[str, Any]) -> Iterator[str]:
        found["batch_size"] = 3
        yield "a step"
        raise RuntimeError("out of\nmemory")

    monkeypatch.setitem(gpu_sections.SECTIONS, "estimate", fail)
    monkeypatch.setitem(gpu.LIMITS, "stock: encoding", 0.05)
    chosen = ("stock: encoding", "estimate", "ours: encoding")
    assert gpu.main([*TINY, "--only", *chosen]) == 1
    printed = capsys.readouterr()
    sections = json.loads(printed.out)["sections"]
    assert sections["ours: encoding"]["images"]["rows"] == 2
    assert sections["stock: encoding"]["failed"].startswith("it took longer than its 0 s")
    assert (sections["estimate"]["failed"], sections["estimate"]["batch_size"]) == ("RuntimeError: out of memory", 3)
    assert "estimate: RuntimeError: out of memory" in printed.err
    monkeypatch.setattr(gpu, "TOTAL", 0.0)
    assert gpu.main([*TINY, "--only", "agreement"]) == 1
    assert "no time was left" in capsys.readouterr().err


def test_without_a_gpu_it_says_so_in_a_line(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.main([]) == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1 and "--tiny --device cpu" in printed.err
