"""The command bin/vram-plan: exit codes, JSON, the table, and refusals by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.planner.command import main
from support.checkpoint import write_checkpoint
from support.own_models import write_own_entry
from support.paths import ROOT

MODEL = ("--model", "qwen3-vl-32b-instruct-fp8")
PROPOSED = (
    *MODEL,
    *("--gpu", "2x RTX 4090", "--gpu-memory-utilization", "0.85", "--kv-cache-dtype", "fp8"),
    *("--max-num-seqs", "32", "--max-model-len", "131072"),
)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_json_of_a_plan_that_fits(run: Any) -> None:
    code, out, _ = run(*MODEL, "--gpu", "H100", "--max-model-len", "131072", "--max-num-seqs", "256", "--json")
    plan = json.loads(out)
    assert code == 0
    assert set(plan) >= {
        *("starts", "survives", "per_gpu_gib", "kv_cache_tokens", "max_model_len"),
        *("flags", "refusals", "alternatives"),
    }
    assert set(plan["per_gpu_gib"]) >= {
        *("budget", "weights", "context", "activations", "encoder", "cuda_graphs", "kv_cache"),
    }
    assert (plan["starts"], plan["survives"], plan["refusals"]) == (True, True, [])
    assert plan["max_model_len"] == 131_072
    assert plan["engine"] == {"version": "0.26.0", "calibrated": True}


def test_json_of_a_plan_that_does_not_fit(run: Any) -> None:
    code, out, _ = run(*PROPOSED, "--json")
    plan = json.loads(out)
    assert code == 1
    assert (plan["starts"], plan["survives"]) == (False, False)
    # Measured: 38,784 tokens where nothing was compiled (boot 2x 24 GB at 0.85, any image, eager).
    assert plan["max_model_len"] == 37_792
    assert set(plan["refusals"][0]) == {"code", "message", "fix"}
    assert plan["refusals"][0]["message"].startswith("--max-model-len: ")
    assert plan["per_gpu_gib"]["kv_cache"] == pytest.approx(2.31, abs=0.01)


def test_budget_and_figures_instead_of_a_share_and_a_name(run: Any) -> None:
    code, out, _ = run(
        *MODEL,
        *("--gpu-total-gib", "79.18", "--gpu-count", "2", "--compute-capability", "9.0", "--budget-gib", "22.34"),
        *("--kv-cache-dtype", "fp8", "--max-num-seqs", "32", "--max-num-batched-tokens", "8192"),
        *("--max-pixels", "1048576", "--images-per-prompt", "1", "--tensor-parallel-size", "2", "--json"),
    )
    plan = json.loads(out)
    assert code == 0
    assert plan["kv_cache_tokens"] == pytest.approx(70_368, rel=0.05)
    assert plan["flags"]["limit-mm-per-prompt"] == {"image": 1, "video": 0}


def test_solve_is_for_the_deployed_engine(run: Any) -> None:
    code, out, _ = run(*MODEL, "--gpu", "2x RTX 4090", "--solve", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["engine"] == {"version": "0.33.0", "calibrated": False}
    assert plan["flags"]["kv-cache-dtype"] == "fp8"


def test_table_shows_verdicts_account_refusals_and_alternatives(run: Any) -> None:
    code, out, _ = run(*PROPOSED)
    assert code == 1
    for shown in (
        "Weights  FP8, Marlin kernels",
        "GPUs     2x RTX 4090, 23.52 GiB each\n",
        "Starts   no",
        "17.31  weights",
        "Refused [kv_cache_too_small]",
        "Closest plan for this model",
        "fits  qwen3-vl-32b-instruct-awq",
        '--mm-processor-kwargs \'{"max_pixels": ',
    ):
        assert shown in out


def test_table_of_a_plan_that_fits_shows_the_flags(run: Any) -> None:
    code, out, _ = run(*MODEL, "--gpu", "2x RTX 4090", "--solve", "--enforce-eager", "--mm-encoder-tp-mode", "data")
    assert code == 0
    assert "  --enforce-eager\n" in out + "\n"
    assert "  --mm-encoder-tp-mode data" in out
    assert "  --tensor-parallel-size 2" in out
    assert "Concurrent requests of that length: 1; more wait in the queue." in out


@pytest.mark.parametrize(
    ("model", "gpu", "shown"),
    [
        ("qwen3-vl-32b-instruct-awq", "2x RTX 4090", "AWQ, 4 bits, Marlin kernels"),
        ("qwen3-vl-32b-instruct-awq", "H100", "AWQ, 4 bits, Machete kernels"),
        ("qwen3-vl-32b-instruct-w4a16", "L40S", "compressed-tensors, 4 bits, Marlin kernels"),
        ("qwen3-vl-32b-instruct-nvfp4", "B200", "NVFP4, native kernels"),
        ("qwen3-vl-32b-instruct-nvfp4", "H100", "NVFP4, Marlin kernels"),
        ("qwen3-vl-32b-instruct-fp8", "H100", "FP8, native kernels"),
        ("qwen3-vl-32b-instruct-fp8", "2x L40S", "FP8, Marlin kernels"),
        ("qwen3-vl-32b-instruct-bf16", "H200", "BF16"),
    ],
)
def test_table_names_the_kernels_of_these_weights(run: Any, model: str, gpu: str, shown: str) -> None:
    assert f"\nWeights  {shown}\n" in run("--model", model, "--gpu", gpu)[1]


def test_table_shows_the_length_with_an_fp8_cache(run: Any) -> None:
    code, out, _ = run("--model", "qwen3-vl-32b-instruct-awq", "--gpu", "2x RTX 4090", "--solve")
    assert code == 0
    before, _, longer = out.partition("fits  qwen3-vl-32b-instruct-awq: longer requests with --kv-cache-dtype fp8")
    assert "--kv-cache-dtype auto" in before
    assert "--kv-cache-dtype fp8" in longer
    assert int(longer.split(" tokens")[0].split()[-1]) > 100_000


def test_own_entries_are_in_the_folders_that_are_named(run: Any, tmp_path: Path) -> None:
    write_own_entry(tmp_path)
    code, out, _ = run("--model", "mine", "--catalogue-dir", str(tmp_path), "--gpu", "H100", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "mine"
    # By its repository, too.
    again = run("--model", "me/Mine-FP8", "--catalogue-dir", str(tmp_path), "--gpu", "H100", "--json")
    assert again[1] == out
    code, out, err = run("--model", "mine", "--catalogue-dir", str(tmp_path / "none"), "--gpu", "H100")
    assert (code, out) == (2, "")
    assert "[missing_catalogue_dir]" in err
    assert str(tmp_path / "none") in err


def test_a_folder_is_a_model(run: Any, tmp_path: Path) -> None:
    write_checkpoint(catalogue.load("qwen3-vl-8b-instruct-fp8"), tmp_path)
    by_folder = json.loads(run("--model", str(tmp_path), "--gpu", "L40S", "--json")[1])
    by_name = json.loads(run("--model", "qwen3-vl-8b-instruct-fp8", "--gpu", "L40S", "--json")[1])
    assert by_folder["model"] == str(tmp_path)
    for key in ("per_gpu_gib", "kv_cache_tokens", "flags"):
        assert by_folder[key] == by_name[key]


@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-32B-Instruct-FP8", "Qwen3-VL-32B-Instruct-FP8"])
def test_a_repository_is_a_model(run: Any, name: str) -> None:
    code, out, _ = run("--model", name, "--gpu", "H100", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "qwen3-vl-32b-instruct-fp8"


BAD = [
    (("--model", "qwen3-vl-32b-fp8", "--gpu", "H100"), "unknown_model", "qwen3-vl-32b-instruct-fp8"),
    ((*MODEL, "--gpu", "RTX 4091"), "unknown_gpu", "RTX 4090"),
    ((*MODEL, "--gpu", "H100", "--gpu-memory-utilization", "7"), "impossible_value", "--gpu-memory-utilization"),
    ((*MODEL, "--gpu", "H100", "--gpu-memory-utilization", "x"), "impossible_value", "--gpu-memory-utilization"),
    ((*MODEL, "--gpu", "3x H100", "--tensor-parallel-size", "3"), "impossible_parallelism", "1 or 2"),
    ((*MODEL, "--gpu", "H100", "--tensor-parallel-size", "2"), "impossible_value", "--tensor-parallel-size"),
    ((*MODEL, "--gpu", "H100", "--max-num-seqs", "-3"), "impossible_value", "--max-num-seqs"),
    ((*MODEL, "--gpu", "H100", "--max-pixels", "1.5"), "impossible_value", "--max-pixels"),
    ((*MODEL, "--gpu", "H100", "--max-model-len", "long"), "impossible_value", "--max-model-len"),
    ((*MODEL, "--gpu", "H100", "--budget-gib", "-1"), "impossible_value", "--budget-gib"),
    ((*MODEL, "--gpu", "H100", "--budget-gib", "nan"), "impossible_value", "--budget-gib"),
    ((*MODEL, "--gpu", "H100", "--max-pixel", "9"), "bad_arguments", "--max-pixels"),
    ((*MODEL, "--gpu", "H100", "--kv-cache-dtype", "int4"), "bad_arguments", "--kv-cache-dtype"),
    ((*MODEL, "--gpu", "H100", "--engine-version", "new"), "impossible_value", "engine version"),
    ((*MODEL, "--gpu", "H100", "--gpu-count", "2"), "bad_arguments", "--gpu-count"),
    ((*MODEL,), "bad_arguments", "--gpu"),
    ((*MODEL, "--gpu-total-gib", "24"), "bad_arguments", "--compute-capability"),
    (
        (*MODEL, "--gpu-total-gib", "-24", "--gpu-count", "1", "--compute-capability", "8.9"),
        "impossible_value",
        "--gpu-total-gib",
    ),
    (
        (*MODEL, "--gpu-total-gib", "24", "--gpu-count", "0", "--compute-capability", "8.9"),
        "impossible_value",
        "--gpu-count",
    ),
    (
        (*MODEL, "--gpu-total-gib", "24", "--gpu-count", "1", "--compute-capability", "6.1"),
        "gpu_too_old",
        "compute capability",
    ),
    (("--gpu", "H100"), "bad_arguments", "--model"),
    (("--model", "qwen3-vl-32b-instruct-gguf", "--gpu", "H100"), "model_refused", "GGUF"),
    ((*MODEL, "--gpu", "H100", "--gpu-memory-utilization", "0.9", "--budget-gib", "70"), "bad_arguments", "exclude"),
]


@pytest.mark.parametrize(("arguments", "code", "named"), BAD)
def test_bad_input_is_refused_by_name(run: Any, arguments: tuple[str, ...], code: str, named: str) -> None:
    exit_code, out, err = run(*arguments)
    assert (exit_code, out) == (2, "")
    assert f"[{code}]" in err
    assert named in err
    assert "Traceback" not in err
    exit_code, out, _ = run(*arguments, "--json")
    assert exit_code == 2
    assert json.loads(out)["refusals"][0]["code"] == code


def test_the_program_needs_no_ansible() -> None:
    blocked = (
        "import sys; sys.modules['ansible'] = None; sys.argv = ['vram-plan', *sys.argv[1:]];"
        "import runpy; runpy.run_path('bin/vram-plan', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked, *MODEL, "--gpu", "H100", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["starts"] is True


def test_reader_that_has_seen_enough_gets_no_traceback() -> None:
    line = f"{sys.executable} {ROOT}/bin/vram-plan {' '.join(MODEL)} --gpu H100 --json | head -n 1"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("{\n", "")
