"""The files between the steps: what is written is read back equal, and what cannot be read is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest
from docs._generate import schemas
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.inference.vllm.plugins.module_utils.checks.registry import RESULTS
from ansible_collections.inference.vllm.plugins.module_utils.checks.results import BenchmarkResult, VramResult
from ansible_collections.inference.vllm.plugins.module_utils.contracts import (
    CONTRACTS,
    VERSION_KEY,
    Check,
    Contract,
    ImageFile,
    LockFile,
    ManifestFile,
    PlanFile,
    Verdict,
)
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.paths import FIXTURES, ROOT
from support.plans import built_image, cpu_plan, gpu_plan, lock, manifest, pulled_image, read_host

FILES = FIXTURES / "schema_0"
KINDS = {**CONTRACTS, **RESULTS}
#: Each contract as its own writer makes it, on GPUs and on a CPU.
WRITTEN: list[Contract] = [
    gpu_plan(),
    gpu_plan(read_host(4), tensor_parallel_size=2),
    gpu_plan("2x RTX 4090", max_pixels=1048576),
    cpu_plan(),
    pulled_image(),
    built_image(),
    replace(pulled_image(), base="a", base_id="b", packages="c==1"),
    lock("tiny-qwen3-vl"),
    manifest(gpu_plan()),
    manifest(cpu_plan()),
    Verdict("r1", (Check("greeting", True, value="Hello!"), Check("ocr", False, "warning", runbook="wrong_answer"))),
    *(RESULTS[name].from_json(path.read_text(), name) for name in RESULTS for path in FILES.glob(f"*_{name}")),
]

TEXT = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
# What the types say beside the types that hypothesis knows by itself.
st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(Mapping, lambda kind: st.dictionaries(TEXT, _of(get_args(kind)[1]), max_size=3))


def _of(kind: Any) -> st.SearchStrategy[Any]:
    if kind is Any:
        return JSON
    return built(kind) if is_dataclass(kind) else st.from_type(kind)


def built(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a dataclass that its types allow."""
    return st.builds(kind, **{each.name: _of(get_type_hints(kind)[each.name]) for each in fields(kind)})


@pytest.mark.parametrize("contract", WRITTEN, ids=lambda contract: type(contract).__name__)
def test_what_the_writers_write_is_read_back_equal(contract: Contract) -> None:
    text = contract.to_json()
    assert json.loads(text)[VERSION_KEY] == contract.SCHEMA
    assert type(contract).from_json(text, "/srv/file.json") == contract


def schema_of(contract: Contract) -> dict[str, Any]:
    (path,) = (path for path, kind in schemas.paths().items() if kind is type(contract))
    return dict(json.loads((ROOT / path).read_text()))


@pytest.mark.parametrize("contract", WRITTEN, ids=lambda contract: type(contract).__name__)
def test_the_schema_takes_what_the_writers_write_and_nothing_else(contract: Contract) -> None:
    schema = schema_of(contract)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(contract.as_dict(), schema)
    for wrong in ({"surplus": 1}, {VERSION_KEY: contract.SCHEMA + 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(contract.as_dict() | wrong, schema)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@given(data=st.data())
def test_whatever_the_types_allow_is_read_back_equal(kind: type[Contract], data: st.DataObject) -> None:
    contract = data.draw(built(kind))
    assert kind.from_json(contract.to_json(), "/srv/file.json") == contract


@pytest.mark.parametrize("host", ["gpu", "cpu"])
@pytest.mark.parametrize("name", KINDS)
def test_files_without_a_version_are_read(name: str, host: str) -> None:
    """fixtures/schema_0 has files as the last version that wrote no schema version made them (fixtures/README.md)."""
    text = (FILES / f"{host}_{name}").read_text()
    contract = KINDS[name].from_json(text, name)
    assert VERSION_KEY not in json.loads(text)
    assert contract == KINDS[name].from_json(contract.to_json(), name)


def test_a_memory_result_without_a_version_has_moments_with_start_and_end() -> None:
    text = (FILES / "gpu_vram.json").read_text()
    moments = VramResult.from_json(text, "vram.json").moments
    former = json.loads(text)["moments"]
    assert [(moment.start, moment.end) for moment in moments.values()] == [
        (moment["from"], moment["to"]) for moment in former.values()
    ]


def test_a_benchmark_without_a_version_names_the_release_of_a_comparison() -> None:
    text = (FILES / "gpu_benchmark.json").read_text()
    comparison = BenchmarkResult.from_json(text, "benchmark.json").comparisons["baseline"]
    assert (comparison.release, len(comparison.rows)) == (
        "r1",
        len(json.loads(text)["comparisons"]["baseline"]["rows"]),
    )


def test_a_plan_without_a_version_has_a_row_for_each_gpu() -> None:
    plan = PlanFile.from_json((FILES / "gpu_plan.json").read_text(), "plan.json")
    assert plan == gpu_plan("4x RTX 4090", tensor_parallel_size=2)
    assert [gpu.selected for gpu in plan.gpus] == [True, True, False, False]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_newer_version_is_refused_by_name(kind: type[Contract]) -> None:
    with pytest.raises(RefusalError) as refused:
        kind.from_dict({VERSION_KEY: 99}, "/srv/file.json")
    (refusal,) = refused.value.refusals
    assert refusal.code == "newer_input"
    assert refusal.message == (
        f"/srv/file.json: schema_version is 99; this version of inference.vllm reads up to {kind.SCHEMA}."
    )
    assert refusal.fix == kind.REMEDY


def test_an_older_version_that_nothing_upgrades_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "SCHEMA", 3)
    with pytest.raises(RefusalError, match=r"\[older_input\] i: schema_version is 1; .* reads 3\."):
        ImageFile.from_dict({VERSION_KEY: 1}, "i")


def changed(contract: Contract, **change: Any) -> dict[str, Any]:
    return contract.as_dict() | change


def without(contract: Contract, name: str) -> dict[str, Any]:
    return {key: value for key, value in contract.as_dict().items() if key != name}


@pytest.mark.parametrize(
    ("kind", "data", "problem"),
    [
        (PlanFile, [], "the content is [], but must be a mapping"),
        (PlanFile, changed(cpu_plan(), schema_version=True), "schema_version is True, but must be a whole number"),
        (PlanFile, changed(cpu_plan(), starts="yes"), "starts is 'yes', but must be true or false"),
        (PlanFile, changed(cpu_plan(), max_model_len=1.5), "max_model_len is 1.5, but must be a whole number"),
        (PlanFile, changed(cpu_plan(), max_model_len=True), "max_model_len is True, but must be a whole number"),
        (PlanFile, changed(cpu_plan(), accelerator="tpu"), "accelerator is 'tpu', but must be one of nvidia, cpu"),
        (PlanFile, changed(cpu_plan(), wishes=1), "unknown fields: wishes"),
        (PlanFile, changed(cpu_plan(), gpus=[{"name": "X", "count": 2}]), "unknown fields: gpus[0].count"),
        (PlanFile, changed(cpu_plan(), memory_gib={"host": "16"}), "memory_gib.host is '16', but must be a number"),
        (PlanFile, changed(cpu_plan(), environment={"A": 1}), "environment.A is 1, but must be text"),
        (PlanFile, without(cpu_plan(), "flags"), "missing fields: flags"),
        (PlanFile, {"gpus": [{"name": "X"}], "flags": {}}, "schema_version is 0, which does not fit: KeyError"),
        (Verdict, changed(Verdict("r1"), ok=True), "ok is True, but must be False"),
        (
            Verdict,
            changed(Verdict("r1", (Check("a", True),)), checks=[{"code": "a", "ok": True, "limit": []}]),
            "checks[0].limit is [], but must be text or a whole number or a number or true or false",
        ),
        (LockFile, changed(lock("tiny-qwen3-vl"), files={}), "files is {}, but must be a list"),
        (ManifestFile, changed(manifest(cpu_plan()), plan=None), "plan is None, but must be a mapping"),
        (
            ManifestFile,
            changed(manifest(cpu_plan()), plan=changed(cpu_plan(), schema_version=9)),
            "plan.schema_version is 9;",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_file_and_field(kind: type[Contract], data: Any, problem: str) -> None:
    with pytest.raises(RefusalError) as refused:
        kind.from_json(json.dumps(data), "/srv/file.json")
    (refusal,) = refused.value.refusals
    assert refusal.message.startswith(f"/srv/file.json: {problem}")
    assert refusal.code == ("newer_input" if "9;" in problem else "broken_input")


@pytest.mark.parametrize(("text", "code"), [(None, "missing_input"), ("{", "broken_input"), ("[]", "broken_input")])
def test_missing_and_broken_files_are_named(text: str | None, code: str) -> None:
    with pytest.raises(RefusalError, match=code) as caught:
        PlanFile.from_json(text, "/opt/vllm/plan.json")
    assert "/opt/vllm/plan.json" in str(caught.value)
