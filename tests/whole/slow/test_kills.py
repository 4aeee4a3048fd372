"""Kill -9 every verb at drawn moments, start it again: what it leaves is what nobody disturbed.

The figures of the last run stand in benchmarks/README.md, with date and commit.
"""

import sys

import numpy as np
import pytest

from fabricate import kills

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups and signals")


@pytest.fixture(scope="module")
def way(tmp_path_factory) -> kills.Way:
    return kills.Way(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("verb", kills.VERBS)
def test_a_killed_verb_ends_as_if_nobody_had_disturbed_it(way, verb, seed, request):
    wanted = request.config.getoption("--kills") or kills.VERBS[verb][1]
    rng = np.random.default_rng([seed, *verb.encode()])
    tally = way.kill(verb, wanted, rng)
    print(f"\n{verb}: {tally.kills} kills, {tally.batches} finished batches, {tally.lost} lost")
    assert tally.kills == wanted
    assert tally.lost == 0
    assert tally.differing == []
