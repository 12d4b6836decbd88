"""Recurrent layers with hand-derived backward passes in torch's own operations, for machines without a compiler.

No graph is recorded and no buffer is allocated in a time loop. Each layer has a plain twin that it is tested against.
"""
