"""State of a host after role gateway ran with valid and invalid settings."""

from __future__ import annotations

import json

import pytest

URL = "https://localhost:8443"
ENGINE_KEY = "the-key-that-the-engines-want"
OLD = "sk-alice-0123456789abcdefghijklmnop"
NEW = "sk-alice-new-zyxwvutsrqponmlkjihgf"
BOB = "sk-bob-9876543210zyxwvutsrqponmlkj"


@pytest.fixture(scope="module")
def systemd(host):
    return host.file("/run/systemd/system").is_directory


@pytest.fixture
def ask(host):
    """Send a request; returns the status and the answer."""

    def call(path, *options, key=BOB, url=URL):
        command = "curl --silent --path-as-is --cacert /etc/vllm-gateway/self_signed/certificate.pem"
        head = f"--header 'Authorization: Bearer {key}'" if key else ""
        done = host.run(f"{command} {head} --write-out '\\n%{{http_code}}' {' '.join(options)} '{url}{path}'")
        answer, _, status = done.stdout.rpartition("\n")
        return int(status), answer

    return call


@pytest.fixture
def log(host, systemd):
    def read():
        command = "journalctl --unit vllm-gateway --output cat" if systemd else "cat /var/log/vllm-gateway.log"
        return host.check_output(command)

    return read


def test_gateway_serves_the_allowed_endpoints_over_tls(ask):
    status, answer = ask("/v1/models")
    assert (status, json.loads(answer)["path"]) == (200, "/v1/models")
    status, answer = ask("/v1/chat/completions", "--data '{}'")
    assert (status, json.loads(answer)["path"]) == (200, "/v1/chat/completions")
    assert ask("/health", key=None) == (200, '{"status":"ok"}')


@pytest.mark.parametrize("path", ["/metrics", "//metrics", "/v1/../metrics", "/v1/%2e%2e/metrics", "/v1/models/", "/"])
def test_gateway_serves_nothing_else(ask, path):
    status, answer = ask(path)
    assert (status, json.loads(answer)["error"]["code"]) == (404, "not_found")


def test_the_new_key_is_valid_and_the_old_one_is_not(ask):
    assert ask("/v1/models", key=NEW)[0] == 200
    assert ask("/v1/models", key=OLD)[0] == 401
    assert ask("/v1/models", key=ENGINE_KEY)[0] == 401
    assert ask("/v1/models", key=None)[0] == 401


def test_only_the_engine_that_is_not_drained_answers(ask):
    answers = [json.loads(ask("/v1/models")[1])["engine"] for _ in range(6)]
    assert answers == ["green"] * 6


def test_a_large_body_is_refused(host, ask):
    host.check_output("truncate -s 200M /tmp/big")
    status, answer = ask("/v1/chat/completions", "--http1.1 --header 'Expect: 100-continue' --data-binary @/tmp/big")
    assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")


def test_gateway_is_enabled_with_systemd_and_runs_without(host, systemd):
    if systemd:
        service = host.service("vllm-gateway")
        assert service.is_running
        assert service.is_enabled
        assert not host.service("haproxy").is_enabled
    else:
        assert host.process.filter(comm="haproxy")


def test_workers_do_not_run_as_root(host):
    users = {process.user for process in host.process.filter(comm="haproxy")}
    assert users == {"root", "haproxy"}


def test_gateway_listens_on_the_configured_addresses(host):
    assert host.socket("tcp://0.0.0.0:8443").is_listening
    assert host.socket("tcp://127.0.0.1:8405").is_listening
    assert not host.socket("tcp://0.0.0.0:8405").is_listening
    assert "haproxy_server_status" in host.check_output("curl --silent http://127.0.0.1:8405/metrics")


def test_the_certificate_is_for_this_host(host):
    shown = host.check_output(
        "openssl x509 -in /etc/vllm-gateway/self_signed/certificate.pem -noout -text -checkend 2592000"
        if host.exists("openssl")
        else 'python3 -c "import ssl; print(ssl._ssl._test_decode_cert('
        "'/etc/vllm-gateway/self_signed/certificate.pem'))\""
    )
    assert "localhost" in shown


def test_secrets_are_readable_by_root_only_and_in_one_place(host, log):
    for path in host.check_output("find /etc/vllm-gateway -type f").split():
        file = host.file(path)
        assert (file.user, file.mode) == ("root", 0o600), path
    assert host.file("/etc/vllm-gateway").mode == 0o700
    found = host.run(f"grep -rl -e {OLD} -e {NEW} -e {BOB} -e {ENGINE_KEY} /etc /run /var/log /opt").stdout.split()
    kept = [path for path in found if not path.startswith(("/opt/vllm/secrets/", "/etc/vllm-gateway/current/"))]
    assert [path.rpartition("/")[2] for path in kept] == ["engine_key.map"] * len(kept)
    for text in (log(), host.check_output("ps axww -o args")):
        assert not [key for key in (OLD, NEW, BOB, ENGINE_KEY) if key in text]


def test_the_log_is_json_with_names(ask, log):
    ask("/v1/models?x=the-query", "--header 'X-Request-Id: a-request-of-the-test'")
    entries = [json.loads(line) for line in log().splitlines() if line.startswith("{")]
    (entry,) = [entry for entry in entries if entry["id"] == "a-request-of-the-test"]
    assert (entry["key"], entry["path"], entry["status"], entry["engine"]) == ("bob", "/v1/models", 200, "green")
    assert "the-query" not in log()
