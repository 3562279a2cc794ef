"""Every door through which something comes in, and what comes in there: valid, nearly valid, and rubbish.

A door takes what it is given and keeps its laws, or refuses with an error of espace; it ends in bounded time. A small
share of examples, the same ones each time, is part of the tests. As many as are wanted, others each time:

    python -m tests.fuzz --examples 100000 --door chain
"""
