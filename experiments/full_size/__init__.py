"""Both papers' protocols at full size, on generated stand-ins for their data."""
