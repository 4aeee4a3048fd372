"""Requests that come at the same time go through the network together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class _Request:
    """Images of one caller, and where its answer will be."""

    pixels: Sequence[np.ndarray]
    answer: Future[pd.DataFrame] = field(default_factory=Future)


class Together:
    """Answers callers from several threads by one batch at a time.

    Nobody waits for company: a request that finds the network idle is computed at once, and those
    that come meanwhile are the next batch. A request stands behind one batch at most, and behind
    more only where more than `largest` images came before it.
    """

    def __init__(
        self, compute: Callable[[Sequence[np.ndarray]], pd.DataFrame], largest: int
    ) -> None:
        """Prepare the one thread that computes.

        Args:
            compute: Images -> a table with a row for each.
            largest: A batch takes no further request once it has so many images.
        """
        self._compute = compute
        self._largest = largest
        self._waiting: deque[_Request] = deque()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="network")

    def answers(self, pixels: Sequence[np.ndarray]) -> pd.DataFrame:
        """The rows of these images, however many others were computed with them.

        Raises:
            Exception: What `compute` raised for the batch.
        """
        request = _Request(pixels)
        self._waiting.append(request)
        self._worker.submit(self._next_batch)
        return request.answer.result()

    def _next_batch(self) -> None:
        """Answer what waits; nothing is left to do where an earlier batch took it along."""
        requests = self._taken()
        if not requests:
            return
        try:
            table = self._compute([image for request in requests for image in request.pixels])
        except Exception as error:  # each caller learns of it
            for request in requests:
                request.answer.set_exception(error)
            return
        start = 0
        for request in requests:
            stop = start + len(request.pixels)
            request.answer.set_result(table.iloc[start:stop].reset_index(drop=True))
            start = stop

    def _taken(self) -> list[_Request]:
        """The requests of the next batch; none where all are answered."""
        requests: list[_Request] = []
        images = 0
        while self._waiting and images < self._largest:
            request = self._waiting.popleft()
            requests.append(request)
            images += len(request.pixels)
        return requests
