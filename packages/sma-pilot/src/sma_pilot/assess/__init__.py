"""Before any model is trained: how much sparse activation could save on a log (docs/assess.md)."""

from sma_pilot.assess.assessment import Assessment, assess
from sma_pilot.assess.savings import Ceilings, read_ceilings

__all__ = ["Assessment", "Ceilings", "assess", "read_ceilings"]
