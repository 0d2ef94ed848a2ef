"""The engine on Ray: actors that hold the model encode part after part, on all nodes of a cluster.

Ray Data hands parts to actors, and hands those of a node that has gone to others. A part is written by its actor, as
one file or as fragments of the Lance table, so that vectors never pass through the driver, which commits fragments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import pyarrow as pa

from virtue_pl.apps.encoding.documents import Document
from virtue_pl.apps.encoding.engine import Advance, EncodeOptions, EncodingJob, Engine, Model, missing_parts
from virtue_pl.apps.encoding.lance_parts import TABLE, LanceParts
from virtue_pl.apps.encoding.part_encoder import PartEncoder
from virtue_pl.apps.encoding.parts import ABOUT, ParquetParts, PartFacts, begin_attempt
from virtue_pl.apps.encoding.sources import DocumentSource
from virtue_pl.cluster import ActorPool, RayOptions, data_context, ray_session
from virtue_pl.cluster.session import ray_errors
from virtue_pl.embedder import Embedder
from virtue_pl.search import EncodedRow, to_table
from virtue_pl.types import VirtueError

MAX_ATTEMPTS = 3
"""Number of actors that may end in the midst of one part before it is given up."""
PARTS_AHEAD = 2
"""Parts that an actor is given at a time: the one that it encodes, and the next."""
PARTS = pa.schema([("number", pa.int64()), ("documents", pa.large_binary())])
COMMITS = pa.schema([("number", pa.int64()), ("facts", pa.string()), ("fragments", pa.string())])


class RayEngine(Engine):
    """The engine that encodes on a cluster of Ray, or on one of this machine alone.

    Example:
        >>> engine = RayEngine(RayOptions(address="auto", gpus=1))  # doctest: +SKIP
        >>> load = partial(Embedder.from_pretrained, "/shared/exported")  # doctest: +SKIP
        >>> report = encode_source(load, source, out, options, engine=engine)  # doctest: +SKIP
    """

    def __init__(self, options: RayOptions = RayOptions()) -> None:
        self.options = options

    def session(self) -> AbstractContextManager[object]:
        """Return the connection to the cluster."""
        return ray_session(self.options)

    def describe(self, model: Model) -> tuple[str, int]:
        """Return a model's fingerprint, and the length of its embeddings, as a node finds them."""
        load = check_load(model)
        with ray_session(self.options) as ray, ray_errors():
            pool = ActorPool.of_cluster(ray, self.options)
            remote = ray.remote(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=MAX_ATTEMPTS - 1)(describe_model)
            try:
                fingerprint, embed_dim = ray.get(remote.remote(load))
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise VirtueError(
                    f"loading the model has ended {MAX_ATTEMPTS} processes, out of memory or by a fault of a library:"
                    " give nodes with more memory, or find out with --engine local"
                ) from error
            return str(fingerprint), int(embed_dim)

    def encode(self, model: Model, job: EncodingJob, advance: Advance) -> Iterator[tuple[int, PartFacts]]:
        """Yield the number and facts of each missing part, in the order in which they are done."""
        load = check_load(model)
        if next(job.missing_parts(), None) is None:
            return
        sizes = {number: part.documents for number, part in job.written.items()}
        reader = PartReader(job.source, job.options.part_documents, sizes, job.out)
        worker = partial(PartWorker, load, job.out, job.options, job.schema, job.fingerprint, job.source.paths)
        with ray_session(self.options) as ray, data_context(ray), ray_errors():
            pool = ActorPool.of_cluster(ray, self.options)
            commits = (
                ray.data.from_items([0], override_num_blocks=1)
                .map_batches(reader, batch_size=1, batch_format="pyarrow", num_cpus=0)
                .map_batches(
                    PartActor,
                    fn_constructor_args=(worker,),
                    batch_size=1,
                    batch_format="pyarrow",
                    num_cpus=pool.cpus,
                    num_gpus=pool.gpus,
                    compute=ray.data.ActorPoolStrategy(
                        min_size=1,
                        max_size=pool.actors,
                        initial_size=pool.actors,
                        max_tasks_in_flight_per_actor=PARTS_AHEAD,
                    ),
                )
            )
            batches = iter(commits.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
            with closing(batches):  # which ends the actors where this is left early
                for row in (row for batch in batches for row in batch.to_pylist()):
                    part = PartFacts.from_json(json.loads(row["facts"]))
                    if isinstance(job.parts, LanceParts):
                        job.parts.commit_fragments(row["number"], part, json.loads(row["fragments"]))
                    advance(part.documents)
                    yield row["number"], part


def check_load(model: Model) -> Callable[[], Embedder]:
    """Return what loads the model. Raises VirtueError for a model that is loaded, which only this process has."""
    if isinstance(model, Embedder):
        raise VirtueError(
            "the engine ray loads a model on every node, expected what loads it in the place of an Embedder:"
            " functools.partial(Embedder.from_pretrained, FOLDER)"
        )
    return model


def describe_model(load: Callable[[], Embedder]) -> tuple[str, int]:
    """Return the fingerprint of the model that is loaded, and the length of its embeddings."""
    embedder = load()
    return embedder.fingerprint(), embedder.embed_dim


@dataclass(frozen=True, eq=False)
class PartReader:
    """A task that lists a source's documents, and yields those of each missing part, not read yet, as one row.

    Example:
        >>> reader = PartReader(source, 512, {}, Path("out"))  # doctest: +SKIP
        >>> next(reader(None)).column_names  # doctest: +SKIP
        ['number', 'documents']
    """

    source: DocumentSource
    part_documents: int
    written: Mapping[int, int]
    out: Path

    @property
    def __name__(self) -> str:
        """The name of the task, as Ray shows it."""
        return "read_parts"

    def __call__(self, _: object) -> Iterator[pa.Table]:
        """Yield a table of one row for each missing part."""
        from ray import cloudpickle

        check_paths(self.source.paths)
        for number, documents in missing_parts(self.source, self.part_documents, self.written, self.out):
            yield pa.table([[number], [cloudpickle.dumps(documents)]], schema=PARTS)


class PartActor:
    """An actor that encodes one part after the other, with a model that it loads for the first one.

    worker: returns the `PartWorker`; what is wrong with it is an error of the part, which is told in one line.

    Example:
        >>> commits = PartActor(partial(PartWorker, load, out, options, schema, fingerprint, paths))  # doctest: +SKIP
    """

    def __init__(self, worker: Callable[[], PartWorker]) -> None:
        self.make_worker = worker

    @cached_property
    def worker(self) -> PartWorker:
        """The worker, with its model."""
        return self.make_worker()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Encode and write the parts of a batch, and return their facts, and fragments that are to be committed."""
        from ray import cloudpickle

        rows = []
        for row in batch.to_pylist():
            part, fragments = self.worker.encode(row["number"], cloudpickle.loads(row["documents"]))
            rows.append((row["number"], json.dumps(asdict(part)), json.dumps(fragments)))
        return pa.table([list(column) for column in zip(*rows, strict=True)], schema=COMMITS)


class PartWorker:
    """An encoder and writer of parts on one node.

    Args:
        load: loads the model.
        out: the folder, which the driver holds.
        options: see `EncodeOptions`.
        schema: of the rows.
        fingerprint: of the driver's model, which this one must be.
        paths: files and folders of the source.

    Raises VirtueError for another model, and for a folder or a source that this node does not see.

    Example:
        >>> worker = PartWorker(load, Path("out"), options, schema, fingerprint, ())  # doctest: +SKIP
        >>> part, fragments = worker.encode(0, documents)  # doctest: +SKIP
    """

    def __init__(
        self,
        load: Callable[[], Embedder],
        out: Path,
        options: EncodeOptions,
        schema: pa.Schema,
        fingerprint: str,
        paths: Sequence[Path],
    ) -> None:
        check_paths([out / ABOUT, *paths])
        self.out, self.options, self.schema, self.fingerprint = out, options, schema, fingerprint
        self.load = load

    @cached_property
    def encoder(self) -> PartEncoder:
        """The encoder with its model. Raises VirtueError for another model than the driver's."""
        embedder = self.load()
        if embedder.fingerprint() != self.fingerprint:
            raise VirtueError(
                f"node {node_name()} loads another model ({embedder.fingerprint()[:12]}) than the others"
                f" ({self.fingerprint[:12]}): expected the same files, and the same versions of torch and"
                " transformers, on all nodes"
            )
        return PartEncoder(embedder, self.options)

    def encode(self, number: int, documents: Sequence[Document]) -> tuple[PartFacts, list[str]]:
        """Encode and write a part, unless its file is there; returns its facts, and the fragments to commit.

        Raises VirtueError for a part that has ended several actors.
        """
        parquet = ParquetParts(self.out, self.schema) if self.options.format == "parquet" else None
        if parquet is not None and parquet.path(number).is_file():  # of an actor whose node has gone since
            return parquet.read(parquet.path(number)), []
        attempt = begin_attempt(self.out, number, MAX_ATTEMPTS)
        if attempt is None:
            first, last = documents[0].name, documents[-1].name
            raise VirtueError(
                f"part {number} ({len(documents):,} documents, {first} to {last}) has ended {MAX_ATTEMPTS} actors, out"
                " of memory or by a fault of a library: give more memory or a smaller --batch-size, or find the"
                " document with --engine local"
            )
        try:
            part, rows = self.encoder.encode(documents)
            if parquet is not None:
                parquet.write(number, part, rows)
                return part, []
            return part, write_fragments(self.out, self.schema, rows)
        finally:
            attempt.unlink(missing_ok=True)


def write_fragments(out: Path, schema: pa.Schema, rows: Sequence[EncodedRow]) -> list[str]:
    """Write rows as fragments of the Lance table, which are of it once they are committed; returns them as JSON."""
    from lance.fragment import write_fragments as write

    if not rows:
        return []
    found = write(to_table(rows, schema), str(out / f"{TABLE}.lance"), schema, mode="append")
    return [json.dumps(fragment.to_json()) for fragment in found]


def check_paths(paths: Sequence[Path]) -> None:
    """Raise VirtueError for a file or folder that this node does not see."""
    for path in paths:
        if not path.exists():
            raise VirtueError(
                f"node {node_name()} does not see {path}: expected the source and --out in a folder that all nodes"
                " share"
            )


def node_name() -> str:
    """Return the address of the node that this process is on."""
    import ray

    return str(ray.util.get_node_ip_address())
