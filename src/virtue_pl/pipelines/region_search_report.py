"""Report of a study of search by region: searches, tables, a page, an index to go on with, and drawn hits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from virtue_pl.apps.contact_sheet import ImageFolder, write_contact_sheet
from virtue_pl.apps.region_gallery import GalleryImage
from virtue_pl.evaluation.reports.report_files import write_bytes, write_json, write_text
from virtue_pl.evaluation.reports.retrieval_report import RetrievalTable, retrieval_markdown, retrieval_page
from virtue_pl.evaluation.reports.tables import TerminalTable
from virtue_pl.evaluation.retrieval.region_retrieval import (
    DEPTHS,
    RetrievalScores,
    nearest_items,
    score_found,
    score_retrieval,
)
from virtue_pl.evaluation.statistics.retrieval_estimates import estimate_retrieval, retrieval_differences
from virtue_pl.evaluation.statistics.summary import context
from virtue_pl.pipelines.plan import content_of
from virtue_pl.pipelines.region_search import Gallery, RegionSearch, SearchRow
from virtue_pl.preprocessing.requests import RequestRow
from virtue_pl.search import EncodedRow, EncodingFacts, Hit, IndexOptions, VectorIndex, row_schema, to_table
from virtue_pl.search.queries import Query
from virtue_pl.types.fingerprints import hash_values, library_versions

TRIAL, WHOLE = "trial", "gallery"
"""Names of the two searches: each set's first regions by themselves, and all scenes of all sets."""
ROWS, INDEX, IMAGES, SHEET = "regions.parquet", "index", "images", "hits.png"
COLUMNS = {"name": pa.string(), "set": pa.string()}
"""Columns of the index beside those of every index."""


def report_search(study: RegionSearch) -> dict[str, Any]:
    """Search the gallery in every way, write the report and what is drawn, print the tables; returns `report.json`."""
    gallery, plan, out = Gallery(study), study.plan, study.out
    indices = {name: IndexedRow.build(gallery, name, row) for name, row in plan.rows.items() if row.index != "exact"}
    searches = {WHOLE: search_gallery(gallery, indices)}
    if plan.trial:
        searches = {TRIAL: search_trial(gallery), **searches}
    found = [table for tables in searches.values() for table in tables]
    notes = [*gallery_notes(gallery), *(index.note() for index in indices.values())]
    report = {
        "results": {name: [as_json(table) for table in tables] for name, tables in searches.items()},
        "gallery": gallery_facts(gallery),
        "indices": {name: index.facts() for name, index in indices.items()},
        "tests": {name: study.report_of(name)["results"] for name, model in plan.models.items() if model.test},
        "models": {
            name: {"checkpoint": str(study.checkpoint_of(name)), "fingerprint": study.fingerprint_of_model(name)}
            for name in plan.models
        },
        "seconds": study.stages.seconds(),
        "notes": notes,
        "context": context(asdict(plan), plan.seed, hash_values(list(map(content_of, study.folders.values()))))
        | {"libraries": library_versions(("numpy", "lancedb", "pyarrow"))},
    }
    write_json(out / "report.json", report)
    write_text(out / "report.md", retrieval_markdown(found, notes))
    draw_hits(gallery, out / SHEET)
    write_text(out / "report.html", retrieval_page(found, notes, out / SHEET))
    for table in (table for each in found for table in each.tables()):
        study.console.print(TerminalTable(f"{table.title}, {table.caption}", table.cells))
    for note in notes:
        study.console.print(note, highlight=False, markup=False)
    study.console.print(f"report: {out / 'report.html'}, hits: {out / SHEET}", highlight=False, soft_wrap=True)
    return report


def search_gallery(gallery: Gallery, indices: Mapping[str, IndexedRow]) -> list[RetrievalTable]:
    """Return what each row finds in the whole gallery, for the queries of each set."""
    plan = gallery.study.plan
    scores: dict[str, RetrievalScores] = {}
    documents: dict[str, int] = {}
    for name, row in plan.rows.items():
        queries, found = gallery.items(row)
        chosen, documents[name] = queries.select(gallery.queries), len(found)
        index = indices.get(name)
        scores[name] = (
            score_retrieval(chosen, found)
            if index is None
            else score_found(chosen, found, index.search(chosen.vectors))
        )
    sets = [gallery.regions[number].set_name for number in gallery.queries]
    chosen_of = {name: [row for row, its_set in enumerate(sets) if its_set == name] for name in plan.gallery}
    images = [gallery.regions[number].image for number in gallery.queries]
    return [
        result_table(gallery, f"{WHOLE}, {name}", scores, documents, rows, images)
        for name, rows in chosen_of.items()
        if rows
    ]


def search_trial(gallery: Gallery) -> list[RetrievalTable]:
    """Return what the plan's `trial_rows` find among the first regions of each set, for these as queries."""
    plan, tables = gallery.study.plan, []
    for set_name in plan.gallery:
        trial = gallery.trial_regions(set_name)
        within = {gallery.regions[number].image for number in trial}
        names = Counter(name for number in trial for name in gallery.regions[number].names)
        images_of: dict[str, set[str]] = {}
        for number in trial:
            images_of.setdefault(next(iter(gallery.regions[number].names)), set()).add(gallery.regions[number].image)
        asked = [number for number in trial if len(images_of[next(iter(gallery.regions[number].names))]) > 1]
        if not asked:
            continue
        scores: dict[str, RetrievalScores] = {}
        documents: dict[str, int] = {}
        for name in plan.trial_rows:
            row = plan.rows[name]
            queries, found = gallery.items(row)
            among = gallery.documents(row, within)
            scores[name], documents[name] = score_retrieval(queries.select(asked), found.select(among)), len(among)
        images = [gallery.regions[number].image for number in asked]
        title = f"{TRIAL}, {set_name} ({len(trial)} regions, {len(names)} names)"
        tables.append(result_table(gallery, title, scores, documents, range(len(asked)), images))
    return tables


def result_table(
    gallery: Gallery,
    title: str,
    scores: Mapping[str, RetrievalScores],
    documents: Mapping[str, int],
    rows: Sequence[int],
    images: Sequence[str],
) -> RetrievalTable:
    """Return the estimates of some queries (`rows` of the scores), whose images are given for all, and differences."""
    plan, its_images = gallery.study.plan, [images[row] for row in rows]
    chosen = {
        name: RetrievalScores(found.values[list(rows)], found.chance[list(rows)]) for name, found in scores.items()
    }
    differences = {
        name: retrieval_differences(
            chosen[name], chosen[other], its_images, plan.rows[name].model == plan.rows[other].model
        )
        for name, other in plan.differences.items()
        if name in chosen and other in chosen
    }
    estimates = {name: estimate_retrieval(found, its_images) for name, found in chosen.items()}
    return RetrievalTable(title, estimates, differences, plan.differences, documents)


def as_json(table: RetrievalTable) -> dict[str, Any]:
    """Return a table's numbers for `report.json`."""
    return {
        "title": table.title,
        "rows": {
            name: {
                "metrics": {metric: found._asdict() for metric, found in row.metrics.items()},
                "chance": row.chance,
                "documents": table.documents[name],
            }
            for name, row in table.rows.items()
        },
        "differences": {
            name: {
                "less": table.references[name],
                "metrics": {metric: found._asdict() for metric, found in row.items()},
            }
            for name, row in table.differences.items()
        },
    }


def gallery_facts(gallery: Gallery) -> dict[str, Any]:
    """Return the numbers of a gallery, in all and of each set."""
    found: dict[str, Any] = {"regions": len(gallery.regions), "images": len(gallery.images)}
    found["queries"] = len(gallery.queries)
    for name in gallery.study.plan.gallery:
        regions = [item for item in gallery.regions if item.set_name == name]
        found[name] = {
            "regions": len(regions),
            "images": sum(item.set_name == name for item in gallery.images),
            "names": len({each for item in regions for each in item.names}),
            "queries": sum(gallery.regions[number].set_name == name for number in gallery.queries),
        }
    return found


def gallery_notes(gallery: Gallery) -> list[str]:
    """Return what the tables are of, in sentences."""
    facts = gallery_facts(gallery)
    sets = ", ".join(
        f"{facts[name]['regions']:,} of {name.replace('_', ' ')} objects ({facts[name]['names']} names)"
        for name in gallery.study.plan.gallery
    )
    lost = facts["regions"] - facts["queries"]
    alone = f"; {lost:,} regions whose name is in no other scene ask nothing" if lost else ""
    return [
        f"The gallery has {facts['regions']:,} regions of {facts['images']:,} scenes: {sets}{alone}. A query searches"
        " all scenes but its own; regions of its object's name are relevant.",
        "hit@k is the share of queries with a relevant document among the first k (recall@1 and recall@10 of instance"
        " retrieval), map the mean average precision over all documents.",
        "A whole image is relevant where a region of it has the query's name, or one of its captions speaks of it.",
        "Chance is what a random order of the documents is expected to have: hit@1 / hit@10 / map.",
    ]


@dataclass(frozen=True)
class IndexedRow:
    """A row's documents in an index as `virtue-pl index` builds it, of the kind that the plan names.

    items: of each row of the index by its id. width: hits that are asked for, so that ten are left without the query's
    own scene.

    Example:
        >>> index = IndexedRow.build(gallery, "same_object_ivf_rq", row)  # doctest: +SKIP
        >>> index.search(vectors)[0][:3]  # doctest: +SKIP
        [812, 91, 2044]
    """

    name: str
    index: VectorIndex
    items: Mapping[str, int]
    width: int
    exact_recall: list[float]

    @classmethod
    def build(cls, gallery: Gallery, name: str, row: SearchRow) -> IndexedRow:
        """Write a row's documents as encoded rows, and build their index in the study's folder, in the place of one."""
        study = gallery.study
        documents = gallery.regions if row.documents.of_regions else gallery.images
        vectors = study.read_vectors(row.model, row.documents)
        ids = [f"{item.set_name}/{item.path}#{item.region}" for item in documents]
        rows = [
            EncodedRow(
                its_id,
                item.path,
                vector,
                item.path,
                region=item.region,
                box=item.box,
                columns={"name": ", ".join(sorted(item.names)), "set": item.set_name},
            )
            for its_id, item, vector in zip(ids, documents, vectors, strict=True)
        ]
        facts = EncodingFacts(
            study.fingerprint_of_model(row.model),
            str(study.checkpoint_of(row.model)),
            vectors.shape[1],
            row.documents.text,
            "regions" if row.documents.of_regions else "images",
            {name: version or "" for name, version in library_versions().items()},
        )
        folder = study.out / name
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(to_table(rows, row_schema(facts, COLUMNS)), folder / ROWS)
        index = VectorIndex.build(folder / ROWS, folder / INDEX, IndexOptions(row.index), replace=True)
        most = max(Counter(item.image for item in documents).values())
        return cls(name, index, {its_id: number for number, its_id in enumerate(ids)}, DEPTHS[-1] + most, [])

    def search(self, vectors: np.ndarray) -> list[list[int]]:
        """Return the documents that the index finds for each query, best first, those of its own scene among them."""
        found = [[self.items[hit.id] for hit in hits] for hits in self.index.search(vectors, self.width)]
        exact = [[self.items[hit.id] for hit in hits] for hits in self.index.search(vectors, self.width, exact=True)]
        self.exact_recall.append(
            float(np.mean([len({*ours} & {*theirs}) / len(theirs) for ours, theirs in zip(found, exact, strict=True)]))
        )
        return found

    def facts(self) -> dict[str, Any]:
        """Return the index's settings, and the share of exact hits that it found of the study's queries."""
        return {**asdict(self.index.settings), "found_of_exact": self.exact_recall[-1], "hits": self.width}

    def note(self) -> str:
        """Return what the index costs in hits, in a sentence."""
        settings = self.index.settings
        return (
            f"{self.name}: of the {self.width} regions nearest to each query by exact search, the index"
            f" ({settings.kind}, {settings.partitions} partitions, {settings.probes} probes, refine {settings.refine})"
            f" found {100 * self.exact_recall[-1]:.2f} %."
        )


def draw_hits(gallery: Gallery, path: Path) -> None:
    """Draw the first queries of each set with the ten regions nearest to each, by the plan's row `sheet`."""
    study, plan = gallery.study, gallery.study.plan
    row = plan.rows[plan.sheet["row"]]
    chosen = first_queries(gallery, int(plan.sheet["queries"]))
    queries, documents = gallery.items(row)
    asked = queries.select(chosen)
    nearest = nearest_items(asked, documents)
    shown = {gallery.regions[number].image for number in [*chosen, *(item for items in nearest for item in items)]}
    images = {image.id: image for image in study.images() if image.id in shown}
    folder = study.out / IMAGES
    for image in images.values():
        write_bytes(image_file(folder, image), image.data)
    drawn, hits = [], []
    for number, vector, items in zip(chosen, asked.vectors, nearest, strict=True):
        item = gallery.regions[number]
        image = images[item.image]
        assert item.region is not None
        region = image.regions[item.region]
        prompt = region.prompt("point" if row.query.prompt == "point" else "box")
        points, boxes = prompt.points.tolist(), prompt.boxes.tolist()
        asked_region = {"points": points} if points else {"box": boxes[0]}
        file = str(image_file(folder, image))
        text = f"{row.query.text} [{region.name}, {item.set_name.replace('_', ' ')}]".strip()
        request = {"text": text, "image": file, "regions": [asked_region], "units": "normalized"}
        drawn.append(Query(request, row=RequestRow(text, (file,), (prompt,)), vector=vector))
        hits.append(
            [
                hit_of(rank, float(vector @ documents.vectors[found]), gallery, found, region.name, folder, images)
                for rank, found in enumerate(items, 1)
            ]
        )
    write_contact_sheet(path, drawn, hits, ImageFolder())


def first_queries(gallery: Gallery, count: int) -> list[int]:
    """Return the first queries of each set, of different scenes."""
    found: list[int] = []
    for set_name in gallery.study.plan.gallery:
        of_images: dict[str, int] = {}
        for number in gallery.queries:
            if gallery.regions[number].set_name == set_name:
                of_images.setdefault(gallery.regions[number].image, number)
        found += list(of_images.values())[:count]
    return found


def hit_of(
    rank: int,
    score: float,
    gallery: Gallery,
    found: int,
    name: str,
    folder: Path,
    images: Mapping[str, GalleryImage],
) -> Hit:
    """Return a region of the gallery as a hit, named by its object, and whether that is the query's."""
    item = gallery.regions[found]
    own = next(iter(item.names))
    mark = "same: " if own == name else "other: "
    return Hit(rank, score, str(found), f"{mark}{own}", str(image_file(folder, images[item.image])), box=item.box)


def image_file(folder: Path, image: GalleryImage) -> Path:
    """Return where a shown image is written."""
    return folder / image.set_name / Path(image.path or image.key).name
