"""A front and its folder: saving, opening, picking, model cards, exported models and adapters, provenance, verification."""

from paretomerge.front.adapter_folder import write_lora as write_lora
from paretomerge.front.card import model_card as model_card
from paretomerge.front.changing import EXPORTS as EXPORTS
from paretomerge.front.changing import changing as changing
from paretomerge.front.folder import load_front as load_front
from paretomerge.front.front import FACTS as FACTS
from paretomerge.front.front import TENSORS as TENSORS
from paretomerge.front.front import Front as Front
from paretomerge.front.front import front_of as front_of
from paretomerge.front.model_folder import write_model as write_model
from paretomerge.front.provenance import sources_of as sources_of
from paretomerge.front.provenance import versions as versions
from paretomerge.front.record import record as record
from paretomerge.front.saving import About as About
from paretomerge.front.saving import save as save
from paretomerge.front.tables import metrics_of as metrics_of
from paretomerge.front.verify import Check as Check
from paretomerge.front.verify import failed as failed
from paretomerge.front.verify import relocate as relocate
from paretomerge.front.verify import verify_files as verify_files
