"""The reason for the end of an engine, from its log.

The reason stands hundreds of lines before the end: a worker's exception comes first, then the engine core's about the
worker, then the API server's about the core, each with a traceback. Seen in the logs of vLLM 0.26.0 and 0.32.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Colours, and what Compose writes before a line to erase the one that it would overwrite.
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
#: Which process wrote a line, as ``(EngineCore pid=58) ``.
_PROCESS = re.compile(r"^\([^()]+ pid=\d+\) ")
#: Level, time and place, as ``ERROR 11-26 14:34:58 [core.py:1512] ``; a line of a traceback has one space more.
_LEVEL = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[([^\]]*)\] ?")
#: The last line of a traceback, a rejected argument, and messages of this project's entry point.
_EXCEPTION = re.compile(r"^[\w.]*(Error|Exception|Interrupt|Exit)\b(:|$)|^\S+( \S+)?: error: |^\[[a-z]+(_[a-z]+)+\] ")
#: Lines that only refer to a reason elsewhere or to other tools.
_SAYS_NOTHING = re.compile(
    r"^Traceback \(most recent call last\)|^The above exception|^During handling|hit an exception\.$"
    r"|encountered a fatal error\.$|output_handler failed\.$|root cause|^Search for `|^CUDA kernel errors might be"
    r"|^For debugging consider|^Compile with `TORCH_USE|^RuntimeError: cancelled$|^KeyboardInterrupt|^', please"
    r"|^RuntimeError: Worker failed with error|^Dumping |failed to start\.$|^Process \w+:$"
)
#: Where vLLM dumps what it was computing.
_DUMPS = re.compile(r"dump_input\.py")
_LONGEST = 400


def reasons(log: str, most: int = 5) -> list[str]:
    """The lines of a log that explain why the engine ended, the first cause first, without duplicates.

    Args:
        log: Text of the log, plain or not.
        most: Maximum number of lines.
    """
    return list(dict.fromkeys(_telling(log)))[:most]


def _telling(log: str) -> Iterator[str]:
    explains = False
    for raw in plain(log).splitlines():
        line = _PROCESS.sub("", raw.rstrip())
        level = _LEVEL.match(line)
        text = line[level.end() :] if level else line
        if level and (level[1] not in ("ERROR", "CRITICAL") or _DUMPS.search(level[2])):
            explains = False
        elif explains and text.startswith("  "):
            # Pydantic describes the error in the next, indented line.
            yield text.strip()[:_LONGEST]
            explains = False
        elif text and not text[0].isspace() and (level or _EXCEPTION.match(text)):
            explains = "validation error" in text
            if not _SAYS_NOTHING.search(text):
                yield text[:_LONGEST]


def last_lines(log: str, count: int) -> list[str]:
    """The end of a log, plain and without empty lines."""
    lines = [line.rstrip()[:_LONGEST] for line in plain(log).splitlines()]
    return [line for line in lines if line][-count:]


def plain(log: str) -> str:
    """A log without control sequences of a terminal."""
    return _ESCAPES.sub("", log)
