# SPDX-License-Identifier: BSD-3-Clause
"""What operators and the service manager see of a node, and what they ask of it."""
