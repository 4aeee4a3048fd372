"""Options of the slow runs: `make slow SLOW="--kills 12 --inputs 20000 --seed 3"`."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, help="kills of each verb (default: 61 in all)")
    parser.addoption("--inputs", type=int, default=12_000, help="damaged inputs")
    parser.addoption("--seed", type=int, default=0, help="of moments and damages")


@pytest.fixture(scope="session")
def seed(request) -> int:
    return request.config.getoption("--seed")
