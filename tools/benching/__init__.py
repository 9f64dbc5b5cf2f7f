# SPDX-License-Identifier: BSD-3-Clause
"""What the benches have in common."""
