"""The root of an evaluation: embeds what is not yet known, ranks every query, and leaves a report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from virtue_pl.embedder import Embedder
from virtue_pl.evaluation.candidate_scores import FULL_LISTS
from virtue_pl.evaluation.embedding_store import ModelStore
from virtue_pl.evaluation.evaluation_report import EvaluationReport
from virtue_pl.evaluation.measurements import Measurements, check_regions, cost_of, robustness_of
from virtue_pl.evaluation.query_encoder import QueryEncoder, Stream, check_finite
from virtue_pl.evaluation.query_preparation import QueryFormat, EvaluationPreprocess
from virtue_pl.evaluation.set_ranking import Guess, SetRanking
from virtue_pl.frozen_features import network_fingerprint
from virtue_pl.interop.pretrained import from_pretrained
from virtue_pl.metrics.ranking import RankTable, SampleRanks
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.parts.embedding_model import EmbeddingModel
from virtue_pl.parts.preprocess import ContrastivePreprocess
from virtue_pl.recipes import Recipe, ReferenceRecipe
from virtue_pl.types import EmbeddingInput, EncoderBatch, EvaluationRow, InputBatch, RankedSet, VirtueError

NO_RANKS = SampleRanks((), (), (), (), torch.zeros(0, dtype=torch.long))
"""What a process adds that has no row of a set: torchmetrics warns of a metric that saw nothing."""


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

    def pixels(self, key: str) -> UInt8[Tensor, "3 height width"]: ...


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
        prompt_frame: "canvas" or "pixels", see `QueryFormat`; by default "pixels" with the reference recipe, as the published evaluation on SCaR.
        chunk_size: rows encoded at once.
        cost: measure the model's latency, throughput and memory, too.
        robustness: of each set with regions, so many queries are ranked with imprecise prompts, too; 0: none.
        full_lists: queries with more candidates have only the best ones in predictions.jsonl, see `listings`; their ranks are of all.
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
        guess: Guess | None = None,
        prompt_frame: Literal["canvas", "pixels"] | None = None,
        chunk_size: int = 8,
        cost: bool = False,
        robustness: int = 0,
        full_lists: int = FULL_LISTS,
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
        self.cost = cost
        self.robustness = robustness
        self.full_lists = full_lists
        if robustness and (stream != "whole" or show is not None or guess is not None):
            raise VirtueError("robustness is measured of the whole model, not of a baseline: leave it out, or stream, show and guess")
        self.loading: dict[str, Any] = {"sam_checkpoint": sam_checkpoint, "base": base, "dtype": dtype, "allow_classes": tuple(allow_classes)}
        QueryFormat(mode)
        self.embedder: EmbeddingModel | None = None
        self.preprocess = DeferredPreprocess(self)
        self.report: EvaluationReport

    def configure_model(self) -> None:
        """Loads the weights, once, when they are wanted."""
        if self.embedder is None:
            self.embedder = from_pretrained(self.source, recipe=self.recipe, **self.loading)
            self.embedder.requires_grad_(False)
            own = self.embedder.preprocess
            if not isinstance(own, ContrastivePreprocess):
                raise VirtueError(f"{self.source}: {type(self.embedder).__name__} prepares no queries, expected a model that embeds")
            reference = isinstance(own.recipe, ReferenceRecipe)
            query_format = QueryFormat(self.mode, self.words, self.prompt_frame or ("pixels" if reference else "canvas"), self.show)
            self.encoder = QueryEncoder(self.embedder, self.stream, self.chunk_size)
            self.preparation = EvaluationPreprocess(own, query_format, segmented=self.stream == "whole")
            self.store = ModelStore(self.store_folder, *self.fingerprints())

    def fingerprints(self) -> tuple[str, str]:
        """Of the weights, and of all else that the embeddings of texts, and of inputs with pictures, depend on beside the input."""
        assert self.embedder is not None
        precision = str(self.trainer.precision) if self._trainer is not None else "32-true"
        same = f"{network_fingerprint(self.embedder)} {precision} {self.loading['dtype']}"
        how = [self.preparation.text_identity(), [self.stream, *self.preparation.identity()]]
        texts, pictured = (hashlib.sha256(f"{same} {each}".encode()).hexdigest() for each in how)
        return texts, pictured

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

    def on_test_start(self) -> None:
        if self.robustness:
            check_regions(self._data().plan.sets)

    def test_step(self, batch: InputBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch.inputs is None:
            return
        embeddings = self.encoder.encode(batch.inputs)
        check_finite(embeddings, batch.sources)
        self.store.add(batch.keys, embeddings, pictured=len(batch.inputs.pictures) > 0)
        if self.trainer.received_sigterm:
            raise SIGTERMException

    def configure_callbacks(self) -> list[Callback]:
        return [FlushEmbeddings()]

    def on_test_epoch_end(self) -> None:
        self.store.flush()
        self.trainer.strategy.barrier("embedded")
        self.store.refresh()
        plan = self._data().plan
        embeddings = self.store.get(plan.keys if self.guess != "random" else ())
        metrics = RetrievalMetrics([ranked.about.name for ranked in plan.sets]).to(self.device)
        table = RankTable().to(self.device)
        table.update(self.mode, NO_RANKS)
        with self.report.lines(self.global_rank) as write:
            for number, ranked in enumerate(plan.sets):
                metrics.update(number, NO_RANKS.ranks)
                mine = file_order(ranked.rows)[self.global_rank :: self.trainer.world_size]
                for lines in SetRanking(ranked, self.mode, self.guess, embeddings, self.full_lists).rank(number, mine, metrics, table):
                    write(lines)
        self.found, self.ranks = metrics.compute(), table.compute()
        self.encoded = int(self.trainer.strategy.reduce(torch.tensor(self.store.added, device=self.device), reduce_op="sum"))
        self.trainer.strategy.barrier("ranked")

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
                "prompt_frame": self.preparation.query_format.frame,
                "store": str(self.store.pictured.folder),
            }
            measured = self.measure(data)
            self.report.write(self.found, self.ranks, data.plan, data.library, settings, self.encoded, self.trainer.world_size, measured)

    def measure(self, data: EvaluationData) -> Measurements:
        """What was asked for beside the ranking."""
        if not (self.cost or self.robustness):
            return Measurements()
        assert self.embedder is not None
        embedder, sets, library = Embedder(self.embedder, self.device), data.plan.sets, data.library
        cost = cost_of(embedder, sets, library) if self.cost else None
        return Measurements(cost, robustness_of(embedder, sets, library, self.robustness) if self.robustness else None)

    def _data(self) -> EvaluationData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, EvaluationData):
            raise VirtueError(f"Evaluator was given {type(data).__name__}, expected an EvaluationDataModule: set `data`")
        return data


def file_order(rows: Sequence[EvaluationRow]) -> list[int]:
    """The places of a set's rows, as its file has them."""
    return sorted(range(len(rows)), key=lambda place: rows[place].row)


class FlushEmbeddings(Callback):
    """What is embedded is kept, whatever stops the run."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(pl_module, Evaluator) and pl_module.embedder is not None:
            pl_module.store.flush()


class DeferredPreprocess:
    """An evaluator's preprocess, for data that is connected before weights are loaded."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        return self.evaluator.query(row)

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        return self.evaluator.preparation.encoder_batch(items)

    def unknown(self, keys: Sequence[str]) -> list[str]:
        return [key for key in keys if key not in self.evaluator]
