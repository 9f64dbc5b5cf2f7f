# SPDX-License-Identifier: BSD-3-Clause
"""From a raw file to the worker's repo: headers, dimension records, ingest."""
