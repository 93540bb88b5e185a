"""The rig that boots real engines on GPU hosts: their flags, the load, and the evaluation of the answers."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.boots import figures, load
from bench.boots.__main__ import flags, groups, read, relevant_lines
from bench.boots.rows import row
from PIL import Image

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.drivers import DRIVERS, Call
from ansible_collections.inference.vllm.plugins.module_utils.checks.benchmark.figures import Goals, Workload, points_of
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Requirements
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import solve
from support.paths import FIXTURES, ROOT

MATRICES = sorted((ROOT / "bench" / "boots").glob("*.yaml"))
ROLE = ROOT / "roles" / "benchmark"
SEEN = FIXTURES / "boots" / "results.jsonl"


@pytest.mark.parametrize("path", MATRICES, ids=lambda path: path.stem)
def test_matrix_is_whole(path: Path) -> None:
    boots = read(path)
    assert len({boot["name"] for boot in boots}) == len(boots) > 1
    for boot in boots:
        # A folder is named after it, and it has every setting that a row of the calibration needs.
        assert "/" not in boot["name"]
        assert boot["settings"].keys() >= {"tensor_parallel_size", "gpu_memory_utilization", "max_num_seqs"}
        assert boot["stages"]


@pytest.mark.parametrize(
    ("name", "model", "requirements"),
    [
        ("plan-fp8", "qwen3-vl-32b-instruct-fp8", Requirements()),
        ("plan-1mp", "qwen3-vl-32b-instruct-fp8", Requirements(max_pixels=1_048_576)),
        ("plan-4bit-128k", "qwen3-vl-32b-instruct-awq", Requirements(max_model_len=131_072)),
        ("text-plan-fp8", "qwen3-vl-32b-instruct-fp8", Requirements()),
        ("baseline-awq", "qwen3-32b-awq", Requirements()),
    ],
)
def test_boot_of_a_plan_has_the_flags_of_the_planner(name: str, model: str, requirements: Requirements) -> None:
    case = Case(from_entry(catalogue.load(model)), gpus.parse("2x RTX 4090"), engines.engine(versions.DEPLOYED))
    plan = solve(case, requirements)
    (boot,) = (boot for path in MATRICES for boot in read(path) if boot["name"] == name)
    assert plan.fits
    wanted = {
        "tensor_parallel_size": plan.settings.tensor_parallel,
        "gpu_memory_utilization": plan.flags()["gpu-memory-utilization"],
        "kv_cache_dtype": plan.settings.kv_cache_dtype,
        "max_num_seqs": plan.settings.max_num_seqs,
        "max_num_batched_tokens": plan.settings.max_num_batched_tokens,
        "images_per_prompt": plan.settings.images_per_prompt,
        "max_model_len": plan.max_model_len,
        "max_pixels": plan.settings.max_pixels,
    }
    # A text model has no images.
    texts_only = catalogue.load(model).variant == "text"
    assert boot["settings"] == {
        key: value for key, value in wanted.items() if not texts_only or key not in ("images_per_prompt", "max_pixels")
    }


def test_the_text_comparison_is_that_of_role_benchmark() -> None:
    """The same work, limits and prompts for both models, and as many requests as the role sends."""
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    workload = Workload.from_dict(next(item for item in defaults["benchmark_workloads"] if item["name"] == "text"))
    goals = Goals(defaults["benchmark_goal_ttft_ms"], defaults["benchmark_goal_tpot_ms"])
    boots = read(ROLE.parents[1] / "bench" / "boots" / "text-awq.yaml")
    for boot in boots:
        assert boot["bench"] == boots[0]["bench"]
        for point in points_of([workload], 11, again=True):
            values = list(map(str, boot["bench"][f"text {point.concurrency}{' again' if point.again else ''}"]))
            sent = DRIVERS["vllm"].command(point, goals, Call("", "", "", "", ""))
            for name in ("--random-input-len", "--random-output-len", "--num-prompts", "--max-concurrency", "--seed"):
                assert values[values.index(name) + 1] == sent[sent.index(name) + 1]
            assert values[values.index("--goodput") :] == sent[sent.index("--goodput") :]
            assert "--ignore-eos" in values


def test_a_baseline_is_shown_figure_by_figure() -> None:
    done = {"completed": 8, "failed": 0, "request_throughput": 2.0, "request_goodput": 1.5}
    fast = done | {"output_throughput": 100.0, "median_ttft_ms": 200.0, "median_tpot_ms": 20.0}
    slow = done | {"output_throughput": 90.0, "median_ttft_ms": 300.0, "median_tpot_ms": 20.0}
    boots: list[dict[str, Any]] = [
        {"name": "text-plan-fp8", "alive": True, "bench": {"text 1": slow, "text 8": slow}},
        {"name": "baseline-awq", "alive": True, "bench": {"text 1": fast, "text 8": fast | {"failed": 1}}},
    ]
    lines = figures.against_baseline(boots)
    assert lines[1].startswith("| `text-plan-fp8` / `baseline-awq` | output tokens per second |")
    # What either did not finish is not compared.
    assert lines[3:] == [
        "| text, 1024 in, 128 out, concurrency 1 | 90 / 100 = 0.90 | 300 / 200 = 1.50 | 20 / 20 = 1.00 |"
    ]
    assert figures.against_baseline(boots[:1]) == []


def test_utilization_is_a_share_of_the_emulated_card() -> None:
    boot = {"card_gib": 24.0, "settings": {"gpu_memory_utilization": 0.9, "kv_cache_dtype": "bfloat16"}}
    values = flags(boot, 80.0)
    assert values[values.index("--gpu-memory-utilization") + 1] == "0.27000"
    assert values[values.index("--kv-cache-dtype") + 1] == "auto"


def test_boots_of_one_gpu_run_side_by_side_and_others_alone() -> None:
    boots = [
        {"name": name, "settings": {"tensor_parallel_size": size}}
        for name, size in zip("abcde", (1, 1, 2, 2, 1), strict=True)
    ]
    assert [[boot["name"] for boot in group] for group in groups(boots)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_image_is_a_png_of_one_colour() -> None:
    with Image.open(io.BytesIO(load.png(48, (7, 8, 9)))) as image:
        assert image.size == (48, 48)
        assert image.convert("RGB").getcolors() == [(48 * 48, (7, 8, 9))]


def test_no_two_images_of_a_stage_are_alike() -> None:
    urls = [
        part["image_url"]["url"]
        for number in range(8)
        for part in load.image_chat(64, number, 4, 1)["messages"][0]["content"]
        if part["type"] == "image_url"
    ]
    assert len(set(urls)) == len(urls) == 32


def test_prompts_have_their_length_and_differ_from_the_start() -> None:
    first, second = load.prompt(1000, 0), load.prompt(1000, 1)
    assert len(first["prompt"]) == 1000
    assert first["prompt"][0] != second["prompt"][0]
    assert max(first["prompt"]) < 256


class _Engine(BaseHTTPRequestHandler):
    """Answers texts, refuses long prompts as an engine does, and fails at images as one that ran out of memory."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: dict[str, Any]
        if "messages" in body:
            status, answer = 500, {"error": {"message": "EngineCore encountered an issue."}}
        elif len(body["prompt"]) > 2000:
            status, answer = 400, {"error": {"message": "maximum context length"}}
        else:
            status, answer = 200, {"usage": {"prompt_tokens": len(body["prompt"])}}
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_stage_sends_all_and_tells_death_from_refusal(port: int) -> None:
    stage = {"images": {"side": 32, "requests": 2}, "prompts": {"tokens": 5000}, "texts": 1}
    answers = load.run_stage(port, stage, max_model_len=8192)
    assert [(answer["status"], answer["survived"]) for answer in answers] == [
        *((500, False), (500, False), (400, True), (200, True))
    ]
    assert "EngineCore" in answers[0]["error"]


def test_longest_prompt_leaves_room_for_its_answer(port: int) -> None:
    (answer,) = load.run_stage(port, {"prompts": {"tokens": "max"}}, max_model_len=1064)
    assert answer["prompt_tokens"] == 1000


def test_engine_that_is_gone_did_not_survive() -> None:
    answer = load.post(1, "/v1/completions", load.prompt(8, 0))
    assert (answer.status, answer.survived) == (0, False)


def seen(name: str) -> dict[str, Any]:
    results = [json.loads(text) for text in SEEN.read_text(encoding="utf-8").splitlines()]
    (result,) = (result for result in results if result["name"] == name)
    return row(result, engine="0.26.0", card="H100 80GB", capability=9.0, date="2026-11-25")


def test_row_of_a_boot_that_lived() -> None:
    values = seen("4mp-0.88")
    assert values["gpu"] == {
        "measured_on": "H100 80GB, held to 23.52 GiB",
        "total_gib": 23.52,
        "count": 2,
        "compute_capability": 9.0,
        "peer_to_peer": True,
        "marlin": True,
    }
    assert values["settings"]["budget_gib"] == 20.7
    assert "max_model_len" not in values["settings"]
    measured = values["measured"]
    assert (measured["starts"], measured["survives"]) == (True, True)
    assert (measured["weights_gib"], measured["kv_cache_tokens"]) == (17.33, 49104)
    assert measured["outside_gib"] == pytest.approx(1.531, abs=0.001)
    assert measured["output_tokens_per_s"] == {"text": 397.0, "image": 243.7, "image again": 489.2}


def test_row_of_a_boot_that_died_of_an_image() -> None:
    measured = seen("8b-any-image-0.92")["measured"]
    assert (measured["starts"], measured["survives"]) == (True, False)


def test_engine_that_is_gone_at_the_end_did_not_survive() -> None:
    results = [json.loads(text) for text in SEEN.read_text(encoding="utf-8").splitlines()]
    (lived,) = (result for result in results if result["name"] == "4mp-0.88")
    values = row(lived | {"alive": False}, engine="0.26.0", card="H100 80GB", capability=9.0, date="2026-11-25")
    assert values["measured"]["survives"] is False


def test_row_of_a_boot_that_never_became_ready() -> None:
    measured = seen("defaults-0.88")["measured"]
    assert measured["starts"] is False
    assert "survives" not in measured
    assert measured["kv_cache_tokens"] == 24368


def test_log_keeps_what_tells_something(tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    log.write_text(
        "noise\n\x1b[0;36mModel loading took 1.00 GiB\x1b[0m\nModel loading took 1.00 GiB\n", encoding="utf-8"
    )
    assert relevant_lines(log) == ["Model loading took 1.00 GiB"]


def test_the_page_shows_what_the_files_hold() -> None:
    text = figures.PAGE.read_text(encoding="utf-8")
    assert figures.page(text) == text


def test_figures_keep_what_a_boot_did_and_leave_its_logs() -> None:
    boots = [figures.kept(json.loads(text)) for text in SEEN.read_text().splitlines()]
    assert all(not {"log", "probe", "argv"} & boot.keys() for boot in boots)
    assert any(boot["stages"] for boot in boots)


def test_an_engine_that_died_is_shown_dead_and_its_goodput_is_not_compared() -> None:
    lives = {"completed": 8, "failed": 0, "output_throughput": 90.4, "request_throughput": 2.0, "request_goodput": 1.5}
    lost = lives | {"completed": 6, "failed": 2, "request_goodput": 1.0}
    boots: list[dict[str, Any]] = [
        {"name": "plan", "alive": True, "bench": {"text": lives, "image": lives, "image again": lives}},
        {"name": "defaults", "alive": False, "bench": {"text": lost, "image": {"completed": 0}}},
    ]
    file = {"gpu": "card", "engine": "0.26.0", "date": "2026-11-26", "boots": boots}
    lines = figures.table(file)
    assert "| engine afterwards | running | crashed |" in lines
    assert "90 tokens/s, 1.00 of 2.00; 2 of 8 requests lost |" in lines[2]
    assert lines[3].endswith("| 90 tokens/s, 1.50 of 2.00 | crashed |")
    assert lines[-1] == "Goodput of `plan` divided by `defaults`: 1.50 (text, 1024 in, 128 out, concurrency 16)."
    bad = [{"code": "load_answered", "severity": "error"}, {"code": "seed", "severity": "warning"}]
    boots[0]["verify"] = {"rc": 2, "seconds": 9.6, "ok": False, "checks": 3, "not_ok": bad}
    assert figures.table(file)[-1] == "* `plan`: 3 checks in 10 s, exit code 2; failed: `load_answered`."
