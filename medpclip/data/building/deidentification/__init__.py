"""Free text without what identifies a person."""
