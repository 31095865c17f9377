"""From how many pictures on does an approximate index pay for `hpml clip search`, beside the plain matrix product that it uses?

    python benchmarks/clip_index.py [--sizes 1000,10000,100000,1000000] [--graph-most 100000] [--queries 30] [--threads 1]

Times one query over rows of 512 numbers: the product with its top 10 (`hpml.apps.clip_index.nearest`), and, where faiss is installed
(`pip install faiss-cpu`), its exact flat index and its approximate HNSW graph with the seconds that it takes to build and the share of
the true ten that it finds. Beside them stands what a reader waits for anyhow: the text tower's embedding of the query. An index can pay
from where the product takes longer than that. Rows lie in clusters, as those of frames do: in evenly spread ones nothing could be
found faster. One JSON is left for notebook 14.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from hpml import measure, studies, workloads
from hpml.apps import clip_index

DIM, TOP, CLUSTERS = 512, 10, 200


def rows(count: int, random: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """float32 [count, DIM] of length 1, in clusters."""
    found = centres[random.integers(0, len(centres), count)]
    found += random.normal(0, 0.7 / np.sqrt(DIM), found.shape).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def median_ms(call: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    call(queries[0])
    spent = []
    for query in queries:
        started = time.perf_counter()
        call(query)
        spent.append(1e3 * (time.perf_counter() - started))
    return statistics.median(spent)


def text_tower_ms(queries: int) -> float:
    """One caption of 24 tokens through the published architecture's text tower, FP32, in this process."""
    net = workloads.get("clip").model({"variant": "base"}, 1).eval()
    ids = torch.randint(1, 500, (1, 24))
    ids[:, -1] = 49_407
    with torch.inference_mode():
        return median_ms(lambda _: net.embed_text(ids), np.empty((queries, 1)))


def of_faiss(found: np.ndarray, queries: np.ndarray, graph: bool) -> dict:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(DIM)
    flat.add(found)
    figures = {"flat_ms": median_ms(lambda query: flat.search(query[None], TOP), queries)}
    if graph:
        index, started = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT), time.perf_counter()
        index.hnsw.efConstruction, index.hnsw.efSearch = 80, 64
        index.add(found)
        figures["graph_build_s"] = time.perf_counter() - started
        figures["graph_ms"] = median_ms(lambda query: index.search(query[None], TOP), queries)
        true = [{row for row, _ in clip_index.nearest(found, query, TOP)} for query in queries]
        answers = [set(index.search(query[None], TOP)[1][0].tolist()) for query in queries]
        figures["graph_recall"] = statistics.fmean(len(a & b) / TOP for a, b in zip(true, answers, strict=True))
    return figures


def pays_from(measured: list[dict], waited_ms: float) -> float | None:
    """Rows from which the product takes longer than `waited_ms`, on the line between two sizes; None: not up to the largest."""
    for small, large in zip(measured, measured[1:], strict=False):
        if small["product_ms"] <= waited_ms < large["product_ms"]:
            share = (waited_ms - small["product_ms"]) / (large["product_ms"] - small["product_ms"])
            return small["rows"] + share * (large["rows"] - small["rows"])
    return None


def main() -> None:
    """Measures, prints and leaves the study."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--graph-most", type=int, default=100_000, help="largest size for which the graph is built: minutes")
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="of all that is timed; one is the least disturbed by others")
    asked = parser.parse_args()
    threads, random = measure.set_threads(asked.threads), np.random.default_rng(0)
    threadpool_limits(asked.threads)  # NumPy's
    mark, has_faiss = measure.cpu_mark(), importlib.util.find_spec("faiss") is not None
    centres = random.normal(0, 1 / np.sqrt(DIM), (CLUSTERS, DIM)).astype(np.float32)
    queries, waited_ms, measured = rows(asked.queries, random, centres), text_tower_ms(asked.queries), []
    print(f"text tower, one query: {waited_ms:.3g} ms; {threads} threads" + ("" if has_faiss else "; faiss is not installed: product only"))
    for count in sorted(int(size) for size in asked.sizes.split(",")):
        found = rows(count, random, centres)
        figures = {"rows": count, "product_ms": median_ms(lambda query, found=found: clip_index.nearest(found, query, TOP), queries)}
        if has_faiss:
            figures |= of_faiss(found, queries, count <= asked.graph_most)
        measured.append(figures)
        print("  ".join(f"{name} {value:,.4g}" for name, value in figures.items()), flush=True)
    size = pays_from(measured, waited_ms)
    least = f"about {size:,.0f} pictures" if size else f"more than {measured[-1]['rows']:,} pictures"
    print(f"the plain product takes longer than the query's own embedding from {least}: below that an index gains little")
    print(studies.write("clip_index", {"dim": DIM, "top": TOP, "threads": threads, "text_tower_ms": waited_ms, "sizes": measured,
                                       "pays_from": size, "disturbance": measure.disturbance(mark)}))


if __name__ == "__main__":
    main()
