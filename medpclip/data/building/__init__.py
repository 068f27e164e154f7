"""From a source and its recipe to checked shards, with nothing dropped silently and nobody identified."""
