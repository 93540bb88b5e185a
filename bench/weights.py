"""`make bench-weights`: how fast weights come, beside a plain copy and huggingface_hub's. Nothing is asserted.

One run, one machine, one hub on loopback: 2 GiB of random bytes in 8 shards, each way in turn, several rounds, the best
of each. A way that only writes into memory is not compared with one that waits for the disk: all of them end with the
bytes on disk (fsync), and a second table leaves the disk out by working in a file system in memory.

"cpu s" are seconds of the processor of the way itself, "hub s" those of the hub, which shares the machine.

* copy + sha256: the shards copied from the hub's folder with the kernel's help, then read and hashed; four at a time.
  No byte of it goes through a network.
* curl + sha256: the same over HTTP from the hub, received by curl; left out where there is no curl.
* verified: the module's way, four files at once, hashed, made durable and recorded.
* received only: what verified receives, thrown away: neither hashed nor written. What the network alone takes.
* snapshot_download, hf download: what huggingface_hub does by default, which checks sizes, and no hash.

Then hosts that share: one host alone, and eight at once that have the files from each other, from a hub that gives only
so many bytes per second to all together. Each host is a process of its own with the server that the role starts; all
have their Python loaded when the time begins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "collections"), str(ROOT / "tests")]

from ansible_collections.inference.vllm.plugins.module_utils.weights.peers import Fleet  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.weights.plan import FileSpec, Lock, parse_lock  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.weights.progress import Pace  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.weights.snapshot import Want, ensure, write_lock  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.weights.store import Layout, State  # noqa: E402
from ansible_collections.inference.vllm.plugins.module_utils.weights.stream import stream  # noqa: E402
from support.faulty_hub import HUB_FILE, PEER_FILE, FaultyHub, serving  # noqa: E402

REPOSITORY, REVISION = "bench/model", "main"
SHARDS, MIB, GIB = 8, 1 << 20, 1 << 30
WORKERS = 4
COPY, CURL = "copy + sha256", "curl + sha256"
RECHECK_BYTES = 35 * 10**9
GOAL, PEAK_MIB, RECHECK_SECONDS, FLEET_GOAL = 0.95, 200, 1.0, 1.3
HOSTS, FLEET_MIB, FLEET_RATE = 8, 128, 8e6
PEER_PORT, PEER_TOKEN = 18099, "bench-" * 8


def main() -> int:
    """Run one way in this process if asked to, else all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "bench-weights", help="on the disk to measure")
    parser.add_argument("--memory", type=Path, default=Path("/dev/shm"), help="a file system in memory")  # noqa: S108
    parser.add_argument("--gib", type=float, default=2.0, help="size of all shards together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["ways", "recheck", "fleet"], help="one of the three parts")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        return run_way(options.way, options.folder, options.url, options.source)
    if options.host is not None:
        return run_host(options.folder, options.host, options.url)
    options.folder.mkdir(parents=True, exist_ok=True)
    places = (("On disk", options.folder), ("In memory", options.memory)) if options.only in (None, "ways") else ()
    for title, place in places:
        with tempfile.TemporaryDirectory(prefix="bench-weights-", dir=place) as folder:
            print(f"{title}, {options.gib:g} GiB in {SHARDS} shards, best of {options.rounds}:\n")
            compare(Path(folder), options.gib, options.rounds)
    with tempfile.TemporaryDirectory(prefix="bench-weights-", dir=options.folder) as folder:
        if options.only in (None, "recheck"):
            seconds = recheck(Path(folder))
            print(f"Re-check of {RECHECK_BYTES / 1e9:g} GB of good files: {seconds:.3f} s (goal {RECHECK_SECONDS:g} s)")
        if options.only in (None, "fleet"):
            one, all_hosts, sent = share(Path(folder))
            print(
                f"{FLEET_MIB} MiB from a hub that gives {FLEET_RATE / 1e6:g} MB/s: one host {one:.1f} s, "
                f"{HOSTS} hosts {all_hosts:.1f} s, {all_hosts / one:.2f} times as long (goal {FLEET_GOAL:g}); "
                f"the hub sent the files {sent:.2f} times"
            )
    return 0


def compare(folder: Path, gib: float, rounds: int) -> None:
    """Measure all ways in one folder and print the table."""
    source = write_shards(folder / "hub" / REPOSITORY, int(gib * GIB / SHARDS / MIB))
    (folder / "hub.json").write_text(json.dumps({"address": "127.0.0.1", "port": 0, "root": "hub"}))
    best: dict[str, tuple[float, ...]] = {}
    with subprocess.Popen(  # noqa: S603 - this project's own program
        [sys.executable, "-u", HUB_FILE, "--config", folder / "hub.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as hub:
        try:
            assert hub.stdout is not None  # noqa: S101
            url = hub.stdout.readline().split()[-1]
            urlopen(f"{url}/api/models/{REPOSITORY}").close()  # noqa: S310 - the hub hashes its files once
            for _ in range(rounds):
                for way in WAYS:
                    if way == CURL and not shutil.which("curl"):
                        continue
                    before = processor_seconds(hub.pid)
                    seconds, cpu, peak = measure(way, folder / "out", url, source)
                    figures = seconds, cpu, processor_seconds(hub.pid) - before, peak
                    if way not in best or figures[0] < best[way][0]:
                        best[way] = figures
        finally:
            hub.terminate()
    bases = [way for way in (COPY, CURL) if way in best]
    heads = f"{'seconds':>8}  {'MiB/s':>6}  {'cpu s':>6}  {'hub s':>6}  {'peak MiB':>8}"
    print(f"{'speed, relative to':<20}  {heads}", *(f"{base.split()[0]:>6}" for base in bases), sep="  ")
    for way, (seconds, cpu, hub_cpu, peak) in best.items():
        row = f"{seconds:>8.2f}  {gib * 1024 / seconds:>6.0f}  {cpu:>6.2f}  {hub_cpu:>6.2f}  {peak:>8.0f}"
        print(f"{way:<20}  {row}", *(f"{best[base][0] / seconds:>6.2f}" for base in bases), sep="  ")
    print(f"goals of verified: at least {GOAL} of the raw copy's speed, at most {PEAK_MIB} MiB\n")


def write_shards(folder: Path, mib: int) -> Path:
    """Make a model of random bytes, each shard of so many MiB. Returns its folder."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        with (folder / f"model-{shard}.safetensors").open("wb") as file:
            for _ in range(mib):
                file.write(os.urandom(MIB))
    return folder


def processor_seconds(pid: int) -> float:
    """Seconds of the processor that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(way: str, out: Path, url: str, source: Path) -> tuple[float, float, float]:
    """Run one way in a process of its own. Returns its seconds and its processor's, and its peak in MiB.

    The start of Python does not count.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    os.sync()
    command = [sys.executable, __file__, "--way", way, "--folder", str(out), "--url", url, "--source", str(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - itself
    shutil.rmtree(out)
    seconds, cpu, peak = map(float, done.stdout.split()[-3:])
    return seconds, cpu, peak


def run_way(way: str, out: Path, url: str, source: Path) -> int:
    """Do it once; prints seconds, those of the processor, and the peak of memory in MiB."""
    os.environ.update(HF_ENDPOINT=url, HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="127.0.0.1")
    os.environ.update(HF_HOME=str(out / "home"), HF_HUB_DISABLE_PROGRESS_BARS="1")
    import huggingface_hub  # the start of Python and its imports are not what is measured

    _ = huggingface_hub.snapshot_download, huggingface_hub.HfApi
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    before, begin = [resource.getrusage(who) for who in whose], time.monotonic()
    WAYS[way](out, url, source)
    seconds, after = time.monotonic() - begin, [resource.getrusage(who) for who in whose]
    cpu = sum(use.ru_utime + use.ru_stime for use in after) - sum(use.ru_utime + use.ru_stime for use in before)
    print(seconds, cpu, max(use.ru_maxrss for use in after) / 1024)
    return 0


def four_at_a_time(act: Callable[[Path], None], files: list[Path]) -> None:
    """Do something with each file; the first failure is raised."""
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(act, files))


def durable(path: Path) -> None:
    """Wait until a file is on disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def hash_of(path: Path) -> None:
    """Read and hash a file."""
    with path.open("rb", buffering=0) as content:
        hashlib.file_digest(content, "sha256")


def copy(out: Path, url: str, source: Path) -> None:
    """Copy, make durable, hash."""

    def one(path: Path) -> None:
        shutil.copyfile(path, out / path.name)
        durable(out / path.name)

    four_at_a_time(one, sorted(source.iterdir()))
    four_at_a_time(hash_of, sorted(out.glob("model-*")))


def curl(out: Path, url: str, source: Path) -> None:
    """Receive with curl, make durable, hash."""

    def one(path: Path) -> None:
        options = ["--silent", "--show-error", "--fail", "--noproxy", "*", "--output", str(out / path.name)]
        subprocess.run(["curl", *options, address(url, path)], check=True)  # noqa: S603, S607 - the bench's own hub
        durable(out / path.name)

    four_at_a_time(one, sorted(source.iterdir()))
    four_at_a_time(hash_of, sorted(out.glob("model-*")))


def received_only(out: Path, url: str, source: Path) -> None:
    """Receive as the module does, and throw away."""

    def one(path: Path) -> None:
        with stream(address(url, path), lambda _: {}, timeout=60, context=ssl.create_default_context()) as answer:
            for _piece in answer.pieces:
                pass

    four_at_a_time(one, sorted(source.iterdir()))


def address(url: str, shard: Path) -> str:
    """Where the hub gives a shard."""
    return f"{url}/{REPOSITORY}/resolve/{REVISION}/{shard.name}"


def verified(out: Path, url: str, source: Path) -> None:
    """The module's way."""
    ensure(Want(REPOSITORY, out, endpoint=url, workers=WORKERS))


def snapshot_download(out: Path, url: str, source: Path) -> None:
    """huggingface_hub's function, with as many workers."""
    import huggingface_hub

    huggingface_hub.snapshot_download(REPOSITORY, local_dir=out / "model", max_workers=WORKERS)
    os.sync()


def hf_download(out: Path, url: str, source: Path) -> None:
    """huggingface_hub's command, with as many workers; the start of its Python counts."""
    hf = Path(sys.executable).with_name("hf")
    options = ["--local-dir", str(out / "model"), "--max-workers", str(WORKERS)]
    subprocess.run([hf, "download", REPOSITORY, *options], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    os.sync()


WAYS: dict[str, Callable[[Path, str, Path], None]] = {
    COPY: copy,
    CURL: curl,
    "verified": verified,
    "received only": received_only,
    "snapshot_download": snapshot_download,
    "hf download": hf_download,
}


def recheck(folder: Path) -> float:
    """Seconds to see that 35 GB of files, sparse ones, are as they were when they were verified."""
    commit, size = "0" * 40, RECHECK_BYTES // SHARDS
    layout = Layout(folder, REPOSITORY)
    layout.folder(commit).mkdir(parents=True)
    files = tuple(FileSpec(f"model-{shard}.safetensors", size, f"{shard:064x}") for shard in range(SHARDS))
    state = State(layout.state(commit), commit)
    for spec in files:
        path = layout.folder(commit) / spec.path
        path.touch()
        os.truncate(path, size)
        path.chmod(0o444)
        state.record(spec.path, path.stat(), str(spec.sha256))
    state.save()
    begin = time.monotonic()
    outcome = ensure(Want(REPOSITORY, folder, lock=Lock(REPOSITORY, REVISION, commit, files)))
    seconds = time.monotonic() - begin
    if outcome.fetched:
        raise RuntimeError("files that are as they were count as missing")
    return seconds


class Average(Pace):
    """A rate that is kept on the whole: what a busy machine sends late, it sends faster then."""

    def __init__(self, bytes_per_second: float) -> None:
        """Begin with the first byte."""
        super().__init__(bytes_per_second)
        self._sent, self._begin = 0, 0.0

    def wait(self, count: int) -> float:
        """Seconds to wait before the next bytes; the first ones start the clock."""
        with self._mutex:
            self._begin = self._begin or self._clock()
            self._sent += count
            return max(0.0, self._begin + self._sent / self._rate - self._clock())


def share(folder: Path) -> tuple[float, float, float]:
    """Seconds of one host alone, of all hosts at once, and how often the hub sent the files to all hosts together."""
    write_shards(folder / "hub" / REPOSITORY, FLEET_MIB // SHARDS)
    with serving(FaultyHub(folder / "hub")) as hub:
        lock, _ = write_lock(Want(REPOSITORY, folder / "none", endpoint=hub.url))
        (folder / "lock.json").write_text(lock.file().to_json())
        seconds = []
        for hosts in (1, HOSTS):
            hub.sent, hub.pace = 0, Average(FLEET_RATE)
            seconds.append(deploy(folder / "hosts", hosts, hub.url))
        return seconds[0], seconds[1], hub.sent / (FLEET_MIB * MIB)


def deploy(folder: Path, hosts: int, url: str) -> float:
    """Seconds until so many hosts that begin together have the model."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603 - itself
                    [
                        sys.executable,
                        __file__,
                        "--host",
                        str(number),
                        "--folder",
                        str(folder / str(hosts)),
                        "--url",
                        url,
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for number in range(hosts)
        ]
        said = [process.stdout for process in processes if process.stdout is not None]
        told = [process.stdin for process in processes if process.stdin is not None]
        ready = [lines.readline() for lines in said]
        begin = time.monotonic()
        for line in told:
            line.write("go\n")
            line.flush()
        done = [lines.readline() for lines in said]
        seconds = time.monotonic() - begin
        for line in told:  # until here each gives files to the others
            line.close()
    if set(ready + done) != {"ready\n", "done\n"}:
        raise RuntimeError("a host failed")
    shutil.rmtree(folder)
    return seconds


def run_host(folder: Path, number: int, url: str) -> int:
    """One host: starts its server, waits for the word, and deploys. The folder's name says how many there are."""
    os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="127.0.0.1")
    import huggingface_hub

    _ = huggingface_hub.HfApi
    addresses = [f"127.0.0.{each + 11}" for each in range(int(folder.name))]
    urls = [f"http://{address}:{PEER_PORT}" for address in addresses]
    home = folder / str(number)
    (home / "models").mkdir(parents=True)
    for file in (HUB_FILE, PEER_FILE):
        shutil.copy(file, home)
    settings = {"address": addresses[number], "port": PEER_PORT, "models": str(home / "models"), "user": ""}
    settings |= {"token": PEER_TOKEN, "uploads": 2, "idle": 600, "allow_public": False}
    program = [sys.executable, "-Es", str(home / PEER_FILE.name)]
    subprocess.run([*program, "start"], input=json.dumps(settings), text=True, check=True)  # noqa: S603
    try:
        lock = parse_lock(json.loads((folder.parents[1] / "lock.json").read_text()), "the bench's lock")
        fleet = Fleet(urls[number], urls, PEER_TOKEN) if len(urls) > 1 else Fleet()
        want = Want(REPOSITORY, home / "models", lock=lock, endpoint=url, fleet=fleet, show_progress=True)
        print("ready", flush=True)
        sys.stdin.readline()
        ensure(want)
        print("done", flush=True)
        sys.stdin.read()
    finally:
        subprocess.run([*program, "stop"], check=True)  # noqa: S603
    return 0


if __name__ == "__main__":
    sys.exit(main())
