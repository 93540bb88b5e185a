#!/usr/bin/python
"""Module: bring an image from an archive into the engine, or from the engine into an archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_image_archive
short_description: Load an image from a compressed archive, or save it to one
description:
  - Loads the archives of C(docker save), also compressed with zstd, which engines before 23 do not read by themselves.
  - Compares the archive with the engine first, so a second run loads and saves nothing.
options:
  path:
    description: The archive. Its name ends in C(.tar), C(.tar.gz) or C(.tar.zst), which also says how it is compressed.
    type: path
    required: true
  reference:
    description: Name and tag of the image.
    type: str
    required: true
  state:
    description: With V(loaded) the engine has the archive's image; with V(saved) the archive holds the engine's.
    type: str
    choices: [loaded, saved]
    default: loaded
  sha256:
    description: Hash that the archive must have, where O(state=loaded). Empty is not checked.
    type: str
    default: ""
  timeout:
    description: Seconds to wait for the engine to answer; it is silent while it unpacks.
    type: int
    default: 3600
requirements:
  - docker (Python library)
  - zstd, for archives that end in C(.zst)
attributes:
  check_mode:
    description: Compares and says whether something would be loaded or saved.
    support: full
  diff_mode:
    description: An image is not text.
    support: none
author:
  - The project's contributors (!UNKNOWN)
"""

EXAMPLES = r"""
- name: Load the image that was built elsewhere
  inference.vllm.engine_image_archive:
    path: /srv/vllm-cpu.tar.zst
    reference: localhost/vllm-cpu:0.32.0-0123456789ab

- name: Save it for other hosts
  inference.vllm.engine_image_archive:
    path: /srv/vllm-cpu.tar.zst
    reference: localhost/vllm-cpu:0.32.0-0123456789ab
    state: saved
"""

RETURN = r"""
image_id:
  description: The engine's identifier of the image. In check mode, where it would be loaded, what it will probably be.
  returned: success
  type: str
size:
  description: Size of the archive in bytes.
  returned: where there is an archive
  type: int
"""

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from ansible_collections.inference.vllm.plugins.module_utils.image.archive import (
    ArchivedImage,
    ArchiveError,
    find,
    images_of,
    reading,
    same_image,
    sha256_of,
    write,
)

try:
    import docker
    from docker.errors import DockerException, ImageNotFound

    DOCKER_ERROR = None
except ImportError:
    DOCKER_ERROR = traceback.format_exc()


_CHUNK = 8 << 20


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "reference": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["loaded", "saved"], "default": "loaded"},
            "sha256": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    if DOCKER_ERROR:
        module.fail_json(msg=missing_required_lib("docker"), exception=DOCKER_ERROR)
    path, reference = Path(module.params["path"]), module.params["reference"]
    act = {"loaded": _load, "saved": _save}[module.params["state"]]
    try:
        client = docker.from_env(timeout=module.params["timeout"])
        result = act(module, client, path, reference)
    except ArchiveError as error:
        module.fail_json(msg=f"{path} was not used: {error}.")
    except OSError as error:
        module.fail_json(msg=f"{path}: {error}. Fix: free space or correct path and permissions, then run again.")
    except DockerException as error:
        module.fail_json(msg=f"The Docker engine could not have {reference} {module.params['state']}: {error}")
    module.exit_json(**result, **({"size": path.stat().st_size} if path.exists() else {}))


def _load(module: AnsibleModule, client: Any, path: Path, reference: str) -> dict[str, Any]:
    expected = module.params["sha256"]
    if not path.is_file():
        raise ArchiveError("there is no such file on this host")
    if expected and (actual := sha256_of(path)) != expected:
        raise ArchiveError(f"its sha256 is {actual}, and {expected} was expected; copy it again")
    archived = _archived(path, reference)
    present = _inspect(client, reference)
    if present and same_image(archived, present):
        return {"changed": False, "image_id": present["Id"]}
    if module.check_mode:
        return {"changed": True, "image_id": min(archived.ids)}
    with reading(path) as stream:
        # In pieces, not as a file: its size on disk would be sent as the length, and it may be compressed.
        client.images.load(iter(lambda: stream.read(_CHUNK), b""))
    loaded = _inspect(client, reference)
    if loaded is None or not same_image(archived, loaded):
        raise ArchiveError(f"the engine took it, but has another image as {reference} or none")
    return {"changed": True, "image_id": loaded["Id"]}


def _save(module: AnsibleModule, client: Any, path: Path, reference: str) -> dict[str, Any]:
    present = _inspect(client, reference)
    if present is None:
        if module.check_mode:
            return {"changed": True, "image_id": ""}
        raise ArchiveError(f"the engine has no image {reference}")
    if path.is_file() and _holds(path, reference, present):
        return {"changed": False, "image_id": present["Id"]}
    if not module.check_mode:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The end of the name says how to compress, so what marks it as unfinished stands in front.
        unfinished = path.with_name(f".unfinished-{path.name}")
        try:
            write(unfinished, _exported(client, reference))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    return {"changed": True, "image_id": present["Id"]}


def _exported(client: Any, reference: str) -> Iterator[bytes]:
    """The image as the engine exports it. By name, else the archive would hold an image without one."""
    return client.images.get(reference).save(chunk_size=_CHUNK, named=reference)  # type: ignore[no-any-return]


def _holds(path: Path, reference: str, present: dict[str, Any]) -> bool:
    try:
        return same_image(_archived(path, reference), present)
    except ArchiveError:
        return False


def _archived(path: Path, reference: str) -> ArchivedImage:
    with reading(path) as stream:
        return find(images_of(stream), reference)


def _inspect(client: Any, reference: str) -> dict[str, Any] | None:
    try:
        return dict(client.images.get(reference).attrs)
    except ImageNotFound:
        return None


if __name__ == "__main__":
    main()
