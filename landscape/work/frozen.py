"""Imported last by the server from which workers are forked, and nowhere else.

What the server has imported is no garbage. A worker that looked through it would copy all of that
memory, which it shares until then: half a second of the first one in which it works.
"""

import gc

gc.freeze()
