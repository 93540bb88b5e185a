"""How cosign is asked for the signature of an image, and what its answer means."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal

#: The variable of the environment in which cosign finds a key that is given as text, so that no file is written.
KEY_VARIABLE = "ENGINE_IMAGE_SIGNATURE_KEY"

_PEM = "-----BEGIN PUBLIC KEY-----"

# cosign's cmd/cosign/errors/exit_codes.go, the same in 2.5 and 3.1; signatures in newer formats fail with 1 and a text.
_NO_SIGNATURE = 10
_NO_MATCH = (12, 13)
_SAYS_NO_SIGNATURE = re.compile(r"no signatures found|no bundles? found", re.IGNORECASE)
_SAYS_NO_MATCH = re.compile(r"no matching signatures|invalid signature|none of the expected identities", re.IGNORECASE)


@dataclass(frozen=True)
class Signer:
    """Who must have signed, as the variables ``engine_image_signature_*`` say.

    Attributes:
        key: Public key as PEM text, or what else ``cosign verify --key`` takes: a path on the host, a KMS URI.
        identity: Identity in the certificate of a keyless signature.
        issuer: Who issued that identity, as a URL.
        without_transparency_log: Accept signatures that are in no transparency log.
        registry_ca: File with the certificates that the registry's own is checked against; empty is the system's.
    """

    key: str = ""
    identity: str = ""
    issuer: str = ""
    without_transparency_log: bool = False
    registry_ca: str = ""

    @property
    def wanted(self) -> bool:
        """Whether a signature is asked for at all."""
        return bool(self.key or self.identity or self.issuer)

    @property
    def name(self) -> str:
        """Who it is, in one line; another key is another name."""
        log = " without a transparency log" if self.without_transparency_log else ""
        if not self.key:
            return f"{self.identity} by {self.issuer}{log}"
        if self.key.lstrip().startswith(_PEM):
            return f"key sha256:{hashlib.sha256(self.key.strip().encode()).hexdigest()}{log}"
        return f"key {self.key}{log}"


#: No signature is asked for.
NO_SIGNER = Signer()


def command(tool: str, signer: Signer, reference: str) -> tuple[list[str], dict[str, str]]:
    """The command that verifies, and its additions to the environment.

    Args:
        tool: cosign.
        signer: Who must have signed.
        reference: ``repository@digest``.
    """
    environment = {}
    if signer.key.lstrip().startswith(_PEM):
        environment[KEY_VARIABLE] = signer.key.strip() + "\n"
        who = ["--key", f"env://{KEY_VARIABLE}"]
    elif signer.key:
        who = ["--key", signer.key]
    else:
        who = ["--certificate-identity", signer.identity, "--certificate-oidc-issuer", signer.issuer]
    log = ["--insecure-ignore-tlog=true"] if signer.without_transparency_log else []
    ca = ["--registry-cacert", signer.registry_ca] if signer.registry_ca else []
    return [tool, "verify", *who, *log, *ca, reference], environment


def refusals(
    signer: Signer, *, source: str, digest: str, archive_sha256: str, tool: str, tool_found: bool
) -> Iterator[Refusal]:
    """Every reason why a signature that is asked for could not be checked, so that none is skipped in silence.

    Args:
        signer: Who must have signed.
        source: ``pull``, ``load`` or ``build``.
        digest: ``engine_image_digest``.
        archive_sha256: ``engine_image_archive_sha256``.
        tool: ``engine_image_signature_tool``.
        tool_found: Whether the host has it.
    """
    if not signer.wanted:
        return
    if signer.key and (signer.identity or signer.issuer):
        yield Refusal(
            "signature_ambiguous",
            "engine_image_signature_key and engine_image_signature_identity or _issuer are set; one signer is checked.",
            "Keep the key, or the identity with its issuer.",
        )
    elif not signer.key and not (signer.identity and signer.issuer):
        yield Refusal(
            "signature_incomplete",
            f"engine_image_signature_identity is {signer.identity!r} and engine_image_signature_issuer is"
            f" {signer.issuer!r}; without both, any signer would be accepted.",
            "Set both, or engine_image_signature_key.",
        )
    if source == "load" and not archive_sha256:
        yield Refusal(
            "signature_not_in_archive",
            "a signature is asked for and engine_image_source is 'load'; signatures lie in registries alone.",
            "Set engine_image_archive_sha256 to the hash of an archive that was made where the signature was checked.",
        )
    if source != "pull":
        return
    if not digest:
        yield Refusal(
            "signature_without_digest",
            "a signature is asked for and engine_image_digest is empty, so what is checked need not be what is pulled.",
            "Set engine_image_digest to the digest that was signed.",
        )
    if not tool_found:
        yield Refusal(
            "signature_tool_missing",
            f"a signature is asked for and this host has no engine_image_signature_tool ({tool}).",
            "Install cosign on the host (Debian 13 has a package of that name; elsewhere take the binary that its"
            " project releases), or set engine_image_signature_tool to its path.",
        )


def judge(rc: int, output: str, signer: Signer, reference: str) -> Refusal | None:
    """The refusal for cosign's result; None if the signature is valid.

    Args:
        rc: Its exit status.
        output: Its error output.
        signer: The required signer.
        reference: ``repository@digest``.
    """
    if rc == 0:
        return None
    lines = [line for line in output.splitlines() if line.startswith("Error: ")] or output.splitlines()[-1:]
    detail = " ".join(lines).removeprefix("Error: ")[:500]
    if rc == _NO_SIGNATURE or _SAYS_NO_SIGNATURE.search(output):
        return Refusal(
            "signature_missing",
            f"{reference} has no signature in its registry; it must be signed by {signer.name}.",
            "Sign it (`cosign sign`), or correct engine_image_digest; to disable the check, empty"
            " engine_image_signature_key, _identity and _issuer.",
        )
    if rc in _NO_MATCH or _SAYS_NO_MATCH.search(output):
        return Refusal(
            "signature_wrong",
            f"{reference} has a signature, but none by {signer.name}: {detail}.",
            "Do not use the image before you know who signed it; then correct engine_image_digest,"
            " engine_image_signature_key, or engine_image_signature_identity and _issuer.",
        )
    return Refusal(
        "signature_unchecked",
        f"the signature of {reference} could not be checked: {detail}.",
        "Make sure that the host can reach the registry, logged in as root, and the transparency log; for signatures"
        " without such a log set engine_image_signature_without_transparency_log: true.",
    )
