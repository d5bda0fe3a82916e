"""Adapter folders of AdapterHub's library (`adapters` 0.x and 1.x, and adapter-transformers before it).

    adapter_config.json            {"config": …, "model_type", "model_class", "hidden_size", "name", "version"}
    pytorch_adapter.bin            or adapter.safetensors
    head_config.json, pytorch_model_head.bin | model_head.safetensors

Fusions (`fusions`) and whole set-ups (`setups`) have folders of their own.

Their keys are paths inside the library's own copy of each model. `families` says where those are in our terms,
`configs` and `keys` convert, and weights are read by torch's weights-only loader.
"""

from adaptrain.interop.adapterhub.families import FAMILIES, Family, family_of
from adaptrain.interop.adapterhub.folders import Foreign, read, recognises
from adaptrain.interop.adapterhub.fusions import ForeignFusion, read_fusion_folder, recognises_fusion
from adaptrain.interop.adapterhub.heads import read_head
from adaptrain.interop.adapterhub.setups import SETUP_CONFIG, ForeignSetup, check_setup, read_setup, recognises_setup

__all__ = [
    "FAMILIES",
    "SETUP_CONFIG",
    "Family",
    "Foreign",
    "ForeignFusion",
    "ForeignSetup",
    "check_setup",
    "family_of",
    "read",
    "read_fusion_folder",
    "read_head",
    "read_setup",
    "recognises",
    "recognises_fusion",
    "recognises_setup",
]
