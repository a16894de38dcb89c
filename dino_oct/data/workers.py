"""Jobs on every core.

Workers are plain `python -m` processes. A multiprocessing pool would import the caller's main script again in each
worker (a training script brings torch and its start-up time) and would fail in scripts without a main guard.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def in_processes(
    module: str, jobs: Sequence[dict[str, Any]], workers: int, advance: Callable[[Any], object]
) -> list[Any]:
    """Results of jobs, in their order; jobs and results are plain values, as JSON has them.

    Args:
        module: to be run by `python -m`; it calls ``work``.
        advance: called with each result, in any order.

    Raises:
        RuntimeError: a worker failed; its own words are on stderr.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(workers)
    ]

    def follow(number: int) -> list[Any]:
        process, share = processes[number], jobs[number::workers]
        process.stdin.write(json.dumps(share))
        process.stdin.close()
        results = []
        for line in process.stdout:
            results.append(json.loads(line))
            advance(results[-1])
        if process.wait() or len(results) != len(share):
            raise RuntimeError(f"a worker process of {module} failed (exit status {process.returncode})")
        return results

    done: list[Any] = [None] * len(jobs)
    try:
        with ThreadPoolExecutor(workers) as threads:
            try:
                for number, results in enumerate(threads.map(follow, range(workers))):
                    done[number::workers] = results
            except BaseException:
                for process in processes:  # lets the threads end, which the executor waits for
                    process.kill()
                raise
    finally:
        for process in processes:
            process.stdout.close()
            process.wait()
    return done


def work(do: Callable[[dict[str, Any]], Any]) -> None:
    """In a worker: do the jobs that come on stdin."""
    for job in json.load(sys.stdin):
        print(json.dumps(do(job)), flush=True)
