"""The web demo: a chat in the browser, on any checkpoint that `internvl.hub` loads.

    server.py    starts it        api.py      endpoints for programs
    layout.py    what is seen     events.py   what happens on a click
    blocks.py, headers.py         what requests may not do
    messages.py, figures.py, pictures.py      dialogue and pictures as the browser shows them
    visitor.py   one person's dialogue        visitors.py  all of them, within bounds
    engine.py    the model, one question at a time          uploads.py  files that come in

Gradio is known to the first three rows and to messages.py only; the rest is tested without a
browser.
"""
