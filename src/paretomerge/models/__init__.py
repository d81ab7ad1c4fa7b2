"""Live transformers models: built from a configuration, sharing one set of weights, moved from one point to another."""

from paretomerge.models.build import build_model as build_model
from paretomerge.models.build import device_of as device_of
from paretomerge.models.merged import ingredients_of as ingredients_of
from paretomerge.models.merged import packed_heads as packed_heads
from paretomerge.models.merged import shared_models as shared_models
from paretomerge.models.merged import unpacked_heads as unpacked_heads
from paretomerge.models.predict import on_model as on_model
from paretomerge.models.predict import pooled as pooled
from paretomerge.models.predict import predict as predict
from paretomerge.models.shared import SharedModels as SharedModels
from paretomerge.models.shared import own_tensors as own_tensors
