"""Run the boots of one or more matrices and write what was seen: ``results.jsonl`` grows by one line per boot."""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.boots import load, probe
from bench.boots.engine import Engine, Forks, ballast, forking, gpu_count, wait_exit

Boot = Mapping[str, Any]

_BENCH_LIMIT_S = 200
_VERIFY_LIMIT_S = 300
_ROOT = Path(__file__).parents[2]

#: A setting of a boot, as catalogue/calibration.json names it, and the flag of vLLM that it becomes.
FLAGS: Mapping[str, str] = {
    "tensor_parallel_size": "--tensor-parallel-size",
    "kv_cache_dtype": "--kv-cache-dtype",
    "max_num_seqs": "--max-num-seqs",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_model_len": "--max-model-len",
}

#: What of a log tells about memory, kernels and errors.
TELLING = re.compile(
    r"Model loading took|Available KV|KV cache size|Maximum concurrency|larger than the avail|estimated maximum"
    r"|Auto-fit|Graph capturing finished|init engine|attention backend|out of memory|OutOfMemory|torch.compile took"
    r"|Selected \w+ for|Using \w+Kernel for|is less than desired|Encoder cache will be|Model Runner"
)
_MOST_LINES = 60


@dataclass(frozen=True)
class Rig:
    """Where models lie, where results go, and what starts engines."""

    models: Path
    out: Path
    deadline: float
    forks: Forks
    ansible_python: str = sys.executable
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Running:
    """A boot whose engine is ready."""

    rig: Rig
    boot: Boot
    engine: Engine
    folder: Path
    env: Mapping[str, str]


def main() -> int:
    """Run the matrices; 0 where every boot was run, 1 where time ran out."""
    parser = argparse.ArgumentParser(prog="python -m bench.boots", description=__doc__)
    parser.add_argument("matrix", type=Path, nargs="+")
    parser.add_argument("--only", nargs="+", help="names of the boots to run, in this order; all where it is left out")
    parser.add_argument("--models", type=Path, required=True, help="folder with a folder per model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ansible-python", default=sys.executable, help="interpreter that has ansible-core")
    parser.add_argument("--limit", type=float, default=3600, help="seconds after which no boot is begun")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    known = {boot["name"]: boot for path in options.matrix for boot in read(path)}
    boots = [known[name] for name in options.only or known]
    with forking(options.out / "zygote.log") as forks:
        deadline = time.monotonic() + options.limit
        rig = Rig(options.models.resolve(), options.out.resolve(), deadline, forks, options.ansible_python)
        done = sum(run_group(rig, group) for group in groups(boots))
    print(f"{done} of {len(boots)} boots run", flush=True)
    return 0 if done == len(boots) else 1


def read(path: Path) -> list[dict[str, Any]]:
    """The boots of a matrix, each whole."""
    matrix = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [merged(matrix.get("defaults", {}), boot) for boot in matrix["boots"]]


def merged(defaults: Mapping[str, Any], boot: Boot) -> dict[str, Any]:
    """A boot with what it leaves out; settings and environment add up, anything else replaces."""
    added = {key: {**defaults.get(key, {}), **boot.get(key, {})} for key in ("settings", "environment")}
    return {**defaults, **boot, **added}


def groups(boots: Sequence[Boot]) -> Iterator[list[Boot]]:
    """Boots that may run side by side: those that take one GPU, between two that take several."""
    alone: list[Boot] = []
    for boot in boots:
        if gpus_of(boot) == 1:
            alone.append(boot)
            continue
        if alone:
            yield alone
            alone = []
        yield [boot]
    if alone:
        yield alone


def gpus_of(boot: Boot) -> int:
    """GPUs that a boot takes."""
    return int(boot["settings"].get("tensor_parallel_size", 1))


def run_group(rig: Rig, boots: Sequence[Boot]) -> int:
    """Run boots on as many GPUs as there are; how many were run."""
    several = gpus_of(boots[0])
    lanes = [list(range(several))] if several > 1 else [[index] for index in range(gpu_count())]
    waiting: queue.SimpleQueue[Boot] = queue.SimpleQueue()
    for boot in boots:
        waiting.put(boot)
    done: list[str] = []

    def lane(gpus: list[int]) -> None:
        while time.monotonic() < rig.deadline:
            try:
                boot = waiting.get_nowait()
            except queue.Empty:
                return
            result = run(rig, boot, gpus)
            with rig.lock, (rig.out / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            done.append(boot["name"])
            print(summary(result), flush=True)

    threads = [threading.Thread(target=lane, args=(gpus,)) for gpus in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(done)


def run(rig: Rig, boot: Boot, gpus: Sequence[int]) -> dict[str, Any]:
    """Boot once, load it, and stop it again."""
    result: dict[str, Any] = {"name": boot["name"], "model": boot["model"], "settings": boot["settings"]}
    result |= {"card_gib": boot.get("card_gib"), "environment": boot.get("environment", {})}
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    folder = rig.out / boot["name"]
    folder.mkdir(parents=True, exist_ok=True)
    port = 8100 + gpus[0]
    with ballast(float(boot.get("card_gib") or 0), visible) as cards:
        result["cards"] = cards
        total = cards[0]["total_gib"] if cards else 1.0
        argv = ["serve", str(rig.models / boot["model"]), *flags(boot, total), "--port", str(port)]
        result["argv"] = argv[2:]
        env = visible | {probe.FOLDER: str(folder)} | {k: str(v) for k, v in boot.get("environment", {}).items()}
        start = time.monotonic()
        engine = Engine(rig.forks.start(argv, env, folder / "engine.log"), port)
        try:
            result["ready_s"] = engine.wait_ready(start, float(boot.get("timeout_s", 420)))
            if result["ready_s"] is not None:
                result |= loaded(Running(rig, boot, engine, folder, env))
        finally:
            engine.stop()
    result["probe"] = probed(folder)
    result["log"] = telling(folder / "engine.log")
    return result


def loaded(running: Running) -> dict[str, Any]:
    """Everything that is asked of a running engine."""
    boot, engine, folder = running.boot, running.engine, running.folder
    length = engine.max_model_len()
    result: dict[str, Any] = {"max_model_len": length, "metrics": engine.cache_config(), "stages": {}, "bench": {}}
    # Speed first: the load may kill the engine.
    for name, arguments in boot.get("bench", {}).items():
        result["bench"][name] = bench(running, name, arguments)
    for name, stage in boot.get("stages", {}).items():
        (folder / probe.STAGE).write_text(name, encoding="utf-8")
        answers = load.run_stage(engine.port, stage, length)
        result["stages"][name] = answers
        if not all(answer["survived"] for answer in answers) or not engine.alive():
            break
    if "verify" in boot:
        (folder / probe.STAGE).write_text("verify", encoding="utf-8")
        result["verify"] = verified(running, boot["verify"])
    # A last short request makes the workers write the peaks of the last stage.
    (folder / probe.STAGE).write_text("end", encoding="utf-8")
    result["alive"] = load.post(engine.port, "/v1/completions", load.prompt(32, 5000)).status == load.OK
    return result


def bench(running: Running, name: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One ``vllm bench serve``; its result without the lists of single requests."""
    stem = running.folder / f"bench-{name.replace(' ', '-')}"
    target, log = stem.with_suffix(".json"), stem.with_suffix(".log")
    argv = ["bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
    argv += ["--port", str(running.engine.port), "--model", load.MODEL]
    argv += ["--tokenizer", str(running.rig.models / running.boot["model"])]
    argv += ["--save-result", "--result-filename", target.name, "--result-dir", str(target.parent)]
    wait_exit(running.rig.forks.start([*argv, *map(str, arguments)], running.env, log), _BENCH_LIMIT_S)
    if not target.exists():
        return {"error": log.read_text(errors="replace")[-600:]}
    data = json.loads(target.read_text(encoding="utf-8"))
    return {key: value for key, value in data.items() if isinstance(value, (int, float, str))}


def verified(running: Running, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What ``playbooks/verify.yml`` says of the engine: its exit code, seconds, and the verdict."""
    boot, folder = running.boot, running.folder
    variables = {
        "verify_url": f"http://127.0.0.1:{running.engine.port}/v1",
        "verify_gpus": running.env["CUDA_VISIBLE_DEVICES"],
        "verify_dir": str(folder / "verify"),
        "verify_name": boot["name"],
        **variables,
    }
    argv = [running.rig.ansible_python, "-m", "ansible", "playbook", "playbooks/verify.yml"]
    argv += ["-e", json.dumps(variables)]
    env = os.environ | {"ANSIBLE_CONFIG": str(_ROOT / "ansible.cfg")}
    start = time.monotonic()
    with (folder / "verify.log").open("w") as log:
        try:
            code = subprocess.run(  # noqa: S603 - our playbook
                argv, cwd=_ROOT, env=env, stdout=log, stderr=log, check=False, timeout=_VERIFY_LIMIT_S
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    result = {"rc": code, "seconds": round(time.monotonic() - start, 1)}
    verdict = folder / "verify" / "reports" / boot["name"] / "verdict.json"
    return result | (json.loads(verdict.read_text(encoding="utf-8")) if verdict.exists() else {})


def flags(boot: Boot, total_gib: float) -> list[str]:
    """The settings of a boot as flags. The utilization is a share of the card that is emulated."""
    settings = boot["settings"]
    result = ["--load-format", "dummy", "--served-model-name", load.MODEL, "--host", "127.0.0.1"]
    for name, flag in FLAGS.items():
        if name in settings:
            value = str(settings[name])
            result += [flag, "auto" if value == "bfloat16" else value]
    card = float(boot.get("card_gib") or total_gib)
    if "gpu_memory_utilization" in settings:
        result += ["--gpu-memory-utilization", f"{settings['gpu_memory_utilization'] * card / total_gib:.5f}"]
    if "max_pixels" in settings:
        result += ["--mm-processor-kwargs", json.dumps({"max_pixels": settings["max_pixels"]})]
    if "images_per_prompt" in settings:
        result += ["--limit-mm-per-prompt", json.dumps({"image": settings["images_per_prompt"], "video": 0})]
    if settings.get("enforce_eager"):
        result += ["--enforce-eager"]
    if settings.get("mm_encoder_tp_mode"):
        result += ["--mm-encoder-tp-mode", settings["mm_encoder_tp_mode"]]
    return [*result, *map(str, boot.get("arguments", []))]


def probed(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Lines of the probe, by rank."""
    files = sorted(folder.glob("rank*.jsonl"))
    return {file.stem: [json.loads(text) for text in file.read_text().splitlines()] for file in files}


def telling(log: Path) -> list[str]:
    """Lines of the log that tell something, without colours and repetitions."""
    plain = (re.sub(r"\x1b\[[0-9;]*m", "", text)[-400:] for text in log.read_text(errors="replace").splitlines())
    wanted = (text for text in plain if TELLING.search(text) and "Capturing CUDA" not in text)
    return list(dict.fromkeys(wanted))[:_MOST_LINES]


def summary(result: Mapping[str, Any]) -> str:
    """One boot for the screen."""
    stages = {
        name: "".join("." if answer["survived"] else "X" for answer in answers)
        for name, answers in result.get("stages", {}).items()
    }
    tokens = result.get("metrics", {}).get("kv_cache_size_tokens")
    speed = {name: round(done.get("output_throughput", 0), 1) for name, done in result.get("bench", {}).items()}
    return (
        f"{result['name']:34} ready {result['ready_s']} s, KV {tokens} tokens, "
        f"max_model_len {result.get('max_model_len')}, alive {result.get('alive')} {stages} {speed or ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
