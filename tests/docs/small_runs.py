"""How each documented command is run small: a clone's folder after a tiny quickstart, and a rule for every command.

A rule is a pattern of the command's words and what is done with it. The first rule that fits counts; a command that
none fits is a mistake in the documentation, or wants a rule here.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import ROOT, blocks
from PIL import Image

from evaluation_files import write_mmeb_sets, write_scar_set
from fixtures.tiny_quickstart import tiny_plan
from virtue_pl.cli.main import main

Words = list[str]
CPU = ("--trainer.accelerator=cpu", "--trainer.devices=1")
MODES = {"model.init_args.evaluation_modes": ["box", "point"]}
STEPS = {"trainer.max_steps": 2, "trainer.val_check_interval": 2, "shared.batch_size": 8}
SCENES = {"source": "shapes", "train": 8, "val": 2, "test": 4, "size": 128, "mmeb_train": 8, "mmeb_test": 4}


def make_clone(folder: Path) -> None:
    """Fill `folder` with what a clone holds after a quickstart, all of it tiny, named as in the documentation."""
    for name in ("benchmarks", "docs"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", folder / "configs")
    for config in folder.glob("configs/virtue_?b.yaml"):  # MMEB's dozens of sets take seconds to parse
        config.write_text(config.read_text().replace("data: data/mmeb.yaml", "data: data/scar_mini.yaml"))
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan_of_three()))
    assert main(["quickstart", "--plan", "plan.yaml"]) == 0
    for alias in ("scar_mini", "scar_mini_stamps"):
        Path("data", alias).symlink_to("scar_mini_shapes")
        Path("data/shards", alias).symlink_to("scar_mini_shapes")
    assert main(["export", "runs/quickstart/virtue/checkpoints/last.ckpt", "--out", "FOLDER"]) == 0
    write_scar_set(Path("ROOT"), "ADE20K")
    write_mmeb_sets(Path("ROOT"))
    write_pairs(Path("my_pairs"))


def plan_of_three() -> dict[str, object]:
    """Return the tiny plan without the blind run, and with two ways to point."""
    plan = asdict(tiny_plan())
    plan["scenes"] = SCENES
    del plan["runs"]["blind"], plan["rows"]["blind"]
    plan["rows"]["virtue"] = {"box": "box", "point": "point"}
    for run in (plan["features"], *plan["runs"].values()):
        run["configs"] = [str(Path(config).relative_to(ROOT)) for config in run["configs"]]
    plan["runs"]["virtue"]["overrides"] |= MODES
    return plan


def write_pairs(folder: Path) -> None:
    """Write the lines that the documentation shows as JSON, often enough for a batch."""
    shown = [json.loads(line) for block in blocks() if block.language == "json" for line in block.text.splitlines()]
    train = [row for row in shown if "target" in row] * 8
    ranked = [row for row in shown if "candidates" in row] * 4
    (folder / "images").mkdir(parents=True)
    for number, row in enumerate([*train, *ranked]):
        noise = np.random.default_rng(number).integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.jpg")
        row = {**row, "query_image": f"{number}.jpg"}
        for name in ("train",) if number < len(train) else ("val", "test"):
            with open(folder / f"{name}.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def options(settings: dict[str, object]) -> Words:
    """Return dotted overrides as words."""
    return [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()]


def small_sizes() -> dict[str, dict[str, object]]:
    """Return what makes the run of each config small."""
    runs = tiny_plan().runs
    sizes = {name: dict(runs[name].overrides) for name in ("segmenter", "virtue", "no_segmentation")}
    sizes["virtue"] |= MODES
    for settings in sizes.values():
        for name in [name for name in settings if name.startswith("data.")]:
            del settings[name]
    return {
        "segmenter.yaml": sizes["segmenter"] | STEPS,
        "virtue_mini.yaml": sizes["virtue"] | STEPS,
        "no_segmentation.yaml": sizes["no_segmentation"] | STEPS,
        "eval_scar.yaml": {"data.init_args.options.limit": 2, "data.init_args.options.allow_missing": True},
        "config.yaml": {},
    }


def run_config(words: Words) -> None:
    """Run fit, validate, test, predict or check with the sizes of its first config."""
    first = Path(words[words.index("--config") + 1]).name
    more = small_sizes()[first]
    more = {name: value for name, value in more.items() if words[1] in ("fit", "check") or "val_check" not in name}
    run([*words[1:], *options(more), *CPU])


def run(words: Sequence[str]) -> None:
    """Run one of our own commands in this process."""
    assert main(list(words)) == 0, shlex.join(["virtue-pl", *words])


def run_with(*more: str, **instead: str) -> Callable[[Words], None]:
    """Return what runs one of our commands with some words replaced, and more of them behind."""
    return lambda words: run([*(instead.get(word, word) for word in words[1:]), *more])


def run_script(*more: str) -> Callable[[Words], None]:
    """Return what runs `python SCRIPT ...` or `python -c CODE` in this process, with more words behind."""

    def script(words: Words) -> None:
        if words[1] == "-c":
            exec(words[2], {})
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*words[1:], *more])
            patch.syspath_prepend(str(Path(words[1]).parent))
            runpy.run_path(words[1], run_name="__main__")

    return script


def run_export(words: Words) -> None:
    """Export into a new folder, whoever did so before."""
    shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
    run(words[1:])


def run_tensorboard(words: Words) -> None:
    """List what a board would show: there are curves in that folder."""
    found = list(Path(words[words.index("--logdir") + 1]).rglob("events.out.tfevents.*"))
    assert found, shlex.join(words)


def run_make(words: Words) -> None:
    """Run what a target of the Makefile would call, small where it is one of ours."""
    dry = subprocess.run(["make", "-n", "-o", ".venv/.installed", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    for line in dry.stdout.splitlines():
        called = shlex.split(re.sub(r"^env -u OMP_NUM_THREADS ", "", line))
        program = Path(called[0]).name if called[0].startswith(".venv/bin/") else ""
        if program == "virtue-pl" or (program == "python" and called[1].endswith(".py")):
            run_small([program, *called[1:]], set())
        else:
            assert program == "ruff" or called[1:3] in (["-m", "pytest"], ["-m", "mypy"]), line


def run_quickstart(words: Words) -> None:
    """Run the tiny plan, which was done before: everything is reused."""
    run(["quickstart", "--plan", "plan.yaml"])


def run_ablations(words: Words) -> None:
    """Run the study's own plan with a tiny model and one of its variants."""
    plan = yaml.safe_load(Path(words[words.index("--plan") + 1]).read_text())
    sizes = small_sizes()
    plan["precision"], plan["seeds"] = "32-true", [0]
    plan["variants"] = {name: plan["variants"][name] for name in ("no_segmentation",)}
    for variant in plan["variants"].values():
        variant["overrides"] = {"data.init_args.features": "features", **sizes["no_segmentation.yaml"]}
        variant["overrides"]["model.init_args.evaluation_modes"] = ["box", "blind"]
        variant["rows"] = {"box": "no_segmentation", "blind": "blind"}
        variant.pop("seeds", None)
    plan["learning_curves"], plan["segment_tokens"], plan["reference"] = list(plan["variants"]), {}, "no_segmentation"
    Path("ablations.yaml").write_text(yaml.safe_dump(plan))
    run(["ablations", "--plan", "ablations.yaml"])


NETWORK = None
"""Done by `make test-network`, see `test_documented_commands.py`."""
EVAL = ("--limit", "2", "--allow-missing", "--accelerator", "cpu", "--devices", "1")

RULES: tuple[tuple[str, Callable[[Words], None] | None], ...] = (
    (r"sudo apt-get install .*", NETWORK),
    (r"conda env create .*", NETWORK),
    (r"pip install .*", NETWORK),
    (r"virtue-pl fetch .*", NETWORK),
    (r"make setup", NETWORK),
    (r"make .*", run_make),
    (r"\.ci/run", lambda words: run_make(["make", "test", "lint", "types"])),
    (r"virtue-pl (\w+ )?--help", run_with()),
    (r"virtue-pl quickstart.*", run_quickstart),
    (r"virtue-pl ablations .*", run_ablations),
    (
        r"virtue-pl scenes .*",
        run_with(
            *(word for name, value in SCENES.items() for word in (f"--{name.replace('_', '-')}", str(value))),
            "--workers=1",
            **{"data/scar_mini": "data/again"},
        ),
    ),
    (r"virtue-pl shards .*", run_with(**{"data/shards/scar_mini": "data/shards/again"})),
    (r"virtue-pl doctor .*", run_with()),
    (r"virtue-pl check --config configs/virtue_[27]b\.yaml.*", run_with("--trainer.accelerator=cpu")),
    (r"virtue-pl check .*", run_config),
    (r"lightning (fit|test|predict) .*", run_config),
    (r"virtue-pl export .*", run_export),
    (r"virtue-pl parity .*", run_with()),
    (r"virtue-pl eval .*--robustness .*", run_with(*EVAL, "--robustness", "1")),
    (r"virtue-pl eval .*", run_with(*EVAL)),
    (r"virtue-pl compare .*", run_with()),
    (r"virtue-pl robustness .*", run_with("--limit", "2", "--no-plots", "--device", "cpu")),
    (
        r"python benchmarks/latency\.py .*",
        run_script("--rows=2", "--repeats=1", "--height=96", "--width=128", "--device=cpu"),
    ),
    (r"python docs/figure\.py .*", run_script("--out=figure.png")),
    (r"python -c .*", run_script()),
    (r"tensorboard --logdir .*", run_tensorboard),
)


def rule_for(words: Words) -> Callable[[Words], None] | None:
    """Return what is done with a command, None where that wants the network. Fails for a command without a rule."""
    line = " ".join(words)
    for pattern, action in RULES:
        if re.fullmatch(pattern, line, re.DOTALL):
            return action
    pytest.fail(f"no rule in {Path(__file__).name} says how to run small: {line}")


def run_small(words: Words, done: set[str]) -> None:
    """Run a command by its rule, unless it is `done`; one that wants the network is left to its own test."""
    action, line = rule_for(words), shlex.join(words)
    if action is not None and line not in done:
        action(words)
    done.add(line)
