from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from virtue_pl.evaluation.reports import plots
from virtue_pl.evaluation.reports.curves import read_curve
from virtue_pl.evaluation.statistics.compare import Comparison
from virtue_pl.evaluation.statistics.intervals import Estimate
from virtue_pl.types import VirtueError


def estimates(**means: float) -> dict[str, dict[str, Estimate]]:
    return {name: {"hit@1": Estimate(mean, mean - 0.05, mean + 0.05, 100, 1)} for name, mean in means.items()}


SHARES = {
    "scar/seen": estimates(virtue=0.45, crop=0.2),
    "scar/held_out": estimates(virtue=0.3),
    "cars": estimates(other=0.9),
}
FOUND = Comparison(("virtue", "crop", "other"), SHARES, {}, {}, {})
CHANCE = {"scar/seen": {"hit@1": 0.1}, "scar/held_out": {"hit@1": 0.1}}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, still open."""
    saved: list[Figure] = []
    save = plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: saved.append(figure) or save(figure, path))
    return saved


def test_bars_say_what_they_are(tmp_path: Path, figures: list[Figure]) -> None:
    path = plots.plot_bars(FOUND, ["scar/held_out", "scar/seen"], CHANCE, tmp_path / "bars.png")
    axes = figures[0].axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["virtue", "crop"]
    assert sorted(bar.get_width() for bar in axes.patches) == pytest.approx([20, 30, 45])
    assert axes.get_legend_handles_labels()[1] == ["chance, 10%", "seen", "held out"]
    assert {"45.0", "20.0", "30.0"} == {text.get_text() for text in axes.texts} and "%" in axes.get_xlabel()
    assert Image.open(path).format == "PNG" and [file.name for file in tmp_path.iterdir()] == ["bars.png"]


def test_a_number_is_an_axis(tmp_path: Path, figures: list[Figure]) -> None:
    plots.plot_against_number(
        FOUND, {"crop": 4, "virtue": 16}, ["scar/seen"], CHANCE, tmp_path / "numbers.png", "tokens"
    )
    axes = figures[0].axes[0]
    assert axes.get_xlabel() == "tokens" and list(axes.get_xticks()) == [4, 16]
    assert axes.lines[0].get_xydata().tolist() == [[4, pytest.approx(20)], [16, pytest.approx(45)]]


def test_curves_are_means_over_the_steps_that_all_have(tmp_path: Path, figures: list[Figure]) -> None:
    plots.plot_curves({"virtue": [{0: 0.1, 9: 0.5}, {9: 0.7, 19: 0.8}]}, tmp_path / "curves.png", "hit@1, %")
    line = figures[0].axes[0].lines[0]
    assert line.get_xydata().tolist() == [[10, pytest.approx(60)]] and line.get_label() == "virtue, 2 seeds"


def test_a_missing_matplotlib_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(VirtueError, match=r"pip install 'virtue-pl\[ablations\]'"):
        plots.plot_curves({}, tmp_path / "curves.png", "")


def test_a_curve_of_a_run_that_went_on_is_one_curve(tmp_path: Path) -> None:
    for time, values in ((1, {0: 0.1, 5: 0.2}), (2, {5: 0.3, 9: 0.4})):
        writer = SummaryWriter(str(tmp_path), filename_suffix=f".{time}")
        for step, value in values.items():
            writer.add_scalar("val/hit@1", value, step, walltime=time)
        writer.close()
    assert read_curve(tmp_path, "val/hit@1") == pytest.approx({0: 0.1, 5: 0.3, 9: 0.4})
    assert read_curve(tmp_path, "val/nothing") == {}
