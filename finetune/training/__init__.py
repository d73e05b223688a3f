"""One training: its plan, its steps on any number of ranks, checkpoints, and the model that it writes.

Import `plan` and `train`; `loop` trains on data that is already open.
"""
