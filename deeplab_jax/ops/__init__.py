"""Pure functions on arrays; nothing here knows of modules, data or configs."""
