# SPDX-License-Identifier: BSD-3-Clause
"""The pool of workers, its time limits and its memory."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic

from ppdaemon.configtypes import ConfigPart, Seconds, Size, valid_values
from ppdaemon.environment import CHILD_ENVIRONMENT, THREAD_VARIABLES
from ppdaemon.yamlfile import KeyPath


class MemoryConfig(ConfigPart):
    """Memory limits of one worker with the processes that it starts.

    Counted are anonymous memory and swap (of pages that are shared with other
    processes the share), files in memory that no other worker has open or maps
    (memfd, ``/dev/shm``), and the repo on the RAM disk; each byte once. Pages of
    files on a disk do not count.
    """

    soft: Size = 4_000_000_000
    """A worker above this is replaced after its visit, the exporter after its export, the asker at once."""
    hard: Size = 8_000_000_000
    """A worker above this is stopped at once; the exporter, the reader and the publisher are killed."""
    ramdisk: Annotated[Size, pydantic.Field(gt=0)] = 2_000_000_000
    """A worker whose repo on the RAM disk is larger is stopped at once; files shared with
    other workers do not count."""
    budget: Size | None = None
    """No further worker is started while all workers together use more; `None` for no
    limit."""
    sample_s: Seconds = 1.0
    """Interval of the measurement."""

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find limits in the wrong order."""
        if (values := valid_values(keys, "soft", "hard")) and values[0] > values[1]:
            yield (), "soft is more than hard"


class TimesConfig(ConfigPart):
    """How long each state of a worker may last, in seconds."""

    boot_s: Seconds = 20.0
    """From the fork until the worker accepts orders."""
    prepare_s: Seconds = 120.0
    """Preload, preprocessing, and everything else that needs no pixels."""
    ingest_s: Seconds = 30.0
    """Ingest of one raw."""
    run_s: Seconds = 900.0
    """The pipeline."""
    export_s: Seconds = 120.0
    """Writing outputs to the spool, or registering them in the central repo."""
    cpu_s: Seconds = 3600.0
    """CPU time of one visit, over all states and threads."""
    grace_s: Seconds = 5.0
    """From the order or signal to end until SIGKILL."""
    kill_s: Seconds = 10.0
    """After SIGKILL; then the worker counts as unkillable and its slot is not used."""
    probe_s: Seconds = 60.0
    """After this time a quarantined slot starts a worker again, and a pipeline that is set aside
    because it ends its workers gets one visit-detector."""
    stop_s: Seconds = 60.0
    """When the daemon is stopped: until running visits are interrupted."""

    @property
    def after_images_s(self) -> float:
        """How long a visit-detector may take at most when its images have arrived."""
        return self.ingest_s + self.run_s + self.export_s


class WorkersConfig(ConfigPart):
    """The pool of workers."""

    min: Annotated[int, pydantic.Field(ge=1)] = 2
    """Number of slots that always have a worker."""
    spare: Annotated[int, pydantic.Field(ge=0)] = 1
    """Number of idle workers that are kept ready until `max` is reached."""
    max: Annotated[int, pydantic.Field(ge=1, le=5000)] = 16
    """Maximum number of slots."""
    retire_idle_s: Seconds = 600.0
    """Workers above `min` and `spare` end after being idle for this long."""
    recycle_visits: Annotated[int, pydantic.Field(ge=1)] = 200
    """A worker is replaced after this many visits, up to a tenth more or
    less."""
    recycle_age_s: Seconds = 21_600.0
    """An idle worker is replaced at this age, up to a tenth more or less; the asker, too."""
    attempts: Annotated[int, pydantic.Field(ge=1, le=5)] = 2
    """Maximum number of attempts at a visit-detector; there is another attempt only if
    the worker has announced nothing permanent."""
    queue: Annotated[int, pydantic.Field(ge=0)] = 20_000
    """Maximum number of visit-detectors that wait for a worker."""
    work: Annotated[str, pydantic.Field(pattern=r"^[\w.]+$")] = "ppdaemon.middleware.work"
    """The module with the workers' code, an implementation of `ppdaemon.work.WorkModule`."""
    start: Literal["fork", "spawn"] = "fork"
    """``fork``: workers are forked in milliseconds from the zygote, which has imported
    everything. ``spawn``: each worker is a new interpreter, for software that cannot
    be forked; it imports everything itself and shares no memory."""
    preload: tuple[str, ...] = ()
    """Modules that the zygote imports in addition to `work`, such as those of the
    pipelines' tasks."""
    environment: dict[str, str] = {}
    """Environment variables of the zygote and its workers."""
    threads: Annotated[int, pydantic.Field(ge=1, le=1024)] = 1
    """Threads of numerical libraries (BLAS, OpenMP, Arrow, torch) in each worker; set after
    the fork. Increase it only if cores are idle: other detectors use them, too."""
    allowed_threads: tuple[str, ...] = ()
    """Names of Python threads, such as ``downloads-*``, that tasks may leave running
    without costing the worker. Threads that wait for work (a condition, an event, a
    queue) are always allowed."""
    nice: Annotated[int, pydantic.Field(ge=0, le=19)] = 5
    """Niceness of workers; above 0 so that the supervisor always gets CPU time. That of the asker, which asks
    the central repo for all of them, is 1, or 0 if this is 0."""
    tasks_max: Annotated[int, pydantic.Field(ge=16)] = 1024
    """Maximum number of processes and threads of one worker; enforced by the kernel if a
    control group is delegated to the daemon."""
    log_max: Annotated[Size, pydantic.Field(gt=0)] = 50_000_000
    """A larger log of a worker is cut at its beginning."""
    times: TimesConfig = TimesConfig()
    memory: MemoryConfig = MemoryConfig()

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Find numbers in the wrong order, and variables whose values would be lost."""
        if (values := valid_values(keys, "min", "max")) and values[0] > values[1]:
            yield (), "min is more than max"
        yield from lost_variables(keys)


def lost_variables(keys: Any) -> Iterator[tuple[KeyPath, str]]:
    """Find variables of ``environment`` that always have another value."""
    for environment in valid_values(keys, "environment"):
        for name, value in environment.items():
            if CHILD_ENVIRONMENT.get(name, value) != value:
                text = f"ppdaemon sets {name}={CHILD_ENVIRONMENT[name]}, this value would be lost"
                threads = "; see workers.threads" if name in THREAD_VARIABLES else ""
                yield ("environment", name), f"{text}{threads}"
