"""Tasks and their inputs: reading files and data sets, splits, labels, predictions of a live model."""

from paretomerge.data.inputs import ImageInputs as ImageInputs
from paretomerge.data.inputs import Inputs as Inputs
from paretomerge.data.inputs import Rows as Rows
from paretomerge.data.inputs import TensorInputs as TensorInputs
from paretomerge.data.inputs import TextInputs as TextInputs
from paretomerge.data.labels import class_numbers as class_numbers
from paretomerge.data.labels import head_classes as head_classes
from paretomerge.data.prompts import Prompts as Prompts
from paretomerge.data.prompts import zero_shot_head as zero_shot_head
from paretomerge.data.sources import Split as Split
from paretomerge.data.sources import read_splits as read_splits
from paretomerge.data.splits import choose as choose
from paretomerge.data.tasks import Task as Task
from paretomerge.data.tasks import load_task as load_task
from paretomerge.specs.data_spec import DataSpec as DataSpec
from paretomerge.specs.data_spec import read_prompts as read_prompts
from paretomerge.specs.strict_yaml import parse_yaml as parse_yaml
