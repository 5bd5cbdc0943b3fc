"""Hubs for the tests: one shared by all that need nothing special, and a way to start others."""

import functools

import pytest

from hub import Hub
from proxies import NOT_THROUGH, Behind


def pytest_addoption(parser):
    parser.addoption("--through", choices=["nginx", "haproxy", "caddy"], help="put this proxy in front of every hub")


def pytest_collection_modifyitems(config, items):
    proxy = config.getoption("--through")
    without = tuple(name for name, (proxies, _) in NOT_THROUGH.items() if proxy in proxies)
    left_out = [item for item in items if item.name.startswith(without)]
    if proxy and left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def _hub(request):
    """What makes a hub: with `--through`, one behind a proxy."""
    proxy = request.config.getoption("--through")
    return functools.partial(Behind, proxy) if proxy else Hub


@pytest.fixture(scope="session")
def _shared(_hub):
    hub = _hub({"endpoints.echo": True})
    yield hub
    hub.stop()


@pytest.fixture
def hub(_shared):
    """The shared hub: two shards, no rate limits. Tests keep to rooms and users of their own."""
    yield _shared
    assert _shared.running(), f"the shared hub ended in this test\n{_shared.log()}"


@pytest.fixture
def start(_hub):
    """Starts hubs that end with the test; a hub that crashed in it fails it."""
    hubs: list[Hub] = []

    def start_hub(*positional, **named) -> Hub:
        hubs.append(_hub(*positional, **named))
        return hubs[-1]

    yield start_hub
    failures = []
    for hub in hubs:
        try:
            hub.stop() if hub.running() else hub.check_log()
        except AssertionError as failure:
            failures.append(str(failure))
        finally:
            hub.discard()
    assert not failures, "\n".join(failures)


@pytest.fixture
def room(request) -> str:
    """A room nobody else uses."""
    return f"project:{abs(hash(request.node.nodeid)) % 10**12}"
