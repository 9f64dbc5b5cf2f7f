# SPDX-License-Identifier: BSD-3-Clause
"""Child processes of the supervisor (zygote, exporter, reader), and their supervision."""
