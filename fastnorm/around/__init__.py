"""What stands around a normalizer in real networks, in the same pass.

Every normalizer takes the keywords of :class:`Around`. The compiled core does the activation, the
shortcut, the gate and the residual; each other keyword is a *stage* of this folder, which takes its
own keywords from a call, changes the call, and lets the next stage go on. The bits are those of the
calls one by one.
"""

from ._back import Kept
from ._call import Call, Result, public
from ._keywords import Around, AroundSettings
from ._parameters import is_wide
from ._separate import Outside
from ._stages import at_once, run, settings

__all__ = [
    "Around",
    "AroundSettings",
    "Call",
    "Kept",
    "Outside",
    "Result",
    "at_once",
    "is_wide",
    "public",
    "run",
    "settings",
]
