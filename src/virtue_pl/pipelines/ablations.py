"""Study of variants that differ in a YAML or two: each is trained, tested on the same queries, compared and plotted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from virtue_pl.engine.precision import choose_precision
from virtue_pl.evaluation.reports.comparison_tables import markdown_comparison, rich_comparison
from virtue_pl.evaluation.reports.curves import read_curve
from virtue_pl.evaluation.reports.plots import plot_against_number, plot_curves, plot_families
from virtue_pl.evaluation.reports.report_files import write_json, write_text
from virtue_pl.evaluation.retrieval.predictions import read_predictions
from virtue_pl.evaluation.statistics.compare import (
    Comparison,
    compare,
    data_fingerprints,
    mean_shares,
    read_left_out,
)
from virtue_pl.evaluation.statistics.compared_run import ComparedRun
from virtue_pl.evaluation.statistics.summary import Chance, context
from virtue_pl.pipelines.plan import Run, content_of, read_plan, read_run
from virtue_pl.pipelines.runs import Command, Runs
from virtue_pl.types import VirtueError

TEST = "test"
"""The set whose results lie in a run's own folder; those of another lie in a folder of its name in it."""


@dataclass(frozen=True)
class FeaturesRun:
    """Run of `predict`, which stores each image's frozen features.

    result: the last file that it writes, in the folder of shards.

    Example:
        >>> FeaturesRun(Run(("configs/virtue_mini.yaml",), {}), "features/features.json").result
        'features/features.json'
    """

    run: Run
    result: str


@dataclass(frozen=True)
class Variant:
    """One model of the study.

    configs, overrides: see `Run`. rows: evaluation mode -> the row of the tables that it becomes.
    seeds: one training each. reference: the row that this variant's rows are compared to.
    sets: what it is tested on: name -> overrides of that test.
    features: what is stored before it, once for all variants that name the same.

    Example:
        >>> crop = Variant(["configs/virtue_mini.yaml"], {"box": "crop"}, overrides={}, seeds=[0], reference="virtue")
    """

    configs: Sequence[str]
    rows: Mapping[str, str]
    overrides: Mapping[str, Any]
    seeds: Sequence[int]
    reference: str
    features: FeaturesRun | None = None
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {TEST: {}})


@dataclass(frozen=True)
class AblationPlan:
    """Plan of a study, read from YAML.

    precision: of all variants, see `choose_precision`. shared: paths that all variants share, which must be there.
    segment_tokens: row -> number, for the figure over it.
    learning_curves: the variants in the figure of learning curves. means: name -> what the tasks of a mean over tasks
    start with.

    Example:
        >>> list(AblationPlan.read("configs/studies/ablations.yaml").variants)[0]  # doctest: +SKIP
        'virtue'
    """

    precision: str
    shared: Mapping[str, str]
    variants: Mapping[str, Variant]
    segment_tokens: Mapping[str, float]
    learning_curves: Sequence[str]
    means: Mapping[str, str]

    @classmethod
    def read(cls, path: str | Path) -> AblationPlan:
        """Read a plan from YAML.

        Its `overrides`, `seeds`, `reference` and `sets` stand for all variants; a variant may state its own.
        """
        found = read_plan(
            path,
            {
                "precision",
                "shared",
                "overrides",
                "seeds",
                "reference",
                "sets",
                "variants",
                "segment_tokens",
                "learning_curves",
                "means",
            },
        )
        variants = {name: read_variant(name, variant, found) for name, variant in found["variants"].items()}
        return cls(
            found["precision"],
            found["shared"],
            variants,
            found["segment_tokens"],
            found["learning_curves"],
            found["means"],
        )


def read_variant(name: str, variant: Mapping[str, Any], plan: Mapping[str, Any]) -> Variant:
    """Return a variant of a plan. Raises VirtueError for keys that a variant does not have, or lacks."""
    allowed = [field.name for field in fields(Variant)]
    if not {"configs", "rows"} <= variant.keys() <= set(allowed):
        raise VirtueError(
            f"plan: variant {name} has {sorted(variant)}, expected configs and rows, and of {', '.join(allowed[2:])}"
            " what differs"
        )
    own: dict[str, Any] = {"overrides": {**plan["overrides"], **variant.get("overrides", {})}}
    own |= (
        {"features": FeaturesRun(read_run(variant["features"]), variant["features"]["result"])}
        if "features" in variant
        else {}
    )
    return Variant(**{**{name: plan[name] for name in ("seeds", "reference", "sets")}, **variant, **own})


class Ablations(Runs):
    """Trains each variant with each of its seeds in OUT/VARIANT/seed_N, tests it, and reports.

    Args:
        plan: what to do.
        out: folder of the runs and the report.
        lightning: runs `fit` or `test` with their arguments.

    Example:
        >>> plan, out = AblationPlan.read("configs/studies/ablations.yaml"), Path("runs/ablations")  # doctest: +SKIP
        >>> Ablations(plan, out, lightning.main, Console())(["virtue", "crop"])
    """

    def __init__(self, plan: AblationPlan, out: Path, lightning: Command, console: Console) -> None:
        super().__init__(out, lightning, console)
        self.plan = plan
        for name, path in plan.shared.items():
            if not Path(path).exists():
                raise VirtueError(
                    f"plan: shared.{name}: {path} is not there; run `virtue-pl quickstart`, which makes it, or name"
                    " another in the plan"
                )

    def __call__(self, names: Sequence[str] = (), sets: Sequence[str] = ()) -> dict[str, Any]:
        """Train, test and report the named variants on the named sets, or all; returns what `report.json` holds.

        Of several sets, the report's main part is of the last one in the plan.
        """
        expected = list(dict.fromkeys(name for variant in self.plan.variants.values() for name in variant.sets))
        for name in sets:
            if name not in expected:
                raise VirtueError(f"the plan has no set {name!r}, expected some of {', '.join(expected)}")
        for name in names:
            if name not in self.plan.variants:
                raise VirtueError(f"the plan has no variant {name!r}, expected some of {', '.join(self.plan.variants)}")
        variants = {
            name: replace(variant, sets={key: variant.sets[key] for key in variant.sets if key in sets or not sets})
            for name, variant in self.plan.variants.items()
            if name in names or not names
        }
        variants = {name: variant for name, variant in variants.items() if variant.sets}
        self.stages.expect(stage_names(variants))
        for name, variant in variants.items():
            if variant.features is not None:
                self.store_features(variant.features)
            for seed in variant.seeds:
                self.train_and_test(run_name(name, seed), variant, seed)
        return self.report(variants)

    def store_features(self, features: FeaturesRun) -> None:
        """Store the frozen features that variants need, if they are not stored."""
        made_from, result = (
            [*map(content_of, self.plan.shared.values())],
            Path(self.plan.shared["shards"], features.result),
        )
        self.features_run(
            features.run,
            self.plan.shared,
            made_from,
            result,
            [f"--trainer.precision={choose_precision(self.plan.precision)}"],
        )

    def train_and_test(self, name: str, variant: Variant, seed: int) -> None:
        """Train and test a variant with one seed."""
        run = Run(tuple(variant.configs), variant.overrides)
        paths = [variant.overrides.get(f"shared.{option}", path) for option, path in self.plan.shared.items()]
        options = [
            f"--seed_everything={seed}",
            f"--data.init_args.reader.seed={seed}",
            f"--trainer.precision={choose_precision(self.plan.precision)}",
        ]
        made = self.fit_run(name, run, self.plan.shared, [seed, *map(content_of, paths)], options)
        for tested_on, overrides in variant.sets.items():
            self.test_on(tested_on, name, replace(run, overrides={**run.overrides, **overrides}), made, options)

    def test_on(self, tested_on: str, name: str, run: Run, made: str, options: Sequence[str]) -> None:
        """Test what was trained on one set, if it was not."""
        if tested_on == TEST:
            return self.test_run(name, run, self.plan.shared, [made], options)
        folder = folder_of(self.out / name, tested_on)
        arguments = run.arguments({"run": str(folder), **self.plan.shared})
        self.stages.run(
            f"test {name}{where(tested_on)}",
            [made, run.content(), list(options)],
            folder / "report.json",
            lambda _: self.command("test", [*arguments, *options, f"--ckpt_path={self.checkpoint(name)}"]),
        )
        return None

    def report(self, variants: Mapping[str, Variant]) -> dict[str, Any]:
        """Compare the variants on each set, draw the figures, print the tables and write the report."""
        ordered = list(dict.fromkeys(name for variant in variants.values() for name in variant.sets))
        by_set = {tested_on: self.compared(tested_on, variants) for tested_on in ordered}
        comparison, chance_levels = by_set[ordered[-1]]
        report = {
            **comparison.as_json(),
            "chance": chance_levels,
            "set": ordered[-1],
            "sets": {name: {**found.as_json(), "chance": levels} for name, (found, levels) in by_set.items()},
            "benchmark_means": comparison.as_json()["means"],
            "means": {name: mean_shares(comparison.shares, prefix) for name, prefix in self.plan.means.items()},
            "arms": {name: self.variant_entry(name, variant) for name, variant in variants.items()},
            "figures": [path.name for path in self.figures(comparison, chance_levels, variants)],
            "context": context({"shared": dict(self.plan.shared)}),
        }
        write_json(self.out / "report.json", report)
        headings = {name: f"## {name}\n\n" if len(by_set) > 1 else "" for name in by_set}
        tables = [headings[name] + markdown_comparison(*found) for name, found in by_set.items()]
        write_text(self.out / "report.md", report_text(report, "\n".join(tables)))
        for name, (found, levels) in by_set.items():
            if len(by_set) > 1:
                self.console.rule(name)
            for table in rich_comparison(found, levels):
                self.console.print(table)
            for note in found.notes:
                self.console.print(note, highlight=False, markup=False)
        self.console.print(f"report: {self.out / 'report.md'}", highlight=False, soft_wrap=True)
        return report

    def compared(self, tested_on: str, variants: Mapping[str, Variant]) -> tuple[Comparison, Chance]:
        """Return the comparison of the variants that were tested on a set, and chance there."""
        chosen = {name: variant for name, variant in variants.items() if tested_on in variant.sets}
        chance_levels: Chance = {}
        for name, variant in chosen.items():
            folder = Path(run_name(name, variant.seeds[0]))
            chance_levels |= self.report_of(str(folder_of(folder, tested_on)))["chance"]
        return compare(self.compared_runs(tested_on, chosen)), chance_levels

    def variant_entry(self, name: str, variant: Variant) -> dict[str, Any]:
        """Return a variant's entry in `report.json`.

        It has the settings, mean seconds of the stages, and the test data's fingerprints.
        """
        entry = asdict(variant)
        entry = {"against" if name == "reference" else name: value for name, value in entry.items()}
        return {
            **entry,
            "seconds": self.seconds_of(name, variant),
            "data_fingerprints": sorted(
                {
                    found
                    for seed in variant.seeds
                    for tested_on in list(variant.sets)[-1:]
                    for found in data_fingerprints(folder_of(self.out / run_name(name, seed), tested_on))
                }
            ),
        }

    def compared_runs(self, tested_on: str, variants: Mapping[str, Variant]) -> list[ComparedRun]:
        """Return the rows of a set's tables.

        Where the row to compare to belongs to no chosen variant, a row stands alone.
        """
        rows = {row for variant in variants.values() for row in variant.rows.values()}
        found = []
        for name, variant in variants.items():
            folders = [folder_of(self.out / run_name(name, seed), tested_on) for seed in variant.seeds]
            trainings = tuple(read_predictions(folder / "predictions.jsonl") for folder in folders)
            fingerprints = tuple(sorted({found for folder in folders for found in data_fingerprints(folder)}))
            left_out = dict(found for folder in folders for found in read_left_out(folder).items())
            found += [
                ComparedRun(
                    row,
                    trainings,
                    mode,
                    variant.reference if variant.reference in rows else row,
                    fingerprints=fingerprints,
                    left_out=left_out,
                )
                for mode, row in variant.rows.items()
            ]
        return found

    def seconds_of(self, name: str, variant: Variant) -> dict[str, float]:
        """Return the mean seconds of each stage over the seeds."""
        seconds, runs = self.stages.seconds(), [run_name(name, seed) for seed in variant.seeds]
        ends = [where(tested_on) for tested_on in variant.sets]
        fitted = sum(seconds[f"fit {run}"] for run in runs) / len(runs)
        tested = sum(seconds[f"test {run}{end}"] for run in runs for end in ends) / len(runs)
        return {"fit": round(fitted, 1), "test": round(tested, 1)}

    def figures(self, comparison: Comparison, chance_levels: Chance, variants: Mapping[str, Variant]) -> list[Path]:
        """Draw bars, and the figures that the plan asks for and the chosen variants have data for."""
        found = plot_families(comparison, chance_levels, self.out)
        rows = {row for variant in variants.values() for row in variant.rows.values()}
        numbers = {row: number for row, number in self.plan.segment_tokens.items() if row in rows}
        tasks = [task for task, shares in comparison.shares.items() if numbers.keys() <= shares.keys()]
        if len(numbers) > 1 and tasks:
            found.append(
                plot_against_number(
                    comparison, numbers, tasks, chance_levels, self.out / "segment_tokens.png", "segment tokens"
                )
            )
        curves = {name: self.curves_of(name, variants[name]) for name in self.plan.learning_curves if name in variants}
        if curves:
            found.append(plot_curves(curves, self.out / "learning_curves.png", "hit@1 on the validation set, %"))
        return found

    def curves_of(self, name: str, variant: Variant) -> list[dict[int, float]]:
        """Read the validation curves of a variant, one for each seed."""
        return [read_curve(self.out / run_name(name, seed), "val/hit@1") for seed in variant.seeds]


def folder_of(run: Path, tested_on: str) -> Path:
    """Return the folder of a run's test on a set."""
    return run if tested_on == TEST else run / tested_on


def stage_names(variants: Mapping[str, Variant]) -> list[str]:
    """Return the names of the stages of a study, in order, each once."""
    found: list[str] = []
    for name, variant in variants.items():
        found += [] if variant.features is None else [Path(variant.features.result).parent.name]
        for run in (run_name(name, seed) for seed in variant.seeds):
            found += [f"fit {run}", *(f"test {run}{where(tested_on)}" for tested_on in variant.sets)]
    return list(dict.fromkeys(found))


def where(tested_on: str) -> str:
    """Return what the name of a test's stage ends in."""
    return "" if tested_on == TEST else f" on {tested_on}"


def run_name(variant: str, seed: int) -> str:
    """Return the run's folder in the study's; `virtue-pl compare OUT/VARIANT` takes all seeds together."""
    return f"{variant}/seed_{seed}"


def report_text(report: Mapping[str, Any], tables: str) -> str:
    """Return the report as Markdown."""
    lines = [
        f"# Ablations ({report['context']['date']})",
        "",
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in report["figures"]),
    ]
    lines += [
        tables,
        "### arms",
        "",
        "| arm | configs | overrides | seeds | seconds to fit | to test |",
        "|---|---|---|---|---:|---:|",
    ]
    for name, variant in report["arms"].items():
        overrides = ", ".join(f"{option}={value}" for option, value in variant["overrides"].items())
        cells = [
            name,
            ", ".join(variant["configs"]),
            overrides,
            ", ".join(map(str, variant["seeds"])),
            str(variant["seconds"]["fit"]),
            str(variant["seconds"]["test"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
