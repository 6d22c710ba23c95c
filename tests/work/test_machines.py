"""Workers of a Dask scheduler compute what threads compute, bit for bit, whatever becomes of them."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from planner.errors import ClusterError
from planner.formats.ggml import select_formats
from planner.gguf import open_model, read_imatrix
from planner.gguf.quantize import quantize_model
from planner.measure import Settings
from planner.measure.campaign import Campaign
from planner.version import __version__
from planner.work import Machines, Threads, machines, open_crew
from state import Store
from tests.conftest import ok
from tests.models import experts, made_up_covariances, write_imatrix

pytest.importorskip("distributed")

TYPES = "q4_K,q2_K,q4_0"
_PATIENCE = 120  # seconds for a process to start on a machine that is busy


class Cluster:
    """A scheduler and its workers, one thread each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
            "--scheduler-file", str(folder / "scheduler.json"),
        )  # fmt: skip
        self.address = self._wait_for_address()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        here = Path(__file__).parents[2]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(here), *filter(None, sys.path)]),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        }
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{arguments[0]}", *arguments[1:]],
                cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.start(
            "worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--memory-limit", "0",
            "--local-directory", str(self.folder / f"worker-{len(self.processes)}"),
        )  # fmt: skip

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            try:
                address: str = json.loads((self.folder / "scheduler.json").read_text())["address"]
                return address
            except (FileNotFoundError, ValueError):
                time.sleep(0.05)
        raise AssertionError((self.folder / "0.log").read_text())

    def wait_for_workers(self, count: int) -> None:
        from distributed import Client

        with Client(self.address, set_as_default=False, timeout=_PATIENCE) as client:
            client.wait_for_workers(count, timeout=_PATIENCE)

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@contextmanager
def running(folder: Path, workers: int) -> Iterator[Cluster]:
    folder.mkdir()
    cluster = Cluster(folder)
    try:
        for _ in range(workers):
            cluster.start_worker()
        cluster.wait_for_workers(workers)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running(tmp_path_factory.mktemp("dask") / "run", 2) as cluster:
        yield cluster


def contents(state):
    """All that was measured, without how long the kernels took."""
    with Store.open(state, read_only=True) as store:
        found = {key: entry._replace(kernel_seconds=0.0) for key, entry in store.measurements(selected=True).items()}
        return found, store.energies(selected=True), store.inventory()


def near_and_far(cluster):
    """Names, and where to run what is to be called so."""
    return ("near", ("-t", 2)), ("far", ("--scheduler", cluster.address))


def test_states_and_files_are_the_same(cluster, example, here, run):
    for name, where in near_and_far(cluster):
        state = ("--state", f"{name}.state")
        ok(run("measure", example.model, "--imatrix", example.sums, "--types", TYPES, *state, *where))
        ok(run("solve", *state, "--bpw", 4, "-o", f"{name}.json"))
        ok(run("quantize", example.model, f"{name}.json", f"{name}.gguf", *where))
    assert contents(here / "far.state") == contents(here / "near.state")
    assert len(contents(here / "far.state")[0]) > 100
    assert (here / "far.gguf").read_bytes() == (here / "near.gguf").read_bytes()


def test_refined_codes_are_the_same(cluster, here, run, monkeypatch):
    monkeypatch.setattr(Machines, "least", 1 << 16)  # several pieces of work for a tensor
    model = experts().write(here / "model.gguf")
    covariance = made_up_covariances(model, here / "cov.gguf")
    for name, where in near_and_far(cluster):
        state = ("--state", f"{name}.state")
        ok(run("measure", model, "--covariance", covariance, "--types", "q2_K,q4_K", *state, *where))
        ok(run("solve", *state, "--bpw", 4, "-o", f"{name}.json"))
        ok(run("quantize", model, f"{name}.json", f"{name}.gguf", "--max-shard-size", "400kB", *where))
    assert contents(here / "far.state") == contents(here / "near.state")
    files = sorted(here.glob("far-*.gguf"))
    assert len(files) > 1
    for file in files:
        assert file.read_bytes() == (here / file.name.replace("far", "near")).read_bytes()


def test_a_worker_that_is_killed_costs_its_work_alone(cluster, here):
    model = experts(count=8).write(here / "model.gguf")
    matrix = write_imatrix(model, here / "x")
    doomed, killed = cluster.start_worker(), False
    cluster.wait_for_workers(3)
    for state, scheduler in (("near.state", None), ("far.state", cluster.address)):
        with open_model(model) as opened, Store.open(here / state, create=True) as store:
            campaign = Campaign(opened, read_imatrix(matrix), store, select_formats(TYPES), Settings(tolerance=0.01))
            for step in campaign.run(2, scheduler):
                if scheduler and step.fresh and not killed:
                    assert step.done < step.total
                    doomed.kill()
                    killed = True
    assert killed
    assert doomed.wait() == -9
    assert contents(here / "far.state") == contents(here / "near.state")


def nap(seconds, stop):
    """Sleep, and look up now and then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if stop():
            raise InterruptedError
        time.sleep(0.02)
    return seconds


def refuse(item, stop):
    raise OSError(28, "the work's own", item)


def end_process(item, stop):
    os._exit(3)


def test_whoever_stops_listening_frees_the_workers(cluster):
    with open_crew(1, cluster.address) as crew:
        results = crew.unordered(nap, [0.0, 1e6, 1e6, 1e6, 1e6])
        assert next(results) == (0.0, 0.0)
        results.close()
        assert sorted(crew.unordered(nap, [0.1, 0.2])) == [(0.1, 0.1), (0.2, 0.2)]
    with open_crew(1, cluster.address) as crew:
        assert [crew.submit(nap, 1e6) for _ in range(4)]
    with open_crew(1, cluster.address) as crew:
        assert crew.submit(nap, 0.1).result() == 0.1
        assert crew.submit(nap, 0.1, near=True).result() == 0.1


def test_what_work_raises_is_raised_here(cluster):
    with open_crew(1, cluster.address) as crew:
        for results in (crew.unordered(refuse, ["here"]), iter(lambda: crew.submit(refuse, "here").result(), None)):
            with pytest.raises(OSError, match="the work's own") as caught:
                next(results)
            assert caught.value.filename == "here"


@pytest.mark.parametrize("there", [True, False])
def test_a_worker_without_the_file_says_so(there, cluster, here):
    model = experts().write(here / "model.gguf")
    with open_model(model) as opened:
        pickle.dumps(opened)  # known by what it is now
        model.unlink()
        if there:
            experts(count=5).write(model)
        why = "another file has its name" if there else "no such file"
        where = rf"worker tcp://.* does not see {model} as it is here: {why}"
        with pytest.raises(ClusterError, match=where) as caught:
            quantize_model(
                opened, {"output.weight": "q8_0"}, None, here / "out.gguf", file_type=7, scheduler=cluster.address
            )
        assert "same paths" in caught.value.remedy
    assert list(here.iterdir()) == ([model] if there else [])


def test_other_kernels_are_refused(cluster, monkeypatch):
    monkeypatch.setattr(machines, "__version__", "0.0.1")
    with open_crew(1, cluster.address) as crew, pytest.raises(ClusterError, match=r"planner .*here is planner 0\.0\.1"):
        crew.submit(nap, 0.0).result()
    monkeypatch.setattr(machines, "_kernels", lambda: (("planner", __version__),))
    with open_crew(1, cluster.address) as crew:  # whose workers may have more than we do
        assert crew.submit(nap, 0.0).result() == 0.0


def test_nobody_is_there(tmp_path, example, here, run, monkeypatch):
    """Work that ends every worker; then no worker, then no scheduler."""
    monkeypatch.setattr(machines, "_CONNECTING", 1.0)
    monkeypatch.setattr(machines, "_ABSENT", 0.2)
    monkeypatch.setattr(machines, "_LOOK", 0.5)
    with running(tmp_path / "dask", 2) as cluster:
        with open_crew(1, cluster.address) as crew:
            with pytest.raises(ClusterError, match="2 workers ended, one after another"):
                crew.submit(end_process, None).result()
            with pytest.raises(ClusterError, match="has no workers"):
                crew.submit(nap, 0.0).result()
            with pytest.raises(ClusterError, match="has no workers"):
                next(crew.unordered(nap, [0.0]))
            cluster.scheduler.kill()
            with pytest.raises(ClusterError, match="is lost"):
                crew.submit(nap, 0.0).result()
        assert crew.submit(nap, 0.0, near=True)
    result = run("measure", example.model, "--no-imatrix", "--types", "q8_0", "--scheduler", cluster.address)
    assert result.status == 1
    assert f"Error: No Dask scheduler answers at {cluster.address}." in result.err
    assert "dask scheduler" in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:8786", "tcp://127.0.0.1:x", ""])
def test_addresses_that_are_none(address, example, run, monkeypatch, here):
    monkeypatch.setattr(machines, "_CONNECTING", 0.5)
    result = run("measure", example.model, "--no-imatrix", "--types", "q8_0", "--scheduler", address)
    assert result.status == 1
    assert f"No Dask scheduler answers at {address}" in result.err


def test_distributed_is_asked_for(example, here, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    result = run("measure", example.model, "--no-imatrix", "--types", "q8_0", "--scheduler", "tcp://127.0.0.1:1")
    assert result.status == 1
    assert "distributed is needed for --scheduler" in result.err
    assert "pip install 'gguf-planner[dask]'" in result.err


def test_without_a_scheduler_threads_work():
    with open_crew(3) as crew:
        assert isinstance(crew, Threads)
        assert sorted(crew.unordered(nap, [0.02, 0.0, 0.01])) == [(0.0, 0.0), (0.01, 0.01), (0.02, 0.02)]
        assert [handed.result() for handed in [crew.submit(nap, 0.0) for _ in range(5)]] == [0.0] * 5
