"""The pytest plugin, in test suites of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.hostile import hostile_environment

pytest_plugins = ["pytester"]

PLUGIN = "aioivschat.emulator.pytest_plugin"


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test suite with the plugin and no other."""
    # Loaded by its entry point as well, it would be there twice.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    # A temporary folder may lie within a project whose options need other plugins.
    pytester.makeini("[pytest]")
    return pytester


def run(suite: pytest.Pytester, code: str) -> pytest.RunResult:
    """Run a test module in a process of its own, warnings being errors."""
    suite.makepyfile(code)
    return suite.runpytest_subprocess("-p", PLUGIN, "-W", "error", "-q")


@pytest.mark.fault(48)
def test_unmodified_code_reaches_the_emulator(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that are told nothing find the emulator, and nothing else of the user's."""
    for name, value in hostile_environment(suite.path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stale")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    monkeypatch.setenv("NO_PROXY", "example.com")
    monkeypatch.delenv("no_proxy", raising=False)
    result = run(
        suite,
        """
        import asyncio, urllib.request
        import botocore.session
        from aioivschat import AsyncTokenService, TokenRequest

        def test_service(ivschat_env, ivschat_room):
            async def issue():
                async with AsyncTokenService() as tokens:
                    return await tokens.issue(TokenRequest(ivschat_room, "alice"))

            assert asyncio.run(issue()).token

        def test_other_clients(ivschat_env, ivschat_emulator):
            assert urllib.request.urlopen(ivschat_emulator.url + "/_emulator").status == 200
            assert urllib.request.proxy_bypass("www.example.com")
            assert not urllib.request.proxy_bypass("example.org")

        def test_token(ivschat_env, ivschat_emulator, ivschat_room):
            client = botocore.session.Session().create_client("ivschat")
            assert client.list_rooms()["rooms"][0]["arn"] == ivschat_room
            token = client.create_chat_token(roomIdentifier=ivschat_room, userId="alice")["token"]
            assert ivschat_emulator.emulator.redeem(token).user_id == "alice"
            client.close()
        """,
    )
    result.assert_outcomes(passed=3)


def test_each_test_gets_the_emulator_as_new(suite: pytest.Pytester) -> None:
    """One server serves all tests; settings, rooms, counts and connections start over."""
    result = run(
        suite,
        """
        import http.client, socket
        import pytest

        urls = []

        @pytest.mark.parametrize("n", [1, 2])
        def test_it(ivschat_emulator, ivschat_room, n):
            urls.append(ivschat_emulator.url)
            assert len(set(urls)) == 1
            emulator = ivschat_emulator.emulator
            assert emulator.settings.latency == 0
            assert emulator.counts().connections == 0
            assert len(emulator.list_rooms()["rooms"]) == 1
            emulator.configure(latency=9.0)
            host, port = ivschat_emulator.url.removeprefix("http://").split(":")
            connection = http.client.HTTPConnection(host, int(port))
            connection.request("GET", "/_emulator")
            assert connection.getresponse().status == 200
            connection.close()
        """,
    )
    result.assert_outcomes(passed=2)


def test_fixtures_work_beside_an_event_loop(suite: pytest.Pytester) -> None:
    """The fixtures are not async, so that any async test runner will do."""
    result = run(
        suite,
        """
        import asyncio, aiohttp

        async def mint(url, room):
            async with aiohttp.ClientSession(url) as http:
                body = {"roomIdentifier": room, "userId": "alice"}
                async with http.post("/CreateChatToken", json=body) as response:
                    return response.status

        def test_it(ivschat_emulator, ivschat_room):
            assert asyncio.run(mint(ivschat_emulator.url, ivschat_room)) == 200
        """,
    )
    result.assert_outcomes(passed=1)


def test_moto_fixture_serves_the_model(suite: pytest.Pytester) -> None:
    """The moto fixture has moto's URL, and as emulator the model behind it."""
    result = run(
        suite,
        """
        import botocore.session

        def test_it(ivschat_moto):
            client = botocore.session.Session().create_client(
                "ivschat", region_name="us-east-1", endpoint_url=ivschat_moto.url,
                aws_access_key_id="testing", aws_secret_access_key="testing",
            )
            arn = client.create_room()["arn"]
            assert ivschat_moto.emulator.get_room({"identifier": arn})["arn"] == arn
            client.close()
        """,
    )
    result.assert_outcomes(passed=1)


def test_moto_fixture_without_moto_names_the_extra(suite: pytest.Pytester) -> None:
    """Without moto its fixture fails a test, naming what to install, and skips none."""
    result = run(
        suite,
        """
        import sys
        sys.modules["moto"] = None

        def test_it(ivschat_moto):
            pass
        """,
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*aioivschat[[]moto[]]*"])


def test_fixtures_are_documented(suite: pytest.Pytester) -> None:
    """``pytest --fixtures`` shows a description of each fixture."""
    result = suite.runpytest_subprocess("-p", PLUGIN, "--fixtures")
    names = ("ivschat_emulator", "ivschat_env", "ivschat_moto", "ivschat_room")
    for name in names:
        result.stdout.fnmatch_lines([f"{name}*"])
    assert "no docstring available" not in result.stdout.str()


def test_plugin_imports_light() -> None:
    """The plugin, which each pytest run loads, imports nothing heavy but the library."""
    code = f"""
import sys, pytest, aioivschat
before = set(sys.modules)
import {PLUGIN}
heavy = {{"aiohttp", "aiobotocore", "moto", "botocore", "flask"}}
sys.exit(", ".join(heavy & (set(sys.modules) - before)) or 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (0, "") == (result.returncode, result.stderr)
