"""Recipe files, ours and mergekit's."""

from paretomerge.recipes.flag_values import option_values as option_values
from paretomerge.recipes.flag_values import parse_numbers as parse_numbers
from paretomerge.recipes.flag_values import parse_pairs as parse_pairs
from paretomerge.recipes.mergekit import convert as convert
from paretomerge.recipes.reading import combined as combined
from paretomerge.recipes.reading import read_recipe as read_recipe
from paretomerge.recipes.recipe import BaseMerge as BaseMerge
from paretomerge.recipes.recipe import Recipe as Recipe
from paretomerge.recipes.recipe import parse_size as parse_size
from paretomerge.recipes.writing import recipe_of as recipe_of
