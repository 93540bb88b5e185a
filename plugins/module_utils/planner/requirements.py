"""The requirements that a user may set for a plan: one table for role, module, command line and preflight.

A requirement is one field of :class:`Requirements` with its metadata; :data:`REQUIREMENTS` is the table. :func:`check`
refuses values that are impossible with any amount of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ansible_collections.inference.vllm.plugins.module_utils.planner.account import KV_BYTES
from ansible_collections.inference.vllm.plugins.module_utils.planner.gpus import LOWEST_CAPABILITY, Host
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import MIN_PIXELS, Model
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

Namer = Callable[[str], str]

AUTO = "auto"


@dataclass(frozen=True)
class Requirement:
    """One row of the table.

    Attributes:
        name: Name as in vLLM.
        kind: ``int``, ``float``, ``str`` or ``bool``.
        help: Description, in the markup of Ansible's documentation.
        default: Default value; None for ``auto``, with which the plan chooses.
        least: Lowest number; None for no limit.
        most: Highest number; None for no limit.
        choices: Allowed texts, in addition to ``auto``; empty for any.
        flag: The flag of ``vllm serve`` that it sets, without leading dashes; empty if it sets none.
    """

    name: str
    kind: str
    help: str
    default: Any
    least: float | None
    most: float | None
    choices: tuple[str, ...]
    flag: str

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        if self.kind == "bool":
            return "true or false"
        values = list(self.choices)
        if self.kind != "str":
            number = "a whole number" if self.kind == "int" else "a number"
            values = [f"{number} from {self.least}" + (f" to {self.most}" if self.most is not None else "")]
        return " or ".join([AUTO, *values] if self.default is None else values)

    def option(self) -> dict[str, Any]:
        """The requirement as an option of a module or of a role."""
        if self.default is not None:
            return {"type": self.kind, "default": self.default} | ({"choices": [*self.choices]} if self.choices else {})
        return {"type": "str", "default": AUTO} | ({"choices": [AUTO, *self.choices]} if self.choices else {})

    def read(self, value: object, called: str) -> Any:
        """Parse the value that a user set, None for ``auto``; raises RefusalError with the name of the setting."""
        if self.default is None and str(value).strip() == AUTO:
            return None
        types: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str}
        try:
            found = value if self.kind == "bool" else types[self.kind](str(value))
        except ValueError:
            found = None
        if found is None or not self.accepts(found):
            raise RefusalError(_impossible(called, value, self.allowed))
        return found

    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed; None is if the plan can choose."""
        if value is None:
            return self.default is None
        if self.kind == "bool":
            return isinstance(value, bool)
        if self.kind == "str":
            return value in self.choices
        # A comparison with NaN is false.
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def _row(
    text: str,
    *,
    default: Any = None,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    flag: str = "",
) -> Any:
    """A field of Requirements that is a row of the table."""
    row = {"help": text, "least": least, "most": most, "choices": choices, "flag": flag}
    return field(default=default, metadata={"row": row})


@dataclass(frozen=True)
class Requirements:
    """Requirements and fixed settings of a plan; with None the plan chooses.

    The last two are not rows of the table. They describe a measured boot; the first of them is also an option of the
    command.

    Attributes:
        budget_gib: Memory of each GPU for the engine, in GiB, instead of a fraction.
        caches_kept: Whether caches of an earlier start exist; None for a plan that is valid in both cases.
    """

    max_model_len: int | None = _row(
        "Maximum tokens of one request, prompt and answer together. V(auto) is the longest that fits.",
        least=1,
        flag="max-model-len",
    )
    concurrent_requests: int = _row(
        "Number of requests of this length that must fit into the KV cache. Further requests wait in the queue.",
        default=1,
        least=1,
    )
    max_pixels: int | None = _row(
        "Maximum pixels of one image after scaling. V(auto) is the largest size that does not run out of memory.",
        least=MIN_PIXELS,
        flag="mm-processor-kwargs",
    )
    images_per_prompt: int | None = _row(
        "Maximum images in one request. V(auto) is the value of the catalogue entry.",
        least=0,
        flag="limit-mm-per-prompt",
    )
    tensor_parallel_size: int | None = _row(
        "Number of GPUs that share one copy of the model. V(auto) is the largest number that divides the model.",
        least=1,
        most=64,
        flag="tensor-parallel-size",
    )
    gpu_memory_utilization: float | None = _row(
        "Fraction of each GPU's memory for the engine. V(auto) is the highest value that does not run out of memory.",
        least=0.01,
        most=1,
        flag="gpu-memory-utilization",
    )
    kv_cache_dtype: str | None = _row(
        "Type of the KV cache. V(fp8) halves its size. V(auto) lets the plan choose.",
        choices=tuple(KV_BYTES),
        flag="kv-cache-dtype",
    )
    max_num_seqs: int | None = _row(
        "Maximum requests in one batch. V(auto) lets the plan choose.",
        least=1,
        flag="max-num-seqs",
    )
    max_num_batched_tokens: int | None = _row(
        "Maximum tokens computed in one step. V(auto) lets the plan choose.",
        least=1,
        flag="max-num-batched-tokens",
    )
    enforce_eager: bool = _row(
        "Do not capture CUDA graphs. This saves memory and costs speed.",
        default=False,
        flag="enforce-eager",
    )
    mm_encoder_tp_mode: str = _row(
        "Split the vision tower's weights over the GPUs (V(weights)), or copy them and split the images (V(data)).",
        default="weights",
        choices=("weights", "data"),
        flag="mm-encoder-tp-mode",
    )
    budget_gib: float | None = None
    caches_kept: bool | None = None


#: The table, in the order of the list of options.
REQUIREMENTS: tuple[Requirement, ...] = tuple(
    # Annotations are strings: "int | None" is a whole number or auto.
    Requirement(item.name, str(item.type).partition(" ")[0], default=item.default, **item.metadata["row"])
    for item in fields(Requirements)
    if "row" in item.metadata
)


def option_name(name: str) -> str:
    """A requirement as an option of ``bin/vram-plan``."""
    return "--" + name.replace("_", "-")


def variable_name(name: str) -> str:
    """A requirement as a variable of role vram_plan."""
    return f"vram_plan_{name}"


#: Flags of ``vllm serve`` that a variable of role vram_plan sets, and that variable.
VARIABLE_OF_FLAG: Mapping[str, str] = {row.flag: variable_name(row.name) for row in REQUIREMENTS if row.flag}


def options() -> dict[str, dict[str, Any]]:
    """The requirements as options of a module, without their documentation."""
    # No option is a secret, but Ansible treats names with "token" as secrets.
    return {row.name: row.option() | {"no_log": False} for row in REQUIREMENTS}


def read(values: Mapping[str, Any], name: Namer) -> Requirements:
    """Parse the requirements of a user, as text or typed values; raises RefusalError with all invalid ones."""
    found: dict[str, Any] = {}
    refusals: list[Refusal] = []
    for row in REQUIREMENTS:
        try:
            found[row.name] = row.read(values[row.name], name(row.name))
        except RefusalError as error:
            refusals += error.refusals
    if refusals:
        raise RefusalError(*refusals)
    return Requirements(**found)


def check(requirements: Requirements, model: Model, host: Host, name: Namer) -> list[Refusal]:
    """Refusals of values that are impossible with any amount of memory; empty if there are none."""
    values = {row: getattr(requirements, row.name) for row in REQUIREMENTS}
    wrong = {row: value for row, value in values.items() if not row.accepts(value)}
    if wrong:
        # The other checks compare possible values.
        return [_impossible(name(row.name), value, row.allowed) for row, value in wrong.items()]
    return [
        *_batches(requirements, name),
        *_images(requirements, model, name),
        *_length(requirements, model, name),
        *_gpu(host),
        *_parallel(requirements, model, host, name),
        *_budget(requirements, host, name),
    ]


def _batches(requirements: Requirements, name: Namer) -> list[Refusal]:
    found = []
    seqs, batched = requirements.max_num_seqs, requirements.max_num_batched_tokens
    if seqs is not None and batched is not None and batched < seqs:
        # vLLM refuses it itself (SchedulerConfig).
        found.append(_impossible(name("max_num_batched_tokens"), batched, f"at least {name('max_num_seqs')} ({seqs})"))
    if seqs is not None and seqs < requirements.concurrent_requests:
        least = f"at least {name('concurrent_requests')} ({requirements.concurrent_requests})"
        found.append(_impossible(name("max_num_seqs"), seqs, least))
    return found


def _images(requirements: Requirements, model: Model, name: Namer) -> list[Refusal]:
    found = []
    vision = model.vision
    if vision is None:
        for attribute in ("max_pixels", "images_per_prompt"):
            if getattr(requirements, attribute):
                value = getattr(requirements, attribute)
                found.append(_impossible(name(attribute), value, "auto, because the model has no vision"))
        return found
    if requirements.max_pixels is not None and not vision.min_pixels <= requirements.max_pixels <= vision.max_pixels:
        allowed = f"from {vision.min_pixels} to {vision.max_pixels}, the limits of the image processor"
        found.append(_impossible(name("max_pixels"), requirements.max_pixels, allowed))
    return found


def _length(requirements: Requirements, model: Model, name: Namer) -> list[Refusal]:
    longest, wanted = model.text.max_position_embeddings, requirements.max_model_len
    if wanted is None or wanted <= longest:
        return []
    return [_impossible(name("max_model_len"), wanted, f"from 1 to {longest}, the limit of {model.name}")]


def _gpu(host: Host) -> list[Refusal]:
    if host.gpu.usable_gib <= 0:
        return [_impossible("gpu total_gib", host.gpu.usable_gib, "above 0")]
    if host.gpu.compute_capability >= LOWEST_CAPABILITY:
        return []
    return [
        Refusal(
            "gpu_too_old",
            f"{host.gpu.name} has compute capability {host.gpu.compute_capability:g}; "
            f"vLLM needs {LOWEST_CAPABILITY:g} or newer.",
            "Use a newer GPU.",
        )
    ]


def parallel_size(requirements: Requirements, model: Model, host: Host) -> int:
    """Number of GPUs that share one copy: as required, otherwise the largest number that divides the model."""
    if requirements.tensor_parallel_size is not None:
        return requirements.tensor_parallel_size
    return next(size for size in range(host.count, 0, -1) if size == 1 or not _undivided(requirements, model, size))


def _parallel(requirements: Requirements, model: Model, host: Host, name: Namer) -> list[Refusal]:
    size = requirements.tensor_parallel_size
    if size is None:
        return []
    variable = name("tensor_parallel_size")
    if size > host.count:
        return [_impossible(variable, size, f"at most the number of GPUs, {host.count}")]
    bad = _undivided(requirements, model, size)
    if not bad:
        return []
    good = [str(number) for number in range(1, size) if not _undivided(requirements, model, number)]
    return [
        Refusal(
            "impossible_parallelism",
            f"{variable}: {size} does not divide {', '.join(bad)}.",
            f"Set {variable} to {' or '.join(good)}.",
        )
    ]


def _undivided(requirements: Requirements, model: Model, size: int) -> list[str]:
    """Parts of a model that this number of GPUs cannot share evenly, which vLLM refuses."""
    text, vision, block = model.text, model.vision, model.quantization.block
    parts = {"attention heads": text.num_attention_heads, "the vocabulary": text.vocab_size}
    if vision and requirements.mm_encoder_tp_mode == "weights":
        parts |= {"heads of the vision tower": vision.num_heads, "its inner size": vision.intermediate_size}
    bad = [f"{what} ({number})" for what, number in parts.items() if number % size]
    if text.num_key_value_heads % size and size % text.num_key_value_heads:
        bad.append(f"key-value heads ({text.num_key_value_heads})")
    if size > 1 and (text.intermediate_size / size) % (block[0] if block else 1):
        bad.append(f"the inner size ({text.intermediate_size}" + (f" in blocks of {block[0]})" if block else ")"))
    return bad


def _budget(requirements: Requirements, host: Host, name: Namer) -> list[Refusal]:
    if requirements.budget_gib is None or 0 < requirements.budget_gib <= host.gpu.usable_gib:
        return []
    allowed = f"above 0 and up to {host.gpu.usable_gib:g} GiB, the memory of {host.gpu.name}"
    return [_impossible(name("budget_gib"), requirements.budget_gib, allowed)]


def _impossible(name: str, value: object, allowed: str) -> Refusal:
    return Refusal("impossible_value", f"{name}: {value} is not possible; allowed: {allowed}.", f"Change {name}.")
