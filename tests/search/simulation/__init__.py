"""Random programs over the real service, in virtual time and in random order.

A program (`programs`) is a list of steps: callers come and are cancelled, clocks jump,
the upstream fails. `world` runs one on a loop whose tasks wake in random order
(`loop`) against the emulator's model (`upstream`), and checks after every
turn of the loop what must hold, by what it has written down (`books`).
`search` lets hypothesis look for a program that breaks something, and says after how
many it found one::

    pytest search/test_simulation.py --programs 5000 --hypothesis-seed 7
    python -m search.simulation --programs 5000 --seed 7 [--as-found]

Both run in ``tests`` and stop at the first program that fails; it is then made as small as it goes,
unless it is to be told ``--as-found``, which takes no time. Either way the failure ends with a line
that runs that program again, and begins with ``after 37 programs (of 5000, seed 7): ``. The library
may be another copy, as ``PYTHONPATH`` says.
"""
