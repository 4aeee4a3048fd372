"""Side by side is only faster: the same results, in order, and errors come through."""

import operator
import threading

import pytest

from equipoise import parallel


@pytest.mark.parametrize("threads", [1, 4, None])
@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_in_threads_keeps_the_order(threads, ahead):
    assert list(parallel.in_threads(lambda item: item * item, range(50), threads, ahead)) == [i * i for i in range(50)]


def test_in_threads_keeps_the_order_when_the_first_is_the_slowest():
    last_done = threading.Event()

    def work(item):
        if item == 0:
            assert last_done.wait(10)
        if item == 5:
            last_done.set()
        return item

    assert list(parallel.in_threads(work, range(6), threads=2)) == list(range(6))


def test_in_threads_runs_at_most_so_far_ahead():
    started = []
    results = parallel.in_threads(lambda item: started.append(item) or item, range(1000), threads=2, ahead=5)
    assert next(results) == 0
    results.close()
    assert len(started) <= 6


def test_in_threads_propagates_the_error_after_the_results_before_it():
    results = parallel.in_threads(lambda item: 1 // (3 - item), range(10), threads=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_in_threads_of_nothing_is_nothing():
    assert list(parallel.in_threads(len, [])) == []


def test_run_jobs_gives_the_same_with_one_and_two_workers():
    jobs = [(base, power) for base in range(5) for power in range(4)]
    alone = parallel.run_jobs(operator.pow, jobs, "powers", workers=1)
    assert alone == [base**power for base, power in jobs]
    assert parallel.run_jobs(operator.pow, jobs, "powers", workers=2) == alone


@pytest.mark.parametrize("workers", [1, 2])
def test_run_jobs_propagates_the_error(workers):
    with pytest.raises(ZeroDivisionError):
        parallel.run_jobs(operator.floordiv, [(1, 1), (1, 0), (2, 1)], "divisions", workers)


def test_run_jobs_of_nothing_is_nothing():
    assert parallel.run_jobs(operator.pow, [], "powers", workers=2) == []


def test_progress_yields_every_item_and_stays_quiet_when_quick(capsys):
    assert list(parallel.progress(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_timer_tells_seconds():
    assert str(parallel.Timer()).endswith(" s")
