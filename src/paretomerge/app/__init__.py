"""The explorer: a page on this machine that shows a front and its models at any preference.

``simplex``, ``panels``, ``view``, ``live`` and ``exports`` need no browser; ``page`` wires them to gradio, ``serve`` serves it.
"""

from paretomerge.app.exports import export as export
from paretomerge.app.exports import free_name as free_name
from paretomerge.app.exports import target as target
from paretomerge.app.guard import LOCAL as LOCAL
from paretomerge.app.live import Answer as Answer
from paretomerge.app.live import Live as Live
from paretomerge.app.live import kind_of as kind_of
from paretomerge.app.panels import about as about
from paretomerge.app.serve import application as application
from paretomerge.app.serve import free_socket as free_socket
from paretomerge.app.serve import serve as serve
from paretomerge.app.simplex import CORNERS as CORNERS
from paretomerge.app.simplex import at_place as at_place
from paretomerge.app.simplex import moved as moved
from paretomerge.app.simplex import percentages as percentages
from paretomerge.app.simplex import place as place
from paretomerge.app.view import ALL as ALL
from paretomerge.app.view import KNEE as KNEE
from paretomerge.app.view import TWO as TWO
from paretomerge.app.view import Fields as Fields
from paretomerge.app.view import View as View
