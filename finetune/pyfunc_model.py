"""The loader module that models logged to MLflow by Firn 0.1 name."""

from finetune.registry.pyfunc_model import _load_pyfunc

__all__ = ["_load_pyfunc"]
