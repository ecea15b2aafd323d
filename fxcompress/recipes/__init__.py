"""Recipes: what is to be done as data, with a way there and back for every form.

A `Recipe` is a small frozen dataclass: a pass, a step, a budget, a criterion. Its ``repr`` is the
call that makes it again, and so is what history shows, what the command line takes, and what
`Recipe.parse` reads; `Recipe.to_dict` and `Recipe.to_yaml` are the same as plain data. A class is
known by its name from its definition on, one of a user's as one of ours.
"""

from fxcompress.recipes.recipe import Pipeline, Recipe

__all__ = ["Pipeline", "Recipe"]
