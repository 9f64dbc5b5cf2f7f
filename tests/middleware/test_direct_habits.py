# SPDX-License-Identifier: BSD-3-Clause
"""Which tasks can be given objects, and which only copies: their code tells."""

from typing import Any

import pytest
from lsst.pipe.base import PipelineTask, Struct

from ppdaemon.demo.tasks.associate import AssociateTask
from ppdaemon.middleware.direct.habits import is_orderly

# ruff: noqa: N802, N803 -- what follows has the names of the base class


class Usual(PipelineTask):
    """Has the base class's own."""


class Named(PipelineTask):
    """Reads connection by connection, puts what there is in case of failure, too."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        image = butlerQC.get(inputRefs.image)
        stars = butlerQC.get(inputRefs.stars)
        result = Struct(stars=None)
        try:
            self.run(image, stars, result, butlerQC.quantum.dataId)
        except ValueError as error:
            butlerQC.put(result, outputRefs)
            raise RuntimeError("in part") from error
        except TypeError:
            self.log.warning("is made nevertheless")
        butlerQC.add_additional_provenance(inputRefs.image, {"seen": 1})
        butlerQC.put(result.stars, outputRefs.stars)
        butlerQC.put(result.image, outputRefs.image)
        return


class Branching(PipelineTask):
    """Puts in each branch, and has nothing behind them."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        inputs = butlerQC.get(inputRefs)
        with self.timer("all"):  # type: ignore[attr-defined]
            if inputs["image"]:
                butlerQC.put(self.run(**inputs), outputRefs)
            else:
                butlerQC.put(Struct(), outputRefs)


class Again(PipelineTask):
    """Reads the same twice."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        before = butlerQC.get(inputRefs.image)
        self.run(before)
        butlerQC.put(self.run(butlerQC.get(inputRefs.image)), outputRefs)


class Overlapping(PipelineTask):
    """Reads all, and one of all."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        inputs = butlerQC.get(inputRefs)
        fresh = butlerQC.get(inputRefs.image)
        butlerQC.put(self.run(fresh, **inputs), outputRefs)


class Looping(PipelineTask):
    """Reads any number of times."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        sums = [self.run(butlerQC.get(inputRefs.image)) for _ in range(2)]
        butlerQC.put(sums, outputRefs)


class GoingOn(PipelineTask):
    """Changes what it has put."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        image = butlerQC.get(inputRefs.image)
        butlerQC.put(image, outputRefs.early)
        image += 1
        butlerQC.put(image, outputRefs.late)


class GoingOnBelow(PipelineTask):
    """Changes what it has put in a block before."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        image = butlerQC.get(inputRefs.image)
        if image:
            butlerQC.put(image, outputRefs.early)
        self.run(image)


class GoingOnFinally(PipelineTask):
    """Changes what it has put when all is over."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        image = butlerQC.get(inputRefs.image)
        try:
            butlerQC.put(image, outputRefs.early)
        finally:
            image.clear()


class GoingOnBetween(PipelineTask):
    """Changes one output while it makes the other."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        image = butlerQC.get(inputRefs.image)
        butlerQC.put(image, outputRefs.early)
        butlerQC.put(self.run(image), outputRefs.late)


class GoingOnWhenCaught(PipelineTask):
    """Changes what it has put before something went wrong."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        image = butlerQC.get(inputRefs.image)
        try:
            butlerQC.put(image, outputRefs.early)
            raise ValueError("caught below")
        except ValueError:
            pass
        image.clear()


class Passing(PipelineTask):
    """Lets others read and put."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        super().runQuantum(butlerQC, inputRefs, outputRefs)


class Hiding(PipelineTask):
    """Has another name for the method."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        get = butlerQC.get
        butlerQC.put(self.run(get(inputRefs), get(inputRefs)), outputRefs)


class Later(PipelineTask):
    """Reads some time."""

    def runQuantum(self, butlerQC: Any, inputRefs: Any, outputRefs: Any) -> None:
        butlerQC.put(self.run(lambda: butlerQC.get(inputRefs)), outputRefs)


@pytest.mark.parametrize("task", [Usual, Named, Branching, AssociateTask])
def test_a_task_that_reads_once_and_ends_with_its_puts_is_orderly(task: type[PipelineTask]) -> None:
    assert is_orderly(task)


@pytest.mark.parametrize(
    "task",
    [
        Again,
        Overlapping,
        Looping,
        GoingOn,
        GoingOnBelow,
        GoingOnFinally,
        GoingOnBetween,
        GoingOnWhenCaught,
        Passing,
        Hiding,
        Later,
    ],
)
def test_any_other_task_is_not(task: type[PipelineTask]) -> None:
    assert not is_orderly(task)


def test_a_task_without_source_is_not() -> None:
    code = "def runQuantum(self, butlerQC, inputRefs, outputRefs):\n    butlerQC.put(0, outputRefs)\n"
    space: dict[str, Any] = {}
    exec(compile(code, "<nowhere>", "exec"), space)
    assert not is_orderly(type("Sourceless", (PipelineTask,), {"runQuantum": space["runQuantum"]}))
