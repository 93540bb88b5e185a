"""State of a host after good and bad deployments with role vllm_service."""

from __future__ import annotations

import base64
import json
import struct
import zlib

import pytest

HOME = "/opt/vllm"
CONTAINER = "vllm-vllm-1"


def red_png() -> str:
    """A red image of 32 x 32 pixels as a data: URL."""
    return png(32, 32)


def png(width: int, height: int) -> str:
    """A red image as a data: URL. The pixel data of a large image is truncated to 4 MiB of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\xff\0\0" * width) * height if width * height < 2**20 else b"\0" * 2**22
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


@pytest.fixture(scope="module")
def inspected(host):
    return json.loads(host.check_output(f"docker inspect {CONTAINER}"))[0]


@pytest.fixture(scope="module")
def key(host):
    return host.check_output(f"cat {HOME}/secrets/api_key")


@pytest.fixture
def ask(host, key):
    """Send a chat request; returns the status and the answer."""

    def call(content, bearer=key):
        body = {"model": "tiny-qwen3-vl", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
        # The body is sent from a file, to avoid shell quoting.
        host.check_output(f"cat >/tmp/body <<'END'\n{json.dumps(body)}\nEND")
        out = host.check_output(
            "curl --silent --write-out '\\n%{http_code}' --header 'Content-Type: application/json' --data @/tmp/body "
            f"--header 'Authorization: Bearer {bearer}' http://127.0.0.1:8000/v1/chat/completions"
        )
        answer, status = out.rsplit("\n", 1)
        return int(status), json.loads(answer)

    return call


def image(url):
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Which colour?"}]


def test_the_proven_release_runs_and_is_current(host, inspected):
    current = host.file(f"{HOME}/current")
    assert current.is_symlink
    release = current.linked_to.rsplit("/", 1)[1]
    assert inspected["Config"]["Labels"]["inference.vllm.release"] == release
    assert inspected["State"]["Health"]["Status"] == "healthy"
    manifest = json.loads(host.file(f"{HOME}/current/manifest.json").content_string)
    assert manifest["id"] == release
    assert manifest["flags"]["max-model-len"] == 4096
    assert manifest["image"]["id"] == inspected["Image"]


def test_unproven_releases_are_kept_for_diagnosis(host):
    releases = host.check_output(f"ls -A {HOME}/releases").split()
    assert len(releases) == 4
    assert not [name for name in releases if name.startswith(".")]


def test_service_is_enabled_at_boot(host):
    unit = host.service("vllm")
    assert unit.is_enabled
    assert unit.is_running
    verified = host.run("systemd-analyze verify vllm.service")
    assert "vllm.service" not in verified.stderr, verified.stderr


def test_service_answers_with_the_key_only(ask):
    assert ask("Hello")[0] == 200
    assert ask("Hello", "a-wrong-key-of-sixteen")[0] == 401


def test_service_reads_images_from_the_request_and_fetches_none(ask):
    assert ask(image(red_png()))[0] == 200
    status, answer = ask(image("http://127.0.0.1:8000/metrics"))
    assert status in (400, 422)
    assert "allowed domains" in json.dumps(answer)
    assert ask(image("file:///etc/passwd"))[0] >= 400


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]:8000/metrics",
        "http://127.0.0.1.nip.io:8000/metrics",
        "http://media.invalid@127.0.0.1:8000/metrics",
        "http://media.invalid:8000@127.0.0.1/",
        "ftp://127.0.0.1/x",
        "file://media.invalid/etc/passwd",
        "/etc/passwd",
    ],
)
def test_no_url_makes_the_engine_fetch_a_file(ask, url):
    status, answer = ask(image(url))
    # vLLM answers some refused requests with status 500 or 501.
    assert status >= 400, answer
    assert "root:" not in json.dumps(answer)
    assert ask("Hello")[0] == 200


@pytest.mark.parametrize(("width", "height"), [(50000, 50000), (50000, 1), (8193, 8192)])
def test_a_decompression_bomb_is_refused_without_memory_use(host, ask, width, height):
    """A file of some kilobytes that would decode to gigabytes of pixels."""
    before = memory(host)
    status, answer = ask(image(png(width, height)))
    assert status >= 400, answer
    assert memory(host) - before < 2**30
    assert ask(image(red_png()))[0] == 200


@pytest.mark.parametrize(
    "data", ["data:image/png;base64,AAAA", "data:image/png;base64,!!", "data:,", "data:text/html,x"]
)
def test_data_that_is_not_an_image_is_refused(ask, data):
    status, answer = ask(image(data))
    assert status >= 400, answer
    assert ask("Hello")[0] == 200


def memory(host):
    """Peak memory of the engine container, in bytes."""
    shown = host.check_output(
        f"docker exec {CONTAINER} sh -c 'cat /sys/fs/cgroup/memory.peak 2>/dev/null || "
        "cat /sys/fs/cgroup/memory/memory.max_usage_in_bytes'"
    )
    return int(shown)


def test_service_listens_on_loopback_only(host, inspected):
    assert inspected["HostConfig"]["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8000"}]}
    assert host.socket("tcp://127.0.0.1:8000").is_listening
    assert not host.socket("tcp://0.0.0.0:8000").is_listening


def test_the_key_file_is_readable_by_the_engine_and_root_only(host, key):
    file = host.file(f"{HOME}/secrets/api_key")
    assert (file.uid, file.gid, file.mode) == (2000, 0, 0o400)
    assert host.file(f"{HOME}/secrets").mode == 0o700
    assert len(key) == 48


def test_the_key_appears_nowhere_else(host, key):
    for command in (
        f"docker inspect {CONTAINER}",
        f"docker logs {CONTAINER} 2>&1",
        "ps axww -o args",
        f"cat {HOME}/releases/*/*",
    ):
        assert key not in host.check_output(command), command


def test_the_container_has_minimal_privileges(host):
    def inside(command):
        return host.run(f"docker exec {CONTAINER} {command}")

    assert inside("id -u").stdout.strip() == "2000"
    status = dict(line.split(":\t", 1) for line in inside("cat /proc/1/status").stdout.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == 0
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    for path in ("/opt/x", "/etc/vllm/x", "/models/tiny-qwen3-vl/x", "/etc/vllm/vllm.yaml"):
        assert inside(f"sh -c ': >>{path}'").rc != 0, path
    assert inside("sh -c ': >/home/vllm/.cache/x && : >/tmp/x'").rc == 0


def test_the_container_has_the_limits(inspected):
    limits = inspected["HostConfig"]
    assert limits["Memory"] == 32 * 2**30
    assert limits["PidsLimit"] == 4096
    assert limits["ReadonlyRootfs"] is True
    assert limits["RestartPolicy"]["Name"] == "unless-stopped"
    assert limits["LogConfig"]["Config"]["max-size"] == "20m"
