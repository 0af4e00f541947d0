"""What every export gives back, for those that are reports; it stands in the warehouse's room, as analyses export too."""

from energy_lens.warehouse.exporting import Exported

__all__ = ["Exported"]
