"""The server compared to the bare `Embedder` on the same queries: an image of its own with a box and a text, each.

One thread for each of the two, in processes of their own. Prints one JSON object. `cpu_ratio`: CPU seconds of the bare
loop, 16 rows at once (or one by one), over those of the server's process at so many clients; more than 1 is less than
the loop takes. `batching_gain`: CPU seconds of a query of one client over those of one of sixteen. `search`: an index
of random vectors, from the shell and over one connection. `overload`: more rows than the queue holds, for so many
seconds. `malformed`: damaged requests. `shutdown`: SIGTERM under load; "broken" are requests that the server closed
before it read them, "refused" those that never came in; `admitted` is counted by the server. `bars`: what must hold;
the exit code is 1 where one does not, but for those of times with --small.

    python benchmarks/serve.py --small
    python benchmarks/serve.py --model runs/quickstart/virtue/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import torch
from latency import load
from PIL import Image

from virtue_pl.apps.server.index_search import SearchIndex, search_routes
from virtue_pl.apps.server.options import Limits, ServerOptions
from virtue_pl.apps.server.run import bind, make_server, run_server
from virtue_pl.apps.server.service import Service
from virtue_pl.cli.memory import keep_freed_memory
from virtue_pl.embedder import Embedder
from virtue_pl.search import EncodedRow, EncodingFacts, VectorIndex, row_schema, to_table

CLIENTS, QUEUED_ROWS, OVERLOAD_ROWS = 16, 32, 8
THROUGHPUT, GROWTH_MIB = 0.9, 32
"""Bars of the ratio of CPU seconds, and of the memory's growth in the second half of the overload."""
SHELL_SECONDS = 0.5
"""The bar of a search through the server, as a process from the shell."""
TIMES = ("throughput", "batching_gains", "search_from_the_shell")
"""Bars that depend on times, which a small run on a busy machine may miss."""
SIZE = (240, 320)
JSON_TYPE = {"content-type": "application/json"}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    if options.child == "server":
        serve(options)
        return
    if options.child == "bare":
        print(json.dumps(measure_bare(options)))
        return
    report = measure(options)
    report["bars"] = find_bars(report)
    print(json.dumps(report, indent=1))
    missed = [name for name, holds in report["bars"].items() if not holds and not (options.small and name in TIMES)]
    if missed:
        sys.exit(f"serve.py: {', '.join(missed)} of `bars` do not hold")


def find_bars(report: dict[str, Any]) -> dict[str, bool]:
    """What must hold, by name."""
    shutdown = report["shutdown"]
    return {
        "throughput": report["cpu_ratio_to_16_at_once"] >= THROUGHPUT,
        "batching_gains": report["batching_gain"] > 1,
        "search_from_the_shell": report["search"]["shell_seconds"] <= SHELL_SECONDS,
        "only_200_429_503": report["overload"]["only_200_429_503"],
        "memory_flat": report["overload"]["memory_mib"]["grown"] <= GROWTH_MIB,
        "no_server_error": report["malformed"]["server_errors"] == 0,
        "alive_behind_malformed_requests": report["malformed"]["alive"],
        "accepted_requests_are_answered": shutdown["admitted"] == shutdown["answers"].get("200", 0) > 0,
        "clean_exit": shutdown["exit_code"] == 0,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or a run's checkpoint; default random weights of virtue_mini's sizes")
    parser.add_argument("--sam_checkpoint", help="SAM's checkpoint of a published release")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="of a batch")
    parser.add_argument("--seconds", type=float, default=60, help="of overload")
    parser.add_argument("--index_rows", type=int, default=20_000, help="of random vectors, that are searched")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument(
        "--small", action="store_true", help="48 queries, a round, 5 seconds and 300 malformed requests"
    )
    parser.add_argument("--child", choices=("server", "bare"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        options.queries, options.rounds, options.seconds, options.malformed = 48, 1, 5.0, 300
        options.index_rows = 2000
    return options


def queries(count: int, seed: int) -> list[dict[str, Any]]:
    """So many requests, each with an image that no other has."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(count):
        blocks = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        blocks.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).save(buffer, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        x, y = generator.integers(0, 200), generator.integers(0, 150)
        box = {"box": [float(x), float(y), float(x + 90), float(y + 80)]}
        found.append({"image": uri, "text": f"What is this, number {number}?", "regions": [box]})
    return found


def measure_bare(options: argparse.Namespace) -> dict[str, float]:
    """CPU seconds of the embedder on the queries, one by one and 16 at once."""
    keep_freed_memory()
    embedder, rows = load(options), queries(options.queries, seed=1)
    embedder.encode(queries(CLIENTS, seed=0))
    found = {}
    for size in (1, CLIENTS):
        embedder.feature_cache.clear()
        started = time.process_time()
        for start in range(0, len(rows), size):
            embedder.encode(rows[start : start + size])
        found[f"cpu_seconds_by_{size}"] = time.process_time() - started
    return found


def serve(options: argparse.Namespace) -> None:
    keep_freed_memory()
    limits = Limits(queued_rows=QUEUED_ROWS, request_rows=QUEUED_ROWS)
    listening, failures = bind("127.0.0.1", 0), []
    port, embedder = listening.getsockname()[1], load(options)

    def start(service: Service) -> None:
        service.start(embedder)
        print(port, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        index = SearchIndex(write_index(Path(folder), embedder, options.index_rows))
        index.check(embedder)
        options_of_server = ServerOptions(limits=limits)
        server = make_server(start, options_of_server, failures, lambda service: [search_routes(service, index)])
        run_server(server, failures, listening)
    found = server.service.metrics.registry.get_sample_value("virtue_admitted_requests_total")
    print(int(found or 0), flush=True)


def write_index(folder: Path, embedder: Embedder, count: int) -> str:
    """An index of random vectors, as if the model had encoded them."""
    vectors = np.random.default_rng(0).normal(size=(count, embedder.embed_dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        EncodedRow(f"{number}.jpg", f"{number}.jpg", vector, f"{number}.jpg") for number, vector in enumerate(vectors)
    ]
    facts = EncodingFacts(embedder.fingerprint(), "random vectors", embedder.embed_dim)
    pq.write_table(to_table(rows, row_schema(facts)), folder / "rows.parquet")
    VectorIndex.build(folder / "rows.parquet", folder / "index")
    return str(folder / "index")


@contextmanager
def running(options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process, and its URL once it is ready."""
    same = ["--device", options.device, "--dtype", options.dtype, "--model", options.model] if options.model else []
    command = [sys.executable, __file__, "--child", "server", "--index_rows", str(options.index_rows), *same]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {
        "model": options.model or "random weights",
        "clients": CLIENTS,
        "queries": options.queries,
    }
    with running(options) as (process, url):
        rounds = []
        send_all(url, queries(CLIENTS, seed=0), CLIENTS)
        for number in range(options.rounds):
            rounds.append(measure_round(options, process, url, number))
        report["rounds"] = rounds
        for key in ("cpu_ratio_to_16_at_once", "cpu_ratio_to_one_by_one", "batching_gain"):
            report[key] = sorted(one[key] for one in rounds)[len(rounds) // 2]
        report["search"] = measure_search(url, options.index_rows)
        report["overload"] = overload(process, url, options.seconds)
        report["malformed"] = send_malformed(url, options.malformed)
        report["shutdown"] = shut_down(process, url)
    return report


def measure_round(
    options: argparse.Namespace, process: subprocess.Popen[str], url: str, number: int
) -> dict[str, float]:
    """The bare loop and the server in turns; the server forgets the images in between, which are others."""
    command = [sys.executable, __file__, "--child", "bare", "--queries", str(options.queries)]
    command += ["--model", options.model, "--dtype", options.dtype] if options.model else []
    bare = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    many = send_all(url, queries(options.queries, seed=2 + 2 * number), CLIENTS, process.pid)
    alone = send_all(url, queries(max(16, options.queries // 4), seed=3 + 2 * number), 1, process.pid)
    per_query = many["cpu_seconds"] / options.queries
    return {
        **bare,
        "server_cpu_seconds": many["cpu_seconds"],
        **{key: many[key] for key in ("queries_per_second", "p50_ms", "p99_ms")},
        "p50_ms_of_one_client": alone["p50_ms"],
        "queries_per_second_of_one_client": alone["queries_per_second"],
        "cpu_ratio_to_16_at_once": bare[f"cpu_seconds_by_{CLIENTS}"] / many["cpu_seconds"],
        "cpu_ratio_to_one_by_one": bare["cpu_seconds_by_1"] / many["cpu_seconds"],
        "batching_gain": alone["cpu_seconds"] / max(16, options.queries // 4) / per_query,
    }


def send_all(url: str, bodies: list[dict[str, Any]], clients: int, pid: int | None = None) -> dict[str, float]:
    """Send each query by one of so many clients, each of which waits for its answer."""
    latencies: list[float] = []
    contents = [json.dumps({"input": [body]}) for body in bodies]
    local = threading.local()
    opened: list[httpx.Client] = []

    def send(content: str) -> None:
        if not hasattr(local, "client"):
            local.client = httpx.Client(base_url=url, timeout=120, trust_env=False, headers=JSON_TYPE)
            opened.append(local.client)
        started = time.perf_counter()
        response = local.client.post("/v1/embeddings", content=content)
        assert response.status_code == 200, response.text
        latencies.append(time.perf_counter() - started)

    cpu, started = cpu_seconds(pid), time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, contents))
    wall = time.perf_counter() - started
    found = {"cpu_seconds": cpu_seconds(pid) - cpu, "queries_per_second": len(bodies) / wall}
    for client in opened:
        client.close()
    return found | {f"p{share}_ms": float(np.percentile(latencies, share)) * 1000 for share in (50, 99)}


def measure_search(url: str, rows: int) -> dict[str, Any]:
    """Searches from the shell, a process each, and over one connection."""
    command = [sys.executable, "-m", "virtue_pl", "search", "--server", url, "--text", "a red cup"]
    shells = []
    for _ in range(5):
        before, started = os.times(), time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall, after = time.perf_counter() - started, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        shells.append((wall, cpu))
    seconds = []
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        for number in range(50):
            started = time.perf_counter()
            assert client.post("/v1/search", json={"query": f"thing number {number}"}).status_code == 200
            seconds.append(time.perf_counter() - started)
    wall, cpu = (float(np.median(each)) for each in zip(*shells, strict=True))
    found = {"rows": rows, "shell_seconds": wall, "shell_cpu_seconds": cpu}
    return found | {f"p{share}_ms": float(np.percentile(seconds, share)) * 1000 for share in (50, 99)}


def overload(process: subprocess.Popen[str], url: str, seconds: float) -> dict[str, Any]:
    """Have every client ask for so many rows that the queue is always full."""
    body = json.dumps({"input": [f"text number {number}" for number in range(OVERLOAD_ROWS)]})
    statuses: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    memory = [resident_mib(process.pid)]

    def ask(number: int) -> None:
        with httpx.Client(base_url=url, timeout=120, trust_env=False, headers=JSON_TYPE) as client:
            while time.monotonic() < deadline:
                statuses[str(client.post("/v1/embeddings", content=body).status_code)] += 1
                if number == 0:
                    memory.append(resident_mib(process.pid))

    run_threads(ask, CLIENTS)
    middle, last = (float(np.median(part)) for part in np.array_split(memory, 4)[1::2])
    return {
        "seconds": seconds,
        "statuses": dict(statuses),
        "only_200_429_503": set(statuses) <= {"200", "429", "503"},
        "memory_mib": {"before": memory[0], "second_quarter": middle, "last_quarter": last, "grown": last - middle},
    }


def send_malformed(url: str, count: int) -> dict[str, Any]:
    """Send right requests with a value replaced or bytes changed, and see that the server goes on."""
    generator = random.Random(0)
    values = [
        None,
        True,
        -1,
        1e308,
        float("nan"),
        float("inf"),
        10**400,
        "",
        "a",
        "\ud800",
        [],
        {},
        [[1]],
        {"a": 1},
        "data:,",
        "data:image/png;base64,AAAA",
    ]
    (query,) = queries(1, seed=0)
    part = {"type": "image_url", "image_url": {"url": query["image"]}, "regions": query["regions"]}
    right = [
        ("/v1/embeddings", {"input": ["a", "b"], "dimensions": 4}),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "a"}]}]}),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": ["float"]}),
        ("/v1/embeddings", {"input": [{**query, "uuid": "a", "regions_as": "each"}], "encoding_format": "base64"}),
        ("/v1/search", {"query": [query, "a cat"], "k": 3, "filter": "region IS NULL", "exact": True}),
        ("/v1/masks", {"image": query["image"], "regions": query["regions"], "uuid": "a"}),
    ]
    statuses: Counter[str] = Counter()
    with httpx.Client(base_url=url, timeout=120, trust_env=False, headers=JSON_TYPE) as client:
        for number in range(count):
            path, whole = generator.choice(right)
            body = json.loads(json.dumps(whole))
            owner, key = generator.choice(list(spots(body)))
            owner[key] = generator.choice(values)
            content = bytearray(json.dumps(body).encode())
            if number % 4 == 0:
                content[generator.randrange(len(content))] = generator.randrange(256)
            statuses[str(client.post(path, content=bytes(content)).status_code)] += 1
        alive = client.post("/v1/embeddings", content=json.dumps({"input": "a"})).status_code == 200
    fatal = sum(number for status, number in statuses.items() if status.startswith("5"))
    return {"requests": count, "statuses": dict(statuses), "server_errors": fatal, "alive": alive}


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each key of nested JSON whose value may be replaced, with its owner."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from spots(value[key])


def shut_down(process: subprocess.Popen[str], url: str) -> dict[str, Any]:
    """Send SIGTERM under load; count the requests that were admitted, got an answer, or were not let in."""
    found: Counter[str] = Counter()
    before = read_counter(url, "virtue_admitted_requests_total")
    body = json.dumps({"input": ["one", "two"]})

    def ask(number: int) -> None:
        while True:
            # a connection for each request: one that is kept may be closed before the next request comes in
            with httpx.Client(base_url=url, timeout=120, trust_env=False, headers=JSON_TYPE) as client:
                try:
                    found[str(client.post("/v1/embeddings", content=body).status_code)] += 1
                except httpx.ConnectError:
                    found["refused"] += 1
                    return
                except (httpx.ReadError, httpx.RemoteProtocolError, httpx.WriteError):
                    # accepted by the kernel's queue of connections, not by the server, where it closed before reading
                    found["broken"] += 1
                    return

    timer = threading.Timer(1.5, lambda: os.kill(process.pid, signal.SIGTERM))
    timer.start()
    run_threads(ask, CLIENTS)
    assert process.stdout is not None
    admitted = int(process.stdout.readline()) - before
    return {"admitted": admitted, "answers": dict(found), "exit_code": process.wait(60)}


def read_counter(url: str, name: str) -> int:
    """Return a counter of the server's metrics."""
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith(f"{name} "))


def run_threads(function: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=function, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process, 0 without one."""
    if pid is None:
        return 0.0
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
