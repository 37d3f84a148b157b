# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Jobs that change what their process is, or that may hang, each in a process of its own.

Private to the collection: no promise is made about it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from ..model.errors import MuxError

#: Makes a value of JSON.
Job = Callable[[], Any]


@dataclass
class _Worker:
    index: int
    pid: int
    deadline: float
    answer: bytes = b""


def run(jobs: Sequence[Job], *, timeout: float, at_once: int) -> List[Union[Any, MuxError]]:
    """What each job returned, or the error that it raised.

    :param timeout: seconds for each; then it is killed, and its error is ``timeout``.
    """
    results: Dict[int, Union[Any, MuxError]] = {}
    waiting = list(enumerate(jobs))[::-1]
    running: Dict[int, _Worker] = {}
    with selectors.DefaultSelector() as selector:
        while waiting or running:
            while waiting and len(running) < at_once:
                index, job = waiting.pop()
                descriptor, pid = _start(job)
                running[descriptor] = _Worker(index, pid, time.monotonic() + timeout)
                selector.register(descriptor, selectors.EVENT_READ)
            first = min(worker.deadline for worker in running.values())
            ready = selector.select(max(0.0, first - time.monotonic()))
            for descriptor in [key.fd for key, _events in ready]:
                part = os.read(descriptor, 65536)
                running[descriptor].answer += part
                if not part:
                    worker = _forget(descriptor, running, selector)
                    results[worker.index] = _answer(worker)
            for descriptor, worker in list(running.items()):
                if time.monotonic() >= worker.deadline:
                    os.kill(worker.pid, signal.SIGKILL)
                    _forget(descriptor, running, selector)
                    # No waiting: a dead file system may keep it from dying.
                    os.waitpid(worker.pid, os.WNOHANG)
                    results[worker.index] = MuxError(
                        "timeout", "not done within %g seconds" % timeout
                    )
    return [results[index] for index in range(len(jobs))]


def alone(job: Job, *, timeout: float) -> Any:
    """What one job returns.

    :raises MuxError: what it raised, or ``timeout``.
    """
    result = run([job], timeout=timeout, at_once=1)[0]
    if isinstance(result, MuxError):
        raise result
    return result


def _start(job: Job) -> tuple[int, int]:
    """Fork; the descriptor that the answer comes from, and the process."""
    answers, mine = os.pipe()
    pid = os.fork()
    if pid:
        os.close(mine)
        return answers, pid
    # No way out of here but _exit: this is a copy of a process that has more to do.
    try:
        os.close(answers)
        with open(mine, "wb") as pipe:
            pipe.write(json.dumps(_outcome(job)).encode("ascii"))
    finally:
        os._exit(0)


def _outcome(job: Job) -> Dict[str, Any]:
    try:
        return {"value": job()}
    except MuxError as error:
        failure = error
    except OSError as error:
        failure = MuxError("invalid", str(error))
    return {"error": [failure.reason, failure.message, failure.details]}


def _forget(
    descriptor: int, running: Dict[int, _Worker], selector: selectors.BaseSelector
) -> _Worker:
    selector.unregister(descriptor)
    os.close(descriptor)
    return running.pop(descriptor)


def _answer(worker: _Worker) -> Union[Any, MuxError]:
    os.waitpid(worker.pid, 0)
    said: Optional[Dict[str, Any]] = None
    with contextlib.suppress(ValueError):
        said = json.loads(worker.answer.decode("ascii", "replace"))
    if said is None:
        return MuxError("invalid", "its process ended before it was done")
    if "error" in said:
        reason, message, details = said["error"]
        return MuxError(reason, message, **details)
    return said["value"]
