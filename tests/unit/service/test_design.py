"""What a release holds: golden files for two inventories, and what no rendering may ever lose.

`UPDATE_GOLDEN=1 pytest tests/unit/service/test_design.py` updates the golden files; review the diff.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.template import trust_as_template

from ansible_collections.inference.vllm.plugins.filter.service import service_design
from ansible_collections.inference.vllm.plugins.module_utils import catalogue, collection
from ansible_collections.inference.vllm.plugins.module_utils.planner import engines, gpus
from ansible_collections.inference.vllm.plugins.module_utils.planner.judge import Case
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.planner.requirements import Wishes
from ansible_collections.inference.vllm.plugins.module_utils.planner.solve import solve
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import releases as release
from ansible_collections.inference.vllm.plugins.module_utils.service.design import NO_MEDIA_DOMAIN, design, parse, spare
from support.paths import GOLDEN, ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"

CPU_PLAN = {
    "accelerator": "cpu",
    "model": "tiny-qwen3-vl",
    "gpus": [],
    "flags": {
        "max-model-len": 4096,
        "max-num-seqs": 4,
        "enforce-eager": True,
        "limit-mm-per-prompt": {"image": 4, "video": 0},
        "structured-outputs-config": {"backend": "xgrammar", "disable_any_whitespace": True},
    },
    "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
    "starts": True,
    "survives": True,
    "refusals": [],
}
GPU_PLAN: dict[str, Any] = {
    "accelerator": "nvidia",
    "model": "qwen3-vl-32b-instruct-fp8",
    "gpus": [
        {"name": "RTX 4090", "uuid": "GPU-00000000-0000-0000-0000-00000000000a", "peer_to_peer": False},
        {"name": "RTX 4090", "uuid": "GPU-00000000-0000-0000-0000-00000000000b", "peer_to_peer": False},
    ],
    "flags": {
        "tensor-parallel-size": 2,
        "gpu-memory-utilization": 0.94,
        "kv-cache-dtype": "fp8",
        "max-model-len": 59104,
        "max-num-seqs": 32,
        "max-num-batched-tokens": 2048,
        "limit-mm-per-prompt": {"image": 4, "video": 0},
        "mm-processor-kwargs": {"max_pixels": 4194304},
    },
    "environment": {},
    "starts": True,
    "survives": True,
    "refusals": [],
}
CPU_IMAGE = {
    "reference": "localhost/vllm-cpu:0.32.0-0123456789ab",
    "id": "sha256:" + "1" * 64,
    "digest": "",
    "source": "build",
    "vllm_version": "0.32.0",
}
GPU_IMAGE = {
    "reference": "docker.io/vllm/vllm-openai@sha256:" + "2" * 64,
    "id": "sha256:" + "3" * 64,
    "digest": "sha256:" + "2" * 64,
    "source": "pull",
    "vllm_version": "0.33.0",
}


def defaults(role: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "roles" / role / "defaults" / "main.yml").read_text()))


def settings(**given: Any) -> dict[str, Any]:
    return {**defaults("vllm"), **defaults("vllm_service"), **given}


def case(name: str, **given: Any) -> tuple[dict[str, Any], ...]:
    """Model, plan, image, lock and settings of an inventory."""
    plan, image = {"embedded": (CPU_PLAN, CPU_IMAGE), "rtx4090x2": (GPU_PLAN, GPU_IMAGE)}[name]
    model = catalogue.load(str(plan["model"])).as_dict()
    lock = {"repo": model["repository"], "revision": "main", "commit": COMMIT, "files": []}
    own = {"vllm_home": "/srv/demo", "vllm_port": 18000, "vllm_project": "vllm-demo"} if name == "embedded" else {}
    return model, plan, image, lock, settings(**{**own, **given})


def compose_text(values: dict[str, Any], template: str = "compose.yaml.j2") -> str:
    # As Ansible sets its template engine up.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)


def rendered(name: str, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compose file and vllm.yaml as data."""
    result = design(*case(name, **given))
    return yaml.safe_load(compose_text(result["compose"])), yaml.safe_load(result["vllm_yaml"])


INVENTORIES = ("embedded", "rtx4090x2")


@pytest.mark.parametrize("name", INVENTORIES)
def test_golden(name: str) -> None:
    result = design(*case(name))
    for file, text in {"compose.yaml": compose_text(result["compose"]), "vllm.yaml": result["vllm_yaml"]}.items():
        golden = GOLDEN / f"service_{name}_{file}"
        if os.environ.get("UPDATE_GOLDEN"):
            golden.write_text(text)
        assert text == golden.read_text(), f"{golden} differs"


@pytest.mark.parametrize("name", INVENTORIES)
def test_compose_itself_accepts_the_golden_file(name: str) -> None:
    assert shutil.which("docker"), "the Docker client with Compose v2 must be installed"
    command = [
        "docker",
        "compose",
        "--file",
        str(GOLDEN / f"service_{name}_compose.yaml"),
        "config",
        "--format",
        "json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    service = json.loads(done.stdout)["services"]["vllm"]
    (port,) = service["ports"]
    assert port["host_ip"] == "127.0.0.1"
    assert port["target"] == 8000
    devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
    if name == "embedded":
        assert devices is None
    else:
        assert devices[0]["device_ids"] == [gpu["uuid"] for gpu in GPU_PLAN["gpus"]]


def four_gpus() -> dict[str, Any]:
    """A plan for two GPUs on a host that has four."""
    uuids = [f"GPU-00000000-0000-0000-0000-00000000000{letter}" for letter in "abcd"]
    return {**GPU_PLAN, "gpus": [{"name": "RTX 4090", "uuid": uuid, "peer_to_peer": False} for uuid in uuids]}


@pytest.mark.parametrize(("name", "plan"), [("embedded", CPU_PLAN), ("rtx4090x2", four_gpus())])
def test_a_spare_engine_has_a_port_and_gpus_of_its_own(name: str, plan: dict[str, Any]) -> None:
    text = compose_text(spare({"plan": plan}, "127.0.0.1", 18001), "compose_spare.yaml.j2")
    golden = GOLDEN / f"service_{name}_compose_spare.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs"
    release_file = GOLDEN / f"service_{name}_compose.yaml"
    command = ["docker", "compose", "--project-name=spare", f"--file={release_file}", f"--file={golden}"]
    done = subprocess.run([*command, "config", "--format=json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    both = json.loads(done.stdout)
    alone = yaml.safe_load(release_file.read_text())["services"]["vllm"]
    service = both["services"]["vllm"]
    assert both["name"] == "spare"
    assert [(port["host_ip"], port["published"], port["target"]) for port in service["ports"]] == [
        ("127.0.0.1", "18001", 8000)
    ]
    if name == "rtx4090x2":
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device["device_ids"] == [gpu["uuid"] for gpu in plan["gpus"][2:]]
    assert service["command"] == alone["command"]
    assert service["labels"] == alone["labels"]


@pytest.mark.parametrize("gpus", [four_gpus()["gpus"][:3], [{"name": "RTX 4090", "count": 4}]])
def test_a_host_without_gpus_to_spare_is_refused(gpus: list[dict[str, Any]]) -> None:
    with pytest.raises(RefusalError) as caught:
        spare({"plan": {**GPU_PLAN, "gpus": gpus}}, "127.0.0.1", 18001)
    assert [refusal.code for refusal in caught.value.refusals] == ["no_spare_gpus"]


@pytest.mark.parametrize("name", INVENTORIES)
def test_the_container_is_locked_down(name: str) -> None:
    compose, flags = rendered(name)
    service = compose["services"]["vllm"]
    assert service["user"] == "2000:0"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["pull_policy"] == "never"
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices", "extra_hosts"} & set(service)
    assert service["mem_limit"]
    assert service["pids_limit"] > 0
    writable = [mount for mount in service["volumes"] if not mount.get("read_only")]
    assert [mount["target"] for mount in writable] == ["/home/vllm/.cache"]
    assert all("docker.sock" not in str(mount) for mount in service["volumes"])
    environment = service["environment"]
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    assert "VLLM_API_KEY" not in environment
    assert flags["allowed-media-domains"] == [NO_MEDIA_DOMAIN]
    assert "api-key" not in flags


def test_media_domains_are_those_of_the_operator_and_never_an_empty_list() -> None:
    _, flags = rendered("embedded", vllm_service_allow_media_domains=["images.example.org"])
    assert flags["allowed-media-domains"] == ["images.example.org"]
    # RFC 2606: no host can have such a name.
    assert NO_MEDIA_DOMAIN.endswith(".invalid")


def test_a_release_of_the_rendered_files_knows_its_own_name() -> None:
    result = design(*case("embedded"))
    files = {"compose.yaml": compose_text(result["compose"]), "vllm.yaml": result["vllm_yaml"]}
    made = release.design(result["prefix"], files, {}, result["manifest"])
    assert re.fullmatch(r"tiny-qwen3-vl-v0\.32\.0-[0-9a-f]{12}", made.id)
    service = yaml.safe_load(made.files["compose.yaml"])["services"]["vllm"]
    assert service["labels"]["inference.vllm.release"] == made.id
    sources = [mount["source"] for mount in service["volumes"] if mount["target"].startswith("/etc/vllm/")]
    assert sources == [f"/srv/demo/releases/{made.id}/{n}" for n in ("entrypoint.sh", "healthcheck.py", "vllm.yaml")]
    assert made.manifest["model"]["commit"] == COMMIT
    assert made.manifest["flags"]["max-model-len"] == 4096
    assert made.manifest["image"] == CPU_IMAGE


@pytest.mark.parametrize(
    "change",
    [
        {"image": {**CPU_IMAGE, "id": "sha256:" + "9" * 64}},
        {"lock": {"repo": "demo/tiny-qwen3-vl", "revision": "main", "commit": "f" * 40}},
        {"settings": settings(vllm_service_extra_flags={"seed": 1})},
        {"settings": settings(vllm_port=9000)},
    ],
)
def test_another_image_commit_flag_or_port_is_another_release(change: dict[str, Any]) -> None:
    names = ("model", "plan", "image", "lock", "settings")
    given = dict(zip(names, case("embedded"), strict=True))
    texts = []
    for inputs in (given, {**given, **change}):
        result = design(*(inputs[name] for name in names))
        texts.append(compose_text(result["compose"]) + result["vllm_yaml"])
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("gpu_facts", "flags", "expected"),
    [
        ([{"uuid": "GPU-a"}, {"uuid": "GPU-b"}], {"tensor-parallel-size": 1}, {"device_ids": ["GPU-a"]}),
        ([{"name": "RTX 4090", "count": 4}], {"tensor-parallel-size": 2}, {"count": 2}),
        ([{"uuid": "GPU-a"}], {}, {"device_ids": ["GPU-a"]}),
    ],
)
def test_gpus_are_as_many_as_the_plan_uses(
    gpu_facts: list[dict[str, Any]], flags: dict[str, Any], expected: dict[str, Any]
) -> None:
    model, plan, image, lock, given = case("rtx4090x2")
    result = design(model, {**plan, "gpus": gpu_facts, "flags": flags}, image, lock, given)
    service = yaml.safe_load(compose_text(result["compose"]))["services"]["vllm"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "capabilities": ["gpu"], **expected}


@pytest.mark.parametrize(
    ("wish", "known", "size", "without"),
    [
        ("auto", False, 2, True),
        ("auto", True, 2, False),
        ("auto", None, 2, False),
        ("auto", False, 1, False),
        ("absent", True, 2, True),
        ("present", False, 2, False),
    ],
)
def test_gpus_that_cannot_reach_each_other_get_their_settings(
    wish: str, known: bool | None, size: int, without: bool
) -> None:
    model, plan, image, lock, given = case("rtx4090x2", vllm_service_gpu_peer_to_peer=wish)
    fact = {"name": "X", "count": 2} | ({} if known is None else {"peer_to_peer": known})
    result = design(model, {**plan, "gpus": [fact], "flags": {"tensor-parallel-size": size}}, image, lock, given)
    assert (result["compose"]["environment"].get("NCCL_P2P_DISABLE") == "1") is without
    assert yaml.safe_load(result["vllm_yaml"]).get("disable-custom-all-reduce", False) is without


def test_environment_is_laid_over_and_reaches_the_container_as_it_was_written(tmp_path: Path) -> None:
    odd = "a$b ${HOME} \"quoted\" 'single' <&> \\ # ü"
    result = design(*case("embedded", vllm_service_environment={"ODD": odd, "VLLM_CPU_KVCACHE_SPACE": 2}))
    (tmp_path / "compose.yaml").write_text(compose_text(result["compose"]))
    command = [
        "docker",
        "compose",
        "--file",
        str(tmp_path / "compose.yaml"),
        "config",
        "--format",
        "json",
        "--no-interpolate",
    ]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    environment = shown["services"]["vllm"]["environment"]
    # Without interpolation a doubled dollar is shown as such; Compose makes one of it.
    assert environment["ODD"].replace("$$", "$") == odd
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "2"
    assert environment["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"vllm_service_environment": {"VLLM_SERVER_DEV_MODE": "1"}}, "refused_environment"),
        ({"vllm_service_environment": {"VLLM_MEDIA_URL_ALLOW_REDIRECTS": "1"}}, "refused_environment"),
        ({"vllm_service_environment": {"VLLM_CACHE_ROOT": "/x"}}, "refused_environment"),
        ({"vllm_service_environment": {"VLLM_API_KEY": "x"}}, "secret_in_environment"),
        ({"vllm_service_environment": {"HF_TOKEN": "x"}}, "secret_in_environment"),
        ({"vllm_service_environment": {"DB_PASSWORD": "x"}}, "secret_in_environment"),
        ({"vllm_service_environment": {"A B": "x"}}, "bad_environment"),
        ({"vllm_service_environment": {"A": True}}, "bad_environment"),
        ({"vllm_service_environment": {"A": ["x"]}}, "bad_environment"),
        ({"vllm_service_memory_limit": "lots"}, "bad_size"),
        ({"vllm_service_shm_size": "0g"}, "bad_size"),
        ({"vllm_service_tmp_size": "-1g"}, "bad_size"),
        ({"vllm_service_log_max_size": "20"}, "bad_size"),
        ({"vllm_service_pids_limit": 63}, "out_of_range"),
        ({"vllm_service_start_timeout": -5}, "out_of_range"),
        ({"vllm_service_stop_timeout": 0}, "out_of_range"),
        ({"vllm_service_log_max_files": 0}, "out_of_range"),
        ({"vllm_service_ulimits": {"memlock": "many"}}, "bad_number"),
        ({"vllm_service_extra_flags": {"max-nun-seqs": 1}}, "unknown_flag"),
        ({"vllm_service_extra_flags": {"stream-interval": 0}}, "flag_range"),
    ],
)
def test_wrong_settings_are_refused_by_name(given: dict[str, Any], code: str) -> None:
    with pytest.raises(RefusalError) as caught:
        design(*case("embedded", **given))
    (refusal,) = caught.value.refusals
    assert refusal.code == code
    assert next(iter(given)) in refusal.message


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL", "NCCL_DEBUG"])
def test_ordinary_environment_is_not_taken_for_a_secret(name: str) -> None:
    assert name in design(*case("embedded", vllm_service_environment={name: "1"}))["compose"]["environment"]


def test_all_reasons_come_at_once() -> None:
    given = {"vllm_service_memory_limit": "x", "vllm_service_pids_limit": 0, "vllm_service_environment": {"A": None}}
    with pytest.raises(RefusalError) as caught:
        design(*case("embedded", **given))
    assert [refusal.code for refusal in caught.value.refusals] == ["bad_environment", "bad_size", "out_of_range"]


@pytest.mark.parametrize(
    ("part", "change", "code"),
    [
        (1, {"model": "another"}, "stale_input"),
        (1, {"starts": False}, "stale_input"),
        (1, {"refusals": [{"code": "x"}]}, "stale_input"),
        (2, {"vllm_version": "0.31.0"}, "engine_unsafe"),
        (2, {"vllm_version": None}, "engine_version_unknown"),
        (3, {"repo": "other/model"}, "stale_input"),
        (3, {"commit": ""}, "stale_input"),
    ],
)
def test_inputs_of_another_deployment_are_refused(part: int, change: dict[str, Any], code: str) -> None:
    inputs = list(case("embedded"))
    inputs[part] = {**inputs[part], **change}
    with pytest.raises(RefusalError, match=code):
        design(*inputs)


@pytest.mark.parametrize(("text", "code"), [(None, "missing_input"), ("{", "broken_input"), ("[]", "broken_input")])
def test_missing_and_broken_files_are_named(text: str | None, code: str) -> None:
    with pytest.raises(RefusalError, match=code) as caught:
        parse("/opt/vllm/plan.json", text)
    assert "/opt/vllm/plan.json" in str(caught.value)


GPU_ENTRIES = [name for name, entry in catalogue.load_all().items() if "nvidia" in entry.accelerators]


@pytest.mark.parametrize("host", ["RTX 4090 x2", "H100 x1"])
@pytest.mark.parametrize("name", GPU_ENTRIES)
def test_what_the_planner_plans_is_what_the_table_takes(name: str, host: str) -> None:
    entry = catalogue.load(name)
    card, _, count = host.rpartition(" x")
    if entry.refused:
        pytest.skip("listed only to be refused")
    model = from_entry(entry)
    facts = gpus.from_facts([{"name": card, "count": int(count)}])
    engine = engines.engine(engines.DEPLOYED, is_moe=model.is_moe)
    plan = solve(Case(model, facts, engine, str), Wishes(), []).as_dict()
    if not plan["starts"]:
        pytest.skip("does not fit")
    lock = {"repo": entry.repository, "revision": "main", "commit": COMMIT}
    image = {**GPU_IMAGE, "vllm_version": engines.DEPLOYED}
    result = design(entry.as_dict(), plan, image, lock, settings())
    flags = yaml.safe_load(result["vllm_yaml"])
    assert flags.items() >= plan["flags"].items()
    assert ("reasoning-parser" in flags) is (entry.variant == "thinking")
    yaml.safe_load(compose_text(result["compose"]))


def files(*contents: Any) -> list[dict[str, Any]]:
    """What module read_files returns; None is a file that was not there."""
    return [
        {"path": f"/srv/{number}.json", "text": None if content is None else json.dumps(content)}
        for number, content in enumerate(contents)
    ]


def test_the_filter_takes_values_that_remember_where_they_came_from() -> None:
    """Ansible hands filters texts and containers of types of its own, which YAML refuses to write."""
    model, plan, image, lock, given = case("embedded")
    given["vllm_service_extra_flags"] = {"attention-backend": trust_as_template("TORCH_SDPA")}
    result = service_design(model, files(plan, image, lock), given)
    assert result["refusals"] == []
    assert "attention-backend: TORCH_SDPA\n" in result["vllm_yaml"]
    assert result["manifest"]["rendered_by"] == str(collection.read())


def test_the_filter_returns_every_refusal() -> None:
    model, plan, image, lock, given = case("embedded", vllm_service_extra_flags={"max-nun-seqs": 1, "port": 1})
    result = service_design(model, files(plan, image, lock), given)
    assert [text.split("]")[0] for text in result["refusals"]] == ["[unknown_flag", "[flag_of_service"]
    (missing,) = service_design(model, files(plan, None, lock), given)["refusals"]
    assert missing.startswith("[missing_input] /srv/1.json")
