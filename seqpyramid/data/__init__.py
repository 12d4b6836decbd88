"""Files on disk: reading, fetching, splitting and caching them. Knows nothing of tasks and models."""
