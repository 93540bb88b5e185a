"""Docker's daemon.json: merging keys into it, and restoring it when Docker does not start with it.

A change can be reverted until Docker runs with it: the first write keeps the old file as ``daemon.json.last-good``,
further writes do not change that copy, and once Docker runs with the new file the copy becomes ``daemon.json.bak``.
While ``.last-good`` exists, Docker has not read the new file yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

NOTHING, RELOAD, RESTART = "none", "reload", "restart"

#: Keys that dockerd reads again on SIGHUP; it leaves a key alone that is no longer in the file.
#: Source: the list above ``Daemon.Reload`` in moby's daemon/reload.go, and "Configuration reload behavior" in dockerd's
#: manual.
RELOADABLE = frozenset(
    {
        "allow-nondistributable-artifacts",
        "debug",
        "default-runtime",
        "features",
        "insecure-registries",
        "labels",
        "live-restore",
        "max-concurrent-downloads",
        "max-concurrent-uploads",
        "max-download-attempts",
        "registry-mirrors",
        "runtimes",
        "shutdown-timeout",
    }
)

#: Mappings whose values dockerd takes as text only, also where they are numbers.
TEXT_VALUES = frozenset({"log-opts"})


def parse(text: str, name: str) -> dict[str, Any]:
    """The keys of a daemon.json.

    Args:
        text: The file; blank counts as no keys, as it does for dockerd.
        name: The file's path, for the message.

    Raises:
        RefusalError: ``invalid_daemon_json`` with line and column, or with the key that is there twice.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        return {}
    try:
        data = json.loads(text, object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _invalid(name, f"{error.msg} in line {error.lineno}, column {error.colno}") from error
    except ValueError as error:
        raise _invalid(name, str(error)) from error
    if not isinstance(data, dict):
        raise _invalid(name, "the outermost value is not an object")
    return data


def merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Put keys into a configuration and keep all others.

    Objects are merged at every depth, so that an entry of ``runtimes`` leaves the other entries alone; lists and plain
    values are replaced. ``log-opts`` belong to their ``log-driver``: with another driver they are replaced whole,
    because dockerd refuses options that a driver does not know.
    """
    base = dict(current)
    if "log-driver" in wanted and wanted["log-driver"] != base.get("log-driver", wanted["log-driver"]):
        base.pop("log-opts", None)
    return _merge(base, {key: _as_text(value) if key in TEXT_VALUES else value for key, value in wanted.items()})


def without(current: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Take keys out of a configuration.

    Args:
        current: The configuration.
        keys: Names; ``runtimes/nvidia`` is the entry ``nvidia`` of ``runtimes``. An object that becomes empty by this
            goes as well. A key that is not there is no error.
    """
    result = dict(current)
    for key in keys:
        first, _, rest = key.partition("/")
        inner = result.get(first)
        if not rest:
            result.pop(first, None)
        elif isinstance(inner, Mapping) and (left := without(inner, [rest])) != inner:
            result.pop(first) if not left else result.update({first: left})
    return result


def as_text(config: Mapping[str, Any]) -> str:
    """The file's text."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Outermost keys that differ; 1 and true are different values here, as they are for dockerd."""
    return sorted(key for key in before.keys() | after.keys() if _canonical(before, key) != _canonical(after, key))


def action(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The action that makes dockerd use `after`: none, reload or restart."""
    keys = changed_keys(before, after)
    if not keys:
        return NOTHING
    return RELOAD if all(key in RELOADABLE and key in after for key in keys) else RESTART


def reason_in(log: str, limit: int = 3) -> str:
    """Why dockerd stopped, from its log: the lines that say so, at most `limit`, else the last ones."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if "level=fatal" in line
        or line.startswith(("failed to ", "unable to "))
        or "level=error" in line
        or "unknown flag" in line
    ]
    return "\n".join(list(dict.fromkeys(telling or lines))[-limit:])


def runs_otherwise(
    run: Callable[[list[str]], tuple[int, str, str]], wanted: Mapping[str, Any], pidfile: str | None, service: str
) -> bool:
    """Whether Docker runs with another environment than required.

    Args:
        run: Runs a command; returns its exit status, output and errors.
        wanted: Variables that Docker must have been started with; an empty one must not be set.
        pidfile: File with Docker's process id; without it, systemd is queried.
        service: Name of systemd's unit.
    """
    if not wanted:
        return False
    try:
        running = environment_of(Path(f"/proc/{_pid(run, pidfile, service)}/environ").read_bytes())
    except (OSError, ValueError):
        return False
    return any(running.get(name, "") != str(value) for name, value in wanted.items())


def environment_of(environ: bytes) -> dict[str, str]:
    """Variables of a process, from its /proc/PID/environ."""
    pairs = (entry.partition("=") for entry in environ.decode(errors="surrogateescape").split("\0"))
    return {name: value for name, sign, value in pairs if sign}


class ConfigFile:
    """A daemon.json with its backup files."""

    def __init__(self, path: Path) -> None:
        """Look at `path`; it need not exist. A symbolic link is followed."""
        self.path = path.resolve()
        self.last_good = self.path.with_name(f"{self.path.name}.last-good")
        self.backup = self.path.with_name(f"{self.path.name}.bak")

    def text(self) -> str:
        """The file's text, empty where there is none."""
        return self._read(self.path)

    def read(self) -> dict[str, Any]:
        """The file's keys.

        Raises:
            RefusalError: ``invalid_daemon_json``.
        """
        return parse(self.text(), str(self.path))

    def pending(self) -> bool:
        """Was the file changed since Docker last started or read it?"""
        return self.last_good.exists()

    def proven(self) -> dict[str, Any]:
        """Keys of the file that Docker last ran with."""
        return parse(self._read(self.last_good), str(self.last_good)) if self.pending() else self.read()

    def write(self, text: str, copy: Callable[[str, str], Any], replace: Callable[[str, str], Any]) -> None:
        """Write the file in one step, and keep what Docker ran with until now.

        Args:
            text: New text.
            copy: Copies a file with mode and owner.
            replace: Moves a file over another in one step; mode and owner stay those of the file that was there.

        Raises:
            OSError: The disk is full or the folder cannot be written; the file is untouched.
        """
        self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not self.pending():
            kept = self.last_good.with_name(f".{self.last_good.name}")
            if self.path.exists():
                copy(str(self.path), str(kept))
            else:
                kept.write_text("", encoding="utf-8")
            kept.replace(self.last_good)
        part = self.path.with_name(f".{self.path.name}.new")
        part.unlink(missing_ok=True)
        # Not readable by others until it has the mode of the file that it replaces.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        replace(str(part), str(self.path))

    def accept(self) -> None:
        """Docker runs with the file: what it ran with before becomes the backup."""
        if self._read(self.last_good).strip():
            self.last_good.replace(self.backup)
        else:
            self.last_good.unlink(missing_ok=True)

    def restore(self) -> None:
        """Put back what Docker last ran with, which may be no file at all."""
        if self._read(self.last_good).strip():
            self.last_good.replace(self.path)
        elif self.pending():
            self.path.unlink(missing_ok=True)
            self.last_good.unlink()

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError as error:
            raise _invalid(str(path), f"it is not UTF-8 at byte {error.start}") from error


def _pid(run: Callable[[list[str]], tuple[int, str, str]], pidfile: str | None, service: str) -> int:
    """Docker's process; ValueError or OSError where there is none."""
    if pidfile:
        pid = int(Path(pidfile).read_text(encoding="utf-8"))
        # The file may be stale, and the number may belong to another process.
        return pid if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == "dockerd" else 0
    return int(run(["systemctl", "show", "--property=MainPID", "--value", service])[1])


def _invalid(name: str, reason: str) -> RefusalError:
    return RefusalError(
        Refusal(
            "invalid_daemon_json",
            f"{name} is not valid: {reason}. It was not changed.",
            "Correct the file, or move it away; then run again.",
        )
    )


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def _merge(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(current)
    for key, value in wanted.items():
        inner = result.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        result[key] = _merge(inner, value) if both else value  # type: ignore[arg-type]
    return result


def _as_text(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _canonical(data: Mapping[str, Any], key: str) -> str:
    return json.dumps(data[key], sort_keys=True) if key in data else ""
