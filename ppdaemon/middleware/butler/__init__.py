# SPDX-License-Identifier: BSD-3-Clause
"""The Butler's ground: repos, files of datasets, errors and their meaning."""
