"""make_wheel.py FOLDER NAME VERSION [REQUIREMENT]: build a wheel of a package that no public index has."""

import sys
import zipfile
from pathlib import Path

folder, name, version, *requires = sys.argv[1:]
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
Path(folder).mkdir(parents=True, exist_ok=True)
with zipfile.ZipFile(Path(folder) / f"{module}-{version}-py3-none-any.whl", "w") as wheel:
    for path, content in {**files, f"{info}/RECORD": record}.items():
        wheel.writestr(path, content)
