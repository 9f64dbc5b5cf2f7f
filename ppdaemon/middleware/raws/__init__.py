# SPDX-License-Identifier: BSD-3-Clause
"""Raw files: headers, dimension records, ingest into the worker's repo."""
