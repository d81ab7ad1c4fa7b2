"""The explorer: a page on this machine that shows a front and its models at any preference.

``simplex``, ``panels``, ``live`` and ``exports`` know nothing of the page; ``page`` wires them to gradio, ``serve`` serves it.
"""
