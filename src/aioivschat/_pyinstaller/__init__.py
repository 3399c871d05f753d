"""Tells PyInstaller where its hook for this package is: what it cannot see in the source."""

from __future__ import annotations


def get_hook_dirs() -> list[str]:
    return [*__path__]
