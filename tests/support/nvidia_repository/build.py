"""build.py FOLDER: build signed apt repositories in the layout of NVIDIA's, with stand-ins for its packages.

packages.yml lists their contents. Each build creates a new key and deletes it afterwards; a second key, `wrong.pub`,
signs nothing. Needs dpkg-deb and gpg. A folder that is up to date is not changed.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def values_of(version: str) -> dict[str, str]:
    """Values of the placeholders in packages.yml."""
    upstream = version.rsplit("-", 1)[0]
    return {"version": version, "upstream": upstream, "branch": upstream.rsplit(".", 1)[0]}


def fill(text: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders in a text; other braces stay."""
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text


def control(package: Mapping[str, Any], values: Mapping[str, str]) -> str:
    """Content of the control file of a package."""
    fields = {
        "Package": package["name"],
        "Version": values["version"],
        "Architecture": "amd64",
        "Section": "non-free/libs",
        "Maintainer": "Tests <tests@example.invalid>",
        "Depends": ", ".join(fill(entry, values) for entry in package.get("depends", [])),
        "Conflicts": ", ".join(package.get("conflicts", [])),
        "Description": f"stand-in for {package['name']}",
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


def contents(package: Mapping[str, Any], values: Mapping[str, str]) -> Iterable[tuple[str, str, int]]:
    """Path, text and mode of each file."""
    for path, text in package.get("files", {}).items():
        yield fill(path, values), fill(text, values), 0o644
    for kind, mode in (("scripts", 0o755), ("units", 0o644)):
        for path, name in package.get(kind, {}).items():
            yield fill(path, values), fill((HERE / "files" / name).read_text(), values), mode


def build_package(package: Mapping[str, Any], version: str, folder: Path) -> None:
    """Build one .deb in the folder."""
    values = values_of(version)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        (root / "DEBIAN").mkdir(parents=True)
        root.chmod(0o755)
        (root / "DEBIAN" / "control").write_text(control(package, values))
        for path, text, mode in contents(package, values):
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            target.chmod(mode)
        for path, link in package.get("links", {}).items():
            target = root / fill(path, values).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(fill(link, values))
        name = f"{package['name']}_{version}_amd64.deb"
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(root), str(folder / name))


def run(*argv: str, **options: Any) -> str:
    """Output of a command. Exits with its error output if the command fails."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(argv)}: {done.stderr}")
    return str(done.stdout)


def index(folder: Path) -> None:
    """Write Packages and Release of a flat repository."""
    entries = []
    for deb in sorted(folder.glob("*.deb")):
        data = deb.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        fields = run("dpkg-deb", "--field", str(deb))
        entries.append(f"{fields}Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {digest}\n")
    packages = "\n".join(entries).encode()
    (folder / "Packages").write_bytes(packages)
    (folder / "Packages.gz").write_bytes(gzip.compress(packages, mtime=0))
    sums = "".join(
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n"
        for name in ("Packages", "Packages.gz")
        for data in [(folder / name).read_bytes()]
    )
    (folder / "Release").write_text(f"Origin: stand-in\nSuite: /\nDate: {formatdate(usegmt=True)}\nSHA256:\n{sums}")


class Keyring:
    """Two temporary keys; only the first one signs."""

    def __init__(self, home: str) -> None:
        """Create the keys."""
        self.home = home
        for name in ("signing", "wrong"):
            self.gpg("--pinentry-mode", "loopback", "--passphrase", "", "--quick-gen-key", self.mail(name), "rsa3072")

    @staticmethod
    def mail(name: str) -> str:
        """Mail address in a key."""
        return f"{name}@example.invalid"

    def gpg(self, *argv: str) -> str:
        """Run gpg on this keyring."""
        return run("gpg", "--homedir", self.home, "--batch", "--yes", "--quiet", *argv)

    def public(self, name: str) -> str:
        """A public key, armored."""
        return self.gpg("--armor", "--export", self.mail(name))

    def sign(self, release: Path) -> None:
        """Write InRelease next to the Release file."""
        target = release.with_name("InRelease")
        self.gpg("--local-user", self.mail("signing"), "--clearsign", "--output", str(target), str(release))


def recipe() -> str:
    """Hash of all inputs of the build."""
    files = sorted(path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def build(target: Path) -> None:
    """Build all repositories below the folder."""
    data = yaml.safe_load((HERE / "packages.yml").read_text())
    with tempfile.TemporaryDirectory(prefix="gpg") as home:
        keyring = Keyring(home)
        for repository in data["repositories"]:
            folder = target / repository["path"]
            folder.mkdir(parents=True)
            for name in repository["include"]:
                for version in data["sets"][name]["versions"]:
                    for package in data["sets"][name]["packages"]:
                        build_package(package, version, folder)
            index(folder)
            keyring.sign(folder / "Release")
            (folder / repository["key"]).write_text(keyring.public("signing"))
            (folder / "wrong.pub").write_text(keyring.public("wrong"))
        run("gpgconf", "--homedir", home, "--kill", "gpg-agent")


def main() -> None:
    """Build into the folder given on the command line."""
    target = Path(sys.argv[1]).resolve()
    stamp = target / "recipe"
    if stamp.is_file() and stamp.read_text() == recipe():
        print(f"{target} present")
        return
    if target.exists() and not stamp.is_file() and any(target.iterdir()):
        sys.exit(f"{target} contains other files")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    build(target)
    stamp.write_text(recipe())
    print(f"{target} built")


if __name__ == "__main__":
    main()
