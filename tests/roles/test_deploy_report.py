"""State of a host after role deploy_report: a report for every state of a release, with escaped model answers."""

from __future__ import annotations

import pytest

REPORTS = "/opt/vllm/reports"


def page(host, release):
    return host.file(f"{REPORTS}/{release}/report.html").content.decode()


@pytest.mark.parametrize(
    ("release", "headline"),
    [
        ("good", "Proven: All 2 checks passed"),
        ("bad", "Not proven: 1 of 2 checks failed"),
        ("never-checked", "Not proven: 1 of 1 checks failed"),
    ],
)
def test_headline(host, release, headline):
    assert f"<h1>{headline}</h1>" in page(host, release)


def test_good_release_is_described(host):
    text = page(host, "good")
    for fact in ("0123456789abcdef", "sha256:1111", "max-num-seqs", "kv_cache_tokens", "tiny-qwen3-vl", "0.32.0"):
        assert fact in text


def test_answers_are_escaped(host):
    text = page(host, "bad")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; {{ 7 * 6 }} héllo 日本" in text
    assert "<script" not in text


def test_page_loads_nothing(host):
    text = page(host, "good")
    assert 'src="data:image/png;base64,' in text
    assert 'src="http' not in text
    assert "<link" not in text


def test_reports_are_not_world_readable(host):
    report = host.file(f"{REPORTS}/good/report.html")
    assert (report.user, report.mode) == ("root", 0o640)
    assert host.file(f"{REPORTS}/never-checked").mode == 0o750


def test_an_empty_release_id_created_nothing(host):
    assert sorted(host.file(REPORTS).listdir()) == ["bad", "good", "never-checked"]
    assert not host.file(f"{REPORTS}/report.html").exists
