# SPDX-License-Identifier: BSD-3-Clause
"""Status and control of a node for operators and the service manager."""
