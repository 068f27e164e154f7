"""From shards to training batches: one geometry, prompts as people give them, texts, an exact order."""
