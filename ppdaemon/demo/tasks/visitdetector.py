# SPDX-License-Identifier: BSD-3-Clause
"""Tasks whose `run` takes the IDs of visit and detector, besides the datasets."""

import lsst.pipe.base as pipeBase  # noqa: N812

__all__ = ("VisitDetectorTask",)


class VisitDetectorTask(pipeBase.PipelineTask):
    """Pass visit and detector of the data ID on to `run`."""

    def runQuantum(  # noqa: N802 -- the base class's name
        self,
        butlerQC: pipeBase.QuantumContext,  # noqa: N803
        inputRefs: pipeBase.InputQuantizedConnection,  # noqa: N803
        outputRefs: pipeBase.OutputQuantizedConnection,  # noqa: N803
    ) -> None:
        """Read the inputs, call `run`, write the outputs."""
        data_id = butlerQC.quantum.dataId
        if data_id is None:
            raise ValueError("a quantum without a data ID has no visit and detector")
        inputs = butlerQC.get(inputRefs)
        outputs = self.run(**inputs, visit=int(data_id["visit"]), detector=int(data_id["detector"]))
        butlerQC.put(outputs, outputRefs)
