"""make_wheel.py FOLDER NAME VERSION [REQUIREMENT...]: build a wheel of a package that no public index has.

Prints the line of a requirements file that pins it. It imports nothing of this project, so that molecule can copy it to
hosts.
"""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path


def make_wheel(folder: Path, name: str, version: str, *requires: str) -> str:
    """Write the wheel; returns ``name===version --hash=sha256:...``. Each call writes different content."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {entry}" for entry in requires),
    ]
    files = {
        # Different content for each call, like a rebuild of the same version.
        f"{module}/__init__.py": f"BUILT = {Path('/proc/sys/kernel/random/uuid').read_text()!r}\n",
        f"{info}/METADATA": "\n".join([*metadata, ""]),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: make_wheel\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{name} = {module}:main\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(member, content)
    return f"{name}==={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


if __name__ == "__main__":
    print(make_wheel(Path(sys.argv[1]), *sys.argv[2:]))
