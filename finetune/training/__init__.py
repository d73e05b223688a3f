"""One training: its plan, its steps on any number of ranks, checkpoints, and the model that it leaves.

Import `plan` and `train`; `loop` trains on data that is open already.
"""
