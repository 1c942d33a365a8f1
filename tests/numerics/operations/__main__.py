"""``python -m tests.numerics.operations [--write]``."""

import sys

from .asking import ask
from .calls import every_call
from .page import PAGE, page, wrong

findings = ask(every_call())
print(*wrong(findings), sep="\n")
if "--write" in sys.argv[1:]:
    PAGE.write_text(page(findings))
