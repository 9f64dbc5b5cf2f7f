# SPDX-License-Identifier: BSD-3-Clause
"""Names and layouts of raw files, their roots, and the outer structure of FITS."""
