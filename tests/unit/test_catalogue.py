"""The catalogue: every entry is whole, says nothing false, and a wrong name or file is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.inference.vllm.plugins.module_utils import catalogue
from ansible_collections.inference.vllm.plugins.module_utils.planner.model import from_entry
from ansible_collections.inference.vllm.plugins.module_utils.refusal import RefusalError
from support.own_models import write_own_entry
from support.paths import ROOT

NAMES = catalogue.names()


@pytest.fixture
def entry() -> dict[str, Any]:
    return catalogue.load("qwen3-vl-32b-instruct-fp8").as_dict()


def test_every_variant_of_the_study_has_an_entry() -> None:
    assert set(NAMES) >= {
        "qwen3-32b-awq",
        "qwen3-vl-235b-a22b-instruct-fp8",
        "qwen3-vl-2b-instruct-fp8",
        "qwen3-vl-30b-a3b-instruct-fp8",
        "qwen3-vl-32b-instruct-awq",
        "qwen3-vl-32b-instruct-bf16",
        "qwen3-vl-32b-instruct-fp8",
        "qwen3-vl-32b-instruct-gguf",
        "qwen3-vl-32b-instruct-nvfp4",
        "qwen3-vl-32b-instruct-w4a16",
        "qwen3-vl-32b-thinking-fp8",
        "qwen3-vl-4b-instruct-fp8",
        "qwen3-vl-8b-instruct-fp8",
        "tiny-qwen3-vl",
    }


@pytest.mark.parametrize("name", NAMES)
def test_entry_is_whole(name: str) -> None:
    loaded = catalogue.load(name)
    assert loaded.name == name
    assert (loaded.reasoning_parser == "qwen3") == ("thinking" in name)
    assert (loaded.images_per_prompt == 0) == (loaded.variant == "text")
    assert set(loaded.alternatives) <= set(NAMES) - {name}
    version = tuple(map(int, loaded.min_engine_version.split(".")))
    assert version >= (0, 32, 0)
    assert (loaded.refused is not None) == (loaded.quantization.method == "gguf")


@pytest.mark.parametrize("name", NAMES)
def test_entry_survives_the_way_to_a_host_and_back(name: str) -> None:
    loaded = catalogue.load(name)
    assert catalogue.Entry.from_dict(json.loads(json.dumps(loaded.as_dict()))) == loaded


def test_no_two_entries_name_one_repository() -> None:
    repositories = [catalogue.load(name).repository for name in NAMES]
    assert len(set(repositories)) == len(repositories)


@pytest.mark.parametrize(
    ("asked", "offered"),
    [
        ("qwen3-vl-32b-instruct-fp", "qwen3-vl-32b-instruct-fp8"),
        ("Qwen/Qwen3-VL-8B-Instruct-FP8", "qwen3-vl-8b-instruct-fp8"),
        ("tiny", "tiny-qwen3-vl"),
        ("qwen3-vl-32", "Set it to qwen3-vl-32b-"),
    ],
)
def test_unknown_name_brings_the_nearest(asked: str, offered: str) -> None:
    with pytest.raises(RefusalError) as caught:
        catalogue.load(asked)
    assert caught.value.refusals[0].code == "unknown_model"
    assert offered in caught.value.refusals[0].fix


def test_a_name_is_no_path() -> None:
    with pytest.raises(RefusalError, match="not in the catalogue"):
        catalogue.load("shapes/qwen3-vl-32b")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"reasoning_parser": "qwen3"}, "reasoning_parser"),
        ({"variant": "thinking"}, "reasoning_parser"),
        ({"variant": "chat"}, "variant is 'chat'"),
        ({"images_per_prompt": 0}, "images_per_prompt"),
        ({"repository": "no-owner"}, "repository"),
        ({"min_engine_version": "0.32"}, "min_engine_version"),
        ({"accelerators": ["tpu"]}, "accelerators"),
        ({"tool_call_parser": "hermess"}, "tool_call_parser"),
        ({"quantization": {"method": "int3"}}, "quantization"),
        ({"shapes": {"text": {}}}, "shapes"),
        ({"surprise": 1}, "unknown keys ['surprise']"),
    ],
)
def test_invalid_entry_is_refused(entry: dict[str, Any], change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RefusalError) as caught:
        catalogue.Entry.from_dict(entry | change)
    assert caught.value.refusals[0].code == "invalid_catalogue_entry"
    assert complaint in caught.value.refusals[0].message


def test_missing_key_is_refused(entry: dict[str, Any]) -> None:
    del entry["repository"]
    with pytest.raises(RefusalError, match="missing keys \\['repository'\\]"):
        catalogue.Entry.from_dict(entry)


def test_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("{")
    with pytest.raises(RefusalError, match="cannot be read"):
        catalogue.load("broken", [tmp_path])


def test_file_under_another_name_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(entry))))
    with pytest.raises(RefusalError, match=r"its name is 'qwen3-vl-32b-instruct-fp8', its file other\.yaml"):
        catalogue.load("other", [tmp_path])


LADDERS = {
    "qwen3-vl-32b-instruct-fp8": ["32b-instruct-awq", "30b-a3b-instruct-fp8", "8b-instruct-fp8"],
    "qwen3-vl-32b-instruct-awq": ["30b-a3b-instruct-fp8", "8b-instruct-fp8"],
    "qwen3-vl-32b-thinking-fp8": [
        *("32b-instruct-fp8", "32b-instruct-awq", "30b-a3b-instruct-fp8", "8b-instruct-fp8"),
    ],
    # Of its own, not of its family.
    "qwen3-vl-32b-instruct-gguf": ["32b-instruct-awq", "32b-instruct-fp8"],
    "qwen3-vl-8b-instruct-fp8": ["4b-instruct-fp8", "2b-instruct-fp8"],
    "qwen3-32b-awq": [],
}


@pytest.mark.parametrize("name", LADDERS)
def test_a_family_has_the_alternatives_of_its_models(name: str) -> None:
    assert list(catalogue.load(name).alternatives) == [f"qwen3-vl-{other}" for other in LADDERS[name]]


def test_a_fine_tune_is_one_file(tmp_path: Path) -> None:
    write_own_entry(tmp_path)
    own = catalogue.load("mine", [tmp_path])
    stock = catalogue.load("qwen3-vl-32b-instruct-fp8")
    assert (own.repository, own.shapes) == ("me/Mine-FP8", stock.shapes)
    # It is in no list of alternatives, so that all of its family may replace it.
    assert own.alternatives == ("qwen3-vl-32b-instruct-fp8", *stock.alternatives)
    assert catalogue.names([tmp_path]) == sorted([*NAMES, "mine"])
    assert catalogue.load_all([tmp_path])["mine"] == own
    with pytest.raises(RefusalError, match="not in the catalogue"):
        catalogue.load("mine")


def test_own_entries_and_shapes_come_before_the_built_in_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (second / "shapes").mkdir(parents=True)
    first.mkdir()
    name = "qwen3-vl-32b-instruct-fp8"
    write_own_entry(second, name, title="second")
    shapes = yaml.safe_load((ROOT / "catalogue/shapes/qwen3-vl-32b.yaml").read_text())
    shapes["text"]["num_hidden_layers"] = 65
    (second / "shapes" / "qwen3-vl-32b.yaml").write_text(yaml.safe_dump(shapes))
    loaded = catalogue.load(name, [first, second])
    assert (loaded.title, loaded.shapes["text"]["num_hidden_layers"]) == ("second", 65)
    # Built-in entries take the own shapes of their family, too.
    assert catalogue.load("qwen3-vl-32b-instruct-awq", [second]).shapes == loaded.shapes
    write_own_entry(first, name, title="first")
    assert catalogue.load(name, [first, second]).title == "first"
    assert catalogue.names([first, second]) == NAMES


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("mine.yaml", "{", "cannot be read"),
        ("mine.yaml", "[]", "does not hold a mapping"),
        ("mine.yaml", "\udcff".encode("utf-8", "surrogateescape"), "cannot be read"),
        ("mine.yaml", {"shapes": "no-such-family"}, "no folder of the catalogue has shapes/no-such-family.yaml"),
        ("mine.yaml", {"shapes": "../shapes/qwen3-vl-32b"}, "no folder of the catalogue has shapes/../shapes"),
        ("mine.yaml", {"alternatives": ["qwen4"]}, "alternatives has qwen4, which the catalogue does not have"),
        ("mine.yaml", {"alternatives": "qwen3-vl-8b-instruct-fp8"}, "not a list of names"),
        ("mine.yaml", {"revision": 5}, "revision is 5"),
        ("mine.yaml", {"variant": "text", "images_per_prompt": 0}, "variant is 'text', but shapes.vision is set"),
        ("mine.yaml", {"quantization": {"method": "fp8", "block": 128}}, "quantization has no valid block"),
        ("mine.yaml", {"quantization": {"method": "fp8", "bits": 8}}, "quantization has no valid bits"),
        ("mine.yaml", {"refused": {"message": "no"}}, "refused is"),
        ("shapes/mine.yaml", "{", "cannot be read"),
        ("shapes/mine.yaml", {"text": None}, "shapes.text has no positive whole number for vocab_size"),
        ("shapes/mine.yaml", {"vision": {"depth": 27}}, "shapes.vision has no positive whole number for hidden_size"),
        ("shapes/mine.yaml", {"audio": {}}, "shapes has unknown keys ['audio']"),
        ("shapes/mine.yaml", {"alternatives": [5]}, "alternatives is [5]"),
    ],
)
def test_a_broken_file_of_the_user_is_named_with_its_path(
    tmp_path: Path, file: str, text: str | bytes | dict[str, Any], complaint: str
) -> None:
    (tmp_path / "shapes").mkdir()
    stock = yaml.safe_load((ROOT / "catalogue/shapes/qwen3-vl-32b.yaml").read_text())
    path = write_own_entry(tmp_path, shapes="mine")
    (tmp_path / "shapes" / "mine.yaml").write_text(yaml.safe_dump(stock))
    assert catalogue.load("mine", [tmp_path]).shapes["text"]
    path = tmp_path / file
    if isinstance(text, dict):
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | text))
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RefusalError) as caught:
        catalogue.load("mine", [tmp_path])
    refusal = caught.value.refusals[0]
    assert refusal.code == "invalid_catalogue_entry"
    assert refusal.message.startswith(f"{path}: ")
    assert complaint in refusal.message
    assert refusal.fix == f"Correct {path}."


JUNK: tuple[Any, ...] = (None, 5, -1, 1.5, True, "x", "", [], [5], [[]], {}, {"a": 1}, {5: []})


@pytest.mark.parametrize("part", [(), ("quantization",), ("shapes",), ("shapes", "text"), ("shapes", "vision")])
def test_no_value_of_an_entry_ends_in_another_error(entry: dict[str, Any], part: tuple[str, ...]) -> None:
    """What is accepted can be planned, what is not is refused."""
    accepted = 0
    for junk in JUNK:
        whole = json.loads(json.dumps(entry))
        inner = whole
        for key in part:
            inner = inner[key]
        for key in [*inner, "surprise"]:
            kept = dict(inner)
            inner[key] = junk
            try:
                from_entry(catalogue.Entry.from_dict(whole))
                accepted += 1
            except RefusalError as error:
                assert error.refusals[0].code in ("invalid_catalogue_entry", "model_refused"), (part, key, junk)
            inner.clear()
            inner.update(kept)
    assert accepted


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=f"missing_catalogue_dir.*{tmp_path}/none"):
        catalogue.names([tmp_path / "none"])


def test_the_lock_of_an_entry(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    own = [first, second]
    built_in = ROOT / "catalogue" / "locks" / "tiny-qwen3-vl.json"

    def lock(name: str, folders: list[Path]) -> Path:
        return catalogue.lock_file(name, folders).resolve()

    assert lock("tiny-qwen3-vl", []) == lock("tiny-qwen3-vl", own) == built_in
    # A new lock is in the user's first folder, or in the entry's folder if there is none.
    assert lock("qwen3-32b-awq", own) == first / "locks" / "qwen3-32b-awq.json"
    assert lock("qwen3-32b-awq", []) == built_in.with_name("qwen3-32b-awq.json")
    # The lock of a user's entry is in its folder; the built-in lock of the same name is of another model.
    write_own_entry(second, "tiny-qwen3-vl")
    assert lock("tiny-qwen3-vl", own) == second / "locks" / "tiny-qwen3-vl.json"
    (first / "locks").mkdir()
    (first / "locks" / "tiny-qwen3-vl.json").write_text("{}")
    assert lock("tiny-qwen3-vl", own) == first / "locks" / "tiny-qwen3-vl.json"
    with pytest.raises(RefusalError, match="unknown_model"):
        catalogue.lock_file("nothing", own)


def template(expression: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """What Ansible makes of an expression."""
    command = [str(Path(sys.executable).with_name("ansible")), "localhost", "-i", "localhost,", "-m", "debug", "-a"]
    environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    given = [word for variable in variables for word in ("-e", variable)]
    return subprocess.run(
        [*command, f"msg={{{{ {expression} }}}}", *given],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_lookup_reads_entries_of_the_catalogue_and_of_own_folders(tmp_path: Path) -> None:
    write_own_entry(tmp_path)
    done = template(
        "query('inference.vllm.model', 'tiny-qwen3-vl', 'qwen3-32b-awq', 'mine')"
        " + [lookup('inference.vllm.model_lock', 'mine')]",
        json.dumps({"base": str(tmp_path), "vllm_catalogue_dirs": ["{{ base }}"]}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    tiny, text, mine, lock = json.loads(done.stdout.partition("=>")[2])["msg"]
    assert tiny["repository"] == "demo/tiny-qwen3-vl"
    assert tiny["shapes"]["text"]["hidden_size"] == 128
    assert text["variant"] == "text"
    assert (mine["name"], mine["repository"]) == ("mine", "me/Mine-FP8")
    assert lock == f"{tmp_path}/locks/mine.json"


@pytest.mark.parametrize("dirs", ['"catalogue"', '["catalogue"]', "5"])
def test_own_folders_are_a_list_of_absolute_paths(dirs: str) -> None:
    done = template("lookup('inference.vllm.model', 'tiny-qwen3-vl')", f'{{"vllm_catalogue_dirs": {dirs}}}')
    assert done.returncode != 0
    assert "must be a list of absolute paths" in done.stdout + done.stderr


def test_lookup_of_an_unknown_name_fails_with_the_nearest() -> None:
    done = template("lookup('inference.vllm.model', 'tiny-qwen3')")
    assert done.returncode != 0
    assert "tiny-qwen3-vl" in done.stdout


PREFLIGHT = {"vllm_bind_address": "127.0.0.1", "preflight_allow_public_address": False}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("mine", "[invalid_catalogue_entry] {path}: revision is 5"),
        ("qwen3-vl-32b-instruct-fp8", None),
        # One of its family may replace it.
        ("other", "[invalid_catalogue_entry] {path}: revision is 5"),
        ("qwen3-vl-32b-instruct-gguf", "[model_refused] qwen3-vl-32b-instruct-gguf: "),
        ("qwen3-vl-32b", "[unknown_model] vllm_model: 'qwen3-vl-32b' is not in the catalogue, which has: "),
    ],
)
def test_preflight_names_what_is_wrong_with_the_model(tmp_path: Path, model: str, message: str | None) -> None:
    path = write_own_entry(tmp_path, revision=5)
    write_own_entry(tmp_path, "other", alternatives=["mine"])
    given = PREFLIGHT | {"vllm_model": model, "vllm_catalogue_dirs": [str(tmp_path)]}
    done = template("query('inference.vllm.inventory', 'roles')", json.dumps(given))
    assert done.returncode == 0, done.stdout + done.stderr
    refusals = json.loads(done.stdout.partition("=>")[2])["msg"]
    assert len(refusals) == (message is not None)
    assert message is None or refusals[0].startswith(message.format(path=path))
    if "which has" in str(message):
        assert all(f" {name}," in refusals[0] for name in ("mine", "other", "qwen3-32b-awq"))


def playbook(name: str, *variables: str) -> subprocess.CompletedProcess[str]:
    """Plan for two RTX 4090, which needs no host."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    gpus = json.dumps({"vram_plan_gpus": [{"name": "RTX 4090", "count": 2}]})
    given = [word for variable in (gpus, *variables) for word in ("-e", variable)]
    command = [program, f"playbooks/{name}.yml", "-i", "inventories/rtx4090x2", *given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_own_model_is_planned_by_the_playbook(tmp_path: Path) -> None:
    write_own_entry(tmp_path)
    named = json.dumps({"vllm_model": "mine", "vllm_catalogue_dirs": [str(tmp_path)]})
    done = playbook("plan", named)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Model    mine" in done.stdout
    assert "--max-model-len 40528" in done.stdout
    # One that does not fit is refused with the alternatives of its family.
    done = playbook("plan", named, "vram_plan_max_model_len=131072")
    assert done.returncode != 0
    assert "[context_too_long] vram_plan_max_model_len: 131072 tokens need 8.00 GiB" in done.stdout + done.stderr


def test_a_former_name_of_a_variable_is_refused_by_the_playbook() -> None:
    done = playbook("plan", "vram_plan_context=32768")
    assert done.returncode != 0
    assert "[renamed_variable] vram_plan_context was renamed to vram_plan_max_model_len." in done.stdout + done.stderr
