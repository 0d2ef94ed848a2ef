"""Grouped options: few arguments a constructor, counts checked once, and the way from YAML and the command line to a
run's config and back.
"""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.cli.main import main
from virtue_pl.data.datamodules.benchmark import BenchmarkMixture
from virtue_pl.data.io.cache import CacheOptions
from virtue_pl.data.streaming import options
from virtue_pl.data.streaming.options import BadSampleLimits, ReaderOptions, SamplingOptions
from virtue_pl.types import VirtueError

DATA = Path(options.__file__).parent
GROUPS = (ReaderOptions, SamplingOptions, BenchmarkMixture, CacheOptions)

CONFIG = """
seed_everything: 0
model: {class_path: fixtures.cli_dummies.Encoder, init_args: {width: 3}}
data:
  class_path: virtue_pl.data.SCaRDataModule
  init_args:
    train: shards
    sampling: {num_negatives: 4, sample_buffer: 1}
    reader: {num_workers: 1, seed: 7}
"""

MIXTURE = """
class_path: virtue_pl.data.MixedDataModule
init_args:
  parts:
    scar: {class_path: virtue_pl.data.SCaRDataModule, init_args: {train: scar, sampling: {num_negatives: 2}}}
  weights: {scar: 1.0}
  reader: {seed: 5}
"""


class Parsed(VirtueCLI):
    """Builds nothing but the data."""

    def instantiate_classes(self) -> None:
        self.data = self.parser.instantiate_classes(self.config).data

    def after_instantiate_classes(self) -> None: ...


def parsed(tmp_path: Path, *arguments: str, config: str = CONFIG) -> Parsed:
    path = tmp_path / "config.yaml"
    path.write_text(config)
    return Parsed("fit", ["--config", str(path), *arguments])


def test_no_constructor_of_data_has_a_dozen_arguments() -> None:
    for path in DATA.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len(arguments) - 1 < 12, f"{path.name}, line {node.lineno}: {len(arguments) - 1} arguments"


@pytest.mark.parametrize("kind", GROUPS)
def test_every_field_says_what_it_is(kind: type) -> None:
    (body,) = [node.body for node in ast.walk(ast.parse(inspect.getsource(kind))) if isinstance(node, ast.ClassDef)]
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign):
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), ast.unparse(field)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (ReaderOptions, {"num_workers": -1}, "num_workers is -1, expected 0 or more"),
        (ReaderOptions, {"max_pixels": 0}, "max_pixels is 0, expected 1 or more"),
        (ReaderOptions, {"resize_to_square": 0}, "resize_to_square is 0, expected 1 or more"),
        (ReaderOptions, {"max_bad_samples": -1}, "max_bad_samples is -1, expected 0 or more"),
        (BadSampleLimits, {"max_consecutive_bad": -1}, "max_consecutive_bad is -1, expected 0 or more"),
        (SamplingOptions, {"num_negatives": -1}, "num_negatives is -1, expected 0 or more"),
        (SamplingOptions, {"shuffle_buffer": 0}, "shuffle_buffer is 0, expected 1 or more"),
        (SamplingOptions, {"sample_buffer": 0}, "sample_buffer is 0, expected 1 or more"),
        (SamplingOptions, {"train_rows": 0}, "train_rows is 0, expected 1 or more"),
        (SamplingOptions, {"steps_per_epoch": 0}, "steps_per_epoch is 0, expected 1 or more"),
        (CacheOptions, {"max_gb": 0}, "cache.max_gb is 0, expected more than 0, or null for no limit"),
    ],
)
def test_a_count_that_cannot_be_is_one_line(kind: Any, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(VirtueError) as caught:
        kind(**wrong)
    assert str(caught.value) == message


def test_dotted_overrides_reach_a_group_and_leave_its_other_fields(tmp_path: Path) -> None:
    arguments = [
        "--data.init_args.reader.num_workers",
        "2",
        "--data.init_args.sampling.steps_per_epoch=9",
        "--data.init_args.cache.max_gb=1.5",
    ]
    data = parsed(tmp_path, *arguments).data
    assert data.reader == ReaderOptions(num_workers=2, seed=7)
    assert data.sampling == SamplingOptions(num_negatives=4, sample_buffer=1, steps_per_epoch=9)
    assert data.cache == CacheOptions(max_gb=1.5) and (data.num_negatives, data.steps_per_epoch) == (4, 9)


def test_what_a_run_writes_down_is_what_it_reads_back(tmp_path: Path) -> None:
    first = parsed(tmp_path, "--data.init_args.reader.num_workers", "2")
    written = first.parser.dump(first.config, skip_unset=False)
    again = parsed(tmp_path, config=written)
    assert again.config.data == first.config.data and again.data.reader == ReaderOptions(num_workers=2, seed=7)
    assert "max_consecutive_bad: 20" in written and "shuffle_buffer: 1000" in written


def test_other_data_is_laid_over_with_groups_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(MIXTURE)
    over = ["--data.init_args.weights.scar=3.0", "--data.init_args.parts.scar.init_args.sampling.train_rows=6"]
    data = parsed(tmp_path, "--data", str(path), *over).data
    assert data.weights == {"scar": 3.0} and data.reader == ReaderOptions(seed=5)
    assert data.parts["scar"].sampling == SamplingOptions(num_negatives=2, train_rows=6)
    sets = ["--data", "virtue_pl.data.BenchmarkDataModule", "--data.sets=[scar]", "--data.root=there"]
    data = parsed(tmp_path, *sets, "--data.mixture.num_negatives={ADE20K: 3}", "--data.mixture.block_size=4").data
    assert (
        data.parts["ADE20K"].num_negatives == 3 and data.parts["ADE20K"].reader is data.reader and data.block_size == 4
    )


def test_a_mistake_in_a_group_is_one_line_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    assert main(["fit", "--config", str(path), "--data.init_args.reader.resize_to_square=0"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "virtue-pl: resize_to_square is 0, expected 1 or more"
    assert main(["fit", "--config", str(path), "--data.init_args.reader.worker=2"]) == 2
    assert "worker" in capsys.readouterr().err.splitlines()[-1]


def test_help_tells_of_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data.help", "virtue_pl.data.SCaRDataModule"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--data.reader.num_workers" in told and "Data workers a rank; 0 reads in the training process; auto" in told
