"""Health check of the container: request one token from the engine within a time limit.

vLLM's own /health still answers 200 while the engine hangs; a hung engine decodes no token. Prints one line and exits
with 0 if the engine decoded a token, and with 1 if not.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType


class TooSlowError(Exception):
    """The time limit has expired."""


def on_alarm(_signal: int, _frame: FrameType | None) -> None:
    """Abort the request. A socket timeout would limit only the time between two packets."""
    raise TooSlowError


def decode_one_token(address: str, model: str, key: str) -> None:
    """Request one token. Raises OSError or ValueError if there is none."""
    request = urllib.request.Request(
        f"http://{address}/v1/completions",
        json.dumps({"model": model, "prompt": "1", "max_tokens": 1, "temperature": 0}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    # Ignore proxies in the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request) as reply:
        answer = json.load(reply)
    if answer["usage"]["completion_tokens"] < 1:
        raise ValueError("the answer has no token")


def main() -> int:
    """Run one health check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="served name of the model")
    parser.add_argument("--timeout", type=int, required=True, help="seconds")
    parser.add_argument("--key-file", type=Path, required=True, help="file of the API key")
    options = parser.parse_args()
    start = time.monotonic()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.alarm(options.timeout)
    try:
        key = options.key_file.read_text(encoding="utf-8").strip()
        decode_one_token(f"{options.host}:{options.port}", options.model, key)
    except TooSlowError:
        print(f"[engine_hung] no token within {options.timeout} s")
    except urllib.error.HTTPError as error:
        print(f"[engine_refuses] HTTP {error.code} instead of a token")
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"[engine_unreachable] {type(error).__name__}: {error}")
    else:
        print(f"one token in {time.monotonic() - start:.2f} s")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
