"""Where a benchmark ran: a ratio of matrix products is one of kernels and threads."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

from threadpoolctl import threadpool_info

#: By this variable somebody else than OpenBLAS chooses its kernels.
_CHOICE = "OPENBLAS_CORETYPE"


def described() -> str:
    """Processor, cores and load; kernels and threads of every copy of OpenBLAS that is loaded now."""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return f"{processor()}, {os.cpu_count()} cores, {load}; {products()}"


def processor() -> str:
    """What the processor calls itself."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor()


def products() -> str:
    """By which libraries, kernels and threads matrices are multiplied."""
    libraries = []
    for item in threadpool_info():
        if item["user_api"] != "blas":
            continue
        threads = item["num_threads"]
        named = f"{item['internal_api']} {item['version']} with {item.get('architecture')} kernels"
        libraries.append(f"{named}, {threads} thread{'s' if threads > 1 else ''}")
    told = "; ".join(sorted(libraries)) or "no BLAS is loaded"
    if _CHOICE in os.environ:
        told += f" ({_CHOICE}={os.environ[_CHOICE]} is set)"
    return told
