"""docs/reference/models.md: every model of the catalogue, and what the planner says of it on common GPUs."""

from __future__ import annotations

from collections import Counter

from docs._generate.markdown import code, generated, read, table

from ansible_collections.inference.vllm.plugins.module_utils import catalogue, versions
from ansible_collections.inference.vllm.plugins.module_utils.catalogue import Entry
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import Model, from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Wishes
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import solve
from ansible_collections.inference.vllm.plugins.module_utils.planner.tensors import GIB, from_shapes, total_bytes
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError

#: Hosts that each model is planned for.
HOSTS = ("1x RTX 4090", "2x RTX 4090", "1x L40S", "1x H100", "2x H100", "4x H100")


def page() -> str:
    """The whole page."""
    entries = list(catalogue.load_all().values())
    served = [entry for entry in entries if entry.refused is None]
    boots = Counter(boot["model"] for boot in read("catalogue/calibration.json")["boots"])
    rows = [
        (
            f'<a id="{entry.name}"></a>{code(entry.name)}',
            entry.title,
            f"[{entry.repository}](https://huggingface.co/{entry.repository})"
            if "cpu" not in entry.accelerators
            else "-",
            _quantization(entry),
            f"{total_bytes(from_shapes(from_entry(entry))) / GIB:.1f}",
            entry.variant,
            entry.min_engine_version,
            "CPU" if entry.min_compute_capability is None else f"{entry.min_compute_capability}",
            boots[entry.name] or "none",
        )
        for entry in served
    ]
    head = ("`vllm_model`", "title", "repository", "weights", "GiB", "variant", "vLLM from", "GPU from", "GPU boots")
    planned = [
        (code(entry.name), *(_longest(entry, host) for host in HOSTS))
        for entry in served
        if "cpu" not in entry.accelerators
    ]
    parts = [
        generated("catalogue/ and the planner"),
        "# Models",
        f"`vllm_model` takes one of these {len(served)} names. *GiB* (2^30 bytes) is the size of the weights, as the "
        "planner computes it. *Variant*: an `instruct` model answers directly, a `thinking` model reasons "
        "first, a `text` model takes no images. *GPU from* is the lowest compute capability. *GPU boots* counts the "
        "boots in `catalogue/calibration.json`.",
        table(head, rows),
        "## Longest request by GPU",
        f"Tokens of the longest request that the planner finds for vLLM {versions.DEPLOYED} by default; "
        "`-`: the model does not fit. These are plans, not measurements; [support](support.md#gpus) lists what was "
        "measured. `bin/vram-plan --model NAME --gpu GPUS --solve` plans for other GPUs and requirements.",
        table(("`vllm_model`", *HOSTS), planned),
        "## Listed only to be refused",
        "\n".join(f"* {code(e.name)}: {e.refused.message} {e.refused.fix}" for e in entries if e.refused),
    ]
    return "\n\n".join(parts) + "\n"


def _quantization(entry: Entry) -> str:
    method = entry.quantization.method
    return "BF16" if method == "none" else f"{method}, {entry.quantization.weight_bits} bits"


def _longest(entry: Entry, host: str) -> str:
    model: Model = from_entry(entry)
    case = Case(model, gpus.parse(host), engines.engine(versions.DEPLOYED, is_moe=model.is_moe))
    try:
        plan = solve(case, Wishes())
    except RefusalError:
        return "-"
    return f"{plan.max_model_len:,}" if plan.fits else "-"
