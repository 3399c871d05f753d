"""What docs/architecture.md and its drawing name exists, and no module is left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from support.paths import ROOT, TESTS

pytestmark = pytest.mark.once

PACKAGE = ROOT / "src" / "aioivschat"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
DRAWING = ROOT / "docs" / "architecture.svg"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
LAYERS = {
    node.targets[0].id: ast.literal_eval(node.value)
    for node in ast.parse((TESTS / "project" / "test_layers.py").read_text()).body
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    if node.targets[0].id in ("FLOORS", "ORDERED")
}

_CODE = re.compile(r"`([^`]+)`")
_PATH = re.compile(r"[\w./-]+(?:\.(?:py|md|js|json|css|html|svg|toml)|/)|\.ci/run")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)?")
_SVG = "{http://www.w3.org/2000/svg}"


def _find(path: str) -> Path | None:
    """Return where a path of the page leads: in the package, or else from the project's root."""
    return next((base / path for base in (PACKAGE, ROOT) if (base / path).exists()), None)


def _paths(text: str) -> list[str]:
    return [code for code in _CODE.findall(text) if _PATH.fullmatch(code)]


def _named_after_files(text: str) -> Iterator[tuple[str, str]]:
    """Return each file that is followed by names in code, with each of these names."""
    spans = list(_CODE.finditer(text))
    file = ""
    for before, span in zip([None, *spans], spans, strict=False):
        if _PATH.fullmatch(span[1]):
            file = span[1]
            continue
        between = text[before.end() : span.start()] if before is not None else "?"
        if file.endswith(".py") and between in (" ", ", ", " or ") and _NAME.fullmatch(span[1]):
            yield file, span[1]
        else:
            file = ""


@cache
def _definitions(path: Path) -> frozenset[str]:
    """Return what a module defines: functions, classes, constants, and the members of classes."""

    def names(body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield node.name
                case ast.ClassDef():
                    yield node.name
                    yield from (f"{node.name}.{name}" for name in names(node.body))
                case ast.Assign():
                    yield from (
                        target.id for target in node.targets if isinstance(target, ast.Name)
                    )
                case ast.AnnAssign(target=ast.Name(id=name)):
                    yield name

    return frozenset(names(ast.parse(path.read_text()).body))


def _floor_of(path: str) -> int:
    unit = path.split("/")[0].removesuffix(".py")
    return next(number for number, units in enumerate(LAYERS["FLOORS"]) if unit in units)


def _units(paths: list[str]) -> set[str]:
    return {path.split("/")[0].removesuffix(".py") for path in paths}


def _check_order_of_floors(paths: list[str]) -> None:
    """Check that all that stands on a floor is named, the topmost floor first."""
    assert {unit for units in LAYERS["FLOORS"] for unit in units} == _units(paths)
    floors = [_floor_of(path) for path in paths]
    assert sorted(floors, reverse=True) == floors


def _table(heading: str) -> list[str]:
    """Return the rows of the table below a heading."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("path", sorted(set(_paths(PAGE))))
def test_a_path_of_the_page_exists(path: str) -> None:
    """A path in the architecture page is in the package, or in the repository."""
    assert _find(path) is not None


@pytest.mark.parametrize(("file", "name"), sorted(set(_named_after_files(PAGE))))
def test_a_name_of_the_page_is_defined_in_its_file(file: str, name: str) -> None:
    """A name that follows a file in the architecture page is defined in that file."""
    path = _find(file)
    assert path is not None
    assert name in _definitions(path)


def test_the_walk_names_what_it_walks_through() -> None:
    """Each step of the call names a file, and what is done in it."""
    steps = re.findall(r"^\d+\. .*", PAGE, flags=re.MULTILINE)
    assert 18 == len(steps)
    assert all(list(_named_after_files(step)) for step in steps)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", PAGE))
def test_a_link_of_the_page_leads_somewhere(link: str) -> None:
    """A link in the architecture page is a file beside it, or reached from there."""
    assert (ROOT / "docs" / link).is_file()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_page_is_linked(page: str) -> None:
    """Whoever reads the README or how to contribute finds the architecture page."""
    assert "(docs/architecture.md)" in (ROOT / page).read_text()


def test_every_module_is_on_the_page() -> None:
    """Each module of the package has its place on the page; a folder stands for its docstring."""
    named = {f"{path}__init__.py" if path.endswith("/") else path for path in _paths(PAGE)}
    assert set() == set(MODULES) - named


def test_the_floors_are_told_from_top_to_bottom() -> None:
    """The page's table of floors has the order that the tests of layers hold."""
    _check_order_of_floors(
        [path for row in _table("Floor plan") for path in _paths(row.split("|")[1])]
    )


@pytest.mark.parametrize("folder", sorted(LAYERS["ORDERED"]))
def test_the_files_of_a_folder_are_told_from_top_to_bottom(folder: str) -> None:
    """Where files have an order of imports, the page's table of changes has it too."""
    told = [path for row in _table("You want to change …") for path in _paths(row)]
    files = [path for path in told if path.startswith(f"{folder}/") and path.endswith(".py")]
    assert [f"{folder}/{name}.py" for name in reversed(LAYERS["ORDERED"][folder])] == files


def test_the_drawing_shows_what_is_there() -> None:
    """The drawing is well-formed, needs nothing from elsewhere, and has all floors in order."""
    source = DRAWING.read_text()
    assert re.findall(r"https?://[^\"]+", source) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<script|<image|@import|@font-face|href", source)
    drawing = ET.parse(DRAWING).getroot()
    floors = [text.text or "" for text in drawing.findall(f"{_SVG}text")]
    _check_order_of_floors([text for text in floors if _PATH.fullmatch(text)])
    for group in drawing.findall(f"{_SVG}g"):
        for text in group.iter(f"{_SVG}text"):
            assert (PACKAGE / group.attrib["data-folder"] / (text.text or "")).is_file()


def test_the_drawing_has_the_numbers_of_the_walk() -> None:
    """A number in the drawing is that of a step of the call."""
    steps = {int(number) for number in re.findall(r"^(\d+)\. ", PAGE, flags=re.MULTILINE)}
    drawing = ET.parse(DRAWING).getroot()
    labels = [
        text.text or "" for text in drawing.iter(f"{_SVG}text") if "step" in text.get("class", "")
    ]
    assert {int(number) for label in labels for number in label.split(",")} <= steps
