"""Adapter folders of AdapterHub's library (`adapters` 0.x and 1.x, and adapter-transformers before it).

    adapter_config.json            {"config": …, "model_type", "model_class", "hidden_size", "name", "version"}
    pytorch_adapter.bin            or adapter.safetensors
    head_config.json, pytorch_model_head.bin | model_head.safetensors

Their keys are paths inside the library's own copy of each model. `families` says where those are in our terms,
`configs` and `keys` convert, and weights are read by torch's weights-only loader.
"""

from adaptrain.interop.adapterhub.families import FAMILIES, Family, family_of
from adaptrain.interop.adapterhub.folders import Foreign, read, recognises

__all__ = ["FAMILIES", "Family", "Foreign", "family_of", "read", "recognises"]
