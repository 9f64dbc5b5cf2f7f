# SPDX-License-Identifier: BSD-3-Clause
"""What a visit would get: ``ppdaemon plan``."""
