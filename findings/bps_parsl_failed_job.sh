#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A workflow whose job failed is submitted and restarted with Parsl without a sign of the failure.
#
# Package:  lsst-ctrl-bps-parsl 30.2026.4300, lsst-ctrl-bps 30.2026.4300, parsl 2026.10.26, with Python 3.13.
#           Date: 2026-11-30.
# Where:    lsst.ctrl.bps.submit.submit and restart.restart with ParslService, which wait for the jobs.
# Expected: an error when a job has failed; restart returns "a message describing any issues". The settings of
#           the generic job hold: number_of_retries is "number of times to automatically retry a failed
#           job", retry_unless_exit are codes "to not automatically retry" (bps sets 5, and 1 and 2).
# Seen:     submit returns None, restart an empty message, both after the final job has run, and nothing is
#           logged by lsst.*: that a job failed, and that others were left out, is in Parsl's log.
#           Each failed job runs twice, whatever its settings are: with 0 retries, with 3, and with an exit
#           code that is not to be retried. Retries are a setting of the site alone (site.SITE.retries: 1).
#           Set it to 0 for jobs that must not run twice, and look for the outputs of each job.
#
# Exit status: 0 if this is still so, 1 if the behavior has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    lsst-ctrl-bps-parsl==30.2026.4300 lsst-ctrl-bps==30.2026.4300 parsl==2026.10.26
cd "$work"
PATH="$work/venv/bin:$PATH" "$work/venv/bin/python" -W ignore - "$work" <<'PY'
import logging
import sys
from collections import Counter
from pathlib import Path

from lsst.ctrl.bps import BpsConfig, GenericWorkflow, GenericWorkflowExec, GenericWorkflowJob
from lsst.ctrl.bps.parsl import ParslService
from lsst.ctrl.bps.restart import restart
from lsst.ctrl.bps.submit import submit

work = Path(sys.argv[1])
RAN = work / "ran"
SHELL = GenericWorkflowExec("shell", "/bin/sh", False)
logged: list[str] = []
handler = logging.Handler(logging.WARNING)
handler.emit = lambda record: logged.append(record.getMessage())
logging.getLogger("lsst").addHandler(handler)

Path("bps.yaml").write_text(f"""
computeSite: here
submitPath: {work}/submit
project: test
campaign: test
operator: test
uniqProcName: test
site:
  here:
    class: lsst.ctrl.bps.parsl.sites.Local
    cores: 1
""")
Path("submit").mkdir()
config = BpsConfig("bps.yaml")


def job(name: str, exit_code: int = 0, **settings: object) -> GenericWorkflowJob:
    """Return a job that writes its name and ends with the code."""
    script = work / f"{name}.sh"
    script.write_text(f"echo {name} >> {RAN}\nexit {exit_code}\n")
    made = GenericWorkflowJob(name, f"label_{name}")
    made.executable, made.arguments = SHELL, str(script)
    for setting, value in settings.items():
        setattr(made, setting, value)
    return made


def ran() -> dict[str, int]:
    """Return how often each job has run since the last call."""
    counts = Counter(RAN.read_text().split())
    RAN.unlink()
    return dict(counts)


workflow = GenericWorkflow("test")
workflow.add_job(job("good"))
workflow.add_job(job("never_again", 3, number_of_retries=0))
workflow.add_job(job("three_times_more", 3, number_of_retries=3))
workflow.add_job(job("not_this_code", 1, number_of_retries=5, retry_unless_exit=[1, 2]))
workflow.add_job(job("after"))
workflow.add_job_relationships("never_again", "after")
workflow.add_final(job("final"))

if __name__ == "__main__":
    service = ParslService(config)
    submitted = submit(config, service.prepare(config, workflow, "submit"), service)
    first = ran()
    restarted = restart(service, "submit")
    second = ran()
    print(f"submit returned {submitted}; ran {first}")
    print(f"restart returned {restarted}; ran {second}; logged {logged}")
    failed = {"never_again": 2, "three_times_more": 2, "not_this_code": 2, "final": 1}
    unchanged = submitted is None and restarted[2] == "" and not logged
    unchanged &= first == failed | {"good": 1} and second == failed
    sys.exit(0 if unchanged else 1)
PY
