"""What is asked of cosign, and what its answers mean. The answers are those of cosign 2.5.0."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.inference.vllm.plugins.module_utils.image.signature import (
    KEY_VARIABLE,
    Signer,
    command,
    judge,
    refusals,
)
from unit.image.test_settings import run_module

PEM = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----"
DIGEST = "sha256:" + "0123456789abcdef" * 4
REFERENCE = f"registry.example.org/vllm@{DIGEST}"
KEY = Signer(key=PEM)
KEYLESS = Signer(identity="ci@example.org", issuer="https://issuer.example.org")


def codes(signer: Signer, **how: Any) -> list[str]:
    sound: dict[str, Any] = {
        "source": "pull",
        "digest": DIGEST,
        "archive_sha256": "",
        "tool": "cosign",
        "tool_found": True,
    }
    return [refusal.code for refusal in refusals(signer, **sound | how)]


@pytest.mark.parametrize("source", ["pull", "load", "build"])
def test_nothing_is_asked_where_no_signer_is_named(source: str) -> None:
    assert codes(Signer(without_transparency_log=True), source=source, digest="", tool_found=False) == []


@pytest.mark.parametrize("signer", [KEY, KEYLESS])
def test_a_signature_that_can_be_checked_is_accepted(signer: Signer) -> None:
    assert codes(signer) == []
    assert codes(signer, source="load", archive_sha256="0" * 64, tool_found=False) == []


@pytest.mark.parametrize(
    ("signer", "how", "expected"),
    [
        (KEY, {"tool_found": False}, ["signature_tool_missing"]),
        (KEYLESS, {"tool_found": False}, ["signature_tool_missing"]),
        (KEY, {"digest": ""}, ["signature_without_digest"]),
        (KEY, {"source": "load"}, ["signature_not_in_archive"]),
        (replace(KEYLESS, issuer=""), {}, ["signature_incomplete"]),
        (replace(KEYLESS, identity=""), {}, ["signature_incomplete"]),
        (replace(KEYLESS, key=PEM), {}, ["signature_ambiguous"]),
        (replace(KEY, issuer="https://issuer.example.org"), {}, ["signature_ambiguous"]),
    ],
)
def test_what_could_not_be_checked_is_refused(signer: Signer, how: dict[str, Any], expected: list[str]) -> None:
    assert codes(signer, **how) == expected


def test_key_as_text_travels_in_the_environment() -> None:
    argv, environment = command("/opt/cosign", KEY, REFERENCE)
    assert argv == ["/opt/cosign", "verify", "--key", f"env://{KEY_VARIABLE}", REFERENCE]
    assert environment == {KEY_VARIABLE: PEM + "\n"}


@pytest.mark.parametrize("key", ["/etc/vllm/cosign.pub", "hashivault://vllm"])
def test_key_elsewhere_is_named(key: str) -> None:
    signer = Signer(key=key, without_transparency_log=True, registry_ca="/etc/ca.pem")
    argv, environment = command("cosign", signer, REFERENCE)
    assert argv[2:] == ["--key", key, "--insecure-ignore-tlog=true", "--registry-cacert", "/etc/ca.pem", REFERENCE]
    assert environment == {}


def test_keyless_names_identity_and_issuer() -> None:
    argv, _ = command("cosign", KEYLESS, REFERENCE)
    expected = ["--certificate-identity", "ci@example.org", "--certificate-oidc-issuer", "https://issuer.example.org"]
    assert argv[2:-1] == expected


def test_the_log_is_omitted_only_with_the_variable() -> None:
    for signer in (KEY, KEYLESS):
        assert not [word for word in command("cosign", signer, REFERENCE)[0] if "insecure" in word]


def test_another_signer_has_another_name() -> None:
    signers = [KEY, KEYLESS, replace(KEY, key=PEM.replace("MFkw", "MFkx")), Signer(key="/a"), Signer(key="/b")]
    signers += [replace(signer, without_transparency_log=True) for signer in signers]
    assert len({signer.name for signer in signers}) == len(signers)
    assert "MFkw" not in KEY.name


@pytest.mark.parametrize(
    ("rc", "error", "code"),
    [
        (10, "no signatures found", "signature_missing"),
        (1, "no signatures found", "signature_missing"),
        (12, "no matching signatures: invalid signature when validating ASN.1 encoded signature", "signature_wrong"),
        (1, "dial tcp 127.0.0.1:5001: connect: connection refused", "signature_unchecked"),
        (1, "getting Rekor public keys: tuf: failed to download 13.root.json", "signature_unchecked"),
        (1, "loading public key: open /nonexist: no such file or directory", "signature_unchecked"),
        (127, "", "signature_unchecked"),
    ],
)
def test_answers(rc: int, error: str, code: str) -> None:
    output = f"WARNING: something\nError: {error}\nerror during command execution: {error}\n" if error else ""
    refusal = judge(rc, output, KEY, REFERENCE)
    assert refusal is not None
    assert refusal.code == code
    assert REFERENCE in refusal.message
    assert "engine_image_" in refusal.fix
    assert "error during" not in refusal.message


def test_good_answer() -> None:
    assert judge(0, "The signatures were verified against the specified public key", KEY, REFERENCE) is None


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A program in cosign's place that says yes, once: what was seen is not asked again."""
    path = tmp_path / "cosign"
    path.write_text(f"#!/bin/sh\n[ ! -e {tmp_path}/asked ] || exit 12\ntouch {tmp_path}/asked\n")
    path.chmod(0o755)
    return path


def test_module_asks_again_only_about_something_else(tool: Path, tmp_path: Path) -> None:
    given = {"reference": REFERENCE, "key": PEM, "tool": str(tool), "record": str(tmp_path / "home/signature.json")}
    first = run_module("engine_image_signature", given)
    assert first["changed"] and first["asked"]
    assert json.loads((tmp_path / "home/signature.json").read_text()) == {"reference": REFERENCE, "signer": KEY.name}
    assert not run_module("engine_image_signature", given)["changed"]
    for other in ({"reference": REFERENCE.replace("0", "1")}, {"key": "/another"}, {"without_transparency_log": True}):
        answer = run_module("engine_image_signature", {**given, **other})
        assert answer["failed"] and answer["refusals"][0]["code"] == "signature_wrong"


def test_module_writes_nothing_in_check_mode(tool: Path, tmp_path: Path) -> None:
    record = tmp_path / "signature.json"
    given = {"reference": REFERENCE, "key": PEM, "tool": str(tool), "record": str(record), "_ansible_check_mode": True}
    assert run_module("engine_image_signature", given)["changed"]
    assert not record.exists()


def test_module_of_the_settings_sees_whether_the_host_has_the_tool(tool: Path) -> None:
    pull = {"source": "pull", "repository": "r", "tag": "v0.33.0", "digest": DIGEST, "signature_key": PEM}
    assert run_module("engine_image_request", {**pull, "signature_tool": str(tool)})["signed"]
    answer = run_module("engine_image_request", {**pull, "signature_tool": "/nowhere/cosign"})
    assert [item["code"] for item in answer["refusals"]] == ["signature_tool_missing"]
