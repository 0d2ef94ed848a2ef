"""A run that goes on says what differs from the one that it goes on with; what is refused, and the way out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fixtures.scar_files import write_scar
from fixtures.small_runs import nested
from virtue_pl.cli.lightning import VirtueCLI
from virtue_pl.cli.main import main
from virtue_pl.cli.run.folder import settings_of
from virtue_pl.cli.run.resume import KEY, compare, describe_run
from virtue_pl.data.conversion.scar import convert_scar

pytestmark = pytest.mark.filterwarnings("ignore:Attribute .* is an instance of `nn.Module`:UserWarning")
COUNTS, REFUSED = "counts from here on", "refused"
OPTIMIZATION, SAMPLING = "model.init_args.optimization.init_args", "data.init_args.sampling"
MIXED = "virtue_pl.data.MixedDataModule"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made_of")
    for name, train in (("one", [1, 2, 3, 1, 2, 1, 2, 1, 1, 2]), ("other", [1, 2, 3, 1, 2, 1, 2, 1, 3])):
        convert_scar(write_scar(folder / name / "scar", train=train, val=[1, 2]), folder / name, images_per_shard=3)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the config is, and where the runs are, in `run`."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def layers(write_config: Callable[[Path], Path], folder: Path, shards: Path) -> Callable[..., list[str]]:
    """`layers({"data.init_args.batch_size": 3})` gives the options of a small run on shards, with settings over it."""
    config_file = write_config(folder)
    text = re.sub("cli_dummies.Root", "cli_dummies.RowsRoot", config_file.read_text())
    content = yaml.safe_load(text)
    content["data"] = {
        "class_path": "virtue_pl.data.SCaRDataModule",
        "init_args": {
            "train": str(shards / "one/SCAR_mini"),
            "val": str(shards / "one/SCaR_eval_mini_val"),
            "batch_size": 2,
            "sampling": {"num_negatives": 1, "shuffle_buffer": 3, "sample_buffer": 4},
        },
    }
    content["model"]["init_args"] |= {
        "gradient_cache": {"class_path": "fixtures.cli_dummies.Chunked", "init_args": {"chunk_size": 2}},
    }
    content["model"]["init_args"]["optimization"]["init_args"]["lr_multipliers"] = {"connector": 2.0}
    content["trainer"] |= {"max_steps": 4, "max_epochs": -1, "limit_val_batches": 0, "log_every_n_steps": 1}
    content["trainer"]["callbacks"].append({"class_path": "virtue_pl.callbacks.LastCheckpoint"})
    config_file.write_text(yaml.safe_dump(content))

    def options(changes: dict[str, Any] = {}) -> list[str]:  # noqa: B006
        (folder / "layer.yaml").write_text(yaml.safe_dump(nested(changes)))
        return ["--config", str(config_file), "--config", str(folder / "layer.yaml")]

    return options


@pytest.fixture(scope="module")
def made_of(layers: Callable[..., list[str]]) -> Callable[..., dict[str, Any]]:
    """`made_of(changes)` gives what such a run is made of."""

    def describe(changes: dict[str, Any] = {}) -> dict[str, Any]:  # noqa: B006
        cli = VirtueCLI("fit", layers(changes))
        settings = settings_of(yaml.safe_load(cli.parser.dump(cli.config)))
        return dict(describe_run(settings, cli.trainer, cli.model, cli.datamodule))

    return describe


@pytest.fixture(scope="module")
def unchanged(made_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What the run is made of with nothing over it."""
    return made_of()


def mixed(*names: str, weights: tuple[float, ...] = (), block_size: int = 1, seed: int = 0) -> dict[str, Any]:
    """Return the settings of a mixture of shards, which stand where FOLDER is."""
    part = {"class_path": "virtue_pl.data.SCaRDataModule", "init_args": {"train": "FOLDER/{}/SCAR_mini"}}
    parts = {name: yaml.safe_load(yaml.safe_dump(part).replace("{}", name)) for name in names}
    options = {"parts": parts, "weights": dict(zip(names, weights or (1.0, 1.0), strict=False)), "batch_size": 2}
    return {"data": {"class_path": MIXED, "init_args": {**options, "block_size": block_size, "reader": {"seed": seed}}}}


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "batch size": (
        {"data.init_args.batch_size": 3},
        {"data.batch_size": COUNTS, "steps_per_epoch": COUNTS},
    ),
    "workers": ({"data.init_args.reader.num_workers": 2}, {"data.reader.num_workers": COUNTS}),
    "ranks": ({"trainer.devices": 2}, {"trainer.devices": COUNTS}),
    "nodes": ({"trainer.num_nodes": 2}, {"trainer.num_nodes": COUNTS}),
    "seed": ({"seed_everything": 2}, {"seed_everything": "no effect: the checkpoint's seed goes on"}),
    "seed of the rows": ({"data.init_args.reader.seed": 1}, {"data.reader.seed": COUNTS, "rows": REFUSED}),
    "shards": (
        {"data.init_args.train": "FOLDER/other/SCAR_mini"},
        {"data.train": COUNTS, "rows": REFUSED},
    ),
    "fewer rows": (
        {f"{SAMPLING}.train_rows": 12},
        {"data.sampling.train_rows": COUNTS, "rows": REFUSED, "steps_per_epoch": COUNTS},
    ),
    "images shuffled": ({f"{SAMPLING}.shuffle_buffer": 9}, {"data.sampling.shuffle_buffer": COUNTS, "rows": REFUSED}),
    "rows shuffled": ({f"{SAMPLING}.sample_buffer": 9}, {"data.sampling.sample_buffer": COUNTS, "rows": REFUSED}),
    "equal targets": ({f"{SAMPLING}.distinct": False}, {"data.sampling.distinct": COUNTS, "rows": REFUSED}),
    "negatives": ({f"{SAMPLING}.num_negatives": 2}, {"data.sampling.num_negatives": COUNTS}),
    "negatives at most": (
        {f"{SAMPLING}.negatives_required": False},
        {"data.sampling.negatives_required": COUNTS},
    ),
    "validation": (
        {"data.init_args.val": "FOLDER/other/SCaR_eval_mini_val"},
        {"data.val": COUNTS},
    ),
    "length of an epoch": (
        {f"{SAMPLING}.steps_per_epoch": 3},
        {"data.sampling.steps_per_epoch": COUNTS, "steps_per_epoch": COUNTS},
    ),
    "modes": ({"model.init_args.scales": {"box": 0.5, "point": 0.5}}, None),  # type: ignore[dict-item]
    "accumulation": ({"trainer.accumulate_grad_batches": 2}, {"trainer.accumulate_grad_batches": COUNTS}),
    "precision": ({"trainer.precision": "bf16-mixed"}, {"trainer.precision": COUNTS}),
    "clipping": ({"trainer.gradient_clip_val": 0.5}, {"trainer.gradient_clip_val": COUNTS}),
    "length of the run": ({"trainer.max_steps": 8}, {"trainer.max_steps": COUNTS}),
    "schedule": ({f"{OPTIMIZATION}.schedule": "linear"}, {"model.optimization.schedule": COUNTS}),
    "warm-up": ({f"{OPTIMIZATION}.warmup_steps": 3}, {"model.optimization.warmup_steps": COUNTS}),
    "learning rate": ({f"{OPTIMIZATION}.lr": 1.0}, {"model.optimization.lr": COUNTS}),
    "weight decay": ({f"{OPTIMIZATION}.weight_decay": 0.5}, {"model.optimization.weight_decay": COUNTS}),
    "multiplier": (
        {f"{OPTIMIZATION}.lr_multipliers.connector": 3.0},
        {"model.optimization.lr_multipliers.connector": COUNTS},
    ),
    "chunk": ({"model.init_args.gradient_cache.init_args.chunk_size": 1}, {"model.gradient_cache.chunk_size": COUNTS}),
    "sizes": ({"model.init_args.connector.init_args.kernel": 7}, {"model.connector.kernel": COUNTS}),
    "frozen": (
        {"model.init_args.encoder.init_args.frozen": True},
        {"model.encoder.frozen": COUNTS, "trained_parameters": COUNTS},
    ),
    "first weights": (
        {"model.init_args.segmentation.init_args.weights": "FOLDER/weights.safetensors"},
        {"model.segmentation.weights": "no effect: the checkpoint's weights go on"},
    ),
}


def placed(settings: Any, folder: Path) -> Any:
    """Return settings with a folder where FOLDER stands."""
    return yaml.safe_load(yaml.safe_dump(settings).replace("FOLDER", str(folder)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_thing_that_differs_is_named(
    made_of: Callable[..., dict[str, Any]], unchanged: dict[str, Any], shards: Path, variant: str
) -> None:
    changes, expected = VARIANTS[variant]
    if variant == "first weights":
        from safetensors.torch import save_file

        save_file({"linear.weight": torch.zeros(4, 2), "linear.bias": torch.zeros(4)}, shards / "weights.safetensors")
    found = {each.name: each.then for each in compare(unchanged, made_of(placed(changes, shards)), [])}
    if expected is None:
        assert found == {"model.scales.box": COUNTS, "model.scales.point": COUNTS}
    else:
        assert found == expected


def test_a_run_that_is_made_of_the_same_differs_in_nothing(
    made_of: Callable[..., dict[str, Any]], unchanged: dict[str, Any]
) -> None:
    assert compare(unchanged, made_of(), []) == []


def test_a_mixture_is_compared_part_by_part(made_of: Callable[..., dict[str, Any]], shards: Path) -> None:
    def fates(after: dict[str, Any], *allowed: str) -> dict[str, str]:
        now = made_of(placed(after, shards))
        return {each.name: each.then for each in compare(before, now, allowed) if each.name.startswith("rows")}

    before = made_of(placed(mixed("one", "other"), shards))
    assert fates(mixed("one", "other", weights=(3.0, 1.0))) == {}
    assert fates(mixed("one", "other", block_size=2)) == {}
    assert fates(mixed("one")) == {"rows.other": REFUSED}
    assert fates(mixed("one"), "rows.other") == {"rows.other": "begins with its first row"}
    assert fates(mixed("one", "other", seed=1), "rows.one") == {
        "rows.one": "begins with its first row",
        "rows.other": REFUSED,
    }
    assert fates({}) == {"rows": REFUSED, "rows.one": REFUSED, "rows.other": REFUSED}


Fit = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def fit(layers: Callable[..., list[str]], shards: Path) -> Fit:
    """`fit(changes, *options)` gives the exit code, and what was printed: the steps, and the rest."""

    def run(changes: dict[str, Any] = {}, *options: str) -> tuple[int, str, str]:  # noqa: B006
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = main(["fit", *layers(placed(changes, shards)), *options])
        return code, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope="module")
def first(fit: Fit, folder: Path) -> str:
    """The steps that a run of four steps prints; what it leaves is in `first`."""
    code, steps, _ = fit()
    assert code == 0
    shutil.copytree(folder / "run", folder / "first")
    return steps


@pytest.fixture
def run(first: str, folder: Path) -> Path:
    """The folder of the run of four steps, as it left it."""
    for name in ("run", "new"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "first", folder / "run")
    return folder / "run"


GO_ON = ("--ckpt_path", "last", "--trainer.max_steps", "7")


def step_lines(printed: str) -> list[str]:
    """The lines that a step prints, without the last one, which says where the checkpoints are."""
    *lines, last = printed.splitlines()
    assert last.startswith("checkpoints in ")
    return lines


def test_a_checkpoint_holds_what_its_run_is_made_of_and_the_same_run_goes_on_in_silence(fit: Fit, run: Path) -> None:
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)[KEY]
    assert content["data.batch_size"] == 2 and content["rows"].startswith("16 of shards ")
    code, _, told = fit({}, "--ckpt_path", "last")
    assert code == 0 and "differs" not in told
    code, steps, told = fit({"trainer.max_steps": 6}, "--ckpt_path", "last")
    assert code == 0 and [line.split()[1] for line in step_lines(steps)] == ["4", "5"]
    row = next(line for line in told.splitlines() if "trainer.max_steps" in line)
    assert row.split()[:3] == ["trainer.max_steps", "4", "6"] and COUNTS in row


def test_a_learning_rate_and_a_schedule_that_were_changed_count(fit: Fit, run: Path) -> None:
    code, steps, told = fit({f"{OPTIMIZATION}.lr": 1.0, f"{OPTIMIZATION}.schedule": "linear"}, *GO_ON)
    assert code == 0 and "model.optimization.lr " in told
    lrs = [float(line.split()[3]) for line in step_lines(steps)]
    assert lrs == pytest.approx([1.0 * (1 - step / 7) for step in (4, 5, 6)], rel=1e-5)


def test_weight_decay_and_betas_that_were_changed_count(fit: Fit, run: Path) -> None:
    assert fit({f"{OPTIMIZATION}.weight_decay": 0.25, f"{OPTIMIZATION}.betas": [0.5, 0.6]}, *GO_ON)[0] == 0
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert {group["weight_decay"] for group in saved["param_groups"]} == {0.25, 0.0}
    assert {tuple(group["betas"]) for group in saved["param_groups"]} == {(0.5, 0.6)}


@pytest.mark.parametrize("change", ["seed of the rows", "shards"])
def test_other_rows_are_refused_in_one_line_unless_asked_for(fit: Fit, run: Path, change: str) -> None:
    config = (run / "config.yaml").read_text()
    code, steps, told = fit(VARIANTS[change][0], *GO_ON)
    assert code == 1 and steps == ""
    assert told.splitlines()[-1].startswith("virtue-pl: fit: rows was 16 of shards ")
    assert "`--allow_changes rows`" in told.splitlines()[-1] and "Traceback" not in told
    assert (run / "config.yaml").read_text() == config, "a run that was refused leaves no trace"
    code, steps, _ = fit(VARIANTS[change][0], *GO_ON, "--allow_changes", "rows")
    assert code == 0
    begun = [line.partition("rows ")[2] for line in steps.splitlines()]
    assert "allow_changes" not in (run / "config.yaml").read_text()
    _, steps, _ = fit({**VARIANTS[change][0], "shared.run": str(run.parent / "new")}, "--trainer.max_steps", "3")
    assert begun == [line.partition("rows ")[2] for line in steps.splitlines()], "they begin with their first row"


def test_a_batch_size_that_was_changed_goes_on_with_the_rows_that_are_left(fit: Fit, first: str, run: Path) -> None:
    code, second, told = fit({"data.init_args.batch_size": 4}, "--ckpt_path", "last", "--trainer.max_steps", "6")
    assert code == 0 and "data.batch_size" in told
    rows = [row for line in (first + second).splitlines() for row in line.partition("rows ")[2].split()]
    assert len(rows) == 16 and sorted(map(int, rows)) == list(range(16))


def test_a_model_of_other_sizes_is_refused_in_one_line(fit: Fit, run: Path) -> None:
    code, _, told = fit({}, *GO_ON, "--shared.width", "6")
    assert code == 1 and "Traceback" not in told
    assert "(encoder.linear.weight was [4, 2], is [6, 2], and " in told.splitlines()[-1]
    assert any(line.split()[:3] == ["model.encoder.width", "4", "6"] for line in told.splitlines())


def test_a_name_that_nothing_is_refused_by_is_refused(fit: Fit) -> None:
    code, _, told = fit({}, "--allow_changes", "row")
    assert code == 1 and "allow_changes: 'row' is nothing that is refused: did you mean 'rows'?" in told


def test_a_checkpoint_of_an_earlier_version_goes_on_and_that_is_said(fit: Fit, run: Path) -> None:
    last = run / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    del content[KEY]
    torch.save(content, last)
    code, _, told = fit({}, *GO_ON)
    assert code == 0 and "does not say what its run was made of" in told
