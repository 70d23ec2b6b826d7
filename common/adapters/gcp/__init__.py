"""Google Compute Engine: the machines that standbys run on. Importing it does not import Google's client."""

from __future__ import annotations

from common.adapters.gcp.compute import GcpCompute
from common.adapters.gcp.keys import ANONYMOUS, DEFAULT_CREDENTIALS

__all__ = ["ANONYMOUS", "DEFAULT_CREDENTIALS", "GcpCompute"]
