"""Finished shards, looked at: are they whole, what do they hold, do they lie right, do two of them overlap."""
