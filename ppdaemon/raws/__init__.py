# SPDX-License-Identifier: BSD-3-Clause
"""Names and layouts of raw files, the configuration of raw roots, and the structure of FITS files."""
