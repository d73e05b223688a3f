"""The name under which models that 0.1 logged to MLflow ask for their loader."""

from finetune.registry.pyfunc_model import _load_pyfunc

__all__ = ["_load_pyfunc"]
