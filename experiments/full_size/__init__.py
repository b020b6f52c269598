"""The protocols of both papers at full size, on generated stand-ins for their data."""
