"""Node, with the packages of ``tests/e2e/package.json``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1] / "e2e"


@dataclass(frozen=True)
class Node:
    """How to run Node with npm's packages.

    Args:
        command: the executable and what it needs to be told.
        modules: the folder ``node_modules``.
    """

    command: list[str]
    modules: Path

    @property
    def sdk(self) -> Path:
        """The folder of the SDK's ES modules."""
        return self.modules / "amazon-ivs-chat-messaging" / "dist" / "esm"

    @property
    def uuid(self) -> Path:
        """The folder of the SDK's one dependency, as ES modules for browsers."""
        return self.modules / "uuid" / "dist" / "esm-browser"


@pytest.fixture(scope="session")
def node() -> Node:
    """Node 20 or later, and npm's packages.

    They are installed once, in ``e2e`` or in the folder that ``AIOIVSCHAT_E2E_CACHE`` names.
    """
    executable = shutil.which("node")
    npm = shutil.which("npm")
    assert executable is not None, "these tests need Node 20 or later"
    assert npm is not None, "these tests need npm"
    version = subprocess.run(
        [executable, "--version"], capture_output=True, text=True, check=True
    ).stdout
    major = int(version.strip().removeprefix("v").partition(".")[0])
    assert major >= 20, f"these tests need Node 20 or later: this is {version.strip()}"
    # From 22 on, Node has WebSockets without being told.
    options = ["--experimental-websocket", "--no-warnings"] if major < 22 else []
    folder = Path(os.environ.get("AIOIVSCHAT_E2E_CACHE", HERE))
    folder.mkdir(parents=True, exist_ok=True)
    if folder != HERE:
        for name in ("package.json", ".npmrc"):
            shutil.copy(HERE / name, folder)
    installed = Node([executable, *options], folder / "node_modules")
    needed = json.loads((HERE / "package.json").read_text())["dependencies"]
    if not all((installed.modules / name).exists() for name in needed):
        subprocess.run([npm, "install", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return installed
