"""What every export gives back. It stands in the warehouse's room, as analyses export too; reports find it here."""

from energy_lens.warehouse.exporting import Exported

__all__ = ["Exported"]
