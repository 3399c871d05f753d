"""What PyInstaller cannot see: modules that are loaded by name, and files that they read."""

from __future__ import annotations

from PyInstaller.utils.hooks import collect_data_files, collect_submodules

datas = collect_data_files("aioivschat")
# What needs an extra that is not installed is left out.
hiddenimports = collect_submodules(
    "aioivschat", filter=lambda name: not name.endswith("pytest_plugin"), on_error="ignore"
)
