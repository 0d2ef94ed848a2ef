"""What `check` says of a run, and what it refuses."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from virtue_pl.cli.main import main
from virtue_pl.cli.run.summary import never_validates, plan_run, sources_table, training_facts
from virtue_pl.engine.gradient_cache import FullBatch, GradientCache


@pytest.fixture
def checked(config_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        code = main(["check", "--config", str(config_file), *arguments])
        captured = capsys.readouterr()
        return code, " ".join(captured.out.replace("│", " ").split()), captured.err

    return run


def test_check_says_what_would_happen_and_writes_nothing(checked, tmp_path):
    code, shown, _ = checked("--model.init_args.segmentation.frozen", "true")
    assert code == 0
    assert "encoder Encoder 12 0" in shown and "segmentation Encoder 0 12" in shown and "all Root 27 12" in shown
    assert "shards 2" in shown and "rows 16" in shown
    assert "samples per epoch 16 in 4 batches a rank" in shown and "optimizer steps 8" in shown
    assert "the whole batch at once" in shown
    assert "--ckpt_path last goes on from there" in shown
    assert "seed 1" in shown
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--trainer.max_steps", "3"], "optimizer steps 3"),
        (["--trainer.limit_train_batches", "2"], "samples per epoch 8 in 2 batches"),
        (["--trainer.limit_train_batches", "0.5"], "optimizer steps 4"),
        (["--trainer.accumulate_grad_batches", "3"], "optimizer steps 4"),
        (["--trainer.max_epochs", "-1"], "without end"),
    ],
)
def test_steps_follow_the_trainers_limits(checked, arguments, told):
    assert told in checked(*arguments)[1]


def test_chunks_come_from_the_models_gradient_cache(checked):
    _, shown, _ = checked(
        "--model.init_args.gradient_cache",
        "fixtures.cli_dummies.Chunked",
        "--model.init_args.gradient_cache.chunk_size",
        "3",
    )
    assert "1 of 3 rows and one of 1: 3 does not divide 4" in shown


def test_chunks_that_divide():
    assert GradientCache(4).describe(12) == "3 of 4 rows: they divide the batch"
    assert (
        GradientCache(4).describe(4)
        == GradientCache(4).describe(3)
        == FullBatch().describe(4)
        == "the whole batch at once"
    )
    assert GradientCache(chunk_tokens=512).describe(4) == "of at most 512 tokens"


def test_missing_shards_are_one_line(checked):
    code, _, told = checked("--data.rows", "-1")
    assert code == 1
    assert told.splitlines()[-1].startswith("virtue-pl: data.folder: there are no shards in ")


def test_too_little_data(checked):
    code, _, told = checked("--data.rows", "3")
    assert (code, told.splitlines()[-1]) == (
        1,
        "virtue-pl: check: data: the training data is smaller than one batch; change data.init_args.batch_size",
    )


def test_a_mistake_is_told_as_by_fit(checked):
    code, _, told = checked("--data.row", "3")
    assert (code, told) == (
        2,
        "virtue-pl: data: fixtures.cli_dummies.Data has no argument 'row'; did you mean 'rows'?\n",
    )


def test_many_sources_stand_in_rows() -> None:
    sources = [
        {"split": f"test/set_{number}", "path": f"data/{number}", "task": "t", "rows": 1000 * number, "steps": number}
        for number in range(1, 20)
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sources_table(sources))
    lines = console.export_text().splitlines()
    assert len(lines) < 30 and any("test/set_19" in line and "19,000" in line for line in lines)


@pytest.mark.parametrize(
    ("interval", "max_steps", "accumulate", "never"),
    [(50, 20, 1, 50), (20, 20, 1, None), (21, 10, 2, 21), (20, 10, 2, None), (1.0, 20, 1, 100), (0.2, 20, 1, None)],
)
def test_a_validation_that_never_comes_is_said(
    interval: float, max_steps: int, accumulate: int, never: int | None
) -> None:
    trainer: Any = SimpleNamespace(
        **{"val_check_interval": interval, "accumulate_grad_batches": accumulate, "limit_train_batches": 1.0},
        **{"limit_val_batches": 1.0, "max_steps": max_steps, "max_epochs": -1, "world_size": 1},
    )
    plan = plan_run(trainer, batches=100, batch_size=4)
    assert never_validates(trainer, plan) == never
    facts = dict(training_facts(trainer, SimpleNamespace(), plan, 4))  # type: ignore[arg-type]
    assert ("validation" in facts) == (never is not None)
    if never is not None:
        assert facts["validation"].startswith(f"never: trainer.val_check_interval is {never} batches, but the run ends")
    trainer.limit_val_batches = 0
    assert never_validates(trainer, plan) is None
