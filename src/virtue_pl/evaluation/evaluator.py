"""The root of an evaluation: embeds what is not yet known, ranks every query, and leaves a report."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from lightning import LightningModule
from torch import Tensor

from virtue_pl.evaluation.embedding_store import EmbeddingStore
from virtue_pl.evaluation.evaluation_report import EvaluationReport
from virtue_pl.evaluation.query_encoder import QueryEncoder, Stream, finite_rows
from virtue_pl.evaluation.query_preparation import Asking, EvaluationPreprocess
from virtue_pl.frozen_features import network_fingerprint
from virtue_pl.interop.pretrained import from_pretrained, use_recipe
from virtue_pl.interop.run_checkpoint import read_run
from virtue_pl.metrics.ranking import RankTable, rank_candidates, sample_ranks, set_blind_ranks, set_blind_scores
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.parts.embedding_model import EmbeddingModel
from virtue_pl.parts.preprocess import ContrastivePreprocess, content_id
from virtue_pl.recipes import Recipe, ReferenceRecipe
from virtue_pl.types import EmbeddingInput, EncoderBatch, EvaluationRow, InputBatch, RankedSet, RankingSample, VirtueError

ROWS_RANKED_AT_ONCE = 64


class Plan(Protocol):
    """What is embedded, and what of it is ranked."""

    sets: tuple[RankedSet, ...]
    keys: tuple[str, ...]
    total: int
    total_pictures: int
    missing: Mapping[str, str]

    @property
    def pictures(self) -> int: ...


class Library(Protocol):
    """Pictures by their key."""

    def picture(self, key: str) -> UInt8[Tensor, "3 height width"]: ...


@runtime_checkable
class EvaluationData(Protocol):
    """A DataModule that knows what an evaluation embeds and ranks."""

    plan: Any
    library: Any


class Evaluator(LightningModule):
    """A model under test; its data is an `EvaluationDataModule`.

    Args:
        model: folder or hub name of an exported or published model, or a run's checkpoint (.ckpt).
        out: folder of the report.
        store: folder of embeddings by content; by default `embeddings` beside `out`.
        recipe: None for the one that the weights were trained with; "reference" or "virtue" to insist on it; or an object.
        mode: how regions are pointed at: box, point, mask, no_prompt (the picture alone) or blind (the text alone).
        stream: see `QueryEncoder`.
        show: a recipe that changes a query's picture first, as `CropRecipe` and `MarkerRecipe`; the model's own recipe does the rest.
        words: whether a region is told in words, too, as the recipe does it.
        guess: rank without the model's opinion of the query: "set_blind" by each candidate's nearness to the others, "random" by chance.
        prompt_frame: "canvas" or "pixels", see `Asking`; by default "pixels" with the reference recipe, as the published evaluation on SCaR.
        chunk_size: rows encoded at once.
        sam_checkpoint, base, dtype, allow_classes: see `from_pretrained`.
    """

    def __init__(
        self,
        model: str | Path,
        out: str | Path,
        store: str | Path | None = None,
        recipe: Recipe | str | None = None,
        mode: str = "box",
        stream: Stream = "whole",
        show: Recipe | None = None,
        words: bool = True,
        guess: Literal["set_blind", "random"] | None = None,
        prompt_frame: Literal["canvas", "pixels"] | None = None,
        chunk_size: int = 8,
        sam_checkpoint: str | None = None,
        base: str | None = None,
        dtype: str = "float32",
        allow_classes: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.source = model
        self.out = Path(out)
        self.store_folder = Path(store) if store is not None else self.out.parent / "embeddings"
        self.recipe = recipe
        self.mode = mode
        self.stream: Stream = stream
        self.show = show
        self.words = words
        self.guess = guess
        self.prompt_frame = prompt_frame
        self.chunk_size = chunk_size
        self.loading = {"sam_checkpoint": sam_checkpoint, "base": base, "dtype": dtype, "allow_classes": tuple(allow_classes)}
        Asking(mode)
        self.embedder: EmbeddingModel | None = None
        self.preprocess = LatePreprocess(self)
        self.report: EvaluationReport

    def configure_model(self) -> None:
        """Loads the weights, once, when they are wanted."""
        if self.embedder is None:
            self.embedder = load_model(self.source, self.recipe, self.loading)
            self.embedder.requires_grad_(False)
            own = self.embedder.preprocess
            if not isinstance(own, ContrastivePreprocess):
                raise VirtueError(f"{self.source}: {type(self.embedder).__name__} prepares no queries, expected a model that embeds")
            reference = isinstance(own.recipe, ReferenceRecipe)
            asking = Asking(self.mode, self.words, self.prompt_frame or ("pixels" if reference else "canvas"), self.show)
            self.encoder = QueryEncoder(self.embedder, self.stream, self.chunk_size)
            self.preparation = EvaluationPreprocess(own, asking, self, segmented=self.stream == "whole")
            self.store = EmbeddingStore(self.store_folder, self.fingerprint())

    def fingerprint(self) -> str:
        """Of the weights, and of all else that an embedding depends on beside its input."""
        assert self.embedder is not None
        precision = str(self.trainer.precision) if self._trainer is not None else "32-true"
        how = [self.stream, precision, self.loading["dtype"], *self.preparation.identity()]
        return hashlib.sha256(f"{network_fingerprint(self.embedder)} {how}".encode()).hexdigest()

    def __contains__(self, key: str) -> bool:
        """Whether an input's embedding is known, or not asked for."""
        return self.guess == "random" or key in self.store

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        """A guess needs no query: a candidate stands in for it."""
        return self.preparation.query(row) if self.guess is None else row.candidates[0]

    def setup(self, stage: str) -> None:
        if stage != "test":
            raise VirtueError(f"Evaluator only tests, but was asked to {stage}: use `lightning test`")
        self.configure_model()
        self.report = EvaluationReport(self.out)

    def test_step(self, batch: InputBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch.inputs is None:
            return
        embeddings = self.encoder.encode(batch.inputs)
        finite_rows(embeddings, batch.sources)
        self.store.add(batch.keys, embeddings)

    def on_exception(self, exception: BaseException) -> None:
        """What is embedded is kept, whatever stops the run."""
        self.store.flush()

    def on_test_epoch_end(self) -> None:
        self.store.flush()
        self.trainer.strategy.barrier("embedded")
        self.store.refresh()
        plan = self._data().plan
        embeddings = self.store.get(plan.keys if self.guess != "random" else ())
        metrics = RetrievalMetrics([ranked.about.name for ranked in plan.sets]).to(self.device)
        table = RankTable().to(self.device)
        with self.report.lines(self.global_rank) as write:
            for number, ranked in enumerate(plan.sets):
                for lines in self.rank(number, ranked, embeddings, metrics, table):
                    write(lines)
        self.found, self.ranks = metrics.compute(), table.compute()
        self.trainer.strategy.barrier("ranked")

    @torch.no_grad()
    def rank(
        self, number: int, ranked: RankedSet, embeddings: Float[Tensor, "inputs dim"], metrics: RetrievalMetrics, table: RankTable
    ) -> Iterator[list[dict[str, Any]]]:
        """Ranks this process's rows of a set, some at a time; fills the metrics, and gives a line a row for `predictions.jsonl`."""
        mine = range(self.global_rank, len(ranked.rows), self.trainer.world_size)
        for start in range(0, len(mine), ROWS_RANKED_AT_ONCE):
            chosen = mine[start : start + ROWS_RANKED_AT_ONCE]
            samples = [self.sample(ranked, ranked.rows[place]) for place in chosen]
            if self.guess == "random":
                scores = [random_scores(ranked.rows[place]) for place in chosen]
            else:
                queries = embeddings[ranked.queries[list(chosen)]]
                candidates = [embeddings[ranked.candidates[place]] for place in chosen]
                table.update("set_blind", set_blind_ranks(samples, candidates))
                scores = [found @ query for found, query in zip(candidates, queries, strict=True)]
                if self.guess == "set_blind":
                    scores = [set_blind_scores(found) for found in candidates]
            entries = sample_ranks(samples, scores)
            if self.guess != "set_blind":
                table.update(self.shown_mode(ranked), entries)
            metrics.update(number, entries.of("hit@1").to(metrics.device))
            yield list(self.lines(ranked, [ranked.rows[place] for place in chosen], samples, scores))

    def shown_mode(self, ranked: RankedSet) -> str:
        """What the mode is called in tables: sets without regions are asked with their picture alone."""
        regions = any(row.region is not None for row in ranked.rows)
        return self.guess or (self.mode if regions or self.mode == "blind" else "no_prompt")

    def sample(self, ranked: RankedSet, row: EvaluationRow) -> RankingSample:
        return RankingSample(row.key, f"{ranked.about.benchmark}/{ranked.about.name}", EmbeddingInput(row.text), row.candidates, row.rankings, row.region)

    def lines(
        self, ranked: RankedSet, rows: Sequence[EvaluationRow], samples: Sequence[RankingSample], scores: Sequence[Float[Tensor, " candidates"]]
    ) -> Iterator[dict[str, Any]]:
        for row, sample, found in zip(rows, samples, scores, strict=True):
            entries = sample_ranks([sample], [found])
            named = zip(entries.rankings, entries.ranks.tolist(), entries.candidates, strict=True)
            yield {
                "set": row.set,
                "row": row.row,
                "mode": self.shown_mode(ranked),
                "task": sample.task,
                "key": row.key,
                "gold": 0,
                "ranking": rank_candidates(found[None], torch.zeros(1, dtype=torch.long))[0].tolist(),
                "scores": [round(score, 7) for score in found.tolist()],
                "ranks": {name: [rank, length] for name, rank, length in named},
            }

    def on_test_end(self) -> None:
        if self.trainer.is_global_zero:
            data = self._data()
            settings = {
                "model": str(self.source),
                "recipe": type(self.preparation.preprocess.recipe).__name__,
                "mode": self.mode,
                "stream": self.stream,
                "show": None if self.show is None else type(self.show).__name__,
                "words": self.words,
                "guess": self.guess,
                "prompt_frame": self.preparation.asking.frame,
                "store": str(self.store.folder),
            }
            self.report.write(self.found, self.ranks, data.plan, data.library, settings, self.store.added, self.trainer.world_size)

    def _data(self) -> EvaluationData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, EvaluationData):
            raise VirtueError(f"Evaluator was given {type(data).__name__}, expected an EvaluationDataModule: set `data`")
        return data


class LatePreprocess:
    """An evaluator's preprocess, for data that is connected before weights are loaded."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        return self.evaluator.query(row)

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        return self.evaluator.preparation.encoder_batch(items)

    def unknown(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self.evaluator]


def load_model(source: str | Path, recipe: Recipe | str | None, loading: Mapping[str, Any]) -> EmbeddingModel:
    """The model of a folder, a hub name or a run's checkpoint, in eval mode."""
    if not str(source).endswith(".ckpt"):
        return from_pretrained(source, recipe=recipe, **loading)
    if not Path(source).is_file():
        raise VirtueError(f"model: {source} is not there, expected a run's checkpoint, a folder or a hub name")
    model = read_run(Path(source)).build(getattr(torch, loading["dtype"]), loading["allow_classes"])
    use_recipe(model, recipe, str(source))
    return model


def random_scores(row: EvaluationRow) -> Float[Tensor, " candidates"]:
    """Chance, the same for the same row every time."""
    return torch.rand(len(row.candidates), generator=torch.Generator().manual_seed(content_id("guess", row.key)))
