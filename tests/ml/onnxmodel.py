# SPDX-License-Identifier: BSD-3-Clause
"""A layer in onnxruntime, loaded at import; the thread pools are in a worker only."""

import functools

import mltasks
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_INPUT = helper.make_tensor_value_info("images", TensorProto.FLOAT, [None, mltasks.WEIGHTS[0]])
_OUTPUT = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None, mltasks.WEIGHTS[1]])
_NODE = helper.make_node("MatMul", ["images", "weights"], ["scores"])
_WEIGHTS = numpy_helper.from_array(mltasks.weights(), "weights")
_GRAPH = helper.make_graph([_NODE], "layer", [_INPUT], [_OUTPUT], [_WEIGHTS])
MODEL = helper.make_model(
    _GRAPH, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
).SerializeToString()


@functools.cache
def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def run(images):
    return session().run(None, {"images": images})[0]
