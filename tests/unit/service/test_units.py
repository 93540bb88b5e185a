"""The units of systemd as they are written: golden files.

`UPDATE_GOLDEN=1 pytest tests/unit/service/test_units.py` updates the golden files; review the diff.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jinja2
import pytest

from support.paths import GOLDEN, ROOT

SERVICE = {
    "vllm_project": "vllm",
    "vllm_spare_project": "vllm-spare",
    "__vllm_service_current_link": "/opt/vllm/current",
    "vllm_service_stop_timeout": 30,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpu": ("vllm.service", {**SERVICE, "vllm_accelerator": "nvidia"}),
    "cpu": ("vllm.service", {**SERVICE, "vllm_accelerator": "cpu"}),
    "default": (
        "vllm-gateway.service",
        {
            "__gateway_config_file": "/etc/vllm-gateway/current/haproxy.cfg",
            "gateway_run_dir": "/run/vllm-gateway",
            "gateway_reload_timeout": 900,
            "__gateway_design": {"open_files": 9216},
        },
    ),
    "any": (
        "vllm-watchdog.service",
        {"vllm_python": "/opt/vllm/venv/bin/python", "__watchdog_home": "/opt/vllm/watchdog"},
    ),
}


def basename(path: str) -> str:
    return Path(path).name


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    template, values = CASES[name]
    # As Ansible sets its template engine up.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROOT / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["basename"] = basename
    text = environment.get_template(f"{template}.j2").render(values)
    golden = GOLDEN / f"{name}_{template}"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), f"{golden} differs"
