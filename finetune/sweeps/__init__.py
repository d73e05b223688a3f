"""Sweeps: many trainings, one for each setting and seed, none done twice.

Import `plan` and `run`; `folder` reads the results.
"""
