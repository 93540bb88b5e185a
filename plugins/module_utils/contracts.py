"""The files between the steps of a deployment, as types: one writer and one reader each, and a schema version.

=================  ==========================================  ==============================================
File               Written by                                  Read by
=================  ==========================================  ==============================================
``plan.json``      module vram_plan, ``bin/vram-plan --json``  role vllm_service, checks, report
``image.json``     module engine_image_record                  role vllm_service, role engine_image, report
``lock.json``      module hf_snapshot                          module hf_snapshot, role vllm_service
``manifest.json``  module release                              checks, report, rollback, spare engine
``verdict.json``   module verdict                              module verdict, report, rollback, proof record
=================  ==========================================  ==============================================

The result files of the checks extend :class:`Verdict`; they are in ``checks/results.py``.

A file of an older schema is read where :attr:`Contract.UPGRADES` says how, and refused by name where it does not. A
file of a newer schema is always refused. ``docs/schemas/`` has the JSON Schemas, which are made from these types.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ansible_collections.inference.vllm.plugins.module_utils.refusal import Refusal, RefusalError

if TYPE_CHECKING:
    # Hosts may have Python 3.10, whose module typing does not have it.
    from typing import Self

VERSION_KEY = "schema_version"
Value = TypeVar("Value")
Readable = TypeVar("Readable", bound="Contract")
Scalar = str | int | float | bool | None

Severity = Literal["error", "warning"]
ImageSource = Literal["pull", "load", "build"]
#: Takes the data of one schema version to the next one.
Upgrade = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Contract:
    """What the types of files have in common.

    A field that has its default None is left out of the file, unless it is marked with ``_WRITTEN``.

    Attributes:
        SCHEMA: Version that is written.
        REMEDY: What to do about a file that cannot be read.
        UPGRADES: For each older version that can be read, the function that leads to the next one. Files without a
            version have version 0.
        DERIVED: Properties that the file holds as well, for readers without this code. They follow from the fields, so
            a file in which they differ is refused.
    """

    SCHEMA: ClassVar[int] = 1
    REMEDY: ClassVar[str]
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {}
    DERIVED: ClassVar[tuple[str, ...]] = ()

    def as_dict(self) -> dict[str, Any]:
        """The file as plain data for JSON: its schema version, what is derived from the fields, the fields."""
        return {
            VERSION_KEY: self.SCHEMA,
            **{name: getattr(self, name) for name in self.DERIVED},
            **_encode_fields(self),
        }

    def to_json(self) -> str:
        """The text of the file; equal contents give equal texts."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, data: object, origin: str) -> Self:
        """Read plain data.

        Args:
            data: The decoded JSON.
            origin: Path of the file, for messages.

        Raises:
            RefusalError: ``broken_input``, ``older_input`` or ``newer_input``; names the file and the field.
        """
        try:
            return _read(cls, data)
        except _UnreadableError as error:
            raise cls._refused(error.code, f"{origin}: {error}") from error

    @classmethod
    def from_json(cls, text: str | None, origin: str) -> Self:
        """Read the text of a file, None where there is no such file.

        Raises:
            RefusalError: ``missing_input``, or as :meth:`from_dict`.
        """
        if text is None:
            raise cls._refused("missing_input", f"{origin} does not exist on the host")
        try:
            data = json.loads(text)
        except ValueError as error:
            raise cls._refused("broken_input", f"{origin} holds no JSON: {error}") from error
        return cls.from_dict(data, origin)

    @classmethod
    def _refused(cls, code: str, problem: str) -> RefusalError:
        return RefusalError(Refusal(code, f"{problem}.", cls.REMEDY))


#: Marks a field with the default None that is null in the file instead of left out.
_WRITTEN = {"written": True}


@dataclass(frozen=True)
class PlannedGpu:
    """One GPU that the plan is about.

    Attributes:
        index: Its number on the host, in the driver's order; None where no driver listed it.
        uuid: Its UUID, ``GPU-...``; None where no driver listed it.
        name: Its name in the GPU table.
        total_gib: Memory that CUDA gives a process, in GiB (2^30 bytes).
        compute_capability: Such as 8.9.
        fp8: How FP8 weights in blocks are computed: ``native`` or ``marlin``.
        peer_to_peer: Whether GPUs of this kind read each other's memory.
        selected: Whether the engine of this plan runs on it.
    """

    index: int | None
    uuid: str | None
    name: str
    total_gib: float
    compute_capability: float
    fp8: Literal["native", "marlin"]
    peer_to_peer: bool
    selected: bool


@dataclass(frozen=True)
class PlannedEngine:
    """The version of vLLM that the plan is for.

    Attributes:
        version: ``major.minor.patch``.
        calibrated: Whether boots of this version were measured.
    """

    version: str
    calibrated: bool


def _plan_from_0(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Plans without a version had one row for all GPUs, ``{name, count, ...}``, and no UUIDs."""
    rows = [
        {
            **{key: row[key] for key in ("name", "total_gib", "compute_capability", "fp8", "peer_to_peer")},
            "index": None,
            "uuid": None,
            "selected": number < int(data["flags"].get("tensor-parallel-size", 1)),
        }
        for row in data["gpus"]
        for number in range(row["count"])
    ]
    return {**data, "gpus": rows}


@dataclass(frozen=True)
class PlanFile(Contract):
    """``plan.json``: what the planner decided for one model on one host.

    Attributes:
        accelerator: What the engine computes on.
        model: Name of the entry in the catalogue.
        gpus: One row for each GPU; empty on a CPU.
        starts: Whether vLLM's own check at the start passes.
        survives: Whether memory is left when the largest permitted images arrive together.
        kv_cache_tokens: Tokens that the KV cache holds.
        max_model_len: Tokens of the longest request.
        flags: Flags of vLLM, by name without the dashes.
        environment: Environment variables of the engine.
        refusals: Reasons against the plan; empty where it may be used.
        engine: Version of vLLM that was planned for; None on a CPU.
        per_gpu_gib: Where the memory of one GPU goes, in GiB by term; None on a CPU.
        memory_gib: Where the memory of the host goes, in GiB by term; None on GPUs.
        concurrency: Requests of the longest length that the KV cache holds at once.
        alternatives: Other models or settings that were tried, each with ``fits`` and ``why``.
        closest: Where the requirements cannot be met, the plan for this model that comes closest.
    """

    REMEDY: ClassVar[str] = "Run playbooks/plan.yml with -e plan_write=true, or deploy.yml: both write it again."
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {0: _plan_from_0}

    accelerator: Literal["nvidia", "cpu"]
    model: str
    gpus: tuple[PlannedGpu, ...]
    starts: bool
    survives: bool
    kv_cache_tokens: int
    max_model_len: int
    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    refusals: tuple[Refusal, ...] = ()
    engine: PlannedEngine | None = None
    per_gpu_gib: Mapping[str, float] | None = None
    memory_gib: Mapping[str, float] | None = None
    concurrency: float | None = None
    alternatives: tuple[Mapping[str, Any], ...] = ()
    closest: Mapping[str, Any] | None = None

    @property
    def selected(self) -> tuple[PlannedGpu, ...]:
        """The GPUs that the engine runs on, in order."""
        return tuple(gpu for gpu in self.gpus if gpu.selected)

    @property
    def spare(self) -> tuple[PlannedGpu, ...]:
        """The other GPUs of the host that are known by UUID."""
        return tuple(gpu for gpu in self.gpus if not gpu.selected and gpu.uuid)


@dataclass(frozen=True)
class ImageFile(Contract):
    """``image.json``: the engine's image as it is on the host.

    Attributes:
        reference: What a container is started from.
        id: The Docker engine's own identifier, ``sha256:...``; empty where it is not known.
        digest: Digest in a registry, ``sha256:...``; empty for an image that was loaded or built.
        source: Where it came from.
        vllm_version: Version of vLLM in it, ``major.minor.patch``.
        base: Reference of the image below, where extra packages were added.
        base_id: Identifier of that image.
        packages: The extra packages, each ``name==version``, separated by spaces.
    """

    REMEDY: ClassVar[str] = "Run playbooks/serve.yml or deploy.yml: role engine_image writes it again."
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {0: dict}

    reference: str
    id: str
    digest: str
    source: ImageSource
    vllm_version: str
    base: str | None = None
    base_id: str | None = None
    packages: str | None = None


@dataclass(frozen=True)
class LockedFile:
    """One file of a model.

    Attributes:
        path: Name inside the repository, with ``/``.
        size: In bytes.
        sha256: Of the content, 64 hexadecimal digits.
    """

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class LockFile(Contract):
    """``lock.json``: the exact files of one commit of a model's repository.

    Attributes:
        repo: ``owner/name`` on the hub.
        revision: Branch, tag or commit that was asked for.
        commit: The commit that it was, 40 hexadecimal digits.
        files: All files, by name.
    """

    REMEDY: ClassVar[str] = "Write the lock again with playbooks/lock_weights.yml, or restore it from version control."
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {0: dict}

    repo: str
    revision: str
    commit: str
    files: tuple[LockedFile, ...]


@dataclass(frozen=True)
class ReleasedModel:
    """The model of a release.

    Attributes:
        name: Name of the entry in the catalogue.
        repo: ``owner/name`` on the hub.
        revision: Branch, tag or commit that was asked for.
        commit: The commit that it was.
    """

    name: str
    repo: str
    revision: str
    commit: str


@dataclass(frozen=True)
class ReleasedFile:
    """One file of a release.

    Attributes:
        sha256: Of the content, 64 hexadecimal digits.
        mode: Permission bits as four octal digits, such as ``0644``.
    """

    sha256: str
    mode: str


@dataclass(frozen=True)
class ManifestFile(Contract):
    """``manifest.json``: what a release is. Module release adds the last three fields.

    Attributes:
        accelerator: What the engine computes on.
        model: The model.
        image: The engine's image.
        plan: The plan that the flags come from.
        flags: All flags of vLLM, by name without the dashes.
        environment: Environment variables of the container.
        rendered_by: Name and version of the collection that made the release.
        id: Identifier of the release, which is the name of its folder.
        files: The other files of the release, by name.
        checksum: SHA-256 of the manifest without this field.
    """

    REMEDY: ClassVar[str] = "Deploy again with deploy.yml: it writes a release anew."
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {0: dict}

    accelerator: Literal["nvidia", "cpu"]
    model: ReleasedModel
    image: ImageFile
    plan: PlanFile
    flags: Mapping[str, Any]
    environment: Mapping[str, str]
    rendered_by: str
    id: str | None = None
    files: Mapping[str, ReleasedFile] = field(default_factory=dict)
    checksum: str | None = None


@dataclass(frozen=True)
class Check:
    """One property that was checked.

    Attributes:
        code: What was checked, stable and in snake_case, such as ``reject_wrong_key``.
        ok: True only if the check ran and found what is required; a check that could not run is not ok.
        severity: An ``error`` decides the verdict, a ``warning`` is only shown.
        message: One sentence for people; for a failure it starts with the name of the failure.
        value: What was found: an answer, a status or a measured value.
        limit: What the value is compared with.
        unit: Unit of value and limit, such as ``GiB`` (2^30 bytes) or ``http status``.
        seconds: Duration of the check.
        runbook: Name of the failure, which is also the name of its runbook; null if ok.
    """

    code: str
    ok: bool
    severity: Severity = "error"
    message: str = ""
    value: Scalar = field(default=None, metadata=_WRITTEN)
    limit: Scalar = field(default=None, metadata=_WRITTEN)
    unit: str | None = field(default=None, metadata=_WRITTEN)
    seconds: float = 0.0
    runbook: str | None = field(default=None, metadata=_WRITTEN)

    @property
    def decides(self) -> bool:
        """Whether the verdict depends on this check."""
        return self.severity == "error"


@dataclass(frozen=True)
class Verdict(Contract):
    """``verdict.json``: all checks of one release, and whether the release is good.

    Attributes:
        release: Identifier of the release that was checked.
        checks: All checks, in the order in which they ran.
        engine: What the engine reported about itself: ``version``, ``model``, ``max_model_len``, ``base_url``.
        gpus: One mapping for each GPU whose memory was read; empty on a CPU host.
        started: Start of the first check, UTC, ISO 8601; empty if nothing ran.
        finished: End of the last check, UTC, ISO 8601; empty if nothing ran.
    """

    REMEDY: ClassVar[str] = "Run playbooks/verify.yml: it runs the checks and writes the file again."
    UPGRADES: ClassVar[Mapping[int, Upgrade]] = {0: dict}
    DERIVED: ClassVar[tuple[str, ...]] = ("ok",)

    release: str
    checks: tuple[Check, ...] = ()
    engine: Mapping[str, Any] = field(default_factory=dict)
    gpus: tuple[Mapping[str, Any], ...] = ()
    started: str = ""
    finished: str = ""

    @property
    def ok(self) -> bool:
        """Whether at least one check with severity error ran, and all of them are ok."""
        deciding = [check for check in self.checks if check.decides]
        return bool(deciding) and all(check.ok for check in deciding)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks with severity error that are not ok."""
        return tuple(check for check in self.checks if check.decides and not check.ok)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks with severity warning that are not ok."""
        return tuple(check for check in self.checks if not check.decides and not check.ok)


#: The contracts of this module by the name of the file; ``checks/registry.py`` has those of the result files.
CONTRACTS: Mapping[str, type[Contract]] = {
    "plan.json": PlanFile,
    "image.json": ImageFile,
    "lock.json": LockFile,
    "manifest.json": ManifestFile,
    "verdict.json": Verdict,
}


class _UnreadableError(Exception):
    """Data does not hold what its contract says; the text names the field."""

    def __init__(self, message: str, code: str = "broken_input") -> None:
        super().__init__(message)
        self.code = code


def _encode(value: Any) -> Any:
    if isinstance(value, Contract):
        return value.as_dict()
    if is_dataclass(value):
        return _encode_fields(value)
    if isinstance(value, Mapping):
        return {str(key): _encode(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(each) for each in value]
    return value


def _encode_fields(value: Any) -> dict[str, Any]:
    pairs = ((each, getattr(value, each.name)) for each in fields(value))
    return {each.name: _encode(held) for each, held in pairs if held is not None or _has_null(each)}


def _has_null(each: Field[Any]) -> bool:
    """Whether a field that is None is null in the file, and not left out."""
    return each.default is MISSING or _WRITTEN.items() <= each.metadata.items()


def _read(kind: type[Readable], data: object, where: str = "") -> Readable:
    """A contract from plain data, brought to the schema version that is read today."""
    body = dict(_mapping(data, where))
    version = _checked(_WHOLE, body.pop(VERSION_KEY, 0), _joined(where, VERSION_KEY))
    if version > kind.SCHEMA:
        known = f"this version of inference.vllm reads up to {kind.SCHEMA}"
        raise _UnreadableError(f"{_joined(where, VERSION_KEY)} is {version}; {known}", "newer_input")
    for number in range(version, kind.SCHEMA):
        if number not in kind.UPGRADES:
            known = f"this version of inference.vllm reads {kind.SCHEMA}"
            raise _UnreadableError(f"{_joined(where, VERSION_KEY)} is {version}; {known}", "older_input")
        try:
            body = dict(kind.UPGRADES[number](body))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"{_joined(where, VERSION_KEY)} is {number}, which does not fit: {type(error).__name__} {error}"
            raise _UnreadableError(problem) from error
    derived = {name: body.pop(name) for name in kind.DERIVED if name in body}
    contract = _decode_fields(kind, body, where)
    for name in kind.DERIVED:
        if derived.get(name) != getattr(contract, name):
            stated = f"is {derived[name]!r}" if name in derived else "is missing"
            raise _UnreadableError(f"{_joined(where, name)} {stated}, but must be {getattr(contract, name)!r}")
    return contract


def _decode_fields(kind: type[Value], data: Mapping[str, Any], where: str) -> Value:
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    required = {name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING}
    for problem, names in (("unknown", set(data) - set(known)), ("missing", required - set(data))):
        if names:
            raise _UnreadableError(f"{problem} fields: {', '.join(_joined(where, name) for name in sorted(names))}")
    hints = get_type_hints(kind)
    return kind(**{name: _decode(hints[name], value, _joined(where, name)) for name, value in data.items()})


def _decode(kind: Any, value: Any, where: str) -> Any:
    """A value of the type that an annotation names."""
    origin, of = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(of, value, where)
    if origin is tuple:
        rows = _checked(_LIST, value, where)
        return tuple(_decode(of[0], row, f"{where}[{number}]") for number, row in enumerate(rows))
    if origin is Mapping:
        return {str(key): _decode(of[1], each, _joined(where, key)) for key, each in _mapping(value, where).items()}
    if isinstance(kind, type) and issubclass(kind, Contract):
        return _read(kind, value, where)
    if isinstance(kind, type) and is_dataclass(kind):
        return _decode_fields(kind, _mapping(value, where), where)
    return _scalar(kind, value, where)


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return _checked((f"one of {', '.join(map(str, choices))}", lambda given: given in choices), value, where)
    checked = _checked(_SCALARS[kind], value, where)
    return float(checked) if kind is float else checked


def _decode_union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    """A value of one of several types: one type or None, or several scalar types."""
    others = [kind for kind in kinds if kind is not type(None)]
    if value is None and len(others) < len(kinds):
        return None
    if len(others) == 1:
        return _decode(others[0], value, where)
    rules = [_SCALARS[kind] for kind in others]
    words = " or ".join(wanted for wanted, _ in rules)
    return _checked((words, lambda given: any(fits(given) for _, fits in rules)), value, where)


#: What a value must be, in words, and whether it is.
_Rule = tuple[str, Callable[[Any], bool]]
_LIST: _Rule = ("a list", lambda value: isinstance(value, (list, tuple)))
_MAPPING: _Rule = ("a mapping", lambda value: isinstance(value, Mapping))
_WHOLE: _Rule = ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool))
_SCALARS: Mapping[Any, _Rule] = {
    str: ("text", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: _WHOLE,
    float: ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
}


def _checked(rule: _Rule, value: Any, where: str) -> Any:
    wanted, fits = rule
    if not fits(value):
        raise _UnreadableError(f"{where or 'the content'} is {value!r}, but must be {wanted}")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    return dict(_checked(_MAPPING, value, where))


def _joined(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)
