"""Images from package registries, checked by content and stored in a cache.

Debian packages are downloaded and unpacked without root and never installed; weights are fetched by
`virtue_pl.data.download.weights`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from rich.console import Console

from virtue_pl.data.download.weights import fetch_weights
from virtue_pl.data.io.atomic import has_checksum, read_json, write_json
from virtue_pl.data.scenes import catalogue
from virtue_pl.types import VirtueError, replace_whole

__all__ = ["AptListsMissing", "AptMissing", "DownloadReport", "ImagesUnavailable", "fetch_images", "fetch_weights"]


class ImagesUnavailable(VirtueError):
    """The photographs cannot be fetched here; scenes of drawn shapes need none.

    Example:
        >>> isinstance(apt_error("mate-backgrounds", "E: Could not resolve host"), ImagesUnavailable)
        True
    """


class AptMissing(ImagesUnavailable):
    """This machine has no apt.

    Example:
        >>> issubclass(AptMissing, ImagesUnavailable)
        True
    """


class AptListsMissing(ImagesUnavailable):
    """apt has no lists of packages yet.

    Example:
        >>> str(apt_error("mate-backgrounds", "E: Unable to locate package mate-backgrounds"))
        'apt does not know mate-backgrounds: run `sudo apt-get update`, or use --source shapes'
    """


@dataclass
class DownloadReport:
    """The state of the catalogue's images after a download.

    Example:
        >>> DownloadReport(present=3).missing
        []
    """

    present: int = 0
    """Number of images in the cache."""
    fetched: list[str] = field(default_factory=list)
    """Packages that were fetched."""
    missing: list[str] = field(default_factory=list)
    """Images that this release's packages lack, or hold with another content: left out of the scenes."""


def fetch_images(cache: str | Path, console: Console | None = None) -> DownloadReport:
    """Fetch all the catalogue's images into the cache; those with the right content are not fetched again.

    Raises AptMissing or AptListsMissing, both ImagesUnavailable, where Debian's packages cannot be fetched.
    """
    console = console or Console(stderr=True)
    folder = Path(cache) / "pictures"
    manifest = read_json(folder / "pictures.json")
    wanted = catalogue.checksums()
    report = DownloadReport()
    _copy_samples(folder, wanted)
    for package, paths in _debian_paths().items():
        lacking = [path for path in paths if not has_checksum(folder / path, wanted[path])]
        if lacking and set(lacking) != set(manifest.get("missing", {}).get(package, ())):
            with console.status(f"fetching {package}"):
                _fetch_debian(package, lacking, wanted, folder)
            report.fetched.append(package)
    report.missing = [path for path, checksum in wanted.items() if not has_checksum(folder / path, checksum)]
    report.present = len(wanted) - len(report.missing)
    missing = {
        package: [path for path in paths if path in report.missing] for package, paths in _debian_paths().items()
    }
    write_json(
        folder / "pictures.json",
        {"licences": catalogue.LICENCES, "present": report.present, "missing": missing, "sha256": wanted},
    )
    return report


def _debian_paths() -> dict[str, list[str]]:
    """Return the catalogue's images by the Debian package that carries them."""
    paths: dict[str, list[str]] = {"tuxpaint-stamps-default": [entry.path for entry in catalogue.objects()]}
    for entry in catalogue.backgrounds():
        if entry.package in catalogue.DEBIAN_PACKAGES:
            paths.setdefault(entry.package, []).append(entry.path)
    return paths


def _copy_samples(folder: Path, wanted: Mapping[str, str]) -> None:
    """Copy scikit-image's photographs from where it is installed."""
    for entry in catalogue.backgrounds():
        if entry.package == "scikit-image" and not has_checksum(folder / entry.path, entry.sha256):
            source = files("skimage").joinpath(*Path(entry.path).parts[1:])
            if source.is_file():
                _write_if_matching(source.read_bytes(), folder / entry.path, wanted[entry.path])


def _fetch_debian(package: str, paths: Iterable[str], wanted: Mapping[str, str], folder: Path) -> None:
    """Download and unpack a Debian package without root; store those of `paths` that have the content of `wanted`."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise AptMissing("this machine has no apt-get and dpkg-deb, which fetch the photographs: use --source shapes")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        workplace = Path(name)
        done = subprocess.run(
            ["apt-get", "download", package],
            cwd=workplace,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        if done.returncode:
            raise apt_error(package, done.stderr)
        archive = next(workplace.glob("*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(workplace / "unpacked")], check=True, capture_output=True)
        for path in paths:
            source = workplace / "unpacked" / path
            if source.is_file() and not source.is_symlink():
                _write_if_matching(source.read_bytes(), folder / path, wanted[path])


def apt_error(package: str, output: str) -> ImagesUnavailable:
    """Return an error for apt's output, with the one command that helps."""
    if re.search(r"Unable to locate package|No candidate|Can't select|Can't find a source", output):
        return AptListsMissing(f"apt does not know {package}: run `sudo apt-get update`, or use --source shapes")
    last = (output.strip().splitlines() or ["no message"])[-1]
    return ImagesUnavailable(f"apt-get download {package} failed ({last}): try again, or use --source shapes")


def _write_if_matching(content: bytes, path: Path, checksum: str) -> None:
    """Write `content`, if it has this checksum."""
    if hashlib.sha256(content).hexdigest() == checksum:
        with replace_whole(path) as temporary:
            temporary.write_bytes(content)
