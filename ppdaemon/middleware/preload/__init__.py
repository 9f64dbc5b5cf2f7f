# SPDX-License-Identifier: BSD-3-Clause
"""What is copied from the central repo before the image."""
