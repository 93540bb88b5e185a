"""The gateway's folder: sets of files that HAProxy accepted, and a link to the current set.

``<folder>/sets/<set>/`` holds a configuration with all its files: key digests, the engine's key, the certificate.
HAProxy checks a new set before ``<folder>/current`` points to it, by one rename. A refused set is removed, and the
running gateway and its configuration do not change.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from ansible_collections.inference.vllm.plugins.module_utils.gateway import design as gateway
from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError
from ansible_collections.inference.vllm.plugins.module_utils.service.api_keys import reason_invalid_for_engine

#: Placeholder in the checking command for the path of the configuration.
CONFIG_PLACEHOLDER = "@CONFIG@"
FILE_MODE = 0o600
FOLDER_MODE = 0o700
#: Number of earlier sets that are kept for diagnosis.
KEEP = 1

_CHECK_SECONDS = 60
_SHOWN_DIGITS = 12


class Store:
    """The sets below one folder, owned by one user."""

    def __init__(self, folder: Path, owner: int = 0, group: int = 0) -> None:
        """Use a folder, which need not exist yet."""
        self.sets = folder / "sets"
        self.link = folder / "current"
        self.owner = owner
        self.group = group

    def files(self) -> dict[str, str]:
        """Texts of the current set by name; empty if there is none."""
        if not self.link.is_dir():
            return {}
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(self.link.iterdir())}

    def holds(self, files: Mapping[str, str]) -> bool:
        """Whether the current set has exactly these files, readable by their owner only."""
        return self.files() == dict(files) and not any(self._is_open(path) for path in self.link.iterdir())

    def write(self, files: Mapping[str, str], check: Sequence[str]) -> None:
        """Write a set, check it, make it current, and remove the oldest ones.

        Args:
            files: Texts by plain file name.
            check: Command that succeeds if ``@CONFIG@`` is a valid configuration.

        Raises:
            RefusalError: The command failed; nothing has changed.
        """
        self.sets.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        os.chown(self.sets, self.owner, self.group)
        new = Path(tempfile.mkdtemp(prefix="set-", dir=self.sets))
        try:
            os.chown(new, self.owner, self.group)
            for name, text in files.items():
                self._write_file(new / name, text)
            refused = complaint(check, new / gateway.CONFIG_FILE)
            if refused:
                raise RefusalError(_config_refused(refused))
            self._point(new)
        except BaseException:
            shutil.rmtree(new)
            raise
        self._prune(new)

    def _write_file(self, path: Path, text: str) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "w", encoding="utf-8") as file:
            os.fchown(file.fileno(), self.owner, self.group)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _point(self, target: Path) -> None:
        part = self.link.with_name(".current.new")
        part.unlink(missing_ok=True)
        part.symlink_to(target.relative_to(self.link.parent))
        part.replace(self.link)

    def _prune(self, newest: Path) -> None:
        others = [path for path in self.sets.iterdir() if path != newest]
        for path in sorted(others, key=lambda path: -path.stat().st_mtime_ns)[KEEP:]:
            shutil.rmtree(path)

    def _is_open(self, path: Path) -> bool:
        found = path.stat()
        return stat.S_IMODE(found.st_mode) != FILE_MODE or (found.st_uid, found.st_gid) != (self.owner, self.group)


def complaint(check: Sequence[str], config: Path) -> str:
    """Output of a checking command that refuses a configuration; empty if it accepts it."""
    command = [part.replace(CONFIG_PLACEHOLDER, str(config)) for part in check]
    try:
        done = subprocess.run(  # noqa: S603 - the command is the role's
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]} cannot be started: {error}"
    return "" if done.returncode == 0 else done.stdout.strip() or f"{command[0]} ended with {done.returncode}"


def assemble(config: str, keys_map: str, engine_key: str, certificate: str, private_key: str) -> dict[str, str]:
    """The files of a set.

    Raises:
        RefusalError: The engine's key is invalid, or a client of ``keys_map`` has the same key.
    """
    key = engine_key.strip()
    if reason := reason_invalid_for_engine(key):
        message = f"The engine's key is not accepted: {reason}."
        raise RefusalError(Refusal("bad_engine_key", message, "Run role vllm_service, which generates one."))
    name = gateway.names_in(keys_map).get(gateway.digest(key))
    if name:
        message = f"gateway_keys: the key of {name} is the engine's key, which allows more than the gateway."
        raise RefusalError(Refusal("engine_key_given_out", message, "Set another key for that name."))
    files = {
        gateway.CONFIG_FILE: config,
        gateway.KEYS_FILE: keys_map,
        gateway.ENGINE_KEY_FILE: f"engine {key}\n",
    }
    if certificate:
        files[gateway.TLS_FILE] = f"{certificate.rstrip()}\n{private_key.rstrip()}\n"
    files[gateway.CONFIG_FILE] = config.replace(gateway.SET_ID, _set_id(files))
    return files


def _set_id(files: Mapping[str, str]) -> str:
    text = json.dumps(files, sort_keys=True)
    return f"set-{sha256(text.encode()).hexdigest()[:_SHOWN_DIGITS]}"


def fingerprint(pem: str) -> str:
    """SHA-256 of the first certificate of a text, as ``openssl x509 -fingerprint -sha256`` writes it.

    Raises:
        RefusalError: The text has no certificate.
    """
    begin, end = pem.find(ssl.PEM_HEADER), pem.find(ssl.PEM_FOOTER)
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(ssl.PEM_FOOTER)])
    except ValueError as error:
        message = f"gateway_tls_certificate has no certificate: {error}."
        raise RefusalError(Refusal("bad_certificate", message, "Set it to a file in PEM format.")) from error
    digits = sha256(der).hexdigest().upper()
    return ":".join(digits[index : index + 2] for index in range(0, len(digits), 2))


def shown(files: Mapping[str, str]) -> dict[str, str]:
    """The files of a set for display: secrets as the first digits of their digest."""
    views = {name: text for name, text in files.items() if name == gateway.CONFIG_FILE}
    if gateway.KEYS_FILE in files:
        pairs = gateway.names_in(files[gateway.KEYS_FILE])
        lines = sorted(f"{name} sha256:{digest[:_SHOWN_DIGITS].lower()}\n" for digest, name in pairs.items())
        views[gateway.KEYS_FILE] = "".join(lines)
    for name in sorted(set(files) - set(views)):
        views[name] = f"sha256:{sha256(files[name].encode()).hexdigest()[:_SHOWN_DIGITS]}\n"
    return views


def _config_refused(output: str) -> Refusal:
    message = f"HAProxy refuses the new configuration; the old one is unchanged. Its output:\n{output}\n"
    return Refusal("gateway_config_refused", message, "Correct the settings that these lines name and run again.")
