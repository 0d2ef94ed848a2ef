"""Evaluation as a LightningModule: it embeds what is not stored yet, ranks every query, and writes a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from virtue_pl.checkpoints.pretrained import from_pretrained
from virtue_pl.embedder import row_key
from virtue_pl.engine.precision import precision_settings
from virtue_pl.evaluation.probes.measurements import Measurements, check_regions, cost_of, robustness_of
from virtue_pl.evaluation.reports.evaluation_report import EvaluationReport
from virtue_pl.evaluation.retrieval.embedding_store import ModelStore
from virtue_pl.evaluation.retrieval.query_collator import EvaluationCollator
from virtue_pl.evaluation.retrieval.query_embedder import QueryEmbedder
from virtue_pl.evaluation.retrieval.query_encoder import QueryEncoder, check_finite
from virtue_pl.evaluation.retrieval.set_ranking import SetRanking
from virtue_pl.evaluation.settings import EncodingOptions, LoadingOptions, QueryFormat, ReportOptions
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.metrics.rank_metrics import RankTable
from virtue_pl.metrics.ranking import SampleRanks
from virtue_pl.metrics.retrieval import RetrievalMetrics
from virtue_pl.models.embedding_model import EmbeddingModel
from virtue_pl.preprocessing.contrastive_collator import ContrastiveCollator
from virtue_pl.types import EmbeddingInput, EncoderBatch, EvaluationRow, InputBatch, RankedSet, VirtueError

NO_RANKS = SampleRanks((), (), (), (), torch.zeros(0, dtype=torch.long))
"""The entries of a process that has no row of a set: torchmetrics warns about a metric that was never updated."""


class Plan(Protocol):
    """Inputs that are embedded, and sets that are ranked.

    sets: the ranked sets, their inputs as indices into `keys`. keys: content keys of all distinct inputs. total: inputs
    with repetitions. total_images: uses of images with repetitions. missing: set left out -> reason. left_out: number
    of rows that are not ranked, by set and reason.

    Example:
        >>> number_of_sets = len(plan.sets)  # doctest: +SKIP
    """

    sets: tuple[RankedSet, ...]
    keys: tuple[str, ...]
    total: int
    total_images: int
    missing: Mapping[str, str]
    left_out: Mapping[str, Mapping[str, int]]

    @property
    def images(self) -> int:
        """Number of distinct images."""
        ...


class Library(Protocol):
    """Decoded images by their content key, both as in their files and as the model reads them.

    Example:
        >>> library.pixels(key).shape  # doctest: +SKIP
        torch.Size([3, 480, 640])
    """

    def image(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image as in its file."""
        ...

    def pixels(self, key: str) -> UInt8[Tensor, "3 height width"]:
        """Return the decoded image as the model reads it."""
        ...


@runtime_checkable
class EvaluationData(Protocol):
    """A DataModule with the plan of an evaluation and its images.

    Example:
        >>> isinstance(object(), EvaluationData)
        False
    """

    plan: Any
    library: Any


class Evaluator(LightningModule):
    """A model under evaluation; its data is an `EvaluationDataModule`.

    Raises VirtueError where the robustness of a baseline is to be measured.

    Args:
        model: folder or hub name of an exported or published model, or a run's checkpoint (.ckpt).
        out: folder of the report.
        query_format: how queries are put to the model.
        loading: how the weights are loaded.
        encoding: how inputs are embedded, and where embeddings are stored.
        reporting: what is measured beside the ranking, and what is written.

    Example:
        >>> data = EvaluationDataModule("data/scar", ["scar"])  # doctest: +SKIP
        >>> evaluator = Evaluator("runs/mini", "runs/eval/no_stream", QueryFormat(stream="none"))
        >>> data.connect(evaluator.collator)
        >>> Trainer(logger=False).test(evaluator, datamodule=data)
    """

    def __init__(
        self,
        model: str | Path,
        out: str | Path,
        query_format: QueryFormat = QueryFormat(),  # noqa: B008  # frozen, as the others
        loading: LoadingOptions = LoadingOptions(),  # noqa: B008
        encoding: EncodingOptions = EncodingOptions(),  # noqa: B008
        reporting: ReportOptions = ReportOptions(),  # noqa: B008
    ) -> None:
        super().__init__()
        check_robustness(query_format, reporting)
        self.source = model
        self.out = Path(out)
        self.query_format = query_format
        self.loading = loading
        self.encoding = encoding
        self.reporting = reporting
        self.embedder: EmbeddingModel | None = None
        self.collator = DeferredCollator(self)
        self.report: EvaluationReport

    def configure_model(self) -> None:
        """Load the weights, once, when they are first needed."""
        if self.embedder is None:
            self.embedder = from_pretrained(self.source, **vars(self.loading))
            self.embedder.requires_grad_(False)
            own = self.embedder.collator
            if not isinstance(own, ContrastiveCollator):
                found = type(self.embedder).__name__
                raise VirtueError(f"{self.source}: {found} prepares no queries, expected a model that embeds")
            self.encoder = QueryEncoder(self.embedder, self.query_format.stream, self.encoding.chunk_size)
            self.query_collator = EvaluationCollator(own, self.query_format)
            folder = self.encoding.store
            self.store = ModelStore(self.out.parent / "embeddings" if folder is None else folder, *self.fingerprints())

    def fingerprints(self) -> tuple[str, str]:
        """Return hashes of all that embeddings depend on beside the input: for texts, and for inputs with images.

        They are of the model as it is built, of how it rounds, and of how its inputs are prepared.
        """
        assert self.embedder is not None
        precision = str(self.trainer.precision) if self._trainer is not None else "32-true"
        same = fingerprint_of(self.embedder, precision_settings(precision))
        how = self.query_collator.text_identity(), [self.query_format.stream, *self.query_collator.identity()]
        texts, with_images = (fingerprint_of(same, each) for each in how)
        return texts, with_images

    def __contains__(self, key: str) -> bool:
        """Return whether an input's embedding is stored, or not needed."""
        return self.query_format.baseline == "random" or key in self.store

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        """Return the row's query; its first candidate instead where a baseline does not use the query."""
        return self.query_collator.query(row) if self.query_format.baseline is None else row.candidates[0]

    def setup(self, stage: str) -> None:
        """Load the model, and open the report. Raises VirtueError for another stage than "test"."""
        if stage != "test":
            raise VirtueError(f"Evaluator runs in stage {stage!r}, expected 'test': use `lightning test`")
        self.configure_model()
        self.report = EvaluationReport(self.out)

    def on_test_start(self) -> None:
        """Raise VirtueError at once where robustness is to be measured and no query has a region."""
        if self.reporting.robustness:
            check_regions(self._data().plan.sets)

    def test_step(self, batch: InputBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed and store a batch. Raises SIGTERMException after a batch during which SIGTERM came."""
        if batch.inputs is None:
            return
        embeddings = self.encoder.encode(batch.inputs)
        check_finite(embeddings, batch.sources)
        self.store.add(batch.keys, embeddings, with_images=len(batch.inputs.images) > 0)
        if self.trainer.received_sigterm:
            raise SIGTERMException

    def configure_callbacks(self) -> list[Callback]:
        """Return the callback that stores the embeddings of a run that is interrupted."""
        return [FlushEmbeddings()]

    def on_test_epoch_end(self) -> None:
        """Rank this process's rows of every set, and collect metrics and ranks of all processes."""
        self.store.flush()
        self.trainer.strategy.barrier("embedded")
        self.store.refresh()
        plan = self._data().plan
        query_format = self.query_format
        embeddings = self.store.get(plan.keys if query_format.baseline != "random" else ())
        metrics = RetrievalMetrics([ranked.about.name for ranked in plan.sets]).to(self.device)
        table = RankTable().to(self.device)
        table.update(query_format.mode, NO_RANKS)
        with self.report.lines(self.global_rank) as write:
            for number, ranked in enumerate(plan.sets):
                metrics.update(number, NO_RANKS.ranks)
                mine = file_order(ranked.rows)[self.global_rank :: self.trainer.world_size]
                ranking = SetRanking(
                    ranked, query_format.mode, query_format.baseline, embeddings, self.reporting.full_lists
                )
                for lines in ranking.rank(number, mine, metrics, table):
                    write(lines)
        self.set_metrics, self.ranks = metrics.compute(), table.compute()
        self.encoded = int(
            self.trainer.strategy.reduce(torch.tensor(self.store.num_added, device=self.device), reduce_op="sum")
        )
        self.trainer.strategy.barrier("ranked")

    def on_test_end(self) -> None:
        """Measure what the options name, and write the report, in the first process."""
        if self.trainer.is_global_zero:
            data = self._data()
            measured = self.measure(data)
            world_size = self.trainer.world_size
            found, ranks, settings = self.set_metrics, self.ranks, self.settings()
            self.report.write(found, ranks, data.plan, data.library, settings, self.encoded, world_size, measured)

    def settings(self) -> dict[str, Any]:
        """Return the evaluation's settings for the report."""
        query_format = self.query_format
        return {
            "model": str(self.source),
            "recipe": type(self.query_collator.collator.formatter).__name__,
            "mode": query_format.mode,
            "stream": query_format.stream,
            "show": None if query_format.image_transform is None else type(query_format.image_transform).__name__,
            "words": query_format.describe_region,
            "guess": query_format.baseline,
            "prompt_frame": self.query_collator.frame,
            "store": str(self.store.with_images.folder),
        }

    def measure(self, data: EvaluationData) -> Measurements:
        """Measure cost and robustness, where the options name them, in the evaluation's own query format."""
        cost, rows = self.reporting.cost, self.reporting.robustness
        if not (cost or rows):
            return Measurements()
        sets, library, collator = data.plan.sets, data.library, self.query_collator
        with self.trainer.precision_plugin.forward_context():
            plain = QueryEmbedder(self.encoder, collator, self.device)
            found = cost_of(plain, sets, library) if cost else None
            if not rows:
                return Measurements(found)
            ranked = QueryEmbedder(self.encoder, collator, self.device, self.ranked_embeddings(data.plan, rows))
            return Measurements(found, robustness_of(ranked.embed, collator, sets, library, rows))

    def ranked_embeddings(self, plan: Plan, rows: int) -> dict[tuple[Any, ...], Tensor]:
        """Return the embeddings that the ranking used for each set's first `rows` queries with regions, by input."""
        numbers: dict[tuple[Any, ...], int] = {}
        for ranked in plan.sets:
            pointed = [index for index, row in enumerate(ranked.rows) if row.compact_region is not None]
            for index in pointed[:rows]:
                row = ranked.rows[index]
                numbers[row_key(self.query(row))] = int(ranked.queries[index])
                for item, number in zip(row.candidates, ranked.candidates[index].tolist(), strict=True):
                    numbers[row_key(item)] = number
        embeddings = self.store.get([plan.keys[number] for number in numbers.values()])
        return dict(zip(numbers, embeddings, strict=True))

    def _data(self) -> EvaluationData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, EvaluationData):
            raise VirtueError(
                f"Evaluator got the data {type(data).__name__}, expected an EvaluationDataModule: set `data`"
            )
        return data


def check_robustness(query_format: QueryFormat, reporting: ReportOptions) -> None:
    """Raise VirtueError where the robustness of a baseline is to be measured."""
    whole = query_format.stream == "whole" and query_format.image_transform is None and query_format.baseline is None
    if reporting.robustness and not whole:
        raise VirtueError(
            "robustness is measured of the whole model, not of a baseline: leave it out, or stream, image_transform and"
            " baseline"
        )


def file_order(rows: Sequence[EvaluationRow]) -> list[int]:
    """Return the indices of a set's rows in the order of its file."""
    return sorted(range(len(rows)), key=lambda index: rows[index].row)


class FlushEmbeddings(Callback):
    """Callback that writes embeddings to disk, whatever stops the run.

    Example:
        >>> trainer = Trainer(callbacks=[FlushEmbeddings()], logger=False, accelerator="cpu")  # doctest: +SKIP
        >>> trainer.test(evaluator, datamodule=data)
    """

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the embeddings that are in memory."""
        if isinstance(pl_module, Evaluator) and (store := vars(pl_module).get("store")) is not None:
            store.flush()


class DeferredCollator:
    """An evaluator's collator, for data that is connected before weights are loaded.

    Example:
        >>> isinstance(Evaluator("runs/mini", "runs/eval").collator, DeferredCollator)
        True
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator

    def query(self, row: EvaluationRow) -> EmbeddingInput:
        """Return the row's query in the evaluation's format."""
        return self.evaluator.query(row)

    def check_input(self, item: EmbeddingInput) -> None:
        """Raise VirtueError for an input that the model cannot read; of its images only the shapes are read."""
        self.evaluator.query_collator.check_input(item)

    def encoder_batch(self, items: Sequence[EmbeddingInput]) -> EncoderBatch:
        """Return the batch of the inputs."""
        return self.evaluator.query_collator.encoder_batch(items)

    def missing_keys(self, keys: Sequence[str]) -> list[str]:
        """Return the keys whose embeddings are needed and not stored."""
        return [key for key in keys if key not in self.evaluator]
