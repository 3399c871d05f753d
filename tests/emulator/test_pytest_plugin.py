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


def run(suite: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    """Run a test module in a process of its own, warnings being errors."""
    suite.makepyfile(code)
    return suite.runpytest_subprocess("-p", PLUGIN, "-W", "error", "-q", *options)


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


SERVED_BY_THE_SESSION = """
import asyncio, json, os, threading, urllib.request
import pytest, uvicorn
from hypothesis import given, settings, strategies
from starlette.applications import Starlette
import aioivschat.starlette
from aioivschat import TokenRequest
from aioivschat.starlette import EndpointPolicy

USERS = strategies.text("abc", min_size=1, max_size=9)

@pytest.fixture(scope="session")
def url(ivschat_session_env, ivschat_session_room):
    # What a TestClient does: the application, its lifespan and its loop in another thread.
    async def authorize(request, ask):
        return TokenRequest(ivschat_session_room, ask.user)

    app = Starlette()
    policy = EndpointPolicy(per_user=None)
    aioivschat.starlette.setup(app, authorize=authorize, policy=policy)
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    host, port = server.servers[0].sockets[0].getsockname()
    yield f"http://{host}:{port}/chat/token"
    server.should_exit = True
    thread.join()

def token_of(url, user):
    body = json.dumps({"user": user}).encode()
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked) as answer:
        return json.load(answer)["token"]

@pytest.mark.parametrize("n", [1, 2])
def test_one_application_serves_many_tests(url, ivschat_session_emulator, n):
    assert f"u{n}" == ivschat_session_emulator.emulator.redeem(token_of(url, f"u{n}")).user_id

@settings(deadline=None, max_examples=30)
@given(USERS)
def test_examples_share_an_application(url, ivschat_session_emulator, user):
    assert user == ivschat_session_emulator.emulator.redeem(token_of(url, user)).user_id

def test_a_test_may_have_an_emulator_of_its_own(url, ivschat_emulator, ivschat_env, ivschat_room):
    assert ivschat_emulator.url == os.environ["AWS_ENDPOINT_URL_IVSCHAT"]
    token_of(url, "alice")
    assert 0 == ivschat_emulator.emulator.counts().requests
    assert 1 == len(ivschat_emulator.emulator.list_rooms()["rooms"])

def test_the_session_is_as_it_was(url, ivschat_session_emulator):
    assert ivschat_session_emulator.url == os.environ["AWS_ENDPOINT_URL_IVSCHAT"]
    assert 1 == len(ivschat_session_emulator.emulator.list_rooms()["rooms"])
    assert ivschat_session_emulator.emulator.counts().requests > 3
    token_of(url, "bob")
"""


@pytest.mark.fault(44)
def test_a_session_has_fixtures_that_last_as_long(suite: pytest.Pytester) -> None:
    """For an application, and for examples of Hypothesis; tests of one reset nothing of it."""
    result = run(suite, SERVED_BY_THE_SESSION, "-p", "_hypothesis_pytestplugin")
    result.assert_outcomes(passed=5)


@pytest.mark.fault(44)
@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_a_service_may_last_longer_than_a_test(suite: pytest.Pytester, scope: str) -> None:
    """An async fixture of any scope, over the session's."""
    result = run(
        suite,
        f"""
        import pytest, pytest_asyncio
        from aioivschat import AsyncTokenService, TokenRequest

        @pytest_asyncio.fixture(scope="{scope}", loop_scope="{scope}")
        async def tokens(ivschat_session_env):
            async with AsyncTokenService() as tokens:
                yield tokens

        @pytest.mark.asyncio(loop_scope="{scope}")
        class TestTokens:
            async def test_one(self, tokens, ivschat_session_room):
                await tokens.issue(TokenRequest(ivschat_session_room, "alice"))

            async def test_another(self, tokens, ivschat_session_room):
                token = await tokens.issue(TokenRequest(ivschat_session_room, "alice"))
                assert token.reused
        """,
        *("-p", "pytest_asyncio.plugin"),
        *("-o", "asyncio_default_fixture_loop_scope=function"),
    )
    result.assert_outcomes(passed=2)


@pytest.mark.fault(44)
def test_the_environment_is_restored(suite: pytest.Pytester) -> None:
    """When the test is over, or the session; what was there before is there again."""
    suite.makeconftest(
        """
        import os

        os.environ |= {"AWS_ACCESS_KEY_ID": "mine", "AWS_PROFILE": "somebody"}

        def pytest_unconfigure():
            assert ("mine", "somebody") == (
                os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_PROFILE"]
            )
            assert "AWS_ENDPOINT_URL_IVSCHAT" not in os.environ
            print("as before")
        """
    )
    result = run(
        suite,
        """
        import os

        def test_env(ivschat_env):
            assert ("testing", None) == (
                os.environ["AWS_ACCESS_KEY_ID"], os.environ.get("AWS_PROFILE")
            )

        def test_after():
            assert "mine" == os.environ["AWS_ACCESS_KEY_ID"]

        def test_session(ivschat_session_env):
            assert "AWS_PROFILE" not in os.environ
        """,
        "-s",
    )
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["as before"])


def test_fixtures_are_documented(suite: pytest.Pytester) -> None:
    """``pytest --fixtures`` shows a description of each fixture."""
    result = suite.runpytest_subprocess("-p", PLUGIN, "--fixtures")
    for name in ("emulator", "env", "moto", "room"):
        result.stdout.fnmatch_lines([f"ivschat_{name}*"])
        result.stdout.fnmatch_lines([f"ivschat_session_{name} [[]session scope[]]*"])
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
