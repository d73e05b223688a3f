"""Trainings and models in MLflow: logging, versions, aliases, and models that MLflow can serve.

Import `client`; `resolve` to find a model by name; `log_model` to log one.
"""
