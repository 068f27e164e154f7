"""NIfTI volumes with label volumes, slice by slice."""
