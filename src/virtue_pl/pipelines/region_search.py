"""Study of a search by region: models, ways to point and to embed, one gallery, tables with intervals and chance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.numpy import save_file

from virtue_pl.apps.region_gallery import (
    GalleryImage,
    GalleryItem,
    View,
    describe_gallery,
    encode_views,
    open_gallery,
    read_gallery,
    to_retrieval,
)
from virtue_pl.embedder import Embedder
from virtue_pl.engine.precision import choose_precision
from virtue_pl.evaluation.retrieval.region_retrieval import RetrievalItems, findable_queries
from virtue_pl.pipelines.plan import Run, content_of, read_plan, read_run
from virtue_pl.pipelines.runs import Command, Runs
from virtue_pl.types import VirtueError, replace_whole

VECTORS = "vectors.safetensors"


@dataclass(frozen=True)
class SearchModel:
    """A model of the study: a checkpoint, or a run that makes one.

    test: whether the run is tested on its data, too, so that it is seen what the training cost there.

    Example:
        >>> SearchModel(checkpoint="runs/quickstart/virtue/checkpoints/last.ckpt").run is None
        True
    """

    checkpoint: str | None = None
    run: Run | None = None
    test: bool = False


@dataclass(frozen=True)
class SearchRow:
    """One way to search: a model, how queries and documents are embedded, and the kind of index ("exact" for none).

    Example:
        >>> SearchRow("virtue", View("point"), View("box")).index
        'exact'
    """

    model: str
    query: View
    documents: View
    index: str = "exact"


@dataclass(frozen=True)
class RegionSearchPlan:
    """Plan of the study, read from YAML.

    gallery: sets by name, each a folder of `shared["shards"]`. trial: the number of first regions of each set that are
    also searched by themselves, with `trial_rows`. differences: row -> the row that is subtracted. sheet: the row whose
    first `queries` of each set are drawn with their hits.

    Example:
        >>> list(RegionSearchPlan.read("configs/studies/region_search.yaml").models)  # doctest: +SKIP
        ['virtue', 'same_object', 'paper_connector']
    """

    precision: str
    seed: int
    shared: Mapping[str, str]
    gallery: Mapping[str, str]
    trial: int
    models: Mapping[str, SearchModel]
    rows: Mapping[str, SearchRow]
    trial_rows: Sequence[str]
    differences: Mapping[str, str]
    sheet: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> RegionSearchPlan:
        """Read a plan. Raises VirtueError for keys that are missing or too many, and for names that are not there."""
        found = read_plan(path, {field.name for field in fields(cls)})
        models = {name: read_model(name, model) for name, model in found["models"].items()}
        rows = {name: read_row(name, row, models) for name, row in found["rows"].items()}
        if not isinstance(found["sheet"], Mapping) or found["sheet"].keys() != {"row", "queries"}:
            raise VirtueError(f"plan: sheet is {found['sheet']!r}, expected row and queries")
        named = [*found["trial_rows"], *found["differences"], *found["differences"].values(), found["sheet"]["row"]]
        for name in named:
            if name not in rows:
                raise VirtueError(f"plan: there is no row {name!r}, expected some of {', '.join(rows)}")
        if not rows[found["sheet"]["row"]].documents.of_regions:
            raise VirtueError("plan: sheet.row finds whole images, expected a row whose documents are regions")
        return cls(**{**found, "models": models, "rows": rows})

    def views(self, model: str) -> list[View]:
        """Return every view in which a model embeds the gallery."""
        rows = [row for row in self.rows.values() if row.model == model]
        return list(dict.fromkeys(view for row in rows for view in (row.documents, row.query)))


def read_model(name: str, found: Mapping[str, Any]) -> SearchModel:
    """Return a model of a plan. Raises VirtueError for other keys, or both or none of checkpoint and run."""
    allowed = [field.name for field in fields(SearchModel)]
    if not found.keys() <= set(allowed) or ("checkpoint" in found) == ("run" in found):
        raise VirtueError(f"plan: model {name} has {sorted(found)}, expected checkpoint, or run and perhaps test")
    return SearchModel(**{**found, **({"run": read_run(found["run"])} if "run" in found else {})})


def read_row(name: str, found: Mapping[str, Any], models: Mapping[str, SearchModel]) -> SearchRow:
    """Return a row of a plan. Raises VirtueError for other keys, a model that is not there, or an impossible view."""
    if not {"model", "query", "documents"} <= found.keys() <= {field.name for field in fields(SearchRow)}:
        raise VirtueError(
            f"plan: row {name} has {sorted(found)}, expected model, query and documents, and perhaps index"
        )
    if found["model"] not in models:
        raise VirtueError(f"plan: row {name} has the model {found['model']!r}, expected one of {', '.join(models)}")
    views = {key: read_view(f"row {name}, {key}", found[key]) for key in ("query", "documents")}
    if not views["query"].of_regions and views["documents"].of_regions:
        raise VirtueError(f"plan: row {name} searches regions with a whole image, which has no name of its own")
    return SearchRow(**{**found, **views})


def read_view(where: str, found: Mapping[str, Any]) -> View:
    """Return a view of a plan. Raises VirtueError, which says where, for other keys or an unknown prompt."""
    allowed = [field.name for field in fields(View)]
    if not isinstance(found, Mapping) or not found.keys() <= set(allowed):
        raise VirtueError(f"plan: {where} is {found!r}, expected some of {', '.join(allowed)}")
    try:
        return View(**found)
    except VirtueError as error:
        raise VirtueError(f"plan: {where}: {error}") from error


class RegionSearch(Runs):
    """Trains the models that a plan names, embeds the gallery with each, searches it in every way, and reports.

    Args:
        plan: what to do.
        out: folder of the runs, the embeddings and the report.
        lightning: runs `fit`, `test` or `predict` with their arguments.

    Raises VirtueError where something is not there that the quickstart makes.

    Example:
        >>> plan, out = RegionSearchPlan.read("configs/studies/region_search.yaml"), Path("runs/out")  # doctest: +SKIP
        >>> RegionSearch(plan, out, lightning.main, Console())()
    """

    def __init__(self, plan: RegionSearchPlan, out: Path, lightning: Command, console: Console) -> None:
        super().__init__(out, lightning, console)
        self.plan = plan
        self.folders = {name: Path(plan.shared["shards"], folder) for name, folder in plan.gallery.items()}
        given = {f"models.{name}.checkpoint": model.checkpoint for name, model in plan.models.items()}
        paths = {**{f"shared.{name}": path for name, path in plan.shared.items()}, **given}
        paths |= {f"gallery.{name}": str(path) for name, path in self.folders.items()}
        for name, path in paths.items():
            if path is not None and not Path(path).exists():
                raise VirtueError(
                    f"plan: {name}: {path} is not there; run `virtue-pl quickstart`, which makes it, or name another in"
                    " the plan"
                )

    def __call__(self) -> dict[str, Any]:
        """Do every stage; returns what `report.json` holds."""
        from virtue_pl.pipelines.region_search_report import report_search

        self.stages.expect(self.stage_names())
        made = [
            self.fit_model(name, model) if model.run is not None else content_of(self.checkpoint_of(name))
            for name, model in self.plan.models.items()
        ]
        self.encode(made)
        return report_search(self)

    def stage_names(self) -> list[str]:
        """Return the names of all stages, in order."""
        found = []
        for name, model in self.plan.models.items():
            found += [f"fit {name}"] * (model.run is not None) + [f"test {name}"] * model.test
        return [*found, "embed"]

    def checkpoint_of(self, name: str) -> Path:
        """Return the path of a model's checkpoint."""
        given = self.plan.models[name].checkpoint
        return self.checkpoint(name) if given is None else Path(given)

    def options(self) -> list[str]:
        """Return the options of every training."""
        return [
            f"--seed_everything={self.plan.seed}",
            f"--data.init_args.reader.seed={self.plan.seed}",
            f"--trainer.precision={choose_precision(self.plan.precision)}",
        ]

    def shared_content(self) -> list[Any]:
        """Return what changes with the files that the quickstart left."""
        return [content_of(path) for path in self.plan.shared.values()]

    def fit_model(self, name: str, model: SearchModel) -> str:
        """Train a model, and test it where the plan says so. Returns the training's fingerprint."""
        assert model.run is not None
        start = model.run.overrides.get("shared.start")
        began = [] if start is None else [content_of(start)]
        made = self.fit_run(name, model.run, self.plan.shared, [*self.shared_content(), *began], self.options())
        if model.test:
            self.test_run(name, model.run, self.plan.shared, [made], self.options())
        return made

    def encode(self, made_from: Sequence[Any]) -> None:
        """Embed the gallery with each model in each of its views, if it was not."""
        views = {name: self.plan.views(name) for name in self.plan.models}
        about = [tensor_name(name, view) for name, found in views.items() for view in found]
        sets = {name: content_of(folder) for name, folder in self.folders.items()}
        self.stages.run("embed", [*made_from, about, sets], self.vectors, lambda _: self.write_vectors(views))

    def write_vectors(self, views: Mapping[str, Sequence[View]]) -> None:
        """Embed the gallery, and write the vectors, with each embedder's fingerprint."""
        embedders = {name: Embedder.from_pretrained(self.checkpoint_of(name)) for name in views}
        folders = open_gallery(self.folders)
        total = sum(folder.manifest.images for folder in folders.values())
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("images embedded", total=total)
            found = encode_views(embedders, read_gallery(folders), views, lambda done: progress.advance(task, done))
        fingerprints = {name: embedder.fingerprint() for name, embedder in embedders.items()}
        with replace_whole(self.vectors) as temporary:
            save_file({tensor_name(*key): vectors for key, vectors in found.items()}, temporary, fingerprints)

    @property
    def vectors(self) -> Path:
        """The file of all embeddings."""
        return self.out / VECTORS

    def read_vectors(self, name: str, view: View) -> np.ndarray:
        """Return the embeddings of a model in a view, [items, dim]."""
        with safe_open(self.vectors, "numpy") as file:
            found: np.ndarray = file.get_tensor(tensor_name(name, view))
        return found

    def fingerprint_of_model(self, name: str) -> str:
        """Return the fingerprint of the embedder that a model's embeddings are of."""
        with safe_open(self.vectors, "numpy") as file:
            return str(file.metadata()[name])

    def images(self) -> Iterator[GalleryImage]:
        """Yield the images of the gallery."""
        return read_gallery(open_gallery(self.folders))


class Gallery:
    """The items of a study's gallery, and its rows' embeddings.

    regions, images: what is described of both, in the order of the embeddings. queries: the regions that have something
    to find, an image of another scene with the same object, whichever row is asked.

    Example:
        >>> gallery = Gallery(study)  # doctest: +SKIP
        >>> len(gallery.queries) <= len(gallery.regions)  # doctest: +SKIP
        True
    """

    def __init__(self, study: RegionSearch) -> None:
        self.study = study
        self.regions, self.images = describe_gallery(study.images())
        blank = to_retrieval(self.regions, np.zeros((len(self.regions), 1), dtype=np.float32))
        self.queries = findable_queries(blank, blank)
        if not self.queries:
            raise VirtueError(
                f"the gallery's {len(self.regions)} regions have no object that is in two scenes, so that there is"
                " nothing to find: name larger sets in the plan's `gallery`"
            )

    def trial_regions(self, set_name: str) -> list[int]:
        """Return the first regions of a set, as many as the plan's `trial`, in whole images."""
        found = [number for number, item in enumerate(self.regions) if item.set_name == set_name]
        found = found[: self.study.plan.trial]
        last = {self.regions[number].image for number in found[-1:]}
        cut = [number for number in found if self.regions[number].image in last]
        whole = sum(item.image in last for item in self.regions)
        return found if len(cut) == whole else found[: len(found) - len(cut)]

    def items(self, row: SearchRow) -> tuple[RetrievalItems, RetrievalItems]:
        """Return all regions as a row's queries, and its documents: all regions, or all images.

        A region whose query is its whole image has that image's embedding.
        """
        found = self.study.read_vectors(row.model, row.query)
        if not row.query.of_regions:
            numbers = {item.image: number for number, item in enumerate(self.images)}
            found = found[[numbers[item.image] for item in self.regions]]
        documents = self.regions if row.documents.of_regions else self.images
        return (
            to_retrieval(self.regions, found),
            to_retrieval(documents, self.study.read_vectors(row.model, row.documents)),
        )

    def documents(self, row: SearchRow, images: set[str]) -> list[int]:
        """Return the documents of a row that are of the given images."""
        items: Sequence[GalleryItem] = self.regions if row.documents.of_regions else self.images
        return [number for number, item in enumerate(items) if item.image in images]


def tensor_name(model: str, view: View) -> str:
    """Return the name of a model's embeddings in a view in their file."""
    return json.dumps([model, view.prompt, view.text], ensure_ascii=False)
