"""The explorer: a page on this machine that shows a front and its models at any preference.

``simplex``, ``panels``, ``view``, ``live`` and ``exports`` need no browser; ``page`` wires them to gradio, ``serve`` serves it.
"""
