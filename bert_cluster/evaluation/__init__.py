"""What the two evaluation commands share: options, loading, running, storing, comparing, reporting."""
