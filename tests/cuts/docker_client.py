#!/usr/bin/env python3
"""A stand-in for Docker's client: containers in a JSON file, for the playbooks that are cut off.

The file is ``$SANDBOX/docker.json``. If ``$SANDBOX/good_releases`` is there, releases that it does not
name never become healthy.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(os.environ["SANDBOX"])
FILE = HERE / "docker.json"
LABEL = "com.docker.compose.project"


def load() -> dict[str, Any]:
    return json.loads(FILE.read_text()) if FILE.exists() else {"containers": [], "down": False, "count": 0}


STATE = load()
ARGS = sys.argv[1:]


def end(text: str = "", code: int = 0) -> NoReturn:
    FILE.write_text(json.dumps(STATE, indent=1))
    (sys.stdout if code == 0 else sys.stderr).write(text)
    sys.exit(code)


def option(name: str) -> str:
    for place, word in enumerate(ARGS):
        if word == name:
            return ARGS[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return ""


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() % 10**9:09d}Z"


def row(box: dict[str, Any]) -> dict[str, Any]:
    labels = {
        LABEL: box["project"],
        f"{LABEL}.working_dir": box["folder"],
        "com.docker.compose.service": "vllm",
        "inference.vllm.release": box["release"],
    }
    return {
        "Id": box["id"],
        "Name": f"/{box['name']}",
        "Config": {"Labels": labels},
        "State": {"Running": box["running"], "StartedAt": box["started"], "Health": {"Status": box["health"]}},
        "HostConfig": {"RestartPolicy": {"Name": box["policy"]}},
    }


def listed() -> list[dict[str, Any]]:
    filters = [word.partition("=")[2] for word in ARGS if word.startswith("--filter=")]
    chosen = [box for box in STATE["containers"] if "--all" in ARGS or box["running"]]
    for text in filters:
        key, _, value = text.partition("=")
        name, _, wanted = value.partition("=")
        if key == "label" and name == LABEL:
            chosen = [box for box in chosen if box["project"] == wanted]
        elif key == "health":
            chosen = [box for box in chosen if box["running"] and box["health"] == value]
    return chosen


def ps() -> NoReturn:
    chosen, shape = listed(), option("--format")
    if "--quiet" in ARGS:
        end("".join(f"{box['id']}\n" for box in chosen))
    if "json" in shape:
        lines = [
            {
                "Names": b["name"],
                "Status": b["health"] if b["running"] else "Exited",
                "Labels": f"inference.vllm.release={b['release']}",
            }
            for b in chosen
        ]
        end("".join(json.dumps(line) + "\n" for line in lines))
    end("".join(f"{box['release']}\n" for box in chosen))


def inspect() -> NoReturn:
    names = [word for word in ARGS if not word.startswith("-") and word not in ("inspect", "container")]
    found = [box for box in STATE["containers"] if box["id"] in names or box["name"] in names]
    if not found:
        end("No such container\n", 1)
    end(json.dumps([row(box) for box in found]))


def up(project: str, mine: list[dict[str, Any]]) -> NoReturn:
    folder = Path(option("--project-directory")).resolve()
    release = re.search(r'inference\.vllm\.release: "([^"]+)"', (folder / "compose.yaml").read_text())
    if release is None:
        end("compose.yaml has no release\n", 1)
    name = release.group(1)
    same = [box for box in mine if box["release"] == name and box["running"]]
    if same and "--force-recreate" not in ARGS:
        end()
    good = HERE / "good_releases"
    broken = good.exists() and name not in good.read_text().split() and "spare" not in project
    secrets = folder.parents[1] / "secrets"
    STATE["count"] += 1
    STATE["containers"] = [box for box in STATE["containers"] if box not in mine]
    STATE["containers"].append(
        {
            "id": f"{STATE['count']:064x}",
            "name": f"{project}-vllm-1",
            "project": project,
            "folder": str(folder),
            "release": name,
            "running": True,
            "health": "unhealthy" if broken else "healthy",
            "started": now(),
            "policy": "no",
            "keys": [(secrets / key).read_text().strip() for key in ("api_key", "former_api_key")],
        }
    )
    if broken:
        end('{"error":true,"message":"container vllm is unhealthy"}\n', 1)
    end()


def compose() -> NoReturn:
    if "version" in ARGS:
        end('{"version": "2.35.0"}')
    verb = next(
        word for word in ARGS[1:] if word in ("up", "stop", "restart", "ps", "images", "down", "logs", "config")
    )
    project = option("--project-name")
    mine = [box for box in STATE["containers"] if box["project"] == project]
    if verb == "images":
        end("[]")
    if verb == "ps":
        keys = ("Labels", "Names", "Publishers", "Ports", "Networks", "Mounts")
        shown = [
            {"Name": b["name"], "State": "running" if b["running"] else "exited", **dict.fromkeys(keys, "")}
            for b in mine
        ]
        end("".join(json.dumps(line) + "\n" for line in shown))
    if verb == "down" and "--dry-run=true" not in ARGS:
        STATE["containers"] = [box for box in STATE["containers"] if box not in mine]
    if verb == "stop":
        for box in mine:
            box.update(running=False, health="")
    if verb == "restart":
        for box in mine:
            box.update(running=True, health="healthy", started=now())
    if verb == "up" and "--no-start" not in ARGS:
        up(project, mine)
    end("some log\n" if verb == "logs" else "")


def main() -> NoReturn:
    if ARGS[0] == "--host":
        del ARGS[:2]
    if ARGS[0] == "version":
        end('{"Client": {}, "Server": {"ApiVersion": "1.48"}}')
    if STATE["down"]:
        end("Cannot connect to the Docker daemon\n", 1)
    match ARGS[0]:
        case "info":
            end('{"ClientInfo": {"Plugins": [{"Name": "compose", "Version": "2.35.0", "Path": "x"}]}}')
        case "ps":
            ps()
        case "inspect" | "container":
            inspect()
        case "update":
            for box in STATE["containers"]:
                if box["id"] in ARGS or box["name"] in ARGS:
                    box["policy"] = option("--restart")
            end()
        case "compose":
            compose()
    end()


main()
