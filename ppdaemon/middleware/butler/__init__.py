# SPDX-License-Identifier: BSD-3-Clause
"""Butler repos, files of datasets, classification of errors."""
