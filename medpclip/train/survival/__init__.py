"""A run that breaks ends, on all ranks, and says why.

`heartbeat` is what a rank shows of itself, `supervisor` the process that watches it, `failures` what they leave behind,
`guard` what the training loop runs inside. Only `guard` needs torch: a supervisor is a small process.
"""
