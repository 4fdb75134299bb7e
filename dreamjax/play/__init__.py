"""A dream that anyone plays: a page in a browser, one static folder, which `dreamjax play` makes.

`page` is that folder without a world; its mathematics are those of `memory`, `dream`, `controller`
and `vision`, once more in JavaScript, and compared with them by tests/test_play.py.
"""
