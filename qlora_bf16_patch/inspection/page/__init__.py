"""One self-contained file of HTML that shows dtypes: modules as rows, phases as columns."""

from .page import to_html
from .rows import Dtypes, Mark, Seen

__all__ = ["Dtypes", "Mark", "Seen", "to_html"]
