# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""dev/execution_environment.py : build the execution environment of extensions/, and say its name.

The definition is taken as it stands there, but for what cannot be had without a registry:

* the base image is Debian's, bootstrapped (dev/images/build) or BASTION_MUX_BASE_IMAGE_TRIXIE; with
  the steps that ansible-builder, which knows RPM, leaves to the user there;
* the collection is that of this checkout, and not the one on Galaxy;
* Python's packages are brought by this machine's pip, whatever index it uses, and are those that
  dev/requirements.txt pins.

Nothing is done when there is an image of the same parts. It needs a Docker engine: dev/molecule.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[1]
DEFINITION = CHECKOUT / "extensions/execution_environment/execution-environment.yml"
IMAGE = "bastion-mux-lab-environment"

#: The release of Debian, its Python, and the newest glibc that a wheel may want there.
SUITE, PYTHON, GLIBC = "trixie", "3.13", 41

#: Of what the steps below install: in the base image that is bootstrapped, once for all builds.
BASE_PACKAGES = ("python3", "python3-pip")

#: What its own steps install.
OF_BUILDER = ("bindep", "pyyaml", "packaging", "dumb-init==1.2.5")

#: Removed from the image in the end, by ansible-builder.
PLACE = "/output/packages"


def main() -> None:
    """Build it."""
    with tempfile.TemporaryDirectory() as work:
        collection = _collection(Path(work))
        base = _said("dev/images/build", "--base", SUITE, *BASE_PACKAGES)
        definition = adapted(yaml.safe_load(DEFINITION.read_text()), base, collection)
        image = f"{IMAGE}:{_hash(definition, collection)}"
        if not _said("docker", "image", "ls", "--quiet", image):
            file = Path(work) / DEFINITION.name
            file.write_text(yaml.safe_dump(definition))
            _download(Path(work) / "packages", definition["dependencies"])
            _run(
                *("ansible-builder", "build", "--container-runtime", "docker", "--tag", image),
                *("--file", str(file), "--context", str(Path(work) / "context")),
            )
    print(image)


def adapted(definition: dict[str, Any], base: str, collection: Path) -> dict[str, Any]:
    """The definition for a base image of Debian, without a registry, an index or Galaxy."""
    (galaxy,) = definition["dependencies"]["galaxy"]["collections"]
    galaxy.update(name=f"packages/{collection.name}", type="file")
    return {
        **definition,
        "images": {"base_image": {"name": base}},
        "build_arg_defaults": {"ANSIBLE_GALAXY_CLI_COLLECTION_OPTS": "--offline"},
        # Debian's Python has no ensurepip.
        "options": {"package_manager_path": "/usr/bin/apt-get", "skip_pip_install": True},
        "additional_build_files": [
            {"src": str(collection.parent / "packages"), "dest": "packages"},
            {"src": str(collection), "dest": "packages"},
        ],
        "additional_build_steps": {
            "prepend_base": [
                f"COPY _build/packages {PLACE}",
                f"ENV PIP_NO_INDEX=1 PIP_FIND_LINKS={PLACE}",
                "RUN apt-get update && apt-get install --yes --no-install-recommends python3-pip",
            ],
            "append_final": [
                "RUN rm -rf /var/lib/apt/lists/*",
                # What is empty does not count.
                "ENV PIP_NO_INDEX= PIP_FIND_LINKS=",
            ],
        },
    }


def _collection(work: Path) -> Path:
    """The collection of this checkout, as it would be on Galaxy."""
    _run("ansible-galaxy", "collection", "build", ".", "--output-path", str(work))
    (built,) = work.glob("*.tar.gz")
    return built


def _hash(definition: dict[str, Any], collection: Path) -> str:
    """What tells the image from one of other parts."""
    with tarfile.open(collection) as archive:
        files = archive.extractfile("FILES.json")
        assert files is not None
        pins = (CHECKOUT / "dev/requirements.txt").read_text()
        told = [definition["dependencies"], Path(__file__).read_text(), pins]
        told += [definition["images"], json.loads(files.read())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _download(place: Path, dependencies: dict[str, Any]) -> None:
    """Bring what the image's Python is to install."""
    machine = platform.machine()
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--dest", str(place), "--constraint", "dev/requirements.txt", "--only-binary", ":all:"),
        *("--python-version", PYTHON),
        *(f"--platform=manylinux_2_{minor}_{machine}" for minor in range(5, GLIBC + 1)),
        *(dependencies[name]["package_pip"] for name in ("ansible_core", "ansible_runner")),
        *("--requirement", "requirements.txt", *OF_BUILDER),
    )


def _run(*command: str) -> None:
    """Run a command; what it says is of interest when it fails."""
    done = subprocess.run(
        command,
        check=False,
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{command[0]} failed.")


def _said(*command: str) -> str:
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
