# SPDX-License-Identifier: BSD-3-Clause
"""A layer in torch, loaded at import."""

import mltasks
import torch

MODEL = torch.nn.Linear(*mltasks.WEIGHTS, bias=False)
with torch.no_grad():
    MODEL.weight.copy_(torch.from_numpy(mltasks.weights().T))


def run(images):
    with torch.no_grad():
        return MODEL(torch.from_numpy(images)).numpy()
