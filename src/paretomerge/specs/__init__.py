"""What files and flags say, before anything heavy is imported: where a task's inputs are, and YAML without surprises."""

from paretomerge.specs.data_spec import DataSpec as DataSpec
from paretomerge.specs.data_spec import read_prompts as read_prompts
from paretomerge.specs.strict_yaml import parse_yaml as parse_yaml
