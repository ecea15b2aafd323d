"""What everybody asks of a captured graph: nodes, parameters, arguments by name, shared memory, and
running it without changing it.
"""
