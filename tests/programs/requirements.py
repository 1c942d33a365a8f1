"""``python -m tests.programs.requirements <distribution> [without ...]``: what it asks for, but for some."""

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

distribution, *without = sys.argv[1:]
for line in requires(distribution) or ():
    requirement = Requirement(line)
    if requirement.name not in without and (not requirement.marker or requirement.marker.evaluate({"extra": ""})):
        print(line)
