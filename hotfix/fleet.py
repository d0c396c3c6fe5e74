"""Fleet: many recipes at once, on a Ray cluster. The one door to ray.

Names of files go through Ray, and what became of each recipe. Pictures, weights and patches stay in files, which every
node has to see at the same place.
"""

import logging
import os
import re
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hotfix.batch import Asked, Job, Result, take
from hotfix.errors import HotfixError

if TYPE_CHECKING:
    from hotfix.delivery import Workshop

TRIES = 3  # of a recipe whose worker dies
SECONDS = 10  # to reach a cluster
HOST_AND_PORT = re.compile(r"(?P<host>[^:/]+|\[.+\]):(?P<port>\d{1,5})")
SAME = "every node needs the same Python, ray and hotfix, and this folder at the same place"


class Worker:
    """A process that keeps one base in memory and says nothing: what it wrote would be in Ray's logs."""

    def __init__(self, asked: Asked, folder: Path) -> None:
        """Be where relative paths start from."""
        os.chdir(folder)
        self.asked = asked
        self.shop: Workshop | None = None

    def ready(self) -> None:
        """There is such a process, and it can build."""
        from hotfix import console
        from hotfix.delivery import Workshop

        console.quiet_libraries()
        self.shop = Workshop(self.asked)

    def deliver(self, job: Job) -> Result:
        """One recipe."""
        if self.shop is None:  # another process, in the place of one that died
            self.ready()
        assert self.shop is not None
        return self.shop.deliver(job)


def build(
    jobs: Sequence[Job], asked: Asked, address: str = "", workers: int | None = None
) -> Generator[Result, None, None]:
    """Build on a cluster; results come as they are ready. When the generator is closed, so are the workers.

    Args:
        jobs: what to build.
        asked: how.
        address: of the cluster. Empty: RAY_ADDRESS, or one that runs on this machine, or one that is started for this.
        workers: how many; by default one for each GPU of the cluster or, where it has none, for each core.

    Raises:
        HotfixError: no ray, no cluster, or none of its workers can start.
    """
    with redirect_stdout(sys.stderr):  # Ray's own messages are no data
        yield from _built(_connected(address), list(jobs), asked, workers)


def _built(ray: Any, jobs: list[Job], asked: Asked, workers: int | None) -> Generator[Result, None, None]:
    try:
        has = ray.cluster_resources()
        gpu = 1 if has.get("GPU") else 0
        many = min(len(jobs), workers or int(has.get("GPU") or has.get("CPU") or 1))
        worker = ray.remote(num_cpus=1, num_gpus=gpu, max_restarts=-1, max_task_retries=TRIES - 1)(Worker)
        yield from _shared(ray, lambda: worker.remote(asked, Path.cwd()), many, jobs)
    finally:
        ray.shutdown()


def _shared(ray: Any, hire: Any, many: int, waiting: list[Job]) -> Generator[Result, None, None]:
    """Every worker is given the next recipe when it is done with one. A recipe comes back once."""
    trouble, busy = "", dict[Any, tuple[Any, Job | None]]()

    def engage() -> None:
        worker = hire()
        busy[worker.ready.remote()] = worker, None

    for _ in range(many):
        engage()
    while waiting or any(job for _, job in busy.values()):
        if not busy:
            raise HotfixError(f"no worker could start: {trouble}", hint=SAME)
        (done,), _ = ray.wait(list(busy), num_returns=1)
        worker, job = busy.pop(done)
        try:
            result = ray.get(done)
        except ray.exceptions.RayError as error:
            trouble = str(error).strip().splitlines()[-1]
            ray.kill(worker)
            if job is None:
                continue  # it never began
            hint = f"Ray says above how; what it takes: hotfix build {job.recipe} --plan"
            result = Result.failed(job.recipe, HotfixError(f"its worker died {TRIES} times", hint=hint))
            if waiting:
                engage()
        else:
            if waiting:
                following = take(waiting, job.base if job else None)
                busy[worker.deliver.remote(following)] = worker, following
        if job:
            yield result


def _connected(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster that is started here reports home
    try:
        import ray
    except ImportError as error:
        raise HotfixError("ray is not installed", hint="pip install 'diffusion-hotfix[fleet]'") from error
    address = address or os.environ.get("RAY_ADDRESS", "")
    try:
        if found := HOST_AND_PORT.fullmatch(address):  # Ray itself asks for minutes
            socket.create_connection((found["host"], int(found["port"])), timeout=SECONDS).close()
        ray.init(address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises those, and plain ones
        words = str(error).strip().splitlines()[0]
        hint = "ray start --head begins one; where it asks for a token, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN give it"
        raise HotfixError(f"no Ray cluster at {address or 'this machine'}: {words}", hint=hint) from error
    return ray
