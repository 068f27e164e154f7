"""What could break a big run, found out in a minute before it: `python -m medpclip.train.preflight CONFIG`.

Each check is a function that all ranks call together, and that gives the same findings on all of them.
"""
