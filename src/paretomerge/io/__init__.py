"""Files and the system: locks, leftovers of killed writers, signals, strict JSON, text that is safe to show."""

from paretomerge.io.leftovers import folder_for as folder_for
from paretomerge.io.leftovers import is_leftover as is_leftover
from paretomerge.io.leftovers import left_behind as left_behind
from paretomerge.io.leftovers import remove_folder as remove_folder
from paretomerge.io.leftovers import set_aside as set_aside
from paretomerge.io.leftovers import sweep as sweep
from paretomerge.io.leftovers import temporary as temporary
from paretomerge.io.locking import locked as locked
from paretomerge.io.locking import run_folder as run_folder
from paretomerge.io.plain_text import LONGEST as LONGEST
from paretomerge.io.plain_text import html as html
from paretomerge.io.plain_text import line as line
from paretomerge.io.plain_text import printable as printable
from paretomerge.io.signals import Ended as Ended
from paretomerge.io.signals import ended_by_signals as ended_by_signals
from paretomerge.io.signals import handled as handled
from paretomerge.io.strict_json import as_json as as_json
from paretomerge.io.strict_json import compact_json as compact_json
from paretomerge.io.strict_json import parsed_json as parsed_json
from paretomerge.io.strict_json import printed_json as printed_json
from paretomerge.io.strict_json import untagged as untagged
