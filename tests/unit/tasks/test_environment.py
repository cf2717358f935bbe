"""Invariant: our own servers on loopback are reached directly, whatever proxy the environment names."""

import os
import urllib.request

import httpx
import pytest

from tasks.environment import exempt_loopback

LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]
PROXY = "http://127.0.0.1:9"


@pytest.fixture(params=["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def proxied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that both are restored after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv(request.param, PROXY)


def uses_proxy(client: httpx.Client, host: str) -> bool:
    transport = client._transport_for_url(httpx.URL(f"http://{host}:4200/api"))
    return transport is not client._transport


@pytest.mark.usefixtures("proxied")
@pytest.mark.parametrize(
    "former",
    [
        {}, {"NO_PROXY": "example.org, 10.0.0.1"}, {"no_proxy": "example.org"},
        {"no_proxy": "example.org", "NO_PROXY": "example.net"}, {"NO_PROXY": ""}, {"no_proxy": "localhost"},
    ],
)  # fmt: skip
def test_loopback_needs_no_proxy_and_other_hosts_keep_theirs(
    former: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in former.items():
        monkeypatch.setenv(name, value)
    exempt_loopback()
    exempt_loopback()  # a worker inherits the variables and does it again
    with httpx.Client() as client:
        assert not any(uses_proxy(client, host) for host in LOOPBACK)
        assert uses_proxy(client, "example.com")
    assert urllib.request.proxy_bypass("127.0.0.1:4200")
    assert not urllib.request.proxy_bypass("example.com")
    for name, value in former.items():
        assert {host.strip() for host in value.split(",") if host} <= set(os.environ[name].split(","))


@pytest.mark.usefixtures("proxied")
def test_an_environment_that_exempts_every_host_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    exempt_loopback()
    assert urllib.request.proxy_bypass("example.com")
