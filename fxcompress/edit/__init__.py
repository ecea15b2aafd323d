"""Edits of a captured graph: the plan of a pass, what it must satisfy, and the one rewriter that
carries it out.
"""
