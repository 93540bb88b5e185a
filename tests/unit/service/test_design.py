"""What a release holds: golden files for two inventories, and what no rendering may ever lose.

`UPDATE_GOLDEN=1 pytest tests/unit/service/test_design.py` updates the golden files; review the diff.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible.template import trust_as_template

from ansible_collections.inference.vllm.plugins.filter.service import service_design
from ansible_collections.inference.vllm.plugins.module_utils import catalogue, collection, versions
from ansible_collections.inference.vllm.plugins.module_utils.contracts import ManifestFile, PlanFile
from ansible_collections.inference.vllm.plugins.module_utils.planner.gpus import Host
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service import releases as release
from ansible_collections.inference.vllm.plugins.module_utils.service.design import (
    NO_MEDIA_DOMAIN,
    Inputs,
    design,
    spare,
)
from support.paths import GOLDEN, ROOT
from support.plans import COMMIT, built_image, cpu_plan, gpu_plan, inputs, lock, pulled_image, read_host, settings

BY = "inference.vllm 0.0.0"
CPU_PLAN, GPU_PLAN = cpu_plan(), gpu_plan()


def case(name: str, **given: Any) -> Inputs:
    """What a release of an inventory is made from."""
    own = {"vllm_home": "/srv/demo", "vllm_port": 18000, "vllm_project": "vllm-demo"} if name == "embedded" else {}
    return inputs({"embedded": CPU_PLAN, "rtx4090x2": GPU_PLAN}[name], **{**own, **given})


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
    result = design(case(name, **given), BY)
    return yaml.safe_load(compose_text(result["compose"])), yaml.safe_load(result["vllm_yaml"])


INVENTORIES = ("embedded", "rtx4090x2")


@pytest.mark.parametrize("name", INVENTORIES)
def test_golden(name: str) -> None:
    result = design(case(name), BY)
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
        assert devices[0]["device_ids"] == ["GPU-00000000", "GPU-00000001"]


FOUR_GPUS = gpu_plan(read_host(4), tensor_parallel_size=2)


@pytest.mark.parametrize(("name", "plan"), [("embedded", CPU_PLAN), ("rtx4090x2", FOUR_GPUS)])
def test_a_spare_engine_has_a_port_and_gpus_of_its_own(name: str, plan: PlanFile) -> None:
    text = compose_text(spare(plan, "127.0.0.1", 18001), "compose_spare.yaml.j2")
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
        assert device["device_ids"] == ["GPU-00000002", "GPU-00000003"]
    assert service["command"] == alone["command"]
    assert service["labels"] == alone["labels"]


@pytest.mark.parametrize("host", [read_host(3), "4x RTX 4090"])
def test_a_host_without_gpus_to_spare_is_refused(host: Host | str) -> None:
    with pytest.raises(RefusalError) as caught:
        spare(gpu_plan(host, tensor_parallel_size=2), "127.0.0.1", 18001)
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
    result = design(case("embedded"), BY)
    files = {"compose.yaml": compose_text(result["compose"]), "vllm.yaml": result["vllm_yaml"]}
    made = release.design(result["prefix"], files, {}, result["manifest"])
    assert re.fullmatch(r"tiny-qwen3-vl-v0\.32\.0-[0-9a-f]{12}", made.id)
    service = yaml.safe_load(made.files["compose.yaml"])["services"]["vllm"]
    assert service["labels"]["inference.vllm.release"] == made.id
    sources = [mount["source"] for mount in service["volumes"] if mount["target"].startswith("/etc/vllm/")]
    assert sources == [f"/srv/demo/releases/{made.id}/{n}" for n in ("entrypoint.sh", "healthcheck.py", "vllm.yaml")]
    assert made.manifest["model"]["commit"] == COMMIT
    assert made.manifest["flags"]["max-model-len"] == 4096
    assert ManifestFile.from_dict(made.manifest, "manifest.json").image == built_image()


@pytest.mark.parametrize(
    "change",
    [
        {"image": replace(built_image(), id="sha256:" + "9" * 64)},
        {"lock": lock("tiny-qwen3-vl", "f" * 40)},
        {"settings": settings(vllm_service_extra_flags={"seed": 1})},
        {"settings": settings(vllm_port=9000)},
    ],
)
def test_another_image_commit_flag_or_port_is_another_release(change: dict[str, Any]) -> None:
    texts = []
    for made_from in (case("embedded"), replace(case("embedded"), **change)):
        result = design(made_from, BY)
        texts.append(compose_text(result["compose"]) + result["vllm_yaml"])
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("host", "size", "expected"),
    [
        (read_host(2), 1, {"device_ids": ["GPU-00000000"]}),
        (read_host(4), 2, {"device_ids": ["GPU-00000000", "GPU-00000001"]}),
        ("4x RTX 4090", 2, {"count": 2}),
    ],
)
def test_the_container_gets_the_gpus_of_the_plan(host: Host | str, size: int, expected: dict[str, Any]) -> None:
    plan = gpu_plan(host, "qwen3-vl-8b-instruct-fp8", tensor_parallel_size=size)
    service = yaml.safe_load(compose_text(design(inputs(plan), BY)["compose"]))["services"]["vllm"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "capabilities": ["gpu"], **expected}


@pytest.mark.parametrize(
    ("requested", "host", "without"),
    [
        ("auto", "2x RTX 4090", True),
        ("auto", "2x H100", False),
        ("auto", "1x RTX 4090", False),
        ("absent", "2x H100", True),
        ("present", "2x RTX 4090", False),
    ],
)
def test_gpus_that_cannot_reach_each_other_get_their_settings(requested: str, host: str, without: bool) -> None:
    plan = gpu_plan(host, "qwen3-vl-8b-instruct-fp8", tensor_parallel_size=int(host[0]))
    result = design(inputs(plan, vllm_service_gpu_peer_to_peer=requested), BY)
    assert (result["compose"]["environment"].get("NCCL_P2P_DISABLE") == "1") is without
    assert yaml.safe_load(result["vllm_yaml"]).get("disable-custom-all-reduce", False) is without


def test_environment_is_laid_over_and_reaches_the_container_as_it_was_written(tmp_path: Path) -> None:
    odd = "a$b ${HOME} \"quoted\" 'single' <&> \\ # ü"
    result = design(case("embedded", vllm_service_environment={"ODD": odd, "VLLM_CPU_KVCACHE_SPACE": 2}), BY)
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
        design(case("embedded", **given), BY)
    (refusal,) = caught.value.refusals
    assert refusal.code == code
    assert next(iter(given)) in refusal.message


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS", "VLLM_LOGGING_LEVEL", "NCCL_DEBUG"])
def test_ordinary_environment_is_not_taken_for_a_secret(name: str) -> None:
    assert name in design(case("embedded", vllm_service_environment={name: "1"}), BY)["compose"]["environment"]


def test_all_reasons_are_reported_together() -> None:
    given = {"vllm_service_memory_limit": "x", "vllm_service_pids_limit": 0, "vllm_service_environment": {"A": None}}
    with pytest.raises(RefusalError) as caught:
        design(case("embedded", **given), BY)
    assert [refusal.code for refusal in caught.value.refusals] == ["bad_environment", "bad_size", "out_of_range"]


@pytest.mark.parametrize(
    ("part", "change", "code"),
    [
        ("plan", {"model": "another"}, "stale_input"),
        ("plan", {"starts": False}, "stale_input"),
        ("plan", {"refusals": (Refusal("x", "y", "z"),)}, "stale_input"),
        ("image", {"vllm_version": "0.31.0"}, "engine_unsafe"),
        ("image", {"vllm_version": ""}, "engine_version_unknown"),
        ("lock", {"repo": "other/model"}, "stale_input"),
        ("lock", {"commit": ""}, "stale_input"),
    ],
)
def test_inputs_of_another_deployment_are_refused(part: str, change: dict[str, Any], code: str) -> None:
    made_from = case("embedded")
    with pytest.raises(RefusalError, match=code):
        design(replace(made_from, **{part: replace(getattr(made_from, part), **change)}), BY)


def test_a_plan_for_another_engine_than_the_images_is_refused() -> None:
    assert design(inputs(GPU_PLAN, pulled_image(f"{versions.DEPLOYED}+cu130")), BY)
    with pytest.raises(RefusalError) as caught:
        design(inputs(GPU_PLAN, pulled_image("0.40.0")), BY)
    (refusal,) = caught.value.refusals
    assert refusal.code == "stale_input"
    assert refusal.message == f"plan.json is for vLLM {versions.DEPLOYED}, the engine's image holds vLLM 0.40.0."


GPU_ENTRIES = [
    name for name, entry in catalogue.load_all().items() if "nvidia" in entry.accelerators and not entry.refused
]
#: Models that these GPUs cannot hold.
DOES_NOT_START = {
    ("qwen3-vl-235b-a22b-instruct-fp8", "2x RTX 4090"),
    ("qwen3-vl-235b-a22b-instruct-fp8", "1x H100"),
    ("qwen3-vl-32b-instruct-bf16", "2x RTX 4090"),
}


@pytest.mark.parametrize("host", ["2x RTX 4090", "1x H100"])
@pytest.mark.parametrize("name", GPU_ENTRIES)
def test_what_the_planner_plans_is_what_the_table_takes(name: str, host: str) -> None:
    plan = gpu_plan(host, name)
    assert plan.starts is ((name, host) not in DOES_NOT_START)
    if plan.starts:
        result = design(inputs(plan), BY)
        flags = yaml.safe_load(result["vllm_yaml"])
        assert flags.items() >= plan.flags.items()
        assert ("reasoning-parser" in flags) is (catalogue.load(name).variant == "thinking")
        assert yaml.safe_load(compose_text(result["compose"]))["services"]["vllm"]["image"] == pulled_image().reference


def read_files(made_from: Inputs) -> list[dict[str, Any]]:
    """What module read_files returns for the three files that a release is made from."""
    files = {"/srv/plan.json": made_from.plan, "/srv/image.json": made_from.image, "/srv/lock.json": made_from.lock}
    return [{"path": path, "text": contract.to_json()} for path, contract in files.items()]


def test_the_filter_takes_values_that_remember_where_they_came_from() -> None:
    """Ansible hands filters texts and containers of types of its own, which YAML refuses to write."""
    made_from = case("embedded", vllm_service_extra_flags={"attention-backend": trust_as_template("TORCH_SDPA")})
    result = service_design(made_from.model, read_files(made_from), made_from.settings)
    assert result["refusals"] == []
    assert "attention-backend: TORCH_SDPA\n" in result["vllm_yaml"]
    assert result["manifest"]["rendered_by"] == str(collection.read())


def test_the_filter_returns_every_refusal() -> None:
    made_from = case("embedded", vllm_service_extra_flags={"max-nun-seqs": 1, "port": 1})
    files = read_files(made_from)
    result = service_design(made_from.model, files, made_from.settings)
    assert [text.split("]")[0] for text in result["refusals"]] == ["[unknown_flag", "[flag_of_service"]
    files[1]["text"] = None
    (missing,) = service_design(made_from.model, files, made_from.settings)["refusals"]
    assert missing.startswith("[missing_input] /srv/image.json does not exist on the host.")
