"""What is fast, and how fast: one readable script a question, each runnable on its own.

`dreamjax bench` runs them all. Every rate counts only steps of living players; compile time is
apart; every timing waits for the device; a share of the ceiling is against the matrix rate that
the same device showed in the same run.
"""
