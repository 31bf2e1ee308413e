"""The table of meshes, printed below the tests' results."""

import pytest

TABLE = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def table(pytestconfig):
    """Lines to print: a test appends them."""
    return pytestconfig.stash.setdefault(TABLE, [])


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(TABLE, [])
    if lines:
        terminalreporter.section("topology × mesh × processes")
        terminalreporter.write("".join(f"{line}\n" for line in lines))
