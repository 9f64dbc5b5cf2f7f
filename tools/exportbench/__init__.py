# SPDX-License-Identifier: BSD-3-Clause
"""Parts of the bench of exports."""
