"""What a second worker is worth: `planner measure` by one and by two Dask workers of a thread each, in turns.

    python benchmarks/machines.py [MODEL] [--imatrix FILE] [--types iq1_m,iq2_xs] [--tolerance 0.001] [--rounds 3]

The work is the kernels': the slowest types, and nearly all rows. Workers have loaded what is compiled before it begins,
as they have in all but the first minute of longer work. On a machine that is busy, seconds say little of the work, and
two virtual processors are seldom two. Beside seconds stand CPU seconds: of all workers, and of the one that had most to
do, which is how long it takes where each worker has a core of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from distributed import Client, LocalCluster

from planner.formats.ggml import fast, select_formats
from planner.gguf import open_model, read_imatrix
from planner.measure import Settings
from planner.measure.campaign import Campaign
from state import Store

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(types: str) -> None:
    """Load what quantizes to some types, in a worker."""
    for fmt in select_formats(types):
        if fmt.name in fast.MODULES:
            fast.quantizer(fmt)


def measured(
    model: Path, imatrix: Path | None, types: str, tolerance: float, workers: int
) -> tuple[float, list[float]]:
    """Seconds that it takes, and CPU seconds of each worker."""
    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
        open_model(model) as opened,
        Store.open(Path(folder, "s.planner"), create=True) as store,
    ):
        client.run(load, types)
        before = client.run(time.process_time)
        began = time.perf_counter()
        matrix = read_imatrix(imatrix) if imatrix else None
        campaign = Campaign(opened, matrix, store, select_formats(types), Settings(tolerance=tolerance))
        for _ in campaign.run(1, cluster.scheduler_address):
            pass
        took = time.perf_counter() - began
        after = client.run(time.process_time)
    return took, [after[worker] - before[worker] for worker in after]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EXAMPLES / "prose-8m-f16.gguf")
    parser.add_argument("--imatrix", type=Path, default=EXAMPLES / "prose-8m.imatrix.gguf")
    parser.add_argument("--types", default="iq1_s,iq1_m,iq2_xxs,iq2_xs,iq2_s,iq3_xxs,iq3_s")
    parser.add_argument("--tolerance", type=float, default=0.001)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(f"{asked.model.name}, {asked.types}\n\nworkers  seconds  CPU s of all  of the busiest")
    best: dict[int, tuple[float, float]] = {}
    for _ in range(asked.rounds):
        for workers in (1, 2):
            took, each = measured(asked.model, asked.imatrix, asked.types, asked.tolerance, workers)
            print(f"{workers:7} {took:8.1f} {sum(each):13.1f} {max(each):15.1f}", flush=True)
            least = best.get(workers, (took, max(each)))
            best[workers] = min(took, least[0]), min(max(each), least[1])
    seconds, busiest = (best[1][part] / best[2][part] for part in (0, 1))
    print(f"\ntwo do as much as {seconds:.2f} (seconds) or {busiest:.2f} (CPU) of one, the best of each")


if __name__ == "__main__":
    main()
